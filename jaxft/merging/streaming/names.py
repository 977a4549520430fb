"""What names of tensors tell of their part: heads tied to embeddings, buffers, and what has a row for each token."""

import re
from collections.abc import Mapping

from jaxft.merging.streaming.inputs import InputModel
from jaxft.merging.streaming.operands import Operand
from jaxft.merging.streaming.recipe_files.references import Reference

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|cls\.predictions\.decoder)\.weight$")
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared|embeddings)\.weight$")
# What old versions saved with the weights, and models compute when they are built.
_BUFFER = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|attn\.masked_bias)$")
_INDEX = re.compile(r"\.\d+\.")


def buffers(name: str) -> bool:
  """Whether a tensor is one that models compute themselves."""
  return _BUFFER.search(name) is not None


def tied_embedding(name: str, model: InputModel, shape: tuple[int, ...]) -> str | None:
  """The embedding that stands for a head which a model lacks; None where it is no head, or not tied.

  Args:
    name: of the head.
    model: the model that lacks it.
    shape: of the head in another model; for other vocabularies only the first size differs.
  """
  if _HEAD.search(name) is None or model.config.get("tie_word_embeddings", True) is False:
    return None
  found = [n for n, x in model.operands.items() if _EMBEDDING.search(n) and x.shape[1:] == shape[1:]]
  return found[0] if len(found) == 1 else None


class VocabularyTensors:
  """Which tensors have a row for each token: those outside the layers with as many rows as the config has tokens."""

  def __init__(self, models: Mapping[Reference, InputModel]):
    self._rows = {reference: model.vocab_size for reference, model in models.items()}

  def has(self, name: str, operands: Mapping[Reference, Operand]) -> bool:
    """Whether a tensor is one of them, in all the models given."""
    if _INDEX.search(name):
      return False
    return all(x.shape and x.shape[0] == self._rows[reference] for reference, x in operands.items())

  def is_one(self, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of the output is one of them."""
    return not _INDEX.search(name) and shape[0] in self._rows.values()
