"""Weight decay towards the pretrained weights instead of towards zero."""

from typing import Any

import jax
import optax

from jaxft.checks import in_range
from jaxft.optimizers.rates import Tree
from jaxft.signatures import explain_errors
from jaxft.tree.paths import path_of


@explain_errors
def decay_to_reference(rate: float, reference: Tree) -> optax.GradientTransformation:
  """Adds `rate * (params - reference)` to the updates: where `optax.add_decayed_weights` stands, with another target.

      optax.chain(optax.scale_by_adam(), decay_to_reference(0.01, start), optax.scale_by_learning_rate(1e-4))

  Decoupled, so that each step moves the weights a share `learning rate * rate` of the way back, however large their
  gradients are; as a penalty in the loss, which Adam rescales, it is `jaxft.losses.l2_to_reference`.

  Args:
    rate: of the decay, at least 0.
    reference: a tree like what trains. Low-rank factors stand for a change: for them plain decay does the same.

  Raises:
    ValueError: rate is negative; when updating, params are not given or have other shapes than the reference.

  Example:
    >>> reference, params = {"w": jnp.zeros(2)}, {"w": jnp.array([1.0, -2.0])}
    >>> optimizer = decay_to_reference(0.1, reference)
    >>> updates, state = optimizer.update({"w": jnp.zeros(2)}, optimizer.init(params), params)
    >>> updates["w"]
    Array([ 0.1, -0.2], dtype=float32)

  Source: Wiese et al. 2017 (arXiv 1706.03610); in fine-tuning BERT, Zhang et al. 2020 (arXiv 2006.05987).
  """
  in_range("rate", rate, "[0, inf)")

  def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
    if params is None:
      raise ValueError("params must be given to update: decay_to_reference reads them")

    def pull(keys: tuple[Any, ...], u: Any, p: Any, start: Any) -> Any:
      if p.shape != start.shape:
        raise ValueError(f"reference has {start.shape} at {path_of(keys)}, params {p.shape}")
      return u + (rate * (p - start)).astype(u.dtype)

    return jax.tree_util.tree_map_with_path(pull, updates, params, reference), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
