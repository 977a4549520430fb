"""The head of a classifier or regressor: `output` beside a model's own params, and what becomes of it on disk."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxft.formats.heads import Head, head_form, read_head
from jaxft.formats.huggingface import read_config
from jaxft.formats.huggingface_config import Config
from jaxft.formats.safetensors import open_checkpoint, save_file
from jaxft.recipes.forms.labels import Target

FILE = "output.safetensors"
# What it reads. "first": the first token's state, by a dense layer and its tanh; "vector": the model's own vector.
HEADS = ("first", "vector")


def usual_head(config: Config) -> str:
  """The head that transformers has for a model, or else the plain one."""
  form = head_form(config)
  return "first" if form is not None and form.dense is not None else "vector"


def init_output(config: Config, outputs: int, head: str | None = None) -> dict[str, Any]:
  """Zeros, so that all classes are equally likely and a number is its mean; the layer before it changes nothing yet.

  Args:
    config: of the model.
    outputs: classes, or one.
    head: one of `HEADS`; None takes the model's usual one.

  Raises:
    ValueError: the model has no first token.
  """
  head = head or usual_head(config)
  if head == "first" and usual_head(config) != "first":
    raise ValueError(f"head first is of encoders of text; got it for {config!r:.60}")
  dim = config.dim
  out: dict[str, Any] = {
      "kernel": jnp.zeros((dim, outputs), jnp.float32), "bias": jnp.zeros((outputs,), jnp.float32)}
  if head == "first":
    out["dense"] = {"kernel": jnp.eye(dim, dtype=jnp.float32), "bias": jnp.zeros((dim,), jnp.float32)}
  return out


def head_of(params: dict[str, Any], target: Target) -> Head:
  """The trained head; a regressor's gives numbers on their own scale."""
  kernel, bias = (np.asarray(params[name], np.float32) for name in ("kernel", "bias"))
  if not target.classes:
    kernel, bias = kernel * target.std, bias * target.std + target.mean
  dense = {name: np.asarray(x, np.float32) for name, x in params["dense"].items()} if "dense" in params else None
  return Head(kernel, bias, dense, target.classes)


def fits_form(head: Head, config: Config) -> bool:
  """Whether transformers has a form for the head, so that it goes into the model's own files."""
  return has_form("vector" if head.dense is None else "first", config)


def has_form(head: str, config: Config) -> bool:
  """Whether transformers has a form for one of `HEADS` on a model."""
  form = head_form(config)
  return form is not None and (form.dense is not None) == (head == "first")


def save_output(head: Head, folder: Path) -> None:
  """Writes a head that transformers has no form for into a model's folder, as a file of its own."""
  save_file({"kernel": np.asarray(head.kernel), "bias": np.asarray(head.bias)}, folder / FILE,
            metadata={"classes": json.dumps(head.classes)})


def load_output(folder: Path | str) -> Head:
  """The head of a tuned classifier or regressor, `out/model` of its run.

      model, head = load("runs/pets/model"), load_output("runs/pets/model")
      scores = head(features(model.config)(model.params, batch))

  Raises:
    ValueError: the folder holds none, or its file is broken.
  """
  path = Path(folder) / FILE
  if not path.exists():
    if (Path(folder) / "config.json").exists() and (head := read_head(folder, read_config(folder))) is not None:
      return head
    raise ValueError(f"folder must be that of a classifier or regressor; {folder} has no head, nor an {FILE}")
  checkpoint = open_checkpoint(path)
  try:
    classes = tuple(json.loads(checkpoint.metadata["classes"]))
    return Head(checkpoint.read("kernel"), checkpoint.read("bias"), None, classes)
  except (KeyError, ValueError) as e:
    raise ValueError(f"{path} is no output layer: {e}") from None
