"""Choosing whole leaves: full tuning, freezing some, training some."""

import jax

from jaxft.transforms.filters import Filter, mask
from jaxft.transforms.protocol import ParamTransform, combine, partition


def train(select: Filter) -> ParamTransform:
  """Trains the leaves that `select` matches and freezes the others.

  Args:
    select: a filter; see `jaxft.transforms.filters`.

  Returns:
    The transform; its `split` raises ValueError where a glob matches no leaf.
  """

  def split(key: jax.Array, params):
    del key
    trainable, frozen = partition(mask(select, params), params)
    return frozen, trainable

  return ParamTransform(split, combine)


def freeze(select: Filter) -> ParamTransform:
  """Freezes the leaves that `select` matches and trains the others: the complement of `train(select)`."""

  def split(key: jax.Array, params):
    del key
    return partition(mask(select, params), params)

  return ParamTransform(split, combine)


def full() -> ParamTransform:
  """Trains every leaf: full fine-tuning."""
  return train(True)
