"""What a training run would cost, before anything is allocated: parameters, bytes a device, operations a step."""

import dataclasses
import math
from typing import Any

import jax

from jaxft.analysis.flops import Flops, count_jaxpr
from jaxft.signatures import explain_errors
from jaxft.training.mesh import place_batch
from jaxft.training.planning.collectives import Collective, collectives
from jaxft.training.planning.placement import Placement, check_placement
from jaxft.training.planning.sizes import bytes_per_device
from jaxft.training.recipe import Recipe
from jaxft.training.state import abstract_state
from jaxft.training.step import make_train_step
from jaxft.tree.boxes import set_aside, weights
from jaxft.tree.partition import count
from jaxft.tree.paths import leaves_with_paths

Tree = Any


@dataclasses.dataclass(frozen=True)
class Compiled:
  """The compiler's own account of one step on one device.

  Attributes:
    flops: its estimate, which counts the body of each scan once.
    arguments, outputs, temporaries: bytes; donated arguments are among both of the first two.
    aliased: bytes of outputs that take the place of donated arguments.
    collectives: what each device sends others, loops multiplied out.
  """

  flops: float
  arguments: int
  outputs: int
  temporaries: int
  aliased: int
  collectives: tuple[Collective, ...] = ()

  @property
  def peak(self) -> int:
    """Bytes that must be there at once: arguments, new outputs and temporaries."""
    return self.arguments + self.outputs - self.aliased + self.temporaries


class DoesNotFit(ValueError):
  """A step takes more memory than a device has, by the compiler's account."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """The cost of training; bytes are those of the device that holds most.

  Attributes:
    devices: number of devices.
    params: the model's own count of parameters.
    trained: parameters that train, those that a method adds among them.
    frozen: parameters that do not; one that is stored in a structured leaf counts as what it stands for.
    trained_bytes, frozen_bytes, optimizer_bytes, batch_bytes: per device.
    gradient_bytes: per device, for as long as the optimizer has not used them.
    flops: of one step on all devices together, loops multiplied out.
    placement: what of the state and the frozen side lies badly on the mesh; None without a mesh.
    compiled: the compiler's account per device; None where `plan` was asked not to compile.
  """

  devices: int
  params: int
  trained: int
  frozen: int
  trained_bytes: int
  frozen_bytes: int
  optimizer_bytes: int
  gradient_bytes: int
  batch_bytes: int
  flops: Flops
  compiled: Compiled | None
  placement: Placement | None = None

  @property
  def share(self) -> float:
    """What trains, over the model's own count, as in `training_cost` and in the summary of a run."""
    return self.trained / self.params

  @property
  def state_bytes(self) -> int:
    """Per device: what stays from step to step."""
    return self.trained_bytes + self.frozen_bytes + self.optimizer_bytes

  def __str__(self) -> str:
    mib = lambda n: f"{n / 2**20:,.1f} MiB"
    lines = [
        f"parameters   {self.trained:,} trained ({self.share:.2%} of the model's {self.params:,}), "
        f"{self.frozen:,} frozen",
        f"per device   {mib(self.state_bytes)} from step to step ({self.devices} devices): trained "
        f"{mib(self.trained_bytes)}, optimizer {mib(self.optimizer_bytes)}, frozen {mib(self.frozen_bytes)}",
        f"             {mib(self.gradient_bytes)} gradients, {mib(self.batch_bytes)} batch",
        f"operations   {self.flops.total:.4g} a step on all devices, {self.flops.matmul:.4g} in matrix products",
    ]
    if self.flops.uncounted:
      lines.append(f"             too low by the insides of: {', '.join(sorted(self.flops.uncounted))}")
    lines += self.placement.lines() if self.placement is not None else []
    if self.compiled is not None:
      lines.append(f"compiled     {mib(self.compiled.peak)} a device at once, {mib(self.compiled.temporaries)} of it "
                   f"temporary; {self.compiled.flops:.4g} operations by the compiler's count (each scan's body once)")
      lines += [f"sends        {mib(c.bytes)} a device by {c.count} {c.kind} over {c.axes}"
                for c in self.compiled.collectives]
    return "\n".join(lines)


@explain_errors
def plan(recipe: Recipe, params: Tree, batch: Any, *, compile: bool = True) -> Plan:
  """Accounts for one training step; allocates nothing, so that the model may be larger than the machine.

  >>> from jaxft.losses import Mean
  >>> from jaxft.transforms import train
  >>> objective = lambda params, batch, key: (Mean.of(jnp.square(batch @ params["kernel"] + params["bias"])), {})
  >>> recipe = Recipe(objective, train("bias"), optax.adam(0.1))
  >>> shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  >>> planned = plan(recipe, {"kernel": shape(1000, 1000), "bias": shape(1000)}, shape(8, 1000), compile=False)
  >>> planned.trained_bytes, planned.optimizer_bytes, planned.flops.matmul  # two moments; no gradient of the kernel
  (4000, 8004, 16000000.0)

  Args:
    recipe: its transform's split must not depend on the params' values; its mesh may be of real, virtual or described
      devices (`jax.experimental.topologies`).
    params: arrays or `jax.ShapeDtypeStruct`s.
    batch: one global batch, arrays or shapes.
    compile: compile for the mesh as well, for the memory that the compiler finds; takes as long as compiling does.

  Raises:
    TypeError: `recipe` is no `Recipe`.
    ValueError: the backend's compiler does not say what a program takes, and `compile` is True.
    DoesNotFit: the compiler refuses the program, since no device of the mesh holds it.
  """
  params, batch = jax.tree.map(_shape, (set_aside(params), batch))
  state, frozen = abstract_state(params, recipe)
  step = make_train_step(recipe)
  compiled = None
  if compile:
    executable = _compiled(step.lower(state, frozen, batch))
    memory, cost = executable.memory_analysis(), executable.cost_analysis()
    if memory is None or cost is None:
      raise ValueError("compile must be False on this backend, whose compiler gives no analysis; got True")
    compiled = Compiled(
        float(cost.get("flops", math.nan)),
        memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes,
        memory.alias_size_in_bytes, () if recipe.mesh is None else collectives(executable, recipe.mesh))
  return Plan(
      devices=1 if recipe.mesh is None else recipe.mesh.size,
      params=count(params),
      trained=count(state.trainable),
      frozen=sum(math.prod(leaf.shape) for _, leaf in leaves_with_paths(weights(frozen)) if leaf is not None),
      trained_bytes=bytes_per_device(state.trainable),
      frozen_bytes=bytes_per_device(frozen),
      optimizer_bytes=bytes_per_device(state.opt_state),
      gradient_bytes=bytes_per_device(state.trainable),
      batch_bytes=bytes_per_device(place_batch(batch, recipe.mesh)),
      flops=count_jaxpr(step.trace(state, frozen, batch).jaxpr),
      compiled=compiled,
      placement=None if recipe.mesh is None else check_placement(
          {"trained": state.trainable, "frozen": frozen, "optimizer": state.opt_state}, recipe.mesh),
  )


def _compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
  try:
    return lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    says = str(e).strip().splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2]
    raise DoesNotFit(f"mesh must hold the step; the compiler says: {says:.300} Cut the parameters over more devices "
                     "(fsdp, tensor), keep less for the backward pass (remat), or take fewer rows or shorter ones"
                     ) from None


def _shape(x: Any) -> jax.ShapeDtypeStruct:
  return x if isinstance(x, jax.ShapeDtypeStruct) else jax.eval_shape(lambda v: v, x)
