"""The training step, made once from an objective, an optimizer, a transform and a mesh."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from jaxft.leaves.dropout import seed_dropout
from jaxft.losses.reduction import Mean, Terms
from jaxft.signatures import explain_errors
from jaxft.training.mesh import batch_size, check_rows, cut_rows, merge_scalars, place_batch, under_mesh
from jaxft.training.recipe import Recipe, check_recipe
from jaxft.training.state import TrainState
from jaxft.tree.paths import array_paths, is_float, is_structured

Tree = Any
Metrics = dict[str, Any]
RESERVED = ("loss", "weight", "grad_norm", "update_norm")


class TrainStep:
  """`(state, frozen, batch) -> (state, metrics)`, compiled at the first call; see `make_train_step`."""

  def __init__(self, step: Callable[..., Any], *, mesh: Mesh | None, accumulate: int, donate: bool):
    self._step, self.mesh, self.accumulate, self._donate = step, mesh, accumulate, donate
    self._compiled: dict[Any, Any] = {}

  def __repr__(self) -> str:
    mesh = "one device" if self.mesh is None else ", ".join(f"{n}={k}" for n, k in self.mesh.shape.items())
    return f"TrainStep(on {mesh}, accumulate={self.accumulate}, programs compiled: {len(self._compiled)})"

  def __call__(self, state: TrainState, frozen: Tree, batch: Any) -> tuple[TrainState, Metrics]:
    batch = self._checked(batch)
    return self._jitted(state)(state, frozen, batch)

  def lower(self, state: TrainState, frozen: Tree, batch: Any) -> jax.stages.Lowered:
    """The step lowered for these arguments, arrays or shapes: `.compile()` gives its cost and its memory."""
    return self._jitted(state).lower(state, frozen, self._checked(batch))

  def trace(self, state: TrainState, frozen: Tree, batch: Any) -> jax.stages.Traced:
    """The step traced for these arguments; `.jaxpr` is what `jaxft.analysis.flops` counts."""
    return self._jitted(state).trace(state, frozen, self._checked(batch))

  def _checked(self, batch: Any) -> Any:
    batch = place_batch(batch, self.mesh)
    if self.accumulate > 1:
      rows = batch_size(batch)
      if self.mesh is not None:
        check_rows(rows, self.mesh, self.accumulate)
      elif rows % self.accumulate:
        raise ValueError(f"accumulate={self.accumulate} must divide the batch; got {rows} rows")
    return batch

  def _jitted(self, state: TrainState) -> Any:
    donate = (0,) if self._donate else ()
    if self.mesh is None:
      shardings = None
    else:
      # The state must leave with the shardings it came with; left to the compiler they may change after the first
      # step, and the second would compile again.
      leaves, structure = jax.tree.flatten(state)
      shardings = (structure, tuple(x.sharding for x in leaves))
      for i, sharding in enumerate(shardings[1]):
        if not (isinstance(sharding, NamedSharding) and sharding.mesh == self.mesh):
          path = array_paths(state)[i][0]
          raise ValueError(f"state leaf {path} lies on {sharding}, not on the step's mesh {self.mesh}; "
                           "make the state with init_state of the same recipe")
    if shardings not in self._compiled:
      out = {}
      if self.mesh is not None and shardings is not None:
        out["out_shardings"] = (jax.tree.unflatten(*shardings), NamedSharding(self.mesh, PartitionSpec()))
      self._compiled[shardings] = jax.jit(self._step, donate_argnums=donate, **out)
    return self._compiled[shardings]


@explain_errors
def make_train_step(recipe: Recipe, *, donate: bool = True) -> TrainStep:
  """Makes the step that takes one batch and one optimizer update.

      params = seed_dropout(join(frozen, trainable), key_t)        key_t = fold_in(state.key, state.step)
      g      = grad of  sum_k total_k / sum_k weight_k             over micro-batches k, by `trainable` alone

  The weight is a constant of the gradient: it counts examples or tokens. An objective of several means (`Terms`) gives
  `sum_i scale_i sum_k total_ik / sum_k weight_ik`, each over its own weight: with micro-batches the weights are counted
  first, by a pass of which the compiler leaves the counting alone where they do not hang on the params. With
  `accumulate=k` micro-batch j takes rows j, j + k, j + 2k, ..., so that each device's rows stay where they are, and
  draws from `fold_in(key_t, j)`.
  Clipping belongs to the optimizer (`optax.chain(optax.clip_by_global_norm(1.0), ...)`): it sees only what trains.

  A batch of weight 0, in which nothing counts, leaves what trains and the optimizer's state bit for bit as they are:
  without a gradient, decay and momentum would still move them. The step is counted, so that the draws go on.

  >>> from jaxft.training import init_state
  >>> from jaxft.transforms import full
  >>> objective = lambda params, batch, key: (Mean.of(jnp.square(params["w"] - batch)), {})
  >>> recipe = Recipe(objective, full(), optax.sgd(0.25))
  >>> state, frozen = init_state(jax.random.key(0), {"w": jnp.array(0.0)}, recipe)
  >>> state, metrics = make_train_step(recipe)(state, frozen, jnp.array([1.0, 3.0]))
  >>> state.trainable, metrics["loss"], metrics["grad_norm"]  # 0 + 0.25 * 4, (1 + 9) / 2, (2 + 6) / 2
  ({'w': Array(1., dtype=float32)}, Array(5., dtype=float32), Array(4., dtype=float32))

  Args:
    recipe: objective, transform, optimizer, and how they are computed.
    donate: reuse the state's memory; the state passed in is then no longer valid.

  Returns:
    The step. Its metrics are float32 scalars on device: `loss`, `weight` (the summed weight; of `Terms` that of the
    first), `grad_norm` and `update_norm` (both of what trains only), and the objective's own. In the step in which what
    trains stops being finite, `loss`, `grad_norm` or `update_norm` is not finite either: `fit` reads these to stop.

  Raises:
    TypeError: `recipe` is no `Recipe`.
    ValueError: when the step is called: a batch that does not divide by `accumulate` and the devices, or an
      objective's metric with one of the names above.
  """
  check_recipe(recipe)
  objective, transform, optimizer, mesh = recipe.objective, recipe.transform, recipe.optimizer, recipe.mesh
  accumulate, compute_dtype = recipe.accumulate, recipe.compute_dtype

  def evaluated(trainable: Tree, frozen: Tree, batch: Any, key: jax.Array) -> tuple[Mean | Terms, Metrics]:
    params = transform.join(frozen, trainable)
    if compute_dtype is not None:
      params = cast_floating(params, compute_dtype)
    dropout_key, objective_key = jax.random.split(key)
    with under_mesh(mesh):
      found, metrics = objective(seed_dropout(params, dropout_key), batch, objective_key)
    if not isinstance(found, Mean | Terms):
      raise TypeError(f"objective must return (Mean, metrics); its first value is a {type(found).__name__}")
    taken = [name for name in metrics if name in RESERVED]
    if taken:
      raise ValueError(f"metrics of the objective may not be named {taken}: the step reports these itself")
    constant = lambda mean: Mean(mean.total, jax.lax.stop_gradient(mean.weight))
    if isinstance(found, Terms):
      return Terms(tuple(map(constant, found.means)), found.scales), metrics
    return constant(found), metrics

  def whole(state: TrainState, frozen: Tree, batch: Any, key: jax.Array) -> tuple[Mean | Terms, Metrics, Tree]:
    def loss(trainable: Tree) -> tuple[Array, tuple[Mean | Terms, Metrics]]:
      found, metrics = evaluated(trainable, frozen, batch, key)
      return found.value, (found, metrics)

    (_, (found, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(state.trainable)
    return found, metrics, grads

  def scanned(state: TrainState, frozen: Tree, batch: Any, key: jax.Array) -> tuple[Mean | Terms, Metrics, Tree]:
    parts = jnp.arange(accumulate), cut_rows(batch, accumulate, mesh)
    of_part = lambda trainable, j, part: evaluated(
        trainable, frozen, merge_scalars(part, batch), jax.random.fold_in(key, j))
    shapes, _ = jax.eval_shape(of_part, state.trainable, *jax.tree.map(lambda x: x[0], parts))
    several, counted = isinstance(shapes, Terms), None
    if several:
      weights_of = lambda inputs: [m.weight for m in cast(Terms, of_part(state.trainable, *inputs)[0]).means]
      weights = jax.lax.map(weights_of, parts)
      counted = [jnp.sum(w) for w in weights]

    def micro(carry: Any, inputs: Any) -> tuple[Any, Any]:
      def loss(trainable: Tree) -> tuple[Array, tuple[Any, Metrics]]:
        found, metrics = of_part(trainable, *inputs)
        if not isinstance(found, Terms):
          return found.total, (([found], []), metrics)
        assert counted is not None
        over_all = tuple(Mean(m.total, w) for m, w in zip(found.means, counted, strict=True))
        scales = [jnp.asarray(scale, jnp.float32) for scale in found.scales]
        return Terms(over_all, found.scales).value, (([*found.means], scales), metrics)

      (_, ((means, scales), metrics)), g = jax.value_and_grad(loss, has_aux=True)(state.trainable)
      weight = means[0].weight
      metrics = {k: v if isinstance(v, Mean) else Mean(v * weight, weight) for k, v in metrics.items()}
      totals, grads = carry
      totals = [a + b for a, b in zip(totals, means, strict=True)]
      return (totals, jax.tree.map(lambda s, x: s + x.astype(s.dtype), grads, g)), (scales, metrics)

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), state.trainable)
    zero = [Mean.zero() for _ in (shapes.means if isinstance(shapes, Terms) else [shapes])]
    (means, grads), (scales, metrics) = jax.lax.scan(micro, (zero, start), parts)
    found = Terms(tuple(means), tuple(scale[0] for scale in scales)) if several else means[0]
    scale = 1.0 if several else 1.0 / jnp.maximum(means[0].weight, jnp.finfo(jnp.float32).tiny)
    grads = jax.tree.map(lambda g, x: (g * scale).astype(x.dtype), grads, state.trainable)
    return found, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics), grads

  gradient = whole if accumulate == 1 else scanned

  def update(state: TrainState, grads: Tree) -> tuple[Tree, Tree, Float[Array, ""]]:
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    return optax.apply_updates(state.trainable, updates), opt_state, norm(updates)

  def held(state: TrainState, grads: Tree) -> tuple[Tree, Tree, Float[Array, ""]]:
    as_updated = jax.eval_shape(update, state, grads)
    kept = (state.trainable, state.opt_state, jnp.zeros((), jnp.float32))
    return jax.tree.map(lambda old, new: jnp.asarray(old, new.dtype), kept, as_updated)

  def branch(counts: Bool[Array, ""], state: TrainState, grads: Tree) -> tuple[Tree, Tree, Float[Array, ""]]:
    return jax.lax.cond(counts, update, held, state, grads)

  def loop(counts: Bool[Array, ""], state: TrainState, grads: Tree) -> tuple[Tree, Tree, Float[Array, ""]]:
    def turn(carry: Any) -> Any:
      _, trainable, opt_state, _ = carry
      return False, *update(state._replace(trainable=trainable, opt_state=opt_state), grads)

    return jax.lax.while_loop(lambda carry: carry[0], turn, (counts, *held(state, grads)))[1:]

  def update_if(counts: Bool[Array, ""], state: TrainState, grads: Tree) -> tuple[Tree, Tree, Float[Array, ""]]:
    # A select of each array would read and write once more what the update made. Of a branch a CPU copies the new
    # params, which takes a twentieth of a full step's time and their memory; of a loop of one turn a TPU does so.
    return jax.lax.platform_dependent(counts, state, grads, cpu=loop, default=branch)

  def step(state: TrainState, frozen: Tree, batch: Any) -> tuple[TrainState, Metrics]:
    found, metrics, grads = gradient(state, frozen, batch, jax.random.fold_in(state.key, state.step))
    weights = [mean.weight for mean in found.means] if isinstance(found, Terms) else [found.weight]
    counts = functools.reduce(jnp.logical_or, [weight != 0 for weight in weights])  # NaN counts, and shows
    trainable, opt_state, moved = update_if(counts, state, grads)
    values = {k: v.value if isinstance(v, Mean) else v for k, v in metrics.items()}
    values |= {"loss": found.value, "weight": weights[0], "grad_norm": norm(grads)}
    values["update_norm"] = jnp.where(_in_range((trainable, opt_state)), moved, jnp.nan)
    values = {k: jnp.asarray(v, jnp.float32) for k, v in values.items()}
    return TrainState(state.step + 1, trainable, opt_state, state.key), values

  return TrainStep(step, mesh=mesh, accumulate=accumulate, donate=donate)


def norm(tree: Tree) -> Float[Array, ""]:
  """The Euclidean norm of all elements of a tree, summed in float32."""
  return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))


def _in_range(tree: Tree) -> Bool[Array, ""]:
  """False where an array of a short range, such as float16's, has overflowed.

  Others are not looked at: what overflows float32 or bfloat16, or their squares, has overflowed a norm before.
  """
  floating = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  narrow = [x for x in floating if float(jnp.finfo(x.dtype).max) < 1e38]
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in narrow])) if narrow else jnp.array(True)


@explain_errors
def cast_floating(params: Tree, dtype: Any) -> Tree:
  """Casts the floating arrays of a params tree; all else stays, and a leaf with its own `astype` is asked.

  >>> params = {"kernel": jnp.ones(2), "ids": jnp.arange(2)}
  >>> jax.tree.map(lambda x: x.dtype.name, cast_floating(params, jnp.bfloat16))
  {'ids': 'int32', 'kernel': 'bfloat16'}

  Args:
    params: a tree of arrays and structured leaves.
    dtype: a floating one.
  """

  def cast(x: Any) -> Any:
    return x.astype(dtype) if is_structured(x) or is_float(x) else x

  return jax.tree.map(cast, params, is_leaf=lambda x: is_structured(x) and hasattr(x, "astype"))
