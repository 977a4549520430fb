import dataclasses
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.decoding import beam_search, generate, sampling, stepwise_decoder, stop_strings
from jaxft.leaves import materialize
from jaxft.models import decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Prepend
from jaxft.transforms import lora

CONFIG = DecoderConfig(
    vocab_size=40, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24, pad_id=0
)
PROMPT = jax.random.randint(jax.random.key(1), (2, 5), 1, 40)
NEW = 6


def stepwise(params, **edits):
  return stepwise_decoder(params, CONFIG, **edits)


@pytest.fixture(scope="module")
def params():
  return decoder.init(jax.random.key(0), CONFIG, stddev=0.4)


@jax.jit
def next_logits(params, ids, length):
  """The next token's logits by a full pass over a row padded on the right."""
  hidden = decoder.hidden_states(params, CONFIG, ids).hidden
  return decoder.logits(params, CONFIG, jax.lax.dynamic_index_in_dim(hidden, length - 1, axis=1, keepdims=False))


def greedy(params, row):
  tokens, log_probs = list(row), []
  for _ in range(NEW):
    ids = jnp.zeros((1, 12), jnp.int32).at[0, :len(tokens)].set(jnp.array(tokens))
    logits = next_logits(params, ids, len(tokens))[0]
    tokens.append(int(logits.argmax()))
    log_probs.append(float(jax.nn.log_softmax(logits).max()))
  return tokens[len(row):], log_probs


def test_greedy_equals_full_passes_whichever_side_is_padded(params):
  rows = [PROMPT[0].tolist(), PROMPT[1, :3].tolist()]
  want = [greedy(params, row) for row in rows]
  right = jnp.array([rows[0], rows[1] + [9, 9]]), jnp.array([[1] * 5, [1, 1, 1, 0, 0]])
  left = jnp.array([rows[0], [9, 9] + rows[1]]), jnp.array([[1] * 5, [0, 0, 1, 1, 1]])
  for prompt, mask in (right, left):
    out = generate(stepwise(params), prompt, jax.random.key(0), mask=mask, max_new_tokens=NEW, temperature=0.0)
    assert out.tokens.tolist() == [tokens for tokens, _ in want]
    np.testing.assert_allclose(out.log_probs, [log_probs for _, log_probs in want], rtol=1e-4, atol=1e-5)
    assert out.mask.all()


def test_a_row_ends_with_its_stop_token_and_the_others_go_on(params):
  free = generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=NEW, temperature=0.0).tokens
  stop = int(free[0, 2])
  ends = [row.tolist().index(stop) + 1 if stop in row else NEW for row in free]
  assert ends[0] <= 3
  out = generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=NEW, temperature=0.0, stop=[stop])
  assert out.mask.sum(1).tolist() == ends
  for row, end in enumerate(ends):
    assert out.tokens[row, :end].tolist() == free[row, :end].tolist()
    assert (out.tokens[row, end:] == CONFIG.pad_id).all() and (out.log_probs[row, end:] == 0).all()


def test_samples_follow_the_models_distribution(params):
  n = 4000
  prompt = jnp.tile(PROMPT[:1, :2], (n, 1))
  out = generate(stepwise(params), prompt, jax.random.key(3), max_new_tokens=1, temperature=0.7, stop=())
  probabilities = jax.nn.softmax(next_logits(params, PROMPT[:1, :2], 2)[0] / 0.7)
  counts = np.bincount(out.tokens[:, 0], minlength=40)
  spread = np.sqrt(n * probabilities * (1 - probabilities))
  assert (np.abs(counts - n * probabilities) < 5 * spread + 1).all()


def test_the_same_key_draws_the_same_and_another_does_not(params):
  draw = lambda seed: generate(stepwise(params), PROMPT, jax.random.key(seed), max_new_tokens=NEW, top_k=20, top_p=0.99)
  assert (draw(0).tokens == draw(0).tokens).all()
  assert (draw(0).tokens != draw(1).tokens).any()


