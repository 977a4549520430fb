"""Sparse differences, rows and columns, half fine-tuning, masks."""

from functools import partial

import jax
import numpy as np

from jaxft.choices import lottery_ticket_mask, s2ft_units
from jaxft.choices.random_modules import cut_at_changes, random_module_mask
from jaxft.transforms.entries.sparse_delta import shira, sparse_delta
from jaxft.transforms.entries.submatrix import submatrix
from jaxft.transforms.protocol import ParamTransform, chain
from jaxft.transforms.quantize import quantize
from jaxft.transforms.whole.freeze import train
from jaxft.tree import Coupled, Member, leaf_keys, map_with_path
from tests.contracts.transforms import KERNELS, UP, Case

KEY = jax.random.key(3)
DOWN = "**/down/*"
# Of 8 layers, some with fewer than the others; the layers of the small model are the first 4.
ROWS = np.stack([np.random.default_rng(i).permutation(32)[:8] for i in range(8)])
ROWS[1, 5:] = -1


def lt_sft(fraction: float) -> ParamTransform:
  """A lottery ticket in `up`, after a dense phase that moved each weight by what its path and layer decide.

  The contract counts from shapes, so that the phase may not read the params.
  """

  def moved(path, x):
    if x is None:  # as Equinox leaves a bias out
      return None
    words = np.asarray(jax.random.key_data(leaf_keys(KEY, path, x)))
    draw = lambda w: np.random.default_rng(w).standard_normal(x.shape[words.ndim - 1:], np.float32)
    return np.stack([draw(w) for w in words]) if words.ndim > 1 else draw(words)

  def select(params):
    with jax.ensure_compile_time_eval():
      after = map_with_path(moved, params)
      return lottery_ticket_mask(jax.tree.map(np.zeros_like, after), after, fraction, where=UP)

  return sparse_delta(select)


UNITS = [Coupled((Member(UP, -2, 8),)), Coupled((Member(UP, -1), Member(DOWN, -2)))]


def units(**fractions) -> ParamTransform:
  """S2FT of the blocks, whose `up` makes the channels and, by rows, stands for the output matrix of heads of 8."""
  return submatrix(partial(s2ft_units, KEY, units=UNITS, up=UP, **fractions))


def half(groups=(KERNELS,), **options) -> ParamTransform:
  return train(partial(random_module_mask, KEY, groups=groups, **options))


CASES = [
    Case("shira", shira(KERNELS, rank=4), flops=6.05, replicated=True),
    Case("lt_sft", lt_sft(0.02), flops=4.95, replicated=True),
    Case("submatrix_rows", submatrix(indices={DOWN: ROWS}), flops=4.0),
    Case("submatrix_both", submatrix(indices={UP: ROWS, DOWN: np.arange(16)}, axis={UP: -1, DOWN: -2}), flops=4.0),
    Case("submatrix_int8", chain(quantize(KERNELS, block=16), submatrix(indices={DOWN: ROWS})), flops=4.1, variant=True,
         starts_within=0.01),
    Case("s2ft", units(heads=0.1, channels=0.1), flops=4.3),
    Case("s2ft_columns", units(heads=0, channels=0.1, up_channels=0.1, scope="layer"), flops=4.3, variant=True),
    Case("half", half(), flops=5.05, by_layer=True),
    Case("half_cut", half(), flops=5.05, variant=True,
         layout=lambda p: cut_at_changes(p, random_module_mask(KEY, p, [KERNELS]))),
    Case("half_of_layers", half(level="layer"), flops=5.05, variant=True, by_layer=True),
    Case("half_of_model", half(level="model"), flops=4.95, variant=True, by_layer=True),
]
