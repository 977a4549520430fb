"""google-tunix's own models at tiny sizes: Llama 3, Qwen 3 and its mixture of experts, Gemma."""

import jax.numpy as jnp
from flax import nnx

from tests.foreign.package import DIM, HEAD, HEADS, HIDDEN, LAYERS, TOKENS, VOCABULARY, Package

LENGTH = TOKENS.shape[1]
SIZES = {
    "num_layers": LAYERS, "embed_dim": DIM, "hidden_dim": HIDDEN, "num_heads": HEADS, "head_dim": HEAD,
    "num_kv_heads": 2,
}


def _package(model, **globs):
  graph, params = nnx.split(model)
  places = jnp.broadcast_to(jnp.arange(LENGTH), TOKENS.shape)
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), (len(TOKENS), LENGTH, LENGTH))
  apply = lambda params, ids: nnx.merge(graph, params)(ids, places, None, mask)[0]
  return Package(params, apply, TOKENS, **globs)


def llama3():
  from tunix.models.llama3 import model

  config = model.ModelConfig(**SIZES, vocab_size=VOCABULARY, rope_theta=500_000, norm_eps=1e-5, weight_tying=True,
                             remat_config=model.RematConfig.BLOCK)
  return _package(model.Llama3(config, rngs=nnx.Rngs(0)), out="layers/*/attn/o_proj/w",
                  down="layers/*/mlp/down_proj/kernel", matrices=("layers/*/attn/*/w", "layers/*/mlp/*/kernel"))


def qwen3():
  from tunix.models.qwen3 import model

  config = model.ModelConfig(**SIZES, vocab_size=VOCABULARY, rope_theta=500_000, norm_eps=1e-5)
  return _package(
      model.Qwen3(config, rngs=nnx.Rngs(0)), out="layers/*/attn/o_proj/w", down="layers/*/mlp/down_proj/kernel",
      matrices=("layers/*/attn/*_proj/w", "layers/*/mlp/*/kernel", "lm_head/w"))


def qwen3_experts():
  from tunix.models.qwen3 import model

  config = model.ModelConfig(
      **SIZES, vocab_size=VOCABULARY, rope_theta=500_000, norm_eps=1e-5, num_experts=4, num_experts_per_tok=2)
  return _package(
      model.Qwen3(config, rngs=nnx.Rngs(0)), out="layers/*/attn/o_proj/w", down="layers/*/mlp/experts/down_proj",
      matrices=("layers/*/attn/*_proj/w", "layers/*/mlp/experts/*_proj"))


def gemma2():
  from tunix.models.gemma import model

  kinds = (model.AttentionType.GLOBAL, model.AttentionType.LOCAL_SLIDING, model.AttentionType.GLOBAL)
  config = model.ModelConfig(
      **SIZES, num_embed=VOCABULARY, final_logit_softcap=30.0, attn_logits_soft_cap=50.0, use_post_attn_norm=True,
      use_pre_ffw_norm=True, use_post_ffw_norm=True, attention_types=kinds, sliding_window_size=4)
  return _package(
      model.Transformer(config, rngs=nnx.Rngs(0)), out="layers/*/attn/attn_vec_einsum/w",
      down="layers/*/mlp/down_proj/kernel", matrices=("layers/*/attn/*_einsum/w", "layers/*/mlp/*/kernel"))
