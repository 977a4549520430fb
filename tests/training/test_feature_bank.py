"""The bank holds what a list of the last rows holds, in any order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.training import empty_bank, push

X2 = np.zeros(2, np.float32)


def rows(bank):
  return sorted(np.asarray(bank.rows["x"])[np.asarray(bank.filled)].tolist())


def test_it_holds_the_last_rows():
  pushed = jax.jit(push)
  batch = lambda start: {"x": jax.device_put(np.arange(start, start + 3, dtype=np.int32))}
  bank = empty_bank(7, batch(0))
  assert rows(bank) == []
  for start in range(0, 60, 3):
    bank = pushed(bank, batch(start))
    assert rows(bank) == list(range(max(0, start + 3 - 7), start + 3))
  assert int(bank.pushed) < 14  # the count never grows without bound


def test_rows_of_one_example_stay_together_and_are_constants():
  def total(x):
    bank = push(empty_bank(2, (x, x)), (x, 2 * x))
    return (bank.rows[0] * bank.rows[1]).sum()

  value, slope = jax.value_and_grad(total)(jnp.asarray([1, 3], jnp.float32))
  assert value == 20 and not slope.any()


def test_errors():
  with pytest.raises(ValueError, match="capacity"):
    empty_bank(0, X2)
  with pytest.raises(ValueError, match="at most the 2 rows that the bank holds; got 3"):
    jax.eval_shape(partial(push, empty_bank(2, X2)), np.zeros(3, np.float32))
  with pytest.raises(ValueError, match=r"one length; got lengths \[2, 3\]"):
    empty_bank(2, (X2, np.zeros(3, np.float32)))
