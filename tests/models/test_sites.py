import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import decoder, encoder, sites
from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.models.sites import Add, Mix, Only, Prepend, Replace, Scale
from jaxft.tree import cut_layers, unstack_layers

L, B, T, H, K, HD, D, F = 3, 2, 5, 4, 2, 8, 24, 40
CONFIG = DecoderConfig(vocab_size=50, dim=D, num_layers=L, num_heads=H, num_kv_heads=K, head_dim=HD, mlp_dim=F)
IDS = jax.random.randint(jax.random.key(1), (B, T), 0, 50)
SHAPES = {
    "embed": (B, T, D), "layers/attention/query": (L, B, T, H, HD), "layers/attention/key": (L, B, T, K, HD),
    "layers/attention/value": (L, B, T, K, HD), "layers/attention/heads": (L, B, T, H, HD),
    "layers/attention/out": (L, B, T, D), "layers/mlp/hidden": (L, B, T, F), "layers/mlp/out": (L, B, T, D),
    "layers/out": (L, B, T, D), "norm": (B, T, D),
}
def cut(params):
  return cut_layers(params, [1])


ARRANGEMENTS = [lambda p: p, unstack_layers, pytest.param(cut, marks=pytest.mark.exhaustive)]
ARRANGED_REMATS = [
    (lambda p: p, "dots"), (cut, "full"), pytest.param(unstack_layers, "none", marks=pytest.mark.exhaustive)]


@pytest.fixture(scope="module")
def params():
  return decoder.init(jax.random.key(0), CONFIG, stddev=0.3)


@partial(jax.jit, static_argnames=("record", "dtype", "remat"))
def run(params, edits=None, record=(), **options):
  return decoder.hidden_states(params, CONFIG, IDS, edits=edits, record=record, **options)


