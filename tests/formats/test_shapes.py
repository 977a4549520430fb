"""Shapes of public models have as many parameters as their names say."""

import jax
import pytest

from jaxft.formats.shapes import read_shape, shape_names
from jaxft.models import decoder
from jaxft.tree.partition import count


@pytest.mark.parametrize(("name", "billions"), [
    ("llama3-8b", 8.03), ("llama3-70b", 70.55), ("llama3.1-405b", 405.85), ("qwen3-32b", 32.76),
    ("gemma3-27b", 27.01), ("smollm2-1.7b", 1.71)])
def test_a_shape_has_the_published_number_of_parameters(name, billions):
  config = read_shape(name)
  params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), config))
  assert round(count(params) / 1e9, 2) == billions


def test_shapes_are_all_tried_and_others_refused():
  assert len(shape_names()) == 6
  with pytest.raises(ValueError, match=r"name must be one of the shapes gemma3-27b, .*got 'llama3-9b'"):
    read_shape("llama3-9b")
