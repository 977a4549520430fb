"""Random choices of modules and of units (heads, channels), drawn on the host, for a choice shapes the program.

A key here must be concrete, not traced: which leaves train decides which products a step contains. So the key is an
argument of the choice, and the draw can be seen, cut at and planned: a transform that drew from the key of its `split`
would train other layers than those at which the stack was cut, and other shapes than those which `plan` counted.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxft.checks import nearest
from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, as_choice, mask, modules
from jaxft.tree.depth import cut_layers, layer_of
from jaxft.tree.paths import Tree, is_array, leaves_with_paths, map_with_path

# What competes in each layer of the decoders and encoders of this library: HFT's three categories.
CATEGORIES = ("**/attention/*/*", "**/mlp/*/*", "**/{attention_norm,mlp_norm}/*")
LEVELS = ("category", "layer", "model")
BALANCES = ("count", "params")

# (category, layer, module): one thing that is chosen or not
Module = tuple[int, int, str]


def host_rng(key: Array) -> np.random.Generator:
  """A generator of the host, seeded by a concrete key.

  Raises:
    ValueError: the key is traced.
  """
  if isinstance(key, Tracer):
    raise ValueError("key must be concrete, for the choice shapes the program; got a traced key (inside jit or vmap)")
  with jax.ensure_compile_time_eval():
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


@explain_errors
def random_module_mask(
    key: Array, params: Tree, groups: Sequence[Choice] = CATEGORIES, *, fraction: float = 0.5,
    level: Literal["category", "layer", "model"] = "category", balance: Literal["count", "params"] = "count",
    others: bool = True,
) -> Tree:
  """A random fraction of the modules, balanced within each layer: the choice of half fine-tuning (HFT).

      choose = partial(random_module_mask, key)       # a choice; draw another for every stage
      params = cut_at_changes(params, choose)         # of stacked layers, where compute should be saved
      transform = train(choose)

  One step of HFT costs `4 + 2 * fraction` FLOPs per parameter and token on unrolled layers, and on a stack that is cut,
  which gives each run of layers with the same choice a scan of its own. Cutting is what saves compute: under one scan
  over all layers every layer runs the same program, so that a per-layer choice can only be made by a branch (which
  keeps gradient buffers of all layers) or by data (which keeps the products too). On a stack that is not cut, memory of
  the gradients kept and of the optimizer is saved, compute is not; see `train`.

  A module is all leaves under one parent (`query/kernel` and `query/bias`). Where `fraction` of a layer's modules of a
  category is not whole, it is rounded up in some layers, drawn at random, and down in the others, so that the total
  over all layers is exact: of three matrices two train in half of the layers and one in the other half.

  >>> params = {"layers": {"mlp": {name: {"kernel": np.ones((2, 3, 3))} for name in ("up", "down")}}}
  >>> chosen = random_module_mask(jax.random.key(0), params, ["**/mlp/*/*"])
  >>> chosen_fraction(params, chosen)  # one of the two in each layer
  0.5

  Args:
    key: concrete.
    params: arrays or shapes; stacked, cut or unrolled layers give the same choice.
    groups: choices of whole leaves; in each layer the modules of one of them compete. A model with two stacks (encoder
      and decoder) takes choices of its own for each.
    fraction: of the modules that are chosen, in [0, 1].
    level: "category": `fraction` in each layer and category; "layer": a fraction of the layers, whole; "model": a
      fraction of all modules together.
    balance: at level "category", of the number of modules, or of their parameters: then each layer takes modules in
      random order while that brings the running total nearer to `fraction` (key heads fewer than query heads make
      modules unequal).
    others: whether leaves that no group matches (embeddings, head) are chosen.

  Returns:
    A tree like `params` of booleans; of a stacked leaf whose layers differ, a boolean vector over its layers.

  Raises:
    ValueError: fraction outside [0, 1], an unknown level or balance, a glob that matches nothing.

  Source: Hui et al. 2024, HFT (arXiv 2404.18466), where embeddings and head always train.
  """
  if not 0.0 <= fraction <= 1.0:
    raise ValueError(f"fraction must lie in [0, 1]; got {fraction}")
  for name, value, known in (("level", level, LEVELS), ("balance", balance, BALANCES)):
    if value not in known:
      raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}; {nearest(str(value), known)}")
  rng = host_rng(key)
  sizes, owners = _modules(params, groups)
  if level == "category":
    chosen = _choose_in_layers(rng, sizes, fraction, balance)
  elif level == "layer":
    layers = sorted({layer for _, layer, _ in sizes})
    kept = set(rng.permutation(layers)[: _round(fraction * len(layers))].tolist())
    chosen = {module for module in sizes if module[1] in kept}
  else:
    modules = sorted(sizes, key=lambda m: (m[1], m[0], m[2]))
    chosen = {modules[i] for i in rng.permutation(len(modules))[: _round(fraction * len(modules))]}

  def flag(path: str, leaf: Any) -> Any:
    if not is_array(leaf):
      return False
    if path not in owners:
      return others
    flags = np.array([module in chosen for module in owners[path]])
    return bool(flags[0]) if flags.all() or not flags.any() else flags

  return map_with_path(flag, params)


@explain_errors
def cut_at_changes(params: Tree, choice: Choice, *, stack: str = "layers") -> Tree:
  """Cuts a stack wherever the choice of some leaf changes, so that in each piece a leaf trains whole or not at all.

  Consecutive layers with the same choice stay one scan. See `random_module_mask` for why stacks are cut.

  >>> choice = {"layers": {"w": np.array([True, False, False])}}
  >>> cut_at_changes({"layers": {"w": np.arange(3)}}, choice)
  {'layers': {'0:1': {'w': array([0])}, '1:3': {'w': array([1, 2])}}}

  Args:
    params: a nested dict with stacked layers.
    choice: of leaves and layers, from `random_module_mask` or `within_layers`.
    stack: the name that holds the layers.

  Raises:
    ValueError: the choice does not fit, or divides a layer of some leaf: there is nothing to cut at.
  """
  flags = as_choice(choice, params, name="choice")
  by_layer = map_with_path(
      lambda path, leaf, flag: modules(flag, path, leaf), {stack: params[stack]}, {stack: flags[stack]})
  if divided := [path for path, flag in leaves_with_paths(by_layer) if flag is None]:
    raise ValueError(f"choice must have whole layers to cut at; it divides those of {', '.join(divided[:8])}")
  vectors = [flags for flags in jax.tree.leaves(by_layer) if np.ndim(flags)]
  at = sorted({int(i) + 1 for flags in vectors for i in np.flatnonzero(flags[1:] != flags[:-1])})
  return cut_layers(params, at, stack=stack)


@explain_errors
def chosen_fraction(params: Tree, choice: Choice) -> float:
  """The share of parameters that a choice has: what `fraction` came to; 0 where there are none.

  >>> chosen_fraction({"a": np.ones(6), "b": np.ones(2)}, "b")
  0.25
  """

  def share(path: str, leaf: Any, flags: Any) -> float:
    size = math.prod(leaf.shape) if is_array(leaf) else 0
    return size * float(np.mean(flags)) if size else 0.0

  leaves = jax.tree.leaves(map_with_path(share, params, as_choice(choice, params, name="choice")))
  return sum(leaves) / max(1, sum(math.prod(leaf.shape) for _, leaf in leaves_with_paths(params) if leaf is not None))


def _modules(params: Tree, groups: Sequence[Choice]) -> tuple[dict[Module, float], dict[str, list[Module]]]:
  """The size of each module, and for each matched path the modules of its layers."""
  sizes: dict[Module, float] = {}
  owners: dict[str, list[Module]] = {}
  for category, group in enumerate(groups):
    flags = jax.tree.leaves(mask(group, params, name="groups"))
    for (path, leaf), matched in zip(leaves_with_paths(params), flags, strict=True):
      if not matched or path in owners:
        continue
      layer = layer_of(path, leaf)
      layers = [-1] if layer is None else np.atleast_1d(layer).tolist()
      owners[path] = [(category, i, path.rpartition("/")[0]) for i in layers]
      for module in owners[path]:
        sizes[module] = sizes.get(module, 0.0) + math.prod(leaf.shape) / len(layers)
  return sizes, owners


def _choose_in_layers(
    rng: np.random.Generator, sizes: dict[Module, float], fraction: float, balance: str
) -> set[Module]:
  chosen: set[Module] = set()
  for category in sorted({module[0] for module in sizes}):
    layers: dict[int, list[Module]] = {}
    for module in sorted(m for m in sizes if m[0] == category):
      layers.setdefault(module[1], []).append(module)
    orders = {layer: [modules[i] for i in rng.permutation(len(modules))] for layer, modules in layers.items()}
    if balance == "params":
      chosen |= _choose_params(orders, sizes, fraction)
      continue
    wanted = {layer: fraction * len(modules) for layer, modules in layers.items()}
    uneven = [layer for layer, n in wanted.items() if n % 1]
    extra = _round(sum(wanted.values())) - sum(math.floor(n) for n in wanted.values())
    up = set(rng.permutation(uneven)[:extra].tolist())
    for layer, order in orders.items():
      chosen |= set(order[: math.floor(wanted[layer]) + (layer in up)])
  return chosen


def _choose_params(orders: dict[int, list[Module]], sizes: dict[Module, float], fraction: float) -> set[Module]:
  chosen, want, have = set(), 0.0, 0.0
  for order in orders.values():
    want += fraction * sum(sizes[module] for module in order)
    for module in order:
      if abs(have + sizes[module] - want) < abs(have - want):
        chosen.add(module)
        have += sizes[module]
  return chosen


def _round(x: float) -> int:
  return math.floor(x + 0.5)


@explain_errors
def select_units(
    key: Array | None, sizes: Sequence[int], *, fraction: float, scope: Literal["global", "layer"] = "global",
    scores: Sequence[Float[np.ndarray, " _"]] | None = None, largest: bool = True,
) -> list[Int[np.ndarray, " _"]]:
  """Chooses units (heads, channels) of each layer: at random, or by a score.

  >>> select_units(None, [2, 3], fraction=0.4, scores=[np.array([5.0, 1.0]), np.array([2.0, 4.0, 3.0])])
  [array([0]), array([1])]

  Args:
    key: concrete; not read where scores are given.
    sizes: how many units each layer has.
    fraction: chosen, in [0, 1]: `int(fraction * sum(sizes))` of all layers together, or `int(fraction * size)` in each.
    scope: "global" draws from all layers together, so that they get unequal counts, perhaps none; "layer" from each.
    scores: of each layer's units; None draws uniformly.
    largest: take the highest scores, else the lowest; of equal ones the first.

  Returns:
    For each layer the sorted indices of its chosen units.

  Raises:
    ValueError: fraction outside [0, 1], an unknown scope, scores of other lengths, or neither scores nor a key.

  Source: Yang et al. 2024, S2FT (arXiv 2412.06289), whose released code draws globally.
  """
  if not 0.0 <= fraction <= 1.0:
    raise ValueError(f"fraction must lie in [0, 1]; got {fraction}")
  if scope not in ("global", "layer"):
    raise ValueError(f"scope must be global or layer; got {scope!r}")
  if scores is not None and [len(s) for s in scores] != list(sizes):
    raise ValueError(f"scores must have the lengths of sizes, {list(sizes)}; got {[len(s) for s in scores]}")
  if scores is None:
    if key is None:
      raise ValueError("key must be given where scores are not; got None for both")
    rng = host_rng(key)
    values = [rng.random(n) for n in sizes]
  else:
    values = [np.asarray(s, np.float64) if largest else -np.asarray(s, np.float64) for s in scores]
  best = lambda v, n: np.sort(np.argsort(-v, kind="stable")[:n])
  if scope == "layer":
    return [best(v, int(fraction * len(v))) for v in values]
  ends = np.cumsum([0, *sizes])
  flat = best(np.concatenate(values), int(fraction * ends[-1]))
  return [flat[(flat >= a) & (flat < b)] - a for a, b in pairwise(ends)]


@explain_errors
def unit_indices(units: Sequence[Int[np.ndarray, " _"]], unit: int = 1) -> Int[np.ndarray, "layers entries"]:
  """The rows or columns of chosen units, each `unit` wide, as one array: unequal counts are filled with -1.

  >>> unit_indices([np.array([0, 2]), np.array([1])], unit=2)
  array([[ 0,  1,  4,  5],
         [ 2,  3, -1, -1]], dtype=int32)

  Args:
    units: from `select_units`.
    unit: entries of a unit: the size of a head, 1 for channels.
  """
  rows = [(np.asarray(u)[:, None] * unit + np.arange(unit)).ravel() for u in units]
  width = max(map(len, rows), default=0)
  return np.stack([np.pad(row, (0, width - len(row)), constant_values=-1) for row in rows]).astype(np.int32)