@pytest.mark.parametrize("arrange, remat", ARRANGED_REMATS)
def test_every_site_records_the_same_in_every_arrangement(params, arrange, remat):
  want = run(params, record=decoder.SITES)
  got = run(arrange(params), record=decoder.SITES, remat=remat)
  assert {name: x.shape for name, x in got.recorded.items()} == SHAPES
  for name in SHAPES:
    np.testing.assert_allclose(got.recorded[name], want.recorded[name], rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(got.recorded["norm"], got.hidden)
  # The records fit together: the residual stream is what came in plus what the two branches wrote.
  stream = got.recorded["embed"][None] + jnp.cumsum(got.recorded["layers/attention/out"]
                                                     + got.recorded["layers/mlp/out"], axis=0)
  np.testing.assert_allclose(stream, got.recorded["layers/out"], rtol=1e-4, atol=1e-5)


def test_encoder_sites_are_all_met():
  config = EncoderConfig(vocab_size=50, dim=16, num_layers=2, num_heads=2, mlp_dim=20)
  params = encoder.init(jax.random.key(0), config)
  hidden, recorded = jax.jit(lambda p: encoder.hidden_states(p, config, IDS, record=encoder.SITES))(params)
  assert set(recorded) == set(encoder.SITES)
  np.testing.assert_array_equal(recorded["layers/out"][-1], hidden)


def test_without_edits_the_program_is_the_plain_models(params, monkeypatch):
  def trace(**options):
    return str(jax.make_jaxpr(lambda p: decoder.hidden_states(p, CONFIG, IDS, **options).hidden)(params))

  with_sites, edited = trace(edits={}), trace(edits={"norm": Add(jnp.zeros(D))})
  monkeypatch.setattr(sites.Tap, "__call__", lambda self, name, x, source=None: x)
  assert with_sites == trace()
  assert with_sites != edited


def test_replacing_a_site_by_its_own_record_changes_nothing_and_by_anothers_gives_the_other(params):
  other = decoder.init(jax.random.key(9), CONFIG, stddev=0.3)
  theirs = run(other, record=decoder.SITES).recorded
  mine = run(params, record=decoder.SITES)
  for name in decoder.SITES:
    same = run(params, edits={name: Replace(mine.recorded[name])}, record=(name,))
    np.testing.assert_allclose(same.hidden, mine.hidden, rtol=1e-5, atol=1e-5)
    changed = run(params, edits={name: Replace(theirs[name])}, record=(name,))
    np.testing.assert_array_equal(changed.recorded[name], theirs[name])
    assert not np.allclose(changed.hidden, mine.hidden, atol=1e-3)
  # Patching the last layer's output transplants the whole forward pass, up to the last norm, which both have in common.
  patched = run(params, edits={"layers/out": Replace(theirs["layers/out"])})
  np.testing.assert_allclose(patched.hidden, run(other).hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
def test_an_edit_of_one_layer_equals_a_bias_of_that_layer(params, arrange):
  offset = jax.random.normal(jax.random.key(3), (L, D))
  biased = unstack_layers(params)
  biased["layers"]["1"]["mlp"]["down"]["bias"] = offset[1]
  want = run(biased).hidden
  edits = {"layers/mlp/out": Only(Add(offset), where=jnp.arange(L) == 1)}
  np.testing.assert_allclose(run(arrange(params), edits=edits).hidden, want, rtol=1e-5, atol=1e-5)


def test_replace_mix_scale_and_lists():
  x = jnp.arange(24.0).reshape(2, 3, 4)
  where = jnp.array([[True, False, True], [False, False, True]])
  np.testing.assert_array_equal(Replace(jnp.zeros(4), where)(x), jnp.where(where[..., None], 0, x))
  np.testing.assert_allclose(Mix(jnp.ones(4), 0.25)(x), 0.25 + 0.75 * x)
  np.testing.assert_array_equal(Only(Scale(2.0), where[:, 0])(x), x * jnp.array([2.0, 1.0])[:, None, None])
  tap = sites.Tap({"a": [Add(1.0), lambda x: 3 * x]}, ("a",))
  np.testing.assert_array_equal(tap("a", x), 3 * (x + 1))
  np.testing.assert_array_equal(tap.recorded["a"], 3 * (x + 1))


@pytest.mark.parametrize("arrange, remat", ARRANGED_REMATS)
def test_gradients_with_respect_to_edits(params, arrange, remat):
  """A head offset is a bias of the output projection, so its gradient is the bias's, through the projection."""
  params = arrange(params)
  weight = jax.random.normal(jax.random.key(4), (B, T, D))

  def loss(offset, bias):
    edits = {"layers/attention/heads": Add(offset), "layers/attention/out": Add(bias)}
    return jnp.sum(weight * run(params, edits=edits, remat=remat).hidden)

  to_heads, to_out = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.zeros((L, H, HD)), jnp.zeros((L, D)))
  kernels = [layer["attention"]["out"]["kernel"] for layer in unstack_layers_of(params)]
  want = jnp.stack([(k @ g).reshape(H, HD) for k, g in zip(kernels, to_out, strict=True)])
  assert float(jnp.abs(want).min()) > 0
  np.testing.assert_allclose(to_heads, want, rtol=1e-3, atol=1e-4)


def unstack_layers_of(params):
  layers = params["layers"]
  if "attention" in layers:
    return [jax.tree.map(lambda x, i=i: x[i], layers) for i in range(L)]
  if "0" in layers:
    return [layers[str(i)] for i in range(L)]
  return [layer for name in ("0:1", "1:3") for layer in
          [jax.tree.map(lambda x, i=i: x[i], layers[name]) for i in range(int(name[2]) - int(name[0]))]]


def test_edits_batch_under_vmap(params):
  offsets = jax.random.normal(jax.random.key(5), (4, L, D))
  one = lambda offset: run(params, edits={"layers/out": Add(offset)}).hidden
  np.testing.assert_allclose(jax.vmap(one)(offsets), jnp.stack([one(o) for o in offsets]), rtol=1e-4, atol=1e-5)


def test_an_edit_may_read_the_input_of_its_sub_module(params):
  @sites.edit_class
  class Parallel:
    down: jax.Array
    up: jax.Array
    reads_input = True

    def __call__(self, x, source):
      return x + source @ self.down @ self.up

  down, up = jax.random.normal(jax.random.key(6), (L, D, 4)), jax.random.normal(jax.random.key(7), (L, 4, D))
  assert [f.name for f in dataclasses.fields(Parallel)] == ["down", "up"]
  out = run(params, edits={"layers/mlp/out": Parallel(down, up)}, record=("layers/mlp/out",))
  # In the first layer the input of the MLP is known: the normed stream after attention.
  plain = run(params, record=("embed", "layers/attention/out", "layers/mlp/out")).recorded
  stream = plain["embed"] + plain["layers/attention/out"][0]
  normed = stream * jax.lax.rsqrt(jnp.mean(stream**2, -1, keepdims=True) + CONFIG.norm_eps)
  want = plain["layers/mlp/out"][0] + normed @ down[0] @ up[0]
  np.testing.assert_allclose(out.recorded["layers/mlp/out"][0], want, rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="edits\\['norm'\\] reads the input of its sub-module"):
    run(params, edits={"norm": Parallel(down[0], up[0])})


def test_float32_edits_leave_bfloat16_activations(params):
  out = run(params, edits={"layers/mlp/out": Add(jnp.zeros((L, D)))}, dtype=jnp.bfloat16)
  assert out.hidden.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out.hidden, run(params, dtype=jnp.bfloat16).hidden)


