"""The task that several experiments share: the mean human rating of a sentence, by all-MiniLM-L6-v2 with a linear head.

Four domains (movie reviews, product reviews, news editorials, tweets) rated on one scale from -4 to 4 make it a test of
transfer, merging and forgetting as well. The head starts at zero, the same for all arms, so that every fine-tuning of
the encoder shares it. The score is Pearson's r between prediction and rating.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer

from jaxft.adapters import Adapter
from jaxft.data import source
from jaxft.data.tokenization import tokenize_texts
from jaxft.evaluation import pearson
from jaxft.formats import Pretrained
from jaxft.losses import Mean
from jaxft.models import encoder
from jaxft.models.linear import linear
from jaxft.recipes.optimizers import adamw
from jaxft.tree import path_of

DOMAINS = ("movies", "products", "news", "tweets")
SCALE = 2.0  # ratings are learnt in units of about their standard deviation


class Sentences(NamedTuple):
  """Tokenized sentences and their ratings."""

  ids: Int[np.ndarray, "n time"]
  mask: Int[np.ndarray, "n time"]
  ratings: Float[np.ndarray, " n"]

  def __getitem__(self, rows: Any) -> "Sentences":  # type: ignore[override]  # rows, where a tuple would give a field
    return Sentences(*(x[rows] for x in (self.ids, self.mask, self.ratings)))

  def __len__(self) -> int:
    return len(self.ratings)


@cache
def read_ratings(domain: str, split: str) -> list[dict[str, Any]]:
  """All records of a split, read once: decoding them takes a second."""
  records = source(f"sentiment/{domain}", split)
  return records.__getitems__(range(len(records)))


def load_sentences(
    model: Pretrained, domain: str, split: str, *, limit: int | None = None, length: int = 16
) -> Sentences:
  """The sentences of a domain that fit into `length` tokens, whole; `limit` of them, spread evenly."""
  return _load_sentences(model.tokenizer.to_str(), domain, split, limit, length)


@cache
def _load_sentences(tokenizer: str, domain: str, split: str, limit: int | None, length: int) -> Sentences:
  """As `load_sentences`, by the settings of a tokenizer; once a process, as several arms and seeds ask for the same."""
  sized = zip(read_ratings(domain, split), _sizes(tokenizer, domain, split), strict=True)
  records = [r for r, size in sized if size <= length]
  if limit is not None and limit < len(records):
    records = [records[i] for i in np.linspace(0, len(records) - 1, limit).astype(int)]
  tokens = tokenize_texts([r["text"] for r in records], Tokenizer.from_str(tokenizer), lengths=length)
  return Sentences(tokens["ids"], tokens["mask"], np.array([r["rating"] for r in records], np.float32))


@cache
def _sizes(tokenizer: str, domain: str, split: str) -> list[int]:
  """How many tokens each sentence of a split has."""
  texts = [r["text"] for r in read_ratings(domain, split)]
  return [len(encoding.ids) for encoding in Tokenizer.from_str(tokenizer).encode_batch(texts)]


def joined(parts: Sequence[Sentences]) -> Sentences:
  """Several sets of sentences as one."""
  return Sentences(*(np.concatenate(x) for x in zip(*((p.ids, p.mask, p.ratings) for p in parts), strict=True)))


def with_head(params: dict[str, Any]) -> dict[str, Any]:
  """The encoder's params with a linear head `[dim, 1]` beside them, zero at the start."""
  dim = params["embed"]["tokens"]["embedding"].shape[1]
  return {**params, "head": {"kernel": jnp.zeros((dim, 1)), "bias": jnp.zeros((1,))}}


def predict(
    params: dict[str, Any], config: encoder.EncoderConfig, ids: Int[Array, "n time"], mask: Int[Array, "n time"],
    adapter: Adapter | None = None, **options: Any,
) -> Float[Array, " n"]:
  """Predicted ratings over `SCALE`.

  Args:
    params: of the encoder, `head`, and the adapter's below `edits`.
    config, ids, mask: of the encoder.
    adapter: changes activations by `params["edits"]`.
    options: for `encoder.hidden_states`.
  """
  if adapter is not None:
    options["edits"] = adapter.edits(params["edits"])
  hidden, _ = encoder.hidden_states(params, config, ids, mask, **options)
  hidden = hidden[:, hidden.shape[1] - ids.shape[1]:]  # states that an edit prepended are no part of the text
  pooled = encoder.pool(hidden, mask, pooling="mean", normalize=False)
  return linear(pooled, params["head"])[:, 0]


def objective(model: Pretrained, **options: Any):
  """Squared error on the ratings over `SCALE`; options go to `predict`."""

  def loss(params: dict[str, Any], batch: Sentences, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    del key
    predicted = predict(params, model.config, batch.ids, batch.mask, **options)
    return Mean.of(jnp.square(predicted - batch.ratings / SCALE)), {}

  return loss


def draw_batches(data: Sentences, *, steps: int, batch_size: int, seed: int) -> list[Sentences]:
  """`steps` batches of a seed: passes over the data in random order, each batch without repetition."""
  rng = np.random.default_rng(seed)
  if batch_size > len(data):
    raise ValueError(f"batch_size must be at most the {len(data)} sentences; got {batch_size}")
  batches, order = [], np.array([], int)
  for _ in range(steps):
    if len(order) < batch_size:
      order = rng.permutation(len(data))
    batches.append(data[order[:batch_size]])
    order = order[batch_size:]
  return batches


def separate_head_rate(head_rate: float) -> Callable[[Any, int], optax.GradientTransformation]:
  """An optimizer for a `Tuner` by which the head, which starts at zero, learns at a rate of its own, the same in all
  arms: an encoder that is to move little would leave it behind."""

  def optimizer(rate: Any, steps: int) -> optax.GradientTransformation:
    label = lambda keys, leaf: "head" if "head" in path_of(keys).split("/") else "rest"
    return optax.partition(
        {"head": adamw(head_rate, steps), "rest": adamw(rate, steps)},
        lambda tree: jax.tree_util.tree_map_with_path(label, tree))

  return optimizer


class Scorer:
  """Pearson's r of a checkpoint on a set of sentences; compiled once for all sets."""

  def __init__(self, model: Pretrained, *, batch_size: int = 100, **options: Any):
    self._predict = jax.jit(lambda params, ids, mask: predict(params, model.config, ids, mask, **options))
    self._batch_size = batch_size

  def predictions(self, params: dict[str, Any], data: Sentences) -> Float[np.ndarray, " n"]:
    """Predicted ratings."""
    out, size = [], min(self._batch_size, len(data))
    for start in range(0, len(data), size):
      part = data[start : start + size]
      fill = size - len(part)  # one shape for all batches
      ids, mask = (np.pad(x, ((0, fill), (0, 0)), mode="edge") for x in (part.ids, part.mask))
      out.append(np.asarray(self._predict(params, ids, mask))[: len(part)])
    return SCALE * np.concatenate(out)

  def __call__(self, params: dict[str, Any], data: Sentences) -> float:
    return float(pearson(self.predictions(params, data), data.ratings))  # 0 for the head before training
