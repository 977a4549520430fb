"""The table of losses, `jaxft/losses/README.md`, made of the docstrings: `python -m tools.loss_table`.

A docstring names its counterparts in paragraphs at its end, which begin with `sentence-transformers:` and `TRL:`.
"""

import inspect
import re
from pathlib import Path

from jaxft import losses
from jaxft.training import embed_cached

PAGE = Path(__file__).parents[1] / "jaxft" / "losses" / "README.md"
LIBRARIES = ("sentence-transformers", "TRL")
HEAD = """# Losses

Made of the docstrings by `python -m tools.loss_table`. A loss takes arrays and gives `(values, weights)` of rows or
tokens; `Mean.of(*loss(...))` reduces them. In-batch losses are those of the global batch, on any mesh, and
`embed_cached` computes any of them in chunks of the batch with equal gradients. Copies of a row's texts are no
negatives of it where a loss gets their ids, which `text_ids` or `packed_text_ids` makes of tokens. Copies that are to
compete get different ids.
"""


def counterpart(function, library: str = LIBRARIES[0]) -> str:
  """What the docstring says of a library; empty where it says nothing."""
  text = inspect.getdoc(function) or ""
  found = re.search(rf"^{library}: (.+?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
  return " ".join(found[1].split()) if found else ""


def is_loss(function) -> bool:
  returned = str(inspect.signature(function).return_annotation)
  gives_values = "tuple[" in returned and "values" in (inspect.getdoc(function) or "")
  return gives_values or any(counterpart(function, library) for library in LIBRARIES)


def page() -> str:
  functions = {name: inspect.unwrap(f) for name, f in vars(losses).items() if inspect.isfunction(f)}
  modules: dict[str, list[str]] = {}
  for name, function in functions.items():
    if is_loss(function):
      first = (inspect.getdoc(function) or "").split("\n")[0].replace("|", "\\|")
      row = " | ".join([f"| `{name}`", first, *(counterpart(function, library) for library in LIBRARIES)]) + " |"
      modules.setdefault(function.__module__.removeprefix("jaxft.losses."), []).append(row)
  lines = [HEAD, "| loss | what it is | in sentence-transformers | in TRL |", "| --- | --- | --- | --- |"]
  for module, rows in modules.items():
    lines += [f"| **{module.replace('.', ': ').replace('_', ' ')}** | | | |", *rows]
  lines += [f"| `training.embed_cached` | the gradient cache | {counterpart(embed_cached)} |  |"]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  PAGE.write_text(page())
