"""Flax nnx, in the style of its Gemma example: einsums with heads in front, grouped queries, tied table, soft caps."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.foreign.package import DIM, HEAD, HEADS, HIDDEN, LAYERS, TOKENS, VOCABULARY, Package

KV_HEADS = 2


class Einsum(nnx.Module):

  def __init__(self, rngs, equation, shape):
    self.equation = equation
    self.w = nnx.Param(0.2 * jax.random.normal(rngs.params(), shape))

  def __call__(self, x):
    return jnp.einsum(self.equation, x, self.w[...])


class RMSNorm(nnx.Module):

  def __init__(self, dim):
    self.scale = nnx.Param(jnp.zeros(dim))

  def __call__(self, x):
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * (1 + self.scale[...])


def rotated(x):
  angles = jnp.arange(x.shape[1])[:, None] / 100.0 ** (jnp.arange(HEAD // 2) / (HEAD // 2))
  a, b = jnp.split(x, 2, axis=-1)
  cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):

  def __init__(self, rngs):
    self.q_einsum = Einsum(rngs, "BTD,NDH->BTNH", (HEADS, DIM, HEAD))
    self.kv_einsum = Einsum(rngs, "BSD,CKDH->CBSKH", (2, KV_HEADS, DIM, HEAD))
    self.attn_vec_einsum = Einsum(rngs, "BTNH,NHD->BTD", (HEADS, HEAD, DIM))

  def __call__(self, x):
    k, v = self.kv_einsum(x)
    q = rotated(self.q_einsum(x)).reshape(*x.shape[:2], KV_HEADS, HEADS // KV_HEADS, HEAD)
    logits = 50 * jnp.tanh(jnp.einsum("BTKGH,BSKH->BTKGS", q, rotated(k)) / 50 / HEAD**0.5)
    causal = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None, :, None, None]
    weights = jax.nn.softmax(jnp.where(causal, logits, -1e9))
    mixed = jnp.einsum("BTKGS,BSKH->BTKGH", weights, v)
    return self.attn_vec_einsum(mixed.reshape(*x.shape[:2], HEADS, HEAD))


class FeedForward(nnx.Module):

  def __init__(self, rngs):
    self.gate_proj = nnx.Linear(DIM, HIDDEN, use_bias=False, rngs=rngs)
    self.up_proj = nnx.Linear(DIM, HIDDEN, use_bias=False, rngs=rngs)
    self.down_proj = nnx.Linear(HIDDEN, DIM, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return self.down_proj(nnx.gelu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):

  def __init__(self, rngs):
    self.pre_attention_norm, self.attn = RMSNorm(DIM), Attention(rngs)
    self.pre_ffw_norm, self.mlp = RMSNorm(DIM), FeedForward(rngs)
    self.dropout = nnx.Dropout(0.1, deterministic=True, rngs=rngs)

  def __call__(self, x):
    x = x + self.dropout(self.attn(self.pre_attention_norm(x)))
    return x + self.mlp(self.pre_ffw_norm(x))


class Gemma(nnx.Module):

  def __init__(self, rngs, scan):
    self.embedder = nnx.Embed(VOCABULARY, DIM, rngs=rngs)
    if scan:
      self.layers = nnx.vmap(Block, in_axes=0, out_axes=0)(rngs.split(LAYERS))
    else:
      self.layers = nnx.List([Block(rngs) for _ in range(LAYERS)])
    self.final_norm = RMSNorm(DIM)

  def __call__(self, ids):
    x = self.embedder(ids) * DIM**0.5
    if isinstance(self.layers, nnx.List):
      for block in self.layers:
        x = block(x)
    else:
      x = nnx.scan(nnx.remat(lambda x, block: block(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
    return 30 * jnp.tanh(self.embedder.attend(self.final_norm(x)) / 30)


def gemma(scan=False):
  # The whole state: counts and keys of the dropout's random numbers lie among the weights.
  graph, params = nnx.split(Gemma(nnx.Rngs(0), scan))
  stem = "layers" if scan else "layers/*"
  return Package(
      params, lambda params, ids: nnx.merge(graph, params)(ids), TOKENS, out=f"{stem}/attn/attn_vec_einsum/w",
      down=f"{stem}/mlp/down_proj/kernel", matrices=(f"{stem}/attn/*/w", f"{stem}/mlp/*/kernel"))


def gemma_scanned():
  return gemma(scan=True)
