"""Every method that makes what trains makes it in the dtype asked for, starts where it does in float32, rounds once."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft import transforms
from jaxft.leaves import materialize
from jaxft.transforms import loftq, lora, mica, pissa
from jaxft.transforms.matrices import in_float32
from jaxft.tree.paths import array_paths
from tests.contracts.comparison import assert_trees_close
from tests.contracts.transform_cases import BY_NAME, KEY, KINDS, small
from tests.contracts.transforms import KERNELS

# The methods in whose modules dtype is a rule, with the sizes of their cases.
FAMILIES = ("low_rank", "structured", "multiplicative")
SIZES = {
    "lora": {"rank": 8}, "dora": {"rank": 8}, "adalora": {"rank": 8}, "vera": {"rank": 16}, "loha": {"rank": 4},
    "hira": {"rank": 8}, "lokr": {}, "delora": {"rank": 8, "strength": 0.5}, "miss": {"rank": 8},
    "fourier_ft": {"frequencies": 5}, "c3a": {"block": 16}, "vb_lora": {"rank": 4, "vectors": 12, "length": 16},
    "rand_lora": {"rank": 8, "alpha": 8.0}, "ia3": {"inputs": None}, "learned_scale": {}, "oft": {"block": 8},
    "boft": {"block": 4}, "hra": {"rank": 8}, "road": {"group": 16},
}
MAKERS = {name: partial(getattr(transforms, name), KERNELS, **sizes) for name, sizes in SIZES.items()} | {
    "pissa": partial(lora, KERNELS, rank=8, init=pissa),
    "mica": partial(lora, KERNELS, rank=8, init=mica, train="a"),
    "loftq": partial(lora, KERNELS, rank=8, init=loftq(block=16, rounds=2)),
    "loha_formed": partial(transforms.loha, KERNELS, rank=16),
    "lokr_rank": partial(transforms.lokr, KERNELS, rank=2, factor=4),
    "fourier_ft_formed": partial(transforms.fourier_ft, KERNELS, frequencies=60),
    "oft_series": partial(transforms.oft, KERNELS, block=8, terms=5),
}
# Numbers that are no factors, and float32 whatever the dtype of these.
FLOAT32 = ("magnitude", "strength")
mark = lambda name: () if name in KINDS.values() else pytest.mark.exhaustive


def matrix_methods():
  """The public functions that adapt matrices, which they select."""
  for name, f in vars(transforms).items():
    if inspect.isfunction(f) and any(f.__module__.startswith(f"jaxft.transforms.{family}.") for family in FAMILIES):
      if inspect.signature(f).return_annotation is transforms.ParamTransform and name != "lora_combination":
        yield name, f


def test_every_matrix_method_offers_a_dtype():
  found = dict(matrix_methods())
  differing = sorted(found.keys() ^ SIZES.keys())
  assert not differing, f"SIZES must have the sizes of every matrix method, and no others; see {', '.join(differing)}"
  for f in found.values():
    assert inspect.signature(f).parameters["dtype"].default is None


@pytest.mark.parametrize("name", [pytest.param(name, marks=mark(name)) for name in MAKERS])
def test_factors_in_bfloat16(name):
  params, transform = small(BY_NAME["lora"]), MAKERS[name](dtype=jnp.bfloat16)
  frozen, start = transform.split(KEY, params)
  for path, x in array_paths(start):
    assert x.dtype == (jnp.float32 if path.endswith(FLOAT32) else jnp.bfloat16), path
  draw = np.random.default_rng(0)
  moved = jax.tree.map(lambda x: x + jnp.asarray(0.3 * draw.standard_normal(x.shape), x.dtype), start)
  formed = lambda t: materialize(transform.join(frozen, t))
  for got, want in zip(jax.tree.leaves(formed(start)), jax.tree.leaves(params), strict=True):
    within = BY_NAME[name if name in BY_NAME else "ia3"].starts_within
    assert jnp.linalg.norm(got - want) <= 1.1 * within * jnp.linalg.norm(want)
  assert_trees_close(*jax.jit(lambda t: (formed(t), formed(in_float32(t))))(moved), rtol=1e-5, atol=1e-5)


def test_a_dtype_of_integers_is_refused():
  for make in (lora, transforms.dora, transforms.loha, transforms.oft):
    with pytest.raises(ValueError, match="dtype must be one of floating point, such as jnp.bfloat16; got int8"):
      make(dtype=jnp.int8)
