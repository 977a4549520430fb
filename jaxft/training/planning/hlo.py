"""A compiled program in XLA's text form: its computations, how often each runs, who takes part in a line."""

import math
import re
from collections import defaultdict

import numpy as np
from jax.sharding import Mesh

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z\-]*)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALLS = re.compile(r"(body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r"^\s*ROOT %?[\w.\-]+ = pred\[\]\S* compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=(LT|GT)")
_CONSTANT = re.compile(r"^\s*%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_PART = re.compile(r"^\((\d+)\)(\d+)$")  # of an axis: how many parts lie outside of it, and how many it has


def computations(text: str) -> tuple[dict[str, list[str]], str]:
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


def executions(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
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
  """How often a loop turns: as XLA notes it, or by the bound that its counter is compared with, as in a scan.

  A counter starts from zero; a loop that XLA unrolled counts by more than one.
  """
  if noted := _TRIPS.search(line):
    return int(noted[1])
  condition, body = (bodies.get(next((callee for role, callee in called if role == wanted), ""), [])
                     for wanted in ("condition", "body"))
  bounds = [found for text in condition if (found := _BOUND.match(text))]
  if not bounds:
    return 1
  counter, bound = (bounds[-1][i] for i in ((1, 2) if bounds[-1][3] == "LT" else (2, 1)))
  turns = _constants(condition).get(bound)
  return 1 if turns is None else -(-turns // _stride(by_name(condition).get(counter, ""), body))


def _stride(counter: str, body: list[str]) -> int:
  """By how much a turn raises the counter, which the condition reads from its argument by this line; 1 if unknown."""
  place = re.search(r" get-tuple-element\(.*index=(\d+)", counter)
  last = next((text for text in body if text.lstrip().startswith("ROOT ") and " tuple(" in text), "")
  after = operands(last)
  if place is None or int(place[1]) >= len(after):
    return 1
  added = by_name(body).get(after[int(place[1])], "")
  known = _constants(body)
  return next((known[name] for name in operands(added) if known.get(name)), 1) if " add(" in added else 1


def _constants(lines: list[str]) -> dict[str, int]:
  return {found[1]: int(found[2]) for text in lines if (found := _CONSTANT.match(text))}


def operands(line: str) -> list[str]:
  """The names of what an instruction reads."""
  match = INSTRUCTION.match(line)
  return [] if match is None else _NAME.findall(line[match.end():].partition(")")[0])


def is_gathered(name: str, lines: dict[str, str], bodies: dict[str, list[str]]) -> bool:
  """Whether an array is this chip's part written into zeros, so that a sum of all chips' gathers the parts.

  Args:
    name: of the array.
    lines: the computation's instructions by name.
    bodies: of the program.
  """
  while (line := lines.get(name)) and (match := INSTRUCTION.match(line)) and (
      match[3] in ("copy", "copy-start", "copy-done", "bitcast")):
    name = operands(line)[0]
  line = lines.get(name, "")
  match = INSTRUCTION.match(line)
  if match is None:
    return False
  if match[3] == "dynamic-update-slice":
    base = lines.get(operands(line)[0], "")
    return " broadcast(" in base or " constant(" in base
  called = _CALLS.search(line)
  if match[3] != "fusion" or called is None:
    return False
  inner = by_name(bodies.get(called[2], []))
  root = next((text for text in inner.values() if text.lstrip().startswith("ROOT ")), "")
  if " bitcast(" in root:
    root = inner.get(operands(root)[0], root)
  if " dynamic-update-slice(" not in root:
    return False
  base = inner.get(operands(root)[0], "")
  if outer := re.search(r" parameter\((\d+)\)", base):
    base = lines.get(operands(line)[int(outer[1])], "")
  return " broadcast(" in base or " constant(" in base


def by_name(body: list[str]) -> dict[str, str]:
  """The instructions of a computation by their names."""
  return {match[1]: line for line in body if (match := INSTRUCTION.match(line))}


def group(line: str, mesh: Mesh) -> tuple[int, str]:
  """How many chips take part in a collective together, and the mesh axes along which they differ."""
  if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
    members = [int(pairs[1]), int(pairs[2])]
  elif listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    members = [int(i) for i in listed[1].split(",")]
  elif tiled := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
    shape = [int(n) for n in tiled[1].split(",")]
    members = _numbers(tiled[2], tiled[3]).reshape(shape)[0].tolist()
  elif named := _MESH.search(line):
    found = _members(named)
    if found is None:
      return mesh.size, "unknown"
    members = found
  elif "replica_groups={}" in line or "replica_groups" not in line:
    members = list(range(mesh.size))
  else:  # XLA has several forms, and may have more
    return mesh.size, "unknown"
  places = np.stack(np.unravel_index(np.array(members), mesh.devices.shape), axis=1)
  axes = [name for name, column in zip(mesh.axis_names, places.T, strict=True) if len(set(column.tolist())) > 1]
  return len(members), "+".join(map(str, axes))


def _members(named: re.Match[str]) -> list[int] | None:
  """The first group of `mesh['a'=4,'b'=16], device_ids=([4,16]T(1,0)) {'a','b':(2)4}`: a mesh of XLA's own."""
  sizes = {name: int(size) for name, _, size in (part.partition("=") for part in named[1].split(","))}
  total = math.prod(sizes.values())
  numbers = _numbers(named[2], named[3]) if named[2] else np.arange(total)
  together: dict[str, tuple[int, int]] = {}  # for each axis: parts outside of the one that is meant, its own parts
  for entry in named[4].split(","):
    name, _, part = entry.strip().partition(":")
    match = _PART.match(part) if part else None
    if name not in sizes or (part and match is None) or name in together:
      return None
    together[name] = (1, sizes[name]) if match is None else (int(match[1]), int(match[2]))
  shape: list[int] = []
  index: list[slice | int] = []
  for name, size in sizes.items():
    outside, own = together.get(name, (1, 1))
    shape += [outside, own, size // (outside * own)]
    index += [0, slice(None) if name in together else 0, 0]
  return numbers.reshape(shape)[tuple(index)].ravel().tolist()


def _numbers(dims: str, order: str | None) -> np.ndarray:
  """The devices in the order that XLA notes as `[4,16]T(1,0)`, in one row."""
  shape = [int(n) for n in dims.split(",")]
  numbers = np.arange(math.prod(shape)).reshape(shape)
  return (numbers.transpose([int(n) for n in order.split(",")]) if order else numbers).ravel()
