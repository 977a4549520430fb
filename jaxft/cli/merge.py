"""`jaxft merge`: many checkpoints to one, as a mergekit configuration says, without loading a whole model."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class Merge:
  """Merges checkpoints in safetensors (decoders, encoders, ViTs, parts of diffusion pipelines) tensor by tensor.

  CONFIG is a mergekit configuration. Models are folders, presets, path+adapter, or the folder of a
  LoRA adapter in PEFT's form, which names its model. Arithmetic is in float32, with one rounding at the end.
  """

  config: Annotated[Path, tyro.conf.Positional]
  """The YAML file."""
  out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
  """The folder to make; it appears when it is complete."""
  dry_run: bool = False
  """Print the plan, what it reads, writes and holds, and write nothing."""
  seed: int = 0
  """Of random drops (dare, della)."""
  dtype: str | None = None
  """Of the output: float32, float16 or bfloat16. None: what the configuration says, or else the inputs'."""
  shard_size: str = "5GB"
  """Larger outputs are cut into several files; as 5GB or 500MB."""
  processes: int | None = None
  """Tensors merged at once, each in its own process. None: the number of processors."""
  allow_non_finite: bool = False
  """Merge NaN and infinity like other numbers. Else a tensor that holds them, or overflows, ends the merge."""
  overwrite: bool = False
  """Replace what is in the folder, once the merge is complete."""
  report: Path | None = None
  """Write a report (norms, agreement of signs, distances by layer) to this .html file and to Markdown beside it."""


def main(args: list[str]) -> None:
  options = parse(Merge, args, prog="jaxft merge")
  from jaxft.checks import one_of
  from jaxft.host_memory import keep_freed_blocks
  from jaxft.merging.streaming.recipe_files.configuration import DTYPES
  from jaxft.merging.streaming.recipes import merge, plan_merge
  from jaxft.merging.streaming.reporting.overview import describe

  if options.dtype is not None:
    one_of("--dtype", options.dtype, DTYPES)
  if options.processes is not None and options.processes < 1:
    raise ValueError(f"--processes must be >= 1; got {options.processes}")
  if options.report is not None and options.report.suffix != ".html":
    raise ValueError(f"--report must be a .html file; got {str(options.report)!r}")
  if options.report is not None:
    from jaxft.merging.streaming.reporting.page import check_report

    check_report()
  size = parse_size(options.shard_size)
  if options.dry_run:
    planned = plan_merge(options.config, seed=options.seed, dtype=options.dtype)
    for plan in planned.plans:
      print(describe(plan, max_shard_bytes=size))
    _say(planned.notes)
    return
  if options.out is None:
    raise ValueError("-o FOLDER must say where to; or --dry-run to see the plan")

  def finish(plan, folder):
    if options.report is not None:
      from jaxft.merging.streaming.reporting.page import write_report

      write_report(plan, folder, options.report)

  keep_freed_blocks()
  start = time.perf_counter()
  merged = merge(
      options.config, options.out, seed=options.seed, dtype=options.dtype, max_shard_bytes=size,
      overwrite=options.overwrite, processes=options.processes, allow_non_finite=options.allow_non_finite,
      progress=_bar, finish=finish)
  _say(merged.notes)
  plan = merged.plans[-1]
  print(f"{options.out}: {len(plan.tensors)} tensors, {plan.bytes_written / 1e9:.2f} GB in {len(merged.files)} "
        f"file{'s' if len(merged.files) != 1 else ''}, in {time.perf_counter() - start:.1f} s")


def parse_size(text: str) -> int:
  """Bytes from a number with KB, MB, GB or nothing after it.

  Raises:
    ValueError: it is none.
  """
  units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "K": 10**3, "M": 10**6, "G": 10**9}
  number = text.strip().upper().rstrip("KMGB")
  unit = text.strip().upper()[len(number):]
  try:
    size = int(float(number) * units[unit])
  except (ValueError, KeyError):
    size = 0
  if size < 1:
    raise ValueError(f"--shard-size must be a size as 5GB or 500MB; got {text!r}")
  return size


def _bar(plan):
  from tqdm import tqdm

  name = plan.recipe.name or plan.recipe.method
  bar = tqdm(total=plan.bytes_read + plan.bytes_written, desc=f"merging {name}", unit="B", unit_scale=True,
             file=sys.stderr, disable=None, leave=False)
  return bar.update


def _say(notes) -> None:
  for note in notes:
    print(f"jaxft: note: {note}", file=sys.stderr)
