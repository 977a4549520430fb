"""Stop strings inside a compiled loop: what a token adds to the text moves a small automaton, whatever tokens spell it.

    stops = stop_strings(token_pieces(tokenizer), ["\\n\\n", "</tool>"])
    found = generate(model, prompt, key, max_new_tokens=64, stop_strings=stops)
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from jaxft.checks import check_texts
from jaxft.signatures import AnyArray, explain_errors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StopStrings:
  """An automaton over tokens, of `stop_strings`.

  Attributes:
    after: the state that each token leads to from each; state 0 is the start, and the last one, which nothing leaves,
      says that a string has been written.
  """

  after: Int[AnyArray, "states vocab"]


@explain_errors
def stop_strings(pieces: Sequence[str], strings: Sequence[str], *, vocab_size: int | None = None) -> StopStrings:
  """The automaton that finds any of several strings in what tokens spell, across tokens and within one.

  Its states are the beginnings of the strings that the text may end with, some tens for usual ones; each has one int32
  for each token.

  >>> pieces = ["a", "\\n", "\\n\\n", "b\\n"]
  >>> stop_strings(pieces, ["\\n\\n"]).after  # from the start, after one newline, and once found
  array([[0, 1, 2, 1],
         [0, 2, 2, 1],
         [2, 2, 2, 2]], dtype=int32)

  Args:
    pieces: the text that each token adds, as of `token_pieces`.
    strings: what ends a row, in new text alone: what the prompt ends with does not count.
    vocab_size: of a model with more rows than the tokenizer has tokens; those add nothing.

  Raises:
    TypeError: strings are one str, whose characters would be taken for strings.
    ValueError: no string, an empty one, or a vocab_size below the number of pieces.
  """
  if isinstance(strings, str):
    raise TypeError(f"strings must be a sequence of str; got {strings!r}")
  if not strings or not all(strings):
    raise ValueError(f"strings must be one string or more, none of them empty; got {list(strings)!r}")
  size = len(pieces) if vocab_size is None else vocab_size
  if size < len(pieces):
    raise ValueError(f"vocab_size must be at least {len(pieces)}, the pieces; got {vocab_size}")
  prefixes = sorted({string[:n] for string in strings for n in range(len(string))}, key=lambda p: (len(p), p))
  number = {prefix: i for i, prefix in enumerate(prefixes)}
  found = len(prefixes)
  moves: dict[tuple[int, str], int] = {}

  def move(state: int, character: str) -> int:
    if (state, character) not in moves:
      text = prefixes[state] + character
      ended = any(text.endswith(string) for string in strings)
      moves[state, character] = found if ended else next(
          number[text[i:]] for i in range(len(text) + 1) if text[i:] in number)
    return moves[state, character]

  after = np.full((found + 1, size), found, np.int32)
  after[:found] = np.arange(found, dtype=np.int32)[:, None]
  for token, piece in enumerate(pieces):
    for state in range(found):
      at = state
      for character in piece:
        at = move(at, character)
        if at == found:
          break
      after[state, token] = at
  return StopStrings(after)


@explain_errors
def token_pieces(tokenizer: Any) -> list[str]:
  """The text that each token adds behind another, by the tokenizer's own decoder; nothing for special tokens.

  A token that is a part of a character adds "\\ufffd", so that stop strings must not depend on what such parts join to.

  >>> from tokenizers import Tokenizer, decoders, models
  >>> tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "\u0120b": 1}, merges=[]))
  >>> tokenizer.decoder = decoders.ByteLevel()
  >>> token_pieces(tokenizer)
  ['a', ' b']

  Args:
    tokenizer: of the `tokenizers` package.

  Raises:
    ValueError: no token adds letters by itself, behind which the others could be decoded.
  """
  size = tokenizer.get_vocab_size()
  anchor = next((i for i in range(size) if (text := tokenizer.decode([i])).isascii() and text.isalpha()), None)
  if anchor is None:
    raise ValueError(f"tokenizer must have a token of letters; none of its {size} is")
  start = len(tokenizer.decode([anchor]))
  return [text[start:] for text in tokenizer.decode_batch([[anchor, i] for i in range(size)])]


@explain_errors
def before_stop(text: str, strings: Sequence[str]) -> str:
  """A text up to the first of the stop strings in it, which the last token may have gone beyond.

  >>> before_stop("get_rain()\\n\\nUser", ["User", "\\n\\n"])
  'get_rain()'

  Args:
    text: of the new tokens.
    strings: those that ended it.

  Raises:
    TypeError: strings are one str.
  """
  check_texts("strings", strings)
  return text[: min([text.find(string) for string in strings if string in text], default=len(text))]
