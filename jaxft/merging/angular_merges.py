"""Merges by angle: slerp and its kin, the Karcher mean, model stock. The formulas are in `directions`."""

from collections.abc import Sequence
from typing import Any, Literal

from jaxft.checks import in_range
from jaxft.merging.averages import model_weights
from jaxft.merging.kernels.methods import KARCHER, MEAN_DIRECTION, SLERP, STOCK
from jaxft.merging.trees import merge_trees
from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree

Scope = Literal["leaf", "row"]


@explain_errors
def slerp(a: Tree, b: Tree, t: float, *, linear_above: float = 0.9995) -> Tree:
  """`sin((1-t) omega) / sin(omega) a + sin(t omega) / sin(omega) b`, with omega the angle between the two leaves.

  >>> import numpy as np
  >>> slerp({"w": np.float32([1, 0])}, {"w": np.float32([0, 1])}, 1 / 3)["w"].round(3)
  array([0.866, 0.5  ], dtype=float32)

  Args:
    a, b: checkpoints with the same leaves; each leaf, and each layer, has an angle of its own.
    t: 0 gives a, 1 gives b.
    linear_above: `|cos omega|` beyond which the line between the two is taken.

  Returns:
    The merged checkpoint: computed in float32, rounded once to the dtypes of a, placed as a is.

  Raises:
    ValueError: the checkpoints differ in leaves or shapes or hold NaN or infinity, t is not finite, or linear_above is
      outside [0, 1].

  Source: Shoemake 1985; of weights as in mergekit (Goddard et al. 2024, arXiv 2403.13257). Norms are not made equal
  first, so that of the result lies near, not on, the line between them.
  """
  in_range("t", t)
  in_range("linear_above", linear_above, "[0, 1]")
  return merge_trees(SLERP, [a, b], None, {"t": float(t), "linear_above": linear_above})


@explain_errors
def nuslerp(
    models: Sequence[Tree], *, weights: Sequence[float] | None = None, base: Tree | None = None, scope: Scope = "leaf",
    axis: int = -1,
) -> Tree:
  """`slerp` of two models with `t = w_2 / (w_1 + w_2)`, of their task vectors where a base is given.

  >>> import numpy as np
  >>> models = [{"w": np.float32([1, 0])}, {"w": np.float32([0, 1])}]
  >>> nuslerp(models, weights=[2, 1])["w"].round(3)
  array([0.866, 0.5  ], dtype=float32)

  Args:
    models: two checkpoints.
    weights: of the two; None weighs them alike, as does a sum near zero.
    base: what task vectors are taken from.
    scope: one angle for each leaf and layer, or for each row.
    axis: along which a row runs.

  Returns, Raises: see `slerp`; also where there are not two models, or weights has another length.

  Source: mergekit (arXiv 2403.13257).
  """
  if len(models) != 2:
    raise ValueError(f"models must hold 2 checkpoints; got {len(models)}")
  first, second = model_weights(weights, 2)
  t = 0.5 if abs(first + second) < 1e-6 else second / (first + second)
  return merge_trees(SLERP, models, base, {"t": t, "linear_above": 1 - 1e-12} | _rows(scope, axis))


@explain_errors
def karcher_mean(
    models: Sequence[Tree], *, weights: Sequence[float] | None = None, base: Tree | None = None, iterations: int = 10,
    tolerance: float = 1e-5,
) -> Tree:
  """The weighted mean on the sphere of the directions of the models, at the weighted mean of their norms.

  >>> import numpy as np
  >>> models = [{"w": np.float32([1, 0])}, {"w": np.float32([0, 3])}]
  >>> karcher_mean(models)["w"].round(3)  # at 45 degrees, of norm 2
  array([1.414, 1.414], dtype=float32)

  Args:
    models: checkpoints with the same leaves.
    weights: one for each; None weighs all alike.
    base: what task vectors are taken from; None takes the checkpoints themselves.
    iterations, tolerance: see `karcher_coefficients`. Of two models that point in opposite directions, from neither of
      which a direction leads to the other, the mean has that of the first.

  Returns, Raises: see `slerp`; also where there is no model, weights has another length or adds up to zero, or
  iterations or tolerance is negative.

  Source: Karcher 1977; of weights as in mergekit, which leaves weights out.
  """
  weights = model_weights(weights, len(models))
  if not sum(weights):
    raise ValueError(f"weights must not add up to zero; got {weights}")
  in_range("iterations", iterations, "[0, inf)")
  in_range("tolerance", tolerance, "[0, inf)")
  settings = {"weights": weights, "iterations": iterations, "tolerance": tolerance}
  return merge_trees(KARCHER, models, base, settings)


@explain_errors
def mean_direction(
    models: Sequence[Tree], *, weights: Sequence[float] | None = None, base: Tree | None = None
) -> Tree:
  """The direction of the weighted mean of the models' directions, at the weighted mean of their norms.

  It is what mergekit's `multislerp` computes: that projects to the tangent space at this very mean, where what is left
  to add up is zero. The mean on the sphere is `karcher_mean`.

  >>> import numpy as np
  >>> models = [{"w": np.float32([1, 0])}, {"w": np.float32([0, 3])}]
  >>> mean_direction(models, weights=[2, 1])["w"].round(3)
  array([1.491, 0.745], dtype=float32)

  Args, Returns, Raises: see `karcher_mean`; also where the directions of more than two models add up to zero.
  """
  weights = model_weights(weights, len(models))
  if not sum(weights):
    raise ValueError(f"weights must not add up to zero; got {weights}")
  return merge_trees(MEAN_DIRECTION, models, base, {"weights": weights})


@explain_errors
def model_stock(models: Sequence[Tree], base: Tree, *, scope: Scope = "leaf", axis: int = -1) -> Tree:
  """`base + t (mean of the models - base)`, `t = N cos / (1 + (N - 1) cos)`, cos the mean cosine of two task vectors.

  The models scatter around a center that lies nearer to the base than each of them; their angles tell how near.

  >>> import numpy as np
  >>> base, a, b = ({"w": np.float32(w)} for w in ([0, 0], [1, 0], [1, 1]))
  >>> model_stock([a, b], base)["w"].round(3)
  array([0.828, 0.414], dtype=float32)

  Args:
    models: N >= 2 fine-tunes of the base that differ in their seeds or hyper-parameters.
    base: the pretrained checkpoint.
    scope: one t for each leaf and layer, or for each row.
    axis: along which a row runs; `-2` makes a row of what feeds one output of a kernel `[in, out]`.

  Returns:
    The merged checkpoint: computed in float32, rounded once to the base's dtypes, placed as the base is.

  Raises:
    ValueError: there are fewer than two models, or they differ from the base in leaves or shapes.

  Source: Jang et al. 2024 (arXiv 2403.19522).
  """
  return merge_trees(STOCK, models, base, _rows(scope, axis), least=2, needs_base=True)


def _rows(scope: Scope, axis: int) -> dict[str, Any]:
  if scope not in ("leaf", "row"):
    raise ValueError(f"scope must be leaf or row; got {scope!r}")
  return {"rows": scope == "row", "axis": axis}
