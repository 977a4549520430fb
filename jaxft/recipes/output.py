"""The output layer of a classifier or regressor: `output/{kernel,bias}` beside a model's own params, and its file."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.formats.safetensors import open_checkpoint, save_file
from jaxft.models.linear import linear
from jaxft.recipes.labels import Target

FILE = "output.safetensors"


class Output(NamedTuple):
  """A linear layer over a model's vectors.

  Attributes:
    kernel: `[dim, outputs]`.
    bias: `[outputs]`.
    classes: what the outputs are the scores of; empty where there is one, a number.
  """

  kernel: Any
  bias: Any
  classes: tuple[str, ...] = ()

  def __call__(self, vectors: Float[Any, "batch dim"]) -> Float[Array, "batch outputs"]:
    """Scores of the classes, or the number."""
    return linear(jnp.asarray(vectors), {"kernel": self.kernel, "bias": self.bias})


def init_output(dim: int, outputs: int) -> dict[str, Any]:
  """Zeros: all classes are equally likely, and a number is its mean."""
  return {"kernel": jnp.zeros((dim, outputs), jnp.float32), "bias": jnp.zeros((outputs,), jnp.float32)}


def save_output(params: dict[str, Any], target: Target, folder: Path) -> None:
  """Writes the trained layer into a model's folder; a regressor's gives numbers on their own scale."""
  kernel, bias = (np.asarray(params[name], np.float32) for name in ("kernel", "bias"))
  if not target.classes:
    kernel, bias = kernel * target.std, bias * target.std + target.mean
  save_file({"kernel": kernel, "bias": bias}, folder / FILE, metadata={"classes": json.dumps(target.classes)})


def load_output(folder: Path | str) -> Output:
  """The layer of a tuned classifier or regressor, `out/model` of its run.

      model, output = load("runs/pets/model"), load_output("runs/pets/model")
      scores = output(features(model.config)(model.params, batch))

  Raises:
    ValueError: the folder holds none, or its file is broken.
  """
  path = Path(folder) / FILE
  if not path.exists():
    raise ValueError(f"folder must be that of a classifier or regressor, with its {FILE}; {folder} has none")
  checkpoint = open_checkpoint(path)
  try:
    classes = tuple(json.loads(checkpoint.metadata["classes"]))
    return Output(checkpoint.read("kernel"), checkpoint.read("bias"), classes)
  except (KeyError, ValueError) as e:
    raise ValueError(f"{path} is no output layer: {e}") from None
