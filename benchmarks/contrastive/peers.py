"""sentence-transformers' sides: its losses as its users run them, on tokens made before."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.contrastive import workload
from benchmarks.contrastive.sizes import BATCHES

Step = Callable[[], float]


def contrastive(cached: bool, batch: int) -> Step:
  """One step on so many pairs: with `CachedMultipleNegativesRankingLoss` or without the cache; no dropout."""
  from sentence_transformers import SentenceTransformer
  from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
  )

  model = SentenceTransformer(str(workload.minilm_folder()), device="cpu")
  model.max_seq_length = workload.LENGTH
  scale = 1 / workload.TEMPERATURE
  loss = CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=workload.MINI_BATCH) if cached else (
      MultipleNegativesRankingLoss(model, scale=scale))
  model.eval()  # switches dropout off, and nothing else
  sides = zip(*workload.pairs(batch), strict=True)
  features = [{k: v for k, v in model.preprocess(list(texts)).items() if torch.is_tensor(v)} for texts in sides]
  optimizer = torch.optim.AdamW(
      model.parameters(), lr=workload.LEARNING_RATE, weight_decay=workload.WEIGHT_DECAY, fused=True)

  def run() -> float:
    optimizer.zero_grad(set_to_none=True)
    value = loss([dict(side) for side in features], None)
    value.backward()
    optimizer.step()
    return value.item()

  return run


SIDES: dict[str, Callable[[], Step]] = {
    f"sentence-transformers-{name}-{batch}": partial(contrastive, cached, batch)
    for name, cached in (("in-batch", False), ("cached", True)) for batch in BATCHES}
