"""Models whose params are arranged by their functions: `(params, apply, inputs)` as each has them.

Their kernels are `[out, in]`, have heads, lie along other axes of a scan, are fused, convolved, or belong to experts.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

DIM, HEADS, HEAD, HIDDEN = 48, 6, 8, 96


class Foreign(NamedTuple):
  """A model and the paths, once arranged, of a kernel that reads the stream and of one that writes to it."""

  params: Any
  apply: Any
  inputs: Any
  reads: str
  writes: str


def draw(seed, *shape):
  return jnp.asarray((np.random.default_rng(seed).standard_normal(shape) / 7).astype(np.float32), jnp.float32)


X = draw(0, 2, 16, DIM)


def attend(q, k, v):
  return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k)), v)


def out_in():
  """`[out, in]` kernels, as of Equinox and GPT-2."""
  params = {"fc": {"weight": draw(1, HIDDEN, DIM)}, "proj": {"weight": draw(2, DIM, HIDDEN)}}
  apply = lambda p, x: x + jnp.tanh(x @ p["fc"]["weight"].T) @ p["proj"]["weight"].T
  return Foreign(params, apply, X, "fc/kernel", "proj/kernel")


def heads():
  """`[embed, heads, head]` and `[heads, head, embed]`, as of Flax and Gemma."""
  params = {n: {"kernel": draw(i, DIM, HEADS, HEAD)} for i, n in enumerate("qkv")} | {"out": {
      "kernel": draw(3, HEADS, HEAD, DIM)}}
  project = lambda x, w: jnp.einsum("btd,dhk->bthk", x, w["kernel"])
  apply = lambda p, x: x + jnp.einsum(
      "bthk,hkd->btd", attend(*(project(x, p[n]) for n in "qkv")), p["out"]["kernel"])
  return Foreign(params, apply, X, "q/kernel", "out/kernel")


def grouped_queries():
  """Keys and values of fewer heads, in one kernel `[2, heads, embed, head]`."""
  params = {"q_einsum": {"w": draw(1, HEADS, DIM, HEAD)}, "kv_einsum": {"w": draw(2, 2, 2, DIM, HEAD)},
            "attn_vec_einsum": {"w": draw(3, HEADS, HEAD, DIM)}}

  def apply(p, x):
    q = jnp.einsum("btd,hdk->bthk", x, p["q_einsum"]["w"])
    k, v = jnp.repeat(jnp.einsum("btd,chdk->cbthk", x, p["kv_einsum"]["w"]), HEADS // 2, axis=3)
    return x + jnp.einsum("bthk,hkd->btd", attend(q, k, v), p["attn_vec_einsum"]["w"])

  return Foreign(params, apply, X, "kv_einsum/w", "attn_vec_einsum/w")


def scanned_over_axis_1():
  """A stack named `block`, whose layers are the second axis."""
  params = {"block": {"up": {"kernel": draw(1, DIM, 3, HIDDEN)}, "down": {"kernel": draw(2, HIDDEN, 3, DIM)}}}

  def apply(p, x):
    layers = jax.tree.map(lambda w: jnp.moveaxis(w, 1, 0), p["block"])
    layer = jax.checkpoint(lambda x, w: (x + jnp.tanh(x @ w["up"]["kernel"]) @ w["down"]["kernel"], None))
    return jax.lax.scan(layer, x, layers)[0]

  return Foreign(params, apply, X, "block/layers/up/kernel", "block/layers/down/kernel")


def named_h():
  """Layers called `h`, each a kernel `[out, in]`."""
  params = {"h": {str(i): {"fc": {"w": draw(i, HIDDEN, DIM)}, "proj": {"w": draw(9 + i, DIM, HIDDEN)}}
                  for i in range(2)}}

  def apply(p, x):
    for i in range(2):
      x = x + jnp.tanh(x @ p["h"][str(i)]["fc"]["w"].T) @ p["h"][str(i)]["proj"]["w"].T
    return x

  return Foreign(params, apply, X, "h/1/fc/w", "h/1/proj/w")


def fused():
  """Queries, keys and values as column slices of one kernel."""
  params = {"qkv": {"kernel": draw(1, DIM, 3 * DIM)}, "out": {"kernel": draw(2, DIM, DIM)}}
  split = lambda t: t.reshape(2, 16, HEADS, HEAD)

  def apply(p, x):
    q, k, v = (split(x @ w) for w in jnp.split(p["qkv"]["kernel"], 3, axis=1))
    return x + attend(q, k, v).reshape(x.shape) @ p["out"]["kernel"]

  return Foreign(params, apply, X, "qkv/kernel", "out/kernel")


def convolution():
  """A patch embedding and a window of three."""
  params = {"patch": {"kernel": draw(1, 4, 4, 3, DIM)}, "window": {"kernel": draw(2, 3, 3, DIM, DIM)}}
  conv = lambda x, w, stride: jax.lax.conv_general_dilated(
      x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  apply = lambda p, x: conv(jnp.tanh(conv(x, p["patch"]["kernel"], 4)), p["window"]["kernel"], 1)
  return Foreign(params, apply, draw(0, 2, 16, 16, 3), "patch/kernel", "window/kernel")


def experts():
  """A mixture of four experts in a scan of layers."""
  params = {"moe": {"up": draw(1, 2, 4, DIM, HIDDEN), "down": draw(2, 2, 4, HIDDEN, DIM)}}

  def layer(x, w):
    each = jnp.stack([x[:, i::4] for i in range(4)])
    y = jnp.einsum("ebtf,efd->ebtd", jnp.tanh(jnp.einsum("ebtd,edf->ebtf", each, w["up"])), w["down"])
    return x + jnp.moveaxis(y, 0, 2).reshape(x.shape), None

  return Foreign(params, lambda p, x: jax.lax.scan(layer, x, p["moe"])[0], X, "moe/layers/experts/up",
                 "moe/layers/experts/down")


def two_towers():
  """Stacks of unequal depth."""
  tower = lambda seed, n: {"h": {"up": draw(seed, n, DIM, HIDDEN), "down": draw(seed + 1, n, HIDDEN, DIM)}}
  params = {"vision": tower(1, 2), "text": tower(3, 4)}
  layer = lambda x, w: (x + jnp.tanh(x @ w["up"]) @ w["down"], None)
  apply = lambda p, x: sum(jax.lax.scan(layer, x, p[name]["h"])[0] for name in ("vision", "text"))
  return Foreign(params, apply, X, "vision/h/layers/up", "text/h/layers/down")


def tied():
  """A table that is looked up and multiplied by."""
  params = {"table": {"weight": draw(1, 12, DIM)}, "mix": {"weight": draw(2, DIM, DIM)}}
  apply = lambda p, ids: jnp.tanh(p["table"]["weight"][ids] @ p["mix"]["weight"].T) @ p["table"]["weight"].T
  return Foreign(params, apply, np.arange(32).reshape(2, 16) % 11, "mix/kernel", "table/embedding")


class Layer(nnx.Module):

  def __init__(self, rngs):
    self.attention = nnx.MultiHeadAttention(num_heads=HEADS, in_features=DIM, decode=False, rngs=rngs)
    self.up, self.down = nnx.Linear(DIM, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, DIM, rngs=rngs)
    self.norm = nnx.LayerNorm(DIM, rngs=rngs)

  def __call__(self, x):
    x = x + self.attention(self.norm(x))
    return x + self.down(jnp.tanh(self.up(x)))


class Albert(nnx.Module):
  """One layer, used three times, between factors of a tied table."""

  def __init__(self, rngs):
    self.words, self.shared = nnx.Embed(12, 8, rngs=rngs), Layer(rngs)
    self.into, self.back = nnx.Linear(8, DIM, rngs=rngs), nnx.Linear(DIM, 8, rngs=rngs)

  def __call__(self, ids):
    x = self.into(self.words(ids))
    for _ in range(3):
      x = self.shared(x)
    return self.words.attend(self.back(x))


def shared_layer():
  graph, params = nnx.split(Albert(nnx.Rngs(0)))
  return Foreign(params, lambda params, ids: nnx.merge(graph, params)(ids), np.arange(32).reshape(2, 16) % 11,
                 "shared/attention/query/kernel", "shared/down/kernel")


class UNet(nn.Module):
  """Down and up again: convolutions under GroupNorm, told the time, with a skip connection across."""

  @nn.compact
  def __call__(self, x, time):
    conv = lambda size, name, **settings: nn.Conv(size, (3, 3), name=name, **settings)
    first = conv(8, "conv_in")(x)
    h = conv(16, "downsample", strides=(2, 2))(first)
    y = nn.swish(nn.GroupNorm(4, name="norm")(h)) + nn.Dense(16, name="time")(time)[:, None, None]
    h = h + conv(16, "conv")(y)
    up = nn.ConvTranspose(8, (4, 4), strides=(2, 2), name="upsample")(h)
    x = jnp.concatenate([up, first], axis=-1)
    return conv(3, "conv_out")(nn.swish(nn.GroupNorm(4, name="norm_out")(x)))


def u_net():
  inputs = draw(0, 2, 8, 8, 3), draw(1, 2, 4)
  params = UNet().init(jax.random.key(0), *inputs)["params"]
  return Foreign(params, lambda params, inputs: UNet().apply({"params": params}, *inputs), inputs, "conv/kernel",
                 "upsample/kernel")


MODELS = [out_in, heads, grouped_queries, scanned_over_axis_1, named_h, fused, convolution, experts, two_towers, tied,
          shared_layer, u_net]
