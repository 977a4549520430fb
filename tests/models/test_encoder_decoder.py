"""T5's architecture: what follows from its definition; `tests/parity/test_t5.py` has transformers' numbers."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.decoding import beam_search, generate, stepwise_encoder_decoder
from jaxft.formats.families import family_of
from jaxft.formats.huggingface import load_directory, save_directory
from jaxft.formats.tiny import init_tiny, tiny_config
from jaxft.leaves import materialize
from jaxft.losses import Mean
from jaxft.models import encoder_decoder as model
from jaxft.models.attention import relative_buckets
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig, init
from jaxft.models.sites import Add
from jaxft.optimizers import layerwise_decay
from jaxft.transforms import lora
from jaxft.tree import axes_of, cut_layers, layer_of, leaves_with_paths, stack_depths, unstack_layers
from tests.draws import integers

CONFIG = EncoderDecoderConfig(
    vocab_size=23, dim=16, num_heads=2, head_dim=6, mlp_dim=20, encoder_layers=2, decoder_layers=3, buckets=8,
    farthest=9, gated=True)
INPUTS, TARGETS = integers(0, 2, 23, 3, 9), integers(1, 2, 23, 3, 7)
INPUTS_MASK = np.arange(9) < np.array([[9], [4], [1]])
TARGETS_MASK = np.arange(7) < np.array([[3], [7], [1]])


@pytest.fixture(scope="module")
def params():
  return init(jax.random.key(0), CONFIG)


@partial(jax.jit, static_argnames="config")
def nll(params, inputs=INPUTS, targets=TARGETS, inputs_mask=None, targets_mask=None, config=CONFIG):
  return model.target_nll(params, config, inputs, targets, inputs_mask=inputs_mask, targets_mask=targets_mask, chunk=3)


def close(a, b, rtol=1e-4, atol=2e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def both(arrange):
  """An arrangement of the layers, of either side."""
  return lambda params: {**params, **{side: arrange(params[side]) for side in ("encoder", "decoder")}}


def test_stacked_unrolled_and_cut_agree_with_unequal_depths(params):
  grad = jax.jit(jax.grad(lambda p: Mean.of(*nll(p)).value))
  want = grad(params)
  assert stack_depths(params) == {"decoder/layers": 3, "encoder/layers": 2}
  for arrange in (both(unstack_layers), both(lambda p: cut_layers(p, [1]))):
    assert stack_depths(arrange(params)) == {"decoder/layers": 3, "encoder/layers": 2}
    close(grad(arrange(params)), arrange(want), rtol=1e-3, atol=1e-4)
    close(model.remember(arrange(params), CONFIG, jnp.ones((1, 2, 16))).key,
          model.remember(params, CONFIG, jnp.ones((1, 2, 16))).key)


def test_padding_equals_absence_and_its_ids_do_not_matter(params):
  inputs, targets = np.where(INPUTS_MASK, INPUTS, -100), np.where(TARGETS_MASK, TARGETS, -100)
  together, weights = nll(params, inputs, targets, INPUTS_MASK, TARGETS_MASK)
  np.testing.assert_array_equal(weights, TARGETS_MASK)
  assert (np.asarray(together)[~TARGETS_MASK] == 0).all()
  for row, (n, m) in enumerate([(9, 3), (4, 7), (1, 1)]):
    alone, _ = nll(params, INPUTS[row:row + 1, :n], TARGETS[row:row + 1, :m])
    close(alone[0], together[row, :m])


def test_the_decoder_sees_no_future_and_all_of_the_text(params):
  plain, _ = nll(params)
  later, _ = nll(params, targets=TARGETS.at[:, 4].set(jnp.where(TARGETS[:, 4] == 5, 6, 5)))
  close(later[:, :4], plain[:, :4])
  assert (jnp.abs(later - plain)[:, 4:] > 1e-4).all()
  other, _ = nll(params, inputs=INPUTS.at[:, 8].set(jnp.where(INPUTS[:, 8] == 5, 6, 5)))
  assert (jnp.abs(other - plain).max(1) > 1e-4).all()


def test_out_of_range_ids_give_nan_in_their_row_alone(params):
  values, _ = nll(params, inputs=INPUTS.at[1, 3].set(23))
  assert np.isnan(values[1]).all() and np.isfinite(values[jnp.array([0, 2])]).all()


def test_decoding_step_by_step_gives_the_scores_of_one_pass(params):
  """Greedy tokens with the cached cross attention are those of the whole pass, row by row and padded; so is a beam."""
  config = dataclasses.replace(CONFIG, eos_id=None)
  stepwise = stepwise_encoder_decoder(params, config)
  out = generate(stepwise, INPUTS, jax.random.key(0), max_new_tokens=7, mask=INPUTS_MASK, temperature=0)
  values, _ = nll(params, inputs=INPUTS, targets=out.tokens, inputs_mask=INPUTS_MASK)
  close(-out.log_probs, values)
  states, _ = model.encode(params, CONFIG, INPUTS, INPUTS_MASK)
  hidden = model.decode(params, CONFIG, model.shift_right(out.tokens, 0), states, INPUTS_MASK).hidden
  np.testing.assert_array_equal(model.logits(params, CONFIG, hidden).argmax(-1), out.tokens)
  beams = beam_search(stepwise, INPUTS, mask=INPUTS_MASK, max_new_tokens=7, beams=2)
  assert (np.asarray(beams.scores)[:, 0] >= np.asarray(out.log_probs).mean(1) - 1e-4).all()


def test_edits_of_either_side_and_refusals(params):
  add = {"layers/mlp/out": Add(jnp.ones((2, 16)))}
  states, recorded = model.encode(params, CONFIG, INPUTS, edits=add, record=("layers/out", "norm"))
  assert recorded["layers/out"].shape == (2, 3, 9, 16) and (recorded["norm"] == states).all()
  cross = {"layers/cross_attention/out": lambda x: 0 * x}
  blind = [model.decode(params, CONFIG, TARGETS, s, edits=cross).hidden for s in (states, 2 * states)]
  close(blind[0], blind[1])
  memory = model.remember(params, CONFIG, states)
  close(model.decode(params, CONFIG, TARGETS, memory).hidden, model.decode(params, CONFIG, TARGETS, states).hidden)
  with pytest.raises(ValueError, match="its leading axis must be the number of layers, 3|inside the layers"):
    model.decode(params, CONFIG, TARGETS, states, edits=add)
  with pytest.raises(ValueError, match="memory_mask must be None beside a Memory"):
    model.decode(params, CONFIG, TARGETS, memory, INPUTS_MASK)
  with pytest.raises(ValueError, match="which is no site of this model"):
    model.encode(params, CONFIG, INPUTS, record=("layers/cross_attention/out",))
  for field, value, message in (
      ("buckets", 6, "buckets must be a multiple of 4; got 6"), ("farthest", 4, "must be above buckets / 2 = 4"),
      ("activation", "tanh", "activation must be one of"), ("start_id", 23, "start_id must lie in")):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(CONFIG, **{field: value})


def test_lora_axes_and_decay_know_both_stacks(params):
  transform = lora(family_of(CONFIG).matrices, rank=2)
  frozen, trainable = jax.eval_shape(transform.split, jax.random.key(0), params)
  del frozen
  shapes = {path: leaf.shape for path, leaf in leaves_with_paths(trainable) if leaf is not None}
  assert len(shapes) == 2 * (4 + 3 + 8 + 3)
  assert shapes["encoder/layers/mlp/up/kernel/a"] == (2, 16, 2)
  assert shapes["decoder/layers/cross_attention/key/kernel/a"] == (3, 16, 2)
  joined = materialize(transform.join(*transform.split(jax.random.key(0), params)))
  close(joined, params)

  axes = axes_of(lambda p, inputs, targets: model.target_nll(p, CONFIG, inputs, targets)[0], params, INPUTS, TARGETS)
  found = dict(leaves_with_paths(axes)) if isinstance(axes, dict) else axes
  up = found["decoder/layers/cross_attention/out/kernel"]
  assert (up.kind, up.rows, up.columns, up.layers) == ("matrix", (1,), (2,), (0,))
  assert found["embed/tokens/embedding"].kind == "table"

  decay = dict(leaves_with_paths(layerwise_decay(0.5, params)))
  np.testing.assert_allclose(decay["encoder/layers/mlp/up/kernel"].ravel(), [0.25, 0.5])
  np.testing.assert_allclose(decay["decoder/layers/mlp/up/kernel"].ravel(), [0.125, 0.25, 0.5])
  for path, leaf in leaves_with_paths(both(unstack_layers)(params)):
    assert layer_of(path, leaf) == (int(path.split("/")[2]) if "/layers/" in path else None)


@pytest.mark.parametrize("tied", [True, False])
def test_files_of_unequal_stacks_hold_what_was_saved(tmp_path, tied):
  config = tiny_config(dataclasses.replace(CONFIG, tie_embeddings=tied, activation="silu" if tied else "gelu_tanh"))
  assert isinstance(config, EncoderDecoderConfig) and (config.encoder_layers, config.decoder_layers) == (2, 3)
  params = init_tiny(config)
  for i, arrange in enumerate((lambda p: p, both(unstack_layers), both(lambda p: cut_layers(p, [1])))):
    save_directory(arrange(params), config, tmp_path / str(i))
    again, read = load_directory(tmp_path / str(i), stacked=i == 0)
    assert read == config
    close(again, params if i == 0 else both(unstack_layers)(params), rtol=0, atol=0)
  params["decoder"]["layers"]["mlp"]["up"]["kernel"] = params["decoder"]["layers"]["mlp"]["up"]["kernel"][:2]
  with pytest.raises(ValueError, match="missing decoder/layers/2/mlp/up/kernel"):
    save_directory(params, config, tmp_path / "short")


def test_causal_buckets():
  """Those before, one distance each and then logarithmic; nothing for those after."""
  found = relative_buckets(12, 8, farthest=10, causal=True)
  assert (np.triu(found, 1) == 0).all()
  assert found[-1, ::-1].tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7, 7, 7, 7]
