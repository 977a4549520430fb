"""The merge methods of a mergekit configuration: what each needs, and how its parameters become ours.

    method = METHODS["ties"]
    settings = method.settings({"weight": [1.0, 0.5], "density": [0.2, 0.2]}, {"normalize": True})
    merged = merge_leaf(method.leafwise, models, base, settings)

Conventions are those of mergekit 0.1.5, where it and the papers differ: thresholds within each tensor, densities of
mergekit, random drops rescaled to the L1 norm. Importing this module does not import JAX.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxft.checks import in_range
from jaxft.merging.kernels import directions, fusion, swaps, trims, variance_selection
from jaxft.merging.kernels.blocks import LeafMerge
from jaxft.merging.kernels.consensus import weighted_sum
from jaxft.merging.kernels.directions import as_coefficients
from jaxft.merging.kernels.leafwise import Leafwise
from jaxft.merging.kernels.namespace import ArrayLike
from jaxft.merging.kernels.random_bits import stream
from jaxft.merging.kernels.task_vector_sums import elected_trimmed_sum, sum_coefficients, trimmed_sum

# The default of a parameter that has none.
REQUIRED = object()

Parameters = Mapping[str, Any]


class MergeMethod(NamedTuple):
  """A merge method by mergekit's name.

  Attributes:
    leafwise: what `merge_leaf` runs.
    settings: `(per_model, parameters) -> settings`; what `per_model` lists, it lists for the models without the base.
    base: `required`; `optional`; or `ignored`: the base, if any is given, is one more of the models.
    per_model: parameters that each model has, with their defaults.
    parameters: parameters of the merge, with their defaults.
    ranges: what their numbers must lie in, as of `in_range`; any finite number where none is named here.
    least, most: how many models it takes besides the base; None for any number.
    random: whether `settings` needs streams of random numbers, `streams=[...]`, one for each model.
  """

  leafwise: Leafwise
  settings: Callable[..., dict[str, Any]]
  base: Literal["required", "optional", "ignored"] = "required"
  per_model: Parameters = {}
  parameters: Parameters = {}
  ranges: Mapping[str, str] = {}
  least: int = 1
  most: int | None = None
  random: bool = False


def streams(seed: int, path: str, models: int) -> list[np.ndarray]:
  """The streams of random numbers of one leaf, for `settings(..., streams=...)`."""
  return [stream(seed, path, model) for model in range(models)]


def check_parameters(name: str, per_model: Mapping[str, Sequence[Any]], parameters: Parameters, models: int) -> None:
  """Raises ValueError, naming the argument, for what a method does not take.

  Args:
    name: of the method.
    per_model: as for `settings`.
    parameters: as for `settings`.
    models: how many there are besides the base.
  """
  method = METHODS[name]
  most = method.most if method.most is not None else models
  if not method.least <= models <= most:
    takes = f"at least {method.least}" if method.most is None else f"{method.least}" if method.least == most else (
        f"{method.least} to {most}")
    of = "; got {} with the base" if method.base == "ignored" else " besides the base; got {}"
    raise ValueError(f"{name} takes {takes} model{'s' * (takes != '1')}{of.format(models)}")
  for given, known, kind in ((per_model, method.per_model, "of each model"), (parameters, method.parameters, "")):
    unknown = sorted(set(given) - set(known))
    if unknown:
      raise ValueError(f"{name} takes no parameter {unknown[0]!r} {kind}".rstrip() + f"; it takes {', '.join(known)}")
    missing = sorted(k for k, default in known.items() if default is REQUIRED and k not in given)
    if missing:
      raise ValueError(f"{name} needs the parameter {missing[0]!r} {kind}".rstrip())
  for key, values in per_model.items():
    if len(values) != models:
      raise ValueError(f"{key} must have one value for each of {models} models; got {len(values)}")
  for key, value in [*((key, v) for key, values in per_model.items() for v in values), *parameters.items()]:
    if value is not None:
      in_range(key, value, method.ranges.get(key, "(-inf, inf)"))
  densities = per_model.get("density", ())
  for density in densities:
    trims.check_density(density)
  for gamma in per_model.get("gamma", ()):
    trims.check_gamma(gamma)
  epsilons = per_model.get("epsilon", [method.per_model.get("epsilon", 0.0)] * len(densities))
  for density, epsilon in zip(densities, epsilons, strict=True):
    trims.check_epsilon(density, epsilon)


# The methods, as `merge_leaf` and `merge_trees` run them.

WEIGHTED = Leafwise(weighted_sum)
TRIMMED = Leafwise(trimmed_sum)
ELECTED = Leafwise(elected_trimmed_sum)
NEARSWAP = Leafwise(swaps.nearswap_leaf)
FUSION = Leafwise(fusion.arcee_fusion_leaf)


def _gram(models: Sequence[ArrayLike], base: ArrayLike | None, *, rows: bool = False, **_: Any) -> ArrayLike:
  return directions.gram_of_models(models, base, rows=rows)


def _by_angle(
    coefficients: Callable[..., np.ndarray], remark: Callable[[np.ndarray], str | None] | None = None
) -> Leafwise:
  """A weighted sum with the coefficients that a function of the Gram matrix gives."""

  def decide(gram: Any, *, rows: bool = False, **settings: Any) -> dict[str, Any]:
    del rows
    return as_coefficients(coefficients(np.asarray(gram, np.float64), **settings))._asdict()

  return Leafwise(weighted_sum, _gram, decide, wide=True, remark=remark)


SLERP = _by_angle(directions.slerp_coefficients, directions.short_of_slerp)
NUSLERP = SLERP._replace(remark=directions.short_of_nuslerp)
KARCHER = _by_angle(directions.karcher_coefficients, directions.opposed)
MEAN_DIRECTION = _by_angle(directions.mean_direction_coefficients)
STOCK = _by_angle(directions.stock_coefficients, directions.short_of_stock)

SCE = Leafwise(
    variance_selection.sce_leaf,
    lambda models, base, *, density: variance_selection.differing(models, base),
    lambda count, *, density: {"selected": None if density == 1.0 else np.int32(int(int(count) * density))},
)
RAM = Leafwise(swaps.ram_leaf)
RAM_PLUS = Leafwise(
    swaps.ram_leaf,
    lambda models, base, *, epsilon, r, alpha: swaps.contributions(models, base, epsilon=epsilon),
    lambda found, *, epsilon, r, alpha: {
        "epsilon": epsilon, "boosts": swaps.ram_boosts(found, r=r, alpha=alpha, epsilon=epsilon)},
)


def _base_first(method: Leafwise) -> Leafwise:
  """The base as the first of the models."""

  def leaf(models: Sequence[ArrayLike], base: ArrayLike, **settings: Any) -> LeafMerge:
    merge = method.leaf([base, *models], None, **settings)
    return merge._replace(combine=lambda start, models, base: merge.combine(start, [base, *models], None))

  statistics = lambda models, base, **settings: method.statistics([base, *models], None, **settings)
  return method._replace(leaf=leaf, statistics=statistics)


# mergekit's parameters.

def _linear(per_model: Parameters, parameters: Parameters) -> dict[str, Any]:
  return linear_settings(per_model["weight"], normalize=parameters.get("normalize", True))


def linear_settings(weights: Sequence[float], *, normalize: bool) -> dict[str, Any]:
  """Of `WEIGHTED`, without a base.

  Raises:
    ValueError: the weights add up to zero where they are to be normalized.
  """
  coefficients = np.asarray(weights, np.float64)
  total = coefficients.sum()
  if normalize:
    if not total:
      raise ValueError(f"weights must not add up to zero where they are normalized; got {coefficients.tolist()}")
    coefficients, total = coefficients / total, 1.0
  return {"coefficients": list(coefficients.astype(np.float32)), "total": np.float32(total)}


def _task_vectors(
    *, trim: Callable[..., trims.Trim] | None, elect: bool, normalize: bool, rescale: bool, extra: Parameters
) -> Callable[..., dict[str, Any]]:
  """`settings` of the methods that trim task vectors and sum them."""

  def settings(per_model: Parameters, parameters: Parameters, streams: Sequence[Any] | None = None) -> dict[str, Any]:
    weights = per_model["weight"]
    result: dict[str, Any] = {}
    if trim is not None:
      norm = "l1" if parameters.get("rescale", rescale) else None
      given = {"density": 1.0, **extra}
      columns = {name: per_model.get(name, [default] * len(weights)) for name, default in given.items()}
      result["trim"] = trim
      result["trim_settings"] = [
          {"rescale": norm} | {name: float(values[i]) for name, values in columns.items()} for i in range(len(weights))]
      if trim in (trims.at_random, trims.by_rank):
        if streams is None:
          raise ValueError("streams must be given for a method that draws random numbers")
        result["streams"] = list(streams)
    scale, divide = parameters.get("lambda", 1.0), parameters.get("normalize", normalize)
    if elect:
      weights = [np.float32(w) for w in weights]
      return result | {"weights": weights, "scale": np.float32(scale), "normalize": bool(divide)}
    return result | {"coefficients": sum_coefficients(weights, scale=scale, normalize=divide)}

  return settings


def _generalized(
    *, trim: Callable[..., trims.Trim] | None = None, elect: bool = False, normalize: bool = False,
    rescale: bool = False, extra: Parameters = MappingProxyType({}),
) -> MergeMethod:
  settings = _task_vectors(trim=trim, elect=elect, normalize=normalize, rescale=rescale, extra=extra)
  return MergeMethod(
      ELECTED if elect else TRIMMED, settings,
      per_model={"weight": REQUIRED, "density": 1.0, **extra},
      parameters={"normalize": normalize, "lambda": 1.0, "rescale": rescale, "int8_mask": False},
      random=trim in (trims.at_random, trims.by_rank))


def _nuslerp(per_model: Parameters, parameters: Parameters) -> dict[str, Any]:
  first, second = per_model["weight"]
  t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
  rows = not parameters.get("nuslerp_flatten", True)
  settings = {"t": t, "rows": rows, "linear_above": 1 - 1e-12}
  return settings | ({"axis": 0} if rows and parameters.get("nuslerp_row_wise", False) else {})


def _multislerp(per_model: Parameters, parameters: Parameters) -> dict[str, Any]:
  weights, normalize = list(per_model["weight"]), parameters.get("normalize_weights", True)
  if normalize and not sum(weights):
    raise ValueError(f"weights must not add up to zero where they are normalized; got {weights}")
  # mergekit takes a single model as it is, whatever its weight.
  return {"weights": weights if len(weights) > 1 else [1.0], "normalize": normalize}


METHODS: Mapping[str, MergeMethod] = {
    "linear": MergeMethod(
        WEIGHTED, _linear, base="ignored", per_model={"weight": REQUIRED}, parameters={"normalize": True}),
    "slerp": MergeMethod(
        _base_first(SLERP), lambda _, given: {"t": given["t"]}, parameters={"t": REQUIRED}, most=1),
    "nuslerp": MergeMethod(
        NUSLERP, _nuslerp, base="optional", per_model={"weight": REQUIRED},
        parameters={"nuslerp_row_wise": False, "nuslerp_flatten": True}, least=2, most=2),
    "multislerp": MergeMethod(
        MEAN_DIRECTION, _multislerp, base="optional", per_model={"weight": REQUIRED},
        parameters={"normalize_weights": True, "eps": 1e-8}),
    "karcher": MergeMethod(
        KARCHER, lambda _, given: {"iterations": given.get("max_iter", 10), "tolerance": given.get("tol", 1e-5)},
        base="ignored", parameters={"max_iter": 10, "tol": 1e-5},
        ranges={"max_iter": "[0, inf)", "tol": "[0, inf)"}),
    "model_stock": MergeMethod(
        STOCK, lambda _, given: {"rows": given.get("filter_wise", False)}, parameters={"filter_wise": False}, least=2),
    "passthrough": MergeMethod(
        WEIGHTED,
        lambda per_model, _: linear_settings([1.0 if s is None else s for s in per_model.get("scale", [None])],
                                             normalize=False),
        base="ignored", per_model={"scale": None}, most=1),
    "nearswap": MergeMethod(
        NEARSWAP, lambda _, given: {"t": float(given["t"])}, parameters={"t": REQUIRED}, ranges={"t": "[0, inf)"},
        most=1),
    "arcee_fusion": MergeMethod(FUSION, lambda _, given: {}, most=1),
    "ram": MergeMethod(
        RAM, lambda _, given: {"epsilon": given.get("epsilon", 1e-5)}, parameters={"epsilon": 1e-5},
        ranges={"epsilon": "[0, inf)"}),
    "ramplus_tl": MergeMethod(
        RAM_PLUS, lambda _, given: {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2} | dict(given),
        parameters={"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
        ranges={"epsilon": "[0, inf)", "r": "[0, inf)", "alpha": "[0, inf)"}),
    "sce": MergeMethod(
        SCE, lambda _, given: {"density": float(given.get("select_topk", 1.0))},
        parameters={"select_topk": 1.0, "int8_mask": False}, ranges={"select_topk": "[0, 1]"}),
    "task_arithmetic": _generalized(),
    "ties": _generalized(trim=trims.by_magnitude, elect=True, normalize=True),
    "dare_linear": _generalized(trim=trims.at_random, rescale=True),
    "dare_ties": _generalized(trim=trims.at_random, elect=True, rescale=True),
    "della": _generalized(trim=trims.by_rank, elect=True, normalize=True, rescale=True, extra={"epsilon": 0.15}),
    "della_linear": _generalized(trim=trims.by_rank, rescale=True, extra={"epsilon": 0.15}),
    "breadcrumbs": _generalized(trim=trims.band, extra={"gamma": 0.01}),
    "breadcrumbs_ties": _generalized(trim=trims.band, elect=True, extra={"gamma": 0.01}),
}
