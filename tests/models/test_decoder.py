import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxft.leaves import materialize
from jaxft.leaves.low_rank import LowRank
from jaxft.losses import Mean
from jaxft.models import decoder
from jaxft.models.attention import attend
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Prepend
from jaxft.transforms import lora
from jaxft.transforms.entries.trainable_tokens import trainable_tokens
from jaxft.tree import cut_layers, unstack_layers

CONFIG = DecoderConfig(vocab_size=60, dim=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40)
IDS = jax.random.randint(jax.random.key(1), (2, 8), 1, 60)
WEIGHT = jax.random.normal(jax.random.key(2), (2, 8))


@pytest.fixture(scope="module")
def params():
  return decoder.init(jax.random.key(0), CONFIG, stddev=0.3)


@partial(jax.jit, static_argnames=("remat", "dtype", "attention"))
def states(params, ids=IDS, **options):
  return decoder.hidden_states(params, CONFIG, ids, **options).hidden


def close(a, b, rtol=1e-4, atol=2e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def plain_nll(params, config=CONFIG, ids=IDS, **options):
  logits = decoder.logits(params, config, decoder.hidden_states(params, config, ids, **options).hidden[:, :-1])
  nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1)[..., 0]
  return jnp.pad(nll, ((0, 0), (1, 0)))


def test_stacked_unrolled_and_cut_agree_under_every_remat_policy(params):
  grad = jax.jit(jax.grad(lambda p: jnp.sum(WEIGHT * plain_nll(p))))(params)
  cut = lambda p: cut_layers(p, [1])
  for arrange, remat in ((lambda p: p, "dots"), (unstack_layers, "full"), (cut, "none")):
    nll = lambda p, r=remat: decoder.token_nll(p, CONFIG, IDS, remat=r, chunk=3)[0]
    step = jax.jit(jax.grad(lambda p, nll=nll: jnp.sum(WEIGHT * nll(p))))
    close(step(arrange(params)), arrange(grad), rtol=1e-3, atol=1e-4)


def test_the_future_is_not_seen(params):
  changed = states(params, IDS.at[:, 5].set(7))
  close(changed[:, :5], states(params)[:, :5])
  assert (jnp.abs(changed[:, 5:] - states(params)[:, 5:]).max(-1) > 1e-3).all()


def test_padding_equals_absence_on_either_side(params):
  alone = states(params, IDS[:, :5])
  junk = jnp.full((2, 3), 9)
  mask = jnp.ones((2, 5), jnp.int32)
  right = states(params, jnp.concatenate([IDS[:, :5], junk], 1), mask=jnp.pad(mask, ((0, 0), (0, 3))))
  left = states(params, jnp.concatenate([junk, IDS[:, :5]], 1), mask=jnp.pad(mask, ((0, 0), (3, 0))))
  close(right[:, :5], alone)
  close(left[:, 3:], alone)
  assert np.isfinite(right).all() and np.isfinite(left).all()


def test_packed_equals_unpacked(params):
  row = jnp.concatenate([IDS[0, :5], IDS[1], jnp.zeros(3, jnp.int32)])[None]
  segments = jnp.repeat(jnp.array([1, 2, 0]), jnp.array([5, 8, 3]))[None]
  packed = states(params, row, segment_ids=segments)[0]
  close(packed[:5], states(params)[0, :5])
  close(packed[5:13], states(params)[1])
  score = jax.jit(lambda ids, segments=None: decoder.token_nll(params, CONFIG, ids, segment_ids=segments))
  (nll,), (weights,) = score(row, segments)
  apart, _ = score(IDS)
  close(nll[:5], apart[0, :5])
  close(nll[5:13], apart[1])
  # No segment is scored on the last one's end, nor padding.
  assert weights.tolist() == [0] + [1] * 4 + [0] + [1] * 7 + [0] * 3 and (nll[weights == 0] == 0).all()


def test_only_relative_positions_matter(params):
  close(states(params, positions=jnp.arange(8)[None] + 40), states(params))
  spread = states(params, positions=2 * jnp.arange(8)[None])
  assert not np.allclose(spread, states(params), atol=1e-2)


