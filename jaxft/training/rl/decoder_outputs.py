"""What a decoder of `jaxft.models` gives a policy loss: log-probabilities of rollouts, and values by a head beside."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.checks import in_range
from jaxft.losses.tokens.linear_log_probs import linear_token_log_probs
from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.linear import linear
from jaxft.signatures import explain_errors
from jaxft.training.rl.rollouts import Rollouts

Params = Any


@explain_errors
def decoder_log_probs(
    config: DecoderConfig, *, temperature: float = 1.0, start: int = 0, chunk: int = 256, **options: Any
) -> Callable[[Params, Rollouts], Array]:
  """A function `(params, rollouts) -> log-probabilities [rows, time]` of the responses' tokens, 0 elsewhere.

  >>> config = DecoderConfig(vocab_size=5, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=4)
  >>> where = jnp.array([[False, True, True]])
  >>> rollouts = Rollouts(jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool), where, jnp.zeros((1, 3)))
  >>> params = jax.tree.map(jnp.zeros_like, decoder.init(jax.random.key(0), config))
  >>> np.array(decoder_log_probs(config)(params, rollouts)).round(3)  # log 1/5
  array([[ 0.   , -1.609, -1.609]], dtype=float32)

  Args:
    config: of the decoder; params may hold structured leaves.
    temperature: > 0, that of the rollouts.
    start: the column where the responses begin; what is before is read and not scored, which saves its logits.
    chunk: positions whose logits are held at once.
    **options: of `decoder.hidden_states`.

  Raises:
    ValueError: temperature or start out of range.
  """
  in_range("temperature", temperature, "(0, inf)")
  in_range("start", start, "[0, inf)")

  def log_probs(params: Params, rollouts: Rollouts) -> Float[Array, "rows time"]:
    hidden = decoder.hidden_states(params, config, rollouts.tokens, mask=rollouts.mask, **options).hidden
    return _scored(params, config, hidden, rollouts, temperature, start, chunk)

  return log_probs


@explain_errors
def decoder_log_probs_and_values(
    config: DecoderConfig, *, temperature: float = 1.0, start: int = 0, chunk: int = 256, shared: bool = True,
    **options: Any,
) -> Callable[[Params, Rollouts], tuple[Array, Array]]:
  """The same for PPO: `({"policy", "value"}, rollouts) -> (log-probabilities, values)`, both `[rows, time]`.

  The value at a token is that of the text before it; at the others it means nothing.

  >>> config = DecoderConfig(vocab_size=5, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=4)
  >>> where = jnp.array([[False, True, True]])
  >>> rollouts = Rollouts(jnp.array([[1, 2, 3]]), jnp.ones((1, 3), bool), where, jnp.zeros((1, 3)))
  >>> params = {"policy": decoder.init(jax.random.key(0), config), "value": init_value_head(config)}
  >>> decoder_log_probs_and_values(config)(params, rollouts)[1]  # a new head gives 0
  Array([[0., 0., 0.]], dtype=float32)

  Args:
    config, temperature, start, chunk, **options: see `decoder_log_probs`.
    shared: the head reads the policy's states; False reads those of a decoder of its own, `params["critic"]`, as
      TL-Training does, which starts as the policy.

  Raises:
    ValueError: temperature or start out of range.
  """
  in_range("temperature", temperature, "(0, inf)")
  in_range("start", start, "[0, inf)")

  def outputs(params: Params, rollouts: Rollouts) -> tuple[Float[Array, "rows time"], Float[Array, "rows time"]]:
    states = lambda params: decoder.hidden_states(
        params, config, rollouts.tokens, mask=rollouts.mask, **options).hidden
    hidden = states(params["policy"])
    read = hidden if shared else states(params["critic"])
    values = linear(read.astype(jnp.float32), params["value"])[..., 0]
    return (_scored(params["policy"], config, hidden, rollouts, temperature, start, chunk),
            jnp.roll(values, 1, axis=1).at[:, 0].set(0.0))

  return outputs


@explain_errors
def init_value_head(config: DecoderConfig, key: Key[Array, ""] | None = None) -> dict[str, Array]:
  """A linear head of one output: zeros, or normal with the standard deviation `1 / sqrt(dim)`.

  >>> config = DecoderConfig(vocab_size=5, dim=4, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=4)
  >>> jax.tree.map(jnp.shape, init_value_head(config))
  {'bias': (1,), 'kernel': (4, 1)}

  Args:
    config: of the decoder whose states it reads.
    key: for random weights; None takes zeros.
  """
  shape = (config.dim, 1)
  kernel = jnp.zeros(shape) if key is None else config.dim**-0.5 * jax.random.normal(key, shape)
  return {"kernel": kernel, "bias": jnp.zeros(1)}


def _scored(
    params: Params, config: DecoderConfig, hidden: Array, rollouts: Rollouts, temperature: float, start: int, chunk: int
) -> Float[Array, "rows time"]:
  """Log-probabilities from the column before `start` on; those before are 0."""
  first = max(start - 1, 0)
  kernel, transposed = decoder.head(params, config)
  scored, _ = linear_token_log_probs(
      hidden[:, first:], kernel, rollouts.tokens[:, first:], rollouts.where[:, first:], temperature=temperature,
      transposed=transposed, chunk=chunk)
  return jnp.pad(scored, ((0, 0), (first, 0)))
