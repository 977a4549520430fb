"""Every method that the command line names splits and joins both of the library's models."""

import jax
import pytest

from jaxft.leaves import materialize
from jaxft.models import decoder, encoder
from jaxft.recipes.methods import METHODS, make_transform
from jaxft.recipes.options import Adaptation
from jaxft.tree import count

CONFIGS = {
    "encoder": (encoder, encoder.EncoderConfig(vocab_size=64, dim=64, num_layers=2, num_heads=2, mlp_dim=128)),
    "decoder": (decoder, decoder.DecoderConfig(
        vocab_size=64, dim=64, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=64, mlp_dim=128)),
}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_something_and_keeps_the_shapes(name, family):
  if (name, family) == ("bitfit", "decoder"):
    pytest.skip("a decoder has no biases")
  model, config = CONFIGS[family]
  select = ("layers/**",) if name == "train" else ()
  transform = make_transform(Adaptation(method=name, select=select))
  params = jax.eval_shape(lambda key: model.init(key, config), jax.random.key(0))
  if name == "hft":  # draws on the host
    params = model.init(jax.random.key(0), config)
  frozen, trainable = jax.eval_shape(transform.split, jax.random.key(1), params)
  assert 0 < count(trainable) <= count(params)
  joined = jax.eval_shape(lambda f, t: materialize(transform.join(f, t)), frozen, trainable)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), joined) == jax.tree.map(lambda x: (x.shape, x.dtype), params)


@pytest.mark.parametrize("options, message", [
    ({"method": "full", "select": ("layers/**",)}, "method full does not read --select; it reads no option"),
    ({"method": "vera", "alpha": 9.0, "dropout": 0.5},
     "not read --alpha, --dropout; it reads --quantize, --rank, --select"),
    ({"method": "lora", "draw": 3}, "lora does not read --draw"), ({"method": "hira", "alpha": 1.0}, "--alpha"),
    ({"method": "hft", "rank": 4}, "hft does not read --rank; it reads --draw"),
    ({"method": "train"}, "method train needs --select"),
    ({"method": "full", "quantize": "nf4"}, "leaves its matrices frozen; full trains them"),
    ({"method": "qlora", "quantize": "nf4"}, "qlora quantizes them itself"),
    ({"method": "lora", "quantize": "nf5"}, "quantize must be one of int8, nf4; got 'nf5'"),
])
def test_an_option_that_the_method_does_not_read_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    make_transform(Adaptation(**options))


def test_a_method_beside_quantized_matrices():
  model, config = CONFIGS["decoder"]
  params = jax.eval_shape(lambda key: model.init(key, config), jax.random.key(0))
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  sides = {q: jax.eval_shape(make_transform(Adaptation(method="dora", quantize=q)).split, jax.random.key(1), params)
           for q in (None, "int8", "nf4")}
  frozen, trained = ({q: size(side[i]) for q, side in sides.items()} for i in (0, 1))
  assert frozen["nf4"] < frozen["int8"] < frozen[None] and trained["nf4"] == trained[None]
