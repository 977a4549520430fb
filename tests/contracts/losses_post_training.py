"""Losses of post-training that hold the contract of `tests/contracts/losses.py`."""

from typing import Any, get_args

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxft import losses
from jaxft.signatures import AnyArray, check_arrays
from tests.contracts.losses import HEAD, Batch, Case, states

Values = tuple[Float[Array, " batch"], Float[Array, " batch"]]


def pairs(rng: np.random.Generator, rows: int) -> Batch:
  draw = lambda: np.asarray(rng.normal(size=rows), np.float32)
  apart = lambda: np.asarray(rng.permutation(rows), np.float32)  # a step of finite differences changes no order
  batch = {name: draw() for name in ("chosen", "rejected", "reference_chosen", "reference_rejected", "margin")}
  batch |= {"sorted_chosen": apart(), "sorted_rejected": apart() / 2, "desirable": np.arange(rows) % 3 == 0}
  batch |= {name: rng.integers(2, 9, rows, np.int32) for name in ("chosen_tokens", "rejected_tokens")}
  batch |= {"likely": -0.5 - np.abs(draw()), "unlikely": -0.5 - np.abs(draw())}  # log-probabilities
  return batch | {"where": np.ones(rows, bool)}


def rollouts(rng: np.random.Generator, rows: int) -> Batch:
  draw = lambda *shape: np.asarray(rng.normal(size=(rows, *shape)), np.float32)
  where = rng.random((rows, 5)) < 0.7
  where[:, 2] = True
  log_probs = -1 - np.abs(draw(5))
  # Shifts that a step of finite differences takes over no clip.
  shift = lambda: rng.choice(np.array([-0.55, -0.32, -0.1, 0.1, 0.4], np.float32), (rows, 5))
  batch = {"log_probs": log_probs, "old": log_probs + shift(), "reference": log_probs + 0.3 * draw(5)}
  batch |= {"advantages": draw(), "token_advantages": draw(5), "values": draw(5), "returns": draw(5)}
  return batch | {"old_values": batch["values"] + shift(), "where": where}


def passes(rng: np.random.Generator, rows: int) -> Batch:
  where = rng.random((rows, 5)) < 0.7
  where[:, 2] = True
  batch = {name: np.asarray(rng.normal(size=(rows, 5, 7)), np.float32) for name in ("first", "second", "third")}
  batch |= {"wordings": np.asarray(rng.normal(size=(rows, 2, 5, 7)), np.float32)}
  batch |= {name: np.asarray(rng.normal(size=(rows, 5, 6)), np.float32) for name in ("hidden", "teacher_hidden")}
  return batch | {"labels": rng.integers(0, 7, (rows, 5), np.int32), "where": where}


def spans(rng: np.random.Generator, rows: int) -> Batch:
  draw = lambda *shape: np.abs(np.asarray(rng.normal(size=(rows, *shape)), np.float32))
  starts = rng.integers(0, 4, (rows, 2), np.int32)
  return {"log_probs": -0.3 - draw(5), "starts": starts, "ends": starts + 1 + np.arange(2, dtype=np.int32),
          "risks": 1 + draw(2), "where": np.ones(rows, bool)}


def labels_of_tokens(rng: np.random.Generator, rows: int) -> Batch:
  where = rng.random((rows, 5)) < 0.7
  where[:, 2] = True
  tokens = lambda: rng.integers(0, 2, (rows, 5), np.int32)
  logits = np.asarray(rng.normal(size=(rows, 5)), np.float32)
  return {"logits": logits, "corrupted": tokens(), "original": tokens(), "where": where}


@check_arrays
def pairwise(
    chosen: Float[AnyArray, " batch"], rejected: Float[AnyArray, " batch"], *, margin: Float[AnyArray, " batch"],
    where: Bool[AnyArray, " batch"],
) -> Values:
  """All rankings but the hinge, whose slope jumps; a case of its own has it far from there."""
  smoothing = {"logistic": 0.1, "robust": 0.2, "exo": 0.1}
  given = [losses.bradley_terry(chosen, rejected, beta=0.7, margin=margin, label_smoothing=smoothing.get(kind, 0.0),
                                kind=kind, temperature=0.5, where=where)
           for kind in get_args(losses.Ranking) if kind != "hinge"]
  return sum(values for values, _ in given), given[0][1]


