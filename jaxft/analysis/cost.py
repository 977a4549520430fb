"""The operations of a fine-tuning method, by formula: of one matrix, and of a selection of leaves."""

from typing import Literal

import jax
import numpy as np

from jaxft.checks import nearest
from jaxft.signatures import explain_errors
from jaxft.tree.choice import Choice, mask
from jaxft.tree.depth import layer_of, num_layers, stack_axes
from jaxft.tree.paths import Tree, is_array, leaves_with_paths

METHODS = ("frozen", "full", "lora", "rows", "columns", "entries")


@explain_errors
def linear_flops(
    method: Literal["frozen", "full", "lora", "rows", "columns", "entries"], n_in: int, n_out: int, *, size: int = 0
) -> int:
  """Operations for each token of one matrix `[n_in, n_out]` inside a model: forward, input gradient, weight gradient.

      frozen  4 n_in n_out                          rows     + 2 size n_out      (`submatrix`, S2FT)
      full    6 n_in n_out                          columns  + 2 size n_in
      lora    4 n_in n_out + 6 size (n_in + n_out)  entries  6 n_in n_out, whatever the size: the gradient is formed

  >>> {method: linear_flops(method, 100, 100, size=10) for method in ("frozen", "lora", "full")}
  {'frozen': 40000, 'lora': 52000, 'full': 60000}

  Args:
    method: see above.
    n_in, n_out: of the matrix.
    size: rank, rows, columns or entries.

  Raises:
    ValueError: an unknown method.

  Source: the table of Yang et al. 2024, S2FT (arXiv 2412.06289), checked against the compiler in this library's tests.
  """
  if method not in METHODS:
    raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}; {nearest(str(method), METHODS)}")
  extra = {"frozen": 0, "full": 2 * n_in * n_out, "entries": 2 * n_in * n_out, "lora": 6 * size * (n_in + n_out),
           "rows": 2 * size * n_out, "columns": 2 * size * n_in}
  return 4 * n_in * n_out + extra[method]


@explain_errors
def selection_flops(params: Tree, select: Choice, *, backward_from_embeddings: bool = True) -> float:
  """FLOPs per parameter and token of training the leaves that `select` matches, of a model of matrices.

      2 N (forward) + 2 N_above (input gradients) + 2 N_trained (weight gradients),  over N

  N_above counts the matrices in the lowest layer that trains and in those above it. Embeddings are looked up and cost
  nothing, but where they train the gradient goes down to them. Attention's own products are left out.

  >>> params = {"layers": {str(i): {"kernel": np.ones((4, 4))} for i in range(4)}}
  >>> [selection_flops(params, select) for select in ("**", "layers/3/kernel", "layers/0/kernel")]
  [6.0, 3.0, 4.5]

  Args:
    params: arrays or shapes; paths with "embed" lie below the layers, others outside of the layers above them.
    select: a choice of whole leaves; one of layers is made on cut or unrolled layers.
    backward_from_embeddings: whether a trained embedding counts as the lowest layer; False for one that is only the
      output head.

  Raises:
    ValueError: a glob matches nothing.
  """
  depth = num_layers(params)
  sizes, trained, lowest = np.zeros(depth + 1), 0.0, depth
  for (path, leaf), chosen in zip(leaves_with_paths(params), jax.tree.leaves(mask(select, params)), strict=True):
    if not is_array(leaf):
      continue
    layer = layer_of(path, leaf)
    if chosen:
      below = 0 if "embed" in path and backward_from_embeddings else depth
      lowest = min(lowest, below if layer is None else int(np.min(layer)))
    if leaf.ndim - stack_axes(path, leaf) != 2 or "embed" in path:
      continue
    places = np.asarray(depth if layer is None else layer)
    np.add.at(sizes, places, leaf.size / max(1, places.size))
    trained += leaf.size * chosen
  if not sizes.sum():
    raise ValueError("params must have matrices that are no embeddings; got none")
  return float(2 + 2 * (sizes[lowest:].sum() + trained) / sizes.sum())
