"""SHiRA against PEFT: the same mask and values give the same merged weights, and the same training trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.transforms.entries.sparse_delta import chosen_entries, shira, sparse_delta
from tests.parity.libraries import library

torch = library("torch")
peft = library("peft")

N_IN, N_OUT, RANK = 12, 9, 2


def theirs(weight, steps, x, y):
  """PEFT's SHiRA on one linear layer `[out, in]`: its mask, and the merged weight after SGD with momentum."""
  model = torch.nn.Sequential(torch.nn.Linear(N_IN, N_OUT, bias=False))
  model[0].weight.data = torch.tensor(weight)
  config = peft.ShiraConfig(r=RANK, target_modules=["0"], mask_type="random", random_seed=3)
  tuned = peft.get_peft_model(model, config)
  layer = tuned.base_model.model[0]
  optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
  for _ in range(steps):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(tuned(torch.tensor(x)), torch.tensor(y)).backward()
    optimizer.step()
  indices = layer.shira_indices["default"].numpy()
  values = layer.shira_weight["default"].detach().numpy()
  return indices, values, tuned.merge_and_unload()[0].weight.detach().numpy()


@pytest.mark.parametrize("steps", [0, 20])
def test_shira(steps):
  rng = np.random.default_rng(0)
  weight = rng.normal(size=(N_OUT, N_IN)).astype(np.float32)
  x, y = rng.normal(size=(16, N_IN)).astype(np.float32), rng.normal(size=(16, N_OUT)).astype(np.float32)
  (out, into), values, merged = theirs(weight, steps, x, y)
  flat = (into * N_OUT + out).astype(np.int32)  # of our [in, out] kernel

  params = {"kernel": jnp.asarray(weight.T)}
  transform = sparse_delta(indices={"kernel": jnp.asarray(flat)})
  frozen, trainable = transform.split(jax.random.key(0), params)
  assert trainable["kernel"].shape == shira(rank=RANK).split(jax.random.key(0), params)[1]["kernel"].shape

  optimizer = optax.sgd(0.1, momentum=0.9)
  state = optimizer.init(trainable)
  loss = lambda t: jnp.mean(jnp.square(x @ transform.join(frozen, t)["kernel"] - y))
  for _ in range(steps):
    updates, state = optimizer.update(jax.grad(loss)(trainable), state)
    trainable = optax.apply_updates(trainable, updates)
  np.testing.assert_allclose(chosen_entries(frozen, trainable)["kernel"][1], values, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(transform.join(frozen, trainable)["kernel"].T, merged, rtol=1e-4, atol=1e-5)
  assert (np.asarray(trainable["kernel"]) != 0).all() == (steps > 0)


def test_reducing_intruders():
  from peft.tuners.lora.intruders import reduce_intruder_dimension

  from jaxft.merging.spectral import reduce_intruders, truncated_factors

  torch.manual_seed(0)
  model = torch.nn.Sequential(torch.nn.Linear(40, 30, bias=False))
  weight = model[0].weight.detach().numpy().copy()
  tuned = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=False))
  layer = tuned.base_model.model[0]
  for factors in (layer.lora_A, layer.lora_B):
    torch.nn.init.normal_(factors["default"].weight, std=0.5)
  merged = weight + layer.get_delta_weight("default").detach().numpy()
  reduce_intruder_dimension(tuned, mitigation_lambda=0.5, logging_sink=None)
  want = layer.get_delta_weight("intruder_reduced").detach().numpy()

  edited = reduce_intruders({"kernel": weight.T}, {"kernel": merged.T}, factor=0.5, select="kernel")["kernel"]
  assert float(jnp.abs(edited - merged.T).max()) > 0.1, "there are intruders"
  a, b = truncated_factors(edited - weight.T, 3)
  np.testing.assert_allclose((a @ b).T, want, rtol=1e-3, atol=1e-3)
