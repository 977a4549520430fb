"""An output head that is the embedding: what PEFT's files hold of it.

Here one table is read twice, and whatever adapts it adapts both. PEFT has two modules. An adapter of the embedding
leaves its head alone, unless the file has `ensure_weight_tying`, or a copy of what trains for each of the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.formats.peft_files.method import Method
from jaxft.formats.peft_files.modules import Place, of_module

PREFIX = "base_model.model."
HEAD = "lm_head"
# The head's factors in terms of the embedding's, both turned: there the head is the transposed matrix.
_FACTORS = {"lora_A.weight": "lora_embedding_B", "lora_B.weight": "lora_embedding_A"}


def tied(config: Any) -> bool:
  return getattr(config, "tie_embeddings", False)


def check_tied(place: Place, method: Method, config: Any, *, ensured: bool = True) -> None:
  """Raises ValueError for an embedding that is also the head, where PEFT adapts the embedding alone.

  Args:
    place: what is adapted.
    method: its row.
    config: of the model.
    ensured: whether the file says `ensure_weight_tying`.
  """
  if place.embedding and tied(config) and not (method.adapts_tied or (method.ties and ensured)):
    needs = "; with ensure_weight_tying PEFT adapts both" if method.ties else ""
    raise ValueError(
        f"{place.path} is the output head as well: here both are adapted, in PEFT the embedding alone, so the two do "
        f"not compute the same{needs}")


def add_head(tensors: dict[str, np.ndarray], place: Place, method: Method) -> None:
  """Adds what PEFT keeps for the head of a model whose embedding is adapted."""
  stem = f"{PREFIX}{place.module}."
  if method.ties:
    tensors |= {f"{PREFIX}{HEAD}.{name}": tensors[stem + other].T for name, other in _FACTORS.items()}
  else:
    tensors |= {name.replace(stem, f"{PREFIX}{HEAD}."): x for name, x in tensors.items() if name.startswith(stem)}


def without_head(
    tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any], adapted: Sequence[Place], whole: Sequence[Place],
    method: Method,
) -> dict[str, np.ndarray]:
  """The tensors without those of a tied head, after a check that they agree with the embedding's.

  Args:
    tensors: of the file.
    settings: of the file.
    adapted, whole: the places that are adapted, and those that the file holds whole.
    method: the row of the type.

  Raises:
    ValueError: the file makes the head another matrix than the embedding.
  """
  out = dict(tensors)
  for place in (p for p in whole if p.embedding):
    head, table = out.pop(f"{PREFIX}{HEAD}.weight", None), out.get(f"{PREFIX}{place.module}.weight")
    if head is None or (table is not None and not np.array_equal(head, table)):
      what = "keeps the old one" if head is None else "gets another one"
      raise ValueError(
          f"modules_to_save name {place.module}, which the model ties to its output head: here both read the new "
          f"table, in PEFT the head {what}, so the two do not compute the same; train it with ensure_weight_tying")
  for place in (p for p in adapted if p.embedding and method.ties):
    settings_of = lambda module: {name: of_module(settings, method.patterns, module)[name] for name in method.patterns}
    head, table = settings_of(HEAD), settings_of(place.module)
    if head != table:
      raise ValueError(f"{HEAD} is tied to {place.module}, but has other settings: {head}, {table}")
    for name, other in _FACTORS.items():
      factor, twin = out.pop(f"{PREFIX}{HEAD}.{name}", None), out.get(f"{PREFIX}{place.module}.{other}")
      if factor is None or (twin is not None and not np.array_equal(factor, twin.T)):
        raise ValueError(f"{HEAD} is tied to {place.module}, but {HEAD}.{name} is not {other} transposed")
  return out

