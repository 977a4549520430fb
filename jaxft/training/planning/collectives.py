"""What the chips of a mesh send one another in a compiled program: kind, mesh axes, how often and how many bytes."""

import dataclasses
import math
import re
from collections import defaultdict

import jax
import numpy as np
from jax.sharding import Mesh

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][a-z\-]*)\(")
_CALLS = re.compile(r"(body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r"^\s*ROOT %?[\w.\-]+ = pred\[\]\S* compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=(LT|GT)")
_CONSTANT = re.compile(r"^\s*%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"([a-z]+\d*)[a-z0-9]*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind over the same mesh axes, in one step.

  Attributes:
    kind: as XLA names it.
    axes: the mesh axes along which the chips differ that take part together, joined by `+`; "unknown" where the
      program says so in a form that is not read here, and then counted as over all chips.
    count: how often, turns of loops multiplied out.
    bytes: that each chip sends, by a ring: of an array of b bytes over n chips, all-gather and reduce-scatter
      b (n - 1) / n of the whole one, all-reduce twice that, all-to-all b (n - 1) / n, collective-permute b.
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
  bodies, entry = _computations(text)
  found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
  # A TPU computes other things while a collective is under way: the collective then stands in each of the pieces that
  # it is cut into, with one channel.
  seen: set[tuple[str, str]] = set()
  for name, times in sorted(_executions(bodies, entry).items(), key=lambda item: -item[1]):
    for line in bodies[name]:
      match = _INSTRUCTION.match(line)
      kind = match[2].removesuffix("-start") if match else ""
      if match is None or kind not in KINDS:
        continue
      channel = _CHANNEL.search(line)
      if channel is not None:
        if (kind, channel[1]) in seen:
          continue
        seen.add((kind, channel[1]))
      group, axes = _group(line, mesh)
      if group > 1:
        entry_of = found[kind, axes]
        entry_of[0] += times
        entry_of[1] += times * _sent(kind, match[1], match[2].endswith("-start"), group)
  made = [Collective(kind, axes, count, sent) for (kind, axes), (count, sent) in found.items()]
  return tuple(sorted(made, key=lambda c: (-c.bytes, c.kind, c.axes)))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """The lines of each computation, and the name of the first to run."""
  bodies: dict[str, list[str]] = {}
  entry = name = ""
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      name = match[2]
      bodies[name] = []
      entry = name if match[1] else entry
    elif name:
      bodies[name].append(line)
  return bodies, entry


def _executions(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
  """How often each computation runs; of a loop whose turns XLA does not know, one is counted, and of a choice both."""
  times: dict[str, int] = defaultdict(int)

  def run(name: str, n: int) -> None:
    if name not in bodies:
      return
    times[name] += n
    for line in bodies[name]:
      called = [(role, callee) for role, callee in _CALLS.findall(line)]
      called += [("branch", callee.strip().lstrip("%")) for match in _BRANCHES.findall(line)
                 for callee in match.split(",")]
      trips = _trips(line, called, bodies)
      for role, callee in called:
        run(callee, n * (trips if role == "body" else 1))

  run(entry, 1)
  return times


def _trips(line: str, called: list[tuple[str, str]], bodies: dict[str, list[str]]) -> int:
  """How often a loop turns: as XLA notes it, or the bound that its counter is compared with, as in a scan."""
  if noted := _TRIPS.search(line):
    return int(noted[1])
  condition = bodies.get(next((callee for role, callee in called if role == "condition"), ""), [])
  bounds = [found for text in condition if (found := _BOUND.match(text))]
  if not bounds:
    return 1
  constants = {found[1]: int(found[2]) for text in condition if (found := _CONSTANT.match(text))}
  return constants.get(bounds[-1][2 if bounds[-1][3] == "LT" else 1], 1)


def _group(line: str, mesh: Mesh) -> tuple[int, str]:
  """How many chips take part together, and the mesh axes along which they differ."""
  if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
    members = [int(pairs[1]), int(pairs[2])]
  elif listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    members = [int(i) for i in listed[1].split(",")]
  elif tiled := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
    shape, dims = (tuple(map(int, tiled[i].split(","))) for i in (1, 2))
    order = tuple(map(int, tiled[3].split(","))) if tiled[3] else tuple(range(len(dims)))
    members = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)[0].tolist()
  elif named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
    sizes = {name: int(size) for name, _, size in (part.partition("=") for part in named[1].split(","))}
    together = {name.strip() for name in named[2].split(",")}
    if not together <= set(sizes):  # a part of an axis
      return mesh.size, "unknown"
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    members = numbers[tuple(slice(None) if name in together else 0 for name in sizes)].ravel().tolist()
  elif "replica_groups={}" in line or "replica_groups" not in line:
    members = list(range(mesh.size))
  else:  # XLA has several forms, and may have more
    return mesh.size, "unknown"
  places = np.stack(np.unravel_index(np.array(members), mesh.devices.shape), axis=1)
  axes = [name for name, column in zip(mesh.axis_names, places.T, strict=True) if len(set(column.tolist())) > 1]
  return len(members), "+".join(map(str, axes))


def _sent(kind: str, shapes: str, start: bool, group: int) -> int:
  sizes = [_bytes(dtype, dims) for dtype, dims in _ARRAY.findall(shapes)]
  if start and kind != "all-reduce":  # of an asynchronous one the inputs stand before the outputs
    arrays = [n for n in sizes if n > 4] or sizes
    sizes = [max(arrays)]
  size = sum(sizes)
  if kind == "reduce-scatter" and not start:
    size *= group  # its output is a part of what is reduced
  share = (group - 1) / group
  return round(size * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share))


def _bytes(dtype: str, dims: str) -> int:
  bits = _BITS.get(dtype)
  if bits is None:
    bits = int(re.sub(r"\D", "", dtype) or 32)
  return math.prod(int(n) for n in dims.split(",") if n) * bits // 8
