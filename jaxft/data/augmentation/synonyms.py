"""Where synonyms come from: a model's own embeddings, or WordNet."""

from collections.abc import Collection, Iterable, Mapping
from functools import cache

import numpy as np
from jaxtyping import Float

from jaxft.checks import in_range
from jaxft.data.augmentation.easy import Synonyms
from jaxft.data.builders.wordnet import Synset, read_wordnet
from jaxft.finite import require_finite
from jaxft.signatures import AnyArray, explain_errors
from jaxft.unit_rows import unit_rows


@explain_errors
def nearest_word_synonyms(
    embedding: Float[AnyArray, "vocab dim"], vocabulary: Mapping[str, int], *, k: int = 5,
    words: Collection[str] | None = None,
) -> Synonyms:
  """Synonyms of a word: the k whole words whose rows of an embedding table have the highest cosine to its own.

  Nearest first. They are what a model met in like places, opposites included, and need no data beside it.

  >>> table = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.1]])
  >>> synonyms = nearest_word_synonyms(table, {"cat": 0, "kitten": 1, "car": 2, "##cat": 3}, k=1)
  >>> synonyms("cat"), synonyms("dog")  # a word that the table does not have
  (['kitten'], [])

  Args:
    embedding: a table, such as a tokenizer's input embeddings.
    vocabulary: of each token its row: `tokenizer.get_vocab()`.
    k: synonyms of a word, >= 1.
    words: tokens that are words; None takes those of lower-case letters alone, as WordPiece has them.

  Raises:
    ValueError: k below 1, a row outside the table, fewer than two words, or a row of a word that is not finite.
  """
  in_range("k", k, "[1, inf)")
  chosen = sorted(words if words is not None else (w for w in vocabulary if w.isalpha() and w == w.lower()))
  if len(chosen) < 2:
    raise ValueError(f"words must be at least two of the vocabulary; got {len(chosen)}")
  rows = np.array([vocabulary[word] for word in chosen])
  if rows.min() < 0 or rows.max() >= len(embedding):
    raise ValueError(f"vocabulary must name rows in [0, {len(embedding)}); got {rows.min()} to {rows.max()}")
  table = np.asarray(embedding, np.float32)[rows]
  require_finite(embedding=table)
  table = unit_rows(table)
  place = {word: i for i, word in enumerate(chosen)}

  @cache
  def synonyms(word: str) -> tuple[str, ...]:
    if word not in place:
      return ()
    cosine = table @ table[place[word]]
    cosine[place[word]] = -np.inf
    return tuple(chosen[i] for i in np.argsort(-cosine, kind="stable")[: min(k, len(chosen) - 1)])

  return lambda word: list(synonyms(word))


@explain_errors
def wordnet_synonyms(synsets: Iterable[Synset] | None = None) -> Synonyms:
  """Synonyms of a word by WordNet 3.0: all other words of the sets that it is in, lower-case, in the sets' order.

  Words are looked up as they stand, without a search for the base form: most plurals have no synonyms.

  >>> film = Synset(["movie", "film", "motion picture"], "a story told by moving pictures", [])
  >>> wordnet_synonyms([film])("movie")
  ['film', 'motion picture']

  Args:
    synsets: None reads all of WordNet, in about two seconds.

  Raises:
    OSError: the archive cannot be fetched.
  """
  of: dict[str, dict[str, None]] = {}
  for synset in (synset for _, synset in read_wordnet()) if synsets is None else synsets:
    words = [word.lower() for word in synset.words]
    for word in words:
      of.setdefault(word, {}).update(dict.fromkeys(other for other in words if other != word))
  return lambda word: list(of.get(word, ()))
