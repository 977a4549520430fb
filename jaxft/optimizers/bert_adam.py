"""BERT's own Adam, which leaves the bias correction out."""

import jax
import jax.numpy as jnp
import optax

from jaxft.checks import in_range
from jaxft.optimizers.rates import Tree
from jaxft.signatures import explain_errors


@explain_errors
def scale_by_bert_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> optax.GradientTransformation:
  """`m / (sqrt(v) + eps)`: Adam with running means that start at zero and are not corrected for it.

  Its updates at step t are those of `optax.scale_by_adam` times `(1 - b1^t) / sqrt(1 - b2^t)`: at the defaults 3.2
  times as large at the first step, 6.6 around the twelfth and still 1.26 at the thousandth. On small data, where all
  of training lies within them, that is a main cause of failed runs. Here for comparison: prefer Adam.

  Args:
    b1, b2: decay of the two means.
    eps: BERT's.

  Raises:
    ValueError: b1 or b2 is outside [0, 1), or eps negative.

  Example:
    >>> optimizer = optax.chain(scale_by_bert_adam(), optax.scale(-1e-3))
    >>> params = {"w": jnp.ones(2)}
    >>> updates, state = optimizer.update({"w": jnp.array([1.0, -1.0])}, optimizer.init(params), params)
    >>> np.round(updates["w"], 5)
    Array([-0.00316,  0.00316], dtype=float32)

  Source: the released optimizer of Devlin et al. 2018 (arXiv 1810.04805); its effect in Zhang et al. 2020
  (arXiv 2006.05987) and Tinn et al. 2021 (arXiv 2112.07869).
  """

  for name, value in (("b1", b1), ("b2", b2)):
    in_range(name, value, "[0, 1)")
  in_range("eps", eps, "[0, inf)")

  def init(params: Tree) -> optax.ScaleByAdamState:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

  def update(updates: Tree, state: Tree, params: Tree | None = None):
    del params
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, updates)
    steps = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
    return steps, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

  return optax.GradientTransformation(init, update)
