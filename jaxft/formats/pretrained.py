"""`load`: a pretrained model by the name of a preset, or from a folder or GGUF file of one's own.

    load("smollm2-135m")        the whole model
    load("smollm2-135m:4")      its first four layers, for trying a script in seconds
    load("smollm2-135m:tiny")   its architecture and tokenizer with few, random weights: where no weight matters
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxft.checks import nearest
from jaxft.formats.families import family_of
from jaxft.formats.gguf import open_gguf
from jaxft.formats.gguf_llama import end_ids_of, load_gguf, tokenizer_of
from jaxft.formats.heads import Head, head_form, read_head
from jaxft.formats.huggingface import load_directory, read_config
from jaxft.formats.huggingface_config import Config, text_part
from jaxft.formats.peft_files.folder import CONFIG, WEIGHTS
from jaxft.formats.peft_files.load import load_peft
from jaxft.formats.presets import PRESETS, fetch
from jaxft.formats.safetensors import open_checkpoint, read_json
from jaxft.formats.tiny import init_tiny, tiny_config
from jaxft.formats.tokenizers import check_tokenizer, more_end_ids, read_generation, read_tokenizer
from jaxft.hub import on_hub, snapshot
from jaxft.leaves import materialize
from jaxft.models.config.clip import ClipConfig
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig
from jaxft.models.cut import cut_model
from jaxft.models.decoder import DecoderConfig
from jaxft.models.efficientnet import EfficientNetConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.signatures import explain_errors
from jaxft.stores.copies import local_copy
from jaxft.stores.store import is_url
from jaxft.tree import unstack_layers

C = TypeVar("C", EncoderConfig, DecoderConfig, EncoderDecoderConfig)


@dataclasses.dataclass(frozen=True, repr=False)
class Pretrained:
  """A pretrained model: what the functions of its module in `jaxft.models` take, and its tokenizer.

  Attributes:
    name: what it was loaded as.
    params: the nested dict of arrays.
    config: an EncoderConfig, a DecoderConfig, an EncoderDecoderConfig, a VisionConfig, an EfficientNetConfig or a
      ClipConfig.
    tokenizer: with neither padding nor truncation; None where the checkpoint has none.
    chat_template: the Jinja template of a chat model, else None.
    max_length: the most tokens of an input: for an encoder what it was tuned with, which may be less than its position
      table holds; for a decoder its context; 0 where it reads no tokens but images.
    head: that of a classifier or regressor, else None.
    end_ids: of a decoder the tokens that end an answer beside its config's `eos_id`, as chat models have them.
    generation: what `generation_config.json` says, such as a temperature; it is kept for those who load what is saved.
  """

  name: str
  params: dict[str, Any]
  config: Config
  tokenizer: Tokenizer | None
  chat_template: str | None
  max_length: int
  head: Head | None = None
  end_ids: tuple[int, ...] = ()
  generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __repr__(self) -> str:
    """Two lines, however large it is."""
    leaves = jax.tree.leaves(self.params)
    kinds = ", ".join(sorted({str(leaf.dtype) for leaf in leaves}))
    reads = (f"texts of up to {self.max_length} tokens" if self.tokenizer is not None else
             "images" if self.kind == "vision" else "ids")
    reads = f"images, and {reads}" if self.kind == "dual encoder" else reads
    head = "" if self.head is None else f", with a head of {', '.join(self.head.classes) or 'one number':.60}"
    numbers = sum(leaf.size for leaf in leaves)
    return (f"{type(self).__name__} {self.name}: {self.kind} of {numbers:,} parameters ({kinds or 'held elsewhere'})\n"
            f"  {type(self.config).__name__} of {self.config.dim} dimensions; reads {reads}{head}")

  @property
  def kind(self) -> Literal["encoder", "decoder", "encoder-decoder", "vision", "dual encoder"]:
    return family_of(self.config).kind

  def text_encoder(self, argument: str = "model") -> tuple[EncoderConfig, Tokenizer]:
    """The config and the tokenizer of an encoder of text; errors name it as the argument.

    Raises:
      ValueError: it is a decoder, or has no tokenizer.
    """
    return self._of_text(EncoderConfig, "an encoder", argument)

  def text_decoder(self, argument: str = "model") -> tuple[DecoderConfig, Tokenizer]:
    """The config and the tokenizer of a decoder of text; errors name it as the argument.

    Raises:
      ValueError: it is an encoder, or has no tokenizer.
    """
    return self._of_text(DecoderConfig, "a decoder", argument)

  def text_encoder_decoder(self, argument: str = "model") -> tuple[EncoderDecoderConfig, Tokenizer]:
    """The config and the tokenizer of an encoder-decoder; errors name it as the argument.

    Raises:
      ValueError: it is of another kind, or has no tokenizer.
    """
    return self._of_text(EncoderDecoderConfig, "an encoder-decoder", argument)

  def _of_text(self, kind: type[C], words: str, argument: str) -> tuple[C, Tokenizer]:
    if not isinstance(self.config, kind) or self.tokenizer is None:
      own = {"decoder": "a decoder", "vision": "a model of images", "dual encoder": "a dual encoder"}.get(
          self.kind, f"an {self.kind}")
      raise ValueError(f"{argument} must be {words} with a tokenizer; {self.name} is {own} "
                       f"{'with' if self.tokenizer else 'without'} one")
    return self.config, self.tokenizer


@explain_errors
def load(name_or_path: str | os.PathLike, *, dtype: DTypeLike = jnp.float32, stacked: bool = True) -> Pretrained:
  """Loads a pretrained model.

  >>> model = load("minilm-l6:tiny")
  >>> model.kind, model.config.num_layers, model.config.dim
  ('encoder', 2, 48)
  >>> model.tokenizer.encode("fine-tuning").tokens
  ['[CLS]', 'fine', '-', 'tuning', '[SEP]']

  Args:
    name_or_path: a preset (`jaxft.formats.presets.PRESETS`, fetched on first use), a Hugging Face folder, a GGUF file,
      the folder of a PEFT adapter, which is merged into the model that it names, or `hf:org/name`, with `@revision`,
      of a hub (`jaxft.hub`, the extra `hub`), or the URL of a folder or file in an object store (`s3://`, `gs://`).
      A preset followed by `:N` has its first N layers alone, with its own embeddings, final norm and head. Followed by
      `:tiny` it is no pretrained model: random params of its architecture, two layers of 48 dimensions, the same at
      every call, with its own vocabulary, tokenizer and chat template (`jaxft.formats.tiny`).
    dtype: of the params.
    stacked: layers along a leading axis, or one subtree per layer.

  Raises:
    ValueError: it is neither a preset nor something that exists (the nearest presets are named), N is no number of
      layers that it has, the checkpoint is corrupt or of a kind that is not supported, or its tokenizer has tokens for
      which the embedding has no row.
    ImportError: a model of a hub, and huggingface_hub is not installed.
    OSError: a preset or a model of a hub cannot be fetched.
  """
  name, path = str(name_or_path), Path(name_or_path)
  if on_hub(name):
    path = snapshot(name, "model")
  if is_url(name):
    path = local_copy(name)
  preset, colon, part = name.partition(":")
  if colon and preset in PRESETS:
    if part == "tiny":
      return _tiny(preset, dtype=dtype, stacked=stacked)
    return _first_layers(preset, part, dtype=dtype, stacked=stacked)
  if name in PRESETS:
    path = fetch(name)
  elif not path.exists():
    raise ValueError(f"name_or_path {name!r} is neither a preset nor an existing path; {nearest(name, list(PRESETS))}")
  if path.is_file() and path.suffix == ".gguf":
    file = open_gguf(path)
    params, config = load_gguf(file, dtype=dtype, stacked=stacked)
    template = file.metadata.get("tokenizer.chat_template")
    return _checked(Pretrained(
        name, params, config, tokenizer_of(file), template, config.max_length, end_ids=end_ids_of(file, config)))
  if path.is_file():
    raise ValueError(f"{name!r} must be a preset, a Hugging Face folder or a .gguf file; got another kind of file")
  if is_adapter(path):
    return load_adapted(path, dtype=dtype, stacked=stacked)
  params, config = load_directory(path, dtype=dtype, stacked=stacked)
  if (text := text_part(config)) is None:
    return Pretrained(name, params, config, None, None, 0, read_head(path, config))
  tokenizer, chat_template, max_length = read_tokenizer(path)
  # A position table bounds an encoder's input whatever a file beside it says.
  max_length = min(max_length or text.max_length, text.max_length)
  ends = more_end_ids(path, config) if isinstance(config, DecoderConfig) else ()
  answers = read_generation(path) if isinstance(config, DecoderConfig | EncoderDecoderConfig) else {}
  return _checked(Pretrained(
      name, params, config, tokenizer, chat_template, max_length, read_head(path, config), ends, answers))


def is_adapter(path: str | os.PathLike) -> bool:
  """Whether a folder holds an adapter in PEFT's form, and no model."""
  folder = Path(path)
  return all((folder / name).is_file() for name in (CONFIG, WEIGHTS)) and (
      [file.name for file in folder.glob("*.safetensors")] == [WEIGHTS])


