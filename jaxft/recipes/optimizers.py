"""AdamW as fine-tuning uses it: the gradient's norm clipped, the rate warmed up, then falling."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from jaxft.checks import pick

# share of the steps after the warm-up that are done, in [0, 1] -> factor on the peak rate
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "constant": jnp.ones_like,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + jnp.cos(jnp.pi * done)),
}


def warmed_up(steps: int, *, schedule: str = "linear", warmup_steps: int | None = None) -> Callable[[Any], Any]:
  """A factor on the peak learning rate by the step: up over the warm-up, then as the schedule says.

  It rises from 1 / warmup_steps and not from 0, so that the first step moves.

  Args:
    steps: of the run.
    schedule: "constant", "linear" or "cosine"; the last two fall to zero.
    warmup_steps: None takes a tenth of the steps, and at least one.

  Raises:
    ValueError: an unknown schedule, or warmup_steps outside [0, steps].
  """
  fall = pick("schedule", schedule, SCHEDULES)
  rise = max(1, steps // 10) if warmup_steps is None else warmup_steps
  if not 0 <= rise <= max(steps, 1):
    raise ValueError(f"warmup_steps must lie in [0, {steps}], the steps; got {warmup_steps}")

  def factor(step: Any) -> Any:
    done = jnp.clip((step - rise) / max(steps - rise, 1), 0.0, 1.0)
    return jnp.minimum((step + 1) / max(rise, 1), fall(done))

  return factor


def adamw(
    rate: Any, steps: int, *, schedule: str = "linear", warmup_steps: int | None = None, weight_decay: float = 0.0,
    clip_norm: float = 1.0,
) -> optax.GradientTransformation:
  """AdamW with clipping, warm-up and schedule. It sees only what trains.

  Args:
    rate: peak learning rate; it may be traced.
    steps: of the run.
    schedule, warmup_steps: see `warmed_up`.
    weight_decay: decoupled.
    clip_norm: largest norm of the gradient; 0 does not clip.

  Raises:
    ValueError: an argument is out of its range, or an unknown schedule.
  """
  ranges = [("weight_decay", weight_decay, weight_decay >= 0), ("clip_norm", clip_norm, clip_norm >= 0)]
  if isinstance(rate, float):
    ranges.append(("rate", rate, rate > 0))
  for name, value, good in ranges:
    if not (good and math.isfinite(value)):
      raise ValueError(f"{name} must be finite and {'> 0' if name == 'rate' else '>= 0'}; got {value}")
  factor = warmed_up(steps, schedule=schedule, warmup_steps=warmup_steps)
  adam = optax.adamw(lambda step: rate * factor(step), weight_decay=weight_decay)
  return optax.chain(optax.clip_by_global_norm(clip_norm), adam) if clip_norm else adam
