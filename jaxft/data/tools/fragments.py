"""Responses cut into the fragments that a search over text goes by."""

from collections.abc import Sequence

from jaxft.signatures import explain_errors

SEPARATORS = (". ", ", ", "=", "(")  # iTool's: sentences, arguments, values, the name of a tool


@explain_errors
def split_fragments(text: str, separators: Sequence[str] = SEPARATORS, group: int = 1) -> list[str]:
  """A text cut after each separator, `group` pieces joined to a fragment; joined again they are the text.

  >>> split_fragments("get_rain(city='Oslo', days=2)")
  ['get_rain(', 'city=', "'Oslo', ", 'days=', '2)']
  >>> split_fragments("get_rain(city='Oslo', days=2)", group=2)
  ['get_rain(city=', "'Oslo', days=", '2)']

  Args:
    text: a response; an empty one has no fragment.
    separators: where a fragment ends, each kept at its end. Of two that end at one place it is the same.
    group: >= 1, pieces to a fragment.

  Raises:
    ValueError: an empty separator, or a group below 1.

  Source: Zeng et al. 2025, iTool (arXiv 2501.09766).
  """
  ends = fragment_ends(list(text), separators, group)
  return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if ends else []


@explain_errors
def fragment_ends(pieces: Sequence[str], separators: Sequence[str] = SEPARATORS, group: int = 1) -> list[int]:
  """Where fragments of tokens end, by the text of each: a token that completes a separator is the last of its fragment.

  So token ids stay as they are, where cutting the text and tokenizing its parts would change them.

  >>> fragment_ends(["get", "_rain", "(c", "ity", "='", "Oslo", "',", " ", "days", "=2", ")"])
  [3, 5, 8, 10, 11]

  Args:
    pieces: the text that each token adds.
    separators, group: see `split_fragments`. A token with several counts as one.

  Returns:
    The number of tokens up to the end of each fragment; the last is `len(pieces)`, and no token has none.

  Raises:
    ValueError: an empty separator, or a group below 1.

  Source: Zeng et al. 2025, iTool (arXiv 2501.09766).
  """
  if not all(separators):
    raise ValueError(f"separators must not be empty strings; got {list(separators)!r}")
  if group < 1:
    raise ValueError(f"group must be at least 1; got {group}")
  longest = max(map(len, separators), default=1)
  ends, tail = [], ""
  for i, piece in enumerate(pieces, 1):
    before, tail = tail, tail + piece
    # A separator counts where it ends within this piece.
    if any(tail.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in separators):
      ends.append(i)
    tail = tail[-(longest - 1):] if longest > 1 else ""
  if pieces and (not ends or ends[-1] != len(pieces)):
    ends.append(len(pieces))
  return [end for i, end in enumerate(ends, 1) if i % group == 0 or i == len(ends)]
