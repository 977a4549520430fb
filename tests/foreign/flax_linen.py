"""Flax linen, in the style of its lm1b example and of big_vision's ViT."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.foreign.package import DIM, HEADS, HIDDEN, KEY, LAYERS, TOKENS, VOCABULARY, Package


class MlpBlock(nn.Module):

  @nn.compact
  def __call__(self, x):
    y = nn.gelu(nn.Dense(HIDDEN)(x))
    return nn.Dense(x.shape[-1])(y)


class Block(nn.Module):
  """A block before normalization; a carry and an output, for a scan."""

  @nn.compact
  def __call__(self, x, mask=None):
    y = nn.MultiHeadDotProductAttention(num_heads=HEADS)(nn.LayerNorm()(x), mask=mask)
    x = x + y
    return x + MlpBlock()(nn.LayerNorm()(x)), None


class TransformerLM(nn.Module):
  """Layers in a loop, and a table that is the head too."""

  @nn.compact
  def __call__(self, ids):
    table = nn.Embed(VOCABULARY, DIM, name="shared_embedding")
    positions = self.param("pos_embedding", nn.initializers.normal(0.02), (1, 64, DIM))
    x = table(ids) + positions[:, : ids.shape[1]]
    for i in range(LAYERS):
      x, _ = Block(name=f"encoderdecoderblock_{i}")(x, nn.make_causal_mask(ids))
    return table.attend(nn.LayerNorm(name="encoderdecoder_norm")(x)) / DIM**0.5


class ViT(nn.Module):
  """Patches, a class token, layers in a rematerialized scan, attention pooling."""

  scan_axis: int

  @nn.compact
  def __call__(self, images):
    x = nn.Conv(DIM, (4, 4), (4, 4), padding="VALID", name="embedding")(images)
    x = x.reshape(x.shape[0], -1, DIM)
    x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, x.shape[1], DIM))
    x = jnp.concatenate([jnp.tile(self.param("cls", nn.initializers.zeros, (1, 1, DIM)), (len(x), 1, 1)), x], axis=1)
    stack = nn.scan(
        nn.remat(Block, prevent_cse=False), variable_axes={"params": self.scan_axis}, split_rngs={"params": True},
        in_axes=nn.broadcast, length=LAYERS)
    x, _ = stack(name="encoderblock")(x, None)
    x = nn.LayerNorm(name="encoder_norm")(x)
    probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, DIM))
    x = nn.MultiHeadDotProductAttention(num_heads=HEADS, name="pool")(jnp.tile(probe, (len(x), 1, 1)), x)
    return nn.Dense(10, name="head")(x[:, 0])


def _package(model, inputs, **globs):
  params = model.init(KEY, inputs)["params"]
  return Package(params, lambda params, x: model.apply({"params": params}, x), inputs, **globs)


def lm1b():
  stem = "encoderdecoderblock/layers/*"
  return _package(
      TransformerLM(), TOKENS, out=f"{stem}/MultiHeadDotProductAttention_0/out/kernel",
      down=f"{stem}/MlpBlock_0/Dense_1/kernel", matrices=(f"{stem}/**/kernel",))


def vit(scan_axis=0):
  stem = "encoderblock/layers"
  return _package(
      ViT(scan_axis), jax.random.normal(KEY, (2, 12, 12, 3)),
      out=f"{stem}/MultiHeadDotProductAttention_0/out/kernel", down=f"{stem}/MlpBlock_0/Dense_1/kernel",
      matrices=(f"{stem}/**/kernel", "pool/*/kernel", "head/kernel"))


def vit_scanned_over_axis_1():
  return vit(scan_axis=1)
