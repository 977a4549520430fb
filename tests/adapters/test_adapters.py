"""Adapters on both models: what each starts as, what it equals, and that it trains by the ordinary step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.adapters import (
  bottleneck,
  chain_adapters,
  collapse_prefix,
  head_offsets,
  head_scales,
  head_scores,
  mam,
  merge_head_offsets,
  merge_into_mlp,
  p_tuning,
  prefix,
  prefix_from_peft,
  prefix_from_tokens,
  prefix_to_peft,
  soft_prompt,
  text_prompt,
  top_heads,
  vocabulary_prompt,
)
from jaxft.losses.reduction import Mean
from jaxft.models import decoder, encoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.models.norms import layer_norm
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.transforms import train
from jaxft.tree import count, cut_layers, layer_of, leaves_with_paths, unstack_layers

KEY = jax.random.key(0)
L, B, T, D = 3, 2, 5, 24
DECODER = DecoderConfig(vocab_size=50, dim=D, num_layers=L, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=40)
ENCODER = EncoderConfig(vocab_size=50, dim=D, num_layers=L, num_heads=4, mlp_dim=40, max_length=16)
IDS = jax.random.randint(jax.random.key(1), (B, T), 0, 50)


@partial(jax.jit, static_argnames=("config", "remat"))
def states(params, config, edits=None, ids=IDS, remat="dots"):
  if config is DECODER:
    return decoder.hidden_states(params, config, ids, edits=edits, remat=remat).hidden
  return encoder.hidden_states(params, config, ids, edits=edits, remat=remat)[0]


@pytest.fixture(scope="module")
def models():
  return {DECODER: decoder.init(KEY, DECODER, stddev=0.3), ENCODER: encoder.init(KEY, ENCODER, stddev=0.3)}


def close(got, want, tol=1e-5):
  np.testing.assert_allclose(got, want, rtol=tol, atol=tol)


def moved(params):
  return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)


METHODS = {
    "soft_prompt": lambda config: soft_prompt(3, D),
    "p_tuning": lambda config: p_tuning(3, D, hidden=8),
    "prefix": lambda config: prefix(config, 3),
    "prefix_mlp": lambda config: prefix(config, 3, hidden=8),
    "parallel": lambda config: bottleneck(config, 4, scale=2.0),
    "sequential": lambda config: bottleneck(config, 4, insertion="sequential", site="layers/attention/out"),
    "heads": lambda config: bottleneck(config, 4, site="layers/attention/heads", learn_scale=True),
    "heads_sequential": lambda config: bottleneck(config, 4, site="layers/attention/heads", insertion="sequential"),
    "houlsby": lambda config: chain_adapters(*(
        bottleneck(config, 4, site=s, insertion="sequential") for s in ("layers/attention/out", "layers/mlp/out"))),
    "mam": lambda config: mam(config, length=2, rank=4, hidden=8),
    "head_scales": head_scales,
    "head_offsets": lambda config: head_offsets(config, [(0, 1), (2, 3)]),
}
# One of each kind: a prompt, keys and values, a parallel and a sequential adapter on heads, offsets.
KINDS = ("p_tuning", "mam", "heads_sequential", "head_offsets", "head_scales")
IDENTITY = ("parallel", "sequential", "heads", "heads_sequential", "houlsby")
both = pytest.mark.parametrize("config", [DECODER, ENCODER], ids=["decoder", "encoder"])


@pytest.mark.parametrize("name, config", [
    pytest.param(name, config, id=f"{name}-{kind}",
                 marks=() if config is DECODER or name in KINDS else pytest.mark.exhaustive)
    for name in METHODS for config, kind in ((DECODER, "decoder"), (ENCODER, "encoder"))])
def test_each_method_on_stacked_and_other_layers(models, name, config):
  method, params = METHODS[name](config), models[config]
  start = method.init(KEY)
  plain = states(params, config)
  if name in IDENTITY:
    close(states(params, config, method.edits(start)), plain)
  off = moved(start)
  got = states(params, config, method.edits(off))
  assert got.shape[1] - T == (3 if name in ("soft_prompt", "p_tuning") else 0)
  assert not np.allclose(got[:, -T:], plain, atol=1e-3)
  other, remat = (unstack_layers(params), "none") if config is ENCODER else (cut_layers(params, [1]), "full")
  close(states(other, config, method.edits(off), remat=remat), got, 1e-4)
  # What goes into the layers reads as layers do.
  for path, leaf in leaves_with_paths(start):
    assert "layers" not in path or np.array_equal(layer_of(path, leaf), np.arange(L))


@pytest.mark.parametrize("name", [
    name if name in KINDS else pytest.param(name, marks=pytest.mark.exhaustive) for name in METHODS])
def test_each_method_trains_by_the_ordinary_step(models, name):
  method, model = METHODS[name](DECODER), models[DECODER]
  transform = train("edits/**")

  def objective(params, batch, key):
    del key
    nll = decoder.token_nll(params["model"], DECODER, batch, edits=method.edits(params["edits"]))
    return Mean.of(*nll), {}

  params = {"model": model, "edits": method.init(KEY)}
  recipe = Recipe(objective, transform, optax.adam(1e-2))
  state, frozen = init_state(KEY, params, recipe)
  assert count(state.trainable) == count(params["edits"]) and count(frozen) == count(model)
  step = make_train_step(recipe)
  losses = []
  for _ in range(4):
    state, metrics = step(state, frozen, IDS)
    losses.append(float(metrics["loss"]))
  assert losses[-1] < losses[0]
  same = jax.tree.map(np.array_equal, transform.join(frozen, state.trainable)["model"], model)
  assert jax.tree.all(same)
  start = jax.tree.leaves(params["edits"])
  assert not any(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.trainable), start, strict=True))


@pytest.mark.parametrize("name", ["prefix", "mam", "heads", "head_offsets", "soft_prompt"])
def test_token_by_token_from_a_cache_as_all_at_once(models, name):
  method, params = METHODS[name](DECODER), models[DECODER]
  edits = method.edits(moved(method.init(KEY)))
  later = {} if name == "soft_prompt" else edits  # its positions lie in the cache after the first pass
  run = jax.jit(lambda ids, cache, edits: decoder.hidden_states(params, DECODER, ids, cache=cache, edits=edits))
  cache, parts = decoder.init_cache(DECODER, B, T + 3), []
  for start, stop in ((0, 3), (3, 4), (4, 5)):
    out = run(IDS[:, start:stop], cache, later if start else edits)
    cache = out.cache
    parts.append(out.hidden)
  close(jnp.concatenate(parts, axis=1), states(params, DECODER, edits), 1e-4)


@both
def test_a_soft_prompt_of_a_text_gives_the_states_of_its_tokens(models, config):
  params = models[config]
  table = params["embed"]["tokens"]["embedding"]
  text = [7, 3, 9]
  method = soft_prompt(3, D, init=text_prompt(table, text))
  got = states(params, config, method.edits(method.init(KEY)))
  close(got, states(params, config, ids=jnp.concatenate([jnp.tile(jnp.array(text), (B, 1)), IDS], axis=1)), 1e-4)
  close(soft_prompt(5, D, init=text_prompt(table, text)).init(KEY)["prompt"], table[jnp.array([7, 3, 9, 7, 3])])
  rows = soft_prompt(6, D, init=vocabulary_prompt(table, first=10)).init(KEY)["prompt"]
  assert all((table[:10] == row).all(1).any() for row in rows)


def test_a_parallel_adapter_without_activation_is_a_linear_branch_of_its_sub_module(models):
  """`h + s x A B` at the value projection's matrix of one-layer attention would be LoRA; at the MLP, its own branch."""
  params = models[ENCODER]
  method = bottleneck(ENCODER, 4, activation=lambda x: x, bias=False, scale=2.0)
  off = moved(method.init(KEY))
  p = off["layers"]["adapter"]
  out, recorded = encoder.hidden_states(params, ENCODER, IDS, edits=method.edits(off), record=("layers/mlp/out",))
  plain = encoder.hidden_states(params, ENCODER, IDS, record=("layers/mlp/out", "layers/attention/out", "embed/out"))[1]
  norm = jax.tree.map(lambda x: x[0], params["layers"]["attention_norm"])
  x = layer_norm(plain["embed/out"] + plain["layers/attention/out"][0], norm, eps=ENCODER.norm_eps)
  want = plain["layers/mlp/out"][0] + 2.0 * x @ p["down"]["kernel"][0] @ p["up"]["kernel"][0]
  close(recorded["layers/mlp/out"][0], want, 1e-4)
  assert out.shape == (B, T, D)


