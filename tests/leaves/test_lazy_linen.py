"""`lazy` on a linen model whose modules hold kernels in their own layouts, from canonical matrices."""

import jax.numpy as jnp
from flax import linen as nn

from jaxft.tree.paths import map_with_path
from tests.leaves.lazy_forms import KEY, assert_cheap, draw, low_rank

DIM = 32


class Block(nn.Module):

  @nn.compact
  def __call__(self, x, _=None):
    h = nn.LayerNorm()(x)
    return x + nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=DIM)(h, h), None


class Captioner(nn.Module):
  """Image patches and tokens, blocks scanned over axis 1 of their kernels, and a tied head."""

  @nn.compact
  def __call__(self, images, ids):
    x = nn.Conv(DIM, (4, 4), (4, 4))(images).reshape(images.shape[0], -1, DIM)
    embed = nn.Embed(40, DIM)
    x = jnp.concatenate([x, embed(ids)], 1)
    x = x + self.param("positions", nn.initializers.normal(), (24, DIM))[:x.shape[1]]
    layers = nn.scan(nn.remat(Block), variable_axes={"params": 1}, split_rngs={"params": True}, length=3)()
    return embed.attend(layers(x, None)[0])


def test_a_linen_model_in_its_own_layouts():
  images, ids = draw(0, 2, 16, 16, 3), jnp.arange(10).reshape(2, 5)
  params = Captioner().init(KEY, images, ids)["params"]
  shapes = {}
  map_with_path(lambda path, w: shapes.setdefault(path, w.shape), params)
  is_matrix = lambda path: path.endswith(("kernel", "embedding", "positions"))

  def canonical(path, w):
    """A leaf [in, out], or [layers, in, out] of what is scanned."""
    stack = ()
    if "Scan" in path:
      w, stack = jnp.moveaxis(w, 1, 0), (w.shape[1],)
    ins_first = path.endswith(("out/kernel", "Conv_0/kernel"))
    matrix = (-1, w.shape[-1]) if ins_first else (w.shape[len(stack)], -1)
    return low_rank(len(matrices), *w.reshape(*stack, *matrix).shape)

  def restored(path, w):
    if not is_matrix(path) or "Scan" not in path:
      return w.reshape(shapes[path])
    rows, layers, *rest = shapes[path]
    return jnp.moveaxis(w.reshape(layers, rows, *rest), 0, 1)

  matrices = {}
  map_with_path(lambda path, w: is_matrix(path) and matrices.setdefault(path, canonical(path, w)), params)

  def apply(matrices, images):
    filled = map_with_path(lambda path, w: restored(path, matrices.get(path, w)), params)
    return Captioner().apply({"params": filled}, images, ids)

  assert_cheap(apply, matrices, images, factor=1.25)