def test_grouped_heads_equal_repeated_heads(params):
  full = DecoderConfig(**{**CONFIG.__dict__, "num_kv_heads": 4})
  repeated = jax.tree.map(lambda x: x, params)
  for name in ("key", "value"):
    kernel = params["layers"]["attention"][name]["kernel"].reshape(3, 24, 2, 8)
    repeated["layers"]["attention"][name] = {"kernel": jnp.repeat(kernel, 2, axis=2).reshape(3, 24, 32)}
  close(decoder.hidden_states(repeated, full, IDS).hidden, states(params))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_the_one_of_jax(masked, prefix, causal):
  query, key, value = (
      jax.random.normal(jax.random.key(i), (2, n, heads, 8))
      for i, (n, heads) in enumerate([(6, 4), (6 + prefix, 2), (6 + prefix, 2)])
  )
  mask = (jnp.arange(6) < jnp.array([6, 4])[:, None])[:, None] if masked else None
  f = lambda implementation: lambda *qkv: jnp.sum(
      attend(*qkv, mask, causal=causal, implementation=implementation)[:, :4] ** 2)
  got, want = (jax.jit(jax.value_and_grad(f(i), argnums=(0, 1, 2)))(query, key, value) for i in (None, "xla"))
  close(got, want)


def test_cached_decoding_equals_one_pass(params):
  """A prompt in one piece, then a piece of two tokens, then token by token; the second row is padded on the left."""
  mask = jnp.array([[1] * 8, [0, 0, 0] + [1] * 5])
  want = states(params, mask=mask)
  cache = decoder.init_cache(CONFIG, 2, 10)
  step = jax.jit(lambda ids, mask, cache: decoder.hidden_states(params, CONFIG, ids, mask=mask, cache=cache)[:2])
  for start, stop in ((0, 4), (4, 6), (6, 7), (7, 8)):
    hidden, cache = step(IDS[:, start:stop], mask[:, start:stop], cache)
    real = np.asarray(mask[:, start:stop], bool)
    close(hidden[real], want[:, start:stop][real])
  assert cache.length == 8 and cache.position.tolist() == [8, 5]


def test_the_cache_is_written_in_place(params):
  """The cache is carried through the layers: the compiled step holds no second one."""
  cache = decoder.init_cache(CONFIG, 2, 4096)
  size = cache.key.nbytes + cache.value.nbytes
  step = jax.jit(lambda ids, cache: decoder.hidden_states(params, CONFIG, ids, cache=cache)[:2], donate_argnums=1)
  memory = step.lower(IDS[:, :1], cache).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.9 * size  # one layer's slices in flight, out of three


@pytest.mark.parametrize("tie", [True, False])
def test_token_nll_equals_the_plain_path(tie):
  config = DecoderConfig(**{**CONFIG.__dict__, "tie_embeddings": tie})
  params = decoder.init(jax.random.key(0), config, stddev=0.3)
  assert ("head" in params) != tie
  mask = jnp.arange(8) < jnp.array([8, 5])[:, None]
  where = jnp.arange(8) >= jnp.array([3, 2])[:, None]
  def fast(p):
    values, weights = decoder.token_nll(p, config, IDS, mask=mask, where=where, chunk=4)
    return jnp.sum(WEIGHT * values) + Mean.of(values, weights).value

  def plain(p):
    values, weights = plain_nll(p, config, mask=mask), (where & mask).astype(jnp.float32)
    return jnp.sum(WEIGHT * weights * values) + jnp.sum(weights * values) / 8

  close(*(jax.jit(jax.value_and_grad(f))(params) for f in (fast, plain)), rtol=1e-3, atol=1e-4)


def test_the_mean_counts_the_scored_tokens_alone(params):
  """The idiom of the README: a mask of a third of the tokens gives the mean over that third."""
  where = jnp.arange(8) % 3 == 0  # the first token too, which nothing predicts
  mean = Mean.of(*decoder.token_nll(params, CONFIG, IDS, where=jnp.broadcast_to(where, IDS.shape)))
  close(mean.value, plain_nll(params)[:, 3::3].mean())
  assert mean.weight == 4
  doubled = Mean.of(*decoder.token_nll(params, CONFIG, IDS, where=jnp.broadcast_to(2.0 * where, IDS.shape)))
  assert doubled.weight == 8
  close(doubled.value, mean.value)


def test_structured_leaves_equal_the_materialized_model(params):
  transform = lora(["layers/**/kernel", "embed/tokens/embedding"], rank=3)
  frozen, trainable = transform.split(jax.random.key(2), params)
  trainable = jax.tree.map(lambda x: x + 0.05, trainable)
  loss = lambda p: jnp.sum(WEIGHT * decoder.token_nll(p, CONFIG, IDS)[0])
  got = jax.jit(jax.value_and_grad(lambda t: loss(transform.join(frozen, t))))(trainable)
  want = jax.jit(jax.value_and_grad(lambda t: loss(materialize(transform.join(frozen, t)))))(trainable)
  close(got, want, rtol=2e-3, atol=1e-3)


