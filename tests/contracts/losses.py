"""The contract of a loss, and the losses that hold it: `Case(...)` is the one line that adds a loss.

A case says how to call a loss on a dictionary of arrays that all have the batch as their leading axis, which of them
are differentiated, and which boolean array says what counts. Everything else is the same for all:

- it gives finite values and what they weigh, one for each example or token, in float32, under runtime shape checks;
- a batch of calls under vmap gives what they give one by one;
- its gradient is that of finite differences;
- what stands where the mask is False (NaN, infinity, garbage) reaches neither the values nor the gradient;
- padding equals absence: rows of padding change nothing, least of all the mean;
- arguments of wrong shape or dtype are refused by name;
- eight devices give what one gives.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, jaxtyped

from jaxft import losses
from jaxft.signatures import AnyArray, check_arrays

Batch = dict[str, AnyArray]


@functools.cache
def checked_result(loss: Callable[..., Any]) -> Callable[..., Any]:
  return jaxtyped(typechecker=beartype)(inspect.unwrap(loss))


@dataclasses.dataclass(frozen=True)
class Case:
  """A loss under contract.

  Attributes:
    name: shown by pytest.
    call: `(batch, loss) -> (values, weights)`, each [batch] or [batch, time].
    loss: the function, called through `call` so that the shape checker can stand between.
    make: `(rng, rows) -> batch`; the leading axis of every array is the batch.
    trained: names of the arrays that gradients are taken of.
    mask: name of the boolean array `[batch]` or `[batch, time]` that says what counts.
    guarded: names of the arrays that may hold anything where the mask is False.
    read_at: how far before a masked position the guarded arrays are read: logits at t - 1 score the token at t.
    low: how near bfloat16 inputs come to the same numbers in float32; far where products take the inputs' dtype.
    by_row: each row counts by itself, so that micro-batches add up.
    variant: a function of another case with other options, or one of rows that shares all but its formula with
      another's: what rests on the function alone is exhaustive for it.
  """

  name: str
  call: Callable[[Batch, Callable[..., Any]], tuple[jax.Array, jax.Array]]
  loss: Callable[..., Any]
  make: Callable[[np.random.Generator, int], Batch]
  trained: tuple[str, ...]
  mask: str
  guarded: tuple[str, ...]
  read_at: int = 0
  low: float = 1e-5
  by_row: bool = False
  variant: bool = False

  def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    # Below its own check of the arguments, which has its own test, so that what it returns is checked as well.
    return self.call(batch, checked_result(self.loss))

  def arguments(self, batch: Batch) -> dict[str, Any]:
    """What the loss is called with, by the names of its parameters."""
    return self.call(batch, lambda *args, **kwargs: dict(inspect.signature(self.loss).bind(*args, **kwargs).arguments))


def embeddings(rng: np.random.Generator, rows: int) -> Batch:
  draw = lambda *shape: np.asarray(rng.normal(size=shape), np.float32)
  batch = {name: draw(rows, 6) for name in ("query", "positive", "guide_query", "guide_positive")}
  # Of these texts the fifth is the first again.
  batch |= {"ids": np.arange(rows, dtype=np.int32) % 4, "partner": np.arange(rows, dtype=np.int32)[::-1]}
  return batch | {"negative": draw(rows, 2, 6), "guide_negative": draw(rows, 2, 6), "where": np.ones(rows, bool)}


def similarities(rng: np.random.Generator, rows: int) -> Batch:
  # Seven candidates of its own for each row, so that the loss is one of rows and not of the batch.
  return {
      "similarity": np.asarray(rng.uniform(-1, 1, (rows, 7)), np.float32),
      "positive": np.arange(rows, dtype=np.int32) % 7,
      "positives": rng.random((rows, 7)) < 0.5,
      "drop": rng.random((rows, 7)) < 0.3,
      "where": np.ones(rows, bool),
  }


def sequences(rng: np.random.Generator, rows: int) -> Batch:
  mask = rng.random((rows, 5)) < 0.7
  mask[:, 0], mask[:, 2] = False, True
  return {
      "logits": np.asarray(rng.normal(size=(rows, 5, 9)), np.float32),
      "tokens": rng.integers(0, 9, (rows, 5), np.int32),
      "mask": mask,
  }


def views(rng: np.random.Generator, rows: int) -> Batch:
  # Every third target is uncertain, far from a threshold of 0.4.
  draw = lambda: rng.normal(size=(rows, 4))
  weak = np.where(np.arange(rows)[:, None] % 3 == 1, 0.05, 1.0) * (draw() + [5.0, 0, 0, 0])
  return {
      "weak": np.asarray(weak, np.float32), "strong": np.asarray(draw(), np.float32),
      "where": np.ones(rows, bool)}


def states(rng: np.random.Generator, rows: int) -> Batch:
  where = rng.random((rows, 5)) < 0.7
  where[:, 2] = True
  return {
      "hidden": np.asarray(rng.normal(size=(rows, 5, 6)), np.float32),
      "labels": rng.integers(0, 9, (rows, 5), np.int32),
      "where": where,
  }


def labelled(rng: np.random.Generator, rows: int) -> Batch:
  draw = lambda *shape: np.asarray(rng.normal(size=(rows, *shape)), np.float32)
  return {
      "a": draw(6), "b": draw(6), "c": draw(6), "views": draw(2, 6), "layers_a": draw(3, 6), "layers_b": draw(3, 6),
      "logits": draw(4), "heads": draw(3, 4), "number": draw(), "other": draw(),
      "labels": np.arange(rows, dtype=np.int32) % 3, "same": np.arange(rows) % 3 != 1,
      "soft": np.asarray(rng.dirichlet(np.ones(4), rows), np.float32),
      "scores": np.asarray(np.arange(rows) % 3 / 2, np.float32),  # with ties
      "where": np.ones(rows, bool),
  }


def lists(rng: np.random.Generator, rows: int) -> Batch:
  where = rng.random((rows, 6)) < 0.8
  where[:, :3] = True
  # Scores half a unit apart: a step of finite differences changes no rank.
  scores = np.stack([rng.permutation(6) for _ in range(rows)]) / 2 - 1.2
  return {
      "scores": np.asarray(scores, np.float32),
      "labels": np.asarray(np.stack([rng.permutation([3, 2, 0, 1, 1, 0]) for _ in range(rows)]), np.float32),
      "teacher": np.asarray(rng.normal(size=(rows, 6)), np.float32), "where": where}


def token_vectors(rng: np.random.Generator, rows: int) -> Batch:
  draw = lambda *shape: np.asarray(rng.normal(size=(rows, *shape, 4)), np.float32)
  batch = {
      "query": draw(2), "positive": draw(3), "negative": draw(2, 3), "ids": np.arange(rows, dtype=np.int32) % 4,
      "document_mask": rng.random((rows, 3)) < 0.7, "where": np.ones(rows, bool)}
  batch["document_mask"][:, 1] = True
  return batch


# Losses that functions of losses give, with the batch as the leading axis of all that they take.
Values = tuple[Float[Array, " batch"], Float[Array, " batch"]]


@check_arrays
def nested_dims(
    query: Float[AnyArray, "batch dim"], positive: Float[AnyArray, "batch dim"], *, where: Bool[AnyArray, " batch"]
) -> Values:
  loss = losses.matryoshka(losses.siglip, dims=(6, 3), weights=(1.0, 0.5))
  return loss(query, positive, where=where)


@check_arrays
def nested_layers(
    query: Float[AnyArray, "batch layers dim"], positive: Float[AnyArray, "batch layers dim"], *,
    labels: Bool[AnyArray, " batch"], where: Bool[AnyArray, " batch"],
) -> Values:
  """Without the divergences, whose teachers are constants to the gradient and not to differences."""
  first = lambda x: jnp.moveaxis(jnp.asarray(x), 1, 0)
  sides = first(query), first(positive)
  loss = losses.matryoshka_2d(losses.contrastive_pairs, dims=(6, 3), layers=(0,), kl_weight=0.0)
  rungs = losses.submodels(losses.contrastive_pairs, ladder=((1, 2), (2, 6)))
  values, weights = loss(*sides, labels=labels, where=where)
  return values + rungs(*sides, labels=labels, where=where)[0], weights


@check_arrays
def supervised_heads(
    logits: Float[AnyArray, "batch heads classes"], labels: Int[AnyArray, " batch"], where: Bool[AnyArray, " batch"]
) -> Values:
  return losses.deep_supervision(losses.cross_entropy)(
      jnp.moveaxis(jnp.asarray(logits), 1, 0), labels=labels, where=where)


HEAD = jax.device_put(np.random.default_rng(1).normal(size=(6, 9)).astype(np.float32))


def _embedding_case(
    name: str, call: Callable[..., Any], loss: Callable[..., Any], guide: bool = False, variant: bool = False
) -> Case:
  student = ("query", "positive", "negative")
  guarded = student + tuple("guide_" + s for s in student) if guide else student
  return Case(name, call, loss, embeddings, student, "where", guarded, variant=variant)


def _pairs(b: Batch) -> tuple[jax.Array, ...]:
  return b["query"], b["positive"], b["negative"]


def _guided(b: Batch) -> tuple[jax.Array, ...]:
  return *_pairs(b), b["guide_query"], b["guide_positive"], b["guide_negative"]


def _pair_case(
    name: str, call: Callable[..., Any], loss: Callable[..., Any], *guarded: str, trained: tuple[str, ...] = ("a", "b"),
    variant: bool = False,
) -> Case:
  return Case(name, call, loss, labelled, trained, "where", trained + guarded, variant=variant)


def _list_case(
    name: str, call: Callable[..., Any], loss: Callable[..., Any], labels: str = "labels", variant: bool = False
) -> Case:
  return Case(name, call, loss, lists, ("scores",), "where", ("scores", labels), variant=variant)


def _language_case(name: str, call: Callable[..., Any], loss: Callable[..., Any]) -> Case:
  return Case(name, call, loss, sequences, ("logits",), "mask", ("logits", "tokens"), read_at=1)


CASES = [
    Case("info_nce", lambda b, f: f(b["similarity"], b["positive"], temperature=0.3, drop=b["drop"], where=b["where"]),
         losses.info_nce, similarities, ("similarity",), "where", ("similarity",)),
    Case("supervised_contrastive",
         lambda b, f: f(b["similarity"], b["positives"], temperature=0.3, drop=b["drop"], where=b["where"]),
         losses.supervised_contrastive, similarities, ("similarity",), "where", ("similarity",)),
    _embedding_case("multiple_negatives_ranking", lambda b, f: f(*_pairs(b), where=b["where"]),
                    losses.multiple_negatives_ranking),
    _embedding_case("extended_info_nce", lambda b, f: f(*_pairs(b), queries=True, positives=True, where=b["where"]),
                    losses.multiple_negatives_ranking, variant=True),
    Case("clip", lambda b, f: f(b["query"], b["positive"], where=b["where"]), losses.clip, embeddings,
         ("query", "positive"), "where", ("query", "positive")),
    _embedding_case("multiple_negatives_ranking_ids",
                    lambda b, f: f(*_pairs(b), query_ids=b["ids"], positive_ids=b["ids"] + 4, where=b["where"]),
                    losses.multiple_negatives_ranking, variant=True),
    _embedding_case("symmetric_multiple_negatives_ranking", lambda b, f: f(*_pairs(b), where=b["where"]),
                    losses.symmetric_multiple_negatives_ranking, variant=True),
    Case("matryoshka", lambda b, f: f(b["query"], b["positive"], where=b["where"]), nested_dims, embeddings,
         ("query", "positive"), "where", ("query", "positive")),
    _embedding_case("splade", lambda b, f: f(*_pairs(b), query_weight=0.3, document_weight=0.2, where=b["where"]),
                    losses.splade),
    *(Case(loss.__name__, lambda b, f: f(b["query"], b["positive"], where=b["where"]), loss, embeddings,
           ("query", "positive"), "where", ("query", "positive"))
      for loss in (losses.siglip, losses.mega_batch_margin)),
    Case("mixed_negative_contrastive", lambda b, f: f(b["query"], b["positive"], 0.4, where=b["where"]),
         losses.mixed_negative_contrastive, embeddings, ("query", "positive"), "where", ("query", "positive")),
    _embedding_case("mixed_negatives_ranking",
                    lambda b, f: f(*_pairs(b), jnp.flip(b["negative"], axis=1), temperature=0.3,
                                   gamma=0.0, where=b["where"]), losses.mixed_negatives_ranking),
    Case("soft_clip",
         lambda b, f: f(b["query"], b["positive"], losses.mixup_targets(b["partner"], 0.7), where=b["where"]),
         losses.soft_clip, embeddings, ("query", "positive"), "where", ("query", "positive")),
    _embedding_case("guided_info_nce", lambda b, f: f(*_guided(b), temperature=0.2, where=b["where"]),
                    losses.guided_info_nce, guide=True),
    _embedding_case("guided_info_nce_relative",
                    lambda b, f: f(*_guided(b), temperature=0.2, strategy="relative", margin=0.1, inclusive=True,
                                   where=b["where"]), losses.guided_info_nce, guide=True, variant=True),
    _language_case("token_log_probs", lambda b, f: f(b["logits"], b["tokens"], b["mask"]), losses.token_log_probs),
    _language_case("sequence_log_probs", lambda b, f: f(b["logits"], b["tokens"], b["mask"], normalize="tokens"),
                   losses.sequence_log_probs),
    _language_case("weighted_nll",
                   lambda b, f: f(b["logits"], b["tokens"], b["mask"], label_smoothing=0.1, z_loss=1e-2),
                   losses.weighted_nll),
    Case("linear_cross_entropy", lambda b, f: f(b["hidden"], HEAD, b["labels"], where=b["where"], chunk=3),
         losses.linear_cross_entropy, states, ("hidden",), "where", ("hidden", "labels"), low=2e-2),
    Case("entropy", lambda b, f: f(b["strong"], b["where"]), losses.entropy, views, ("strong",), "where", ("strong",)),
    Case("pseudo_label", lambda b, f: f(b["weak"], b["strong"], threshold=0.4, where=b["where"]),
         losses.pseudo_label, views, ("strong",), "where", ("weak", "strong")),
    Case("pseudo_label_soft",
         lambda b, f: f(b["weak"], b["strong"], threshold=0.4, power=0.5, mean_over="certain", where=b["where"]),
         losses.pseudo_label, views, ("strong",), "where", ("weak", "strong"), variant=True),
    Case("view_contrastive",
         lambda b, f: f(b["views"], b["labels"], temperature=0.3, gamma=1.0, where=b["where"]),
         losses.view_contrastive, labelled, ("views",), "where", ("views", "labels")),
    Case("core_tuning", lambda b, f: f(b["a"], b["b"], b["c"], b["labels"], temperature=0.3, where=b["where"]),
         losses.core_tuning, labelled, ("a", "b", "c"), "where", ("a", "b", "c", "labels")),
    _pair_case("triplet", lambda b, f: f(b["a"], b["b"], b["c"], margin=0.5, where=b["where"]), losses.triplet,
               trained=("a", "b", "c")),
    _pair_case("triplet_euclidean",
               lambda b, f: f(b["a"], b["b"], b["c"], margin=3.0, metric="euclidean", where=b["where"]), losses.triplet,
               trained=("a", "b", "c"), variant=True),
    *(_pair_case(loss.__name__, lambda b, f: f(b["a"], b["labels"], margin=0.5, where=b["where"]), loss, "labels",
                 trained=("a",))
      for loss in (losses.batch_all_triplet, losses.batch_hard_triplet, losses.batch_semi_hard_triplet)),
    _pair_case("batch_hard_triplet_soft",
               lambda b, f: f(b["a"], b["labels"], margin=None, metric="manhattan", where=b["where"]),
               losses.batch_hard_triplet, "labels", trained=("a",), variant=True),
    *(_pair_case(loss.__name__, lambda b, f: f(b["a"], b["b"], b["same"], where=b["where"]), loss,
                 variant=loss is losses.contrastive_tension)
      for loss in (losses.contrastive_pairs, losses.online_contrastive_pairs, losses.contrastive_tension)),
    *(_pair_case(loss.__name__, lambda b, f: f(b["a"], b["b"], b["scores"], where=b["where"]), loss, "scores",
                 variant=loss is not losses.cosent)
      for loss in (losses.cosine_regression, losses.cosent, losses.angle)),
    _pair_case("feature_consistency", lambda b, f: f(b["a"], b["b"], where=b["where"]), losses.feature_consistency, "b",
               trained=("a",)),
    _pair_case("feature_consistency_euclidean", lambda b, f: f(b["a"], b["b"], metric="euclidean", where=b["where"]),
               losses.feature_consistency, "b", trained=("a",), variant=True),
    _pair_case("cross_model_contrastive",
               lambda b, f: f(b["b"], b["a"], b["labels"], temperature=0.5, where=b["where"]),
               losses.cross_model_contrastive, "b", "labels", trained=("a",)),
    _pair_case("global_orthogonal", lambda b, f: f(b["a"], where=b["where"]), losses.global_orthogonal, trained=("a",)),
    _pair_case("flops", lambda b, f: f(b["a"], where=b["where"]), losses.flops, trained=("a",)),
    _pair_case("csr_reconstruction",
               lambda b, f: f(b["a"], b["b"], b["c"], b["views"][:, 0], b["views"][:, 1], where=b["where"]),
               losses.csr_reconstruction, "views", trained=("a", "b", "c")),
    _pair_case("adaptive_layers",  # and matryoshka_2d and submodels
               lambda b, f: f(b["layers_a"], b["layers_b"], labels=b["same"], where=b["where"]), nested_layers,
               trained=("layers_a", "layers_b")),
    _pair_case("deep_supervision", lambda b, f: f(b["heads"], b["labels"], b["where"]), supervised_heads, "labels",
               trained=("heads",)),
    _pair_case("binary_cross_entropy", lambda b, f: f(b["number"], b["scores"], positive_weight=2.0, where=b["where"]),
               losses.binary_cross_entropy, "scores", trained=("number",)),
    _pair_case("cross_entropy", lambda b, f: f(b["logits"], b["labels"], label_smoothing=0.1, where=b["where"]),
               losses.cross_entropy, "labels", trained=("logits",)),
    _pair_case("soft_cross_entropy", lambda b, f: f(b["logits"], b["soft"], where=b["where"]),
               losses.soft_cross_entropy, "soft", trained=("logits",), variant=True),
    *(_pair_case(loss.__name__, lambda b, f: f(b["number"], b["other"], where=b["where"]), loss, "other",
                 trained=("number",), variant=True)
      for loss in (losses.squared_error, losses.reinforce)),
    *(_list_case(loss.__name__, lambda b, f: f(b["scores"], b["teacher"], where=b["where"]), loss, "teacher",
                 variant=loss is losses.margin_mse)
      for loss in (losses.margin_mse, losses.distill_scores)),
    *(_list_case(loss.__name__, lambda b, f: f(b["scores"], b["labels"], where=b["where"]), loss,
                 variant=loss in (losses.list_net, losses.rank_net))
      for loss in (losses.list_net, losses.list_mle, losses.rank_mse, losses.rank_net, losses.lambda_loss)),
    _list_case("list_mle_position_aware",
               lambda b, f: f(b["scores"], b["labels"], position_aware=True, where=b["where"]), losses.list_mle,
               variant=True),
    *(_list_case(f"lambda_loss_{scheme}",
                 lambda b, f, scheme=scheme: f(b["scores"], b["labels"], scheme=scheme, k=2, where=b["where"]),
                 losses.lambda_loss, variant=True) for scheme in ("ndcg1", "ndcg2", "lambda_rank")),
    Case("late_interaction",
         lambda b, f: f(b["query"], b["positive"], b["negative"], positive_mask=b["document_mask"], per_token=True,
                        query_ids=b["ids"], where=b["where"]),
         losses.late_interaction, token_vectors, ("query", "positive", "negative"), "where",
         ("query", "positive", "negative")),
]
