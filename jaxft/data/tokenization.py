"""Text to int32 arrays of a few fixed lengths, so that a jitted step is compiled once for each of them.

Every function takes `lengths`: one number, or several in rising order, of which the smallest that holds the longest
row of the batch is taken. What is longer than the last is cut; each function says on which side. Rows are padded on
the right.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer

from jaxft.checks import not_one_str
from jaxft.signatures import explain_errors

Tokens = dict[str, Int[np.ndarray, "batch length"]]
Lengths = int | Sequence[int]


@explain_errors
def tokenize_texts(texts: Sequence[str], tokenizer: Tokenizer, *, lengths: Lengths, pad_id: int = 0) -> Tokens:
  """Texts with the tokenizer's special tokens; a long text loses its end, never its special tokens.

  >>> from tokenizers import models, pre_tokenizers
  >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "cat": 2, "sat": 3}, unk_token="?"))
  >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> tokens = tokenize_texts(["a cat sat", "a cat"], tokenizer, lengths=[4, 8])
  >>> tokens["ids"].tolist(), tokens["mask"].tolist()
  ([[1, 2, 3, 0], [1, 2, 0, 0]], [[1, 1, 1, 0], [1, 1, 0, 0]])

  Args:
    texts: the batch.
    tokenizer: its own truncation and padding are not used.
    lengths: see the module's docstring; special tokens count.
    pad_id: fills `ids` where `mask` is 0; a token id.

  Returns:
    `ids` and `mask` (1 for tokens, 0 for padding), int32 [batch, length].

  Raises:
    ValueError: the batch is empty, `lengths` are not rising or leave no room beside the special tokens, or pad_id is
      negative.
    TypeError: something other than str is among the texts.
  """
  rows = _encode(texts, tokenizer, _checked(lengths)[-1])
  return _pad(rows, _fitting(rows, lengths), pad_id)


@explain_errors
def tokenize_pairs(
    records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, lengths: Lengths,
    keys: Sequence[str] = ("anchor", "positive"), pad_id: int = 0,
) -> dict[str, Tokens]:
  """The texts of several keys, as `tokenize_texts` of each: `{"anchor": {"ids", "mask"}, "positive": {...}}`.

  >>> from tokenizers import models, pre_tokenizers
  >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "cat": 2, "sat": 3}, unk_token="?"))
  >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> tokens = tokenize_pairs([{"anchor": "a cat", "positive": "cat"}], tokenizer, lengths=[1, 2])
  >>> tokens["anchor"]["ids"], tokens["positive"]["ids"]  # each of its own length
  (array([[1, 2]], dtype=int32), array([[2]], dtype=int32))

  Args:
    records: the batch; for triples add "negative" to `keys`.
    tokenizer, lengths, pad_id: as in `tokenize_texts`; each key takes its own length.
    keys: which texts of the records.

  Raises:
    ValueError: a record lacks a key.
  """
  return {
    key: tokenize_texts(_column(records, key), tokenizer, lengths=lengths, pad_id=pad_id) for key in keys
  }


@explain_errors
def tokenize_completions(
    records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, lengths: Lengths, eos_id: int | None,
    keys: tuple[str, str] = ("prompt", "completion"), pad_id: int = 0, special: bool = True,
) -> Tokens:
  """Prompts with their completions, the loss on the completions alone.

  Prompt and completion are tokenized apart, so that a token never spans the boundary and training sees the prompt's
  tokens as generation will. The prompt carries the tokenizer's leading special tokens. A long row loses the start of
  its prompt; only a completion that is too long by itself loses its end, with the end-of-text token.

  >>> from tokenizers import models, pre_tokenizers
  >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "cat": 2, "sat": 3}, unk_token="?"))
  >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> tokens = tokenize_completions([{"prompt": "a cat", "completion": "sat"}], tokenizer, lengths=5, eos_id=9)
  >>> tokens["ids"], tokens["loss_mask"]
  (array([[1, 2, 3, 9, 0]], dtype=int32), array([[0, 0, 1, 1, 0]], dtype=int32))

  Args:
    records: the batch.
    tokenizer, lengths, pad_id: as in `tokenize_texts`.
    eos_id: the token to append to each completion, and to learn; None appends none.
    keys: of the prompt and the completion.
    special: put the tokenizer's leading special tokens before the prompt; False where it has all of them written out,
      as chat templates give it.

  Returns:
    `ids`, `mask`, and `loss_mask` (1 where a token is to be predicted), int32 [batch, length].
  """
  longest = _checked(lengths)[-1]
  leading = _leading(tokenizer) if special else []
  prompts = [leading + row for row in _plain_ids(_column(records, keys[0]), tokenizer)]
  ends = [] if eos_id is None else [_token("eos_id", eos_id)]
  completions = [(row + ends)[:longest] for row in _plain_ids(_column(records, keys[1]), tokenizer)]
  # Counted from the start, as the room left for a prompt may be zero.
  pairs = [(p[max(0, len(p) - (longest - len(c))):], c) for p, c in zip(prompts, completions, strict=True)]
  rows = [prompt + completion for prompt, completion in pairs]
  flags = [[0] * len(prompt) + [1] * len(completion) for prompt, completion in pairs]
  return _pad(rows, _fitting(rows, lengths), pad_id, loss_mask=flags)


@explain_errors
def tokenize_preferences(
    records: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, lengths: Lengths, eos_id: int | None,
    pad_id: int = 0,
) -> dict[str, Tokens]:
  """Preference pairs: `{"chosen": ..., "rejected": ...}`, each as `tokenize_completions` of the prompt and it.

  >>> from tokenizers import models, pre_tokenizers
  >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "cat": 2, "sat": 3}, unk_token="?"))
  >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> records = [{"prompt": "a cat", "chosen": "sat", "rejected": "cat"}]
  >>> tokens = tokenize_preferences(records, tokenizer, lengths=4, eos_id=9)
  >>> tokens["chosen"]["ids"], tokens["rejected"]["ids"]
  (array([[1, 2, 3, 9]], dtype=int32), array([[1, 2, 2, 9]], dtype=int32))

  Args:
    records: dicts with `prompt`, `chosen` and `rejected`.
    tokenizer, lengths, eos_id, pad_id: as in `tokenize_completions`; chosen and rejected take their own lengths.
  """
  return {
    key: tokenize_completions(records, tokenizer, lengths=lengths, eos_id=eos_id, keys=("prompt", key), pad_id=pad_id)
    for key in ("chosen", "rejected")
  }


@explain_errors
def tokenize_spans(
    texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]], tokenizer: Tokenizer, *, lengths: Lengths,
    pad_id: int = 0,
) -> Tokens:
  """Texts as they are (no special tokens added), the loss on the tokens that start within given character spans.

  A token that starts before a span is not learnt, even where it reaches into it: byte-level tokenizers join a word
  with the space before it, so give the span with that space.

  >>> from tokenizers import models, pre_tokenizers
  >>> tokenizer = Tokenizer(models.WordLevel({"?": 0, "a": 1, "cat": 2, "sat": 3}, unk_token="?"))
  >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> tokens = tokenize_spans(["a cat sat"], [[(2, 5)]], tokenizer, lengths=4)  # the characters of "cat"
  >>> tokens["ids"], tokens["loss_mask"]
  (array([[1, 2, 3, 0]], dtype=int32), array([[0, 1, 0, 0]], dtype=int32))

  Args:
    texts: the batch, with all special tokens written out, as chat templates give it. A long text loses its end.
    spans: of each text the (start, end) in characters that are to be learned, as `jaxft.data.render_chat` gives them.
    tokenizer, lengths, pad_id: as in `tokenize_texts`.

  Returns:
    `ids`, `mask` and `loss_mask`, int32 [batch, length].
  """
  longest = _checked(lengths)[-1]
  encodings = _plain(tokenizer).encode_batch(_texts(texts), add_special_tokens=False)
  rows = [encoding.ids[:longest] for encoding in encodings]
  flags = [
    [int(any(start <= offset < end for start, end in where)) for offset, _ in encoding.offsets[:longest]]
    for encoding, where in zip(encodings, spans, strict=True)
  ]
  return _pad(rows, _fitting(rows, lengths), pad_id, loss_mask=flags)


def _encode(texts: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[list[int]]:
  """Ids with special tokens, of which the text's own are cut to fit."""
  plain = _plain(tokenizer)
  room = longest - plain.num_special_tokens_to_add(False)
  if room < 1:
    raise ValueError(f"lengths must leave room beside {longest - room} special tokens; got at most {longest}")
  encodings = plain.encode_batch(_texts(texts), add_special_tokens=False)
  for encoding in encodings:
    encoding.truncate(room)
  return [plain.post_process(encoding).ids for encoding in encodings]