def test_a_frozen_head_is_multiplied_twice_in_a_training_step():
  config = DecoderConfig(vocab_size=4096, dim=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=16)
  params = decoder.init(jax.random.key(0), config)
  transform = lora("layers/**/kernel", rank=1)
  frozen, trainable = transform.split(jax.random.key(1), params)
  step = jax.jit(jax.grad(lambda t: decoder.token_nll(transform.join(frozen, t), config, IDS)[0].sum()))
  flops = step.lower(trainable).compile().cost_analysis()["flops"]
  product = 2 * 2 * 7 * 16 * 4096
  assert 2 * product < flops < 2.7 * product


def test_init_scales_down_what_writes_to_the_residual_stream():
  config = DecoderConfig(vocab_size=64, dim=32, num_layers=8, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
  layers = decoder.init(jax.random.key(0), config, stddev=0.1)["layers"]
  spread = {name: np.std(layers[part][name]["kernel"]) for part, name in (
      ("attention", "query"), ("attention", "key"), ("attention", "value"), ("attention", "out"), ("mlp", "gate"),
      ("mlp", "up"), ("mlp", "down"))}
  # Of 4096 entries or more a spread is off by a hundredth; 1 / sqrt(2 * 8) is a quarter.
  want = {name: 0.025 if name in ("out", "down") else 0.1 for name in spread}
  assert spread == pytest.approx(want, rel=0.06)


def test_bfloat16_stays_bfloat16_and_close(params):
  hidden = states(params, dtype=jnp.bfloat16)
  assert hidden.dtype == jnp.bfloat16
  assert np.abs(hidden.astype(jnp.float32) - states(params)).max() < 0.3
  assert decoder.token_nll(params, CONFIG, IDS, dtype=jnp.bfloat16)[0].dtype == jnp.float32


def test_a_soft_prompt_of_token_embeddings_is_these_tokens(params):
  edits = {"embed": Prepend(params["embed"]["tokens"]["embedding"][IDS[0, :3]])}
  rest = IDS[:1, 3:]
  close(decoder.hidden_states(params, CONFIG, rest, edits=edits).hidden, states(params, IDS[:1]))
  got, want = decoder.token_nll(params, CONFIG, rest, edits=edits)[0], decoder.token_nll(params, CONFIG, IDS[:1])[0]
  close(got[:, 1:], want[:, 4:])
  with pytest.raises(ValueError, match="added 3 positions"):
    decoder.hidden_states(params, CONFIG, rest, edits=edits, segment_ids=jnp.ones_like(rest))


def test_a_sharded_pass_equals_one_device(params):
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  spec = {"query": P(None, None, "tensor"), "out": P(None, "tensor"), "up": P(None, None, "tensor"),
          "gate": P(None, None, "tensor"), "down": P(None, "tensor"), "tokens": P("tensor")}
  place = lambda path, x: jax.device_put(x, NamedSharding(mesh, next(
      (s for name, s in spec.items() if f"'{name}'" in jax.tree_util.keystr(path)), P())))
  ids = jnp.concatenate([IDS, IDS[:, ::-1]])
  value = lambda p, ids: decoder.token_nll(p, CONFIG, ids, chunk=3)[0]
  want = jax.jit(value)(params, ids)
  sharded = jax.tree_util.tree_map_with_path(place, params)
  got = jax.jit(value)(sharded, jax.device_put(ids, NamedSharding(mesh, P("data"))))
  assert len(got.sharding.device_set) == 8
  close(got, want)


BAD = jnp.array([[3, 5, 60, 7, 1], [3, -1, 4, 7, 1]])  # of 60 rows


def test_a_token_without_a_row_gives_nan_and_never_another_tokens_row(params):
  for edited in (params, adapted(params)):
    assert np.isnan(states(edited, BAD)).any((1, 2)).all()
  padded = jnp.array([[1, 1, 0, 0, 0], [1, 0, 0, 1, 1]])
  mask_or_segments = ({"mask": padded}, {"segment_ids": jnp.array([[1, 1, 0, 0, 0], [1, 0, 0, 2, 2]])})
  for options in mask_or_segments:  # at padding any id will do
    real = np.asarray(padded, bool)
    got, want = (states(params, ids, **options) for ids in (BAD, BAD.clip(0, 59)))
    assert np.isfinite(got).all()
    close(got[real], want[real])


def adapted(params):
  """Rows of the embedding replaced, in a structured leaf."""
  transform = trainable_tokens([3])
  return transform.join(*transform.split(jax.random.key(0), params))


def test_positions_beyond_the_context(params):
  short = dataclasses.replace(CONFIG, max_length=6)
  run = lambda ids, **options: decoder.hidden_states(params, short, ids, **options).hidden
  message = "at most max_length = 6 positions, the model's context; got 8"
  for options in ({}, {"mask": jnp.ones_like(IDS)}, {"cache": decoder.init_cache(short, 2, 9)}):
    with pytest.raises(ValueError, match=message):
      run(IDS, **options)
  with pytest.raises(ValueError, match="at most max_length = 6 positions, the model's context; got 7"):
    run(IDS[:, :5], edits={"embed": Prepend(jnp.zeros((2, CONFIG.dim)))})
  # A packed row may be longer than the context, and no segment of it.
  fits, over = jnp.array([[1] * 6 + [2] * 2] * 2), jnp.array([[1] * 7 + [2]] * 2)
  close(run(IDS, segment_ids=fits), states(params, segment_ids=fits))
  positions = jnp.arange(8)[None]
  for options in ({"segment_ids": over}, {"positions": positions}, {"positions": -1 - positions[:, :4]}):
    ids = IDS[:, :next(iter(options.values())).shape[1]]
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 6\), max_length being the model's context; got"):
      run(ids, **options)
  # What is traced cannot be refused.
  assert np.isnan(jax.jit(lambda p: run(IDS, positions=p))(positions)).all()
  # From a cache with more slots than the context: token by token up to it, and no further.
  cache, hidden = decoder.init_cache(short, 2, 9), []
  step = jax.jit(lambda ids, cache: decoder.hidden_states(params, short, ids, cache=cache)[:2])
  for t in range(7):
    out, cache = step(IDS[:, t:t + 1], cache)
    hidden.append(np.isnan(out).any())
  assert hidden == [False] * 6 + [True]


