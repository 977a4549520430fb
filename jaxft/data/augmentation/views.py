"""Two-view augmentation: of each record two wordings, or two distortions, that belong together."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxft.signatures import explain_errors


@explain_errors
def two_views(
    augment: Callable[[np.random.Generator, Any], Any], *, field: str = "text"
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]:
  """A `random_map` of `stream` and `batches` that gives each record an `anchor` and a `positive`, augmented apart.

  >>> twice = two_views(lambda rng, text: " ".join(rng.permutation(text.split())))
  >>> twice({"text": "one two three", "label": 1}, np.random.default_rng(0))
  {'text': 'one two three', 'label': 1, 'anchor': 'three one two', 'positive': 'three two one'}

  Args:
    augment: `(rng, value) -> value`; the identity for views that differ by dropout alone.
    field: what is augmented.

  Raises:
    ValueError: of the map, for a record without the field.

  Source: Chen et al. 2020, SimCLR (arXiv 2002.05709).
  """

  def views(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    if field not in record:
      raise ValueError(f"field must be one of a record's {sorted(record)}; got {field!r}")
    return {**record, "anchor": augment(rng, record[field]), "positive": augment(rng, record[field])}

  return views
