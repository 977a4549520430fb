"""Builds the API reference from the docstrings, and checks that every relative link leads somewhere.

    python -m tools.docs build/docs      # `make docs`
"""

import importlib
import pkgutil
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import jaxft

ROOT = Path(__file__).parents[1]


def pages() -> list[str]:
  """The areas with their packages, and the modules that an area shows as such: all, if it shows nothing."""
  names = ["jaxft"]
  for area in (f"jaxft.{name}" for name in jaxft.AREAS):
    package = importlib.import_module(area)
    shown = {value.__name__ for value in public(package).values() if isinstance(value, ModuleType)}
    below = pkgutil.walk_packages(package.__path__, f"{area}.")
    names += [area, *(info.name for info in below if info.ispkg or info.name in shown or not public(package))]
  return names


def public(module: ModuleType) -> dict[str, Any]:
  """What a package shows: what its `__init__` imports from the library, whether at once or at first use."""
  if hasattr(module, "__all__"):
    return {name: getattr(module, name) for name in module.__all__}
  home = lambda value: str(getattr(value, "__module__", ""))  # a submodule has none
  return {name: value for name, value in vars(module).items() if name[0] != "_" and home(value).startswith("jaxft.")}


def build(folder: Path) -> None:
  """One HTML page for each of `pages()`."""
  import pdoc

  names = pages()
  for module in map(importlib.import_module, names):
    if hasattr(module, "__path__"):
      # pdoc reads `__dict__` and leaves out what is imported: here everything is, and some of it at first use.
      shown = {name: value for name, value in public(module).items() if not isinstance(value, ModuleType)}
      module.__all__ = list(shown)
      module.__dict__.update(shown)
  # A function may have the name of its module (`merging.lines`), of which pdoc then makes a page too.
  warnings.filterwarnings("ignore", "The module specification .* has already been added", UserWarning)
  pdoc.render.configure(docformat="google", footer_text=f"jaxft {jaxft.__version__}")
  pdoc.pdoc(*names, output_directory=folder)


def broken_links(folder: Path) -> list[str]:
  """`file: link` of every relative link in the HTML and Markdown of a folder that leads to no file, or to no anchor."""
  broken = []
  for file in sorted((*folder.rglob("*.html"), *folder.rglob("*.md"))):
    if any(part.startswith(".") or part == "build" for part in file.relative_to(folder).parts[:-1]):
      continue
    text = re.sub(r"(?s)<script.*?</script>", "", file.read_text(encoding="utf-8"))
    pattern = r'(?:href|src)="([^"]+)"' if file.suffix == ".html" else r"\]\(([^)\s]+)\)"
    for link in dict.fromkeys(re.findall(pattern, text)):
      path, _, anchor = link.partition("#")
      if re.match(r"[a-z]+:|//", link):
        continue
      target = file.parent / path if path else file
      if not target.exists() or (
          anchor and target.suffix == ".html" and f'id="{anchor}"' not in target.read_text(encoding="utf-8")):
        broken.append(f"{file.relative_to(folder)}: {link}")
  return broken


def main(args: list[str]) -> int:
  folder = Path(args[0])
  build(folder)
  broken = [*broken_links(folder), *broken_links(ROOT)]
  print(f"{len(list(folder.rglob('*.html')))} pages in {folder}; {len(broken)} links lead nowhere")
  print("\n".join(broken), end="\n" if broken else "")
  return 1 if broken else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