def test_mam_is_a_prefix_and_a_parallel_adapter_of_its_scale(models):
  method = mam(DECODER, length=2, rank=4, scale=3.0, hidden=8)
  front, beside = off = moved(method.init(KEY))
  want = prefix(DECODER, 2, hidden=8).edits(front) | bottleneck(DECODER, 4, scale=3.0).edits(beside)
  close(states(models[DECODER], DECODER, method.edits(off)), states(models[DECODER], DECODER, want))


def test_a_parallel_adapter_with_the_mlps_activation_merges_into_it(models):
  params = models[ENCODER]
  gelu = partial(jax.nn.gelu, approximate=False)
  method = bottleneck(ENCODER, 4, activation=gelu, scale=3.0)
  off = moved(method.init(KEY))
  mlp = merge_into_mlp(params["layers"]["mlp"], off, scale=3.0)
  merged = {**params, "layers": {**params["layers"], "mlp": mlp}}
  close(states(merged, ENCODER), states(params, ENCODER, method.edits(off)), 1e-4)
  with pytest.raises(ValueError, match="mlp has a gate"):
    merge_into_mlp(models[DECODER]["layers"]["mlp"], off)


def test_a_prefix_made_of_tokens_is_to_a_decoder_what_the_tokens_are(models):
  first = jax.random.randint(jax.random.key(5), (4,), 0, 50)
  made = {config: prefix_from_tokens(module.hidden_states, models[config], config, first)
          for config, module in ((DECODER, decoder), (ENCODER, encoder))}
  for config, params in made.items():
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, prefix(config, 4).init(KEY))
  got = states(models[DECODER], DECODER, prefix(DECODER, 4).edits(made[DECODER]))
  read = states(models[DECODER], DECODER, ids=jnp.concatenate([jnp.tile(first, (B, 1)), IDS], axis=1))
  close(got, read[:, 4:], 1e-4)
  with pytest.raises(ValueError, match=r"ids must be a vector of at least one token; got shape \(2, 5\)"):
    prefix_from_tokens(decoder.hidden_states, models[DECODER], DECODER, IDS)


