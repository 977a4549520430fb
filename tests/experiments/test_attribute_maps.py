"""Maps of embedding spaces: the principal plane of each, and one picture of all."""

import numpy as np

from experiments.representation import attribute_maps, conditional_cross_attention as cca


def test_the_plane_keeps_what_lies_in_it():
  rng = np.random.default_rng(0)
  flat = rng.normal(size=(20, 2)) * [3.0, 1.0]
  turned = flat @ np.linalg.qr(rng.normal(size=(5, 5)))[0][:2] + 7.0  # the same points in a plane of five dimensions
  distances = lambda x: np.linalg.norm(x[:, None] - x, axis=-1)
  np.testing.assert_allclose(distances(attribute_maps.plane(turned)), distances(flat), rtol=1e-9, atol=1e-9)


def test_a_map_for_each_arm_and_attribute(tmp_path):
  rng = np.random.default_rng(1)
  spaces = {arm: rng.normal(size=(len(cca.ATTRIBUTES), 9, 4)) for arm in ("one", "another")}
  labels = rng.integers(0, 2, (9, len(cca.ATTRIBUTES)))
  first, second = tmp_path / "first.png", tmp_path / "second.png"
  for path in (first, second):
    attribute_maps.draw(spaces, labels, path)
  assert first.read_bytes() == second.read_bytes()
  import matplotlib.image
  height, width, _ = matplotlib.image.imread(first).shape
  assert abs(width / height - len(cca.ATTRIBUTES) / len(spaces)) < 0.05
