"""Training steps of transforms in bfloat16, and any other function's steps through `lazy`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import lazy, materialize
from tests.contracts.comparison import assert_trees_close, assert_trees_equal
from tests.contracts.transform_cases import CASES, KEY, WHOLE, X, Y, by_kind, loss_and_gradients, moved, small
from tests.contracts.transforms import PLAIN_BLOCKS, make_step


@by_kind(WHOLE)
def test_only_what_trains_changes(case):
  check_training(case)


def check_training(case, blocks=PLAIN_BLOCKS):
  dtype = jnp.bfloat16
  params = small(case, dtype, blocks)
  frozen, start = case.transform.split(KEY, params)
  before = jax.tree.map(np.asarray, (params, frozen))
  optimizer, step = make_step(case.transform, blocks.forward)
  traces = []
  jitted = jax.jit(lambda *args: (traces.append(1), step(*args))[1])
  trainable, state = start, optimizer.init(start)
  kinds = jax.tree.map(lambda x: (x.shape, x.dtype), (trainable, state))
  losses = []
  for i in range(4):
    trainable, state, metrics = jitted(
        trainable, state, frozen, X.astype(dtype), Y.astype(dtype), jax.random.fold_in(KEY, i))
    losses.append(float(metrics["loss"]))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), (trainable, state)) == kinds
  assert len(traces) == 1
  assert losses[-1] < losses[0]
  assert_trees_equal((params, frozen), before)
  changed = [bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(trainable), jax.tree.leaves(start), strict=True)]
  assert changed and all(changed)
  joined = materialize(case.transform.join(frozen, trainable))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), joined) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


@pytest.mark.exhaustive  # of every kind of leaf one passes through `lazy` in test_foreign_models.py
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_lazy_agrees_with_the_plain_path(case):
  check_lazy(case)


def check_lazy(case, blocks=PLAIN_BLOCKS):
  frozen, trainable = case.transform.split(KEY, small(case, blocks=blocks))

  fast = loss_and_gradients(case, lazy(blocks.foreign_forward))
  plain = loss_and_gradients(case, lambda params, x: blocks.forward(materialize(params), x))
  assert_trees_close(*jax.jit(lambda *sides: (fast(*sides), plain(*sides)))(frozen, moved(trainable), X))
