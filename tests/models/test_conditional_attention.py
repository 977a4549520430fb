"""Conditional cross-attention: against NumPy, and where a condition can and cannot enter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.models import vision
from jaxft.models.heads import conditional_attention

DIM, HEADS, TOKENS = 8, 2, 5


@pytest.fixture(scope="module")
def head():
  config = vision.VisionConfig(image_size=4, patch_size=4, dim=DIM, num_layers=1, num_heads=HEADS, mlp_dim=12)
  layer = jax.tree.map(lambda x: x[-1], vision.init(jax.random.key(0), config, stddev=0.5)["layers"])
  params = conditional_attention.init(jax.random.key(1), layer, conditions=3, out_dim=4)
  return params, np.random.default_rng(0).normal(size=(2, TOKENS, DIM)).astype(np.float32)


def run(params, tokens, conditions, **options):
  conditions = np.broadcast_to(np.array(conditions, np.int32), (len(tokens), len(conditions)))
  return np.asarray(conditional_attention.embed(params, tokens, conditions, num_heads=HEADS, **options))


def with_query(params, factor):
  attention = params["block"]["attention"]
  return {**params, "block": {**params["block"], "attention": {
      **attention, "query": jax.tree.map(lambda x: factor * x, attention["query"])}}}


def test_it_is_multi_head_attention_of_the_condition(head):
  params, tokens = head
  block = jax.tree.map(np.asarray, params["block"])
  dense = lambda x, p: x @ p["kernel"] + p["bias"]
  norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  asked = np.asarray(params["condition"]["embedding"])[[2]]
  for i, x in enumerate(tokens):
    q, k, v = (dense(norm(y), block["attention"][name]) for y, name in (
        (asked, "query"), (x, "key"), (x, "value")))
    read = []
    for h in np.split(np.arange(DIM), HEADS):
      scores = q[:, h] @ k[:, h].T / np.sqrt(len(h))
      weights = np.exp(scores) / np.exp(scores).sum()
      read.append(weights @ v[:, h])
    y = dense(np.concatenate(read, axis=-1), block["attention"]["out"]) + asked
    up = dense(norm(y), block["mlp"]["up"])
    y = y + dense(np.asarray(jax.nn.gelu(up, approximate=False)), block["mlp"]["down"])
    z = y @ np.asarray(params["out"]["kernel"])
    np.testing.assert_allclose(run(params, tokens[[i]], [2])[0], z / np.linalg.norm(z), atol=1e-5)


def test_several_conditions_are_one_by_one_and_follow_their_rows(head):
  params, tokens = head
  together = run(params, tokens, [0, 1, 2])
  np.testing.assert_allclose(together, np.concatenate([run(params, tokens, [c]) for c in range(3)], axis=1), atol=1e-6)
  swapped = {**params, "condition": {"embedding": params["condition"]["embedding"][np.array([1, 0, 2])]}}
  np.testing.assert_allclose(run(swapped, tokens, [1, 0, 2]), together, atol=1e-6)
  np.testing.assert_allclose(run(params, tokens[:, ::-1], [0, 1, 2]), together, atol=1e-6)  # the order of the tokens


def test_where_a_condition_cannot_enter(head):
  params, tokens = head
  same = lambda x: np.testing.assert_allclose(x[:, 0], x[:, 1], atol=1e-6)
  same(run(params, tokens[:, :1], [0, 1], residual="none"))  # one token: whatever is asked, it is read
  same(run(with_query(params, 0.0), tokens, [0, 1], residual="none"))  # uniform attention
  assert np.abs(np.diff(run(with_query(params, 0.0), tokens, [0, 1]), axis=1)).max() > 1e-2  # by the residual
  assert np.abs(np.diff(run(params, tokens, [0, 1], residual="none"), axis=1)).max() > 1e-2


def test_masked_tokens_are_not_read(head):
  params, tokens = head
  mask = np.arange(TOKENS)[None].repeat(2, 0) < 3
  np.testing.assert_allclose(run(params, tokens, [0], mask=mask), run(params, tokens[:, :3], [0]), atol=1e-6)


def test_refusals(head):
  params, tokens = head
  conditions = jnp.zeros((2, 1), jnp.int32)
  with pytest.raises(ValueError, match="num_heads must divide dim = 8; got 3"):
    conditional_attention.embed(params, tokens, conditions, num_heads=3)
  with pytest.raises(ValueError, match="residual must be one of query, none; got 'image'"):
    conditional_attention.embed(params, tokens, conditions, num_heads=2, residual="image")
  with pytest.raises(ValueError, match="conditions must"):
    conditional_attention.init(jax.random.key(0), params["block"], conditions=0, out_dim=2)