@check_arrays
def pointwise(
    chosen: Float[AnyArray, " batch"], rejected: Float[AnyArray, " batch"], *, where: Bool[AnyArray, " batch"]
) -> Values:
  """Of rankings that do not cancel: the sum of all five is nearly constant in the chosen score."""
  given = [losses.pointwise_preference(chosen, rejected, beta=0.7, kind=kind, where=where)
           for kind in get_args(losses.PointwiseRanking)]
  return sum((i + 1) * values for i, (values, _) in enumerate(given)), given[0][1]


@check_arrays
def statistics(
    hidden: Float[AnyArray, "batch time dim"], tokens: Int[AnyArray, "batch time"], where: Bool[AnyArray, "batch time"]
) -> tuple[Float[Array, "batch time"], Float[Array, "batch time"]]:
  found = losses.token_statistics(hidden, HEAD, tokens, where, temperature=0.5, chunk=3)
  return found.log_probs - found.entropies + found.log_collisions, found.weights


LOG_PROBS = ("chosen", "rejected", "reference_chosen", "reference_rejected")


def _of_pairs(name: str, call: Any, loss: Any, *guarded: str, trained: tuple[str, ...] = ("chosen", "rejected"),
              by_row: bool = True, variant: bool = False) -> Case:
  return Case(name, call, loss, pairs, trained, "where", trained + guarded, by_row=by_row, variant=variant)


def _of_states(name: str, call: Any, loss: Any) -> Case:
  return Case(name, call, loss, states, ("hidden",), "where", ("hidden", "labels"), read_at=1, low=5e-2, by_row=True)


def _of_rollouts(
    name: str, call: Any, loss: Any, *guarded: str, trained: str = "log_probs", variant: bool = False
) -> Case:
  return Case(name, call, loss, rollouts, (trained,), "where", (trained, *guarded), by_row=True, variant=variant)


def _of_passes(name: str, call: Any, loss: Any, trained: str = "first", *guarded: str, variant: bool = False) -> Case:
  return Case(name, call, loss, passes, (trained,), "where", (trained, *guarded), by_row=True, variant=variant)


def _four(b: Batch) -> list[AnyArray]:
  return [b[name] for name in LOG_PROBS]


def _sorted(b: Batch) -> list[AnyArray]:
  return [b[name] for name in ("sorted_chosen", "sorted_rejected", "reference_chosen", "reference_rejected")]


LENGTHS = lambda b: {"chosen_tokens": b["chosen_tokens"], "rejected_tokens": b["rejected_tokens"]}

