"""ComPEFT and aTLAS against PyTorch: PEFT's pruning with torch's deviation, and autograd through a combined model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.merging.compression.ternary import ternarize
from jaxft.transforms.linear_combination import linear_combination
from tests.contracts.transforms import forward, stack_params
from tests.parity.libraries import library

torch = library("torch")
merge_utils = library("peft.utils.merge_utils")

KEY = jax.random.key(0)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("scale", ["std", "lstsq"])
def test_ternary_is_pefts_pruning_with_one_magnitude(density, scale):
  flat = np.random.default_rng(0).standard_normal(5003).astype(np.float32)
  pruned = merge_utils.magnitude_based_pruning(torch.tensor(flat), density)
  sigma = torch.std(torch.tensor(flat)) if scale == "std" else pruned[pruned != 0].abs().mean()  # ComPEFT, STC
  want = 2.0 * sigma * torch.sign(pruned)
  got = ternarize({"w": jnp.asarray(flat)}, density=density, scale=scale, alpha=2.0).dense()["w"]
  np.testing.assert_allclose(got, want.numpy(), rtol=1e-5)


def test_gradients_of_coefficients_are_autograds():
  base, *models = [stack_params(jax.random.fold_in(KEY, i), layers=2, dim=5, hidden=7) for i in range(4)]
  deltas = [jax.tree.map(lambda a, b: 0.1 * (a - b), m, base) for m in models]
  x = np.asarray(jax.random.normal(KEY, (6, 5)))
  transform = linear_combination(deltas, init=[0.3, -0.2, 0.1])
  frozen, c = transform.split(KEY, base)
  got = jax.grad(lambda c: jnp.sum(jnp.square(forward(transform.join(frozen, c), jnp.asarray(x)))))(c)

  lambdas = {name: torch.tensor([[0.3, -0.2, 0.1]] * 2, requires_grad=True) for name in ("up", "down")}
  tensor = lambda tree, name, layer: torch.tensor(np.asarray(tree["layers"][name]["kernel"][layer]))
  h = torch.tensor(x)
  for layer in range(2):
    w = {name: tensor(base, name, layer) + sum(lambdas[name][layer, i] * tensor(d, name, layer)
                                               for i, d in enumerate(deltas)) for name in lambdas}
    h = h + 0.3 * torch.relu(h @ w["up"]) @ w["down"]
  h.square().sum().backward()
  for name, want in lambdas.items():
    np.testing.assert_allclose(got["layers"][name]["kernel"], want.grad.numpy(), rtol=1e-4, atol=1e-4)
