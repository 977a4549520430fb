"""Cross-entropy of a linear head, without holding the logits of all positions at once."""

import math
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.leaves import dot
from jaxft.leaves.products import dot_transposed
from jaxft.losses.reduction import count_of
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def linear_cross_entropy(
    hidden: Float[AnyArray, "*batch time dim"],
    head: Any,
    labels: Int[AnyArray, "*batch time"],
    *,
    where: Bool[AnyArray, "*batch time"] | Num[AnyArray, "*batch time"] | None = None,
    transposed: bool = False,
    chunk: int = 256,
) -> tuple[Float[Array, "*batch time"], Float[Array, "*batch time"]]:
  """`logsumexp(hidden @ head) - (hidden @ head)[label]`, per position, in float32.

  Positions are taken `chunk` at a time along the time axis, so that the axes before it keep their sharding; the
  logits held at once are `[..., chunk, vocab]`. The gradient of a position with respect to its own state is linear in
  the cotangent of its loss, so it is formed in the forward pass, while the logits are there, and scaled in the
  backward pass: with a frozen head a training step multiplies by the head twice, as few times as can be. Where the
  head trains, its gradient needs the cotangents, and the backward pass forms the logits of each piece once more (where
  one piece holds all positions, XLA keeps the first). Without differentiation only the losses are computed. The
  products take hidden's dtype, what follows is float32.

  Args:
    hidden: states.
    head: `[dim, vocab]`, or `[vocab, dim]` where `transposed`; an array or a structured leaf.
    labels: the right token of each position, in [0, vocab) where they count; others give NaN.
    where: positions that count, as booleans, or how much, as weights >= 0; the loss and all gradients are zero where it
      is zero, whatever stands there.
    transposed: the head is a tied embedding.
    chunk: positions per piece; the last axis before dim is cut in pieces of nearly equal length.

  Returns:
    `(values, weights)`, float32: values in nats, 0 where the weight is.

  Raises:
    ValueError: shapes that do not fit, or a chunk below 1.

  Example:
    >>> hidden, head = jnp.ones((2, 3)), jnp.zeros((3, 5))
    >>> values, weights = linear_cross_entropy(hidden, head, jnp.array([0, 4]))
    >>> np.array(values).round(3), weights  # log 5
    (array([1.609, 1.609], dtype=float32), Array([1., 1.], dtype=float32))
  """
  check_head("head", head, hidden, transposed)
  if chunk < 1:
    raise ValueError(f"chunk must be at least 1; got {chunk}")
  weights = count_of(where, labels.shape)
  counts = None if where is None else weights != 0
  if counts is not None:
    hidden = jnp.where(counts[..., None], hidden, 0)  # garbage at masked positions must not reach the products
    labels = jnp.where(counts, labels, 0)
  leaves, structure = jax.tree.flatten(head)
  pieces = math.ceil(labels.shape[-1] / chunk)
  contract = dot_transposed if transposed else dot
  nll = cast(Array, _nll(_Head(structure, contract, pieces), hidden, leaves, labels))
  return nll if counts is None else jnp.where(counts, nll, 0.0), weights


def check_head(name: str, head: Any, hidden: Float[AnyArray, "... dim"], transposed: bool) -> None:
  """Raises ValueError where an argument is no head, an array or a structured leaf, that takes these states."""
  shape = getattr(head, "shape", None)
  if shape is None or len(shape) != 2 or 0 in shape:
    got = type(head).__name__ if shape is None else f"one of shape {list(shape)}"
    raise ValueError(f"{name} must be a matrix, an array or a structured leaf; got {got}")
  if shape[-1 if transposed else -2] != hidden.shape[-1]:
    raise ValueError(f"{name} of shape {list(shape)} (transposed={transposed}) does not contract with states of shape "
                     f"{list(hidden.shape)}")


class _Head:
  """What of the call is not an array."""

  def __init__(self, structure, contract, pieces):
    self.structure, self.contract, self.pieces = structure, contract, pieces

  def logits(self, hidden, leaves):
    return self.contract(hidden, self.structure.unflatten(leaves)).astype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nll(head, hidden, leaves, labels):
  return in_pieces(head.pieces, lambda h, y: _losses(head.logits(h, leaves), y)[0], hidden, labels)