CASES = [
    _of_pairs("bradley_terry", lambda b, f: f(b["chosen"], b["rejected"], margin=b["margin"], where=b["where"]),
              pairwise, "margin"),
    _of_pairs("hinge", lambda b, f: f(b["sorted_chosen"], b["sorted_rejected"], beta=2.0, kind="hinge", margin=0.5,
                                      where=b["where"]),
              losses.bradley_terry, trained=("sorted_chosen", "sorted_rejected"), variant=True),
    _of_pairs("pointwise_preference", lambda b, f: f(b["chosen"], b["rejected"], where=b["where"]), pointwise),
    _of_pairs("dpo", lambda b, f: f(*_four(b), divergence="js", label_smoothing=0.1, where=b["where"], **LENGTHS(b)),
              losses.dpo, *LOG_PROBS[2:]),
    _of_pairs("ipo", lambda b, f: f(*_four(b), where=b["where"], **LENGTHS(b)), losses.ipo, *LOG_PROBS[2:],
              variant=True),
    *(_of_pairs(name, lambda b, f, paired=paired: f(*_sorted(b), beta=0.5, label_smoothing=0.1, paired=paired,
                                                    where=b["where"]),
                losses.aot, *LOG_PROBS[2:], trained=("sorted_chosen", "sorted_rejected"), by_row=False,
                variant=not paired)
      for name, paired in (("aot", True), ("aot_unpaired", False))),
    *(_of_pairs(loss.__name__, lambda b, f: f(b["chosen"], b["rejected"], where=b["where"]), loss, variant=True)
      for loss in (losses.simpo, losses.cpo)),
    *(_of_pairs(loss.__name__, lambda b, f: f(b["likely"], b["unlikely"], where=b["where"]), loss,
                trained=("likely", "unlikely"), variant=loss is losses.asft) for loss in (losses.orpo, losses.asft)),
    _of_pairs("poft", lambda b, f: f(b["chosen"], b["rejected"], where=b["where"]), losses.poft, "rejected",
              trained=("chosen",), variant=True),
    _of_pairs("kto", lambda b, f: f(b["chosen"], b["desirable"], 0.3, beta=0.5, undesirable_weight=2.0,
                                    where=b["where"]), losses.kto, trained=("chosen",)),
    _of_pairs("reward_model", lambda b, f: f(b["chosen"], b["rejected"], margin=b["margin"], center=0.1,
                                             where=b["where"]), losses.reward_model, "margin", variant=True),
    _of_states("linear_token_log_probs",
               lambda b, f: f(b["hidden"], HEAD, b["labels"], b["where"], temperature=0.5, chunk=3),
               losses.linear_token_log_probs),
    _of_states("linear_sequence_log_probs",
               lambda b, f: f(b["hidden"], HEAD, b["labels"], b["where"], normalize="tokens", chunk=3),
               losses.linear_sequence_log_probs),
    _of_states("token_statistics", lambda b, f: f(b["hidden"], b["labels"], b["where"]), statistics),
    _of_rollouts("clipped_policy_loss",
                 lambda b, f: f(b["log_probs"], b["old"], b["token_advantages"], high=0.28, delta=1.5, dual=2.0,
                                where=b["where"]), losses.clipped_policy_loss, "old", "token_advantages"),
    _of_rollouts("clipped_policy_loss_of_sequences",
                 lambda b, f: f(b["log_probs"], b["old"], b["advantages"], level="sequence", where=b["where"]),
                 losses.clipped_policy_loss, "old", variant=True),
    _of_rollouts("clipped_value_loss",
                 lambda b, f: f(b["values"], b["old_values"], b["returns"], where=b["where"]),
                 losses.clipped_value_loss, "old_values", "returns", trained="values", variant=True),
    # With ratios that are constants to differences too: all beyond the cap, or without a weight.
    _of_rollouts("cispo", lambda b, f: f(b["log_probs"], b["old"], b["advantages"], high=0.01, where=b["where"]),
                 losses.cispo, "old", variant=True),
    _of_rollouts("vespo", lambda b, f: f(b["log_probs"], b["old"], b["advantages"], positive=(0.0, 1e-4),
                                         negative=(0.0, 1e-4), where=b["where"]), losses.vespo, "old", variant=True),
    _of_rollouts("sapo", lambda b, f: f(b["log_probs"], b["old"], b["advantages"], where=b["where"]),
                 losses.sapo, "old", variant=True),
    _of_rollouts("kl_estimate", lambda b, f: f(b["log_probs"], b["reference"], where=b["where"]),
                 losses.kl_estimate, "reference", variant=True),
    _of_passes("kl_divergence", lambda b, f: f(b["second"], b["first"], temperature=2.0, where=b["where"]),
               losses.kl_divergence, "first", "second", variant=True),
    _of_passes("symmetric_kl", lambda b, f: f(b["first"], b["second"], where=b["where"]), losses.symmetric_kl,
               "first", "second", variant=True),
    _of_passes("generalized_jsd", lambda b, f: f(b["first"], b["second"], beta=0.3, where=b["where"]),
               losses.generalized_jsd, "first", "second"),
    _of_passes("distill_logits", lambda b, f: f(b["first"], b["second"], b["labels"], top_k=3, where=b["where"]),
               losses.distill_logits, "first", "second", "labels"),
    _of_passes("noise_consistency",  # by the pass that follows both others
               lambda b, f: f(b["second"], b["first"], b["third"], b["labels"], consistency_weight=0.5,
                              where=b["where"]),
               losses.noise_consistency, "first", "second", "third", "labels", variant=True),
    Case("paraphrase_consistency", lambda b, f: f(b["first"], b["wordings"], where=b["where"]),
         losses.paraphrase_consistency, passes, ("wordings",), "where", ("first",), by_row=True, variant=True),
    Case("linear_generalized_jsd",
         lambda b, f: f(b["hidden"], HEAD, b["teacher_hidden"], HEAD, where=b["where"], chunk=3),
         losses.linear_generalized_jsd, passes, ("hidden",), "where", ("hidden", "teacher_hidden"), low=1e-1,
         by_row=True),
    *(Case(f"span_penalty_{kind}",
           lambda b, f, kind=kind: f(b["log_probs"], b["starts"], b["ends"], b["risks"], kind=kind, where=b["where"]),
           losses.span_penalty, spans, ("log_probs",), "where", ("log_probs", "risks"), by_row=True,
           variant=kind == "likelihood") for kind in get_args(losses.Penalty)),
    Case("replaced_token_detection", lambda b, f: f(b["logits"], b["corrupted"], b["original"], where=b["where"]),
         losses.replaced_token_detection, labels_of_tokens, ("logits",), "where", ("logits", "corrupted", "original"),
         by_row=True, variant=True),
]