def test_prefixes_go_through_pefts_file_and_their_mlp_collapses():
  for config in (DECODER, ENCODER):
    start = prefix(config, 3, hidden=8).init(KEY)
    plain = collapse_prefix(start, config)
    assert jax.tree.map(jnp.shape, plain) == jax.tree.map(jnp.shape, prefix(config, 3).init(KEY))
    back = prefix_from_peft(prefix_to_peft(start, config), config)
    jax.tree.map(close, back, plain)
  with pytest.raises(ValueError, match=r"of shape \[length, 96\]; got \(3, 95\)"):
    prefix_from_peft(jnp.zeros((3, 95)), DECODER)


@both
@pytest.mark.parametrize("arrange", [
    lambda p: p, unstack_layers, pytest.param(lambda p: cut_layers(p, [1]), marks=pytest.mark.exhaustive)])
def test_head_offsets_and_scales_merge_into_the_output_projection(models, config, arrange):
  params = arrange(models[config])
  for method in (head_offsets(config, [(0, 1), (2, 3)], stddev=0.5), head_scales(config, stddev=0.5)):
    edits = method.edits(method.init(KEY))
    merged = merge_head_offsets(params, config, edits)
    want = states(params, config, edits)
    close(states(merged, config), want, 1e-4)
    assert not np.allclose(want, states(params, config), atol=1e-2)


