"""A run from its options: checked, on its mesh, as a `Recipe`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jaxft.checks import one_of, pick
from jaxft.formats.families import family_of
from jaxft.models.remat import POLICIES
from jaxft.recipes.distillation.teacher import beside, with_rules
from jaxft.recipes.dtypes import DTYPES
from jaxft.recipes.forms.form import Asked
from jaxft.recipes.forms.table import form_of
from jaxft.recipes.guess import check_task
from jaxft.recipes.methods import make_transform, usual_rate
from jaxft.recipes.optimizers import SCHEDULES, adamw
from jaxft.recipes.options import Adaptation, Compute, Examples, Finetune, Optimization
from jaxft.recipes.output import HEADS
from jaxft.recipes.preference.losses import PREFERENCES, reads
from jaxft.recipes.rl.losses import POLICY_LOSSES, reads as read_by_policy
from jaxft.recipes.rl.rewards import data_of, rewards_of
from jaxft.recipes.run_loss import (
  WITH_OUTPUT,
  check_loss,
  compares_all,
  early_name,
  loss_name,
  preference_settings,
  rows_of,
  run_policy,
)
from jaxft.training import DECODER_RULES, ENCODER_RULES, Recipe, make_mesh
from jaxft.transforms import ParamTransform, chain, train

RULES = {"encoder": ENCODER_RULES, "vision": ENCODER_RULES, "decoder": DECODER_RULES,
         "encoder-decoder": DECODER_RULES}


def check_options(options: Finetune) -> None:
  """Raises ValueError for what is wrong with the options by themselves, before anything is read."""
  one_of("schedule", options.optimization.schedule, SCHEDULES)
  one_of("dtype", options.compute.dtype, DTYPES)
  one_of("remat", options.compute.remat, POLICIES)
  _check_finite(options)
  make_transform(options.method)
  _check_contradictions(options)
  check_task(options.loss)
  by_reward = early_name(options.loss) in POLICY_LOSSES
  zero = by_reward or options.loss.teacher is not None
  if options.loss.divergence is not None:
    one_of("divergence", options.loss.divergence, ("reverse_kl", "forward_kl", "js", "alpha"))
  if options.loss.divergence_alpha is not None and options.loss.divergence != "alpha":
    raise ValueError(f"--divergence-alpha is read with --divergence alpha alone; got {options.loss.divergence}")
  if options.loss.head is not None:
    one_of("head", options.loss.head, HEADS)
  for name, value in (
      ("steps", options.optimization.steps), ("batch_size", options.optimization.batch_size),
      ("accumulate", options.optimization.accumulate), ("checkpoint_every", options.output.checkpoint_every),
      ("keep", options.output.keep), ("eval_every", options.output.eval_every), ("log_every", options.output.log_every),
      ("max_new_tokens", options.loss.max_new_tokens), ("passes", options.loss.passes),
  ):
    if value is not None and value < 1:
      raise ValueError(f"{name} must be at least 1; got {value}")
  for name, value, good, range in (
      ("learning_rate", options.optimization.learning_rate, lambda x: x is None or x > 0, "> 0"),
      ("warmup", options.optimization.warmup, lambda x: 0 <= x < 1, "in [0, 1)"),
      ("weight_decay", options.optimization.weight_decay, lambda x: x >= 0, ">= 0"),
      ("clip_norm", options.optimization.clip_norm, lambda x: x >= 0, ">= 0"),
      ("temperature", options.loss.temperature, lambda x: x is None or x > 0, "> 0"),
      ("beta", options.loss.beta, lambda x: x is None or x > 0 or x == 0 and zero, ">= 0" if zero else "> 0"),
      ("on_policy", options.loss.on_policy, lambda x: x is None or 0 <= x <= 1, "in [0, 1]"),
      ("length_alpha", options.loss.length_alpha, lambda x: x is None or 0 <= x <= 1, "in [0, 1]"),
      ("clip_low", options.loss.clip_low, lambda x: x is None or x >= 0, ">= 0"),
      ("clip_high", options.loss.clip_high, lambda x: x is None or x > 0, "> 0"),
      ("group_size", options.loss.group_size, lambda x: x is None or x >= 2, "at least 2"),
      ("likelihood", options.loss.likelihood, lambda x: x is None or x >= 0, ">= 0"),
      ("desirable_weight", options.loss.desirable_weight, lambda x: x is None or x >= 0, ">= 0"),
      ("undesirable_weight", options.loss.undesirable_weight, lambda x: x is None or x >= 0, ">= 0"),
      ("label_smoothing", options.loss.label_smoothing, lambda x: x is None or 0 <= x < 0.5, "in [0, 0.5)"),
  ):
    if not good(value):
      raise ValueError(f"{name} must be {range}; got {value}")
  if options.optimization.steps is None and not options.optimization.epochs > 0:
    raise ValueError(f"epochs must be > 0; got {options.optimization.epochs}")
  if options.data is None:
    raise ValueError("--data must be given: a data set, a file or a folder")
  if (rows := rows_of(options, early_name(options.loss))) % options.optimization.accumulate:
    what = "answers of a step, batch_size times group_size" if by_reward else "examples of a step, batch_size"
    raise ValueError(f"accumulate must divide the {rows} {what}; got {options.optimization.accumulate}")
  if options.loss.desirable_weight == 0 == options.loss.undesirable_weight:
    raise ValueError("desirable_weight and undesirable_weight must not both be 0: nothing would be learnt")
  if by_reward:
    rewards_of(options.loss.reward, options.loss.reward_weights, options.loss.marker)
    if options.examples.pack:
      raise ValueError("--pack is for --task sft; answers to prompts are rows of their own")


def _check_contradictions(options: Finetune) -> None:
  """Raises ValueError for two options of which one leaves the other unread."""
  default = {f.name: f.default for group in (Optimization, Examples) for f in dataclasses.fields(group)}
  optimization, examples = options.optimization, options.examples
  if optimization.steps is not None and optimization.epochs != default["epochs"]:
    raise ValueError(
        f"steps and epochs both say how long: give one; got {optimization.steps} and {optimization.epochs}")
  if examples.pack and examples.pad:
    raise ValueError("--pack and --pad say the opposite: give one")
  if examples.validation is not None and examples.holdout != default["holdout"]:
    raise ValueError(f"holdout is not read where there is a validation split; got {examples.holdout} and "
                     f"{examples.validation!r}")


def _check_finite(options: Finetune) -> None:
  """Raises ValueError for the first option of any group that is NaN or infinite."""
  for group in dataclasses.fields(options):
    values: Any = getattr(options, group.name)
    if dataclasses.is_dataclass(type(values)):
      for name, value in dataclasses.asdict(values).items():
        if isinstance(value, float) and not math.isfinite(value):
          raise ValueError(f"{name} must be finite; got {value}")


def with_data(options: Finetune) -> Finetune:
  """The options with the data set that a reward names, where they name none."""
  return dataclasses.replace(options, data=data_of(options.loss.reward, options.data))


def rate_of(run: Finetune, loss: str) -> float:
  """The usual peak learning rate of a run's method with a loss."""
  rate = usual_rate(run.method)
  table = PREFERENCES if loss in PREFERENCES else POLICY_LOSSES
  return rate * table[loss].rate if loss in table else rate


