"""A side network: a frozen model's states at several depths, each read together with a small model of one's own.

It changes no activation, so that nothing flows back into the frozen model, which may have passed its data beforehand:

    method = side_network(dims=(24, 112, 320), outputs=10, side=small)
    hidden, recorded = efficientnet.hidden_states(params, config, images, record=sites)
    taps = [pool_places(recorded[site]) for site in sites]
    views = method.views(trained, taps, images)                       # [3, batch, 10]
    values = deep_supervision(cross_entropy)(views, labels=labels)    # each must predict by itself
    prediction = average_views(views)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxft.adapters.dense import affine
from jaxft.checks import one_of
from jaxft.signatures import AnyArray, check_arrays, explain_errors
from jaxft.tree.paths import Tree

_EPS = 1e-5


class SideModel(NamedTuple):
  """The small model beside the frozen one.

  Attributes:
    init: `key -> params`.
    apply: `(params, inputs) -> [batch, dim]`.
    dim: of its output.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[[Tree, Any], Array]
  dim: int


class SideNetwork(NamedTuple):
  """A method in two functions.

  Attributes:
    init: `key -> params`, all that trains: `{'side': ..., 'views': [one for each tap]}`.
    views: `(params, taps, inputs) -> [taps, batch, outputs]`, logits or values; inputs are the small model's.
  """

  init: Callable[[jax.Array], Tree]
  views: Callable[[Tree, Sequence[Any], Any], Array]


@explain_errors
def side_network(
    dims: Sequence[int], outputs: int, side: SideModel | None = None, *, normalize: bool = True
) -> SideNetwork:
  """LEVI: one linear layer for each tapped depth, over `[h_l(x); r(x)]`, h_l frozen and r the small model's.

      view_l = norm(h_l) @ W_l[:D_l] + norm(r) @ W_l[D_l:] + b_l

  >>> method = side_network((4, 8), outputs=3)  # without a small model: linear probes at two depths
  >>> params = method.init(jax.random.key(0))
  >>> method.views(params, [jnp.ones((2, 4)), jnp.ones((2, 8))], None).shape
  (2, 2, 3)

  Args:
    dims: sizes D_l of the tapped states; they may differ.
    outputs: classes, or values of a regression.
    side: the small model; None is without one. Its output starts far smaller than the states of a pretrained model.
    normalize: bring each part to mean 0 and variance 1 over its coordinates, lest the larger one drowns the other.

  Raises:
    ValueError: no taps, a size below 1; called, other taps than `dims` says.

  Source: Roh et al. 2024, LEVI (arXiv 2402.04644). The normalization, linear layers and their init (as PyTorch's) are
  choices of this library's.
  """
  if not dims or min(dims) < 1 or outputs < 1:
    raise ValueError(f"dims must be one or more sizes and outputs a number, all at least 1; got {dims} and {outputs}")
  small = 0 if side is None else side.dim
  scaled = _normalized if normalize else lambda x: jnp.asarray(x, jnp.float32)

  def init(key: jax.Array) -> Tree:
    of_side, *of_views = jax.random.split(key, 1 + len(dims))

    def layer(key: jax.Array, dim: int) -> dict[str, Array]:
      bound = 1 / math.sqrt(dim + small)
      return {"kernel": jax.random.uniform(key, (dim + small, outputs), jnp.float32, -bound, bound),
              "bias": jnp.zeros(outputs)}

    views = [layer(k, dim) for k, dim in zip(of_views, dims, strict=True)]
    return {"side": {} if side is None else side.init(of_side), "views": views}

  def views(params: Tree, taps: Sequence[Any], inputs: Any) -> Array:
    if [x.shape[-1] for x in taps] != list(dims) or any(x.ndim != 2 for x in taps):
      raise ValueError(f"taps must be arrays [batch, dim] with dims {list(dims)}; got shapes {[x.shape for x in taps]}")
    own = [] if side is None else [scaled(side.apply(params["side"], inputs))]
    frozen = [scaled(jax.lax.stop_gradient(x)) for x in taps]
    return jnp.stack([affine(jnp.concatenate([h, *own], axis=-1), layer)
                      for h, layer in zip(frozen, params["views"], strict=True)])

  return SideNetwork(init, views)


def _normalized(x: Float[AnyArray, "batch dim"]) -> Float[Array, "batch dim"]:
  x = jnp.asarray(x, jnp.float32)
  return (x - jnp.mean(x, axis=-1, keepdims=True)) * jax.lax.rsqrt(jnp.var(x, axis=-1, keepdims=True) + _EPS)


@check_arrays
def pool_places(
    hidden: Float[AnyArray, "*places dim"], where: Shaped[AnyArray, "*places"] | None = None
) -> Float[Array, "batch dim"]:
  """The mean over the places that count, tokens of a text or places of a picture, in float32.

  >>> pool_places(jnp.array([[[1.0], [5.0]]]), jnp.array([[True, False]]))
  Array([[1.]], dtype=float32)

  Args:
    hidden: the states of one layer, `[batch, ..., dim]`.
    where: places that count; what stands elsewhere is not read. An example without any gives 0.
  """
  hidden = jnp.asarray(hidden, jnp.float32).reshape(hidden.shape[0], -1, hidden.shape[-1])
  if where is None:
    return jnp.mean(hidden, axis=1)
  kept = jnp.asarray(where).reshape(len(hidden), -1, 1)
  return jnp.sum(jnp.where(kept, hidden, 0), axis=1) / jnp.maximum(jnp.sum(kept, axis=1), 1)


@check_arrays
def average_views(
    views: Float[AnyArray, "views batch outputs"], *, of: Literal["probabilities", "values"] = "probabilities"
) -> Float[Array, "batch outputs"]:
  """What the views say together: the mean of their probabilities, as logarithms, or of their values.

  >>> np.exp(average_views(jnp.array([[[0.0, 0.0]], [[100.0, 0.0]]]))).round(3)  # of [.5, .5] and [1, 0]
  array([[0.75, 0.25]], dtype=float32)

  Args:
    views: logits of a classifier, or values.
    of: "values" for a regression, or for the mean of logits.

  Raises:
    ValueError: another `of`.
  """
  one_of("of", of, ("probabilities", "values"))
  views = jnp.asarray(views, jnp.float32)
  if of == "values":
    return jnp.mean(views, axis=0)
  return jax.nn.logsumexp(jax.nn.log_softmax(views, axis=-1), axis=0) - math.log(len(views))