@pytest.mark.parametrize("cached", [False, True])
def test_a_prefix_is_the_gated_sum_of_two_attentions(params, cached):
  """Attn(q, [P; K], [P'; V]) = (1 - g) Attn(q, K, V) + g Attn(q, P, P'), g the prefix's share of the weights."""
  keys, values = (jax.random.normal(jax.random.key(i), (L, 5, K, HD)) for i in (8, 9))
  edits = {"layers/attention/key": Prepend(keys), "layers/attention/value": Prepend(values)}
  cache = decoder.init_cache(CONFIG, B, T) if cached else None
  names = tuple(f"layers/attention/{n}" for n in ("query", "key", "value", "heads"))
  got = run(params, edits=edits, record=names, cache=cache).recorded
  query, key, value, heads = (got[name][0] for name in names)
  assert key.shape == (B, 5 + T, K, HD)
  repeat = lambda x: jnp.repeat(x, H // K, axis=2)
  scores = jnp.einsum("bthd,bshd->bhts", query, repeat(key)) / HD**0.5
  visible = jnp.concatenate([jnp.ones((T, 5), bool), jnp.tril(jnp.ones((T, T), bool))], axis=1)
  weights = jnp.where(visible, jnp.exp(scores), 0)
  gate = weights[..., :5].sum(-1) / weights.sum(-1)
  part = lambda w, v: jnp.einsum("bhts,bshd->bthd", w / w.sum(-1, keepdims=True), repeat(v))
  gate = gate.transpose(0, 2, 1)[..., None]
  want = (1 - gate) * part(weights[..., 5:], value[:, 5:]) + gate * part(weights[..., :5], value[:, :5])
  np.testing.assert_allclose(heads, want, rtol=1e-3, atol=1e-4)


def test_errors_name_the_site(params):
  with pytest.raises(ValueError, match="edits names 'layers/mlp/outs', which is no site.*nearest: layers/mlp/out"):
    decoder.hidden_states(params, CONFIG, IDS, edits={"layers/mlp/outs": Add(0.0)})
  with pytest.raises(ValueError, match="record names 'embedding'.*nearest: embed"):
    decoder.hidden_states(params, CONFIG, IDS, record=("embedding",))
  with pytest.raises(ValueError, match="array of shape \\(2, 24\\).*number of layers, 3"):
    decoder.hidden_states(params, CONFIG, IDS, edits={"layers/out": Add(jnp.zeros((2, D)))})
  with pytest.raises(ValueError, match="array of shape \\(\\)"):
    decoder.hidden_states(params, CONFIG, IDS, edits={"layers/out": Scale(2.0)})
  with pytest.raises(TypeError, match="must be a callable"):
    decoder.hidden_states(params, CONFIG, IDS, edits={"norm": jnp.zeros(D)})
  with pytest.raises(TypeError, match="sequence of site names; got the string 'norm'"):
    decoder.hidden_states(params, CONFIG, IDS, record="norm")
