"""Heads of classifiers and regressors, in the form in which transformers keeps them beside a model.

    BertForSequenceClassification     the first token's state, a dense layer and its tanh, a linear layer
    MPNetForSequenceClassification    the same under other names
    ViTForImageClassification         the class token's state, a linear layer
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.formats.huggingface_config import Config
from jaxft.formats.safetensors import open_checkpoint, read_json
from jaxft.models.encoder import EncoderConfig
from jaxft.models.linear import linear
from jaxft.models.vision import VisionConfig
from jaxft.signatures import AnyArray


class HeadForm(NamedTuple):
  """How transformers keeps a head.

  Attributes:
    architecture: the class that loads it.
    prefix: what stands before the names of the model's own tensors then.
    out: name of the last layer.
    dense: name of the layer before it, which has a tanh; None where there is none.
  """

  architecture: str
  prefix: str
  out: str
  dense: str | None


class Head(NamedTuple):
  """A layer, or two with a tanh between them, over a model's vectors.

  Attributes:
    kernel: `[dim, outputs]`.
    bias: `[outputs]`.
    dense: `{"kernel": [dim, dim], "bias": [dim]}` of the layer before it, which takes the state of the first token;
      None: there is none, and the model's own vector is taken.
    classes: what the outputs are the scores of; empty where there is one, a number.
  """

  kernel: Any
  bias: Any
  dense: Mapping[str, Any] | None = None
  classes: tuple[str, ...] = ()

  def __call__(self, vectors: Float[AnyArray, "batch dim"]) -> Float[Array, "batch outputs"]:
    """Scores of the classes, or the number."""
    dense = {} if self.dense is None else {"dense": self.dense}
    return apply_head({"kernel": self.kernel, "bias": self.bias, **dense}, vectors)


def apply_head(params: Mapping[str, Any], vectors: Float[AnyArray, "batch dim"]) -> Float[Array, "batch outputs"]:
  """`{"kernel", "bias"}` and perhaps `"dense"`, as of `Head`, on vectors, in float32."""
  x = jnp.asarray(vectors, jnp.float32)
  if "dense" in params:
    x = jnp.tanh(linear(x, params["dense"]))
  return linear(x, {name: params[name] for name in ("kernel", "bias")})


def head_form(config: Config) -> HeadForm | None:
  """The form of a model's head in transformers, None where it has none that computes the same.

  >>> from jaxft.formats import load
  >>> head_form(load("minilm-l6:tiny").config).architecture
  'BertForSequenceClassification'
  """
  if isinstance(config, EncoderConfig):
    if config.relative_buckets:
      return HeadForm("MPNetForSequenceClassification", "mpnet.", "classifier.out_proj", "classifier.dense")
    return HeadForm("BertForSequenceClassification", "bert.", "classifier", "bert.pooler.dense")
  if isinstance(config, VisionConfig) and not config.embed_norm and config.pooling == "cls":
    return HeadForm("ViTForImageClassification", "vit.", "classifier", None)
  return None


def head_tensors(head: Head, form: HeadForm) -> dict[str, np.ndarray]:
  """The head's tensors as files have them.

  Raises:
    ValueError: the head has another form.
  """
  if (head.dense is None) != (form.dense is None):
    raise ValueError(f"head must be that of {form.architecture}, {'with' if form.dense else 'without'} a dense layer")
  layers = {form.out: {"kernel": head.kernel, "bias": head.bias}}
  if form.dense is not None and head.dense is not None:
    layers[form.dense] = dict(head.dense)
  out = {}
  for name, layer in layers.items():
    out[f"{name}.weight"] = np.ascontiguousarray(np.asarray(layer["kernel"], np.float32).T)
    out[f"{name}.bias"] = np.asarray(layer["bias"], np.float32)
  return out


def head_json(head: Head, form: HeadForm) -> dict[str, Any]:
  """What `config.json` says of it."""
  names = head.classes or ("value",)
  return {
    "architectures": [form.architecture], "id2label": {str(i): name for i, name in enumerate(names)},
    "label2id": {name: i for i, name in enumerate(names)},
    "problem_type": "single_label_classification" if head.classes else "regression",
  }


def head_names(config: Config) -> frozenset[str]:
  """The names that the head's tensors have in a checkpoint of this model; none where the model has no such form."""
  form = head_form(config)
  layers = () if form is None else [name for name in (form.out, form.dense) if name is not None]
  return frozenset(f"{name}.{part}" for name in layers for part in ("weight", "bias"))


def read_head(path: str | os.PathLike, config: Config) -> Head | None:
  """The head that a folder holds, None where it is that of a model alone.

  Raises:
    ValueError: its tensors or the names of its classes are not those of one head.
  """
  path, form = Path(path), head_form(config)
  if form is None:
    return None
  said = read_json(path / "config.json")
  if said.get("architectures") != [form.architecture]:
    return None
  checkpoint = open_checkpoint(path)
  missing = sorted(name for name in head_names(config) if name not in checkpoint.tensors)
  if missing:
    raise ValueError(f"{path}: config.json says {form.architecture}, and there is no {', '.join(missing)}")
  layer = lambda name: {"kernel": checkpoint.read(f"{name}.weight").T, "bias": checkpoint.read(f"{name}.bias")}
  out, dense = layer(form.out), None if form.dense is None else layer(form.dense)
  shapes = [out["kernel"].shape[0] == config.dim, out["bias"].shape == out["kernel"].shape[1:]]
  if dense is not None:
    shapes += [dense["kernel"].shape == (config.dim, config.dim), dense["bias"].shape == (config.dim,)]
  if not all(shapes):
    raise ValueError(f"{path}: the tensors of the head do not fit {config.dim} dimensions and one another")
  number, labels = len(out["bias"]), said.get("id2label") or {}
  if said.get("problem_type") == "regression" or number == 1:
    return Head(out["kernel"], out["bias"], dense)
  if sorted(labels) != sorted(str(i) for i in range(number)):
    raise ValueError(f"{path}: id2label in config.json must name the {number} classes; got {json.dumps(labels)[:200]}")
  return Head(out["kernel"], out["bias"], dense, classes=tuple(str(labels[str(i)]) for i in range(number)))
