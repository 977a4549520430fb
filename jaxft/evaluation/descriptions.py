"""How good long descriptions are: preferences side by side, how they read, and what they tell sentence by sentence."""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors


class Readability(NamedTuple):
  """Grades of school in which a text is read.

  Attributes:
    ari: the automated readability index.
    flesch_kincaid: the Flesch-Kincaid grade.
    gunning_fog: the Gunning fog index.
    smog: the SMOG grade, meant for thirty sentences or more.
  """

  ari: float
  flesch_kincaid: float
  gunning_fog: float
  smog: float


class TextCounts(NamedTuple):
  """What readability is made of: numbers of sentences, words, characters, syllables, and words of three or more."""

  sentences: int
  words: int
  characters: int
  syllables: int
  long_words: int


@explain_errors
def net_preference(ratings: Int[AnyArray, "judgements criteria"]) -> Float[np.ndarray, " criteria"]:
  """By how much more often A is preferred than B, of each criterion: `(#A - #B) / n`, however strongly.

  >>> net_preference(np.array([[2, 0], [1, -1], [-2, 0], [1, 0]]))
  array([ 0.5 , -0.25])

  Args:
    ratings: from 2, A is substantially better, over 1, marginally, and 0, neither, to -2, B is substantially better.

  Raises:
    ValueError: a rating outside -2..2, or no judgement.

  Source: Garg et al. 2024, ImageInWords (arXiv 2405.02793), whose headline is the mean over five criteria.
  """
  ratings = np.asarray(ratings)
  if not len(ratings):
    raise ValueError("ratings must have at least one judgement; got none")
  if np.any(np.abs(ratings) > 2):
    raise ValueError(f"ratings must lie in -2..2; got {ratings[np.abs(ratings) > 2].flat[0]}")
  return np.sign(ratings).mean(axis=0, dtype=np.float64)


@explain_errors
def mean_rank(scores: Float[AnyArray, "items systems"]) -> Float[np.ndarray, " systems"]:
  """The mean rank of each system over items, 1 the best; those that are level share the mean of their ranks.

  >>> mean_rank(np.array([[0.9, 0.5, 0.5], [0.1, 0.2, 0.3]]))
  array([2.  , 2.25, 1.75])

  Args:
    scores: higher is better, such as the similarity of an image drawn from a description with the original.

  Raises:
    ValueError: no item, or a score that is not finite.
  """
  scores = np.asarray(scores)
  if not len(scores):
    raise ValueError("scores must have at least one item; got none")
  require_finite(scores=scores)
  above = (scores[:, None] > scores[..., None]).sum(-1)
  level = (scores[:, None] == scores[..., None]).sum(-1)
  return (above + (level + 1) / 2).mean(axis=0)


@explain_errors
def sentences(text: str) -> list[str]:
  """A text cut after full stops, question and exclamation marks that space follows; line breaks are space.

  >>> sentences("A cat sits.  Is it 3.5 kg? Yes")
  ['A cat sits.', 'Is it 3.5 kg?', 'Yes']
  """
  return [one for one in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if one]


@explain_errors
def cumulative_prefixes(text: str, *, most_words: int | None = None) -> list[str]:
  """The first sentence, the first two, and so on: what a reader knows after each.

  >>> cumulative_prefixes("A cat. It is grey. It sleeps.", most_words=5)
  ['A cat.', 'A cat. It is grey.']

  Args:
    text: a description, the most important first.
    most_words: of a prefix, since encoders of text cut at 77 tokens; the first sentence is there whatever its length.

  Source: the reconstruction of Garg et al. 2024, ImageInWords (arXiv 2405.02793).
  """
  parts = sentences(text)
  prefixes = [" ".join(parts[: count + 1]) for count in range(len(parts))]
  return [one for i, one in enumerate(prefixes) if not i or most_words is None or len(one.split()) <= most_words]


def syllables(word: str) -> int:
  """Groups of vowels of an English word, less a silent e at its end; at least one.

  >>> [syllables(word) for word in ("cat", "table", "scene", "readability", "the", "3")]
  [1, 2, 1, 5, 1, 1]
  """
  word = re.sub(r"[^a-z]", "", word.lower())
  groups = len(re.findall(r"[aeiouy]+", word))
  if re.search(r"[^aeiouyl]e$|[aeiouy]le$", word) and groups > 1:
    groups -= 1
  return max(groups, 1)


@explain_errors
def text_counts(text: str) -> TextCounts:
  """Sentences, and words: runs of letters, digits, hyphens and apostrophes.

  >>> text_counts("A beautiful cat. It sleeps.")
  TextCounts(sentences=2, words=5, characters=21, syllables=7, long_words=1)

  Args:
    text: in English; syllables are those of `syllables`.
  """
  words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)
  counted = [syllables(word) for word in words]
  return TextCounts(
      len([one for one in sentences(text) if re.search(r"[^\W_]", one)]), len(words),
      sum(len(re.sub(r"['’-]", "", word)) for word in words), sum(counted), sum(count >= 3 for count in counted))


@explain_errors
def readability(text: str) -> Readability:
  """Four grades of a text with W words, S sentences, Y syllables, C characters and X words of three or more syllables.

      ARI = 4.71 C/W + 0.5 W/S - 21.43               Flesch-Kincaid = 0.39 W/S + 11.8 Y/W - 15.59
      Gunning fog = 0.4 (W/S + 100 X/W)              SMOG = 1.0430 sqrt(30 X/S) + 3.1291

  They depend on how sentences and syllables are told: compare texts by one tool alone.

  >>> grades = readability("A beautiful cat. It sleeps.")
  >>> [round(grade, 2) for grade in grades]
  [-0.4, 1.91, 9.0, 7.17]

  Args:
    text: in English, of at least one word.

  Raises:
    ValueError: no word.

  Source: as in Garg et al. 2024, ImageInWords (arXiv 2405.02793).
  """
  count = text_counts(text)
  if not count.words:
    raise ValueError(f"text must have at least one word; got {text[:40]!r}")
  a_word = lambda number: number / count.words
  length = count.words / count.sentences
  return Readability(
      ari=4.71 * a_word(count.characters) + 0.5 * length - 21.43,
      flesch_kincaid=0.39 * length + 11.8 * a_word(count.syllables) - 15.59,
      gunning_fog=0.4 * (length + 100 * a_word(count.long_words)),
      smog=1.0430 * float(np.sqrt(30 * count.long_words / count.sentences)) + 3.1291)
