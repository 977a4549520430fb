"""Merges of a base with one other model that choose entry by entry. The formulas are in `swaps` and `fusion`."""

from jaxft.checks import in_range
from jaxft.merging.kernels.methods import FUSION, NEARSWAP
from jaxft.merging.trees import merge_trees
from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree


@explain_errors
def nearswap(base: Tree, model: Tree, t: float) -> Tree:
  """`w b + (1 - w) a`, `w = clip(t / |a - b|, 0, 1)`: the model b where it is within t of the base a.

  >>> nearswap({"w": jnp.zeros(3)}, {"w": jnp.array([0.5, 1.0, 4.0])}, t=1.0)  # moves by t at most
  {'w': Array([0.5, 1. , 1. ], dtype=float32)}

  Args:
    base: a.
    model: b.
    t: a distance.

  Returns:
    The merged checkpoint: computed in float32, rounded once to the base's dtypes, placed as the base is.

  Raises:
    ValueError: t is negative or not finite, or the checkpoints differ in leaves or shapes, or hold NaN or infinity.

  Source: mergekit (arXiv 2403.13257).
  """
  in_range("t", t, "[0, inf)")
  return merge_trees(NEARSWAP, [model], base, {"t": float(t)}, needs_base=True)


@explain_errors
def arcee_fusion(base: Tree, model: Tree) -> Tree:
  """The base with those changes of the model that matter: `importance >= median + 1.5 (third - first quartile)`.

  The importance of a change is its size, times the divergence between the softmaxes of its row in the two models. Rows
  run along the last axis, quartiles are over a leaf, or a layer of it.

  >>> base = {"w": jnp.zeros((2, 4))}
  >>> arcee_fusion(base, {"w": jnp.array([[0.1, 0.1, 0.1, 5.0], [0.1, 0.1, 0.1, 0.1]])})
  {'w': Array([[0., 0., 0., 5.],
         [0., 0., 0., 0.]], dtype=float32)}

  Args, Returns, Raises: see `nearswap`.

  Source: mergekit (arXiv 2403.13257), which draws a million entries of larger leaves for the quartiles.
  """
  return merge_trees(FUSION, [model], base, {}, needs_base=True)
