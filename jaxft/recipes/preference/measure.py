"""What tuning by preferences is validated by: who leads, by how much, and how likely the responses are."""

import math
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.data import evaluation_batches
from jaxft.recipes.examples import Collate, Records
from jaxft.recipes.preference.losses import Preference, Settings
from jaxft.recipes.preference.objective import Scores, leads, sides_of, value_of
from jaxft.recipes.tasks import Z, wilson_interval
from jaxft.training.mesh import place_batch, rows_of_process, under_mesh


def preferences(
    loss: Preference, settings: Settings, score: Callable[[Any, Any], Scores], records: Records, collate: Collate,
    batch_size: int, mesh: Mesh | None,
) -> Callable[[Any], dict[str, float]]:
  """`params -> {metric: value}` over all records.

  Of pairs: `accuracy`, the share in which the chosen response leads by what the loss ranks, ties counting half (before
  the first step all are ties where scores are log-ratios to the model itself), with its 95% interval by Wilson;
  `margin`, the mean lead in nats; `likelier`, the share whose chosen response has the larger log-probability a token;
  and log-probabilities a token of both, which some losses lower together. Of judged responses `accuracy` is over all
  pairs of a desirable and an undesirable one; its interval is Hanley and McNeil's. Of single responses the policy is
  compared with the references.
  """
  shard = grain.sharding.ShardOptions(*rows_of_process(mesh))
  batches: Any = evaluation_batches(records, batch_size=batch_size, collate=collate, shard=shard)
  # What other processes computed is read here too.
  everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

  def traced(params: Any, batch: Any) -> dict[str, Any]:
    with under_mesh(mesh):
      scores = score(params, {name: batch[name] for name in ("ids", "mask", "loss_mask")})
      sides = sides_of(loss, scores, batch)
      return {"lead": leads(loss, sides), "where": sides.where, "average": scores.of("average"),
              "desirable": batch.get("desirable", jnp.ones(sides.where.shape, bool)),
              "loss": value_of(loss, settings, scores, batch)[0]}

  compiled = jax.jit(traced, out_shardings=everywhere)

  def measure(params: Any) -> dict[str, float]:
    parts: list[dict[str, np.ndarray]] = []
    total: Any = 0
    for t in range(len(batches)):
      found = jax.device_get(compiled(params, place_batch(batches[t], mesh)))
      total = total + found.pop("loss")
      parts.append({name: x[found["where"]] for name, x in found.items()})
    of = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not len(of["lead"]):
      raise ValueError("no pair is left to validate on: max_length cuts off all of a response")
    kind = {"pair": of_pairs, "judged": of_judged, "response": of_responses}[loss.sides]
    return {"loss": float(total.value), **kind(of["lead"].astype(np.float64), of)}

  return measure


def of_pairs(lead: np.ndarray, of: dict[str, np.ndarray]) -> dict[str, float]:
  """The metrics of pairs."""
  average = of["average"].astype(np.float64)
  return {
      **_share("accuracy", (np.sign(lead) + 1) / 2), "margin": float(lead.mean()),
      "likelier": float(((np.sign(average[:, 0] - average[:, 1]) + 1) / 2).mean()),
      "chosen": float(average[:, 0].mean()), "rejected": float(average[:, 1].mean())}


def of_responses(lead: np.ndarray, of: dict[str, np.ndarray]) -> dict[str, float]:
  """The metrics of single responses."""
  return {**_share("accuracy", (np.sign(lead) + 1) / 2), "margin": float(lead.mean()),
          "log_prob": float(of["average"].astype(np.float64).mean())}


def of_judged(lead: np.ndarray, of: dict[str, np.ndarray]) -> dict[str, float]:
  """The metrics of judged responses; without both kinds there is no pair, and no accuracy."""
  good, bad = lead[of["desirable"]], lead[~of["desirable"]]
  gains = {f"gain_{name}": float(x.mean()) for name, x in (("desirable", good), ("undesirable", bad)) if len(x)}
  if not (len(good) and len(bad)):
    return gains
  order = np.sort(bad)
  below, upto = (np.searchsorted(order, good, side=side) for side in ("left", "right"))
  area = float((below + upto).mean() / 2 / len(bad))
  q1, q2 = area / (2 - area), 2 * area ** 2 / (1 + area)
  variance = (area * (1 - area) + (len(good) - 1) * (q1 - area ** 2) + (len(bad) - 1) * (q2 - area ** 2)) / (
      len(good) * len(bad))
  half = Z * math.sqrt(max(variance, 0.0))
  return {"accuracy": area, "accuracy_low": max(0.0, area - half), "accuracy_high": min(1.0, area + half),
          "margin": gains["gain_desirable"] - gains["gain_undesirable"], **gains}


def _share(name: str, values: np.ndarray) -> dict[str, float]:
  """A share and its 95% interval."""
  low, high = wilson_interval(share := float(values.mean()), len(values))
  return {name: share, f"{name}_low": low, f"{name}_high": high}
