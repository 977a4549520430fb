from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxft.models import decoder
from jaxft.models.attention import attend
from jaxft.models.decoder import DecoderConfig
from jaxft.models.sites import Prepend
from jaxft.transforms import cut_layers, lora, materialize, unstack_layers

CONFIG = DecoderConfig(vocab_size=60, dim=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40)
IDS = jax.random.randint(jax.random.key(1), (2, 8), 1, 60)
WEIGHT = jax.random.normal(jax.random.key(2), (2, 7))


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
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1)[..., 0]


def test_stacked_unrolled_and_cut_agree_under_every_remat_policy(params):
  grad = jax.jit(jax.grad(lambda p: jnp.sum(WEIGHT * plain_nll(p))))(params)
  cut = lambda p: cut_layers(p, [1])
  for arrange, remat in ((lambda p: p, "dots"), (unstack_layers, "full"), (cut, "none")):
    step = jax.jit(jax.grad(lambda p, r=remat: jnp.sum(WEIGHT * decoder.token_nll(p, CONFIG, IDS, remat=r, chunk=3))))
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
  nll, apart = score(row, segments)[0], score(IDS)
  close(nll[:4], apart[0, :4])
  close(nll[5:12], apart[1])
  assert nll[4] == 0 and (nll[12:] == 0).all()  # no segment is scored on the last one's end, nor padding


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
  chosen = decoder.scored(IDS, where=where, mask=mask)
  assert chosen.sum(1).tolist() == [5, 3]
  fast = lambda p: jnp.sum(WEIGHT * decoder.token_nll(p, config, IDS, mask=mask, where=where, chunk=4))
  plain = lambda p: jnp.sum(WEIGHT * jnp.where(chosen, plain_nll(p, config, mask=mask), 0))
  close(*(jax.jit(jax.value_and_grad(f))(params) for f in (fast, plain)), rtol=1e-3, atol=1e-4)


def test_structured_leaves_equal_the_materialized_model(params):
  transform = lora(["layers/**/kernel", "embed/tokens/embedding"], rank=3)
  frozen, trainable = transform.split(jax.random.key(2), params)
  trainable = jax.tree.map(lambda x: x + 0.05, trainable)
  loss = lambda p: jnp.sum(WEIGHT * decoder.token_nll(p, CONFIG, IDS))
  got = jax.jit(jax.value_and_grad(lambda t: loss(transform.join(frozen, t))))(trainable)
  want = jax.jit(jax.value_and_grad(lambda t: loss(materialize(transform.join(frozen, t)))))(trainable)
  close(got, want, rtol=2e-3, atol=1e-3)


def test_a_frozen_head_is_multiplied_twice_in_a_training_step():
  config = DecoderConfig(vocab_size=4096, dim=16, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=16)
  params = decoder.init(jax.random.key(0), config)
  transform = lora("layers/**/kernel", rank=1)
  frozen, trainable = transform.split(jax.random.key(1), params)
  step = jax.jit(jax.grad(lambda t: decoder.token_nll(transform.join(frozen, t), config, IDS).sum()))
  flops = step.lower(trainable).compile().cost_analysis()["flops"]
  product = 2 * 2 * 7 * 16 * 4096
  assert 2 * product < flops < 2.7 * product


def test_bfloat16_stays_bfloat16_and_close(params):
  hidden = states(params, dtype=jnp.bfloat16)
  assert hidden.dtype == jnp.bfloat16
  assert np.abs(hidden.astype(jnp.float32) - states(params)).max() < 0.3
  assert decoder.token_nll(params, CONFIG, IDS, dtype=jnp.bfloat16).dtype == jnp.float32


def test_a_soft_prompt_of_token_embeddings_is_these_tokens(params):
  edits = {"embed": Prepend(params["embed"]["tokens"]["embedding"][IDS[0, :3]])}
  rest = IDS[:1, 3:]
  close(decoder.hidden_states(params, CONFIG, rest, edits=edits).hidden, states(params, IDS[:1]))
  close(decoder.token_nll(params, CONFIG, rest, edits=edits), decoder.token_nll(params, CONFIG, IDS[:1])[:, 3:])
  with pytest.raises(ValueError, match="added 3 positions"):
    decoder.hidden_states(params, CONFIG, rest, edits=edits, segment_ids=jnp.ones_like(rest))


def test_a_sharded_pass_equals_one_device(params):
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  spec = {"query": P(None, None, "tensor"), "out": P(None, "tensor"), "up": P(None, None, "tensor"),
          "gate": P(None, None, "tensor"), "down": P(None, "tensor"), "tokens": P("tensor")}
  place = lambda path, x: jax.device_put(x, NamedSharding(mesh, next(
      (s for name, s in spec.items() if f"'{name}'" in jax.tree_util.keystr(path)), P())))
  ids = jnp.concatenate([IDS, IDS[:, ::-1]])
  value = lambda p, ids: decoder.token_nll(p, CONFIG, ids, chunk=3)
  want = jax.jit(value)(params, ids)
  sharded = jax.tree_util.tree_map_with_path(place, params)
  got = jax.jit(value)(sharded, jax.device_put(ids, NamedSharding(mesh, P("data"))))
  assert len(got.sharding.device_set) == 8
  close(got, want)


def test_errors_name_the_argument(params):
  with pytest.raises(ValueError, match="multiple of num_kv_heads; got 4 and 3"):
    DecoderConfig(**{**CONFIG.__dict__, "num_kv_heads": 3})
  with pytest.raises(ValueError, match="head_dim must be even"):
    DecoderConfig(**{**CONFIG.__dict__, "head_dim": 7})
  cache = decoder.init_cache(CONFIG, 2, 7)
  with pytest.raises(ValueError, match="cache has 7 slots; got 8 positions"):
    decoder.hidden_states(params, CONFIG, IDS, cache=cache)
  with pytest.raises(ValueError, match="exclude each other"):
    decoder.hidden_states(params, CONFIG, IDS[:, :2], cache=cache, segment_ids=IDS[:, :2])
