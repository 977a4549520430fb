import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.data import pack_texts
from jaxft.leaves import materialize
from jaxft.models import encoder
from jaxft.models.attention import Disentangled, attend, signed_buckets
from jaxft.models.encoder import EncoderConfig
from jaxft.models.heads.pooling import by_text
from jaxft.models.sites import Prepend
from jaxft.training import embed_cached
from jaxft.transforms import freeze, lora
from jaxft.tree import cut_layers, unstack_layers

CONFIG = EncoderConfig(vocab_size=50, dim=32, num_layers=2, num_heads=4, mlp_dim=64, max_length=16)
IDS = jax.random.randint(jax.random.key(1), (3, 9), 0, 50)
MASK = jax.device_put(np.arange(9) < np.array([9, 4, 1])[:, None])


@pytest.fixture(scope="module")
def params():
  return encoder.init(jax.random.key(0), CONFIG, stddev=0.3)


def loss(params, **options):
  return jnp.sum(encoder.embed(params, CONFIG, IDS, MASK, **options)[:, :3] ** 2)


def close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_stacked_unrolled_and_cut_agree_under_every_remat_policy(params):
  value, grad = jax.jit(jax.value_and_grad(loss))(params)
  cut = lambda p: cut_layers(p, [1])
  for arrange, remat in ((lambda p: p, "none"), (unstack_layers, "full"), (cut, jax.checkpoint_policies.dots_saveable)):
    got, got_grad = jax.jit(jax.value_and_grad(lambda p: loss(p, remat=remat)))(arrange(params))
    np.testing.assert_allclose(got, value, rtol=1e-5)
    close(got_grad, arrange(grad), rtol=1e-4, atol=1e-5)


def test_a_mixture_of_single_layers_and_stacks(params):
  cut = cut_layers(params, [1])
  cut["layers"]["1"] = jax.tree.map(lambda x: x[0], cut["layers"].pop("1:2"))
  close(jax.jit(loss)(cut), jax.jit(loss)(params))


def test_padding_equals_absence_and_its_ids_do_not_matter(params):
  embed = jax.jit(lambda ids, mask=None: encoder.embed(params, CONFIG, ids, mask))
  together = embed(IDS, MASK)
  for row, length in enumerate([9, 4, 1]):
    close(embed(IDS[row:row + 1, :length]), together[row:row + 1], rtol=1e-4, atol=1e-5)
  close(embed(jnp.where(MASK, IDS, 7), MASK), together)
  assert not np.allclose(embed(IDS), together, atol=1e-2)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_texts_get_the_vectors_and_gradients_that_they_get_alone(params, pooling):
  config = dataclasses.replace(CONFIG, pooling=pooling)
  texts = [list(map(int, row[:n])) for row, n in zip(IDS, [9, 4, 1], strict=True)]
  packed = pack_texts([*texts, texts[1]], 12)
  assert packed["ids"].shape == (2, 12)

  def apart(params):
    return encoder.embed(params, config, IDS, MASK)

  def together(params):
    return encoder.embed_packed(params, config, packed["ids"], packed["segment_ids"], 4)

  def by_row(params):
    embed = lambda params, rows, key: encoder.embed_segments(params, config, rows["ids"], rows["segment_ids"], 3)
    vectors = embed_cached(embed, params, packed, jax.random.key(0), chunks=2)
    return by_text(vectors, packed["segment_ids"], 4)

  weight = jax.random.normal(jax.random.key(2), (3, CONFIG.dim))

  def weighed(vectors):
    def loss(params):
      out = vectors(params)
      return jnp.sum(weight * out[:3]), out

    return jax.jit(jax.grad(loss, has_aux=True))

  gradient, value = weighed(apart)(params)
  for vectors in (together, by_row):
    got_gradient, got = weighed(vectors)(params)
    close(got, value[jnp.array([0, 1, 2, 1])], rtol=1e-4, atol=1e-5)
    close(got_gradient, gradient, rtol=1e-3, atol=1e-4)


def test_packed_rows_take_no_prepended_positions(params):
  prompt = {"embed": Prepend(jnp.zeros((2, CONFIG.dim)))}
  with pytest.raises(ValueError, match="added 2 positions: then segment_ids must be None"):
    encoder.hidden_states(params, CONFIG, IDS, segment_ids=jnp.ones_like(IDS), edits=prompt)


def test_position_and_type_are_read(params):
  embed = jax.jit(lambda ids, types: encoder.embed(params, CONFIG, ids, types=types))
  plain = embed(IDS, 0 * IDS)
  close(plain, jax.jit(lambda ids: encoder.embed(params, CONFIG, ids))(IDS))
  assert not np.allclose(embed(IDS[:, ::-1], 0 * IDS), plain, atol=1e-3)
  assert not np.allclose(embed(IDS, 0 * IDS + 1), plain, atol=1e-3)