def test_head_offsets_train_as_many_numbers_as_they_name_and_the_planted_head_ranks_first(models):
  assert count(head_offsets(DECODER, [(0, 1), (2, 3)]).init(KEY)) == 2 * 8
  assert count(head_offsets(DECODER).init(KEY)) == L * 4 * 8
  method, params = head_scales(DECODER), models[DECODER]
  site = "layers/attention/heads"

  def loss(trained):  # reads head 2 of layer 1 alone
    out = decoder.hidden_states(params, DECODER, IDS, edits=method.edits(trained), record=(site,)).recorded[site]
    return jnp.sum(out[1, :, :, 2] ** 2) / B

  start = method.init(KEY)
  grads = jax.grad(loss)(start)
  grads = {"layers": {"scale": grads["layers"]["scale"].at[0].set(0)}}  # what comes before it matters through it
  heads = top_heads(head_scores(jax.tree.map(lambda p, g: p - 0.1 * g, start, grads)), 3)
  assert heads.shape == (3, 2) and heads[0].tolist() == [1, 2]


@both
def test_edits_that_add_nothing_change_nothing(models, config):
  for method in (head_scales(config, stddev=0.0), head_offsets(config, stddev=0.0), bottleneck(config, 4, scale=0.0)):
    start = method.init(KEY)
    if "adapter" in start.get("layers", {}):
      start = moved(start)
    close(states(models[config], config, method.edits(start)), states(models[config], config))


def test_trained_numbers_are_the_shares_that_the_source_reports():
  """Of BART large, 406M numbers: 12 layers of encoder and of decoder, which attend in 36 places."""
  layers = lambda n: EncoderConfig(vocab_size=1, dim=1024, num_layers=n, num_heads=16, mlp_dim=4096)
  size = lambda method: count(jax.eval_shape(method.init, KEY))
  share = lambda *methods: 100 * sum(map(size, methods)) / 406e6
  wide = bottleneck(layers(24), 512, bias=False)
  np.testing.assert_allclose(
      [share(prefix(layers(36), 200)), share(wide), share(prefix(layers(36), 30), wide)], [3.6, 6.1, 6.7], atol=0.15)


def test_errors():
  with pytest.raises(ValueError, match="length must be at least 1; got 0"):
    soft_prompt(0, D)
  with pytest.raises(ValueError, match=r"init must give a prompt of shape \(2, 24\); got \(2, 8\)"):
    soft_prompt(2, D, init=text_prompt(jnp.ones((5, 8)), [1])).init(KEY)
  with pytest.raises(ValueError, match="ids must lie in"):
    text_prompt(jnp.ones((5, 8)), [5])
  with pytest.raises(ValueError, match="first must lie in"):
    vocabulary_prompt(jnp.ones((5, 8)), first=6)
  with pytest.raises(ValueError, match="hidden must be at least 1; got 0"):
    prefix(DECODER, 2, hidden=0)
  with pytest.raises(ValueError, match="site must be one of.*got 'layers/mlp/outs'; nearest: layers/mlp/out"):
    bottleneck(DECODER, 2, site="layers/mlp/outs")
  with pytest.raises(ValueError, match="insertion must be one of parallel, sequential; got 'behind'"):
    bottleneck(DECODER, 2, insertion="behind")
  with pytest.raises(ValueError, match="heads must lie in"):
    head_offsets(DECODER, [(3, 0)])
  with pytest.raises(ValueError, match="each head once"):
    head_offsets(DECODER, [(0, 0), (0, 0)])
  with pytest.raises(ValueError, match="k must lie in"):
    top_heads(jnp.ones((2, 2)), 5)
  with pytest.raises(ValueError, match="one at layers/attention/heads"):
    merge_head_offsets({}, DECODER, {})
  with pytest.raises(ValueError, match="chain_adapters takes at least one adapter"):
    chain_adapters()
