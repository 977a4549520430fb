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
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from beartype import beartype
from jaxtyping import jaxtyped

from jaxft import losses

Batch = dict[str, jax.Array]


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
    variant: a function of another case with other options: what rests on the function alone is exhaustive for it.
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
  variant: bool = False

  def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    # Below its own check of the arguments, which has its own test, so that what it returns is checked as well.
    return self.call(batch, jaxtyped(typechecker=beartype)(inspect.unwrap(self.loss)))

  def arguments(self, batch: Batch) -> dict[str, Any]:
    """What the loss is called with, by the names of its parameters."""
    return self.call(batch, lambda *args, **kwargs: dict(inspect.signature(self.loss).bind(*args, **kwargs).arguments))


def embeddings(rng: np.random.Generator, rows: int) -> Batch:
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  batch = {name: draw(rows, 6) for name in ("query", "positive", "guide_query", "guide_positive")}
  return batch | {"negative": draw(rows, 2, 6), "guide_negative": draw(rows, 2, 6), "where": jnp.ones(rows, bool)}


def similarities(rng: np.random.Generator, rows: int) -> Batch:
  # Seven candidates of its own for each row, so that the loss is one of rows and not of the batch.
  return {
      "similarity": jnp.asarray(rng.uniform(-1, 1, (rows, 7)), jnp.float32),
      "positive": jnp.asarray(np.arange(rows) % 7),
      "positives": jnp.asarray(rng.random((rows, 7)) < 0.5),
      "drop": jnp.asarray(rng.random((rows, 7)) < 0.3),
      "where": jnp.ones(rows, bool),
  }


def sequences(rng: np.random.Generator, rows: int) -> Batch:
  mask = rng.random((rows, 5)) < 0.7
  mask[:, 0], mask[:, 2] = False, True
  return {
      "logits": jnp.asarray(rng.normal(size=(rows, 5, 9)), jnp.float32),
      "tokens": jnp.asarray(rng.integers(0, 9, (rows, 5))),
      "mask": jnp.asarray(mask),
  }


def views(rng: np.random.Generator, rows: int) -> Batch:
  # Every third target is uncertain, far from a threshold of 0.4.
  draw = lambda: rng.normal(size=(rows, 4))
  weak = np.where(np.arange(rows)[:, None] % 3 == 1, 0.05, 1.0) * (draw() + [5.0, 0, 0, 0])
  return {
      "weak": jnp.asarray(weak, jnp.float32), "strong": jnp.asarray(draw(), jnp.float32),
      "where": jnp.ones(rows, bool)}


def states(rng: np.random.Generator, rows: int) -> Batch:
  where = rng.random((rows, 5)) < 0.7
  where[:, 2] = True
  return {
      "hidden": jnp.asarray(rng.normal(size=(rows, 5, 6)), jnp.float32),
      "labels": jnp.asarray(rng.integers(0, 9, (rows, 5))),
      "where": jnp.asarray(where),
  }


HEAD = jnp.asarray(np.random.default_rng(1).normal(size=(6, 9)), jnp.float32)


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
]
