"""One model of many sizes: a loss of embeddings becomes that of their first coordinates, of earlier layers, of both.

Each function takes a loss and gives one that is called in the same way. Its positional arguments with two or more axes
and floating-point numbers are embeddings: those are cut, or have their layers along a new first axis. What else the
loss reads (labels, a guide's embeddings, a teacher's scores) is left as it is: pass it by keyword.

    loss = matryoshka(multiple_negatives_ranking, dims=(384, 128, 32))
    Mean.of(*loss(query, positive, negative, where=where))

What the given loss costs at each size is added up. The loss that results weighs each row once, and the mean of it is
the sum of the means at all sizes, also where a loss counts triplets or pairs and finds another number of them at each
size.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxft.checks import in_range, one_of
from jaxft.losses.contrastive import normalize
from jaxft.signatures import check_arrays

Loss = Callable[..., tuple[Array, Array]]
LayerWeights = Literal["uniform", "log", "linear"]
Size = int | Array


@check_arrays
def matryoshka(
    loss: Loss, *, dims: Sequence[Size], weights: Sequence[float] | None = None, unit: bool = True
) -> Loss:
  """A loss at several numbers of leading coordinates: `sum_d w_d loss(embeddings[..., :d])`.

  Args:
    loss: of embeddings, see the module.
    dims: numbers of coordinates; one that is traced masks the rest with zeros, and costs as much as all.
    weights: of `dims`; None is 1 each.
    unit: bring the cut embeddings to unit length, as sentence-transformers does. No loss of cosines can tell.

  Returns:
    The loss of the whole embeddings.

  Raises:
    ValueError: dims are empty or below 1, or weights are of another number; called, dims above the embeddings'.

  Example:
    >>> from jaxft.losses import multiple_negatives_ranking
    >>> loss = matryoshka(multiple_negatives_ranking, dims=(4, 2), weights=(1.0, 0.5))
    >>> values, weights = loss(jnp.eye(4), jnp.eye(4))
    >>> values.shape, weights
    ((4,), Array([1., 1., 1., 1.], dtype=float32))

  Source: Kusupati et al. 2022 (arXiv 2205.13147).

  sentence-transformers: `MatryoshkaLoss`
  """
  each = [1.0] * len(dims) if weights is None else list(weights)
  if not dims or len(each) != len(dims):
    raise ValueError(f"dims must be one or more, with weights as many; got {len(dims)} and {len(each)}")
  for d in dims:
    if isinstance(d, int) and d < 1:
      raise ValueError(f"dims must be at least 1; got {d}")
  in_range("weights", each)

  def nested(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
    args = _counted(args, kwargs, axis=0)
    return _total([(w, loss(*_cut(args, d, unit), **kwargs)) for d, w in zip(dims, each, strict=True)])

  return nested


@check_arrays
def adaptive_layers(
    loss: Loss,
    *,
    layers: Sequence[Size] | None = None,
    layer_weights: LayerWeights | Sequence[float] = "uniform",
    last_weight: float = 1.0,
    prior_weight: float = 1.0,
    kl_weight: float = 1.0,
    kl_temperature: float = 0.3,
) -> Loss:
  """A loss at the last layer and at earlier ones, which the last teaches: each can then serve as the whole model.

      L = w_last l(e_L) + sum_n [ w_prior w_n l(e_n) / N + w_kl t KL(softmax(e_L / t) || softmax(e_n / t)) ]

  over the N layers chosen, with the KL divergence over coordinates, averaged over a row's embeddings, and e_L a
  constant in it.

  Args:
    loss: of embeddings, see the module; the new one takes them `[layers, batch, ...]`, the last layer at the end.
    layers: indices of earlier ones; None takes all. One that is traced is a layer drawn at random.
    layer_weights: w_n of layer n, from 0: 1, `1 / (1 + log(1 + n))`, `1 / (1 + n)`, or one number for each of `layers`.
    last_weight, prior_weight, kl_weight: >= 0.
    kl_temperature: t > 0.

  Returns:
    The loss of stacked embeddings.

  Raises:
    ValueError: a weight or temperature out of range, or layer_weights of another number than layers.

  Example:
    >>> from jaxft.losses import multiple_negatives_ranking
    >>> values, weights = adaptive_layers(multiple_negatives_ranking)(jnp.ones((3, 2, 4)), jnp.ones((3, 2, 4)))
    >>> np.array(values).round(3)  # 2 log 2, and no divergence
    array([1.386, 1.386], dtype=float32)

  Source: Li et al. 2024, 2D Matryoshka Sentence Embeddings (arXiv 2402.14776), in the form of sentence-transformers,
  which
  takes one layer at random.

  sentence-transformers: `AdaptiveLayerLoss`
  """
  for name, value in (("last_weight", last_weight), ("prior_weight", prior_weight), ("kl_weight", kl_weight)):
    in_range(name, value, "[0, inf)")
  in_range("kl_temperature", kl_temperature, "(0, inf)")
  if isinstance(layer_weights, str):
    one_of("layer_weights", layer_weights, get_args(LayerWeights))
  elif layers is None or len(layer_weights) != len(layers):
    raise ValueError(f"layer_weights must be one for each of layers; got {len(layer_weights)} for {layers}")

  def nested(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
    args = _counted(args, kwargs, axis=1)
    depth = _first_axis(args)
    chosen = list(range(depth - 1)) if layers is None else list(layers)
    last = _at(args, -1)
    terms = [(last_weight, loss(*last, **kwargs))]
    for i, n in enumerate(chosen):
      w = _layer_weight(layer_weights, n) if isinstance(layer_weights, str) else layer_weights[i]
      earlier = _at(args, n)
      terms.append((prior_weight * w / len(chosen), loss(*earlier, **kwargs)))
      if kl_weight:
        terms.append((kl_weight * kl_temperature, _of_rows(_coordinate_kl(last, earlier, kl_temperature), kwargs)))
    return _total(terms)

  return nested


@check_arrays
def matryoshka_2d(
    loss: Loss, *, dims: Sequence[int], key: jax.Array | None = None, **options: Any
) -> Loss:
  """A loss at several layers and numbers of coordinates: `adaptive_layers` of `matryoshka`.

  Args:
    loss: of embeddings, see the module; the new one takes them `[layers, batch, ...]`.
    dims: numbers of coordinates.
    key: draws one earlier layer and one of `dims`, anew at each step as the source does; None takes all.
    options: of `adaptive_layers`.

  Returns:
    The loss of stacked embeddings.

  Raises:
    ValueError: see `matryoshka` and `adaptive_layers`; or layers are given with a key.

  Example:
    >>> from jaxft.losses import multiple_negatives_ranking
    >>> loss = matryoshka_2d(multiple_negatives_ranking, dims=(4, 2), key=jax.random.key(0))
    >>> values, weights = loss(jnp.ones((3, 2, 4)), jnp.ones((3, 2, 4)))
    >>> np.array(values).round(3)  # of one layer, one dimension, and the last layer
    array([1.386, 1.386], dtype=float32)

  Source: Li et al. 2024 (arXiv 2402.14776).

  sentence-transformers: `Matryoshka2dLoss`
  """
  if key is None:
    return adaptive_layers(matryoshka(loss, dims=dims), **options)
  if "layers" in options:
    raise ValueError("layers must not be given with a key, which draws one")
  layer_key, dim_key = jax.random.split(key)

  def nested(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
    layer = jax.random.randint(layer_key, (), 0, _first_axis(args) - 1)
    dim = jax.random.choice(dim_key, jnp.asarray(dims))
    return adaptive_layers(matryoshka(loss, dims=(dim,)), layers=(layer,), **options)(*args, **kwargs)

  return nested


@check_arrays
def submodels(
    loss: Loss,
    *,
    ladder: Sequence[tuple[int, int]],
    scores: Callable[..., Float[Array, "rows candidates"]] | None = None,
    beta: float = 1.0,
    unit: bool = False,
) -> Loss:
  """Starbucks: a loss at a fixed ladder of (layer, coordinates), all taught by the scores of its last rung.

      L = l(full) + sum over the others of [ l(e_n^d) + beta KL(softmax(scores(full)) || softmax(scores(e_n^d))) ]

  Args:
    loss: of embeddings, see the module; the new one takes them `[layers, batch, ...]`.
    ladder: of indices along the first axis and numbers of coordinates, the full model last.
    scores: of the embeddings, what the softmax is over, such as `lambda q, p: q @ p.T / 0.05`; None leaves the
      divergence out. The full model's are constants. Where the loss is called with `where`, so is this, and it is to
      put what is no candidate to a very low score, as `in_batch_scores` does.
    beta: >= 0, the weight of the divergence.
    unit: bring the cut embeddings to unit length; the source takes products of them as they are.

  Returns:
    The loss of stacked embeddings. It grows with the ladder: the source takes no average.

  Raises:
    ValueError: an empty ladder, dims below 1, or beta out of range.

  Example:
    >>> from jaxft.losses import multiple_negatives_ranking
    >>> loss = submodels(multiple_negatives_ranking, ladder=((0, 2), (1, 4)), scores=lambda q, p: q @ p.T)
    >>> values, weights = loss(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)))
    >>> np.array(values).round(3)  # 2 log 3, and no divergence
    array([2.197, 2.197, 2.197], dtype=float32)

  Source: Zhuang et al. 2024, Starbucks (arXiv 2410.13230), in its form for retrieval.
  """
  in_range("beta", beta, "[0, inf)")
  if not ladder or any(d < 1 for _, d in ladder):
    raise ValueError(f"ladder must be one or more pairs (layer, dims >= 1); got {list(ladder)}")

  def nested(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
    args = _counted(args, kwargs, axis=1)
    rungs = [_cut(_at(args, n), d, unit) for n, d in ladder]
    full = rungs.pop()
    terms = [(1.0, loss(*full, **kwargs)), *((1.0, loss(*rung, **kwargs)) for rung in rungs)]
    if scores is not None:
      masked = partial(scores, **{name: kwargs[name] for name in ("where",) if kwargs.get(name) is not None})
      log_p = lambda rung: jax.nn.log_softmax(jnp.asarray(masked(*rung), jnp.float32))
      target = jax.lax.stop_gradient(log_p(full))
      divergence = lambda rung: jnp.sum(jnp.exp(target) * (target - log_p(rung)), axis=-1)
      terms += [(beta, _of_rows(divergence(rung), kwargs)) for rung in rungs]
    return _total(terms)

  return nested


@check_arrays
def deep_supervision(loss: Loss, *, weights: Sequence[float] | None = None) -> Loss:
  """A loss at each of several views, such as heads at several depths, and the mean of them: each must serve by itself.

  Args:
    loss: of the views' outputs, see the module; the new one takes them `[views, batch, ...]`.
    weights: of the views; None is the mean.

  Returns:
    The loss of stacked outputs.

  Raises:
    ValueError: called, weights of another number than views.

  Example:
    >>> from jaxft.losses import cross_entropy
    >>> values, weights = deep_supervision(cross_entropy)(jnp.zeros((3, 2, 4)), labels=jnp.array([0, 1]))
    >>> np.array(values).round(3)  # log 4
    array([1.386, 1.386], dtype=float32)

  Source: the shared loss of the layers in Roh et al. 2024, LEVI (arXiv 2402.04644).
  """

  def nested(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
    args = _counted(args, kwargs, axis=1)
    views = _first_axis(args)
    each = [1 / views] * views if weights is None else list(weights)
    if len(each) != views:
      raise ValueError(f"weights must be one for each of {views} views; got {len(each)}")
    return _total([(w, loss(*_at(args, i), **kwargs)) for i, w in enumerate(each)])

  return nested


def _is_embedding(x: Any) -> bool:
  return isinstance(x, (jax.Array, np.ndarray)) and x.ndim > 1 and jnp.issubdtype(x.dtype, jnp.floating)


def _at(args: tuple, layer: Size) -> tuple:
  return tuple(jnp.asarray(x)[layer] if _is_embedding(x) else x for x in args)


def _cut(args: tuple, dim: Size, unit: bool) -> tuple:
  def cut(x: Array) -> Array:
    if isinstance(dim, int):
      if dim > x.shape[-1]:
        raise ValueError(f"dims must not exceed those of the embeddings, {x.shape[-1]}; got {dim}")
      x = x[..., :dim]
    else:
      x = jnp.where(jnp.arange(x.shape[-1]) < dim, x, 0)
    return normalize(x) if unit else x

  return tuple(cut(x) if _is_embedding(x) else x for x in args)


def _layer_weight(kind: str, layer: Size) -> Any:
  log1p = math.log1p if isinstance(layer, int) else jnp.log1p
  return {"uniform": lambda n: 1.0, "log": lambda n: 1 / (1 + log1p(n)), "linear": lambda n: 1 / (1 + n)}[kind](layer)


def _coordinate_kl(last: tuple, earlier: tuple, temperature: float) -> Float[Array, " batch"]:
  """KL divergence over coordinates, the mean of all embeddings of a row."""
  total, count = jnp.zeros(()), 0
  for full, small in zip(last, earlier, strict=True):
    if _is_embedding(full):
      log_p, log_q = (jax.nn.log_softmax(jnp.asarray(x, jnp.float32) / temperature) for x in (full, small))
      log_p = jax.lax.stop_gradient(log_p)
      divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
      total += jnp.sum(divergence.reshape(len(divergence), -1), axis=1)
      count += math.prod(full.shape[1:-1])
  return total / count


def _of_rows(values: Array, kwargs: dict[str, Any]) -> tuple[Array, Array]:
  """A divergence of the rows as a loss of those that count."""
  kept = jnp.ones(values.shape, bool) if kwargs.get("where") is None else jnp.asarray(kwargs["where"])
  return jnp.where(kept, values, 0.0), kept.astype(jnp.float32)


def _counted(args: tuple, kwargs: dict[str, Any], axis: int) -> tuple:
  """Zeros in the rows that do not count, whose NaN would reach what is computed beside the loss."""
  where = kwargs.get("where")
  if where is None or where.ndim != 1:
    return args

  def clean(x: Array) -> Array:
    return jnp.where(where.reshape((1,) * axis + where.shape + (1,) * (x.ndim - axis - 1)), x, 0)

  return tuple(clean(x) if _is_embedding(x) else x for x in args)


def _first_axis(args: tuple) -> int:
  return next(len(x) for x in args if _is_embedding(x))


def _total(terms: list[tuple[Any, tuple[Array, Array]]]) -> tuple[Array, Array]:
  """Values whose mean is the weighted sum of the terms' means: their weighted sum, where weights are 0 or 1."""
  kept = jnp.any(jnp.stack([jnp.any(w.reshape(len(w), -1) > 0, axis=1) for _, (_, w) in terms]), axis=0)
  rows = jnp.sum(kept)
  total = jnp.zeros(kept.shape)
  for factor, (values, w) in terms:
    weight = jnp.sum(w)
    share = w * (rows / jnp.where(weight > 0, weight, 1))
    total += factor * jnp.sum((values * share).reshape(len(values), -1), axis=1)
  return jnp.where(kept, total, 0.0), kept.astype(jnp.float32)
