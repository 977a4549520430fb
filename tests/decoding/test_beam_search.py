import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.decoding import Stepwise, beam_search, generate, stepwise_decoder
from jaxft.leaves import materialize
from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Prepend
from jaxft.transforms import lora

CONFIG = DecoderConfig(
    vocab_size=5, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, pad_id=0, eos_id=4)
PROMPT = jnp.array([[1, 2, 3, 1], [3, 3, 2, 2]])
NEW = 3


def stepwise(params, **edits):
  return stepwise_decoder(params, CONFIG, **edits)


@pytest.fixture(scope="module")
def params():
  return decoder.init(jax.random.key(0), CONFIG, stddev=0.4)


def all_continuations(params, row):
  """Every continuation that ends, or is NEW tokens long, with its log-probability by full passes."""
  tails = np.array(list(itertools.product(range(CONFIG.vocab_size), repeat=NEW)), np.int32)
  ids = jnp.concatenate([jnp.tile(row, (len(tails), 1)), tails], axis=1)
  nll = np.asarray(decoder.token_nll(params, CONFIG, ids)[0])[:, len(row):]
  found = {}
  for tail, losses in zip(tails.tolist(), nll, strict=True):
    length = tail.index(CONFIG.eos_id) + 1 if CONFIG.eos_id in tail else NEW
    found[tuple(tail[:length])] = -losses[:length].sum()
  return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
def test_a_wide_search_finds_the_best_of_all_continuations(params, length_penalty):
  beams = 80  # 84 continuations, and never more running prefixes than this
  out = beam_search(stepwise(params), PROMPT, beams=beams, max_new_tokens=NEW, length_penalty=length_penalty)
  for row, tokens, mask, scores in zip(PROMPT, out.tokens, out.mask, out.scores, strict=True):
    exact = {tail: log_prob / len(tail) ** length_penalty for tail, log_prob in all_continuations(params, row).items()}
    best = sorted(exact, key=exact.get, reverse=True)[:beams]
    got = [tuple(t[m].tolist()) for t, m in zip(np.asarray(tokens), np.asarray(mask), strict=True)]
    assert len(set(got)) == beams and set(got[:20]) == set(best[:20])
    np.testing.assert_allclose(scores[:20], [exact[tail] for tail in best[:20]], rtol=1e-4)
    np.testing.assert_allclose(scores, [exact[tail] for tail in got], rtol=1e-4)


def test_one_beam_is_greedy_and_more_are_no_less_likely(params):
  greedy = generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=NEW, temperature=0.0)
  one = beam_search(stepwise(params), PROMPT, beams=1, max_new_tokens=NEW, length_penalty=0.0)
  assert one.tokens[:, 0].tolist() == greedy.tokens.tolist() and one.mask[:, 0].tolist() == greedy.mask.tolist()
  np.testing.assert_allclose(one.scores[:, 0], greedy.log_probs.sum(1), rtol=1e-4)
  more = beam_search(stepwise(params), PROMPT, beams=4, max_new_tokens=NEW, length_penalty=0.0)
  assert (more.scores[:, 0] >= one.scores[:, 0] - 1e-5).all()
  assert (jnp.diff(more.scores) <= 0).all()


def test_padding_on_either_side_changes_nothing(params):
  run = lambda prompt, **k: beam_search(
      stepwise(params), jnp.array(prompt), beams=3, max_new_tokens=NEW, **k)
  plain = run([[3, 3, 2]])
  for prompt, mask in (([[3, 3, 2, 1, 1]], [[1, 1, 1, 0, 0]]), ([[1, 1, 3, 3, 2]], [[0, 0, 1, 1, 1]])):
    padded = run(prompt, mask=jnp.array(mask))
    assert padded.tokens.tolist() == plain.tokens.tolist()
    np.testing.assert_allclose(padded.scores, plain.scores, rtol=1e-4)


def test_fewer_continuations_than_beams_leave_the_rest_at_minus_infinity(params):
  out = beam_search(stepwise(params), PROMPT, beams=7, max_new_tokens=1)
  assert np.isfinite(out.scores[:, :5]).all() and np.isneginf(out.scores[:, 5:]).all()
  assert (np.sort(out.tokens[:, :5, 0]) == np.arange(5)).all()


