"""Carrying an update over to another version of its base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.merging import recycle
from jaxft.merging.vocabulary import grow_vocabulary
from jaxft.tree.task_vectors import apply_task_vector, task_vector


def test_transfer_to_the_source_itself_is_the_fine_tuned_model():
  base, tuned = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([1.5, 1.0])}
  np.testing.assert_array_equal(apply_task_vector(base, task_vector(base, tuned))["w"], tuned["w"])


@pytest.mark.parametrize("distance", [0.1, 0.2])
def test_error_of_a_transfer_is_linear_in_the_distance_of_the_bases(distance):
  """One step of a quadratic loss with Hessian H moves m by -r H (m - a): two bases d apart differ by r H d."""
  hessian, goal, rate = jnp.array([1.0, 4.0]), jnp.array([1.0, -1.0]), 0.1
  finetune = lambda m: jax.tree.map(lambda x: x - rate * hessian * (x - goal), m)
  source, apart = {"w": jnp.array([0.3, 0.2])}, jnp.array([1.0, 2.0]) * distance
  target = {"w": source["w"] + apart}
  moved = apply_task_vector(target, task_vector(source, finetune(source)))
  np.testing.assert_allclose(moved["w"] - finetune(target)["w"], rate * hessian * apart, atol=1e-6)


def test_recycling():
  bases = [{"w": jnp.array([v])} for v in (1.0, 2.0, 4.0)]
  starts = []
  finetune = lambda params, version: (starts.append(float(params["w"][0])), {"w": params["w"] + 10.0 ** -version})[1]
  out = list(recycle([bases[0], lambda: bases[1], bases[2]], finetune))
  assert [o.version for o in out] == [0, 1, 2]
  np.testing.assert_allclose(starts, [1.0, 3.0, 5.1], rtol=1e-6)
  np.testing.assert_allclose([o.params["w"][0] for o in out], [2.0, 3.1, 5.11], rtol=1e-6)
  np.testing.assert_allclose([o.delta["w"][0] for o in out], [1.0, 1.1, 1.11], rtol=1e-5)
  transferred = list(recycle(bases, lambda params, version: params if version else {"w": params["w"] + 1}, scale=0.5))
  np.testing.assert_allclose([o.params["w"][0] for o in transferred], [2.0, 2.5, 4.25])


def test_new_tokens_are_carried_over_whole():
  tuned = {"embed": {"tokens": {"embedding": jnp.arange(10.0).reshape(5, 2)}}}
  source = {"embed": {"tokens": {"embedding": jnp.ones((3, 2))}}}
  target = {"embed": {"tokens": {"embedding": 2 * jnp.ones((3, 2))}}}
  tuned, source, target = grow_vocabulary([tuned, source, target])
  rows = apply_task_vector(target, task_vector(source, tuned))["embed"]["tokens"]["embedding"]
  np.testing.assert_array_equal(rows[3:], tuned["embed"]["tokens"]["embedding"][3:])
  np.testing.assert_array_equal(rows[:3], tuned["embed"]["tokens"]["embedding"][:3] + 1)


def test_new_rows_of_the_mean_and_of_other_axes():
  short, long = {"head": {"kernel": jnp.array([[1.0, 3.0]])}}, {"head": {"kernel": jnp.zeros((1, 4))}}
  np.testing.assert_array_equal(grow_vocabulary([short, long], fill="mean")[0]["head"]["kernel"], [[1, 3, 2, 2]])
  with pytest.raises(ValueError, match="fill must be zeros or mean; got 'base'"):
    grow_vocabulary([short], fill="base")
  with pytest.raises(ValueError, match="axes must match a leaf"):
    grow_vocabulary([{"w": jnp.ones(2)}])
  with pytest.raises(ValueError, match="axes gives axis 2 for head/kernel"):
    grow_vocabulary([short], axes={"head/kernel": 2})
