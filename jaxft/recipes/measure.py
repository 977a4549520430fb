"""What a run is validated by, before, during and after: `measure(params) -> {metric: value}`, compiled once."""

from collections.abc import Callable
from typing import Any

import grain
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxft.data import evaluation_batches
from jaxft.formats.pretrained import Pretrained
from jaxft.losses import Mean
from jaxft.recipes import tasks
from jaxft.recipes.examples import Collate, Records
from jaxft.together import is_first
from jaxft.training.mesh import place_batch, rows_of_process
from jaxft.training.recipe import Objective

Measure = Callable[[Any], dict[str, float]]


def retrieval(
    model: Pretrained, records: Records, *, max_length: int, dtype: Any, mesh: Mesh | None = None
) -> Measure:
  """How well an encoder finds each record's positive, from its anchor, among the positives of all records."""
  config, tokenizer = model.text_encoder()
  embed = tasks.embedding_function(config, dtype=dtype)
  if jax.process_count() > 1 and mesh is not None:  # what other processes computed is read here too
    embed = jax.jit(embed, out_shardings=NamedSharding(mesh, PartitionSpec()))

  def measure(params: Any) -> dict[str, float]:
    scores = tasks.retrieval(
        lambda ids, mask: embed(params, ids, mask), records, tokenizer, max_length=max_length,
        progress="validation" if is_first() else None)
    return {name: scores[name] for name in ("ndcg@10", "recall@1", "mrr@10")}

  return measure


def perplexity(objective: Objective, records: Records, collate: Collate, batch_size: int, mesh: Mesh | None) -> Measure:
  """A decoder's loss over all tokens of all records, and its exponential."""
  shard = grain.sharding.ShardOptions(*rows_of_process(mesh))
  batches = evaluation_batches(records, batch_size=batch_size, collate=collate, shard=shard)
  value = jax.jit(lambda params, batch: objective(params, batch, jax.random.key(0))[0])

  def measure(params: Any) -> dict[str, float]:
    total = sum((value(params, place_batch(batches[t], mesh)) for t in range(len(batches))), Mean.zero())
    return tasks.loss_and_perplexity(total)

  return measure