def _nll_forward(head, hidden, leaves, labels):
  wants_hidden = hidden.perturbed
  trained = [leaf.value if leaf.perturbed else None for leaf in leaves]
  frozen = [None if leaf.perturbed else leaf.value for leaf in leaves]
  hidden, leaves, labels = hidden.value, [leaf.value for leaf in leaves], labels.value

  def piece(h, y):
    logits, pull = jax.vjp(lambda h: head.logits(h, leaves), h)
    nll, log_sum = _losses(logits, y)
    return nll, pull(_logits_gradient(logits, log_sum, y))[0] if wants_hidden else None

  nll, gradient = in_pieces(head.pieces, piece, hidden, labels)
  kept = None if all(leaf is None for leaf in trained) else (hidden, labels, trained, frozen)
  return nll, (gradient, kept)


def _nll_backward(head, residuals, cotangent):
  gradient, kept = residuals
  to_hidden = None if gradient is None else (gradient * cotangent[..., None]).astype(gradient.dtype)
  if kept is None:
    return to_hidden, None, None
  hidden, labels, trained, frozen = kept

  def piece(total, h, y, g):
    fill = lambda trained: [f if t is None else t for t, f in zip(trained, frozen, strict=True)]
    logits, pull = jax.vjp(lambda trained: head.logits(h, fill(trained)), trained)
    _, log_sum = _losses(logits, y)
    (gradients,) = pull(_logits_gradient(logits, log_sum, y) * g[..., None])
    return jax.tree.map(lambda t, u: t + u.astype(jnp.float32), total, gradients), None

  total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained)
  total = _scan_pieces(head.pieces, piece, total, hidden, labels, cotangent)[0]
  to_leaves = [None if leaf is None else t.astype(leaf.dtype) for t, leaf in zip(total, trained, strict=True)]
  return to_hidden, to_leaves, None


_nll.defvjp(_nll_forward, _nll_backward, symbolic_zeros=True)


def _losses(logits, labels):
  """The losses of one piece, and the log-sum-exp of its logits."""
  log_sum = jax.nn.logsumexp(logits, axis=-1)
  # A comparison in place of a gather: a head whose vocabulary is sharded then needs a sum, not all the logits.
  picked = jnp.sum(jnp.where(_is_label(logits, labels), logits, 0.0), axis=-1)
  known = (labels >= 0) & (labels < logits.shape[-1])  # no logit is picked for another label
  return jnp.where(known, log_sum - picked, jnp.nan), log_sum


def _logits_gradient(logits, log_sum, labels):
  probabilities = jnp.exp(logits - log_sum[..., None])
  return jnp.where(_is_label(logits, labels), probabilities - 1.0, probabilities)


def _is_label(logits, labels):
  return jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]


def in_pieces(pieces, f, *arrays):
  """`f` over pieces of arrays `[..., time, *rest]` (all but hidden have no rest), its outputs put together again."""
  return _scan_pieces(pieces, lambda carry, *piece: (carry, f(*piece)), None, *arrays)[1]


def _scan_pieces(pieces, f, carry, hidden, *arrays):
  if pieces == 1:
    return f(carry, hidden, *arrays)
  axis, time = hidden.ndim - 2, hidden.shape[-2]
  size = math.ceil(time / pieces)

  def cut(x):
    x = jnp.pad(x, [(0, size * pieces - time if i == axis else 0) for i in range(x.ndim)])
    return jnp.moveaxis(x.reshape(*x.shape[:axis], pieces, size, *x.shape[axis + 1:]), axis, 0)

  def paste(x):
    x = jnp.moveaxis(x, 0, axis)
    return jax.lax.slice_in_dim(x.reshape(*x.shape[:axis], pieces * size, *x.shape[axis + 2:]), 0, time, axis=axis)

  carry, out = jax.lax.scan(lambda carry, piece: f(carry, *piece), carry, [cut(x) for x in (hidden, *arrays)])
  return carry, jax.tree.map(paste, out)
