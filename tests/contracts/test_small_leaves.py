"""BitFit, norm tuning and training a head alone hold the contract, on blocks that have what they train."""

import jax
import jax.numpy as jnp
import pytest

from jaxft.leaves import dot
from jaxft.models.norms import rms_norm
from jaxft.transforms import bitfit, norm_tuning, train
from jaxft.tree import unstack_layers
from tests.contracts import test_transform_states, test_transform_steps, test_transforms, transforms
from tests.contracts.costs import BIG, matmul_flops, step_cost
from tests.contracts.transform_cases import KEY
from tests.contracts.transforms import Blocks, Case

CASES = [
    Case("bitfit", bitfit(), flops=4.1), Case("norm_tuning", norm_tuning(), flops=4.1),
    Case("head_only", train("head/kernel"), flops=2.1),
]
CHECKS = {
    "numbers": test_transforms.check_numbers,
    "shapes": test_transforms.check_a_step_by_its_shapes,
    "training": test_transform_steps.check_training,
    "lazy": test_transform_steps.check_lazy,
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
  return dot(transforms.forward(params, x, block), params["head"]["kernel"])


def foreign_forward(params, x):
  step = lambda h, layer: (block(h, layer, jnp.matmul), None)
  return jax.lax.scan(step, x, params["layers"])[0] @ params["head"]["kernel"]


BLOCKS = Blocks(stack_params, forward, foreign_forward)


@pytest.mark.interpreter
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@every_case
def test_contract(case, check):
  check(case, blocks=BLOCKS)


@every_case
def test_saved_and_restored(case, tmp_path):
  test_transform_states.check_saved(case, tmp_path, BLOCKS)


@every_case
@pytest.mark.parametrize("arrange", [lambda params: params, unstack_layers], ids=["stacked", "unrolled"])
def test_declared_flops(case, arrange):
  params = jax.eval_shape(lambda key: arrange(stack_params(key, **BIG)), KEY)
  cost = step_cost(case.transform, params, forward, matmul_flops)
  assert case.flops - 0.35 < cost <= case.flops
