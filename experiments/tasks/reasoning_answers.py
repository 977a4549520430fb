"""The task that several experiments share: SmolLM2-135M learns to answer problems of reasoning-gym.

Tasks are generated with verifiable answers; a held-out answer counts as right when the model's greedy decoding gives it
word for word, end of text included. That is read off one forward pass: greedy decoding gives the reference exactly when
each of its tokens is the likeliest one after the tokens before it. The control for what fine-tuning forgets is the
likelihood of sentences of news editorials.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxft.adapters import Adapter
from jaxft.data import source
from jaxft.data.tokenization import tokenize_completions, tokenize_texts
from jaxft.formats import Pretrained
from jaxft.losses import Mean, token_weights
from jaxft.models import decoder

TEMPLATE = "Question: {}\nAnswer:"


class Rows(NamedTuple):
  """Tokenized prompts with their answers; `scored` is 1 at the tokens to predict."""

  ids: Int[np.ndarray, "n time"]
  mask: Int[np.ndarray, "n time"]
  scored: Int[np.ndarray, "n time"]

  def __getitem__(self, rows: Any) -> "Rows":  # type: ignore[override]  # rows, where a tuple would give a field
    return Rows(*(x[rows] for x in (self.ids, self.mask, self.scored)))

  def __len__(self) -> int:
    return self.ids.shape[0]


class Answers(NamedTuple):
  """What a checkpoint reaches on a set of problems."""

  exact: float  # share of problems whose greedy answer is the reference
  nll: float  # nats per token of the reference answers


def completions(model: Pretrained, pairs: Sequence[tuple[str, str]], *, length: int) -> Rows:
  """Prompts and answers as rows of `length` tokens; the end of text is part of the answer."""
  records = [{"prompt": TEMPLATE.format(question.strip()), "completion": " " + answer} for question, answer in pairs]
  tokens = tokenize_completions(records, model.tokenizer, lengths=length, eos_id=model.config.eos_id)
  return Rows(tokens["ids"], tokens["mask"], tokens["loss_mask"])


def load_problems(model: Pretrained, task: str, split: str, *, limit: int, length: int = 48) -> Rows:
  """Problems of a reasoning-gym task that fit into `length` tokens with their answers."""
  records = source(f"reasoning_gym/{task}", split)
  pairs = [(records[i]["question"], records[i]["answer"]) for i in range(min(len(records), 4 * limit))]
  fits = lambda pair: len(model.tokenizer.encode(TEMPLATE.format(pair[0].strip()) + " " + pair[1]).ids) < length - 1
  pairs = [pair for pair in pairs if fits(pair)][:limit]
  if not pairs:
    raise ValueError(f"length must hold a problem of {task}; none of {min(len(records), 4 * limit)} fits in {length}")
  return completions(model, pairs, length=length)


def load_editorials(model: Pretrained, split: str, *, limit: int, length: int = 32) -> Rows:
  """Sentences of news editorials, every token scored: general text, not trained on."""
  records = source("sentiment/news", split)
  rows = np.linspace(0, len(records) - 1, min(limit, len(records))).astype(int)
  tokens = tokenize_texts([records[int(i)]["text"] for i in rows], model.tokenizer, lengths=length)
  return Rows(tokens["ids"], tokens["mask"], tokens["mask"])


def draw_batches(data: Rows, *, steps: int, batch_size: int, seed: int) -> list[Rows]:
  """`steps` batches of a seed, drawn without repetition inside a batch."""
  rng = np.random.default_rng(seed)
  if batch_size > len(data):
    raise ValueError(f"batch_size must be at most the {len(data)} rows; got {batch_size}")
  return [data[rng.choice(len(data), batch_size, replace=False)] for _ in range(steps)]


def objective(model: Pretrained, *, adapter: Adapter | None = None, **options: Any):
  """Cross-entropy on the tokens of the answers.

  Args:
    model: the decoder.
    adapter: changes activations by `params["edits"]`.
    options: for `decoder.token_nll`.
  """

  def loss(params: dict[str, Any], batch: Rows, key: jax.Array) -> tuple[Mean, dict[str, Any]]:
    del key
    edits = None if adapter is None else adapter.edits(params["edits"])
    return Mean.of(*decoder.token_nll(
        params, model.config, batch.ids, where=batch.scored, mask=batch.mask, edits=edits, **options)), {}

  return loss


class Scorer:
  """Exact answers and likelihood of a checkpoint; compiled once for each length of rows.

  Args:
    model: the decoder.
    batch_size: rows of one forward pass.
    adapter: changes activations by `params["edits"]`.
    options: for `decoder.hidden_states`.
  """

  def __init__(self, model: Pretrained, *, batch_size: int = 16, adapter: Adapter | None = None, **options: Any):
    self._batch_size = batch_size

    def score(params: dict[str, Any], rows: Rows) -> tuple[Array, Array, Array]:
      edits = None if adapter is None else adapter.edits(params["edits"])
      hidden = decoder.hidden_states(params, model.config, rows.ids, mask=rows.mask, edits=edits, **options).hidden
      hidden = hidden[:, hidden.shape[1] - rows.ids.shape[1]:-1]
      chosen = token_weights(rows.ids, rows.scored, mask=rows.mask)[:, 1:] > 0
      logits, target = decoder.logits(params, model.config, hidden), rows.ids[:, 1:]
      nll = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
      right = jnp.all((jnp.argmax(logits, axis=-1) == target) | ~chosen, axis=-1)
      return right, jnp.sum(nll * chosen, axis=-1), jnp.sum(chosen, axis=-1)

    self._score = jax.jit(score)

  def per_row(self, params: dict[str, Any], data: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row: whether all scored tokens are the likeliest, the summed nats, and how many tokens were scored."""
    parts, size = [], min(self._batch_size, len(data))
    for start in range(0, len(data), size):
      part = data[start : start + size]
      fill = size - len(part)  # one shape for all batches
      padded = Rows(*(np.pad(x, ((0, fill), (0, 0)), mode="edge") for x in part[:]))
      parts.append([np.asarray(x)[: len(part)] for x in self._score(params, padded)])
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))

  def __call__(self, params: dict[str, Any], data: Rows) -> Answers:
    right, nats, tokens = self.per_row(params, data)
    return Answers(float(np.mean(right)), float(nats.sum() / tokens.sum()))