def load_adapted(
    folder: str | os.PathLike, base: str | None = None, *, dtype: DTypeLike = jnp.float32, stacked: bool = True
) -> Pretrained:
  """The model of an adapter in PEFT's form, merged into the one that it goes with, with its head if it has one.

  Args:
    folder: of the adapter.
    base: that model; None takes the one that the adapter's settings name.
    dtype, stacked: see `load`.

  Raises:
    ValueError: the adapter names no model that is here, or does not go with it.
  """
  named, below = base or _base_of(folder), {os.path.realpath(folder)}
  last = named
  while is_adapter(last):  # an adapter on what another one makes
    if (place := os.path.realpath(last)) in below:
      raise ValueError(f"the adapter {folder} goes with the model {named}, which is an adapter that goes with it again")
    below.add(place)
    last = _base_of(last)
  try:
    model = load(named, stacked=stacked)
  except ValueError as e:
    raise ValueError(f"the model that the adapter {folder} goes with: {e}") from None
  adapter = load_peft(folder, model.params, model.config, dense=_dense(named, model.config))
  params = materialize(adapter.transform.join(adapter.frozen, adapter.trainable))
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  return dataclasses.replace(model, name=str(folder), params=params, head=adapter.head or model.head)


def _base_of(folder: str | os.PathLike) -> str:
  """The model that an adapter's settings name."""
  settings = Path(folder) / CONFIG
  named = read_json(settings).get("base_model_name_or_path")
  if not isinstance(named, str) or not named:
    raise ValueError(f"--base must name the model that the adapter goes with; {settings} names none")
  return named


