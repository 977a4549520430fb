"""The models against transformers and sentence-transformers, on the real checkpoints and on random small ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats.huggingface import load_directory, save_directory
from jaxft.formats.presets import fetch
from jaxft.losses import Mean
from jaxft.models import decoder, encoder
from jaxft.tree import cut_layers, unstack_layers
from tests.parity.libraries import library

torch = library("torch")
transformers = library("transformers")

TEXTS = [
    "A short sentence.",
    "The quick brown fox jumps over the lazy dog, and then it does so again because nobody stopped it.",
    "Fine-tuning changes a pretrained model; what it changes, and where, is a question of its own.",
    "?",
]


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return np.abs(got - want).max() / np.abs(want).max()


def encode(tokenizer, texts, side="right"):
  rows = [tokenizer.encode(text).ids for text in texts]
  length = max(map(len, rows))
  pad = lambda row, fill: fill + row if side == "left" else row + fill
  ids = np.array([pad(row, [0] * (length - len(row))) for row in rows])
  mask = np.array([pad([1] * len(row), [0] * (length - len(row))) for row in rows])
  return ids, mask, [len(row) for row in rows]


def test_minilm_embeddings_equal_those_of_sentence_transformers(minilm, sentence_minilm):
  minilm.tokenizer.no_padding()
  ids, mask, lengths = encode(minilm.tokenizer, TEXTS)
  assert len(set(lengths)) == len(lengths)
  want = sentence_minilm.encode(TEXTS)
  embed = jax.jit(lambda params: encoder.embed(params, minilm.config, jnp.asarray(ids), jnp.asarray(mask)))
  for arrange in (lambda p: p, unstack_layers, lambda p: cut_layers(p, [2, 3])):
    assert relative_error(embed(arrange(minilm.params)), want) < 1e-4


def test_small_mpnet_states_and_files(tmp_path):
  """Random, with padding, packed, and with distances beyond the last exact bucket; saved again for transformers."""
  torch.manual_seed(0)
  config = transformers.MPNetConfig(
      vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
      max_position_embeddings=152, initializer_range=0.3)
  theirs = transformers.MPNetModel(config).eval()
  theirs.save_pretrained(tmp_path / "theirs")
  params, ours = load_directory(tmp_path / "theirs")
  assert (ours.max_length, ours.position_offset, ours.type_vocab_size) == (150, 2, 0)
  rng, lengths = np.random.default_rng(0), (150, 9)
  ids = np.ones((2, 150), int)
  for row, n in enumerate(lengths):
    ids[row, :n] = rng.integers(4, 61, n)
  mask = (ids != 1).astype(int)
  with torch.no_grad():
    want = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()[mask == 1]
  states = jax.jit(lambda p, *args, **kwargs: encoder.hidden_states(p, ours, *args, **kwargs)[0])
  assert relative_error(states(params, ids, mask)[mask == 1], want) < 1e-4
  packed, segments = ids[mask == 1][None], np.repeat([1, 2], lengths)[None]
  assert relative_error(states(params, packed, segment_ids=segments)[0], want) < 1e-4
  save_directory(params, ours, tmp_path / "ours")
  again = transformers.MPNetModel.from_pretrained(tmp_path / "ours").eval()
  with torch.no_grad():
    got = again(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()[mask == 1]
  assert relative_error(got, want) < 1e-6


@pytest.fixture(scope="module")
def their_smollm2():
  return transformers.AutoModelForCausalLM.from_pretrained(fetch("smollm2-135m"), dtype=torch.float32)


def test_smollm2_logits_equal_those_of_transformers_padded_and_packed(smollm2, torch_smollm2):
  model, _ = torch_smollm2
  smollm2.tokenizer.no_padding()
  params, config = smollm2.params, smollm2.config

  @jax.jit
  def logits(params, ids, mask=None, segment_ids=None):
    return decoder.logits(params, config, decoder.hidden_states(
        params, config, ids, mask=mask, segment_ids=segment_ids).hidden)

  for side in ("right", "left"):
    ids, mask, lengths = encode(smollm2.tokenizer, TEXTS[:3], side)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad():
      want = model(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions)).logits
    real = mask.astype(bool)
    want = want.numpy()[real]
    got = logits(params, jnp.asarray(ids), jnp.asarray(mask))[real]
    assert relative_error(got, want) < 1e-4
    assert (np.asarray(got).argmax(-1) == want.argmax(-1)).all()
    # The same texts in one packed row.
    packed = logits(params, jnp.asarray(ids[real])[None], segment_ids=jnp.asarray(np.nonzero(real)[0] + 1)[None])[0]
    assert relative_error(packed, want) < 1e-4


def test_smollm2_loss_equals_that_of_transformers(smollm2, torch_smollm2):
  model, _ = torch_smollm2
  smollm2.tokenizer.no_padding()
  ids, mask, _ = encode(smollm2.tokenizer, TEXTS[1:3])
  with torch.no_grad():
    labels = torch.tensor(np.where(mask, ids, -100))
    want = model(torch.tensor(ids), attention_mask=torch.tensor(mask), labels=labels).loss.item()
  loss = jax.jit(lambda p: decoder.token_nll(p, smollm2.config, jnp.asarray(ids), mask=jnp.asarray(mask), chunk=16))
  mean = Mean.of(*loss(smollm2.params))
  assert mean.weight == mask[:, 1:].sum() and mean.value == pytest.approx(want, rel=1e-5)


@pytest.fixture(scope="module", params=["tied", "untied and stretched", "qwen3", "gemma3"])
def small_llama(request, tmp_path_factory):
  """A Llama with shapes unlike each other (head_dim * heads != dim), random, saved and loaded through its files."""
  torch.manual_seed(0)
  rope = {"rope_type": "default", "rope_theta": 5000.0}
  if "stretched" in request.param:  # of the pairs of a head some turn as before, some slower, some between
    rope |= {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
             "original_max_position_embeddings": 32}
  name = {"qwen3": "Qwen3", "gemma3": "Gemma3"}.get(request.param, "Llama")
  more, layers = {}, 3
  if name == "Gemma3":  # a window in all layers but the third; both bases, one of them stretched
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}}
    more, layers = {"sliding_window": 4, "sliding_window_pattern": 3, "query_pre_attn_scalar": 20, "pad_token_id": 0}, 4
  config = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")(
      **more, vocab_size=97, hidden_size=48, num_hidden_layers=layers, num_attention_heads=6, num_key_value_heads=2,
      head_dim=16, intermediate_size=56, tie_word_embeddings=request.param in ("tied", "gemma3"),
      max_position_embeddings=64, rope_parameters=rope, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
  )
  model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.normal_(1.0, 0.2)  # scales of norms, which would all be one
  path = tmp_path_factory.mktemp("llama")
  model.save_pretrained(path)
  return model, path


def test_small_llama_states_logits_and_gradients(small_llama):
  model, path = small_llama
  params, config = load_directory(path)
  ids = np.random.default_rng(0).integers(3, 97, (2, 11))
  out = model(torch.tensor(ids), labels=torch.tensor(ids), output_hidden_states=True)
  hidden, _, recorded = decoder.hidden_states(params, config, jnp.asarray(ids), record=("embed", "layers/out"))
  assert relative_error(decoder.logits(params, config, hidden), out.logits.detach()) < 1e-4
  assert relative_error(recorded["embed"], out.hidden_states[0].detach()) < 1e-6
  for layer in range(config.num_layers - 1):  # transformers puts the final norm on the last one
    assert relative_error(recorded["layers/out"][layer], out.hidden_states[layer + 1].detach()) < 1e-4
  out.loss.backward()
  grads = jax.jit(jax.grad(lambda p: Mean.of(*decoder.token_nll(p, config, jnp.asarray(ids), chunk=4)).value))(params)
  assert relative_error(grads["embed"]["tokens"]["embedding"], model.model.embed_tokens.weight.grad) < 1e-3
  for layer in range(config.num_layers):
    theirs = model.model.layers[layer]
    ours = jax.tree.map(lambda x: x[layer], grads["layers"])
    assert relative_error(ours["attention"]["key"]["kernel"], theirs.self_attn.k_proj.weight.grad.T) < 1e-3
    assert relative_error(ours["mlp"]["down"]["kernel"], theirs.mlp.down_proj.weight.grad.T) < 1e-3
    assert relative_error(ours["attention_norm"]["scale"], theirs.input_layernorm.weight.grad) < 1e-3
    if config.qk_norm:
      assert relative_error(ours["attention"]["key_norm"]["scale"], theirs.self_attn.k_norm.weight.grad) < 1e-3
    if config.post_norms:
      for name, norm in (("attention_post_norm", theirs.post_attention_layernorm),
                         ("mlp_norm", theirs.pre_feedforward_layernorm),
                         ("mlp_post_norm", theirs.post_feedforward_layernorm)):
        assert relative_error(ours[name]["scale"], norm.weight.grad) < 1e-3


def test_small_llama_in_bfloat16_is_no_further_from_float32_than_torch(small_llama):
  model, path = small_llama
  params, config = load_directory(path)
  ids = np.random.default_rng(0).integers(3, 97, (2, 11))
  with torch.no_grad():
    exact = model(torch.tensor(ids)).logits.numpy()
    theirs = model.to(torch.bfloat16)(torch.tensor(ids)).logits.float().numpy()
    model.to(torch.float32)
  hidden = decoder.hidden_states(params, config, jnp.asarray(ids), dtype=jnp.bfloat16).hidden
  assert relative_error(decoder.logits(params, config, hidden), exact) < 1.5 * relative_error(theirs, exact)


@pytest.mark.parametrize("small_llama", ["gemma3"], indirect=True)
def test_a_small_gemma_padded_saved_and_generating(small_llama, tmp_path):
  _, path = small_llama
  params, config = load_directory(path)
  assert (config.window.size, config.window.every, config.window.rope_theta) == (4, 3, 100.0)
  assert config.rope_scaling.factor == 4.0 and config.query_scale == pytest.approx(20**-0.5)
  save_directory(params, config, tmp_path)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
  assert load_directory(tmp_path)[1] == config
  ids = np.random.default_rng(1).integers(3, 97, (2, 12))
  mask = np.arange(12) >= np.array([[0], [5]])  # on the left, as for generation
  positions = np.maximum(mask.cumsum(1) - 1, 0)
  with torch.no_grad():
    want = again(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)), position_ids=torch.tensor(positions))
  seen, cache, got = jnp.asarray(mask), decoder.init_cache(config, 2, 14), []
  for start, stop in ((0, 7), (7, 8), (8, 12)):  # more than a window lies in the cache
    out = decoder.hidden_states(params, config, ids[:, start:stop], mask=seen[:, start:stop], cache=cache)
    cache = out.cache
    got.append(decoder.logits(params, config, out.hidden))
  assert relative_error(np.concatenate(got, 1)[mask], want.logits.numpy()[mask]) < 1e-4


def test_small_bert_in_both_token_types(tmp_path):
  torch.manual_seed(0)
  config = transformers.BertConfig(
      vocab_size=97, hidden_size=40, num_hidden_layers=3, num_attention_heads=4, intermediate_size=56,
      max_position_embeddings=32, initializer_range=0.2,
  )
  model = transformers.BertModel(config, add_pooling_layer=False).eval()
  model.save_pretrained(tmp_path)
  params, ours = load_directory(tmp_path)
  rng = np.random.default_rng(0)
  ids, types = rng.integers(0, 97, (2, 9)), rng.integers(0, 2, (2, 9))
  mask = np.arange(9) < np.array([[9], [5]])
  with torch.no_grad():
    want = model(torch.tensor(ids), torch.tensor(mask.astype(int)), torch.tensor(types)).last_hidden_state.numpy()
  got, _ = encoder.hidden_states(params, ours, jnp.asarray(ids), jnp.asarray(mask), types=jnp.asarray(types))
  assert relative_error(np.asarray(got)[mask], want[mask]) < 1e-4
