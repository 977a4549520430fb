"""Transforms in one line, as a notebook shows them."""

import functools

import numpy as np
import pytest

from jaxft import transforms as t


@pytest.mark.parametrize("transform, said", [
    (t.lora("layers/**/kernel", rank=4), "lora('layers/**/kernel', rank=4)"),
    (t.chain(t.lora(["a", "b"]), t.quantize("a", format="nf4")),
     "chain(lora(['a', 'b'], rank=8), quantize('a', format='nf4'))"),
    (t.on("up", t.full()), "on('up', train(True))"), (t.freeze("embed/**"), "freeze('embed/**')"),
    (t.train(len), "train(len)"), (t.train(functools.partial(len)), "train(partial)"),
    (t.train({"up": np.array(True)}), "train(dict)"), (t.hra("k"), "hra('k')"),
    (t.dora("x" * 99, rank=2), f"dora('{'x' * 56}..., rank=2, alpha=16.0)"),
])
def test_in_one_line(transform, said):
  assert repr(transform) == said


def test_of_functions_of_one_s_own():
  assert repr(t.ParamTransform(len, max)) == "ParamTransform(len)"
  assert repr(t.ParamTransform(functools.partial(len), max)) == "ParamTransform(partial)"


def test_in_an_error():
  with pytest.raises(TypeError, match=r"such as lora\(...\)"):
    t.chain(t.lora("k"), "x")
