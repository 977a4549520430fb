"""`Recipe`: what a run is made of. What starts a state, makes a step, plans and counts takes it whole."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxft.losses.reduction import Mean, Terms
from jaxft.training.mesh import check_mesh
from jaxft.training.sharding import Rules
from jaxft.transforms.protocol import ParamTransform, check_transform
from jaxft.tree.paths import Tree

# (params, batch, key) -> (the loss as a sum and a weight, or as several with their scales; metrics by name)
Objective = Callable[[Tree, Any, jax.Array], tuple[Mean | Terms, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What is minimized, what trains, by which optimizer; and how it is computed.

      recipe = Recipe(objective, lora("layers/**/kernel"), optax.adamw(1e-4))
      state, frozen = init_state(jax.random.key(0), params, recipe)
      step = make_train_step(recipe)

  Attributes:
    objective: `(params, batch, key) -> (Mean, metrics)`, or `Terms` in place of the `Mean`; metrics are `Mean`s or
      scalars, and a scalar is averaged over micro-batches by their weight. Where it multiplies through
      `jaxft.leaves.dot`, structured leaves keep cheap.
    transform: what trains: its `split` runs once, its `join` in the loss.
    optimizer: any optax transformation; it may take `params`. It sees only what trains.
    mesh: where params, state and batches lie; None for one device.
    rules: partition rules for the params (`jaxft.training.sharding`); what is derived from a leaf inherits its spec.
    accumulate: number of micro-batches of a step, scanned one after the other.
    compute_dtype: floating arrays of the joined params are cast to it inside the loss (bfloat16 over a float32
      state); a structured leaf with its own `astype` is asked. None computes in the dtypes of the params.
    frozen_dtype: in which frozen weights are held that the transform leaves as they were given, where what is computed
      in a narrow dtype need not hold them in a wide one. None holds them as they are.

  Raises:
    TypeError: `objective` cannot be called, or `transform`, `optimizer` or `mesh` is of the wrong type.
    ValueError: accumulate < 1, or compute_dtype or frozen_dtype is no floating type.
  """

  objective: Objective
  transform: ParamTransform
  optimizer: optax.GradientTransformation | optax.MultiSteps
  _: dataclasses.KW_ONLY
  mesh: Mesh | None = None
  rules: Rules = ()
  accumulate: int = 1
  compute_dtype: Any | None = None
  frozen_dtype: Any | None = None

  def __post_init__(self):
    if not callable(self.objective):
      raise TypeError(
          f"objective must be a function (params, batch, key) -> (Mean, metrics); got {self.objective!r:.80}")
    check_transform(self.transform)
    optimizer = self.optimizer
    if isinstance(optimizer, type) or not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
      raise TypeError(f"optimizer must be an optax transformation, with init and update; got {optimizer!r:.80}")
    check_mesh(self.mesh)
    if not (isinstance(self.accumulate, int) and self.accumulate >= 1):
      raise ValueError(f"accumulate must be an integer >= 1; got {self.accumulate!r}")
    for name, dtype in (("compute_dtype", self.compute_dtype), ("frozen_dtype", self.frozen_dtype)):
      if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating type; got {dtype}")


def check_recipe(recipe: Recipe) -> None:
  """Raises TypeError where it is no `Recipe`, before anything is split or traced."""
  if not isinstance(recipe, Recipe):
    raise TypeError(f"recipe must be a Recipe(objective, transform, optimizer); got {recipe!r:.80}")
