"""Prompt tuning, P-tuning and prefix tuning against peft: logits of a small random Llama, and the files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.adapters import collapse_prefix, p_tuning, prefix, prefix_from_peft, prefix_to_peft, soft_prompt
from jaxft.formats.huggingface import load_directory
from jaxft.models import decoder, encoder
from tests.parity.libraries import library

torch = library("torch")
transformers = library("transformers")
peft = library("peft")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

LENGTH = 4
IDS = np.random.default_rng(0).integers(0, 61, (2, 7))
MASK = (np.arange(7) < [[7], [5]]).astype(int)


def relative_error(got, want):
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return np.abs(got - want).max() / np.abs(want).max()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  """Grouped queries, so that a prefix has fewer heads than the model."""
  path = tmp_path_factory.mktemp("llama")
  torch.manual_seed(0)
  transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
      intermediate_size=48, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=True,
      bos_token_id=1, eos_token_id=2)).save_pretrained(path)
  params, config = load_directory(path)

  def adapted(peft_config):
    model = transformers.LlamaForCausalLM.from_pretrained(path)
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft_config).eval()

  return params, config, adapted


def logits_of(model):
  with torch.no_grad():
    return model(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.numpy()


def ours(params, config, edits):
  hidden = decoder.hidden_states(params, config, jnp.asarray(IDS), mask=jnp.asarray(MASK), edits=edits).hidden
  return decoder.logits(params, config, hidden)


def numpy(tensor):
  return jnp.asarray(tensor.detach().numpy())


def dense(linear):
  return {"kernel": numpy(linear.weight).T, "bias": numpy(linear.bias)}


def test_prompt_tuning(llama):
  params, config, adapted = llama
  model = adapted(peft.PromptTuningConfig(
      task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prompt_tuning_init="RANDOM"))
  method = soft_prompt(LENGTH, config.dim)
  prompt = numpy(model.get_prompt_embedding_to_save("default"))
  assert jax.tree.map(jnp.shape, method.init(jax.random.key(0))) == {"prompt": prompt.shape}
  got, want = ours(params, config, method.edits({"prompt": prompt})), logits_of(model)
  real = np.pad(MASK, ((0, 0), (LENGTH, 0)), constant_values=1).astype(bool)
  error = relative_error(got[real], want[real])
  assert got.shape == want.shape and error < 1e-5


def test_p_tuning(llama):
  params, config, adapted = llama
  model = adapted(peft.PromptEncoderConfig(
      task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, encoder_hidden_size=12, encoder_reparameterization_type="MLP"))
  encoder = model.prompt_encoder["default"]
  read = {"rows": numpy(encoder.embedding.weight),
          "mlp": {str(i): dense(encoder.mlp_head[2 * i]) for i in range(3)}}
  method = p_tuning(LENGTH, config.dim, hidden=12)
  assert jax.tree.map(jnp.shape, method.init(jax.random.key(0))) == jax.tree.map(jnp.shape, read)
  edits = method.edits(read)
  assert relative_error(edits["embed"].values, model.get_prompt_embedding_to_save("default")) < 1e-6
  real = np.pad(MASK, ((0, 0), (LENGTH, 0)), constant_values=1).astype(bool)
  error = relative_error(ours(params, config, edits)[real], logits_of(model)[real])
  assert error < 1e-5


@pytest.mark.parametrize("projection", [False, True])
def test_prefix_tuning(llama, projection):
  params, config, adapted = llama
  model = adapted(peft.PrefixTuningConfig(
      task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prefix_projection=projection, encoder_hidden_size=12))
  flat = numpy(model.get_prompt_embedding_to_save("default"))
  method, read = prefix(config, LENGTH), prefix_from_peft(flat, config)
  assert jax.tree.map(jnp.shape, method.init(jax.random.key(0))) == jax.tree.map(jnp.shape, read)
  got, want = ours(params, config, method.edits(read)), logits_of(model)
  error = relative_error(got[MASK.astype(bool)], want[MASK.astype(bool)])
  assert got.shape == want.shape and error < 1e-5
  assert relative_error(got, ours(params, config, None)) > 0.01
  assert relative_error(prefix_to_peft(read, config), flat) < 1e-6


def test_the_mlp_of_a_prefix(llama):
  _, config, adapted = llama
  model = adapted(peft.PrefixTuningConfig(
      task_type="CAUSAL_LM", num_virtual_tokens=LENGTH, prefix_projection=True, encoder_hidden_size=12))
  encoder = model.prompt_encoder["default"]
  read = {"rows": numpy(encoder.embedding.weight),
          "mlp": {"0": dense(encoder.transform[0]), "1": dense(encoder.transform[2])}}
  method = prefix(config, LENGTH, hidden=12)
  assert jax.tree.map(jnp.shape, method.init(jax.random.key(0))) == jax.tree.map(jnp.shape, read)
  # The same numbers in the same order; keys here are met unturned, so peft's are compared before its positions count.
  flat = model.get_prompt_embedding_to_save("default").numpy().reshape(LENGTH, 3, 2, 2, 8)
  got = collapse_prefix(read, config)["layers"]["prefix"]
  assert relative_error(got["key"], flat[:, :, 0].swapaxes(0, 1)) < 1e-5
  assert relative_error(got["value"], flat[:, :, 1].swapaxes(0, 1)) < 1e-5


def test_prefix_and_prompt_of_an_encoder(tmp_path):
  torch.manual_seed(0)
  transformers.BertModel(transformers.BertConfig(
      vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
      max_position_embeddings=32, initializer_range=0.2), add_pooling_layer=False).save_pretrained(tmp_path)
  params, config = load_directory(tmp_path)
  real = MASK.astype(bool)

  def compared(peft_config, edits, params=params):
    torch.manual_seed(1)
    base = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False, is_decoder=False)
    model = peft.get_peft_model(base, peft_config).eval()
    with torch.no_grad():
      want = model(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state.numpy()
    read = numpy(model.get_prompt_embedding_to_save("default"))
    got = encoder.hidden_states(params, config, jnp.asarray(IDS), jnp.asarray(MASK), edits=edits(read))[0]
    assert got.shape == want.shape
    return relative_error(got[:, -7:][real], want[:, -7:][real])

  kwargs = {"task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": LENGTH}
  assert compared(peft.PromptTuningConfig(**kwargs, prompt_tuning_init="RANDOM"),
                  lambda p: soft_prompt(LENGTH, config.dim).edits({"prompt": p})) < 1e-5
  # There the text's learned positions count on from the prefix, as if it had taken the first ones.
  later = jax.tree.map(lambda x: x, params)
  later["embed"]["positions"]["embedding"] = params["embed"]["positions"]["embedding"][LENGTH:]
  assert compared(peft.PrefixTuningConfig(**kwargs),
                  lambda p: prefix(config, LENGTH).edits(prefix_from_peft(p, config)), later) < 1e-5
