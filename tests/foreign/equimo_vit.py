"""Equimo's own vision transformer (Equinox) at a tiny size: blocks in chunks, fused queries, keys and values."""

import jax

from tests.foreign.package import DIM, HEADS, KEY, LAYERS, Package


def vision_transformer():
  import equimo.models as em

  model = em.VisionTransformer(
      img_size=12, in_channels=3, dim=DIM, patch_size=4, num_heads=HEADS, depths=[LAYERS], mlp_ratio=2,
      num_classes=10, key=KEY)
  images = jax.random.normal(KEY, (2, 3, 12, 12))
  apply = lambda model, x: jax.vmap(lambda image: model(image, KEY, inference=True))(x)
  return Package(model, apply, images, out="blocks-0/blocks/layers/*/attn/proj/kernel",
                 down="blocks-0/blocks/layers/*/mlp/fc2/kernel",
                 matrices=("blocks-0/blocks/layers/**/kernel", "head/kernel"))
