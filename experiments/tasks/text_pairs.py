"""Finding a text by another, as code search does: by all-MiniLM-L6-v2, or by the upper layers of it.

Where the lower layers are frozen, texts carry the states that leave them, and the model is the part above the cut:

    lower, upper = cut_model(model.params, model.config, 3)
    tuned = learn(upper, train("layers/**"), stored(lower, pairs), rows, rate)
    reciprocal_ranks(upper._replace(params=tuned), stored(lower, held_out))    # of each query
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxft.data import tokenize_texts
from jaxft.evaluation import retrieval_metrics
from jaxft.formats import Pretrained
from jaxft.leaves import materialize
from jaxft.models import encoder
from jaxft.models.cut import Part, cached_features, entry
from jaxft.recipes.objectives import Rows, contrastive
from jaxft.recipes.optimizers import adamw
from jaxft.transforms import ParamTransform

TEMPERATURE = 0.05


class Texts(NamedTuple):
  """Tokenized texts and, where lower layers are frozen, the states that leave them."""

  ids: Int[Any, "n time"]
  mask: Int[Any, "n time"]
  states: Float[Any, "n time dim"] | None = None


class Pairs(NamedTuple):
  """Queries, documents, and of each query the row of its own document."""

  queries: Texts
  documents: Texts
  own: Int[Any, " queries"]

  def of(self, rows: Any) -> "Pairs":
    """Some of the queries, each with its own document beside it."""
    take = lambda texts, rows: jax.tree.map(lambda x: x[rows], texts)
    return Pairs(take(self.queries, rows), take(self.documents, self.own[rows]), jnp.arange(len(rows)))


def tokenized(model: Pretrained, texts: Sequence[str], length: int) -> Texts:
  """The texts, cut to a length."""
  return Texts(**tokenize_texts(texts, model.tokenizer, lengths=length))


def stored(lower: Part, pairs: Pairs) -> Pairs:
  """The same with the states that leave the lower part."""
  keep = lambda texts: texts._replace(
      states=jnp.asarray(cached_features(encoder.hidden_states, lower, texts.ids, texts.mask)))
  return pairs._replace(queries=keep(pairs.queries), documents=keep(pairs.documents))


def embed(part: Part, texts: Texts) -> Float[Array, "n dim"]:
  """Unit vectors."""
  edits = None if texts.states is None else entry(part.config, texts.states)
  return encoder.embed(part.params, part.config, texts.ids, texts.mask, edits=edits)


def objective(config: encoder.EncoderConfig):
  """InfoNCE among the pairs of a batch: queries and documents are told from all others of both kinds."""

  def rows(params: Any, batch: Pairs, key: jax.Array) -> Rows:
    del key
    part = Part(params, config)
    return embed(part, batch.queries), embed(part, batch.documents), None

  return contrastive(rows, queries=True, positives=True, temperature=TEMPERATURE)


def learn(
    part: Part, transform: ParamTransform, pairs: Pairs, rows: Int[Array, "steps batch"], rate: Float[Array, ""] | float
) -> Any:
  """The params after AdamW on batches of these rows, with a warm-up and then a linear fall."""
  key, optimizer, loss = jax.random.key(0), adamw(rate, len(rows), weight_decay=0.01), objective(part.config)
  frozen, trainable = transform.split(key, part.params)

  def step(carry: Any, rows: Int[Array, " batch"]) -> tuple[Any, None]:
    trainable, state = carry
    value = lambda trainable: loss(transform.join(frozen, trainable), pairs.of(rows), key)[0].value
    updates, state = optimizer.update(jax.grad(value)(trainable), state, trainable)
    return (optax.apply_updates(trainable, updates), state), None

  (trainable, _), _ = jax.lax.scan(step, (trainable, optimizer.init(trainable)), rows)
  return materialize(transform.join(frozen, trainable))


def reciprocal_ranks(
    part: Part, pairs: Pairs, exclude: Bool[Array, "queries documents"] | None = None
) -> Float[Array, " queries"]:
  """1 / the rank of each query's document among all, or among those that are not excluded."""
  similarity = embed(part, pairs.queries) @ embed(part, pairs.documents).T
  size = similarity.shape[1]
  relevance = jax.nn.one_hot(pairs.own, size, dtype=jnp.int32)
  return retrieval_metrics(similarity, relevance, ks=(size,), exclude=exclude)[f"mrr@{size}"]
