"""Rankings of a pair by the difference of its scores: the logistic one is Bradley and Terry's."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxft.checks import in_range, one_of
from jaxft.losses.reduction import masked, weighed
from jaxft.signatures import AnyArray, check_arrays

Ranking = Literal["logistic", "robust", "hinge", "square", "exo", "discopop"]


@check_arrays
def bradley_terry(
    chosen: Float[AnyArray, " batch"],
    rejected: Float[AnyArray, " batch"],
    *,
    beta: float = 1.0,
    margin: float | Float[AnyArray, " batch"] = 0.0,
    label_smoothing: float = 0.0,
    kind: Ranking = "logistic",
    temperature: float = 0.05,
    where: Bool[AnyArray, " batch"] | Float[AnyArray, " batch"] | None = None,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
  """How far the chosen score is from leading the rejected one, by `z = beta (chosen - rejected) - margin`.

  With `s = log sigmoid` and e the label smoothing:

  - "logistic": `-(1 - e) s(z) - e s(-z)`, the likelihood of the preference (cDPO where e > 0);
  - "robust": `(-(1 - e) s(z) + e s(-z)) / (1 - 2e)`, unbiased where a share e of the labels is flipped;
  - "hinge": `max(0, 1 - z)`;
  - "square": `((z - 1/2) / beta)^2`, IPO's regression of the lead onto `1 / (2 beta)`;
  - "exo": `KL(q || (1 - e, e))` with `q = (sigmoid(z), sigmoid(-z))`;
  - "discopop": `-(1 - k) s(z) + k exp(-z)` with `k = sigmoid(z / temperature)`.

  Args:
    chosen, rejected: scores of the two responses: log-ratios, log-probabilities, log odds, rewards.
    beta: > 0, the scale of the scores.
    margin: the lead that is asked for, after the scale; one for all pairs or one for each, without a gradient.
    label_smoothing: e in [0, 1) of "logistic", in [0, 1/2) of "robust", in (0, 1) of "exo"; the others take none.
    kind: the ranking.
    temperature: > 0, of "discopop".
    where: pairs that count, or how much each weighs; what stands elsewhere has no effect.

  Returns:
    `(values, weights)` of the pairs, float32.

  Raises:
    ValueError: an unknown kind, or a number out of range.

  Example:
    >>> values, weights = bradley_terry(jnp.array([1.0, 0.0]), jnp.array([1.0, 2.0]))
    >>> np.array(values).round(3), weights  # log 2, and log(1 + e^2)
    (array([0.693, 2.127], dtype=float32), Array([1., 1.], dtype=float32))

  Sources: Bradley and Terry 1952; Rafailov et al. 2023 (arXiv 2305.18290), logistic; Chowdhury et al. 2024
  (arXiv 2403.00409), robust; Zhao et al. 2023 (arXiv 2305.10425), hinge; Azar et al. 2023 (arXiv 2310.12036), square;
  Ji et al. 2024 (arXiv 2402.00856), EXO; Lu et al. 2024 (arXiv 2406.08414), DiscoPOP.
  """
  one_of("kind", kind, get_args(Ranking))
  in_range("beta", beta, "(0, inf)")
  in_range("temperature", temperature, "(0, inf)")
  in_range("label_smoothing", label_smoothing, {"robust": "[0, 0.5)", "exo": "(0, 1)"}.get(kind, "[0, 1)"))
  if label_smoothing and kind in ("hinge", "square", "discopop"):
    raise ValueError(f"label_smoothing must be 0 with kind {kind!r}; got {label_smoothing}")
  if isinstance(margin, (int, float)):
    in_range("margin", margin)
  else:
    (margin,) = masked(where, jax.lax.stop_gradient(margin))
  chosen, rejected = masked(where, chosen, rejected)
  z, e = beta * (chosen - rejected) - margin, label_smoothing
  won, lost = jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)
  if kind == "logistic":
    values = -(1 - e) * won - e * lost if e else -won
  elif kind == "robust":
    values = (e * lost - (1 - e) * won) / (1 - 2 * e)
  elif kind == "hinge":
    values = jax.nn.relu(1 - z)
  elif kind == "square":
    values = jnp.square((z - 0.5) / beta)
  elif kind == "exo":
    values = jnp.exp(won) * (won - math.log1p(-e)) + jnp.exp(lost) * (lost - math.log(e))
  else:
    # The product of exp(-z), which overflows, with the weight that vanishes there, as one exponential.
    values = jnp.exp(jax.nn.log_sigmoid(z / temperature) - z) - jax.nn.sigmoid(-z / temperature) * won
  return weighed(values, where)
