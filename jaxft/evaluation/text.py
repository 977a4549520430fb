"""Metrics of generated text: ROUGE and BLEU by the published packages, exact match and F1 as in SQuAD, faithfulness."""

import collections
import re
import string
from collections.abc import Collection, Sequence
from typing import Any, Literal

from jaxft.checks import check_texts
from jaxft.signatures import explain_errors

References = Sequence[str | Sequence[str]]


@explain_errors
def rouge(
    predictions: Sequence[str],
    references: References,
    *,
    kind: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL",
    stem: bool = True,
) -> list[float]:
  """ROUGE F-measure of each prediction, the best over its references (Super-NaturalInstructions).

  Args:
    predictions: texts.
    references: one text, or several, for each.
    kind: "rougeLsum" splits on newlines first.
    stem: Porter stemming.

  Raises:
    ImportError: the extra `text-metrics` is not installed.
    ValueError: the lengths differ, or a prediction has no reference.

  By `rouge-score`, whose tokenizer keeps only a-z and 0-9: text in any other script scores 0.

  Example:
    >>> [round(score, 3) for score in rouge(["the cat sat"], ["the cat ran away"])]
    [0.571]
  """
  try:
    from rouge_score.rouge_scorer import RougeScorer
  except ImportError as e:
    raise ImportError("ROUGE needs rouge-score: pip install 'jaxft[text-metrics]'") from e
  scorer = RougeScorer([kind], use_stemmer=stem)
  return _best(predictions, references, lambda p, r: scorer.score(r, p)[kind].fmeasure)


@explain_errors
def bleu(predictions: Sequence[str], references: References) -> float:
  """Corpus BLEU in [0, 100], by sacrebleu with its defaults (13a tokenizer, exponential smoothing, mixed case).

  Args:
    predictions: texts.
    references: one text, or several, for each; the numbers of references may differ.

  Raises:
    ImportError: the extra `text-metrics` is not installed.
    ValueError: the lengths differ, or a prediction has no reference.

  Example:
    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on a mat"]), 2)
    53.73
  """
  try:
    import sacrebleu
  except ImportError as e:
    raise ImportError("BLEU needs sacrebleu: pip install 'jaxft[text-metrics]'") from e
  lists = _as_lists(predictions, references)
  # sacrebleu takes one list for each number of reference, None where a text has fewer.
  streams: Any = [[refs[i] if i < len(refs) else None for refs in lists] for i in range(max(map(len, lists)))]
  return float(sacrebleu.corpus_bleu(list(predictions), streams).score)


def normalize_answer(text: str) -> str:
  """SQuAD's: lower case, no punctuation, no articles, single spaces."""
  text = "".join(c for c in text.lower() if c not in string.punctuation)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@explain_errors
def exact_match(predictions: Sequence[str], references: References) -> list[float]:
  """1 where a normalized prediction equals one of its normalized references, else 0.

  Raises:
    ValueError: the lengths differ, or a prediction has no reference.

  Example:
    >>> exact_match(["The Cat.", "a dog"], ["cat", ["cat", "mouse"]])
    [1.0, 0.0]

  Source: Rajpurkar et al. 2016 (arXiv 1606.05250).
  """
  return _best(predictions, references, lambda p, r: float(normalize_answer(p) == normalize_answer(r)))


@explain_errors
def token_f1(predictions: Sequence[str], references: References) -> list[float]:
  """F1 of the words shared by a normalized prediction and a reference, the best over its references.

  Two texts that are both empty once normalized agree: 1.

  Raises:
    ValueError: the lengths differ, or a prediction has no reference.

  Example:
    >>> [round(score, 3) for score in token_f1(["a red cat"], ["the red dog"])]
    [0.5]

  Source: Rajpurkar et al. 2016 (arXiv 1606.05250), with version 2's rule for empty answers.
  """

  def f1(prediction: str, reference: str) -> float:
    p, r = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not p or not r:
      return float(p == r)
    shared = sum((collections.Counter(p) & collections.Counter(r)).values())
    return 2 * shared / (len(p) + len(r))

  return _best(predictions, references, f1)


@explain_errors
def caption_faithfulness(
    captions: Sequence[str], references: References, *, ignore: Collection[str] = ()
) -> list[float]:
  """The share of a caption's words that some reference has: 1 where nothing is invented, however little is said.

  Words are runs of letters and digits in lower case, and each counts once. What a caption leaves out is not in it:
  report how well captions are told apart beside it (`bag_retrieval`).

  Args:
    captions: texts; one without a word invents nothing, 1.
    references: what is true of each image: one text, or several, whose words count together.
    ignore: words that say nothing of an image, such as "a" and "with".

  Raises:
    ValueError: the lengths differ, or a caption has no reference.

  Example:
    >>> caption_faithfulness(["A red cat.", "a cat"], [["red fox", "cat face"], "dog"], ignore=("a",))
    [1.0, 0.0]

  Source: as the share of what is mentioned that is not there CHAIR, Rohrbach et al. 2018 (arXiv 1809.02156), of objects
  in place of words and the other way around.
  """
  check_texts("captions", captions)
  words = lambda text: {word for word in re.findall(r"[^\W_]+", text.lower()) if word not in ignore}
  out = []
  for caption, true in zip(captions, _as_lists(captions, references), strict=True):
    said = words(caption)
    out.append(len(said & set().union(*map(words, true))) / len(said) if said else 1.0)
  return out


def _best(predictions, references, score) -> list[float]:
  lists = _as_lists(predictions, references)
  return [max(score(p, r) for r in refs) for p, refs in zip(predictions, lists, strict=True)]


def _as_lists(predictions: Sequence[str], references: References) -> list[list[str]]:
  for name, texts in (("predictions", predictions), ("references", references)):
    if isinstance(texts, str):
      raise TypeError(f"{name} must be a sequence with one entry for each text; got the str {texts[:40]!r}")
  sizes = len(predictions), len(references)
  if sizes[0] == 0 or sizes[0] != sizes[1]:
    raise ValueError(f"predictions and references must have one length >= 1; got {sizes[0]} and {sizes[1]}")
  lists = [[r] if isinstance(r, str) else list(r) for r in references]
  if empty := [i for i, refs in enumerate(lists) if not refs]:
    raise ValueError(f"every prediction needs a reference; there is none at {empty[:5]}")
  return lists
