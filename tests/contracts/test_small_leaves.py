"""BitFit, norm tuning and training a head alone hold the contract, on blocks that have what they train.

The checks are those of `test_transforms.py`, run on these blocks in place of its own.
"""

import jax
import jax.numpy as jnp
import pytest

from jaxft.models.norms import rms_norm
from jaxft.transforms import bitfit, dot, norm_tuning, train, unstack_layers
from tests.contracts import test_transforms as contract
from tests.contracts import transforms
from tests.contracts.transforms import Case

CASES = [
    Case("bitfit", bitfit(), flops=4.1), Case("norm_tuning", norm_tuning(), flops=4.1),
    Case("head_only", train("head/kernel"), flops=2.1),
]
CHECKS = {
    "start": contract.test_join_after_split_gives_the_params,
    "training": contract.test_only_what_trains_changes,
    "paths": contract.test_plain_fast_and_lazy_paths_agree,
    "layouts": contract.test_stacked_and_unrolled_layers_agree,
}
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def stack_params(key, *, layers, dim, hidden, dtype=jnp.float32):
  """Stacked blocks `x + relu(norm(x) @ up + b) @ down + c` and a head; biases and scales away from 0 and 1."""
  params = transforms.stack_params(key, layers=layers, dim=dim, hidden=hidden, dtype=dtype)
  draw = lambda i, n: (0.1 * jax.random.normal(jax.random.fold_in(key, i), (layers, n))).astype(dtype)
  for i, (name, n) in enumerate((("up", hidden), ("down", dim))):
    params["layers"][name]["bias"] = draw(i, n)
  params["layers"]["mlp_norm"] = {"scale": 1 + draw(2, dim)}
  head = jax.random.normal(jax.random.fold_in(key, 3), (dim, dim)) * dim**-0.5
  return {**params, "head": {"kernel": head.astype(dtype)}}


def block(h, layer, multiply=dot):
  linear = lambda x, p: multiply(x, p["kernel"]) + p["bias"]
  return h + 0.3 * linear(jax.nn.relu(linear(rms_norm(h, layer["mlp_norm"], eps=1e-5), layer["up"])), layer["down"])


def forward(params, x):
  return dot(transforms.forward(params, x), params["head"]["kernel"])


def foreign_forward(params, x):
  step = lambda h, layer: (block(h, layer, jnp.matmul), None)
  return jax.lax.scan(step, x, params["layers"])[0] @ params["head"]["kernel"]


def make_step(transform, apply=forward):
  return transforms.make_step(transform, apply)


@pytest.fixture(autouse=True)
def on_these_blocks(monkeypatch):
  monkeypatch.setattr(transforms, "block", block)
  for of_this_file in (stack_params, forward, foreign_forward, make_step):
    monkeypatch.setattr(contract, of_this_file.__name__, of_this_file)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@every_case
def test_contract(case, check):
  check(case)


@every_case
def test_saved_and_restored(case, tmp_path):
  contract.test_saved_and_restored(case, tmp_path)


@every_case
@pytest.mark.parametrize("arrange", [lambda params: params, unstack_layers], ids=["stacked", "unrolled"])
def test_declared_flops(case, arrange):
  params = jax.eval_shape(lambda key: arrange(stack_params(key, **contract.BIG)), contract.KEY)
  cost = contract.step_cost(case.transform, params, forward, contract.matmul_flops)
  assert case.flops - 0.35 < cost <= case.flops
