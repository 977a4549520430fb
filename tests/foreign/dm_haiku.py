"""dm-haiku, in the style of its transformer example: modules named by their place in the call."""

import jax
import jax.numpy as jnp

from tests.foreign.package import DIM, HEAD, HEADS, HIDDEN, KEY, LAYERS, TOKENS, VOCABULARY, Package


def transformer():
  import haiku as hk

  init = hk.initializers.VarianceScaling(2 / LAYERS)
  norm = lambda x: hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)

  def forward(ids):
    x = hk.Embed(VOCABULARY, DIM, w_init=hk.initializers.TruncatedNormal(0.02))(ids)
    x = x + hk.get_parameter("positional_embeddings", (64, DIM), init=hk.initializers.TruncatedNormal(0.02))[
        : ids.shape[1]]
    mask = jnp.tril(jnp.ones((1, 1, ids.shape[1], ids.shape[1])))
    for i in range(LAYERS):
      with hk.experimental.name_scope(f"layer_{i}"):
        h = norm(x)
        x = x + hk.MultiHeadAttention(HEADS, HEAD, model_size=DIM, w_init=init)(h, h, h, mask=mask)
        mlp = hk.Sequential([hk.Linear(HIDDEN, w_init=init), jax.nn.gelu, hk.Linear(DIM, w_init=init)])
        x = x + mlp(norm(x))
    return hk.Linear(VOCABULARY)(norm(x))

  model = hk.without_apply_rng(hk.transform(forward))
  return Package(
      model.init(KEY, TOKENS), model.apply, TOKENS, out="layer_*/multi_head_attention/linear/w",
      down="layer_*/linear_1/w", matrices=("layer_*/**/w", "linear/w"))
