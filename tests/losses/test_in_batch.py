"""In-batch losses: copies are no negatives, the batch is the global one, and a cache changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import losses
from jaxft.data import pack_texts
from jaxft.losses import Mean, multiple_negatives_ranking, packed_text_ids, siglip, text_ids
from jaxft.training import cached_value_and_grad, make_mesh, place_batch

ROWS, DIM = 16, 5


def by_hand(q, p, n, ids, temperature, queries, positives):
  """InfoNCE by loops over rows and candidates: whoever carries an own text, or goes with one, is left out."""
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  q, p, n = (unit(np.asarray(x, np.float64)) for x in (q, p, n))
  of_q, of_p, of_n = ids
  values = []
  for i in range(len(q)):
    own = {of_q[i], of_p[i]}
    kept = [q[i] @ p[j] for j in range(len(q)) if of_p[j] not in own and of_q[j] != of_q[i]]
    kept += [q[i] @ n[j, k] for j in range(len(q)) for k in range(n.shape[1]) if of_n[j, k] not in own]
    if queries:
      kept += [q[i] @ q[j] for j in range(len(q)) if of_q[j] not in own and of_p[j] != of_p[i]]
    if positives:
      kept += [p[i] @ p[j] for j in range(len(q)) if of_p[j] not in own and of_q[j] != of_q[i]]
    logits = np.array([q[i] @ p[i], *kept]) / temperature
    values.append(np.log(np.exp(logits).sum()) - logits[0])
  return values


@pytest.mark.parametrize("blocks", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_copies_are_no_negatives(blocks):
  rng = np.random.default_rng(0)
  texts = rng.normal(size=(9, DIM)).astype(np.float32)
  ids = rng.integers(0, 9, 8), rng.integers(0, 9, 8), rng.integers(0, 9, (8, 2))
  ids[0][:2], ids[1][2:4] = 3, 5  # two equal queries, two equal positives
  run = jax.jit(lambda q, p, n, *ids: multiple_negatives_ranking(
      q, p, n, temperature=0.5, queries=blocks, positives=blocks, query_ids=ids[0], positive_ids=ids[1],
      negative_ids=ids[2])[0])
  embeddings = [texts[i] for i in ids]
  got = run(*embeddings, *ids)
  np.testing.assert_allclose(got, by_hand(*embeddings, ids, 0.5, blocks, blocks), rtol=1e-5, atol=1e-6)
  apart = run(*embeddings, *(np.arange(x.size).reshape(x.shape) + 100 * i for i, x in enumerate(ids)))
  assert (np.asarray(apart) > got + 1e-3).any()  # asked for by numbers that differ


def test_two_captions_of_one_image():
  """Five rows, of which two are of one image: neither is the other's negative, on either side and in every loss."""
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 5, DIM)).astype(np.float32)
  a[1] = a[0]
  images = np.array([7, 7, 1, 2, 3])
  rest = np.array([0, 2, 3, 4])
  for loss in (losses.clip, siglip, functools.partial(losses.mixed_negative_contrastive, t=0.3)):
    run = jax.jit(loss)
    with_copy, alone = run(a, b, a_ids=images)[0][0], run(a[rest], b[rest])[0][0]
    if loss is losses.clip or loss is siglip:
      np.testing.assert_allclose(with_copy, alone, rtol=1e-5)
    assert with_copy < run(a, b)[0][0]


def test_the_numbers_of_texts():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 50, (200, 6))
  ids = np.asarray(text_ids(tokens))
  assert len(set(ids.tolist())) == len(np.unique(tokens, axis=0))
  mask = np.arange(9) < 6
  padded = np.concatenate([tokens, rng.integers(0, 50, (200, 3))], axis=1)
  np.testing.assert_array_equal(text_ids(padded, np.broadcast_to(mask, padded.shape)), ids)
  np.testing.assert_array_equal(text_ids(padded[:, ::-1], np.broadcast_to(mask[::-1], padded.shape)),
                                text_ids(tokens[:, ::-1]))
  assert (text_ids(tokens[:, ::-1]) != ids).mean() > 0.9  # their order counts
  assert text_ids(np.array([[1, 0]]))[0] != text_ids(np.array([[1]]))[0]  # and their number


