"""Which heads and channels a model's present behaviour rests on: gradients by a gate on each of them, without labels.

    gates = {"heads": jnp.ones((L, H)), "hidden": jnp.ones((L, mlp_dim))}

    def forward(gates, batch, key):                       # the model with its gates and with dropout
      edits = {"layers/attention/heads": [Scale(gates["heads"][..., None]), ...], ...}
      return encoder.embed(params, config, *batch, edits=edits)

    loss = dropout_consistency(forward, lambda a, b: 1 - jnp.sum(a * b, -1))
    importance = normalize_importance(unit_importance(loss, gates, batches, key))
    optimizer = optax.chain(optax.adam(1e-4), scale_updates(damping(trainable, {"**/mlp/up/*": ...})))
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxft.losses.reduction import Mean
from jaxft.signatures import check_arrays, explain_errors
from jaxft.tree.choice import mask
from jaxft.tree.depth import layer_of
from jaxft.tree.paths import Tree, leaves_with_paths, map_with_path

Proxy = Callable[[Tree, Any, jax.Array], Mean]


@check_arrays
def dropout_consistency(
    forward: Callable[[Tree, Any, jax.Array], Array], distance: Callable[[Array, Array], Float[Array, "..."]]
) -> Proxy:
  """How far two passes with dropout of their own are apart: `distance(forward(key_1), forward(key_2))`.

  No pass is held fixed: gradients go through both. Without dropout the passes are one, and every gradient is zero.

  >>> forward = lambda gates, batch, key: gates["units"] * batch * 2 * jax.random.bernoulli(key, 0.5, batch.shape)
  >>> loss = dropout_consistency(forward, lambda a, b: jnp.abs(a - b))
  >>> batch, gates = jnp.ones((1000, 2)), {"units": jnp.array([1.0, 3.0])}
  >>> loss(gates, batch, jax.random.key(0)).value.round()  # half of the entries differ, by 2 or by 6
  Array(2., dtype=float32)

  Args:
    forward: `(gates, batch, key) -> output`, log-probabilities or vectors.
    distance: of two outputs, a value for each token or example. The source's is KL(second || first) of the next token;
      for unit vectors `1 - cosine` is the same up to a factor, the KL of two von Mises-Fisher distributions.

  Returns:
    A loss for `unit_importance`.
  """

  def loss(gates: Tree, batch: Any, key: jax.Array) -> Mean:
    first, second = jax.random.split(key)
    return Mean.of(distance(forward(gates, batch, first), forward(gates, batch, second)))

  return loss


@explain_errors
def unit_importance(
    loss: Proxy, gates: Tree, batches: Iterable[Any], key: Key[Array, ""], *,
    reduce: Literal["abs", "signed"] = "abs",
) -> Tree:
  """`I = mean over batches of |dL / dg|` at gates that are all one: how the loss would change if a unit were scaled.

  `dL / dg_j = sum over tokens of a_j dL / da_j` for the gated activations a_j; no gradient of a weight is formed.

  >>> loss = lambda gates, batch, key: Mean.of(jnp.square(jnp.sum(gates["units"] * batch, -1)))
  >>> batches = [jnp.array([[3.0, 0.0, 1.0]])]
  >>> unit_importance(loss, {"units": jnp.ones(3)}, batches, jax.random.key(0))  # 2 (3 + 0 + 1) a_j
  {'units': Array([24.,  0.,  8.], dtype=float32)}

  Args:
    loss: `(gates, batch, key) -> Mean`: `dropout_consistency(...)`, or the loss of a task for what that task needs.
    gates: a tree of float32 ones, an entry for each unit, `[layers, units]`.
    batches: of equal weight; smaller ones keep more apart what cancels within a batch.
    key: batch i draws from `fold_in(key, i)`.
    reduce: "abs", or "signed": the mean of the signed gradients, which cancel over batches, as in the source's code.

  Raises:
    ValueError: there is no batch, or an unknown `reduce`.

  Source: the fine step of Zhang et al. 2024, CoFiTune (arXiv 2404.10306), after Ke et al. 2023 (arXiv 2302.03241);
  for pruning, with the task's loss, Michel et al. 2019 (arXiv 1905.10650).
  """
  if reduce not in ("abs", "signed"):
    raise ValueError(f"reduce must be abs or signed; got {reduce!r}")
  gradient = jax.jit(jax.grad(lambda gates, batch, key: loss(gates, batch, key).value))
  size = jnp.abs if reduce == "abs" else lambda g: g
  total, count = jax.tree.map(jnp.zeros_like, gates), 0
  for batch in batches:
    step = gradient(gates, batch, jax.random.fold_in(key, count))
    total, count = jax.tree.map(lambda t, g: t + size(g), total, step), count + 1
  if not count:
    raise ValueError("batches must hold at least one batch; got none")
  return jax.tree.map(lambda t: t / count, total)


@explain_errors
def normalize_importance(importance: Tree, *, axis: int = -1) -> Tree:
  """`|tanh((I - mean) / std)|` over the units of each layer, in [0, 1).

  Units far below the mean count as important too, as in the source. Where all units are equal, all get 0.

  >>> normalize_importance({"units": jnp.array([[0.0, 0.0, 0.0, 4.0], [5.0, 5.0, 5.0, 5.0]])})["units"].round(2)
  Array([[0.52, 0.52, 0.52, 0.94],
         [0.  , 0.  , 0.  , 0.  ]], dtype=float32)

  Args:
    importance: of `unit_importance`.
    axis: along which the units of a layer lie.

  Source: Zhang et al. 2024, CoFiTune (arXiv 2404.10306).
  """

  def normalize(x: Array) -> Array:
    centred = x - x.mean(axis, keepdims=True)
    std = jnp.sqrt(jnp.mean(jnp.square(centred), axis, keepdims=True))
    even = std <= 1e-6 * jnp.abs(x).max(axis, keepdims=True)
    return jnp.where(even, 0.0, jnp.abs(jnp.tanh(centred / jnp.where(even, 1.0, std))))

  return jax.tree.map(normalize, importance)


@explain_errors
def combine_importance(*importances: Tree) -> Tree:
  """The largest importance of each unit, of several sources of knowledge to keep.

  >>> combine_importance({"units": jnp.array([0.1, 0.9])}, {"units": jnp.array([0.5, 0.2])})
  {'units': Array([0.5, 0.9], dtype=float32)}
  """
  return jax.tree.map(lambda *xs: jnp.max(jnp.stack(xs), axis=0), *importances)


@explain_errors
def damping(trainable: Tree, importances: Mapping[str, Float[Array, "layers _"]]) -> Tree:
  """Factors `1 - I` for `scale_updates`: what a unit owns, its columns of kernels `[in, out]` and biases, slows down.

  >>> trainable = {"layers": {"up": {"kernel": np.ones((1, 3, 4))}, "norm": {"scale": np.ones((1, 3))}}}
  >>> factors = damping(trainable, {"**/up/kernel": jnp.array([[0.0, 1.0]])})  # two units of two columns each
  >>> factors["layers"]["up"]["kernel"], factors["layers"]["norm"]["scale"]
  (Array([[[1., 1., 0., 0.]]], dtype=float32), Array(1., dtype=float32))

  Args:
    trainable: what trains, arrays or shapes; layers stacked, cut or unrolled.
    importances: by glob, what the last axis of the matched leaves is made of: of `H` heads, each owns a block of `out /
      H` columns of query, key and value; of `out` channels, each its own. With grouped queries give key and value the
      largest importance of each group.

  Returns:
    A tree like `trainable`, 1 where no glob matches.

  Raises:
    ValueError: a glob that matches nothing or leaves outside the layers, two globs for one leaf, or a last axis that
      the units do not divide.

  Put after Adam, this damps; put before it, it does nothing, for Adam divides a constant factor out of the gradient
  again. The source puts it before, and applies it to misaligned rows.
  """
  factors: dict[str, Array] = {}
  leaves = leaves_with_paths(trainable)
  for glob, importance in importances.items():
    for (path, leaf), chosen in zip(leaves, jax.tree.leaves(mask(glob, trainable, name="importances")), strict=True):
      if not chosen:
        continue
      layer, units = layer_of(path, leaf), importance.shape[-1]
      if layer is None or path in factors or leaf.shape[-1] % units:
        why = "lies in no layer" if layer is None else "is matched twice" if path in factors else "is not divided by it"
        raise ValueError(f"importances has {units} units at {glob!r}, but {path} {tuple(leaf.shape)} {why}")
      factor = jnp.repeat(1.0 - importance[layer], leaf.shape[-1] // units, axis=-1)
      inner = leaf.ndim - factor.ndim
      factors[path] = factor.reshape(*factor.shape[:-1], *[1] * inner, factor.shape[-1])
  return map_with_path(lambda path, leaf: None if leaf is None else factors.get(path, jnp.ones(())), trainable)
