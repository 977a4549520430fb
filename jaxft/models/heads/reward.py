"""Heads that read one number from a model's hidden states: rewards, values, and an MLP over several experts' states."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from jaxft.checks import in_range
from jaxft.models.linear import linear
from jaxft.signatures import AnyArray, check_arrays, explain_errors

Params = dict


@check_arrays
def last_state(
    hidden: Float[AnyArray, "batch time dim"], mask: Shaped[AnyArray, "batch time"] | None = None
) -> Float[Array, "batch dim"]:
  """The state of each row's last real token, wherever its padding is; 0 of a row without one.

  Args:
    hidden: states.
    mask: nonzero at real tokens; None where all are.

  Example:
    >>> last_state(jnp.arange(6.0).reshape(1, 3, 2), jnp.array([[1, 1, 0]]))
    Array([[2., 3.]], dtype=float32)
  """
  if mask is None:
    return jnp.asarray(hidden)[:, -1]
  real = jnp.asarray(mask) != 0
  at = hidden.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
  state = jnp.take_along_axis(jnp.asarray(hidden), at[:, None, None], axis=1)[:, 0]
  return jnp.where(jnp.any(real, axis=1)[:, None], state, 0)


@explain_errors
def init_scalar_head(dim: int, *, key: Key[Array, ""] | None = None) -> Params:
  """A linear head of one output: zeros, or normal numbers of variance 1 / (dim + 1) with a key, and no bias.

  Example:
    >>> init_scalar_head(2)
    {'kernel': Array([[0.],
           [0.]], dtype=float32)}
  """
  in_range("dim", dim, "[1, inf)")
  scale = 0.0 if key is None else (dim + 1) ** -0.5
  key = jax.random.key(0) if key is None else key
  return {"kernel": scale * jax.random.normal(key, (dim, 1))}


@explain_errors
def reward_head(
    params: Params, hidden: Float[AnyArray, "batch time dim"], mask: Shaped[AnyArray, "batch time"] | None = None
) -> Float[Array, " batch"]:
  """One reward for each row, read from its last real token.

  Args:
    params: `{'kernel': [dim, 1]}`, with a `bias` or without; see `init_scalar_head`.
    hidden: states of the whole text, prompt and response.
    mask: nonzero at real tokens.

  Example:
    >>> reward_head({"kernel": jnp.ones((2, 1))}, jnp.arange(6.0).reshape(1, 3, 2), jnp.array([[1, 1, 0]]))
    Array([5.], dtype=float32)
  """
  return linear(last_state(hidden, mask), params)[:, 0]


@explain_errors
def value_head(params: Params, hidden: Float[AnyArray, "batch time dim"]) -> Float[Array, "batch time"]:
  """One value for each token, as `jaxft.losses.gae` and `clipped_value_loss` read them.

  Args:
    params: see `init_scalar_head`.
    hidden: states.

  Example:
    >>> value_head({"kernel": jnp.ones((2, 1))}, jnp.arange(4.0).reshape(1, 2, 2))
    Array([[1., 5.]], dtype=float32)
  """
  return linear(jnp.asarray(hidden), params)[..., 0]


@explain_errors
def init_aggregator(key: Key[Array, ""], experts: int, dim: int) -> Params:
  """`{'0', '1', 'slope'}`: the MLP of `aggregate_experts`, as PyTorch starts it, PReLU's slope at 1/4.

  Example:
    >>> jax.tree.map(jnp.shape, init_aggregator(jax.random.key(0), 3, 8))
    {'0': {'bias': (8,), 'kernel': (24, 8)}, '1': {'bias': (1,), 'kernel': (8, 1)}, 'slope': ()}
  """
  first, second = jax.random.split(key)

  def dense(key: Array, m: int, n: int) -> Params:
    uniform = lambda key, *shape: jax.random.uniform(key, shape, minval=-1 / math.sqrt(m), maxval=1 / math.sqrt(m))
    of_kernel, of_bias = jax.random.split(key)
    return {"kernel": uniform(of_kernel, m, n), "bias": uniform(of_bias, n)}

  return {"0": dense(first, experts * dim, dim), "1": dense(second, dim, 1), "slope": jnp.float32(0.25)}


@check_arrays
def aggregate_experts(params: Params, states: Float[AnyArray, "experts batch dim"]) -> Float[Array, " batch"]:
  """`W2 PReLU(W1 [z_1; ...; z_n] + b1) + b2`: the reward that an MLP reads from all experts' states.

  The experts do not change while it trains, so that their states are computed once.

  Args:
    params: see `init_aggregator`.
    states: of each expert the state of the last real token.

  Example:
    >>> params = init_aggregator(jax.random.key(0), 3, 8)
    >>> aggregate_experts(params, jnp.ones((3, 2, 8))).shape
    (2,)

  Source: Quan 2024, DMoERM (arXiv 2403.01197), inner layer.
  """
  experts, batch, dim = states.shape
  x = linear(jnp.moveaxis(jnp.asarray(states), 0, 1).reshape(batch, experts * dim), params["0"])
  x = jnp.where(x >= 0, x, params["slope"] * x)
  return linear(x, params["1"])[:, 0]