def _plain_ids(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
  return [encoding.ids for encoding in _plain(tokenizer).encode_batch(_texts(texts), add_special_tokens=False)]


def _plain(tokenizer: Tokenizer) -> Tokenizer:
  """The tokenizer without the truncation and padding that its file may switch on; the given one is left as it is."""
  return tokenizer if tokenizer.truncation is None and tokenizer.padding is None else _bare_copy(tokenizer)


@functools.lru_cache(maxsize=8)
def _bare_copy(tokenizer: Tokenizer) -> Tokenizer:
  copy = Tokenizer.from_str(tokenizer.to_str())
  copy.no_truncation()
  copy.no_padding()
  return copy


def _leading(tokenizer: Tokenizer) -> list[int]:
  """The special tokens that the tokenizer puts before a text: those before an ordinary token's own."""
  plain = _plain(tokenizer)
  with_special, bare = plain.encode("a").ids, plain.encode("a", add_special_tokens=False).ids
  return with_special[: with_special.index(bare[0])] if bare else []


def _texts(texts: Sequence[str]) -> list[str]:
  not_one_str("texts", texts)
  texts = list(texts)
  if not texts:
    raise ValueError("texts must hold at least one, and so must the records that they are of; got an empty batch")
  if wrong := {type(text).__name__ for text in texts if not isinstance(text, str)}:
    raise TypeError(f"texts must be str; got {', '.join(sorted(wrong))} among them")
  return texts


def _column(records: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
  if missing := [record for record in records if key not in record]:
    raise ValueError(f"records must have the key {key!r}; got {sorted(missing[0])}")
  return [record[key] for record in records]


def _checked(lengths: Lengths) -> list[int]:
  out = [lengths] if isinstance(lengths, int) else list(lengths)
  if not out or out[0] < 1 or any(a >= b for a, b in zip(out, out[1:], strict=False)):
    raise ValueError(f"lengths must be a positive number or several in rising order; got {lengths}")
  return out


def _token(name: str, token: int) -> int:
  """A token id; a negative one, such as PyTorch's label -100, would read a row from the embedding's end."""
  if token < 0:
    raise ValueError(f"{name} must be a token id, at least 0; got {token}")
  return token


def _fitting(rows: Sequence[Sequence[int]], lengths: Lengths) -> int:
  longest = max(len(row) for row in rows)
  return next(length for length in _checked(lengths) if length >= longest)


def _pad(rows: Sequence[Sequence[int]], length: int, pad_id: int, **others: Sequence[Sequence[int]]) -> Tokens:
  """`rows` as `ids` filled up with `pad_id`, their `mask`, and others of the same lengths filled up with 0."""
  _token("pad_id", pad_id)
  fill = lambda values, pad: np.asarray([list(row) + [pad] * (length - len(row)) for row in values], np.int32)
  ones = [[1] * len(row) for row in rows]
  return {"ids": fill(rows, pad_id), "mask": fill(ones, 0), **{key: fill(values, 0) for key, values in others.items()}}