def test_several_samples_of_a_prompt_are_those_of_as_many_prompts(params):
  mask = jnp.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
  draw = lambda prompt, mask, **more: generate(
      stepwise(params), prompt, jax.random.key(0), max_new_tokens=NEW, mask=mask, stop=[3], **more)
  once, repeated = draw(PROMPT, mask, samples=3), draw(jnp.repeat(PROMPT, 3, axis=0), jnp.repeat(mask, 3, axis=0))
  np.testing.assert_array_equal(once.tokens, repeated.tokens)
  np.testing.assert_allclose(once.log_probs, repeated.log_probs, rtol=1e-5, atol=1e-6)
  assert once.tokens.shape == (6, NEW) and (once.tokens[0] != once.tokens[1]).any()


def test_structured_leaves_and_prompt_edits(params):
  transform = lora("layers/**/kernel", rank=2)
  frozen, trainable = transform.split(jax.random.key(2), params)
  joined = transform.join(frozen, jax.tree.map(lambda x: x + 0.1, trainable))

  def run(params, prompt=PROMPT, **edits):
    model = stepwise(params, **edits)
    return generate(model, prompt, jax.random.key(0), max_new_tokens=NEW, temperature=0.0)

  assert run(joined).tokens.tolist() == run(materialize(joined)).tokens.tolist()
  # A soft prompt made of the first two tokens' embeddings, in front of the rest.
  soft = {"embed": Prepend(params["embed"]["tokens"]["embedding"][PROMPT[0, :2]])}
  assert run(params, PROMPT[:1, 2:], prompt_edits=soft).tokens.tolist() == run(params, PROMPT[:1]).tokens.tolist()


def test_filters():
  logits = jnp.log(jnp.array([0.1, 0.5, 0.25, 0.15]))
  kept = lambda x: jnp.isfinite(x).tolist()
  assert kept(sampling.top_k(logits, 2)) == [False, True, True, False]
  assert kept(sampling.top_k(logits, 9)) == [True] * 4
  for p, want in ((1e-9, [False, True, False, False]), (0.5, [False, True, False, False]),
                  (0.7, [False, True, True, False]), (0.8, [False, True, True, True]), (1.0, [True] * 4)):
    assert kept(sampling.top_p(logits, p)) == want
  assert kept(sampling.min_p(logits, 0.4)) == [False, True, True, False]
  assert sampling.sample(jax.random.key(0), logits[None], temperature=0.0).tolist() == [1]


def test_the_temperature_comes_before_the_filters():
  logits = jnp.log(jnp.array([0.7, 0.2, 0.1]))
  # At temperature 0.5 the likeliest has 0.49 / 0.54, at 1 it has less than 0.8 and would bring the next along.
  draw = lambda temperature: sampling.sample(
      jax.random.key(0), jnp.tile(logits, (300, 1)), temperature=temperature, filters=(partial(sampling.top_p, p=0.8),))
  assert set(draw(0.5).tolist()) == {0}
  assert set(draw(1.0).tolist()) == {0, 1}


def test_a_filter_of_one_token_is_greedy(params):
  run = lambda **k: generate(stepwise(params), PROMPT, jax.random.key(4), max_new_tokens=NEW, **k).tokens.tolist()
  assert run(top_k=1) == run(top_p=1e-9) == run(min_p=1.0) == run(temperature=0.0)


def test_errors_name_the_argument(params):
  with pytest.raises(ValueError, match="max_new_tokens must be at least 1; got 0"):
    generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=0)
  with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
    generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=1, samples=0)
  with pytest.raises(ValueError, match=r"mask must be .* time = 5 as in prompt; got float32 \[2, 4\]"):
    generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=1, mask=jnp.ones((2, 4)))
  with pytest.raises(ValueError, match="temperature must be >= 0 and finite; got -1"):
    generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=1, temperature=-1)
  with pytest.raises(ValueError, match="k must be at least 1; got 0"):
    sampling.top_k(jnp.zeros(3), 0)
  with pytest.raises(TypeError, match="k must be an integer; got 1.5"):
    sampling.top_k(jnp.zeros(3), 1.5)


@pytest.mark.parametrize("name, filter, wrong", [
    ("top_p", sampling.top_p, (np.nan, -1.0, 0.0, 1.5)), ("min_p", sampling.min_p, (np.nan, -1.0, 2.0))])