def found_of(options: Finetune, loss: str, steps: int) -> dict[str, Any]:
  """What a run has of what the options leave open, by name."""
  rate = options.optimization.learning_rate
  found = {"loss": loss, "steps": steps, "learning_rate": rate_of(options, loss) if rate is None else rate}
  if loss in POLICY_LOSSES:
    of_policy = run_policy(options.loss, loss)._asdict()
    return found | {option: of_policy[option] for option in read_by_policy(loss) if option in of_policy}
  if loss not in PREFERENCES:
    return found
  settings = preference_settings(options.loss, loss)._asdict()
  return found | {option: settings[option] for option in reads(loss) if option in settings}


def mesh_of(
    compute: Compute,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]: jaxlib has no stub of it
) -> Mesh | None:
  """The mesh of the options; None where it would be a single device."""
  mesh = make_mesh(
      data=compute.data_parallel, fsdp=compute.fsdp, tensor=compute.tensor, context=compute.context, dcn=compute.slices,
      devices=devices)
  # The single device that JAX would take by itself needs no mesh.
  return None if mesh.size == 1 and mesh.devices.flat[0] == jax.devices()[0] else mesh


def recipe_of(run: Finetune, config: Any, steps: int, mesh: Mesh | None, teacher: Any = None) -> Recipe:
  """The recipe of the options for a model of this config.

  Args:
    run: the options, with the loss named.
    config: of the model.
    steps: in all.
    mesh: where it runs.
    teacher: the config of a teacher that speaks in every step, whose params lie beside the model's.

  Raises:
    ValueError: an unknown name, or a value out of its range.
  """
  optimization, dtype = run.optimization, pick("dtype", run.compute.dtype, DTYPES)
  kind = family_of(config).kind
  rules, loss = pick("kind of model", kind, RULES), loss_name(run.loss.loss, kind)
  if run.examples.pack and kind == "decoder" and run.optimization.steps is None:
    raise ValueError("--pack needs --steps: how many rows an epoch takes is not known before packing")
  if run.compute.context > 1 and (kind != "decoder" or run.examples.max_length % run.compute.context):
    raise ValueError("--context cuts rows of decoders whose --max-length it divides; got --context "
                     f"{run.compute.context} for rows of {run.examples.max_length} and a model of the kind {kind}")
  transform = transform_of(run.method, config, loss)
  if loss == "gkd":
    transform, rules = beside(transform), with_rules(rules)
  rate = optimization.learning_rate
  steps = steps * run_policy(run.loss, loss).passes if loss in POLICY_LOSSES else steps
  narrow = None if run.compute.dtype == "float32" else dtype
  optimizer = adamw(
      rate_of(run, loss) if rate is None else rate, steps, schedule=optimization.schedule,
      warmup_steps=round(optimization.warmup * steps), weight_decay=optimization.weight_decay,
      clip_norm=optimization.clip_norm)
  check_loss(run.loss, loss)
  objective = form_of(loss, kind).objective(Asked(run, config, loss, mesh, teacher))
  return Recipe(
      objective, transform, optimizer, mesh=mesh, rules=rules,
      # The micro-batches of a contrastive loss are inside its objective, which compares the whole batch.
      accumulate=1 if compares_all(loss) else optimization.accumulate,
      compute_dtype=narrow, frozen_dtype=narrow)


def transform_of(method: Adaptation, config: Any, loss: str) -> ParamTransform:
  """The method, on the model's own matrices where none are chosen; an output layer trains whole, whatever it is."""
  transform = make_transform(method, family_of(config).matrices)
  return chain(train("output/**"), transform) if loss in WITH_OUTPUT else transform
