"""EDA: a sentence with some of its words replaced, inserted, exchanged or left out."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from jaxft.checks import check_texts, in_range, one_of
from jaxft.signatures import explain_errors

Operation = Literal["synonym", "insert", "swap", "delete"]
Synonyms = Callable[[str], Sequence[str] | None]  # of a word; none or None where it has none

# Those of the source's code: what has no synonyms that would keep a sentence whole.
STOP_WORDS = frozenset("""
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it
    its itself they them their theirs themselves what which who whom this that these those am is are was were be been
    being have has had having do does did doing a an the and but if or because as until while of at by for with about
    against between into through during before after above below to from up down in out on off over under again further
    then once here there when where why how all any both each few more most other some such no nor not only own same so
    than too very s t can will just don should now""".split())

RATES: Mapping[Operation, float] = {"synonym": 0.1, "insert": 0.1, "swap": 0.1, "delete": 0.1}


@explain_errors
def text_edit(
    rng: np.random.Generator, words: Sequence[str], *, operation: Operation, rate: float = 0.1,
    synonyms: Synonyms | None = None, stop_words: Collection[str] = STOP_WORDS, protected: Collection[str] = (),
) -> list[str]:
  """The words after edits of one kind, `max(1, int(rate * len(words)))` of them.

  - "synonym": so many different words, no stop words, are each replaced wherever they stand by one of their synonyms.
  - "insert": so many times the first synonym of some word comes in before some word.
  - "swap": so many times two places are exchanged.
  - "delete": each word goes with probability `rate`, whatever their number; one that is drawn stays where all would go.

  >>> words = "the cat sat on the mat".split()
  >>> text_edit(np.random.default_rng(0), words, operation="swap")
  ['the', 'cat', 'sat', 'the', 'on', 'mat']
  >>> text_edit(np.random.default_rng(0), words, operation="synonym", synonyms={"cat": ["puss"]}.get)
  ['the', 'puss', 'sat', 'on', 'the', 'mat']

  Args:
    rng: draws the edits.
    words: of a sentence; not changed.
    operation: one of the four.
    rate: of the words, in [0, 1]; at 0 one edit is made all the same, but no deletion.
    synonyms: of a word, none or None where it has none; one of several words comes in as these. "synonym" and "insert"
      need it.
    stop_words: never replaced.
    protected: words that carry the label, negations and names: never replaced, exchanged or left out.

  Returns:
    A new list. It is as before where nothing can be edited: no word has a synonym, or there are no two to exchange.

  Raises:
    TypeError: words is one str.
    ValueError: there is no word, an unknown operation, a rate outside [0, 1], or synonyms missing.

  Source: Wei and Zou 2019 (arXiv 1901.11196) as its code has it, but that two places to exchange are always different:
  the code tries four times.
  """
  check_texts("words", words)
  one_of("operation", operation, get_args(Operation))
  in_range("rate", rate, "[0, 1]")
  if not words:
    raise ValueError("words must hold at least one; got none")
  if operation in ("synonym", "insert") and synonyms is None:
    raise ValueError(f"synonyms must be given for operation {operation!r}; got None")
  count = max(1, int(rate * len(words)))
  if operation == "delete":
    return _deleted(rng, list(words), rate, protected)
  if operation == "swap":
    return _swapped(rng, list(words), count, protected)
  known: Callable[[str], Sequence[str]] = lambda word: (synonyms and synonyms(word)) or ()
  if operation == "insert":
    return _inserted(rng, list(words), count, known)
  return _replaced(rng, list(words), count, known, {*stop_words, *protected})


def _replaced(
    rng: np.random.Generator, words: list[str], count: int, synonyms: Callable[[str], Sequence[str]],
    kept: Collection[str],
) -> list[str]:
  replacement: dict[str, str] = {}
  open_words = sorted({word for word in words if word not in kept})
  for i in rng.permutation(len(open_words)):
    if found := synonyms(open_words[i]):
      replacement[open_words[i]] = found[int(rng.integers(len(found)))]
    if len(replacement) == count:
      break
  return " ".join(replacement.get(word, word) for word in words).split()


def _inserted(
    rng: np.random.Generator, words: list[str], count: int, synonyms: Callable[[str], Sequence[str]]
) -> list[str]:
  for _ in range(count):
    for _ in range(10):
      if found := synonyms(words[int(rng.integers(len(words)))]):
        at = int(rng.integers(len(words)))
        words[at:at] = found[0].split()
        break
  return words


def _swapped(rng: np.random.Generator, words: list[str], count: int, protected: Collection[str]) -> list[str]:
  places = [i for i, word in enumerate(words) if word not in protected]
  if len(places) > 1:
    for _ in range(count):
      i, j = (places[k] for k in rng.choice(len(places), 2, replace=False))
      words[i], words[j] = words[j], words[i]
  return words


def _deleted(rng: np.random.Generator, words: list[str], rate: float, protected: Collection[str]) -> list[str]:
  kept = [word for word, u in zip(words, rng.random(len(words)), strict=True) if u >= rate or word in protected]
  return kept or [words[rng.integers(len(words))]]


@explain_errors
def easy_data_augmentation(
    rng: np.random.Generator, sentence: str, *, rates: Mapping[Operation, float] = RATES, count: int = 9,
    synonyms: Synonyms | None = None, stop_words: Collection[str] = STOP_WORDS, protected: Collection[str] = (),
) -> list[str]:
  """EDA: `count` variants of a sentence, each by one kind of edit, and the sentence itself last.

  The sentence becomes lower-case words of letters alone. Of each kind `count // kinds + 1` variants are made, and of
  all these `count` are drawn.

  >>> easy_data_augmentation(np.random.default_rng(0), "The cat sat!", rates={"swap": 0.1, "delete": 0.3}, count=2)
  ['cat sat', 'the cat sat', 'the cat sat']

  Args:
    rng: draws the edits.
    sentence: any text with a letter in it.
    rates: of each kind of edit, see `text_edit`; a kind that is missing is not made.
    count: variants, >= 1.
    synonyms, stop_words, protected: see `text_edit`.

  Returns:
    `count + 1` sentences. Some may be equal.

  Raises:
    ValueError: the sentence has no letter, count below 1, no kind of edit, or what `text_edit` refuses.

  Source: Wei and Zou 2019 (arXiv 1901.11196), whose rates and count these are. Its code drops all but the letters a to
  z; here those of other scripts stay.
  """
  in_range("count", count, "[1, inf)")
  if not rates:
    raise ValueError("rates must have at least one kind of edit; got none")
  words = plain_words(sentence)
  if not words:
    raise ValueError(f"sentence must have a letter; got {sentence!r}")
  edit = lambda operation, rate: " ".join(text_edit(
      rng, words, operation=operation, rate=rate, synonyms=synonyms, stop_words=stop_words, protected=protected))
  made = [edit(operation, rate) for operation, rate in rates.items() for _ in range(count // len(rates) + 1)]
  return [made[i] for i in rng.permutation(len(made))[:count]] + [" ".join(words)]


def plain_words(sentence: str) -> list[str]:
  """The lower-case words of a sentence, letters alone: an apostrophe joins what it stands between.

  >>> plain_words("It's a well-known fact: 3 of 4!")
  ['its', 'a', 'well', 'known', 'fact', 'of']
  """
  sentence = sentence.lower().replace("'", "").replace("’", "")
  return "".join(c if c.isalpha() else " " for c in sentence).split()
