"""The small decoder that studies of language objectives share."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tasks import small_decoder as small

PAIRS = [(f"{a} + {b} ?", f"{(a + b) % 4}") for a in range(4) for b in range(4)]
VOCABULARY = small.Vocabulary.of(" ".join(pair) for pair in PAIRS)
ROWS = small.rows_of(VOCABULARY, PAIRS, length=7)
CONFIG = small.shape(VOCABULARY, dim=16, num_layers=1, num_heads=2, length=7)


def test_words_and_characters_come_back():
  assert VOCABULARY.tokens == (*small.SPECIAL, "+", "0", "1", "2", "3", "?")
  assert VOCABULARY.decode([*VOCABULARY.encode("3 + 1 ?"), small.EOS, 4, small.PAD]) == "3 + 1 ?"
  letters = small.Vocabulary.of(["a cab"], characters=True)
  assert letters.decode(letters.encode("bac a")) == "bac a"
  with pytest.raises(ValueError, match="got '7' in '7 \\+ 1'"):
    VOCABULARY.encode("7 + 1")


def test_answers_and_their_end_are_scored():
  text = [VOCABULARY.tokens[i] for i in ROWS.ids[5]]
  assert text == ["1", "+", "1", "?", "2", "<eos>", "<pad>"]
  np.testing.assert_array_equal(ROWS.scored[5], [0, 0, 0, 0, 1, 1, 0])
  with pytest.raises(ValueError, match="length must be at least 6"):
    small.rows_of(VOCABULARY, PAIRS, length=5)
  prompts = small.prompts_of(VOCABULARY, ["1 + 2 ?", "3 ?"], length=4)
  np.testing.assert_array_equal(prompts.mask, [[1, 1, 1, 1], [1, 1, 0, 0]])


def test_each_pass_takes_every_row_once():
  order = small.draw_order(0, 8, steps=6, batch_size=4)
  for i in range(3):
    assert sorted(order[2 * i : 2 * i + 2].ravel()) == list(range(8))
  assert (order[:2] != order[2:4]).any()
  with pytest.raises(ValueError, match=r"batch_size must lie in \[1, 8\]"):
    small.draw_order(0, 8, steps=1, batch_size=9)


def test_warm_up_and_what_follows():
  def rates(**options):  # Adam moves by its rate where the gradient never changes
    optimizer, found = small.adamw(2.0, 10, **options), []
    state = optimizer.init(jnp.zeros(1))
    for _ in range(10):
      updates, state = optimizer.update(jnp.ones(1), state, jnp.zeros(1))
      found.append(-np.asarray(updates)[0])
    return np.round(found, 3).tolist()

  assert rates(warmup=0.4)[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
  falling = rates(warmup=0.4)[4:]
  assert falling == sorted(falling, reverse=True) and falling[3] == 1.0
  assert rates(warmup=0.0, cosine=False) == [2.0] * 10


def test_learns_and_one_pass_judges_as_decoding_does():
  order = small.draw_order(0, 16, steps=150, batch_size=16)
  loss = partial(small.objective, CONFIG)
  fit = jax.jit(lambda key, rate: small.train(key, small.init(key, CONFIG), ROWS, order, loss, rate=rate))
  learned, started = fit(jax.random.key(0), 1e-2), fit(jax.random.key(0), 0.0)
  assert learned.losses[-1] < 0.1 < learned.losses[0] == started.losses[0]
  np.testing.assert_allclose(started.losses, started.losses[0], rtol=1e-5)  # each batch is all rows
  assert (learned.gradient_norms > 0).all() and len(learned.gradient_norms) == 150
  prompts = small.prompts_of(VOCABULARY, [prompt for prompt, _ in PAIRS], length=4)
  half = jax.tree.map(lambda x, y: (x + y) / 2, learned.params, started.params)
  for params, least, most in ((learned.params, 1.0, 1.0), (half, 0.0, 0.95), (started.params, 0.0, 0.5)):
    said = [VOCABULARY.decode(ids) for ids in small.decode(params, CONFIG, prompts, max_new_tokens=3)]
    right = np.array([answer == pair[1] for answer, pair in zip(said, PAIRS, strict=True)])
    np.testing.assert_array_equal(small.exact_answers(params, CONFIG, ROWS), right)
    assert least <= right.mean() <= most
  # Other inputs change what is read and leave what is predicted.
  hidden = jnp.where(jnp.asarray(ROWS.scored) > 0, small.MASK, ROWS.ids)
  clean, weights = small.token_nll(learned.params, CONFIG, ROWS)
  masked, _ = small.token_nll(learned.params, CONFIG, ROWS, inputs=hidden)
  np.testing.assert_array_equal(clean[:, :5], masked[:, :5])  # the question, and the first token after it
  assert (clean[:, 5] != masked[:, 5]).all() and weights.sum() == 32
  mean = (clean * weights).sum(1) / 2
  np.testing.assert_allclose(small.answer_nll(learned.params, CONFIG, ROWS), mean, rtol=1e-5)
