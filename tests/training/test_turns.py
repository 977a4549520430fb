"""Steps on CPU take turns where they are long: two at once would hold the memory of two."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.training import TrainState, fit


def test_a_long_step_starts_when_the_one_before_has_ended():
  # Sorting takes its time: some tenths of a second.
  step = jax.jit(lambda t, x: (t + 1, jnp.sort(x + t)[0]))
  x, ready, last = jnp.asarray(np.random.default_rng(0).normal(size=2**20), jnp.float32), [], []

  def train_step(state, frozen, batch):
    del frozen, batch
    ready.extend(loss.is_ready() for loss in last[-1:])
    t, loss = step(state.step, x)
    last.append(loss)
    return TrainState(t, state.trainable, state.opt_state, state.key), {"loss": loss, "weight": jnp.float32(1)}

  state = TrainState(jnp.int32(0), {}, (), jax.random.key(0))
  fit(train_step, state, {}, [np.zeros(1)] * 6, steps=6, log_every=6, progress=False)
  assert ready == [True] * 5
