"""Shapes of public models, without their weights: what `jaxft plan` needs of a model that lies nowhere on this machine.

Each `NAME.json` here has the sizes that the model's own `config.json` states, in its keys.
"""

import json
from pathlib import Path
from typing import Any

from jaxft import checks
from jaxft.signatures import explain_errors as _explain_errors

FOLDER = Path(__file__).parent


def shape_names() -> list[str]:
  """The models whose shapes are here.

  >>> shape_names()
  ['gemma3-27b', 'llama3-70b', 'llama3-8b', 'llama3.1-405b', 'qwen3-32b', 'smollm2-1.7b']
  """
  return sorted(file.stem for file in FOLDER.glob("*.json"))


@_explain_errors
def read_shape(name: str) -> Any:
  """The config of a model by its name.

  >>> read_shape("llama3-8b").num_layers
  32

  Raises:
    ValueError: there is no such shape.
  """
  from jaxft.formats.huggingface_config import from_huggingface

  if name not in shape_names():
    raise ValueError(f"name must be one of the shapes {', '.join(shape_names())}; got {name!r}; "
                     f"{checks.nearest(name, shape_names())}")
  return from_huggingface(json.loads((FOLDER / f"{name}.json").read_text()))
