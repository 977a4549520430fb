"""Bottleneck adapters: a small MLP beside or behind a sub-module, and MAM, which joins one with a prefix."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxft.adapters.dense import Dense, affine
from jaxft.adapters.prefix import Config, prefix
from jaxft.adapters.protocol import Adapter, chain_adapters
from jaxft.checks import one_of
from jaxft.models.decoder import DecoderConfig
from jaxft.signatures import explain_errors

Activation = Callable[[Array], Array]
SITES = ("layers/attention/heads", "layers/attention/out", "layers/mlp/out")


@partial(
    jax.tree_util.register_dataclass, data_fields=["down", "up", "scale"], meta_fields=["activation"],
)
@dataclasses.dataclass(frozen=True)
class Sequential:
  """`h + scale * activation(h @ down) @ up`, h the output of the sub-module."""

  down: Dense
  up: Dense
  scale: Any
  activation: Activation

  def __call__(self, x: Array) -> Array:
    return x + _change(self, x.reshape(*x.shape[:2], -1)).reshape(x.shape)


@partial(
    jax.tree_util.register_dataclass, data_fields=["down", "up", "scale"], meta_fields=["activation"],
)
@dataclasses.dataclass(frozen=True)
class Parallel:
  """`h + scale * activation(x @ down) @ up`, x the input of the sub-module."""

  down: Dense
  up: Dense
  scale: Any
  activation: Activation

  reads_input = True

  def __call__(self, x: Array, source: Array) -> Array:
    return x + _change(self, source).reshape(x.shape)


def _change(edit: Sequential | Parallel, x: Array) -> Array:
  return edit.scale.astype(x.dtype) * affine(edit.activation(affine(x, edit.down)), edit.up)


@explain_errors
def bottleneck(
    config: Config,
    rank: int,
    *,
    site: str = "layers/mlp/out",
    insertion: Literal["parallel", "sequential"] = "parallel",
    scale: float = 1.0,
    learn_scale: bool = False,
    activation: Activation = jax.nn.relu,
    init: Literal["zero_up", "normal"] = "zero_up",
    bias: bool = True,
) -> Adapter:
  """A bottleneck adapter in every layer: `h + s * activation(z @ down) @ up`, z the sub-module's output or its input.

  Houlsby's adapter is two sequential ones, at `layers/attention/out` and `layers/mlp/out`, joined by `chain_adapters`;
  Pfeiffer's is the latter alone. Params: `{'layers': {'adapter': {'down', 'up'}}}`, kernels `[L, d, rank]` and
  `[L, rank, out]`, and `scale [L]` where it trains.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> params = jax.eval_shape(bottleneck(config, rank=2).init, jax.random.key(0))["layers"]["adapter"]
  >>> jax.tree.map(lambda x: x.shape, params)
  {'down': {'bias': (3, 2), 'kernel': (3, 4, 2)}, 'up': {'bias': (3, 4), 'kernel': (3, 2, 4)}}

  Args:
    config: of the model.
    rank: width r of the bottleneck.
    site: where it adds: "layers/mlp/out", "layers/attention/out", or "layers/attention/heads", the heads together
      before the output projection.
    insertion: "sequential" reads what it changes, "parallel" the input of the sub-module. On the decoder that is the
      normed stream; on the encoder, whose norms come last, the stream itself.
    scale: s, fixed, or the start of a learned one; the paper takes 4 or 2 for a parallel adapter of the MLP.
    learn_scale: train s, one number a layer.
    activation: relu, or any other.
    init: "zero_up": down uniform in ±1/sqrt(d), up zero, an identity at the start; "normal": N(0, 0.02^2) for both.
    bias: biases on both maps; they start at zero.

  Raises:
    ValueError: rank below 1, or another site, insertion or init.

  Sources: Houlsby et al. 2019 (arXiv 1902.00751); parallel and scaled, He et al. 2021 (arXiv 2110.04366). Without the
  dropout on the hidden units and the optional layer norms of its code.
  """
  if rank < 1:
    raise ValueError(f"rank must be at least 1; got {rank}")
  one_of("site", site, SITES)
  one_of("insertion", insertion, ("parallel", "sequential"))
  one_of("init", init, ("zero_up", "normal"))
  layers, dim = config.num_layers, config.dim
  wide = config.num_heads * config.head_dim if isinstance(config, DecoderConfig) else dim
  n_out = wide if site == "layers/attention/heads" else dim
  n_in = dim if insertion == "parallel" else n_out

  def start(key: jax.Array) -> dict[str, Any]:
    first, second = jax.random.split(key)
    if init == "zero_up":
      bound = 1 / math.sqrt(n_in)
      down = jax.random.uniform(first, (layers, n_in, rank), jnp.float32, -bound, bound)
      up = jnp.zeros((layers, rank, n_out))
    else:
      down, up = (0.02 * jax.random.normal(k, s) for k, s in (
          (first, (layers, n_in, rank)), (second, (layers, rank, n_out))))
    params: dict[str, Any] = {"down": {"kernel": down}, "up": {"kernel": up}}
    if bias:
      params["down"]["bias"], params["up"]["bias"] = jnp.zeros((layers, rank)), jnp.zeros((layers, n_out))
    if learn_scale:
      params["scale"] = jnp.full(layers, scale)
    return {"layers": {"adapter": params}}

  def edits(params: dict[str, Any]) -> dict[str, Sequential | Parallel]:
    p = params["layers"]["adapter"]
    cls = Parallel if insertion == "parallel" else Sequential
    return {site: cls(p["down"], p["up"], p["scale"] if learn_scale else jnp.full(layers, scale), activation)}

  return Adapter(start, edits)


@explain_errors
def mam(
    config: Config, *, length: int = 30, rank: int = 512, scale: float = 4.0, hidden: int | None = 800
) -> Adapter:
  """The mix-and-match adapter: a short prefix at the attention, and a wide scaled parallel adapter at the MLP.

  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> adapter = mam(config, length=5, rank=2, hidden=None)
  >>> sorted(adapter.edits(adapter.init(jax.random.key(0))))
  ['layers/attention/key', 'layers/attention/value', 'layers/mlp/out']

  Args:
    config: of the model.
    length, hidden: of the prefix and its MLP.
    rank, scale: of the adapter. The paper's other setting, for classification: length 16, rank 16, scale 2.

  Source: He et al. 2021 (arXiv 2110.04366).
  """
  return chain_adapters(prefix(config, length, hidden=hidden), bottleneck(config, rank, scale=scale))


@explain_errors
def merge_into_mlp(mlp: dict[str, Any], params: dict[str, Any], *, scale: float = 1.0) -> dict[str, Any]:
  """The MLP with a parallel adapter's units added to its own: exact where it has no gate and the same activation.

      up [L, d, f] -> [L, d, f + r],   down [L, f, d] -> [L, f + r, d] with s * up of the adapter below

  >>> mlp = {"up": {"kernel": jnp.ones((1, 1, 2))}, "down": {"kernel": jnp.ones((1, 2, 1))}}
  >>> adapter = {"down": {"kernel": jnp.full((1, 1, 1), 5.0)}, "up": {"kernel": jnp.full((1, 1, 1), 7.0)}}
  >>> merged = merge_into_mlp(mlp, {"layers": {"adapter": adapter}}, scale=2.0)
  >>> merged["up"]["kernel"].ravel(), merged["down"]["kernel"].ravel()  # a third hidden unit
  (Array([1., 1., 5.], dtype=float32), Array([ 1.,  1., 14.], dtype=float32))

  Args:
    mlp: `{'up': {'kernel', 'bias'}, 'down': {...}}`, arrays, stacked as the adapter's are.
    params: of `bottleneck`, parallel, at "layers/mlp/out".
    scale: the adapter's, where it is not among its params.

  Raises:
    ValueError: the MLP has a gate.
  """
  if "gate" in mlp:
    raise ValueError("mlp has a gate: a parallel adapter has none, and cannot be merged into it")
  p = params["layers"]["adapter"]
  s = jnp.reshape(p.get("scale", scale), (-1, 1))
  bias = lambda dense: dense.get("bias", jnp.zeros((*dense["kernel"].shape[:-2], dense["kernel"].shape[-1])))
  join = lambda x, y, axis: jnp.concatenate([x, y.astype(x.dtype)], axis=axis)
  return {
      "up": {
          "kernel": join(mlp["up"]["kernel"], p["down"]["kernel"], -1),
          "bias": join(bias(mlp["up"]), bias(p["down"]), -1),
      },
      "down": {
          "kernel": join(mlp["down"]["kernel"], s[..., None] * p["up"]["kernel"], -2),
          "bias": bias(mlp["down"]) + s * bias(p["up"]),
      },
  }
