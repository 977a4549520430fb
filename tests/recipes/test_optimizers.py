"""The rates of a run: where the warm-up ends, where the schedule does, and what AdamW makes of a gradient."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.recipes.optimizers import adamw, warmed_up


@pytest.mark.parametrize("schedule, fall", [
    ("constant", [1, 1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25, 0]),
    ("cosine", [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0]),
])
def test_the_rate_rises_over_the_warm_up_and_falls_over_the_rest(schedule, fall):
  factor = warmed_up(6, schedule=schedule, warmup_steps=2)
  # Steps 0 and 1 warm up; of the other four, step 2 has all of its fall before it.
  np.testing.assert_allclose([factor(step) for step in range(7)], [0.5, 1, *fall], atol=1e-6)
  assert float(factor(60)) == pytest.approx(fall[-1], abs=1e-6)


def test_a_tenth_of_the_steps_warms_up_unless_told_otherwise():
  rates = lambda steps, **options: [float(warmed_up(steps, schedule="constant", **options)(t)) for t in range(4)]
  assert rates(40) == [0.25, 0.5, 0.75, 1.0]
  assert rates(5) == rates(40, warmup_steps=0) == [1.0] * 4


def test_adamw_clips_then_scales_by_the_rate_and_decays_apart():
  params = {"w": jnp.array([2.0, -4.0])}
  optimizer = adamw(0.1, 4, schedule="constant", warmup_steps=2, weight_decay=0.5)
  # The first step of Adam is the sign of the gradient; the rate is half of its peak.
  updates, _ = optimizer.update({"w": jnp.array([3.0, -5.0])}, optimizer.init(params), params)
  np.testing.assert_allclose(updates["w"], -0.05 * (np.array([1.0, -1.0]) + 0.5 * np.array([2.0, -4.0])), rtol=1e-5)


def test_adamw_clips_the_norm_of_the_gradient():
  """Only the sizes of successive gradients relative to each other show in Adam: the second is clipped, or is not."""
  params = {"w": jnp.zeros(2)}
  gradients = [{"w": jnp.array([0.3, 0.4])}, {"w": jnp.array([30.0, 40.0])}]

  def second(optimizer, gradients):
    state = optimizer.init(params)
    for g in gradients:
      updates, state = optimizer.update(g, state, params)
    return updates["w"]

  plain = optax.adam(0.1)
  run = lambda clip: second(adamw(0.1, 9, schedule="constant", warmup_steps=0, clip_norm=clip), gradients)
  np.testing.assert_allclose(run(2.0), second(plain, [gradients[0], {"w": jnp.array([1.2, 1.6])}]), rtol=1e-5)
  np.testing.assert_allclose(run(0.0), second(plain, gradients), rtol=1e-5)
