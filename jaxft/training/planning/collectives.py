"""What the chips of a mesh send one another in a compiled program: kind, mesh axes, how often and how many bytes."""

import dataclasses
import math
import re
from collections import defaultdict

import jax
from jax.sharding import Mesh

from jaxft.training.planning.hlo import (
  INSTRUCTION,
  by_name,
  computations,
  executions,
  group,
  is_gathered,
  operands,
)

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
GATHERED = "all-gather by all-reduce"
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"([a-z]+\d*)[a-z0-9]*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind over the same mesh axes, in one step.

  Attributes:
    kind: as XLA names it; "all-gather by all-reduce" where each chip writes its part into zeros and all are added up,
      which is how an all-gather over all three dimensions of a torus (v5p) is compiled, and sends twice as much.
    axes: the mesh axes along which the chips differ that take part together, joined by `+`; "unknown" where the
      program says so in a form that is not read here, and then counted as over all chips.
    count: how often, turns of loops multiplied out.
    bytes: that each chip sends, by a ring: of an array of b bytes over n chips, all-gather and reduce-scatter
      b (n - 1) / n of the whole one, all-reduce (a gather by one too) twice that, all-to-all b (n - 1) / n,
      collective-permute b.
  """

  kind: str
  axes: str
  count: int
  bytes: int


def collectives(executable: jax.stages.Compiled, mesh: Mesh) -> tuple[Collective, ...]:
  """The collectives of a compiled program, the most bytes first.

  >>> from jax.sharding import NamedSharding, PartitionSpec as P
  >>> from jaxft.training import make_mesh
  >>> mesh = make_mesh()
  >>> rows = jax.ShapeDtypeStruct((8 * mesh.size, 4), np.float32, sharding=NamedSharding(mesh, P("data")))
  >>> total = jax.jit(lambda x: x.sum(0), out_shardings=NamedSharding(mesh, P())).lower(rows).compile()
  >>> [(c.kind, c.axes, c.count) for c in collectives(total, mesh)][:1] == [("all-reduce", "data", 1)][:mesh.size - 1]
  True

  Args:
    executable: compiled for the mesh.
    mesh: whose axes are named.
  """
  return of_text(executable.as_text() or "", mesh)


def of_text(text: str, mesh: Mesh) -> tuple[Collective, ...]:
  """`collectives` of an optimized program in XLA's text form."""
  bodies, entry = computations(text)
  found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
  runs = executions(bodies, entry)
  pieces = _pieces(bodies, runs)
  seen: set[tuple[str, str, str]] = set()
  for name, runs_of_it in runs.items():
    lines = by_name(bodies[name])
    for line in bodies[name]:
      match = INSTRUCTION.match(line)
      kind = match[3].removesuffix("-start") if match else ""
      if match is None or kind not in KINDS:
        continue
      times, whole = runs_of_it, _whole(kind, line)
      if whole is not None:
        if whole in seen:
          continue
        seen.add(whole)
        times = pieces[whole]
      members, axes = group(line, mesh)
      if members == 1:
        continue
      for done, shapes in _parts(kind, match[2], line, lines, bodies):
        entry_of = found[done, axes]
        entry_of[0] += times
        entry_of[1] += times * _sent(done, shapes, match[3].endswith("-start"), members)
  made = [Collective(kind, axes, count, sent) for (kind, axes), (count, sent) in found.items()]
  return tuple(sorted(made, key=lambda c: (-c.bytes, c.kind, c.axes)))


def _whole(kind: str, line: str) -> tuple[str, str, str] | None:
  """What tells the collective of which a line may be a piece; None where it is no piece.

  A TPU computes other things while a collective is under way, which then stands in each of the pieces that it is cut
  into, with one channel and name. All that stand in a `shard_map` have one channel too. A permutation is never cut.
  """
  channel = _CHANNEL.search(line)
  if channel is None or kind == "collective-permute":
    return None
  said = _OP_NAME.search(line)
  return kind, channel[1], said[1] if said else ""


def _pieces(bodies: dict[str, list[str]], runs: dict[str, int]) -> dict[tuple[str, str, str], int]:
  """How often each collective that has pieces takes place.

  Where one is under way while a loop within another turns, the inner one's turns are no collectives of their own; a
  piece that runs once is one before or after a loop of collectives.
  """
  found: dict[tuple[str, str, str], set[int]] = defaultdict(set)
  for name, times in runs.items():
    for line in bodies[name]:
      match = INSTRUCTION.match(line)
      kind = match[3].removesuffix("-start") if match else ""
      whole = _whole(kind, line) if kind in KINDS else None
      if whole is not None:
        found[whole].add(times)
  return {whole: min(times) if min(times) > 1 else max(times) for whole, times in found.items()}


def _parts(
    kind: str, shapes: str, line: str, lines: dict[str, str], bodies: dict[str, list[str]]
) -> list[tuple[str, str]]:
  """What a collective does and the shapes of which it does so: one all-reduce may add up some arrays and gather others.
  """
  arrays = [f"{dtype}[{dims}]" for dtype, dims in _ARRAY.findall(shapes)]
  names = operands(line)
  if kind != "all-reduce" or len(arrays) != len(names):
    return [(kind, shapes)]
  gathered = [is_gathered(name, lines, bodies) for name in names]
  parts = [(GATHERED if wanted else kind, " ".join(x for x, of in zip(arrays, gathered, strict=True) if of == wanted))
           for wanted in (False, True)]
  return [(kind, shapes) for kind, shapes in parts if shapes]


def _sent(kind: str, shapes: str, start: bool, group: int) -> int:
  sizes = [_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(shapes)]
  if start and kind not in ("all-reduce", GATHERED):  # of an asynchronous one the inputs stand before the outputs
    arrays = [n for n in sizes if n > 4] or sizes
    sizes = [max(arrays)]
  size = sum(sizes)
  if kind == "reduce-scatter" and not start:
    size *= group  # its output is a part of what is reduced
  share = (group - 1) / group
  return round(size * {"all-reduce": 2 * share, GATHERED: 2 * share, "collective-permute": 1.0}.get(kind, share))


def _bytes(dtype: str, dims: str) -> int:
  bits = _BITS.get(dtype)
  if bits is None:
    bits = int(re.sub(r"\D", "", dtype) or 32)
  return math.prod(int(n) for n in dims.split(",") if n) * bits // 8
