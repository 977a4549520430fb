"""penzai's own Llama at a tiny size: named axes, parameters as variables apart from the model, queries in groups."""

from tests.foreign.package import DIM, HEAD, HIDDEN, KEY, LAYERS, TOKENS, VOCABULARY, Package


def llama(stacked=False):
  from penzai import pz
  from penzai.models.transformer.variants import llamalike_common

  config = llamalike_common.LlamalikeTransformerConfig(
      num_kv_heads=2, query_head_multiplier=2, embedding_dim=DIM, projection_dim=HEAD, mlp_hidden_dim=HIDDEN,
      num_decoder_blocks=LAYERS, vocab_size=VOCABULARY, mlp_variant="swiglu", tie_embedder_and_logits=False,
      use_layer_stack=stacked)
  model = llamalike_common.build_llamalike_transformer(config, init_base_rng=KEY, name="llama")
  model, variables = pz.unbind_params(model, freeze=True)

  def apply(params, ids):
    bound = pz.bind_variables(model, list(params.values()))
    return bound(pz.nx.wrap(ids).tag("batch", "seq")).unwrap("batch", "seq", "vocabulary")

  stem = "llama/blocks/layers" if stacked else "llama/block_*"
  return Package(
      {variable.label: variable for variable in variables}, apply, TOKENS, out=f"{stem}/attention/output.weights",
      down=f"{stem}/mlp/out_linear.weights",
      matrices=(f"{stem}/{{attention,mlp}}/*.weights", "llama/lm_head.weights"))


def llama_stacked():
  return llama(stacked=True)