def test_limits_out_of_range_are_refused_and_nan_where_traced(params, name, filter, wrong):
  logits = jnp.log(jnp.array([0.1, 0.5, 0.4]))
  for p in wrong:
    with pytest.raises(ValueError, match=rf"^p must lie in [\[(]0, 1\]; got {p}"):
      filter(logits, p)
    with pytest.raises(ValueError, match=rf"^{name} must lie in [\[(]0, 1\]; got {p}"):
      generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=1, **{name: p})
    assert np.isnan(jax.jit(filter)(logits, p)).all()
  assert np.array_equal(jax.jit(filter)(logits, 0.5), filter(logits, 0.5))


BROKEN = jnp.array([[0.0, 1.0, 2.0], [0.0, jnp.nan, 2.0], [-jnp.inf] * 3, [0.0, jnp.inf, 0.0]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_distribution_gives_no_token(temperature):
  draw = lambda logits: sampling.sample(jax.random.key(0), logits, temperature=temperature)
  for row in (1, 2, 3):
    with pytest.raises(ValueError, match="logits, .* must have a finite maximum .*; that of row 1 is (nan|inf|-inf)"):
      draw(BROKEN[jnp.array([0, row])])
  assert (jax.jit(draw)(BROKEN)[1:] == -1).all() and jax.jit(draw)(BROKEN)[0] == draw(BROKEN[:1])[0]
  for wrong in (np.nan, np.inf, -1.0):
    with pytest.raises(ValueError, match=f"temperature must be >= 0 and finite; got {wrong}"):
      sampling.sample(jax.random.key(0), BROKEN[:1], temperature=wrong)


def test_a_broken_model_ends_its_row_with_no_token_and_nan(params):
  key, embed = jax.random.key(0), params["embed"]["tokens"]["embedding"]
  broken = {**params, "embed": {"tokens": {"embedding": embed.at[PROMPT[1, 0]].set(jnp.nan)}}}
  out = generate(stepwise(broken), PROMPT[1:], key, max_new_tokens=2)
  assert out.tokens.tolist() == [[-1, 0]] and out.mask.tolist() == [[True, False]]
  assert np.isnan(out.log_probs[0, 0]) and out.log_probs[0, 1] == 0


def test_what_the_model_has_no_row_or_no_place_for(params):
  config = dataclasses.replace(CONFIG, max_length=8)
  left = jnp.array([[1] * 5, [0, 0, 1, 1, 1]])
  soft = {"embed": Prepend(jnp.zeros((2, 16)))}
  for prompt, options, message in (
      (PROMPT.at[1, 3].set(40), {}, r"prompt must lie in \[0, 40\), vocab_size; got 40 at \[1, 3\]"),
      (PROMPT.at[0, 0].set(-1), {}, r"got -1 at \[0, 0\]"),
      (PROMPT, {"stop": [3, -1]}, r"stop must be token ids in \[0, vocab_size = 40\); got -1"),
      (PROMPT, {"mask": left.at[1].set(0)}, "mask must leave every row of the prompt a real token; row 1 has none"),
      (PROMPT, {"max_new_tokens": 5}, "at most 4 after a prompt of 5 positions.*max_length = 8; got 5"),
      (PROMPT, {"mask": left, "max_new_tokens": 5}, "at most 4 after a prompt of 5"),
      (PROMPT, {"prompt_edits": soft, "max_new_tokens": 3}, "at most 2 after a prompt of 7"),
      (jnp.tile(PROMPT, 2), {"mask": jnp.tile(left, 2).at[:, 5:].set(0)}, "prompt may have at most max_length = 8"),
  ):
    model = stepwise_decoder(params, config, prompt_edits=options.pop("prompt_edits", None))
    with pytest.raises(ValueError, match=message):
      generate(model, prompt, jax.random.key(0), **{"max_new_tokens": 1} | options)
    with pytest.raises(ValueError, match=message):
      beam_search(model, prompt, beams=2, **{"max_new_tokens": 1} | options)


def test_up_to_the_last_position_of_the_context(params):
  """The last new token is drawn and never read; padding takes no position."""
  config = dataclasses.replace(CONFIG, max_length=8)
  run = lambda config, prompt, **options: generate(
      stepwise_decoder(params, config), prompt, jax.random.key(0), max_new_tokens=4, temperature=0.0, **options)
  want = run(CONFIG, PROMPT)
  padded = jnp.pad(PROMPT, ((0, 0), (3, 0)), constant_values=-100)
  for got in (run(config, PROMPT), run(config, padded, mask=padded >= 0)):
    assert got.tokens.tolist() == want.tokens.tolist() and np.isfinite(got.log_probs).all()


def test_the_same_settings_compile_once(params):
  run = lambda params: generate(
      stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=2, temperature=0.0)
  run(params)
  loop = sys.modules[generate.__module__]
  before = loop._generate._cache_size()
  run(jax.tree.map(lambda x: 2 * x, params))
  assert loop._generate._cache_size() == before


PIECES = [chr(ord("a") + i % 26) * (1 + i // 26) for i in range(40)]


def test_a_row_ends_where_its_text_has_a_stop_string(params):
  """Spelled by one token or by several; the others go on, and what the prompt ends with does not count."""
  run = lambda **options: generate(
      stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=NEW, temperature=0.0, **options)
  free = run()
  texts = ["".join(PIECES[t] for t in row) for row in free.tokens]
  wanted = [texts[0][1:3], "zzzzz"]  # of two tokens, or across them
  ends = []
  for row in free.tokens:
    so_far = ["".join(PIECES[t] for t in row[: n + 1]) for n in range(NEW)]
    ends.append(next((n + 1 for n, text in enumerate(so_far) if wanted[0] in text), NEW))
  assert ends[0] < NEW
  out = run(stop_strings=stop_strings(PIECES, wanted))
  assert out.mask.sum(1).tolist() == ends
  for row, end in enumerate(ends):
    assert out.tokens[row, :end].tolist() == free.tokens[row, :end].tolist()
  with pytest.raises(ValueError, match=r"a column for each of the model's 40 tokens \(vocab_size\); got 3"):
    run(stop_strings=stop_strings(["a", "b", "c"], ["ab"]))
  prompt_ends = PIECES[PROMPT[0, -1]] + texts[0][0]
  if prompt_ends not in texts[0]:
    assert run(stop_strings=stop_strings(PIECES, [prompt_ends])).tokens[0].tolist() == free.tokens[0].tolist()


def test_the_automaton_finds_what_a_search_of_the_text_finds():
  rng = np.random.default_rng(0)
  pieces = ["a", "b", "ab", "ba", "aab", "", "c"]
  for strings in (["aab"], ["abab", "ba"], ["aaa", "c"], ["a"]):
    after = stop_strings(pieces, strings, vocab_size=9).after
    for _ in range(200):
      tokens = rng.integers(0, 9, 6)
      state, text = 0, ""
      for token in tokens:
        state, text = after[state, token], text + (pieces[token] if token < 7 else "")
        assert (state == len(after) - 1) == any(string in text for string in strings)
  with pytest.raises(TypeError, match="strings must be a sequence of str; got 'ab'"):
    stop_strings(pieces, "ab")
  for wrong in ([], ["a", ""]):
    with pytest.raises(ValueError, match="strings must be one string or more"):
      stop_strings(pieces, wrong)
  with pytest.raises(ValueError, match="vocab_size must be at least 7"):
    stop_strings(pieces, ["a"], vocab_size=6)


def test_log_probs_of_what_was_drawn_and_of_the_model(params):
  out = generate(stepwise(params), PROMPT, jax.random.key(5), max_new_tokens=2, temperature=0.5, top_k=3, stop=())
  logits = next_logits(params, PROMPT, 5)
  token = np.asarray(out.tokens[:, 0])
  of = lambda scores: np.asarray(jax.nn.log_softmax(scores))[np.arange(2), token]
  np.testing.assert_allclose(out.log_probs[:, 0], of(logits), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(out.sampling_log_probs[:, 0], of(sampling.top_k(logits / 0.5, 3)), rtol=1e-4, atol=1e-5)
  assert (generate(stepwise(params), PROMPT, jax.random.key(0), max_new_tokens=NEW, temperature=0.0)
          .sampling_log_probs == 0).all()


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-20])
def test_the_lowest_temperature_takes_the_likeliest(temperature):
  logits = jnp.array([[0.0, 2.0, 1.0], [5.0, -3.0, -1e30]])
  assert sampling.sample(jax.random.key(0), logits, temperature=temperature).tolist() == [1, 0]
