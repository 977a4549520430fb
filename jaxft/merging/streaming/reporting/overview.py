"""A plan for people: which tensors are merged how, and what it costs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxft.formats.safetensors import assign_shards
from jaxft.merging.streaming.plan import Plan, TensorPlan


def describe(plan: Plan, *, max_shard_bytes: int = 5 * 10**9) -> str:
  """The plan as text: groups of tensors with one set of parameters, then bytes and memory."""
  recipe = plan.recipe
  lines = [f"{recipe.name or 'output'}: {recipe.method} of {len(plan.models)} models"
           + (f", base {recipe.base}" if recipe.base is not None else "")]
  for group in groups(plan):
    lines.append(f"  {group.tensors}")
    lines += [f"    {model}" + (f": {values}" if values else "") for model, values in group.models]
    lines += [f"    {group.parameters}"] if group.parameters else []
  for stack, (depth, layers) in plan.depths.items():
    lines.append(f"  {stack}: {len(layers)} layers (the first model has {depth}): {', '.join(map(str, layers))}")
  if plan.vocabulary is not None:
    lines.append(f"  vocabulary: {plan.vocabulary.size} rows, {len(plan.vocabulary.added)} tokens added to the "
                 f"tokenizer of {plan.vocabulary.folder}")
  dtypes = sorted({tensor.entry.dtype.name for tensor in plan.tensors})
  files = len(assign_shards({t.name: t.entry.nbytes for t in plan.tensors}, max_shard_bytes, stem=plan.first.stem))
  lines.append(f"  reads {_size(plan.bytes_read)}, writes {_size(plan.bytes_written)} ({', '.join(dtypes)}, {files} "
               f"file{'s' if files != 1 else ''}), holds at most {_size(plan.budget)} of tensors at once")
  return "\n".join(lines)


class Group(NamedTuple):
  """Tensors that are merged with the same parameters: their names, each model's parameters, and those of the merge."""

  tensors: str
  models: Sequence[tuple[str, str]]
  parameters: str


def groups(plan: Plan) -> list[Group]:
  """The tensors of a plan by their parameters, in words."""
  found: dict[str, list[TensorPlan]] = {}
  for tensor in plan.tensors:
    per_model = None if tensor.per_model is None else sorted(tensor.per_model.items())
    key = repr((per_model, sorted(tensor.parameters.items()), list(tensor.models), tensor.base is None))
    found.setdefault(key, []).append(tensor)
  return [_group(tensors) for tensors in found.values()]


def _group(tensors: Sequence[TensorPlan]) -> Group:
  one, per_model = tensors[0], tensors[0].per_model
  if per_model is None:
    return Group(_label(tensors), [], "integers, copied")
  of = lambda i: ", ".join(f"{name} {_value(xs[i])}" for name, xs in per_model.items() if xs[i] is not None)
  parameters = ", ".join(f"{name} {_value(x)}" for name, x in one.parameters.items())
  return Group(_label(tensors), [(model, of(i)) for i, model in enumerate(one.models)], parameters)


def _label(tensors: Sequence[TensorPlan]) -> str:
  """The names of a group: what they begin and end with, and how many there are."""
  names = [tensor.name for tensor in tensors]
  if len(names) == 1:
    return names[0]
  start = _common(names)
  end = _common([name[len(start):][::-1] for name in names])[::-1]
  return f"{start}*{end} ({len(names)} tensors)"


def _common(names: Sequence[str]) -> str:
  first, last = min(names), max(names)
  pairs = enumerate(zip(first, last, strict=False))
  same = next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
  return first[:same]


def _value(x: Any) -> str:
  return f"{x:.4g}" if isinstance(x, float) else str(x).lower()


def _size(nbytes: int) -> str:
  for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
    if nbytes >= size:
      return f"{nbytes / size:.2f} {unit}"
  return f"{nbytes} B"
