"""The structure of the library: what may import what, and how large a folder may be."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the ground up: an area imports itself and those before it. The modules beside the areas come before all of them.
AREAS = (
    "stores", "tree", "leaves", "choices", "transforms", "losses", "models", "adapters", "optimizers", "formats",
    "analysis", "merging", "selection", "decoding", "data", "evaluation", "training", "recipes", "studies", "cli",
)


def imports() -> list[tuple[str, str]]:
  """`(module, what it imports)` of every import in the library, lazy ones in functions included."""
  found = []
  for file in sorted((ROOT / "jaxft").rglob("*.py")):
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module:
        found += [(module, f"{node.module}.{alias.name}") for alias in node.names]
      elif isinstance(node, ast.Import):
        found += [(module, alias.name) for alias in node.names]
  return found


def area(name: str) -> str:
  parts = name.split(".")
  return parts[1] if len(parts) > 1 and (ROOT / "jaxft" / parts[1]).is_dir() else ""


def test_every_area_has_its_place():
  folders = {p.name for p in (ROOT / "jaxft").iterdir() if (p / "__init__.py").exists()}
  assert folders == set(AREAS)


def test_no_arrow_goes_up():
  place = {"": -1} | {name: i for i, name in enumerate(AREAS)}
  # `python -m jaxft` is the command itself, above all areas, and has to lie beside them.
  within = [(module, name) for module, name in imports() if name.startswith("jaxft.") and module != "jaxft.__main__"]
  assert len(within) > 1000
  up = [f"{module} imports {name}" for module, name in within if place[area(name)] > place[area(module)]]
  assert not up, "\n".join(up)


def test_no_folder_has_more_than_twenty_modules():
  folders = [p for top in ("jaxft", "experiments") for p in (ROOT / top, *(ROOT / top).rglob("*")) if p.is_dir()]
  large = {str(p.relative_to(ROOT)): n for p in folders if (n := len(set(p.glob("*.py")) - {p / "__init__.py"})) > 20}
  assert not large


def test_the_library_imports_no_experiment():
  outside = [f"{module} imports {name}" for module, name in imports() if name.split(".")[0] == "experiments"]
  assert not outside
