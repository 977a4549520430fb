"""Merging adapters: the sum of the updates, exactly, truncated, and what is not it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.leaves import materialize
from jaxft.merging import concat_lora, extract_lora, lora_delta, merge_lora
from jaxft.transforms import lora
from tests.draws import blocks, normal

PARAMS = blocks(0, layers=2, dim=8, hidden=12)
RANKS, SCALES, WEIGHTS = (2, 3), [1.5, 0.5], [1.0, -2.0]


def adapter(seed, rank):
  transform = lora("**/kernel", rank=rank, alpha=rank)
  _, trainable = jax.eval_shape(transform.split, jax.random.key(seed), PARAMS)
  return jax.tree.map(lambda x: normal(1000 * seed + x.size, *x.shape), trainable)


ADAPTERS = [adapter(i, rank) for i, rank in enumerate(RANKS)]
is_pair = lambda x: isinstance(x, dict) and set(x) == {"a", "b"}
updates = lambda tree, scale=1.0: jax.tree.map(lambda p: lora_delta(p["a"], p["b"], scale=scale), tree, is_leaf=is_pair)


def sum_of_updates():
  return jax.tree.map(lambda x, y: WEIGHTS[0] * SCALES[0] * x + WEIGHTS[1] * SCALES[1] * y, *map(updates, ADAPTERS))


def assert_close(got, want, atol=1e-5):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), got, want)


def test_cat_and_svd_give_the_sum_of_the_updates():
  given, total = {"weights": WEIGHTS, "scales": SCALES}, sum_of_updates()
  cat = merge_lora(ADAPTERS, method="cat", **given)
  assert cat["layers"]["up"]["kernel"]["a"].shape == (2, 8, 5)
  assert_close(updates(cat), total)
  assert_close(updates(merge_lora(ADAPTERS, rank=5, **given)), total, atol=1e-4)
  short = merge_lora(ADAPTERS, **given)
  assert short["layers"]["up"]["kernel"]["a"].shape == (2, 8, 3)
  got, want = (tree["layers"]["up"]["kernel"] for tree in (updates(short), total))
  spectrum = jnp.linalg.svd(want, compute_uv=False)
  lost = jnp.linalg.norm(got - want, axis=(-2, -1))
  np.testing.assert_allclose(lost, jnp.linalg.norm(spectrum[..., 3:], axis=-1), rtol=1e-4)
  a, b = concat_lora([(jnp.ones((4, 1)), jnp.ones((1, 3)))] * 2, scales=[2.0, 3.0])
  np.testing.assert_array_equal(a @ b, 5 * np.ones((4, 3)))


def test_linear_is_pefts_and_not_the_sum():
  pair = [adapter(i, 2) for i in range(2)]
  got = merge_lora(pair, method="linear", weights=WEIGHTS, scales=SCALES)["layers"]["up"]["kernel"]
  roots = np.sqrt(np.abs([w * s for w, s in zip(WEIGHTS, SCALES, strict=True)]))
  first, second = (p["layers"]["up"]["kernel"] for p in pair)
  np.testing.assert_allclose(got["a"], roots[0] * first["a"] - roots[1] * second["a"], atol=1e-6)
  np.testing.assert_allclose(got["b"], roots[0] * first["b"] + roots[1] * second["b"], atol=1e-6)
  want = WEIGHTS[0] * SCALES[0] * first["a"] @ first["b"] + WEIGHTS[1] * SCALES[1] * second["a"] @ second["b"]
  assert jnp.linalg.norm(got["a"] @ got["b"] - want) > 0.3 * jnp.linalg.norm(want)


def test_extraction_gives_an_update_of_that_rank_back():
  transform = lora("**/kernel", rank=3, alpha=3)
  frozen, _ = transform.split(jax.random.key(0), PARAMS)
  tuned = materialize(transform.join(frozen, ADAPTERS[1]))
  found = extract_lora(PARAMS, tuned, 3)
  assert jax.tree.structure(found) == jax.tree.structure(ADAPTERS[1])
  assert_close(updates(found), updates(ADAPTERS[1]), atol=1e-4)
  assert_close(materialize(transform.join(frozen, found)), tuned, atol=1e-4)


@pytest.mark.parametrize("call, message", [
    (lambda: merge_lora([]), "adapters must hold at least 1 adapter; got 0"),
    (lambda: merge_lora(ADAPTERS, method="ties"), "method must be cat, svd or linear; got 'ties'"),
    (lambda: merge_lora(ADAPTERS, method="cat", rank=2), "rank must be None where method is 'cat'; got 2"),
    (lambda: merge_lora(ADAPTERS, weights=[1]), "weights must have one entry for each of 2 adapters; got 1"),
    (lambda: merge_lora(ADAPTERS, scales=[1]), "scales must have one entry for each of 2 adapters; got 1"),
    (lambda: merge_lora(ADAPTERS, method="linear"), r"kernel/a: adapters\[1\] \(2, \d+, 3\), adapters\[0\] \(2, "),
    (lambda: merge_lora([ADAPTERS[0], {}]), r"missing in adapters\[1\]"),
    (lambda: extract_lora(PARAMS, PARAMS, 99), r"layers/down/kernel: rank must lie in 1\.\.8"),
])
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
