"""BitFit: training biases alone, also in a model that was trained without any."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxft.signatures import explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.transforms.whole.freeze import train
from jaxft.tree.choice import Choice, mask
from jaxft.tree.paths import leaves_with_paths


@explain_errors
def add_biases(params: Mapping[str, Any], select: Choice = "layers/**/kernel") -> dict[str, Any]:
  """The params with a zero bias, float32, beside each matching kernel that has none; the model computes the same.

      {'layers': {'up': {'kernel': [L, m, n]}}}  ->  {'layers': {'up': {'kernel': [L, m, n], 'bias': [L, n]}}}

  >>> add_biases({"layers": {"up": {"kernel": jnp.ones((2, 3, 2))}}})["layers"]["up"]["bias"]
  Array([[0., 0.],
         [0., 0.]], dtype=float32)

  Args:
    params: a nested dict; of a model that adds a bias wherever it finds one, as those of `jaxft.models` do.
    select: a choice of kernels.

  Raises:
    ValueError: a glob matches nothing, or a leaf whose name is not "kernel".
  """
  chosen = {
      path: leaf for (path, leaf), (_, flag) in zip(
          leaves_with_paths(params), leaves_with_paths(mask(select, params)), strict=True) if flag
  }
  wrong = [path for path in chosen if path.split("/")[-1] != "kernel"]
  if wrong:
    raise ValueError(f"select must match leaves named kernel; it also matches {', '.join(wrong[:8])}")
  return _with_biases(params, "", chosen)


def _with_biases(tree: Any, path: str, chosen: Mapping[str, Any]) -> Any:
  if not isinstance(tree, Mapping):
    return tree
  out = {name: _with_biases(below, f"{path}{name}/", chosen) for name, below in tree.items()}
  kernel = chosen.get(f"{path}kernel")
  if kernel is not None and out.get("bias") is None:
    out["bias"] = jnp.zeros((*kernel.shape[:-2], kernel.shape[-1]), jnp.float32)
  return out


@explain_errors
def bitfit(select: Choice = "**/bias") -> ParamTransform:
  """BitFit: trains the biases, those of norms included, and freezes all else; see `add_biases` for a model without.

  >>> import jax
  >>> params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
  >>> _, trainable = bitfit().split(jax.random.key(0), params)
  >>> trainable
  {'up': {'bias': Array([0., 0., 0.], dtype=float32), 'kernel': None}}

  Source: Ben Zaken et al. 2021 (arXiv 2106.10199).
  """
  return train(select)
