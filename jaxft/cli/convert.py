"""`jaxft convert`: a checkpoint to a Hugging Face folder or a GGUF file, compared with its source once written."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class Convert:
  """Writes a Hugging Face folder (safetensors, config, tokenizer), or a GGUF file for llama.cpp, and reads it back."""

  source: Annotated[str, tyro.conf.Positional]
  """A GGUF file (dequantized), a Hugging Face folder, a preset, or a folder with a PEFT adapter, which is merged."""
  out: Annotated[Path, tyro.conf.Positional]
  """The folder, or the .gguf file, to write; it must not exist yet."""
  dtype: str | None = None
  """Of a folder's tensors: float32 (if none is given) or bfloat16; of a GGUF file's: F16 (if none is given) or Q8_0."""
  base: str | None = None
  """Of an adapter: the model that it goes with. None: the one that its settings name."""
  max_shard_bytes: int = 5 * 10**9
  """Larger checkpoints are cut into several files."""


def main(args: list[str]) -> None:
  options = parse(Convert, args, prog="jaxft convert")
  from jaxft.checks import one_of, pick
  from jaxft.files import check_apart, check_writable
  from jaxft.formats.presets import PRESETS
  from jaxft.recipes.run import DTYPES

  to_gguf = options.out.suffix == ".gguf"
  name = options.dtype or ("F16" if to_gguf else "float32")
  if to_gguf:
    from jaxft.formats.gguf_write import KINDS

    one_of("dtype of a GGUF file", name, KINDS)
  dtype = None if to_gguf else pick("dtype", name, DTYPES)
  if options.out.exists():
    raise FileExistsError(f"{options.out} exists; convert does not replace it")
  if options.source.partition(":")[0] not in PRESETS:
    check_apart(options.out, {"source": options.source})
  check_writable(options.out.parent)
  model = read(options.source, options.base, dtype)
  if to_gguf:
    _to_gguf(model, options.out, name)
  else:
    _to_folder(model, options.out, dtype, name, options.max_shard_bytes)


def read(source: str, base: str | None, dtype: Any) -> Any:
  """The model of the source, an adapter's merged into the one that it goes with.

  Raises:
    ValueError: it is none, or the adapter names no model that is here.
  """
  import jax
  import jax.numpy as jnp

  from jaxft.formats.peft_files import load_peft
  from jaxft.formats.pretrained import load
  from jaxft.leaves import materialize

  settings = Path(source) / "adapter_config.json"
  if not settings.is_file():
    if base is not None:
      raise ValueError(f"--base goes with an adapter; {source} has no {settings.name}")
    return load(source, dtype=dtype or jnp.float32)
  named = base or json.loads(settings.read_text(encoding="utf-8")).get("base_model_name_or_path")
  if not named:
    raise ValueError(f"--base must name the model that the adapter goes with; {settings} names none")
  model = load(named)
  adapter = load_peft(source, model.params, model.config)
  params = materialize(adapter.transform.join(adapter.frozen, adapter.trainable))
  return dataclasses.replace(model, params=jax.tree.map(lambda x: x.astype(dtype or jnp.float32), params))


def _to_folder(model: Any, out: Path, dtype: Any, name: str, max_shard_bytes: int) -> None:
  from jaxft.formats.huggingface import load_directory, save_directory

  save_directory(
      model.params, model.config, out, tokenizer=model.tokenizer, chat_template=model.chat_template,
      max_length=model.max_length, head=model.head, max_shard_bytes=max_shard_bytes)
  params, config = load_directory(out, dtype=dtype)
  compare(model.params, params)
  if config != model.config:
    raise ValueError(f"{out}: the config read back is {config}; written was {model.config}")
  print(f"{out}: every tensor read back in {name} and equal")


def _to_gguf(model: Any, out: Path, kind: str) -> None:
  import jax
  import numpy as np

  from jaxft.formats.gguf_write import save_gguf
  from jaxft.formats.pretrained import load
  from jaxft.tree import leaves_with_paths

  config, _ = model.text_decoder()
  save_gguf(model.params, config, out, kind=kind, tokenizer=model.tokenizer, chat_template=model.chat_template,
            name=Path(model.name).name)
  again = load(out)
  if again.config != config:
    raise ValueError(f"{out}: the config read back is {again.config}; written was {config}")
  there, worst = dict(leaves_with_paths(again.params)), 0.0
  for path, leaf in leaves_with_paths(model.params):
    one, other = np.asarray(jax.device_get(leaf), np.float32), np.asarray(there[path])
    worst = max(worst, float(np.abs(one - other).max() / max(float(np.abs(one).max()), 1e-30)))
  print(f"{out}: every tensor read back in {kind}, within {worst:.2g} of the largest number of its matrix")


def compare(written: Any, read: Any) -> None:
  """Raises ValueError naming the leaves in which two params trees are not equal bit for bit."""
  import numpy as np

  from jaxft.tree import leaves_with_paths

  one, other = dict(leaves_with_paths(written)), dict(leaves_with_paths(read))
  bits = lambda x: np.asarray(x).view(np.uint8)
  differ = [path for path in one | other
            if path not in one or path not in other or not np.array_equal(bits(one[path]), bits(other[path]))]
  if differ:
    raise ValueError(f"{len(differ)} tensors read back are not those written: {', '.join(differ)}")
