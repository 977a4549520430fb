"""`jaxft convert`: a checkpoint to a Hugging Face folder, a GGUF file or an adapter, compared with its source."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class Convert:
  """Writes a Hugging Face folder (safetensors, config, tokenizer), a GGUF file for llama.cpp or an adapter for PEFT,
  and reads it back."""

  source: Annotated[str, tyro.conf.Positional]
  """A GGUF file (dequantized), a Hugging Face folder, a preset, a folder with a PEFT adapter, which is merged, or that
  of a run or of its checkpoints, of which the newest is taken."""
  out: Annotated[Path, tyro.conf.Positional]
  """The folder, or the .gguf file, to write; it must not exist yet."""
  dtype: str | None = None
  """Of a folder's tensors: float32 (if none is given) or bfloat16; of a GGUF file's: F16 (if none is given) or Q8_0."""
  base: str | None = None
  """Of an adapter: the model that it goes with. None: the one that its settings name. With --adapter: the model that
  the source was tuned from."""
  step: int | None = None
  """Of a run: the checkpoint after so many steps."""
  adapter: bool = False
  """Write an adapter: that of a run's checkpoint, or the difference between the source and --base, as low-rank factors
  of each matrix by its singular values."""
  rank: int | None = None
  """Of such a difference. None: the smallest that leaves out at most a thousandth of it."""
  max_shard_bytes: int = 5 * 10**9
  """Larger checkpoints are cut into several files."""


def main(args: list[str]) -> None:
  options = parse(Convert, args, prog="jaxft convert")
  from jaxft.checks import one_of, pick
  from jaxft.files import check_apart, check_writable, followed
  from jaxft.formats.presets import PRESETS
  from jaxft.recipes.dtypes import DTYPES

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
  check_writable(followed(options.out).parent)
  from jaxft.recipes.conversion.checkpoint import restore_run, run_of

  run = run_of(options.source)
  _check(options, run is not None, to_gguf)
  if run is not None:
    restored = restore_run(run[0], run[1] if options.step is None else options.step)
    print(f"{options.source}: the checkpoint of step {restored.step}")
    if options.adapter:
      return _run_adapter(restored, options.out)
    model = _as_dtype(restored.model, dtype)
  elif options.adapter:
    return _difference(options)
  else:
    model = read(options.source, options.base, dtype)
  if to_gguf:
    _to_gguf(model, options.out, name)
  else:
    _to_folder(model, options.out, dtype, name, options.max_shard_bytes)


def _check(options: Convert, of_run: bool, to_gguf: bool) -> None:
  """Raises ValueError for options that do not go together."""
  if options.step is not None and not of_run:
    raise ValueError(f"--step is of a run; {options.source} is none")
  if of_run and options.base is not None:
    raise ValueError(f"--base is not read of a run, which says by itself what it tuned; got {options.base}")
  if options.rank is not None and (of_run or not options.adapter):
    raise ValueError(f"--rank goes with --adapter and --base, whose difference it cuts; got {options.rank}")
  if options.adapter and not of_run and options.base is None:
    raise ValueError("--adapter of a model needs --base, the model that it was tuned from")
  if options.adapter and (to_gguf or options.dtype is not None):
    raise ValueError("--adapter writes a folder of float32 factors; it goes with no .gguf file and no --dtype")


def _as_dtype(model: Any, dtype: Any) -> Any:
  import jax
  import jax.numpy as jnp

  return dataclasses.replace(model, params=jax.tree.map(lambda x: x.astype(dtype or jnp.float32), model.params))


def _run_adapter(restored: Any, out: Path) -> None:
  """The adapter of a run's checkpoint, compared with the model that the checkpoint makes."""
  from jaxft.formats.pretrained import load
  from jaxft.recipes.adapter import save_adapter

  why = save_adapter(
      restored.options, restored.transform, restored.frozen, restored.trainable, restored.model.config, out,
      head=restored.model.head)
  if why is not None:
    raise ValueError(why)
  _told(out, load(restored.options.model), restored.model.params)


def _difference(options: Convert) -> None:
  """The difference of two models as an adapter."""
  from jaxft.formats.peft_files import save_peft
  from jaxft.formats.pretrained import load
  from jaxft.hub import hub_id, on_hub
  from jaxft.recipes.conversion.difference import difference

  base, tuned = load(options.base or ""), load(options.source)
  found = difference(base, tuned, options.rank)
  named = hub_id(base.name) if on_hub(base.name) else base.name
  save_peft(options.out, found.transform, found.frozen, found.trainable, base.params, base.config, base_model=named,
            head=tuned.head)
  print(f"{options.out}: rank {found.rank} over {len(found.adapted)} matrices, which leaves out at most "
        f"{found.error:.2%} of a difference ({found.worst})" + (
            f"; whole: {', '.join(found.whole):.300}" if found.whole else ""))
  _told(options.out, base, tuned.params)


def _told(out: Path, base: Any, wanted: Any) -> None:
  """Reads an adapter back and says how near base and adapter are to a model."""
  import numpy as np

  from jaxft.formats.peft_files import load_peft
  from jaxft.leaves import materialize
  from jaxft.tree import leaves_with_paths

  adapter, worst = load_peft(out, base.params, base.config), 0.0
  there = dict(leaves_with_paths(materialize(adapter.transform.join(adapter.frozen, adapter.trainable))))
  for path, leaf in leaves_with_paths(wanted):
    one, other = (np.asarray(x, np.float32) for x in (leaf, there[path]))
    worst = max(worst, float(np.abs(one - other).max() / max(float(np.abs(one).max()), 1e-30)))
  print(f"{out}: read back; with {base.name} within {worst:.2g} of the largest number of each matrix of the model")


def read(source: str, base: str | None, dtype: Any) -> Any:
  """The model of the source, an adapter's merged into the one that it goes with.

  Raises:
    ValueError: it is none, or the adapter names no model that is here.
  """
  import jax.numpy as jnp

  from jaxft.formats.pretrained import load, load_adapted

  settings = Path(source) / "adapter_config.json"
  if not settings.is_file():
    if base is not None:
      raise ValueError(f"--base goes with an adapter; {source} has no {settings.name}")
    return load(source, dtype=dtype or jnp.float32)
  return load_adapted(source, base, dtype=dtype or jnp.float32)


def _to_folder(model: Any, out: Path, dtype: Any, name: str, max_shard_bytes: int) -> None:
  from jaxft.formats.huggingface import load_directory, save_directory

  save_directory(
      model.params, model.config, out, tokenizer=model.tokenizer, chat_template=model.chat_template,
      max_length=model.max_length, head=model.head, end_ids=model.end_ids, generation=model.generation,
      max_shard_bytes=max_shard_bytes)
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
  ends = model.end_ids[:2]
  if left_out := model.end_ids[2:]:
    print(f"jaxft: note: a GGUF file names one token of the end of a text, of a turn and of a message; left out of it: "
          f"{', '.join(map(str, left_out))}", file=sys.stderr)
  save_gguf(model.params, config, out, kind=kind, tokenizer=model.tokenizer, chat_template=model.chat_template,
            name=Path(model.name).name, end_ids=ends, generation=model.generation)
  again = load(out)
  if again.config != config:
    raise ValueError(f"{out}: the config read back is {again.config}; written was {config}")
  if model.tokenizer is not None and again.end_ids != ends:
    raise ValueError(f"{out}: the end tokens read back are {again.end_ids}; written were {ends}")
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
