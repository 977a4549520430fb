"""One item in several wordings: templates with tags, such as those that a model was tuned on and the others."""

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxft.checks import nearest, not_one_str
from jaxft.signatures import explain_errors


class Template(NamedTuple):
  """A wording of a task.

  Attributes:
    text: a format string with the item's fields: `"What is the capital of {country}?"`.
    tag: what kind of wording it is: "observed" in training, "unobserved", "adversarial", or one's own.
  """

  text: str
  tag: str = "observed"


class Rendered(NamedTuple):
  """A prompt, and which item and which template it is of."""

  prompt: str
  item: int
  template: int


@explain_errors
def render_templates(items: Sequence[Mapping[str, Any]], templates: Sequence[Template]) -> list[Rendered]:
  """Every item in every wording, item by item, so that row `i * len(templates) + j` is item i in template j.

  Args:
    items: the fields of each; those that a template does not name are left out.
    templates: wordings of one meaning.

  Raises:
    ValueError: no item or no template, or a template that names a field which an item lacks, or anything but a field.

  Example:
    >>> templates = [Template("capital of {country}?"), Template("{country}'s capital:", "unobserved")]
    >>> [row.prompt for row in render_templates([{"country": "Peru", "answer": "Lima"}], templates)]
    ['capital of Peru?', "Peru's capital:"]

  Source: the form of the instructions of Sun et al. 2023 (arXiv 2306.11270).
  """
  not_one_str("items", items)
  if not items or not templates:
    raise ValueError(f"items and templates must hold at least one each; got {len(items)} and {len(templates)}")
  for number, template in enumerate(templates):
    try:
      fields = [name for _, name, _, _ in string.Formatter().parse(template.text) if name is not None]
    except ValueError as e:
      raise ValueError(f"template {number} must be a format string: {e}; got {template.text!r}") from None
    for name in fields:
      # Attributes and entries, as in `{item.name}`, would let a template read more than the fields.
      if not name.isidentifier():
        raise ValueError(f"template {number} must name fields alone; got {{{name}}} in {template.text!r}")
      lacking = next((i for i, item in enumerate(items) if name not in item), None)
      if lacking is not None:
        raise ValueError(f"template {number} names the field {name!r}, which item {lacking} lacks; "
                         f"{nearest(name, list(items[lacking]))}")
  return [Rendered(template.text.format_map(item), i, j)
          for i, item in enumerate(items) for j, template in enumerate(templates)]
