"""What a run minimizes counts what the data mark, and no row that fills up a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data import pack_texts
from jaxft.losses import multiple_negatives_ranking
from jaxft.models import decoder, encoder
from jaxft.recipes.objectives import language, text_pairs


def test_language_counts_the_marked_tokens_of_real_rows():
  config = decoder.DecoderConfig(
      vocab_size=30, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8)
  params = decoder.init(jax.random.key(0), config, stddev=0.5)
  rng = np.random.default_rng(0)
  batch = {
      "ids": jnp.asarray(rng.integers(1, 30, (3, 6))), "where": jnp.array([True, True, False]),
      "segment_ids": jnp.array([[1, 1, 1, 2, 2, 0]] * 3), "loss_mask": jnp.array([[1, 0, 1, 1, 1, 1]] * 3),
  }
  mean, _ = jax.jit(language(config))(params, batch, jax.random.key(0))
  hidden = decoder.hidden_states(params, config, batch["ids"], segment_ids=batch["segment_ids"]).hidden
  log_probs = jax.nn.log_softmax(decoder.logits(params, config, hidden))
  # Token 0 and token 3 begin a segment, token 1 is not marked, token 5 is padding.
  want = [-log_probs[row, t - 1, batch["ids"][row, t]] for row in (0, 1) for t in (2, 4)]
  assert mean.weight == 4 and mean.value == pytest.approx(float(np.mean(want)), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"chunks": 2}])
def test_a_copy_of_the_positive_is_no_negative(options):
  """Rows 0 and 2 have one positive, of other padding; the hard negative of row 1 is the positive of row 3."""
  config = encoder.EncoderConfig(vocab_size=30, dim=8, num_layers=1, num_heads=1, mlp_dim=8, max_length=4)
  params = encoder.init(jax.random.key(0), config, stddev=0.5)
  text = lambda rows: {"ids": np.array(rows, np.int32), "mask": (np.array(rows) > 0).astype(np.int32)}
  batch = {
      "anchor": text([[2, 3, 0], [4, 5, 6], [7, 0, 0], [8, 9, 0]]),
      "positive": text([[10, 11, 0], [12, 0, 0], [0, 10, 11], [13, 14, 0]]),
      "negative": text([[15, 0, 0], [13, 14, 0], [16, 0, 0], [17, 0, 0]]),
  }
  mean, _ = text_pairs(config, temperature=0.5, **options)(params, batch, jax.random.key(0))
  vectors = [encoder.embed(params, config, batch[name]["ids"], batch[name]["mask"]) for name in batch]
  query, positive, negative = (np.asarray(x, np.float64) for x in vectors)
  scores = np.exp(np.concatenate([query @ positive.T, query @ negative.T], axis=1) / 0.5)
  scores[0, 2] = scores[2, 0] = scores[3, 4 + 1] = 0
  want = -np.log(scores[np.arange(4), np.arange(4)] / scores.sum(axis=1)).mean()
  assert float(mean.value) == pytest.approx(want, rel=1e-5)
  unaware = multiple_negatives_ranking(vectors[0], vectors[1], vectors[2][:, None], temperature=0.5)[0]
  assert float(mean.value) < float(unaware.mean()) - 0.05


@pytest.mark.parametrize("options", [
    {}, {"chunks": 2, "slots": 3},
    pytest.param({"guided": True, "chunks": 2, "slots": 3}, marks=pytest.mark.exhaustive)])
def test_packed_texts_give_the_loss_and_gradient_that_they_give_padded(options):
  """With a text that two pairs share, a pair that does not count, and sides of other numbers of rows."""
  config = encoder.EncoderConfig(vocab_size=30, dim=8, num_layers=1, num_heads=1, mlp_dim=8, max_length=6)
  params = encoder.init(jax.random.key(0), config, stddev=0.5)
  rng = np.random.default_rng(0)
  texts = {name: [rng.integers(1, 30, n).tolist() for n in sizes] for name, sizes in {
      "anchor": (4, 1, 3, 2), "positive": (1, 1, 2, 1), "negative": (5, 6, 4, 5)}.items()}
  texts["positive"][2] = texts["negative"][0]
  guide = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in texts}
  where = {"where": np.array([True, True, True, False])}
  padded: dict[str, Any] = dict(where)
  packed: dict[str, Any] = dict(where)
  for name, of_side in texts.items():
    ids = np.array([text + [0] * (6 - len(text)) for text in of_side], np.int32)
    padded[name] = {"ids": ids, "mask": (ids > 0).astype(np.int32), "guide": guide[name]}
    packed[name] = pack_texts(of_side, 6, multiple=2, slots=3) | {"guide": guide[name]}
  assert len({side["ids"].shape for name, side in packed.items() if name in texts}) > 1
  loss = text_pairs(config, temperature=0.5, **options)
  both = jax.jit(lambda params: [jax.value_and_grad(lambda p, b=batch: loss(p, b, jax.random.key(0))[0].value)(params)
                                 for batch in (padded, packed, packed | {"positive": padded["positive"]})])
  want, *others = both(params)
  assert float(want[0]) > 0.1
  for got in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), got, want)


def test_packed_texts_say_how_many_there_are():
  config = encoder.EncoderConfig(vocab_size=30, dim=8, num_layers=1, num_heads=1, mlp_dim=8, max_length=4)
  params = encoder.init(jax.random.key(0), config, stddev=0.5)
  rows = {name: pack_texts([[2], [3]], 4, multiple=2) for name in ("anchor", "positive")}
  with pytest.raises(ValueError, match="must hold `where`, with an entry for each pair; got none"):
    text_pairs(config)(params, rows, jax.random.key(0))
  with pytest.raises(ValueError, match="slots must be the most texts of a packed row where chunks is 2; got None"):
    text_pairs(config, chunks=2)(params, rows | {"where": np.ones(2, bool)}, jax.random.key(0))
