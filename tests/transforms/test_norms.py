"""Norm tuning: which leaves it takes of this library's models; `tests/contracts/test_small_leaves.py` has the rest."""

import jax
import pytest

from jaxft.models import decoder, encoder
from jaxft.transforms import norm_tuning
from jaxft.tree import cut_layers, leaves_with_paths, unstack_layers
from tests import draws

KEY = jax.random.key(0)
SIZES = {"vocab_size": 11, "dim": 8, "num_layers": 4, "num_heads": 2, "mlp_dim": 12}
WIDE = decoder.DecoderConfig(**SIZES, num_kv_heads=1, head_dim=4, tie_embeddings=False)
DECODER = draws.params(lambda: decoder.init(KEY, WIDE), 0)
ENCODER = draws.params(lambda: encoder.init(KEY, encoder.EncoderConfig(**SIZES)), 1)
STACKED = {
    "decoder": (DECODER, {"layers/attention_norm/scale", "layers/mlp_norm/scale", "norm/scale"}),
    "encoder": (ENCODER, {
        f"{norm}/{leaf}" for norm in ("embed/norm", "layers/attention_norm", "layers/mlp_norm")
        for leaf in ("scale", "bias")}),
}


def trained(transform, params):
  frozen, trainable = transform.split(KEY, params)
  pairs = zip(jax.tree.leaves(transform.join(frozen, trainable)), jax.tree.leaves(params), strict=True)
  assert all(got is want for got, want in pairs)
  return {path for path, leaf in leaves_with_paths(trainable) if leaf is not None}


@pytest.mark.parametrize("params,norms", STACKED.values(), ids=STACKED)
def test_the_default_is_every_norm(params, norms):
  assert trained(norm_tuning(), params) == norms
  in_layers = {path.removeprefix("layers/") for path in norms if path.startswith("layers/")}
  for arrange, names in ((unstack_layers, "0123"), (lambda p: cut_layers(p, [2]), ("0:2", "2:4"))):
    pieces = {f"layers/{name}/{path}" for name in names for path in in_layers}
    assert trained(norm_tuning(), arrange(params)) == pieces | {p for p in norms if not p.startswith("layers/")}


def test_some_norms():
  assert trained(norm_tuning("**/{attention_norm,mlp_norm}/*"), DECODER) == STACKED["decoder"][1] - {"norm/scale"}
  with pytest.raises(ValueError, match="matches none of"):
    norm_tuning().split(KEY, {"layers": {"up": {"kernel": DECODER["head"]["kernel"]}}})
