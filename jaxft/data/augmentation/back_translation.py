"""Back translation: a sentence said in another language and back, by whatever translates."""

from collections.abc import Callable, Sequence

from jaxft.checks import check_texts, in_range
from jaxft.signatures import explain_errors

Translate = Callable[[list[str]], Sequence[str]]


@explain_errors
def back_translate(
    sentences: Sequence[str], forward: Translate, backward: Translate, *, batch_size: int = 32
) -> list[str]:
  """`backward(forward(sentences))`, batch by batch: paraphrases that keep the label, made once, before training.

  >>> back_translate(["a cat", "a dog"], lambda texts: [t.upper() for t in texts], lambda texts: [t[2:] for t in texts])
  ['CAT', 'DOG']

  Args:
    sentences: what is paraphrased.
    forward: into the language between, one text for each.
    backward: and back. For several languages between, call once for each.
    batch_size: sentences in a call.

  Raises:
    TypeError: sentences is one str.
    ValueError: batch_size below 1, or a translator that gives more or fewer texts than it got.

  Source: Sennrich et al. 2015 (arXiv 1511.06709), there to make sources for targets; to augment labelled
  text Chen et al. 2023 (arXiv 2303.02577).
  """
  check_texts("sentences", sentences)
  in_range("batch_size", batch_size, "[1, inf)")
  out: list[str] = []
  for start in range(0, len(sentences), batch_size):
    texts = list(sentences[start : start + batch_size])
    for name, translate in (("forward", forward), ("backward", backward)):
      said, got = list(translate(texts)), len(texts)
      if len(said) != got:
        raise ValueError(f"{name} must give one text for each; got {len(said)} for {got}")
      texts = said
    out += texts
  return out
