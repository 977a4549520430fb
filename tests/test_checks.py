"""Numbers in their ranges, and arrays without NaN and infinity."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxft.all_finite import all_finite, count_not_finite
from jaxft.checks import in_range
from jaxft.tree.finite_leaves import check_finite

NOT_FINITE = (np.nan, -np.nan, np.inf, -np.inf)


@pytest.mark.parametrize(("interval", "inside", "outside"), [
    ("(-inf, inf)", (0, -1e300, np.float32(2)), (*NOT_FINITE, "word", None)),
    ("(0, 1]", (1, 0.5, jnp.float32(1)), (0, 1.5, np.nan, jnp.float32(np.nan))),
    ("[0, inf)", (0, 1e9), (-1e-9, np.inf, np.nan)),
])
def test_in_range(interval, inside, outside):
  in_range("x", list(inside), interval)
  for value in outside:
    with pytest.raises(ValueError, match=r"^x must (be a finite number|lie in )"):
      in_range("x", value, interval)
  jax.eval_shape(lambda x: in_range("x", x), 1.0)  # has no value yet


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e5m2])
def test_finite_by_bits(dtype):
  x = np.array([[1, -2, 0, 3], [-0.0, 3, 4, 5]]).astype(dtype)
  largest = np.full(300, ml_dtypes.finfo(dtype).max, dtype)  # whose sum overflows
  for fine in (x, x.T, x[:, ::2], x[0, 0], x[:0], largest, -largest):
    assert all_finite(np.asarray(fine))
  for value in NOT_FINITE:
    x[1, 2] = value
    assert not all_finite(x) and not all_finite(x.T) and not all_finite(x[:, ::2]) and count_not_finite(x) == 1


def test_leaves_are_named():
  tree = {"a": jnp.ones(2), "b": {"c": np.float32([1, np.nan])}, "ids": np.arange(3), "hole": None}
  for trees in ({"x": tree["a"], "model": tree}, {"model": jax.tree.map(jnp.asarray, tree)}):
    with pytest.raises(ValueError, match=r"^model must be finite; got 1 of 2 values that are not in b/c$"):
      check_finite(trees)
  jax.eval_shape(lambda t: check_finite({"model": t}), tree)
  check_finite({"none": None, "shapes": jax.eval_shape(lambda: tree["a"])})


def test_an_output_may_be_a_link(tmp_path):
  from jaxft.files import check_apart, check_writable, followed

  (tmp_path / "real").mkdir()
  (tmp_path / "link").symlink_to("real")
  (tmp_path / "dangling").symlink_to("nowhere")
  (tmp_path / "loop").symlink_to("loop")
  assert followed(tmp_path / "link") == tmp_path / "real" and followed(tmp_path / "dangling") == tmp_path / "nowhere"
  for check in (followed, lambda path: check_apart(path, {})):
    with pytest.raises(OSError, match="loop is a link that leads back to itself"):
      check(tmp_path / "loop")
  with pytest.raises(OSError, match="dangling cannot be written: it is a link to nowhere, which is not there"):
    check_writable(tmp_path / "dangling")
