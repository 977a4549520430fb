"""What lies badly on a mesh: leaves whole where they could be cut, shards of unequal size, memory lost to padding."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from jaxft.models.activation_sharding import REPEATED_AXES
from jaxft.signatures import explain_errors
from jaxft.training.planning.sizes import bits_of
from jaxft.training.sharding import Rules, axes_of_part, rule_of
from jaxft.tree.paths import is_array, is_structured, path_of

KINDS = ("replicated", "uneven", "padded", "unused")
_LANES, _SUBLANES = 128, 8  # a TPU's memory holds arrays in tiles of so many columns and rows, whatever their dtype


@dataclasses.dataclass(frozen=True)
class Finding:
  """One leaf, or one rule, that costs memory or does nothing.

  Attributes:
    kind: "replicated", whole along mesh axes that cut others; "uneven", an axis that does not divide; "padded", shards
      that a TPU's tiles fill up; "unused", a rule that decides for no leaf.
    path: of the leaf, or the rule's glob.
    shape: of the leaf; of a rule ().
    bytes: that each device holds more than its even part without padding.
    why: in words.
  """

  kind: str
  path: str
  shape: tuple[int, ...]
  bytes: int
  why: str

  def __str__(self) -> str:
    return f"{self.kind:<12} {self.path} {list(self.shape)}: {self.why}" + (
        f", {self.bytes / 2**20:,.2f} MiB a device" if self.bytes else "")


@dataclasses.dataclass(frozen=True)
class Placement:
  """All findings on a tree, those that cost most first.

  Attributes:
    findings: see `Finding`.
    devices: of the mesh.
  """

  findings: tuple[Finding, ...]
  devices: int

  def total(self, kind: str) -> int:
    """Bytes that each device holds too much, by the findings of a kind."""
    return sum(found.bytes for found in self.findings if found.kind == kind)

  def lines(self, most: int = 5) -> list[str]:
    """A line for each kind that was found, below it the `most` that cost most."""
    lines = []
    for kind in KINDS:
      found = [f for f in self.findings if f.kind == kind]
      if found:
        cost = f"{len(found)} arrays, {self.total(kind) / 2**20:,.1f} MiB a device more than without"
        lines += [f"{kind:<12} {'rules' if kind == 'unused' else cost}"]
        lines += [f"             {str(f)[13:]}" for f in found[:most]]
        lines += [f"             and {len(found) - most} more"] * (len(found) > most)
    return lines

  def __str__(self) -> str:
    return "\n".join(self.lines(most=len(self.findings))) or f"every leaf is cut evenly over {self.devices} devices"


@explain_errors
def check_rules(params: Any, rules: Rules, mesh: Mesh, *, padding: bool | None = None) -> Placement:
  """What partition rules leave to be wished, all leaves at once and without an error; `specs_for` stops at the first.

  >>> from jaxft.training import make_mesh
  >>> from jax.sharding import PartitionSpec as P
  >>> rules = [("**/kernel", P("fsdp", "tensor")), ("**/kernal", P("fsdp"))]
  >>> params = {"up": {"kernel": np.ones((100 * jax.device_count(), 256))}, "table": np.ones((512, 256))}
  >>> for found in check_rules(params, rules, make_mesh(data=1, fsdp=jax.device_count())).findings[-1:]:
  ...   print(found)
  unused       **/kernal []: no leaf is left for it

  Args:
    params: a tree of arrays or shapes.
    rules: see `jaxft.training.sharding`.
    mesh: any, of real, virtual or described devices.
    padding: whether to report shards that a TPU's tiles fill up; None: where the mesh is of TPUs.

  Raises:
    TypeError, ValueError: a rule gives no PartitionSpec, one that is longer than its leaf's rank, or an axis that the
      mesh lacks.
  """
  found: list[Finding] = []
  used: Counter[str] = Counter()

  def visit(keys: tuple[Any, ...], leaf: Any) -> None:
    if not is_array(leaf):
      return
    path = path_of(keys)
    glob, spec = rule_of(path, leaf, rules, mesh)
    used.update([] if glob is None else [glob])
    for x in jax.tree.leaves(leaf) if is_structured(leaf) else [leaf]:
      if len(x.shape) == len(leaf.shape):
        found.extend(_findings(path, x, tuple(spec), mesh, padding))

  jax.tree_util.tree_map_with_path(visit, params, is_leaf=is_structured)
  found += [Finding("unused", glob, (), 0, "no leaf is left for it") for glob, _ in rules if not used[glob]]
  return _sorted(found, mesh)


@explain_errors
def check_placement(tree: Any, mesh: Mesh, *, padding: bool | None = None) -> Placement:
  """`check_rules` of arrays that lie on a mesh already, or of shapes that say where they would: state and frozen side.

  >>> from jaxft.training import make_mesh
  >>> mesh = make_mesh(data=1, fsdp=jax.device_count())
  >>> from jax.sharding import NamedSharding, PartitionSpec as P
  >>> whole = jax.ShapeDtypeStruct((512, 256), np.float32, sharding=NamedSharding(mesh, P()))
  >>> [found.kind for found in check_placement({"w": whole}, mesh).findings] == ["replicated"][:mesh.size - 1]
  True

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s with shardings on the mesh, such as `abstract_state` gives.
    mesh: on which they lie.
    padding: see `check_rules`.
  """
  found: list[Finding] = []
  for keys, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if isinstance(getattr(x, "sharding", None), NamedSharding):
      found += _findings(path_of(keys), x, tuple(x.sharding.spec), mesh, padding)
  return _sorted(found, mesh)


def _sorted(found: Sequence[Finding], mesh: Mesh) -> Placement:
  return Placement(tuple(sorted(found, key=lambda f: (-f.bytes, KINDS.index(f.kind), f.path))), mesh.size)


def _findings(path: str, x: Any, spec: tuple[Any, ...], mesh: Mesh, padding: bool | None) -> list[Finding]:
  """What one array's spec costs: each of the three against the array as it would be without it."""
  bits, shape = bits_of(x.dtype), tuple(x.shape)
  parts = [axes_of_part(part) for part in spec] + [()] * (len(shape) - len(spec))
  counts = [math.prod(mesh.shape[axis] for axis in axes) for axes in parts]
  shard = [-(-n // count) for n, count in zip(shape, counts, strict=True)]
  size = lambda dims: math.prod(dims) * bits // 8
  found = []
  uneven = [i for i, (n, count) in enumerate(zip(shape, counts, strict=True)) if n % count]
  if uneven:
    more = size(shard) - size(shape) // math.prod(counts)
    axes = ", ".join(f"axis {i} of {shape[i]} by {counts[i]}" for i in uneven)
    found.append(Finding("uneven", path, shape, more, f"{axes}: the last shard is smaller"))
  named = {axis for axes in parts for axis in axes}
  whole = [axis for axis, n in mesh.shape.items() if n > 1 and axis not in named and axis not in REPEATED_AXES]
  copies = math.prod(mesh.shape[axis] for axis in whole)
  if copies > 1 and math.prod(shape) > 1:
    more = size(shard) - size(shard) // copies
    found.append(Finding("replicated", path, shape, more, f"whole along {' and '.join(map(str, whole))}"))
  padded = _padded(shard)
  if padded != shard and (mesh.devices.flat[0].platform == "tpu" if padding is None else padding):
    more = size(padded) - size(shard)
    found.append(Finding("padded", path, shape, more, f"a shard {shard} is held as {padded}"))
  return found


def _padded(shard: list[int]) -> list[int]:
  """A shard as a TPU holds it; fewer rows than a tile has take the next power of two, and a vector whole tiles."""
  if len(shard) < 2 or not math.prod(shard):
    return shard
  rows, columns = shard[-2:]
  tile = min(_SUBLANES, 1 << (rows - 1).bit_length())
  return [*shard[:-2], -(-rows // tile) * tile, -(-columns // _LANES) * _LANES]
