"""`load`: a pretrained model by the name of a preset, or from a folder or GGUF file of one's own.

    load("smollm2-135m")        the whole model
    load("smollm2-135m:4")      its first four layers, for trying a script in seconds
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from tokenizers import Tokenizer

from jaxft.models.cut import cut_model
from jaxft.models.gguf import open_gguf
from jaxft.models.gguf_llama import load_gguf, tokenizer_of
from jaxft.models.huggingface import load_directory
from jaxft.models.huggingface_config import Config
from jaxft.models.names import is_decoder
from jaxft.models.presets import PRESETS, fetch
from jaxft.models.tokenizers import read_tokenizer
from jaxft.transforms.filters import nearest


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A pretrained model: what `jaxft.models.encoder` and `decoder` take, and the tokenizer that goes with it.

  Attributes:
    name: what it was loaded as.
    params: the nested dict of arrays.
    config: an EncoderConfig or a DecoderConfig.
    tokenizer: with neither padding nor truncation; None where the checkpoint has none.
    chat_template: the Jinja template of a chat model, else None.
    max_length: the most tokens of an input: for an encoder what it was tuned with, which may be less than its position
      table holds; for a decoder its context.
  """

  name: str
  params: dict[str, Any]
  config: Config
  tokenizer: Tokenizer | None
  chat_template: str | None
  max_length: int

  @property
  def family(self) -> Literal["encoder", "decoder"]:
    return "decoder" if is_decoder(self.config) else "encoder"


def load(name_or_path: str | os.PathLike, *, dtype: jnp.dtype = jnp.float32, stacked: bool = True) -> Pretrained:
  """Loads a pretrained model.

  Args:
    name_or_path: a preset (`jaxft.models.presets.PRESETS`, fetched on first use), a Hugging Face folder, a GGUF file.
      A preset followed by `:N` has its first N layers alone, with the embeddings, final norm and head that it came with.
    dtype: of the params.
    stacked: layers along a leading axis, or one subtree per layer.

  Raises:
    ValueError: it is neither a preset nor something that exists (the nearest presets are named), N is no number of
      layers that it has, or the checkpoint is corrupt or of a kind that is not supported.
    OSError: a preset cannot be fetched.
  """
  name, path = str(name_or_path), Path(name_or_path)
  preset, colon, layers = name.partition(":")
  if colon and preset in PRESETS:
    return _first_layers(load(preset, dtype=dtype, stacked=stacked), layers)
  if name in PRESETS:
    path = fetch(name)
  elif not path.exists():
    raise ValueError(f"{name!r} is neither a preset nor an existing path; {nearest(name, list(PRESETS))}")
  if path.is_file() and path.suffix == ".gguf":
    file = open_gguf(path)
    params, config = load_gguf(file, dtype=dtype, stacked=stacked)
    template = file.metadata.get("tokenizer.chat_template")
    return Pretrained(name, params, config, tokenizer_of(file), template, config.max_length)
  if path.is_file():
    raise ValueError(f"{name!r} must be a preset, a Hugging Face folder or a .gguf file; got another kind of file")
  params, config = load_directory(path, dtype=dtype, stacked=stacked)
  tokenizer, chat_template, max_length = read_tokenizer(path)
  # A position table bounds an encoder's input whatever a file beside it says.
  max_length = min(max_length or config.max_length, config.max_length)
  return Pretrained(name, params, config, tokenizer, chat_template, max_length)


def _first_layers(model: Pretrained, layers: str) -> Pretrained:
  """A model of the first layers of another."""
  whole = model.config.num_layers
  if not (layers.isascii() and layers.isdigit() and 1 <= int(layers) <= whole):
    raise ValueError(f"{model.name!r} has {whole} layers: what follows the colon must lie in [1, {whole}]; got {layers!r}")
  if int(layers) == whole:
    return model
  part, _ = cut_model(model.params, model.config, int(layers))
  return dataclasses.replace(model, name=f"{model.name}:{layers}", params=part.params, config=part.config)