def test_packed_texts_have_the_numbers_that_they_have_alone():
  rng = np.random.default_rng(0)
  texts = [rng.integers(0, 9, n).tolist() for n in (3, 1, 5, 2)]
  packed = pack_texts([*texts, texts[0]], 6, multiple=4)  # the last rows hold nothing
  got = packed_text_ids(packed["ids"], packed["segment_ids"], 6)
  alone = [int(text_ids(np.array(text))) for text in [*texts, texts[0]]]
  assert got.tolist() == [*alone, int(text_ids(np.zeros(3, np.int32), np.zeros(3, bool)))]
  assert len(set(alone)) == 4
  with pytest.raises(ValueError, match="texts must be at least 1; got 0"):
    packed_text_ids(packed["ids"], packed["segment_ids"], 0)


def test_sigmoid_loss_of_one_pair_and_its_limits():
  one = siglip(jnp.ones((1, 2)), jnp.ones((1, 2)), temperature=0.5, bias=-1.0)[0]
  assert one[0] == pytest.approx(np.log1p(np.exp(-1)), rel=1e-5)
  assert np.isnan(jax.jit(lambda t: siglip(jnp.eye(2), jnp.eye(2), temperature=t)[0])(-1.0)).all()
  with pytest.raises(ValueError, match="temperature must lie in"):
    siglip(jnp.eye(2), jnp.eye(2), temperature=0.0)


# What each loss reads of `[batch, ...]` embeddings, by name.
IN_BATCH = {
    "ranking": lambda e, w: multiple_negatives_ranking(
        e["q"], e["p"], e.get("n"), temperature=0.5, queries=True, positives=True, query_ids=e["id"], where=w),
    "guided": lambda e, w: losses.guided_info_nce(
        e["q"], e["p"], e.get("n"), e["p"], e["q"], e.get("n"), temperature=0.5, where=w),
    "matryoshka": lambda e, w: losses.matryoshka(losses.mega_batch_margin, dims=(5, 2))(e["q"], e["p"], where=w),
    "triplets": lambda e, w: losses.batch_all_triplet(e["q"], e["label"], where=w),
    "cosent": lambda e, w: losses.cosent(e["q"], e["p"], e["score"], temperature=0.5, where=w),
    "view_contrastive": lambda e, w: losses.view_contrastive(
        jnp.stack([e["q"], e["p"]], 1), e["label"], temperature=0.5, where=w),
    "splade": lambda e, w: losses.splade(e["q"], e["p"], e.get("n"), query_weight=0.1, document_weight=0.1, where=w),
}


ALL = ((1, 2), (8, 1), (8, 2))  # devices and chunks, against one device and no cache


@pytest.mark.parametrize("negatives, runs", [
    (3, ((8, 2),)), *(pytest.param(n, ALL, marks=pytest.mark.exhaustive) for n in (0, 1, 3))])
def test_one_device_and_eight_cached_and_not(negatives, runs):
  """All losses in one program: values and gradients by the encoder's params agree to 1e-6."""
  rng = np.random.default_rng(negatives)
  draw = lambda *shape: rng.normal(size=(ROWS, *shape, 4)).astype(np.float32)
  batch = {"q": draw(), "p": draw()} | ({"n": draw(negatives)} if negatives else {})
  fixed = {"id": np.arange(ROWS) % 13, "label": np.arange(ROWS) % 5, "where": np.arange(ROWS) != 6,
           "score": (np.arange(ROWS) % 4 / 4).astype(np.float32)}
  params = {"w": jnp.asarray(rng.normal(size=(4, DIM)), jnp.float32)}

  def embed(params, texts, key):
    del key
    return jax.tree.map(lambda x: jnp.tanh(x @ params["w"]), texts)

  def loss(embeddings, batch):
    del batch
    means = {name: Mean.of(*f(embeddings | fixed, fixed["where"])).value for name, f in IN_BATCH.items()}
    return sum(means.values()), means

  results = {}
  for devices, chunks in ((1, 1), *runs):
    mesh = make_mesh(data=devices) if devices > 1 else None
    run = jax.jit(cached_value_and_grad(embed, loss, chunks=chunks, has_aux=True, mesh=mesh))
    results[devices, chunks] = run(params, place_batch(batch, mesh), jax.random.key(0))
  (_, want), want_grad = results.pop((1, 1))
  assert len({round(float(x), 4) for x in want.values()}) == len(IN_BATCH)
  for (_, got), grad in results.values():
    for name, value in got.items():
      np.testing.assert_allclose(value, want[name], rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(grad["w"], want_grad["w"], rtol=1e-6, atol=2e-6)
