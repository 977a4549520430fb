"""Equinox, in the style of its BERT example: modules of one example under vmap, weights [out, in], a pooler."""

import equinox as eqx
import jax
import jax.numpy as jnp

from tests.foreign.package import DIM, HEADS, HIDDEN, KEY, LAYERS, TOKENS, VOCABULARY, Package


class Embedder(eqx.Module):
  token: eqx.nn.Embedding
  position: eqx.nn.Embedding
  segment: eqx.nn.Embedding
  norm: eqx.nn.LayerNorm

  def __init__(self, key):
    a, b, c = jax.random.split(key, 3)
    self.token, self.position = eqx.nn.Embedding(VOCABULARY, DIM, key=a), eqx.nn.Embedding(64, DIM, key=b)
    self.segment, self.norm = eqx.nn.Embedding(2, DIM, key=c), eqx.nn.LayerNorm(DIM)

  def __call__(self, ids):
    places = jnp.arange(len(ids))
    x = jax.vmap(self.token)(ids) + jax.vmap(self.position)(places) + jax.vmap(self.segment)(ids % 2)
    return jax.vmap(self.norm)(x)


class Layer(eqx.Module):
  attention: eqx.nn.MultiheadAttention
  up: eqx.nn.Linear
  down: eqx.nn.Linear
  attention_norm: eqx.nn.LayerNorm
  output_norm: eqx.nn.LayerNorm
  dropout: eqx.nn.Dropout

  def __init__(self, key):
    a, b, c = jax.random.split(key, 3)
    self.attention = eqx.nn.MultiheadAttention(
        HEADS, DIM, use_query_bias=True, use_key_bias=True, use_value_bias=True, use_output_bias=True, key=a)
    self.up, self.down = eqx.nn.Linear(DIM, HIDDEN, key=b), eqx.nn.Linear(HIDDEN, DIM, key=c)
    self.attention_norm, self.output_norm = eqx.nn.LayerNorm(DIM), eqx.nn.LayerNorm(DIM)
    self.dropout = eqx.nn.Dropout(0.1, inference=True)

  def __call__(self, x, mask):
    x = jax.vmap(self.attention_norm)(x + self.dropout(self.attention(x, x, x, mask=mask)))
    y = jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(x)))
    return jax.vmap(self.output_norm)(x + self.dropout(y))


class Bert(eqx.Module):
  embedder: Embedder
  layers: list[Layer]
  pooler: eqx.nn.Linear
  head: eqx.nn.Linear

  def __init__(self, key):
    a, b, c, d = jax.random.split(key, 4)
    self.embedder, self.layers = Embedder(a), [Layer(key) for key in jax.random.split(b, LAYERS)]
    self.pooler, self.head = eqx.nn.Linear(DIM, DIM, key=c), eqx.nn.Linear(DIM, 3, key=d)

  def __call__(self, ids):
    x, mask = self.embedder(ids), jnp.outer(ids > 0, ids > 0)
    for layer in self.layers:
      x = layer(x, mask)
    return self.head(jnp.tanh(self.pooler(x[0])))


def bert():
  # The whole module, unpartitioned: functions, rates and flags lie among the weights.
  return Package(
      Bert(KEY), lambda model, ids: jax.vmap(model)(ids), TOKENS, out="layers/*/attention/output_proj/kernel",
      down="layers/*/down/kernel", matrices=("layers/**/kernel", "pooler/kernel", "head/kernel"))
