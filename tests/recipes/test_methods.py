"""Every method that the command line names splits and joins both of the library's models."""

import json
from pathlib import Path

import jax
import pytest

from jaxft.leaves import materialize
from jaxft.models import decoder, encoder
from jaxft.recipes.methods import METHODS, make_transform, sources, usual_rate
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


def test_methods_are_joined_as_chain_joins_them():
  model, config = CONFIGS["encoder"]
  params = jax.eval_shape(lambda key: model.init(key, config), jax.random.key(0))
  trained = lambda options, **more: count(
      jax.eval_shape(make_transform(options, **more).split, jax.random.key(1), params)[1])
  lora, norms = trained(Adaptation(rank=3)), trained(Adaptation(method="train", select=("norms",)))
  assert norms == trained(Adaptation(method="norm_tuning"))
  joined = Adaptation(method="lora(rank=3, alpha=4) + train(norms)")
  assert trained(joined) == lora + norms
  assert trained(Adaptation(method=" lora ( rank = 3 )")) == lora
  assert trained(Adaptation(method="lora + train(norms, 'embed/tokens/**') + bitfit")) > trained(
      Adaptation(method="lora + train(norms)"))
  assert usual_rate(joined) == usual_rate(Adaptation()) and sources(joined) == ["2106.09685"]
  kept = lambda options: jax.eval_shape(make_transform(options).split, jax.random.key(1), params)[0]
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  assert size(kept(Adaptation(method=joined.method, quantize="nf4"))) < size(kept(joined)) / 2
  # The model's own matrices are what a method takes where none are selected, and what the word means.
  own = {"matrices": "layers/attention/**/kernel"}
  assert trained(Adaptation(method="lora(rank=3)"), **own) < lora
  assert trained(Adaptation(method="lora(matrices, rank=3)"), **own) == trained(Adaptation(rank=3), **own)


@pytest.mark.parametrize("expression, message", [
    ("lora(rank=3) - train(norms)", "methods joined by"), ("lora(rank=3", "methods joined by"),
    ("lora(**x)", "methods joined by"), ("lora(1)", "methods joined by"), ("f()()", "methods joined by"),
    ("lora(rank=__import__('os'))", "rank of lora in method must be a whole number; got __import__"),
    ("lora(rank=2.5)", "whole number; got 2.5"), ("lora(rank=True)", "whole number"), ("lora(alpha='x')", "a number"),
    ("lora(rnk=3)", "option of lora in method must be"), ("lora(quantize=1)", "option of lora in method must be"),
    ("lroa() + train(norms)", "nearest: lora|must be one of"), ("lora + train", "train needs --select"),
    ("full + lora", None), ("train(norms, rank=2)", "train does not read --rank"), ("+", "methods joined by"),
])
def test_a_method_expression_that_says_nothing_is_refused(expression, message):
  if message is None:
    params = {"layers": {"mlp": {"kernel": jax.numpy.ones((4, 4))}}}
    with pytest.raises(ValueError, match="already trains all"):
      make_transform(Adaptation(method=expression)).split(jax.random.key(0), params)
    return
  with pytest.raises(ValueError, match=message):
    make_transform(Adaptation(method=expression))


def test_options_beside_an_expression_are_refused():
  with pytest.raises(ValueError, match="--select, --rank beside an expression"):
    make_transform(Adaptation(method="lora + train(norms)", rank=3, select=("layers/**",)))
  with pytest.raises(ValueError, match="leaves its matrices frozen; train trains them"):
    make_transform(Adaptation(method="train(norms) + bitfit", quantize="nf4"))


def test_usual_rates_stand_to_one_another_as_the_committed_curves_have_them():
  found = json.loads((Path(__file__).parents[2] / "experiments/results/which-method.json").read_text())["arms"]
  names = {"full": "full", "DoRA": "dora", "SHiRA": "shira", "OFT": "oft", "(IA)^3": "ia3", "BitFit": "bitfit"}
  rate = lambda arm: found[arm]["setting"]["rate"]
  for arm, method in names.items():
    ratio = METHODS[method].learning_rate / METHODS["lora"].learning_rate
    assert 1 / 3.4 <= ratio / (rate(arm) / rate("LoRA")) <= 3.4, arm  # a step of the grid is 3 or 10 / 3