def test_dropout_on_a_tied_head_acts_on_the_states_that_enter_its_factors(params):
  a, b = (jax.random.normal(jax.random.key(i), shape) for i, shape in ((3, (60, 2)), (4, (2, 24))))
  w, key, hidden = params["embed"]["tokens"]["embedding"], jax.random.key(5), states(params)
  table = LowRank(w, a, b, scale=0.5, dropout=0.5, key=key)
  dropped = jnp.where(jax.random.bernoulli(key, 0.5, hidden.shape), 2 * hidden, 0)
  want = hidden @ w.T + 0.5 * (dropped @ b.T) @ a.T
  close(decoder.logits({"embed": {"tokens": {"embedding": table}}}, CONFIG, hidden), want, rtol=1e-3)
  assert np.abs(want - hidden @ (w + 0.5 * a @ b).T).max() > 1


@pytest.mark.parametrize("name", ["bos_id", "eos_id", "pad_id"])
def test_a_special_token_is_a_row_of_the_embedding(name):
  for token in (60, -1):
    with pytest.raises(ValueError, match=rf"{name} must lie in \[0, vocab_size = 60\); got {token}"):
      dataclasses.replace(CONFIG, **{name: token})


def test_errors_name_the_argument(params):
  with pytest.raises(ValueError, match="multiple of num_kv_heads; got 4 and 3"):
    DecoderConfig(**{**CONFIG.__dict__, "num_kv_heads": 3})
  with pytest.raises(ValueError, match="head_dim must be even"):
    DecoderConfig(**{**CONFIG.__dict__, "head_dim": 7})
  with pytest.raises(TypeError, match="hidden must .*floating-point"):
    decoder.logits(params, CONFIG, IDS)
  cache = decoder.init_cache(CONFIG, 2, 7)
  with pytest.raises(ValueError, match="cache has 7 slots; got 8 positions"):
    decoder.hidden_states(params, CONFIG, IDS, cache=cache)
  with pytest.raises(ValueError, match="exclude each other"):
    decoder.hidden_states(params, CONFIG, IDS[:, :2], cache=cache, segment_ids=IDS[:, :2])