def test_prepended_positions_are_of_type_0_and_the_types_stay_with_their_tokens(params):
  types = jnp.array([[1, 1, 0, 1, 0, 0]])
  edits = {"embed": Prepend(params["embed"]["tokens"]["embedding"][IDS[0, :3]])}
  got = encoder.hidden_states(params, CONFIG, IDS[:1, 3:], types=types, edits=edits)[0]
  whole = jnp.concatenate([jnp.zeros((1, 3), int), types], axis=1)
  close(got, encoder.hidden_states(params, CONFIG, IDS[:1], types=whole)[0], rtol=1e-4, atol=1e-5)


def test_structured_leaves_equal_the_materialized_model(params):
  transform = lora(["layers/**/kernel", "embed/tokens/embedding"], rank=3)
  frozen, trainable = transform.split(jax.random.key(2), params)
  trainable = jax.tree.map(lambda x: x + 0.05, trainable)
  joined = transform.join(frozen, trainable)
  jitted = jax.jit(loss)
  close(jitted(joined), jitted(materialize(joined)), rtol=1e-4)
  assert abs(jitted(joined) - jitted(params)) > 1e-3


def test_freezing_the_bottom_of_a_cut_stack_saves_its_backward(params):
  def flops(transform, params):
    frozen, trainable = transform.split(jax.random.key(0), params)
    step = jax.jit(jax.grad(lambda t: loss(transform.join(frozen, t))))
    return step.lower(trainable).compile().cost_analysis()["flops"]

  unrolled = unstack_layers(params)
  whole = flops(freeze("embed/**"), unrolled)
  half = flops(freeze(["embed/**", "layers/0/**"]), unrolled)
  assert half < 0.72 * whole  # forward 1, backward 2 of which half: 4/6


def test_bfloat16_stays_bfloat16_and_close(params):
  hidden, recorded = encoder.hidden_states(params, CONFIG, IDS, MASK, dtype=jnp.bfloat16, record=("layers/mlp/out",))
  assert hidden.dtype == recorded["layers/mlp/out"].dtype == jnp.bfloat16
  exact, _ = encoder.hidden_states(params, CONFIG, IDS, MASK)
  assert np.abs(hidden.astype(jnp.float32) - exact).max() < 0.2
  assert encoder.embed(params, CONFIG, IDS, MASK, dtype=jnp.bfloat16).dtype == jnp.float32


def test_pooling():
  hidden = jax.random.normal(jax.random.key(0), (2, 5, 8))
  mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
  mean = encoder.pool(hidden, mask, normalize=False)
  np.testing.assert_allclose(mean[0], hidden[0, :3].mean(0), rtol=1e-5)
  np.testing.assert_allclose(encoder.pool(hidden, normalize=False), hidden.mean(1), rtol=1e-5)
  np.testing.assert_allclose(encoder.pool(hidden, mask, pooling="cls", normalize=False), hidden[:, 0])
  np.testing.assert_allclose(jnp.linalg.norm(encoder.pool(hidden, mask), axis=1), 1.0, rtol=1e-6)
  zero = jax.grad(lambda h: encoder.pool(h, mask).sum())(jnp.zeros_like(hidden))
  assert np.isfinite(zero).all()


def test_a_soft_prompt_is_encoded_but_not_pooled(params):
  prompt = 0.3 * jax.random.normal(jax.random.key(5), (2, 32))
  edits = {"embed": Prepend(prompt)}
  hidden, _ = encoder.hidden_states(params, CONFIG, IDS, MASK, edits=edits)
  assert hidden.shape == (3, 11, 32)
  pooled = encoder.embed(params, CONFIG, IDS, MASK, edits=edits)
  close(pooled, encoder.pool(hidden[:, 2:], MASK))
  # A prompt made of the embeddings of two tokens is these tokens.
  words = {"embed": Prepend(params["embed"]["tokens"]["embedding"][jnp.array([3, 4])])}
  longer = jnp.concatenate([jnp.tile(jnp.array([[3, 4]]), (3, 1)), IDS], axis=1)
  mask = jnp.pad(MASK, ((0, 0), (2, 0)), constant_values=True)
  for kwargs in ({}, {"types": jnp.zeros_like(IDS)}):
    close(encoder.hidden_states(params, CONFIG, IDS, MASK, edits=words, **kwargs)[0],
          encoder.hidden_states(params, CONFIG, longer, mask)[0])


def test_a_token_or_type_without_a_row_gives_nan_and_never_another_tokens_row(params):
  run = jax.jit(lambda ids, mask, types: encoder.hidden_states(params, CONFIG, ids, mask, types=types)[0])
  everything, zero = jnp.ones_like(MASK), jnp.zeros_like(IDS)
  for bad in (50, -1):
    assert np.isnan(run(IDS.at[:, 2].set(bad), everything, zero)).any((1, 2)).all()
    assert np.isfinite(run(jnp.where(MASK, IDS, bad), MASK, jnp.where(MASK, 0, bad))).all()
    assert np.isnan(run(IDS, everything, zero.at[:, 3].set(bad))).any((1, 2)).all()