def test_structured_leaves_and_a_soft_prompt(params):
  transform = lora("layers/**/kernel", rank=2)
  frozen, trainable = transform.split(jax.random.key(2), params)
  joined = transform.join(frozen, jax.tree.map(lambda x: x + 0.1, trainable))
  run = lambda params, prompt=PROMPT, **edits: beam_search(
      stepwise(params, **edits), prompt, beams=3, max_new_tokens=NEW)
  assert run(joined).tokens.tolist() == run(materialize(joined)).tokens.tolist()
  soft = {"embed": Prepend(params["embed"]["tokens"]["embedding"][PROMPT[0, :2]])}
  assert run(params, PROMPT[:1, 2:], prompt_edits=soft).tokens.tolist() == run(params, PROMPT[:1]).tokens.tolist()


def test_errors_name_the_argument(params):
  with pytest.raises(ValueError, match="beams must be at least 1; got 0"):
    beam_search(stepwise(params), PROMPT, beams=0, max_new_tokens=1)
  for wrong in (jnp.nan, jnp.inf):
    with pytest.raises(ValueError, match=f"length_penalty must be finite; got {wrong}"):
      beam_search(stepwise(params), PROMPT, beams=1, max_new_tokens=1, length_penalty=wrong)
  with pytest.raises(ValueError, match="max_new_tokens must be at least 1; got 0"):
    beam_search(stepwise(params), PROMPT, beams=1, max_new_tokens=0)
  with pytest.raises(ValueError, match=r"mask must be .* time = 4 as in prompt; got float32 \[2, 3\]"):
    beam_search(stepwise(params), PROMPT, beams=1, max_new_tokens=1, mask=jnp.ones((2, 3)))


def test_a_broken_model_has_no_scores_in_the_rows_that_it_breaks(params):
  run = lambda **edits: beam_search(stepwise(params, **edits), PROMPT, beams=3, max_new_tokens=NEW)
  spoil = {"embed": jax.tree_util.Partial(lambda x: x.at[1].set(jnp.nan))}
  whole, prompt, later = run(), run(prompt_edits=spoil), run(edits={"embed": jax.tree_util.Partial(
      lambda x: x.at[3:].set(jnp.nan))}, prompt_edits={})  # rows 3 to 5 are the beams of the second prompt
  for out in (prompt, later):
    assert np.isnan(out.scores[1]).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[0], rtol=1e-5), out, whole)


def test_a_model_without_a_cache_finds_what_the_decoder_finds(params):
  """All tokens so far in a buffer, read anew at each step; rows are taken along the first axis."""

  def read(params, tokens, mask):
    hidden = decoder.hidden_states(params, CONFIG, tokens, mask=mask).hidden
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return decoder.logits(params, CONFIG, hidden[jnp.arange(len(tokens)), last])

  def start(params, prompt, mask, room):
    wide = lambda x: jnp.pad(x, ((0, 0), (0, room)))
    tokens, mask = wide(prompt), wide(mask)
    return read(params, tokens, mask), (tokens, mask, jnp.full(len(prompt), prompt.shape[1]))

  def step(params, state, tokens, running):
    text, mask, length = state
    rows = jnp.arange(len(tokens))
    text, mask = text.at[rows, length].set(tokens), mask.at[rows, length].set(running)
    return read(params, text, mask), (text, mask, length + 1)

  model = Stepwise(params=params, start=start, step=step, vocab_size=CONFIG.vocab_size, eos_id=CONFIG.eos_id)
  options = {"beams": 3, "max_new_tokens": NEW}
  want, got = (beam_search(m, PROMPT, **options) for m in (stepwise(params), model))
  assert got.tokens.tolist() == want.tokens.tolist()
  np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5)
  wrong = Stepwise(params=params, start=start, step=step, vocab_size=CONFIG.vocab_size + 1)
  with pytest.raises(ValueError, match=r"model must give logits of shape \(2, 6\), .*; got \(2, 5\)"):
    beam_search(wrong, PROMPT, **options)
