"""Which layer knows a property: a linear classifier on a learned mixture of all layers of a frozen model."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Shaped

from jaxft.checks import in_range
from jaxft.finite import require_finite
from jaxft.signatures import explain_errors


class LayerProbe(NamedTuple):
  """A fitted probe.

  Attributes:
    mean: of each layer's features, taken off first.
    scale: of each layer, one number, so that layers of large features do not win by their size.
    bias: of the mixture's softmax.
    query: a vector for each layer, whose product with an item's features is added to the bias; zero in a probe with one
      mixture for all items.
    kernel, intercept: of the classifier.
  """

  mean: Float[Array, "layers dim"]
  scale: Float[Array, " layers"]
  bias: Float[Array, " layers"]
  query: Float[Array, "layers dim"]
  kernel: Float[Array, "dim classes"]
  intercept: Float[Array, " classes"]

  def weights(self, states: Float[Array, "layers *items dim"]) -> Float[Array, "layers *items"]:  # noqa: F821
    """How much of each layer the probe takes for each item; they sum to 1 over the layers."""
    return self._mix(_standardized(states, self.mean, self.scale))

  def logits(self, states: Float[Array, "layers *items dim"]) -> Float[Array, "*items classes"]:
    """`sum_l w_l h_l @ kernel + intercept`."""
    x = _standardized(states, self.mean, self.scale)
    return jnp.einsum("l...d,l...->...d", x, self._mix(x)) @ self.kernel + self.intercept

  def accuracy(
      self, states: Float[Array, "layers *items dim"], labels: Int[Array, " *items"],
      mask: Shaped[Array, " *items"] | None = None,
  ) -> float:
    """The share of items whose label has the highest logit; items where the mask is 0 do not count."""
    logits = self.logits(states)
    require_finite(None if mask is None else mask != 0, logits=logits)
    right = jnp.argmax(logits, axis=-1) == labels
    return float(jnp.average(right, weights=jnp.ones(labels.shape) if mask is None else mask != 0))

  def _mix(self, x: Array) -> Array:
    added = jnp.einsum("l...d,ld->l...", x, self.query)
    return jax.nn.softmax(self.bias.reshape(-1, *[1] * (added.ndim - 1)) + added, axis=0)


@explain_errors
def layer_mixture_probe(
    states: Float[Array, "layers *items dim"], labels: Int[Array, " *items"],
    mask: Shaped[Array, " *items"] | None = None, *, classes: int, per_item: bool = False, penalty: float = 1e-3,
    steps: int = 300, learning_rate: float = 0.05,
) -> LayerProbe:
  """Fits a softmax mixture of the layers and a linear classifier on it, together.

      h = sum_l softmax(s)_l (h_l - mean_l) / scale_l,    logits = h W + c

  Where the mixture puts its weight says where a property is easiest to read: compare with the same probe on a model
  with random weights. Give it a few more items than there are features.

  >>> labels, noise = jnp.array([0, 1] * 8), jnp.sin(jnp.arange(16.0))
  >>> states = jnp.stack([noise, 2.0 * labels - 1])[..., None]  # the second layer holds the label
  >>> probe = layer_mixture_probe(states, labels, classes=2)
  >>> jax.nn.softmax(probe.bias) > 0.5
  Array([False,  True], dtype=bool)

  Args:
    states: of a frozen model, all layers of each item: tokens `[layers, batch, time, dim]`, or texts, pooled.
    labels: from 0.
    mask: 0 at items that do not count, such as padding and all but one token of a word; None counts all. The source
      leaves padding in the loss.
    classes: how many.
    per_item: a mixture of its own for each item, `softmax(s + <query_l, h_l>)`; compare means of `weights` then.
    penalty: on the squares of the classifier and of the queries, beside the mean cross-entropy.
    steps: of Adam, all items in each; the rate falls to zero as a cosine.
    learning_rate: at the start.

  Raises:
    ValueError: labels that do not fit the states, labels out of range, fewer than two classes, no item that counts,
      a state of one that is not finite, or a penalty or learning_rate out of range.

  Source: the probes of Shi et al. 2023, Telly (arXiv 2304.05216), of which the model is not released; a mixture of
  layers after Peters et al. 2018 (arXiv 1802.05365).
  """
  if states.ndim < 3 or states.shape[1:-1] != labels.shape or (mask is not None and mask.shape != labels.shape):
    raise ValueError(
        "states must be [layers, *items, dim], labels and mask [*items]; "
        f"got shapes {states.shape}, {labels.shape} and {None if mask is None else mask.shape}")
  where = jnp.ones(labels.shape, bool) if mask is None else jnp.asarray(mask) != 0
  if classes < 2 or not bool(where.any()):
    raise ValueError(
        f"there must be at least two classes and one item that counts; got {classes} and {int(where.sum())}")
  counted = jnp.where(where, labels, 0)
  if int(counted.min()) < 0 or int(counted.max()) >= classes:
    raise ValueError(f"labels must lie in [0, {classes}); got {int(counted.min())} to {int(counted.max())}")
  in_range("penalty", penalty, "[0, inf)")
  in_range("learning_rate", learning_rate, "(0, inf)")
  layers, dim = states.shape[0], states.shape[-1]
  # Flat, and with nothing at what does not count: padding may hold anything.
  x = jnp.where(where.reshape(-1, 1), states.reshape(layers, -1, dim).astype(jnp.float32), 0.0)
  require_finite(states=x)
  share = (where / where.sum()).reshape(-1)
  mean = jnp.einsum("lnd,n->ld", x, share)
  scale = jnp.sqrt(jnp.einsum("lnd,n->l", jnp.square(x - mean[:, None]), share) / dim)
  start = LayerProbe(
      mean, jnp.maximum(scale, 1e-12), jnp.zeros(layers), jnp.zeros((layers, dim)), jnp.zeros((dim, classes)),
      jnp.zeros(classes))
  return _fit(start, x, counted.reshape(-1), share, per_item, penalty, steps, learning_rate)


@partial(jax.jit, static_argnames=("per_item", "steps"))
def _fit(start, x, labels, share, per_item, penalty, steps, learning_rate):
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

  def loss(trained):
    probe = start._replace(**trained)
    nll = optax.softmax_cross_entropy_with_integer_labels(probe.logits(x), labels)
    return jnp.sum(nll * share) + penalty * (jnp.sum(jnp.square(probe.kernel)) + jnp.sum(jnp.square(probe.query)))

  def step(carry, _) -> Any:
    trained, state = carry
    updates, state = optimizer.update(jax.grad(loss)(trained), state)
    return (optax.apply_updates(trained, updates), state), None

  names = ("bias", "kernel", "intercept", *(("query",) if per_item else ()))
  trained = {name: getattr(start, name) for name in names}
  (trained, _), _ = jax.lax.scan(step, (trained, optimizer.init(trained)), length=steps)
  return start._replace(**trained)


def _standardized(states: Array, mean: Array, scale: Array) -> Array:
  layers, dim, wide = states.shape[0], states.shape[-1], [1] * (states.ndim - 2)
  return (states.astype(jnp.float32) - mean.reshape(layers, *wide, dim)) / scale.reshape(layers, *wide, 1)
