"""What `finetune` and `plan` have in common: the mesh, the objective and the recipe that the options describe."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxft.cli.choices import DTYPES, METHODS, SCHEDULES, loss_name, make_optimizer, pick
from jaxft.cli.objectives import contrastive, language
from jaxft.cli.options import Compute, Finetune
from jaxft.formats.names import is_decoder
from jaxft.models.remat import POLICIES
from jaxft.training import DECODER_RULES, ENCODER_RULES, make_mesh
from jaxft.training.step import Objective


def check_options(options: Finetune) -> None:
  """Raises ValueError for what is wrong with the options by themselves, before anything is read."""
  pick("method", options.method.method, METHODS)
  pick("schedule", options.optimization.schedule, SCHEDULES)
  pick("dtype", options.compute.dtype, DTYPES)
  pick("remat", options.compute.remat, POLICIES)
  _check_finite(options)
  for name, value in (
      ("steps", options.optimization.steps), ("batch_size", options.optimization.batch_size),
      ("accumulate", options.optimization.accumulate), ("checkpoint_every", options.output.checkpoint_every),
      ("keep", options.output.keep), ("eval_every", options.output.eval_every), ("log_every", options.output.log_every),
  ):
    if value is not None and value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")
  if options.optimization.steps is None and not options.optimization.epochs > 0:
    raise ValueError(f"epochs must be > 0; got {options.optimization.epochs}")
  if options.loss.temperature is not None and not options.loss.temperature > 0:
    raise ValueError(f"temperature must be > 0; got {options.loss.temperature}")
  if options.examples.pack and options.optimization.steps is None:
    raise ValueError("--pack needs --steps: how many rows an epoch takes is not known before packing")


def _check_finite(options: Finetune) -> None:
  """Raises ValueError for the first option of any group that is NaN or infinite."""
  for group in dataclasses.fields(options):
    if dataclasses.is_dataclass(values := getattr(options, group.name)):
      for name, value in dataclasses.asdict(values).items():
        if isinstance(value, float) and not math.isfinite(value):
          raise ValueError(f"{name} must be finite; got {value}")


def mesh_of(compute: Compute, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
  """The mesh of the options; None where it would be a single device."""
  mesh = make_mesh(data=compute.data_parallel, fsdp=compute.fsdp, tensor=compute.tensor, devices=devices)
  # The single device that JAX would take by itself needs no mesh.
  return None if mesh.size == 1 and mesh.devices.flat[0] == jax.devices()[0] else mesh


def objective_of(run: Finetune, config: Any, mesh: Mesh | None) -> Objective:
  """The objective of the options for a model of this config."""
  if is_decoder(config):
    loss_name(run.loss.loss, "decoder")
    return language(config, run.compute)
  loss = loss_name(run.loss.loss, "encoder")
  return contrastive(config, loss, run.loss, run.compute, chunks=run.optimization.accumulate, mesh=mesh)


def recipe_of(run: Finetune, config: Any, steps: int) -> dict[str, Any]:
  """What trains, by what, cut how: arguments that `plan` takes and a training step is made from."""
  method = pick("method", run.method.method, METHODS).make(run.method)
  dtype = pick("dtype", run.compute.dtype, DTYPES)
  return {
      "transform": method,
      "optimizer": make_optimizer(run.optimization, run.method, steps),
      "rules": DECODER_RULES if is_decoder(config) else ENCODER_RULES,
      # An encoder's micro-batches are inside its objective, which compares the whole batch.
      "accumulate": run.optimization.accumulate if is_decoder(config) else 1,
      "compute_dtype": None if run.compute.dtype == "float32" else dtype,
  }