def test_a_packed_row_may_be_longer_than_the_context_and_no_text_in_it(params):
  ids = jax.random.randint(jax.random.key(3), (1, 18), 0, 50)
  segments = lambda *lengths: jnp.repeat(jnp.arange(len(lengths)) + 1, jnp.array(lengths))[None]
  run = lambda segment_ids: encoder.hidden_states(params, CONFIG, ids, segment_ids=segment_ids)[0]
  jitted = jax.jit(run)
  alone = jax.jit(lambda ids: encoder.hidden_states(params, CONFIG, ids)[0])(ids[:, 16:])
  close(jitted(segments(16, 2))[:, 16:], alone, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match=r"positions within segment_ids must lie in \[0, 16\).*got 16 at \[0, 16\]"):
    run(segments(17, 1))
  assert np.isnan(jitted(segments(17, 1))).any()


def test_errors_name_the_argument(params):
  with pytest.raises(ValueError, match="max_length = 16 positions; got 17"):
    encoder.embed(params, CONFIG, jnp.zeros((1, 17), jnp.int32))
  with pytest.raises(ValueError, match="remat.*'dot'.*nearest: dots"):
    encoder.embed(params, CONFIG, IDS, remat="dot")
  with pytest.raises(ValueError, match="multiple of num_heads"):
    EncoderConfig(10, 30, 1, 4, 8)
  with pytest.raises(ValueError, match="pooling"):
    EncoderConfig(10, 32, 1, 4, 8, pooling="max")
  with pytest.raises(ValueError, match="layers 0:2, each once; got 1:2"):
    encoder.embed({**params, "layers": {k: unstack_layers(params)["layers"][k] for k in "1"}}, CONFIG, IDS)
  with pytest.raises(ValueError, match="stack of layers 0:2; its leading axis must be 2"):
    encoder.embed({**params, "layers": jax.tree.map(lambda x: x[:1], params["layers"])}, CONFIG, IDS)


DEBERTA = dataclasses.replace(
    CONFIG, position_table=False, type_vocab_size=0, disentangled=Disentangled(span=4, farthest=8, shared=False))


def test_disentangled_attention():
  """Padding, packing, cuts and LoRA as in any encoder; without projections of its table attention of another scale."""
  params = encoder.init(jax.random.key(0), DEBERTA, stddev=0.3)
  texts = [list(map(int, row[:n])) for row, n in zip(IDS, [9, 4, 1], strict=True)]
  packed = pack_texts(texts, 12)

  @jax.jit
  def vectors(params):
    apart = encoder.embed(params, DEBERTA, IDS, MASK)
    return apart, encoder.embed_packed(params, DEBERTA, packed["ids"], packed["segment_ids"], 3)

  apart, together = vectors(params)
  close(together, apart, rtol=1e-4, atol=1e-5)
  close(vectors(cut_layers(params, [1]))[0], apart)
  assert not np.allclose(encoder.embed(params, DEBERTA, IDS[:, ::-1]), encoder.embed(params, DEBERTA, IDS), atol=1e-3)
  alone = jax.jit(lambda ids: encoder.embed(params, DEBERTA, ids))
  close(alone(IDS[1:2, :4]), apart[1:2], rtol=1e-4, atol=1e-5)
  frozen, trainable = lora("layers/**/kernel", rank=2).split(jax.random.key(1), params)
  assert sum(x.size for x in jax.tree.leaves(trainable)) == 2 * 2 * (6 * 64 + 2 * 96)
  del frozen

  none = jax.tree.map(lambda x: x, params)
  for name in ("position_key", "position_query"):
    none["layers"]["attention"][name] = jax.tree.map(jnp.zeros_like, params["layers"]["attention"][name])
  plain = jax.tree.map(lambda x: x, none)
  for name in ("position_key", "position_query"):
    del plain["layers"]["attention"][name]
  got = encoder.embed(none, DEBERTA, IDS, MASK)
  scaled = partial(attend, scale=(3 * 8) ** -0.5)
  close(got, encoder.embed(plain, dataclasses.replace(DEBERTA, disentangled=None), IDS, MASK, attention=scaled))


def test_signed_buckets_are_exact_near_and_logarithmic_far():
  rows = signed_buckets(12, Disentangled(span=6, farthest=10))
  assert (rows - 6)[-1, ::-1].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 5, 5, 5, 5]
  assert (rows - 6)[0].tolist() == [0, -1, -2, -3, -4, -4, -5, -5, -5, -5, -6, -6]
