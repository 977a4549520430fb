"""Damaged text: what is replaced and what is not, spans that add up, and texts that come together again."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data.corruption import denoising, layer_noise, spans, tokens, vectors
from jaxft.models import DecoderConfig, decoder
from tests import draws

KEYS = jax.random.split(jax.random.key(0), 400)
TOKENS, WHERE = np.tile(np.arange(10, 20, dtype=np.int32), (400, 1)), np.tile(np.arange(10) >= 4, (400, 1))


def test_tokens_are_replaced_where_they_may_be_and_as_often_as_asked():
  for options in ({"mask_id": 99}, {"replacement": "uniform", "vocab_size": 50},
                  {"replacement": "mixed", "mask_id": 99, "vocab_size": 50}):
    got, chosen = jax.device_get(tokens.corrupt_tokens(KEYS[0], TOKENS, WHERE, rate=0.3, **options))
    assert not chosen[~WHERE].any() and (got[~chosen] == TOKENS[~chosen]).all()
    assert chosen[WHERE].mean() == pytest.approx(0.3, abs=3 * math.sqrt(0.21 / WHERE.sum()))
    assert ((got >= 0) & (got < 100)).all()
    kind = options.get("replacement", "mask")
    share = {"mask": 1.0, "uniform": 0.0, "mixed": 0.8}[kind]
    assert (got[chosen] == 99).mean() == pytest.approx(share, abs=0.06)
    stays = {"mask": 0.0, "uniform": 1 / 50, "mixed": 0.1 + 0.1 / 50}[kind]
    assert (got[chosen] == TOKENS[chosen]).mean() == pytest.approx(stays, abs=0.05)
  none = tokens.corrupt_tokens(KEYS[0], TOKENS, WHERE, rate=0.0, mask_id=99)
  every = tokens.corrupt_tokens(KEYS[0], TOKENS, WHERE, rate=1.0, mask_id=99)
  assert (none.tokens == TOKENS).all() and (np.asarray(every.tokens) == np.where(WHERE, 99, TOKENS)).all()
  rows = tokens.corrupt_tokens(KEYS[0], TOKENS[:2], WHERE[:2], rate=jnp.array([0.0, 1.0]), mask_id=99)
  assert not rows.chosen[0].any() and (rows.chosen[1] == WHERE[1]).all()


def test_a_generator_draws_by_its_probabilities():
  logits = np.log(np.tile(np.array([0.7, 0.2, 0.1, 1e-9], np.float32), (400, 10, 1)))
  got = np.asarray(tokens.replace_by_generator(KEYS[1], TOKENS, logits, WHERE))
  assert (got[~WHERE] == TOKENS[~WHERE]).all()
  np.testing.assert_allclose(np.bincount(got[WHERE], minlength=4) / WHERE.sum(), [0.7, 0.2, 0.1, 0], atol=0.03)


def test_every_segmentation_is_equally_likely():
  drawn = jax.vmap(lambda key: spans.random_segmentation(key, 5, 3, max_total=7))(KEYS)
  counts = Counter(map(tuple, np.asarray(drawn).tolist()))
  assert len(counts) == math.comb(4, 2) and all(sum(x) == 5 and min(x[:3]) >= 1 and not any(x[3:]) for x in counts)
  chi = sum((n - 400 / 6) ** 2 / (400 / 6) for n in counts.values())
  assert chi < 20.5  # of five degrees of freedom, one draw in a thousand is above


@pytest.mark.parametrize("roll", [False, True])
def test_spans_add_up(roll):
  draw = jax.jit(jax.vmap(lambda key, n, density, mean: spans.random_spans_mask(
      key, n, max_length=40, density=density, mean_span=mean, roll=roll)))
  lengths = np.arange(400) % 40 + 1
  for density, mean in ((0.15, 3.0), (0.5, 8.0), (0.15, 64.0), (0.7, 1.0)):
    masks = np.asarray(draw(KEYS, lengths, np.full(400, density, np.float32), np.full(400, mean, np.float32)))
    for mask, n in zip(masks, lengths, strict=True):
      assert not mask[n:].any()
      if n == 1:
        assert not mask.any() or roll
        continue
      hidden, count = denoising.hidden_and_spans(int(n), density, mean)
      begins = mask[:n] & ~np.roll(mask[:n], 1)
      assert mask.sum() == hidden and begins.sum() == count, (n, density, mean)
      assert roll or not mask[0] and mask[n - 1]
    assert not roll or masks[:, 0].any()


def test_the_end_of_a_text():
  masks = np.asarray(jax.vmap(lambda key: spans.prefix_mask(key, 8, max_length=10))(KEYS))
  prefixes = (~masks[:, :8]).sum(axis=1)
  assert not masks[:, 8:].any() and set(prefixes) == set(range(1, 8)) and (np.diff(masks[:, :8].astype(int)) >= 0).all()
  assert not spans.prefix_mask(KEYS[0], 1, max_length=3).any() and not spans.prefix_mask(KEYS[0], 0, max_length=3).any()


def filled(inputs, targets, first):
  """The text that a reader puts together, sentinel by sentinel."""
  parts, sentinel = {}, None
  for token in targets:
    if first - 20 < token <= first:
      sentinel = token
      parts[sentinel] = []
    else:
      parts[sentinel].append(token)
  return [x for token in inputs for x in parts.get(token, [token])]


def test_inputs_and_targets_make_the_text_again():
  rng = np.random.default_rng(0)
  run = jax.jit(lambda text, mask, n: denoising.span_corruption(
      text, mask, n, sentinel_start=999, eos_id=1, inputs_length=14, targets_length=20))
  for n in (1, 5, 12, 12, 12):
    text, mask = rng.integers(10, 900, 12), rng.random(12) < 0.5
    got = jax.device_get(run(text, mask, n))
    inputs, targets = got.inputs[:got.input_length], got.targets[:got.target_length]
    assert inputs[-1] == targets[-1] == 1
    assert not got.inputs[len(inputs):].any() and not got.targets[len(targets):].any()
    assert filled(inputs[:-1].tolist(), targets[:-1].tolist(), 999) == text[:n].tolist()
    marks = [x for x in targets.tolist() if x > 900]
    assert marks == [999 - i for i in range(got.spans)] == [x for x in inputs.tolist() if x > 900]
  cut = denoising.span_corruption(jnp.arange(10, 16), jnp.zeros(6, bool), 6, sentinel_start=99, eos_id=1,
                                  inputs_length=4, targets_length=2)
  assert cut.inputs.tolist() == [10, 11, 12, 13] and cut.input_length == 7 and cut.targets.tolist() == [1, 0]


def test_lengths_fill_the_inputs():
  assert denoising.span_lengths(512) == (568, 114)
  assert denoising.span_lengths(512, density=0.5)[1] <= 512
  for size, density, mean in ((30, 0.15, 3.0), (64, 0.5, 8.0), (20, 0.3, 2.0)):
    length, targets = denoising.span_lengths(size, density=density, mean_span=mean)
    hidden, count = denoising.hidden_and_spans(length, density, mean)
    assert length - hidden + count + 1 <= size and targets == hidden + count + 1


def test_a_mixture_of_denoisers():
  modes = {"R": 5, "S": 6, "X": 7}
  run = jax.jit(jax.vmap(lambda key: denoising.mixture_of_denoisers(
      key, jnp.arange(10, 50), 38, mode_ids=modes, sentinel_start=999, eos_id=1, inputs_length=60, targets_length=60)))
  text, task = jax.device_get(run(KEYS))
  counts = np.bincount(task, minlength=7)
  assert len(counts) == 7 and counts.min() > 30
  kept = []
  for i in range(400):
    inputs, targets = text.inputs[i, :text.input_length[i]], text.targets[i, :text.target_length[i]]
    assert inputs[0] == modes[denoising.UL2[task[i]][0].mode]
    if task[i] == 2:  # the prefix language model: no sentinel, one text in two parts
      assert [*inputs[1:-1], *targets[:-1]] == list(range(10, 48)) and text.spans[i] == 0
      kept.append(len(inputs) - 2)
    else:
      assert filled(inputs[1:-1].tolist(), targets[:-1].tolist(), 999) == list(range(10, 48))
  assert 19 <= min(kept) < 24 and 34 < max(kept) <= 37 and np.mean(kept) == pytest.approx(38 * 0.75, abs=3)
  single = denoising.mixture_of_denoisers(
      KEYS[0], jnp.arange(10, 50), 38, denoisers=denoising.T5, sentinel_start=999, eos_id=1, inputs_length=60,
      targets_length=60)
  assert single.text.inputs[0] == 10 and single.text.spans == denoising.hidden_and_spans(38, 0.15, 3.0)[1]


def test_noise_keeps_the_mean_and_what_does_not_count():
  h = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
  where = np.array([[1, 1, 0], [1, 0, 0]])
  dirty = np.where(where[..., None], h, np.nan).astype(np.float32)
  noise = jax.jit(jax.vmap(lambda key: vectors.adaptive_gaussian_noise(key, dirty, where) - dirty))(KEYS)
  noise = np.asarray(noise)[:, where != 0]
  std = noise.std()
  assert np.isfinite(noise).all() and abs(noise.mean()) < 5 * std / math.sqrt(noise.size)
  twice = np.asarray(vectors.adaptive_gaussian_noise(KEYS[0], dirty, where, noise_std=0.2) - dirty)[where != 0]
  np.testing.assert_allclose(twice, 2 * noise[0], rtol=1e-2, atol=1e-5)
  still = jnp.zeros((1, 2, 4))
  assert (vectors.adaptive_gaussian_noise(KEYS[0], still) == 0).all()
  one_token = np.full((2, 3, 3), [0, -np.inf, -np.inf], np.float32)
  certain = vectors.adaptive_gaussian_noise(KEYS[0], h, logits=one_token)
  assert np.isfinite(certain).all()
  slope = jax.grad(lambda x: vectors.adaptive_gaussian_noise(KEYS[0], x).sum())(h)
  np.testing.assert_array_equal(slope, 1)
  neftune = np.asarray(vectors.embedding_noise(KEYS[0], h, where, alpha=3.0)) - h
  bound = 3 / np.sqrt(np.array([2, 1]) * 64)
  assert not neftune[where == 0].any() and (np.abs(neftune).max(axis=(1, 2)) <= bound + 1e-6).all()
  assert (np.abs(neftune).max(axis=(1, 2)) > 0.8 * bound).all()


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match="mask_id must be an id >= 0 with replacement 'mask'; got None"):
    tokens.corrupt_tokens(KEYS[0], TOKENS, WHERE, rate=0.1)
  with pytest.raises(ValueError, match="vocab_size must be at least 1 with replacement 'uniform'; got None"):
    tokens.corrupt_tokens(KEYS[0], TOKENS, WHERE, rate=0.1, replacement="uniform")
  with pytest.raises(ValueError, match=r"rate must be a number or one for each of 400 rows; got \[2\]"):
    tokens.corrupt_tokens(KEYS[0], TOKENS, WHERE, rate=jnp.zeros(2), mask_id=1)
  with pytest.raises(ValueError, match="density must lie in"):
    spans.random_spans_mask(KEYS[0], 5, max_length=5, density=1.0)
  given = {"sentinel_start": 99, "eos_id": 1, "inputs_length": 9, "targets_length": 9}
  with pytest.raises(ValueError, match="sentinels must be at least 7 for .* of 40 tokens; got 3"):
    denoising.mixture_of_denoisers(KEYS[0], jnp.arange(40), 40, sentinels=3, **given, denoisers=denoising.UL2[3:])
  with pytest.raises(ValueError, match="mode_ids must have the modes of all denoisers; got none for S, X"):
    denoising.mixture_of_denoisers(KEYS[0], jnp.arange(40), 40, mode_ids={"R": 5}, **given)
  with pytest.raises(ValueError, match="denoisers must be tasks with weights >= 0, not all 0"):
    denoising.mixture_of_denoisers(KEYS[0], jnp.arange(40), 40, denoisers=(), **given)


def test_noise_of_chosen_layers_alone():
  config = DecoderConfig(vocab_size=7, dim=8, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=4, mlp_dim=8)
  params = draws.params(lambda: decoder.init(jax.random.key(0), config), 0, stddev=0.5)
  ids, where = np.arange(12, dtype=np.int32).reshape(2, 6) % 7, np.arange(6) < np.array([[6], [3]])

  @jax.jit
  def states(key, chosen, noise_std):
    edit = layer_noise.layer_noise(key, chosen, where, noise_std=noise_std)
    return decoder.hidden_states(params, config, ids, edits={"layers/out": edit}, record=("layers/out",)).recorded

  plain = decoder.hidden_states(params, config, ids, record=("layers/out",)).recorded["layers/out"]
  first = np.array([False, True, False])
  noisy, again, other = (states(KEYS[i], first, 0.5)["layers/out"] for i in (0, 0, 1))
  np.testing.assert_array_equal(noisy, again)
  np.testing.assert_allclose(noisy[0], plain[0], rtol=1e-5, atol=1e-6)
  apart = np.abs(np.asarray(noisy[1] - plain[1])).max(-1)
  assert (apart[where] > 1e-3).all() and (apart[1, 3:] < 1e-5).all()  # tokens that do not count stay
  assert (np.abs(np.asarray(noisy[2] - plain[2])).max(-1)[0] > 1e-3).all()  # and the next layer sees it
  assert (np.asarray(noisy[1] != other[1]).all(-1) == where).all()
  for none in (states(KEYS[0], first, 0.0), states(KEYS[0], ~first & False, 0.5)):
    np.testing.assert_allclose(none["layers/out"], plain, rtol=1e-5, atol=1e-6)
  both = states(KEYS[0], np.array([True, True, False]), 0.5)["layers/out"]
  assert (both[0] != plain[0]).any() and (both[1] != noisy[1]).any()
  with pytest.raises(ValueError, match="noise_std must"):
    layer_noise.layer_noise(KEYS[0], first, noise_std=-1.0)
