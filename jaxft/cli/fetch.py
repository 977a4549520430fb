"""`jaxft fetch`: presets and data sets into the cache folder, ahead of a run."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class Fetch:
  """Fetches presets and data sets, and prints where each lies. What is there already is not fetched again."""

  names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
  """Presets, and data sets as `jaxft finetune --data` takes them. None: show which there are."""
  all: bool = False
  """Every preset, and every data set that is known by name."""


def main(args: list[str]) -> None:
  options = parse(Fetch, args, prog="jaxft fetch")
  from jaxft.data.sources import names as datasets
  from jaxft.formats.presets import PRESETS

  if options.all and options.names:
    raise ValueError(f"--all takes no names; got {', '.join(options.names)}")
  if not options.all and not options.names:
    print("presets: " + ", ".join(PRESETS))
    print("data sets: " + ", ".join(datasets()) + ", reasoning_gym/<task>, tfds:<name>")
    return
  for name in [*PRESETS, *datasets()] if options.all else options.names:
    print(f"{name}\t{fetch(name)}", flush=True)


def fetch(name: str) -> Path:
  """The folder of a preset or of a prepared data set.

  Raises:
    ValueError: there is neither a preset nor a data set of that name; the nearest of both are named.
  """
  from jaxft.checks import nearest
  from jaxft.data.sources import builder, names
  from jaxft.formats import presets

  if name in presets.PRESETS:
    return presets.fetch(name)
  # What names a place of its own is left to `builder`, whose message is then the better one.
  if name not in names() and "/" not in name and ":" not in name and not Path(name).exists():
    raise ValueError(f"no preset or data set {name!r}; {nearest(name, [*presets.PRESETS, *names()])}")
  return Path(builder(name).data_dir)
