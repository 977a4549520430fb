"""How one tensor of an adapter lies here and there: pairs of functions `(array, m, n)`, for a matrix `[m, n]` here."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Layout = Callable[[np.ndarray, int, int], np.ndarray]


class Tensor(NamedTuple):
  """One tensor of a method's file.

  Attributes:
    name: its name after the module's, such as `lora_A.weight`.
    to_peft, from_peft: the layout, inverse to one another.
  """

  name: str
  to_peft: Layout
  from_peft: Layout


def same(name: str) -> Tensor:
  return Tensor(name, lambda x, m, n: x, lambda x, m, n: x)


def turned(name: str) -> Tensor:
  """Transposed: inputs are rows here and columns there."""
  return Tensor(name, lambda x, m, n: x.T, lambda x, m, n: x.T)


def column(name: str) -> Tensor:
  """A vector here, a matrix of one column there."""
  return Tensor(name, lambda x, m, n: x[:, None], lambda x, m, n: x[:, 0])


def one(name: str) -> Tensor:
  """A scalar here, a vector of one there."""
  return Tensor(name, lambda x, m, n: x[None], lambda x, m, n: x[0])


def shorter_last(name: str) -> Tensor:
  """RandLoRA's weights: the shorter side comes last there, and here only where it is the output side."""
  turn = lambda x, m, n: x.T if m <= n else x
  return Tensor(name, turn, turn)


def skew(name: str) -> Tensor:
  """BOFT: the upper triangle here; there a matrix of whose difference with its transpose one half counts."""

  def to_peft(x: np.ndarray, m: int, n: int) -> np.ndarray:
    size = round((1 + (1 + 8 * x.shape[-1]) ** 0.5) / 2)
    out = np.zeros((*x.shape[:-1], size, size), x.dtype)
    out[(..., *np.triu_indices(size, 1))] = x
    return out - np.swapaxes(out, -1, -2)

  def from_peft(x: np.ndarray, m: int, n: int) -> np.ndarray:
    half = (x - np.swapaxes(x, -1, -2)) / np.asarray(2, x.dtype)
    return half[(..., *np.triu_indices(x.shape[-1], 1))]

  return Tensor(name, to_peft, from_peft)


def entries(name: str) -> Tensor:
  """SHiRA: flat indices of a matrix `[m, n]` here; there two rows, output and input."""
  return Tensor(
      name, lambda x, m, n: np.stack([x % n, x // n]).astype(np.int32),
      lambda x, m, n: (x[1].astype(np.int32) * n + x[0].astype(np.int32)))
