"""From a recipe and open models to a plan: which tensors, out of which, with which parameters, and whether they fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxft.merging.kernels.methods import METHODS, REQUIRED, check_parameters
from jaxft.merging.streaming.inputs import InputModel
from jaxft.merging.streaming.kinds import check_weights, other_kinds
from jaxft.merging.streaming.names import VocabularyTensors, buffers, tied_embedding
from jaxft.merging.streaming.operands import Operand
from jaxft.merging.streaming.plan import Plan, TensorPlan
from jaxft.merging.streaming.recipe_files.configuration import Module, Recipe, Slice, Source
from jaxft.merging.streaming.recipe_files.references import Reference
from jaxft.merging.streaming.recipe_files.settings import filters, resolve_all
from jaxft.merging.streaming.shards import Entry
from jaxft.merging.streaming.stacks import Place, Stacks, before_layers, find_stacks
from jaxft.merging.streaming.vocabulary import Aligned, Vocabulary, align_vocabularies, conflicting_tokens

_DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def make_plan(
    recipe: Recipe, models: Mapping[Reference, InputModel], *, seed: int = 0, dtype: str | None = None
) -> Plan:
  """Resolves a recipe on open models.

  Args:
    recipe: the recipe.
    models: all that it names, in the order of `recipe.models`.
    seed: of random drops.
    dtype: of the output, in place of the recipe's.

  Raises:
    ValueError: the models do not fit the recipe or each other (all faults of one kind are named), or a parameter is
      missing or out of its range.
  """
  for model in models.values():
    check_weights(model)
  vocabulary = None
  if recipe.tokenizer is not None:
    vocabulary = align_vocabularies(recipe.tokenizer, models, recipe.base)
  planner = _Planner(recipe, models, vocabulary, dtype or recipe.dtype)
  for module in recipe.modules:
    planner.add_module(module)
  planner.finish()
  if vocabulary is None:
    planner.check_vocabularies()
  elif vocabulary.bare:
    planner.notes.append(f"no model has an embedding for {', '.join(map(repr, vocabulary.bare[:5]))}; it is zero")
  planner.notes += other_kinds(list(models.values()))
  return Plan(
      recipe, models, tuple(planner.tensors), planner.depths, vocabulary, planner.untied, dtype or recipe.dtype, seed,
      tuple(dict.fromkeys([*recipe.notes, *planner.notes])))


class _Planner:

  def __init__(
      self, recipe: Recipe, models: Mapping[Reference, InputModel], vocabulary: Vocabulary | None, dtype: str | None
  ):
    self.recipe, self.models, self.vocabulary, self.dtype = recipe, models, vocabulary, dtype
    self.method = METHODS[recipe.method]
    self.stacks: dict[Reference, Stacks] = {r: find_stacks(m.operands) for r, m in models.items()}
    self.vocabularies = VocabularyTensors(models)
    self.tensors: list[TensorPlan] = []
    self.depths: dict[str, tuple[int, list[int]]] = {}
    self.notes: list[str] = []
    self.problems: list[str] = []
    self.untied = False
    self._checked: set[str] = set()

  # Which tensors.

  def add_module(self, module: Module) -> None:
    others = [m.prefix for m in self.recipe.modules if m is not module]
    inside = lambda name: name.startswith(module.prefix) and not any(
        name.startswith(p) for p in others if len(p) > len(module.prefix))
    if len(module.slices) == 1 and all(s.layers is None for s in module.slices[0].sources):
      self._add_whole(module, inside)
    else:
      self._add_slices(module, inside)

  def _add_whole(self, module: Module, inside: Any) -> None:
    piece = module.slices[0]
    leader = _leader(piece)
    names = [name for name in self.models[leader].operands if inside(name)]
    if not names:
      raise ValueError(f"{self.models[leader].name} has no tensor that begins with {module.prefix!r}")
    extra = [n for s in piece.sources for n in self.models[s.model].operands if inside(n)]
    for name in dict.fromkeys([*names, *extra]):
      place = self.stacks[leader].places.get(name)
      depth = self.stacks[leader].depths[place.stack] if place else 0
      self._add(name, {s.model: name for s in piece.sources}, piece, module, _t(place, depth), place)

  def _add_slices(self, module: Module, inside: Any) -> None:
    stack = self._stack_of(module, inside)
    taken: list[int] = []
    leaders = [_leader(piece) for piece in module.slices]

    def add_outside(piece: Slice, leader: Reference, before: bool) -> None:
      places = self.stacks[leader].places
      for name in self.models[leader].operands:
        if inside(name) and (name not in places or places[name].stack != stack) and before_layers(name) == before:
          self._add(name, {s.model: name for s in piece.sources}, piece, module, 0.0, None)

    add_outside(module.slices[0], leaders[0], before=True)
    for piece, leader in zip(module.slices, leaders, strict=True):
      ranges = {source.model: self._range(source, stack) for source in piece.sources}
      start, stop = ranges[leader]
      places = [p for n, p in self.stacks[leader].places.items() if p.stack == stack and inside(n)]
      for layer in range(start, stop):
        t = _t(Place(stack, layer - start, ""), stop - start)
        for place in (p for p in places if p.layer == layer):
          sources = {model: place.name(first + layer - start) for model, (first, _) in ranges.items()}
          self._add(place.name(len(taken)), sources, piece, module, t, place._replace(layer=len(taken)))
        taken.append(layer)
    add_outside(module.slices[-1], leaders[-1], before=False)
    self.depths[stack] = next(iter(self.stacks.values())).depths.get(stack, 0), taken

  def _stack_of(self, module: Module, inside: Any) -> str:
    leader = _leader(module.slices[0])
    found = {p.stack for n, p in self.stacks[leader].places.items() if inside(n)}
    depths = {stack: depth for stack, depth in self.stacks[leader].depths.items() if stack in found}
    several = {stack: depth for stack, depth in depths.items() if depth > 1} or depths
    if len(several) != 1:
      listed = ", ".join(f"{stack or '(no prefix)'} ({depth})" for stack, depth in several.items())
      raise ValueError(
          f"slices take a model with one stack of layers; {self.models[leader].name} has {listed or 'none'}"
          + ("; give each its slices under modules, by its name" if several else ""))
    return next(iter(several))

  def _range(self, source: Source, stack: str) -> tuple[int, int]:
    depth = self.stacks[source.model].depths.get(stack, 0)
    start, stop = source.layers or (0, depth)
    if stop > depth:
      raise ValueError(f"layer_range [{start}, {stop}] of {self.models[source.model].name} exceeds its {depth} layers "
                       f"{stack}.*")
    return start, stop

  # One tensor.

  def _add(
      self, name: str, sources: Mapping[Reference, str], piece: Slice, module: Module, t: float, place: Place | None
  ) -> None:
    operands = self._operands(name, sources, piece)
    if operands is None or not self._fits(name, operands):
      return
    floating = [np.issubdtype(x.dtype, np.floating) or x.dtype == _DTYPES["bfloat16"] for x in operands.values()]
    base = operands.get(piece.base) if piece.base is not None and self.method.base != "ignored" else None
    if any(floating) != all(floating):
      kinds = ", ".join(f"{x.dtype} in {self.models[m].name}" for m, x in operands.items())
      self.problems.append(f"{name} is a floating tensor in some models only: {kinds}")
      return
    first = next(iter(operands.values()))
    layer = None if place is None else place.layer
    if not floating[0]:
      named = {self.models[m].name: x for m, x in operands.items() if m != piece.base}
      base = None if piece.base is None else operands.get(piece.base)
      self.tensors.append(TensorPlan(name, Entry(first.shape, (base or first).dtype), named, base, None, {}, layer))
      return
    models = {m: x for m, x in operands.items() if base is None or m != piece.base}
    per_model, parameters = self._parameters(name, {m: sources[m] for m in models}, piece, module, t)
    dtype = _DTYPES[self.dtype] if self.dtype else _promoted([x.dtype for x in operands.values()])
    self.tensors.append(TensorPlan(
        name, Entry(first.shape, dtype), {self.models[m].name: x for m, x in models.items()}, base, per_model,
        parameters, layer))

  def _operands(self, name: str, sources: Mapping[Reference, str], piece: Slice) -> dict[Reference, Operand] | None:
    """The tensor in each model; None where the output is to be without it."""
    found, missing = {}, []
    for model, own in sources.items():
      held = self.models[model].operands
      if own in held:
        found[model] = held[own]
      else:
        missing.append(model)
    if missing and buffers(name):
      self.notes.append(
          f"{name} is left out: {self.models[missing[0]].name} lacks it, and models compute it themselves")
      return None
    shape = next(iter(found.values())).shape if found else ()
    tied: dict[Reference, str] = {}
    lacking = []
    for model in missing:
      if embedding := tied_embedding(name, self.models[model], shape):
        tied[model] = embedding
      else:
        own, names = sources[model], self.models[model].operands
        akin = next((n for n in names if n.partition(".")[2] == own or own.partition(".")[2] == n), None)
        but = f", which has {akin}: names of one of them have a prefix that the other lacks" if akin else ""
        lacking.append(f"{own} is missing in {self.models[model].name}{but}")
    if lacking:
      have = self.models[next(iter(found))].name if found else "none"
      self.problems.append(f"{', '.join(lacking)} (it is in {have})")
      return None
    for model, embedding in tied.items():
      self.untied = True
      self.notes.append(f"{self.models[model].name} ties {name} to {embedding}, other models do not: the output has a "
                        "head of its own")
      found[model] = self.models[model].operands[embedding]
    found = {model: found[model] for model in sources}
    if self.vocabulary is not None and self.vocabularies.has(name, found):
      return {model: Aligned(model, found, self.vocabulary) for model in found}
    return found

  def _fits(self, name: str, operands: Mapping[Reference, Operand]) -> bool:
    shapes = {model: x.shape for model, x in operands.items()}
    if len(set(shapes.values())) == 1:
      return True
    listed = ", ".join(f"{shape} in {self.models[model].name}" for model, shape in shapes.items())
    more = ""
    if self.vocabularies.has(name, operands):
      more = "; their vocabularies differ: align them with tokenizer: {source: union} or {source: base}"
    self.problems.append(f"{name} has the shapes {listed}{more}")
    return False

  def _parameters(
      self, name: str, sources: Mapping[Reference, str], piece: Slice, module: Module, t: float
  ) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    shared = [piece.parameters, module.parameters, self.recipe.parameters]
    own = {source.model: source.parameters for source in piece.sources}
    scopes = [(tensor, [own[model], *shared]) for model, tensor in sources.items()]
    per_model, parameters = resolve_all(self.method, shared, scopes, name, t)
    # Few combinations occur in thousands of tensors.
    key = repr((sorted(per_model.items()), sorted(parameters.items()), len(sources)))
    if key not in self._checked:
      self._check(name, per_model, parameters, list(sources))
      self._checked.add(key)
    return per_model, parameters

  def _check(
      self, name: str, per_model: Mapping[str, Sequence[Any]], parameters: Mapping[str, Any], models: list[Reference]
  ) -> None:
    method = self.recipe.method
    if missing := [p for p, default in self.method.per_model.items() if default is REQUIRED and p not in per_model]:
      base = f"; the base_model {self.recipe.base} counts as one" if self.recipe.base in models else ""
      raise ValueError(f"{name}: {method} needs a {missing[0]} for each model{base}")
    try:
      check_parameters(method, per_model, parameters, len(models))
      drawn = {"streams": [None] * len(models)} if self.method.random else {}
      self.method.settings(per_model, parameters, **drawn)
    except ValueError as e:
      raise ValueError(f"{name}: {e}") from None
    total = sum(per_model.get("weight", [1.0]))
    if method == "linear" and parameters.get("normalize") and abs(total - 1) > 1e-6:
      self.notes.append(f"the weights, which add up to {total:.4g}, are divided by that, since normalize is on")

  def finish(self) -> None:
    if self.problems:
      shown = "; ".join(self.problems[:5])
      more = f"; and {len(self.problems) - 5} more" if len(self.problems) > 5 else ""
      raise ValueError(f"{len(self.problems)} tensors cannot be merged: {shown}{more}")
    names = [tensor.name for tensor in self.tensors]
    if len(names) != len(set(names)):
      raise ValueError(f"two modules give {next(n for n in names if names.count(n) > 1)}")
    self._matched({*names, *(name for model in self.models.values() for name in model.operands)})
    if self.recipe.modules[0].prefix or len(self.recipe.modules) > 1:
      self._covered(set(names))

  def _matched(self, names: set[str]) -> None:
    """A note of each filter that is part of no tensor's name."""
    pieces = [piece for module in self.recipe.modules for piece in module.slices]
    holders = [self.recipe, *self.recipe.modules, *pieces, *(source for piece in pieces for source in piece.sources)]
    for parameter, setting in (item for holder in holders for item in holder.parameters.items()):
      self.notes += [f"the filter {word!r} of {parameter} has no effect: it is part of no tensor's name"
                     for word in filters(setting) if not any(word in name for name in names)]

  def check_vocabularies(self) -> None:
    """One row must be one token in all models, if any tensor has rows for tokens."""
    with_rows = [t for t in self.tensors if t.entry.shape and self.vocabularies.is_one(t.name, t.entry.shape)]
    if with_rows and (found := conflicting_tokens(list(self.models.values()))):
      raise ValueError(f"{found}; align their vocabularies with tokenizer: {{source: union}} or {{source: base}}")

  def _covered(self, names: set[str]) -> None:
    """All tensors of the first model are in a module; those of a stack whose layers were chosen aside."""
    leader, model = next(iter(self.models.items()))
    places = self.stacks[leader].places
    left = [n for n in model.operands if n not in names and not (n in places and places[n].stack in self.depths)]
    if left := [n for n in left if not buffers(n)]:
      raise ValueError(f"{len(left)} tensors of {model.name} are in no module, {left[0]} the first; the module "
                       "`default` takes what no other has")


def _leader(piece: Slice) -> Reference:
  return piece.base if piece.base is not None else piece.sources[0].model


def _t(place: Place | None, depth: int) -> float:
  if place is None:
    return 0.0
  return place.layer / (depth - 1) if depth > 1 else 1.0


def _promoted(dtypes: Sequence[np.dtype]) -> np.dtype:
  """The one dtype of all, else float32: what is wider than that is computed in float32 here."""
  return dtypes[0] if len(set(dtypes)) == 1 and dtypes[0].itemsize <= 4 else _DTYPES["float32"]
