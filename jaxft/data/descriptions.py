"""Descriptions of images as people refine them: objects first, then one text that each annotator improves in turn.

    record = Description("7", "a cat", objects=(ObjectNote("cat", "a grey cat asleep", (0, 0, 999, 500)),))
    record = refine(record, {"model": seed, "first": fix, "second": extend})
    examples = to_examples(record, tasks=("describe", "object", "objects", "refine"))
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from jaxft.checks import one_of
from jaxft.signatures import explain_errors

Box = tuple[int, int, int, int]
Task = Literal["describe", "object", "objects", "refine"]
LAST = 999  # the greatest coordinate of a box


class ObjectNote(NamedTuple):
  """An object of an image.

  Attributes:
    label: what it is.
    description: what is said of it.
    box: y_min, x_min, y_max, x_max, in thousandths of the image's sides, from 0 to 999.
  """

  label: str
  description: str
  box: Box


class Revision(NamedTuple):
  """A text and who left it so."""

  by: str
  text: str


@dataclasses.dataclass(frozen=True)
class Description:
  """What is known of an image.

  Attributes:
    image: its id.
    text: the description as it stands.
    objects: what is in it.
    history: the texts before, oldest first, with the last one, and by whom; empty where nobody is known.
  """

  image: str
  text: str
  objects: tuple[ObjectNote, ...] = ()
  history: tuple[Revision, ...] = ()


class Example(NamedTuple):
  """A target of ordinary likelihood for an image, after a prompt; and which task it is of."""

  task: str
  prompt: str
  target: str


@explain_errors
def to_box(corners: Sequence[float]) -> Box:
  """Integers from 0 to 999 of the corners' shares of the image's sides, y first.

  >>> to_box((0.0, 0.25, 0.5, 1.0))
  (0, 250, 500, 999)

  Args:
    corners: y_min, x_min, y_max, x_max, in [0, 1].

  Raises:
    ValueError: another number of corners, one outside [0, 1], or a least that is above its greatest.

  Source: the boxes of Garg et al. 2024, ImageInWords (arXiv 2405.02793).
  """
  values = [float(one) for one in corners]
  if len(values) != 4 or not all(0 <= one <= 1 for one in values) or values[0] > values[2] or values[1] > values[3]:
    raise ValueError(f"corners must be y_min, x_min, y_max, x_max in [0, 1], each least first; got {tuple(corners)}")
  top, left, bottom, right = (min(int(one * (LAST + 1)), LAST) for one in values)
  return top, left, bottom, right


@explain_errors
def box_text(box: Box) -> str:
  """A box as words of a prompt or a target, y first.

  >>> box_text((0, 250, 500, 999))
  '0 250 500 999'

  Args:
    box: integers from 0 to 999.

  Raises:
    ValueError: a coordinate out of range, or a least that is above its greatest.
  """
  if not all(0 <= one <= LAST for one in box) or box[0] > box[2] or box[1] > box[3]:
    raise ValueError(f"box must be y_min, x_min, y_max, x_max in 0..{LAST}, each least first; got {box}")
  return " ".join(map(str, box))


@explain_errors
def refine(record: Description, critics: Mapping[str, Callable[[Description], str]]) -> Description:
  """One text improved by several in turn: each sees what those before it left, and gives the text as it should stand.

  People, models, or functions that know the truth. Who changes nothing leaves a revision too: that they agreed is
  what a protocol ends on.

  >>> fix = lambda record: record.text.replace("dog", "cat")
  >>> extend = lambda record: record.text + " on a red mat"
  >>> done = refine(Description("7", "a dog"), {"first": fix, "second": extend})
  >>> done.text, [revision.by for revision in done.history]
  ('a cat on a red mat', ['start', 'first', 'second'])

  Args:
    record: where it starts; its history is kept, and begins with the text by "start" where there was none.
    critics: by name, in their order.

  Returns:
    The record with the last text, and all before it.

  Raises:
    TypeError: a critic that gives no text.

  Source: the sequential protocol of Garg et al. 2024, ImageInWords (arXiv 2405.02793).
  """
  history = record.history or (Revision("start", record.text),)
  for name, critic in critics.items():
    text = critic(dataclasses.replace(record, text=history[-1].text, history=history))
    if not isinstance(text, str):
      raise TypeError(f"critics must give a text; {name!r} gave {type(text).__name__}")
    history = (*history, Revision(name, text))
  return dataclasses.replace(record, text=history[-1].text, history=history)


@explain_errors
def to_examples(record: Description, *, tasks: Sequence[Task] = get_args(Task)) -> list[Example]:
  """What a model may learn from one record.

  "describe": the image to its description; "object": the image and a box to what is said of the object in it;
  "objects": the image to its objects with their boxes, in reading order of their upper left corners; "refine": an
  earlier text and the image to the description, for each text before that is another.

  >>> record = Description("7", "a grey cat", (ObjectNote("cat", "grey", (10, 0, 999, 500)),))
  >>> [tuple(one) for one in to_examples(record, tasks=("object", "objects"))]
  [('object', 'describe 10 0 999 500', 'grey'), ('objects', 'list the objects', 'cat 10 0 999 500')]

  Args:
    record: of an image; of what it lacks there is no example.
    tasks: which, in this order.

  Returns:
    Examples. Targets differ twentyfold in length: average the loss over an example's tokens
    (`sequence_log_probs(..., normalize="tokens")`) where long ones should not outweigh the others.

  Raises:
    ValueError: an unknown task, or a box that is none.

  Source: the tasks of Garg et al. 2024, ImageInWords (arXiv 2405.02793); the words of the prompts are ours.
  """
  for task in tasks:
    one_of("tasks", task, get_args(Task))
  notes = sorted(record.objects, key=lambda note: note.box)
  earlier = dict.fromkeys(revision.text for revision in record.history if revision.text not in ("", record.text))
  found = {
      "describe": [("describe the image", record.text)] if record.text else [],
      "object": [(f"describe {box_text(note.box)}", note.description) for note in notes if note.description],
      "objects": [("list the objects", ", ".join(f"{note.label} {box_text(note.box)}" for note in notes))]
      if notes else [],
      "refine": [(f"improve: {text}", record.text) for text in earlier] if record.text else [],
  }
  return [Example(task, prompt, target) for task in tasks for prompt, target in found[task]]
