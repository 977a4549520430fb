"""`jaxft convert`: a checkpoint to a Hugging Face folder in safetensors, compared with its source once written."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class Convert:
  """Writes a Hugging Face folder (safetensors, config, tokenizer) and reads it back to compare every tensor."""

  source: Annotated[str, tyro.conf.Positional]
  """A GGUF file (dequantized), a Hugging Face folder, or a preset."""
  out: Annotated[Path, tyro.conf.Positional]
  """The folder to write; it must not exist yet."""
  dtype: str = "float32"
  """Of the tensors written: float32 or bfloat16."""
  max_shard_bytes: int = 5 * 10**9
  """Larger checkpoints are cut into several files."""


def main(args: list[str]) -> None:
  options = parse(Convert, args, prog="jaxft convert")
  from jaxft.checks import pick
  from jaxft.files import check_apart, check_writable
  from jaxft.formats.huggingface import load_directory, save_directory
  from jaxft.formats.presets import PRESETS
  from jaxft.formats.pretrained import load
  from jaxft.recipes.run import DTYPES

  dtype = pick("dtype", options.dtype, DTYPES)
  if options.out.exists():
    raise FileExistsError(f"{options.out} exists; convert does not replace it")
  if options.source.partition(":")[0] not in PRESETS:
    check_apart(options.out, {"source": options.source})
  check_writable(options.out.parent)
  model = load(options.source, dtype=dtype)
  save_directory(
      model.params, model.config, options.out, tokenizer=model.tokenizer, chat_template=model.chat_template,
      max_length=model.max_length, max_shard_bytes=options.max_shard_bytes)
  params, config = load_directory(options.out, dtype=dtype)
  compare(model.params, params)
  if config != model.config:
    raise ValueError(f"{options.out}: the config read back is {config}; written was {model.config}")
  print(f"{options.out}: every tensor read back in {options.dtype} and equal")


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
