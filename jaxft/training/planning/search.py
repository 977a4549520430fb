"""Which meshes, recomputations, micro-batches and ranks fit a topology, and which is fastest by the roofline."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxft.training.planning.plan import DoesNotFit, Plan
from jaxft.training.planning.roofline import CHIPS, roofline


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to run a step; sizes of mesh axes are those within a slice."""

  data: int
  fsdp: int
  tensor: int
  remat: str
  accumulate: int
  rank: int

  def __str__(self) -> str:
    return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items())


@dataclasses.dataclass(frozen=True)
class Tried:
  """What became of a candidate.

  Attributes:
    candidate: it.
    seconds: of a step at the least, by the roofline.
    bound: what takes these.
    peak: bytes a chip at once, by the compiler; by the state alone where that was too much already.
    fits: whether that is less than a chip has.
    refused: why it was not compiled; "" where it was.
  """

  candidate: Candidate
  seconds: float = math.inf
  bound: str = ""
  peak: int = 0
  fits: bool = False
  refused: str = ""


def candidates(
    chips: int, *, heads: int, tensor: Sequence[int] = (1, 2), parts: Sequence[int] = (1, 4),
    remat: Sequence[str] = ("dots", "full"), accumulate: Sequence[int] = (1, 2), rank: Sequence[int] = (8,),
) -> list[Candidate]:
  """The product of what may be chosen, without meshes that cannot be.

  >>> [(c.data, c.fsdp, c.tensor) for c in candidates(16, heads=8, remat=["full"], accumulate=[1])]
  [(1, 16, 1), (4, 4, 1), (1, 8, 2), (4, 2, 2)]

  Args:
    chips: of a slice.
    heads: key heads of the model, which `tensor` must divide.
    tensor: sizes of that axis.
    parts: sizes of `data`; `fsdp` takes the chips that are left.
    remat, accumulate, rank: as in the options of a run.
  """
  return [
      Candidate(data, chips // (axis * data), axis, policy, batches, r)
      for axis, data, policy, batches, r in itertools.product(tensor, parts, remat, accumulate, rank)
      if heads % axis == 0 and chips % (axis * data) == 0]


def search(
    tried: Sequence[Candidate], plan_of: Callable[[Candidate, bool], Plan], chip: str, *, cache: Path | None = None,
    key: str = "", most: int = 12, update: Callable[[str], None] = lambda said: None,
) -> list[Tried]:
  """Compiles candidates, the most promising first, and puts in order what fits.

  Before anything is compiled each is planned without: one whose state alone is too large is not compiled, and of the
  others those come first whose operations take the least time, and among equals those that hold the least.

  Args:
    tried: see `candidates`.
    plan_of: `(candidate, compile) -> Plan`; a ValueError of it refuses the candidate, as where a batch does not divide.
    chip: v5e, v5p or v6e.
    cache: a file of results by key, to which each is added as soon as it is there, so that a search that was killed
      goes on; None: none are kept.
    key: of all that a result depends on besides the candidate.
    most: so many are compiled at most, those of the cache not counted.
    update: is told what is being done, before each candidate.

  Returns:
    What fits, the fastest first; then what does not, and what was refused.
  """
  known = dict(_read(cache))
  results, waiting = [], []
  for candidate in tried:
    if (name := _name(key, candidate)) in known:
      results.append(known[name])
      continue
    update(f"counting {candidate}")
    try:
      counted = plan_of(candidate, False)
    except ValueError as e:
      results.append(Tried(candidate, refused=str(e)))
      continue
    least = counted.flops.total / counted.devices / CHIPS[chip].flops
    if counted.state_bytes > CHIPS[chip].memory:
      results.append(Tried(candidate, least, "compute", counted.state_bytes, refused="its state alone does not fit"))
    else:
      waiting.append((least, counted.state_bytes, candidate))
  waiting.sort(key=lambda found: found[:2])
  for _, size, candidate in waiting[most:]:
    results.append(Tried(candidate, peak=size, refused=f"not compiled: only the {most} most promising are"))
  for _, size, candidate in waiting[:most]:
    update(f"compiling {candidate}")
    results.append(_compiled(candidate, plan_of, chip, size))
    if cache is not None:
      _add(cache, _name(key, candidate), results[-1])
  return sorted(results, key=lambda r: (not r.fits, bool(r.refused), r.seconds, r.peak))


def _compiled(candidate: Candidate, plan_of: Callable[[Candidate, bool], Plan], chip: str, size: int) -> Tried:
  try:
    found = plan_of(candidate, True)
  except DoesNotFit:
    return Tried(candidate, peak=size, bound="memory of the chip")
  assert found.compiled is not None  # as it was asked to compile
  limits = roofline(found, chip)
  return Tried(candidate, limits.least, limits.bound, found.compiled.peak, limits.fits)


def _name(key: str, candidate: Candidate) -> str:
  return hashlib.sha256(f"{key} {candidate}".encode()).hexdigest()[:24]


def _read(cache: Path | None) -> Iterator[tuple[str, Tried]]:
  """The results of a cache; a line that a killed search left half written is passed over."""
  if cache is None or not cache.is_file():
    return
  for line in cache.read_text().splitlines():
    try:
      said = json.loads(line)
      yield said.pop("name"), Tried(Candidate(**said.pop("candidate")), **said)
    except (ValueError, KeyError, TypeError, AttributeError):
      continue


def _add(cache: Path, name: str, result: Tried) -> None:
  cache.parent.mkdir(parents=True, exist_ok=True)
  whole = not cache.is_file() or cache.read_bytes().endswith(b"\n") or not cache.stat().st_size
  with cache.open("a") as file:
    file.write(("" if whole else "\n") + json.dumps({"name": name, **dataclasses.asdict(result)}) + "\n")


def table(results: Sequence[Tried], chip: str) -> str:
  """What a search found, as a table and, below it, what was not compiled and why.

  >>> print(table([Tried(Candidate(1, 16, 1, "full", 1, 8), 0.25, "compute", 4 * 10**9, True)], "v5e"))
  | data | fsdp | tensor | remat | accumulate | rank | a step takes at least | bound by | peak | of the chip's |
  | ---: | ---: | ---: | --- | ---: | ---: | ---: | --- | ---: | ---: |
  | 1 | 16 | 1 | full | 1 | 8 | 250.0 ms | compute | 4.00 GB | 25% |
  """
  lines = ["| data | fsdp | tensor | remat | accumulate | rank | a step takes at least | bound by | peak | "
           "of the chip's |",
           "| ---: | ---: | ---: | --- | ---: | ---: | ---: | --- | ---: | ---: |"]
  for r in results:
    if not r.refused:
      c, time = r.candidate, f"{1000 * r.seconds:,.1f} ms" if r.fits else "does not fit"
      lines.append(f"| {c.data} | {c.fsdp} | {c.tensor} | {c.remat} | {c.accumulate} | {c.rank} | {time} | {r.bound} | "
                   f"{r.peak / 1e9:.2f} GB | {r.peak / CHIPS[chip].memory:.0%} |")
  return "\n".join([*lines, *[""] * any(r.refused for r in results),
                    *(f"{r.candidate}: {r.refused}" for r in results if r.refused)])


def nothing_fits(results: Sequence[Tried], chip: str) -> str:
  """A line for a search of which nothing fits: the candidate that misses by least, and by how much.

  >>> nothing_fits([Tried(Candidate(1, 16, 1, "full", 1, 8), 0.25, peak=24 * 10**9)], "v5e")[:61]
  'nothing fits; the nearest is data 1, fsdp 16, tensor 1, remat'

  Args:
    results: of `search`.
    chip: v5e, v5p or v6e.
  """
  if not (sized := [r for r in results if r.peak]):
    return f"nothing fits: all {len(results)} candidates are refused, as {results[0].candidate}: {results[0].refused}"
  # Of a step that compiles and of one that does not, the first is known to miss by no more than it says.
  unknown = lambda r: bool(r.refused) or math.isinf(r.seconds)
  nearest = min(sized, key=lambda r: (unknown(r), r.peak))
  return (f"nothing fits; the nearest is {nearest.candidate}, which takes {'at least ' if unknown(nearest) else ''}"
          f"{nearest.peak / 1e9:.2f} GB of a chip's {CHIPS[chip].memory / 1e9:.2f} GB"
          + (f" ({nearest.refused})" if nearest.refused else ""))


def key_of(facts: Any) -> str:
  """A key of a search's results: what is run, on what, and by which code.

  Args:
    facts: whatever goes into JSON.
  """
  import importlib.metadata

  import jax

  package, digest = Path(__file__).parents[2], hashlib.sha256()
  for file in sorted(package.rglob("*.py")):
    digest.update(file.read_bytes())
  versions = [jax.__version__]
  try:
    versions.append(importlib.metadata.version("libtpu"))
  except importlib.metadata.PackageNotFoundError:
    versions.append("")
  return json.dumps([facts, versions, digest.hexdigest()], sort_keys=True, default=str)
