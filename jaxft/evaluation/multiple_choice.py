"""Multiple choice by log-likelihood, with the length normalizations that lm-evaluation-harness reports."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxft.evaluation.ranges import require_labels, require_range
from jaxft.finite import or_nan, require_finite
from jaxft.losses.reduction import Mean
from jaxft.signatures import AnyArray, check_arrays


@check_arrays
def predict_choice(
    log_likelihoods: Float[AnyArray, "items choices"],
    *,
    lengths: Num[AnyArray, "items choices"] | None = None,
    unconditional: Float[AnyArray, "items choices"] | None = None,
    valid: Bool[AnyArray, "items choices"] | None = None,
) -> Int[Array, " items"]:
  """The most likely choice of each item; the first on ties.

  `argmax_k ll_k`, or `argmax_k ll_k / length_k`, or `argmax_k (ll_k - unconditional_k)`.

  Args:
    log_likelihoods: `log p(choice | context)` in nats, summed over the choice's tokens.
    lengths: of each choice; in characters for `acc_norm`, in UTF-8 bytes for `acc_bytes`. Without the delimiter; 0
      counts as 1.
    unconditional: `log p(choice)` without the context, for `acc_mutual_info`.
    valid: choices that exist, where items differ in their number.

  Raises:
    ValueError: both `lengths` and `unconditional` are given, shapes that differ, or a valid choice has a number that is
      not finite or a negative length. Under `jax.jit` such numbers give -1 for every item, which is right nowhere.

  Example:
    >>> predict_choice(jnp.array([[-3.0, -1.0], [-1.0, -2.0]]))
    Array([1, 0], dtype=int32)
  """
  if lengths is not None and unconditional is not None:
    raise ValueError("lengths and unconditional are two different normalizations; give one")
  fine = _require_numbers(valid, log_likelihoods, lengths, unconditional)
  scores = log_likelihoods.astype(jnp.float32)
  if lengths is not None:
    scores = scores / jnp.maximum(lengths, 1)
  if unconditional is not None:
    scores = scores - unconditional
  # After the normalization: -inf / 0 or inf - inf would be NaN, which argmax prefers to everything.
  best = jnp.argmax(scores if valid is None else jnp.where(valid, scores, -jnp.inf), axis=-1)
  return best if fine is True else jnp.where(fine, best, -1)


def _require_numbers(valid, log_likelihoods, lengths, unconditional):
  """Whether what is valid is finite and of no negative length; see `require_finite`."""
  fine = require_finite(valid, log_likelihoods=log_likelihoods, lengths=lengths, unconditional=unconditional)
  return fine & require_range(0, math.inf, valid, lengths=lengths)


@check_arrays
def multiple_choice_accuracy(
    log_likelihoods: Float[AnyArray, "items choices"],
    gold: Int[AnyArray, " items"],
    *,
    lengths: Num[AnyArray, "items choices"] | None = None,
    unconditional: Float[AnyArray, "items choices"] | None = None,
    valid: Bool[AnyArray, "items choices"] | None = None,
) -> Float[Array, " items"]:
  """1 where `predict_choice` gives the gold choice, else 0; an item without a valid choice gives 0.

  `Mean.of(accuracy, where=valid.any(-1))` leaves items without a choice, such as padding, out of the mean.

  Raises:
    ValueError: see `predict_choice`; the gold of an item with a valid choice is no choice. Under `jax.jit` such numbers
      give NaN throughout.

  Example:
    >>> multiple_choice_accuracy(jnp.array([[-3.0, -1.0], [-1.0, -2.0]]), jnp.array([1, 1]))
    Array([1., 0.], dtype=float32)
  """
  some = None if valid is None else jnp.any(valid, axis=-1)
  fine = _require_numbers(valid, log_likelihoods, lengths, unconditional)
  fine &= require_labels(log_likelihoods.shape[-1], some, gold=gold)
  predicted = predict_choice(log_likelihoods, lengths=lengths, unconditional=unconditional, valid=valid)
  correct = predicted == gold
  return or_nan(fine, (correct if some is None else correct & some).astype(jnp.float32))


@check_arrays
def multiple_choice_metrics(
    log_likelihoods: Float[AnyArray, "items choices"],
    gold: Int[AnyArray, " items"],
    *,
    characters: Int[AnyArray, "items choices"] | None = None,
    n_bytes: Int[AnyArray, "items choices"] | None = None,
    unconditional: Float[AnyArray, "items choices"] | None = None,
    valid: Bool[AnyArray, "items choices"] | None = None,
) -> dict[str, Mean]:
  """lm-eval's `acc`, and `acc_norm`, `acc_bytes`, `acc_mutual_info` where what they need is given.

  Args:
    log_likelihoods: see `predict_choice`.
    gold: index of the right choice.
    characters: length of each choice in characters.
    n_bytes: length of each choice in UTF-8 bytes.
    unconditional: log-likelihood of each choice without its context.
    valid: choices that exist; items without any do not count.

  Raises:
    ValueError: see `multiple_choice_accuracy`.

  Example:
    >>> lengths = jnp.array([[2, 8]])  # -2 for two characters is less likely by the character than -3 for eight
    >>> metrics = multiple_choice_metrics(jnp.array([[-2.0, -3.0]]), jnp.array([1]), characters=lengths)
    >>> {name: float(value[0]) for name, value in metrics.items()}
    {'acc': 0.0, 'acc_norm': 1.0}
  """
  where = None if valid is None else jnp.any(valid, axis=-1)
  variants = {"acc": {}}
  if characters is not None:
    variants["acc_norm"] = {"lengths": characters}
  if n_bytes is not None:
    variants["acc_bytes"] = {"lengths": n_bytes}
  if unconditional is not None:
    variants["acc_mutual_info"] = {"unconditional": unconditional}
  accuracy = lambda options: multiple_choice_accuracy(log_likelihoods, gold, valid=valid, **options)
  return {name: Mean.of(accuracy(options), where=where) for name, options in variants.items()}
