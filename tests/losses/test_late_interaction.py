"""MaxSim against loops, in chunks and with documents that have no token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.losses import maxsim


def draw():
  rng = np.random.default_rng(0)
  q, d = rng.normal(size=(3, 2, 4)).astype(np.float32), rng.normal(size=(5, 3, 4)).astype(np.float32)
  return q, d, np.array([[1, 1], [1, 0], [0, 1]], bool), np.arange(3) < np.array([3, 1, 2, 0, 3])[:, None]


def test_scores_equal_loops_in_chunks_and_not():
  q, d, q_mask, d_mask = draw()
  want = np.full((3, 5), -1e9)
  for i in range(3):
    for j in range(5):
      if d_mask[j].any():
        want[i, j] = sum(max(s @ t for t in d[j][d_mask[j]]) for s in q[i][q_mask[i]])
  masks = {"query_mask": q_mask, "document_mask": d_mask}
  run = jax.jit(jax.value_and_grad(lambda q, d, chunk=None: (
      lambda s: (jnp.sum(jnp.where(s > -1e8, jnp.sin(s), 0)), s))(maxsim(q, d, chunk=chunk, **masks)),
      argnums=(0, 1), has_aux=True), static_argnames="chunk")
  (_, whole), grads = run(q, d)
  np.testing.assert_allclose(whole, want, rtol=1e-5)
  (_, parts), same = run(q, d, chunk=2)
  np.testing.assert_allclose(parts, want, rtol=1e-5)
  for x, y in zip(grads, same, strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert np.isfinite(x).all()
  counts = q_mask.sum(1, keepdims=True)
  np.testing.assert_allclose(maxsim(q, d, per_token=True, **masks)[:, :3], want[:, :3] / counts, rtol=1e-5)
  own = losses.maxsim_candidates(q, np.stack([d[:3], d[1:4]], 1), query_mask=q_mask,
                                 candidate_mask=np.stack([d_mask[:3], d_mask[1:4]], 1))
  np.testing.assert_allclose(own, [[want[i, i], want[i, i + 1]] for i in range(3)], rtol=1e-5)


def test_copies_are_no_negatives():
  q, d, _, _ = draw()
  d = d[:3].copy()
  d[1] = d[0]
  run = lambda q, d, **ids: losses.late_interaction(q, d, **ids)[0]
  got = run(q, d, positive_ids=np.array([4, 4, 5]))
  np.testing.assert_allclose(got[0], run(q[::2], d[::2])[0], rtol=1e-5)
  assert got[0] < run(q, d)[0]
  with pytest.raises(ValueError, match="chunk must be at least 1"):
    maxsim(q, d, chunk=0)
