"""The jaxft sides: one compiled loop over a cache."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.decoding import workload
from jaxft.compilation import use_compilation_cache
from jaxft.decoding import generate, stepwise_decoder
from jaxft.formats import load

Step = Callable[[], float]


def decode(kind: str, rows: int, new: int = workload.NEW) -> Step:
  """One generation, float32; the value tells the tokens of greedy decoding, or how many were drawn.

  The layers lie apart: of a stack each token would copy every layer's weights once.
  """
  use_compilation_cache()  # as `jaxft generate` does
  model, (ids, mask) = load("smollm2-135m", stacked=False), workload.prompts(rows)
  config: Any = model.config
  stepwise, keys = stepwise_decoder(model.params, config), iter(range(10**6))

  def run() -> float:
    found = generate(stepwise, ids, jax.random.key(next(keys)), mask=mask, max_new_tokens=new, stop=(),
                     temperature=0.0 if kind == "greedy" else 1.0)
    tokens = np.asarray(found.tokens)
    return workload.told(tokens) if kind == "greedy" else float(np.asarray(found.mask).sum())

  return run


SIDES: dict[str, Callable[[], Step]] = {
    f"jaxft-{kind}-{rows}": partial(decode, kind, rows) for kind in workload.KINDS for rows in workload.BATCHES}