def _dense(name: str, config: Config) -> dict[str, Any] | None:
  """The layer before a classifier's last, of a model's own files; None where they have none."""
  form = head_form(config)
  if form is None or form.dense is None or not (path := Path(fetch(name) if name in PRESETS else name)).is_dir():
    return None
  checkpoint = open_checkpoint(path)
  for module in (form.dense, form.dense.removeprefix(form.prefix)):
    if f"{module}.weight" in checkpoint.tensors and f"{module}.bias" in checkpoint.tensors:
      return {"kernel": checkpoint.read(f"{module}.weight").T, "bias": checkpoint.read(f"{module}.bias")}
  return None


def _checked(model: Pretrained) -> Pretrained:
  if model.tokenizer is not None and (text := text_part(model.config)) is not None:
    try:
      check_tokenizer(model.tokenizer, text.vocab_size)
    except ValueError as e:
      raise ValueError(f"{model.name}: {e}") from None
  return model


def _tiny(preset: str, *, dtype: DTypeLike, stacked: bool) -> Pretrained:
  """A model of a preset's architecture with few, random weights; of the preset's files its weights are not read."""
  path = fetch(preset)
  config = tiny_config(read_config(path))
  params = init_tiny(config, dtype=dtype)
  params = params if stacked or "layers" not in params else unstack_layers(params)
  if (text := text_part(config)) is None:
    return Pretrained(f"{preset}:tiny", params, config, None, None, 0)
  tokenizer, chat_template, max_length = read_tokenizer(path)
  max_length = min(max_length or text.max_length, text.max_length)
  return Pretrained(f"{preset}:tiny", params, config, tokenizer, chat_template, max_length)


def _first_layers(preset: str, layers: str, **options: Any) -> Pretrained:
  """A model of the first layers of a preset."""
  config = read_config(fetch(preset))
  if isinstance(config, EfficientNetConfig | EncoderDecoderConfig | ClipConfig):
    raise ValueError(
        f"{preset!r} has no one stack of layers to cut: what follows the colon must be 'tiny'; got {layers!r}")
  whole = config.num_layers
  if not (layers.isascii() and layers.isdigit() and 1 <= int(layers) <= whole):
    raise ValueError(
        f"{preset!r} has {whole} layers: what follows the colon must lie in [1, {whole}], or be 'tiny'; got {layers!r}")
  model = load(preset, **options)
  if int(layers) == whole:
    return model
  part, _ = cut_model(model.params, config, int(layers))
  return dataclasses.replace(model, name=f"{model.name}:{layers}", params=part.params, config=part.config)
