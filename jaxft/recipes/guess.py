"""What a run is for, from what it is told and from the columns of its data."""

import dataclasses
from collections.abc import Collection

from jaxft.checks import one_of
from jaxft.data.files.records import OTHERS
from jaxft.recipes.distillation.losses import DISTILLATIONS
from jaxft.recipes.options import Finetune, Loss
from jaxft.recipes.preference.losses import PREFERENCES
from jaxft.recipes.rl.losses import POLICY_LOSSES

# task -> kind of model -> its losses, by the fields that the records must have; the first that fits is taken
TASKS: dict[str, dict[str, tuple[tuple[tuple[str, ...], str], ...]]] = {
    "prefer": {"decoder": ((("prompt", "chosen", "rejected"), "dpo"), (("prompt", "completion", "label"), "kto"))},
    "sft": {"decoder": (((), "sft"),),
            "encoder-decoder": ((("prompt", "completion"), "sft"), (("question", "answer"), "sft"))},
    "rl": {"decoder": (((), "grpo"),)},
    "distill": {
        "decoder": (((), "gkd"),), "vision": ((("image", "value"), "value_mse"), (("image",), "kd")),
        "encoder": ((("anchor", "positive"), "similarity_kl"), (("question", "answer"), "similarity_kl"),
                    (("text", "label"), "kd"), (("text", "value"), "value_mse"),
                    (("text",), "similarity_kl"))},
    "embed": {
        "encoder": ((("anchor", "positive"), "mnrl"), (("question", "answer"), "mnrl"),
                    (("sentence1", "sentence2", "score"), "cosent"), (("label",), "supcon")),
        "vision": ((("label",), "supcon"),)},
    "classify": {"encoder": ((("label",), "cross_entropy"),), "vision": ((("label",), "cross_entropy"),)},
    "regress": {"encoder": ((("value",), "mse"),), "vision": ((("value",), "mse"),)},
}
# In which order they are tried where no task is named: a label beside a text is there to be learnt.
_ORDER = ("prefer", "sft", "classify", "regress", "embed")
# task -> losses that a run may name beside it, where there are more than the table has
_MORE = {"prefer": tuple(PREFERENCES), "rl": tuple(POLICY_LOSSES), "distill": tuple(DISTILLATIONS), "embed": ("gist",)}


def check_task(loss: Loss) -> None:
  """Raises ValueError for a task that there is not, or a loss that is none of the task's."""
  if loss.task is not None:
    one_of("task", loss.task, TASKS)
    if loss.loss is not None:
      known = {name for kinds in TASKS[loss.task].values() for _, name in kinds} | {*_MORE.get(loss.task, ())}
      one_of(f"loss with task {loss.task}", loss.loss, sorted(known))


def with_loss(options: Finetune, kind: str, fields: Collection[str]) -> tuple[Finetune, str | None]:
  """The options with the loss named, and what was chosen, in words; None where the options named it.

  Args:
    options: whose `loss.loss` may be None.
    kind: of the model.
    fields: of the records; empty where none have been read.

  Raises:
    ValueError: the task is not one of such a model, or the records are none that it learns from.
  """
  loss = options.loss
  if loss.loss is not None:
    return options, None
  name = _guess(loss, kind, fields)
  task = next(t for t, kinds in TASKS.items() if any(name == found for _, found in kinds.get(kind, ())) or (
      name == "gist" and t == "embed"))
  named = dataclasses.replace(options, loss=dataclasses.replace(loss, loss=name))
  shown = ", ".join(field for field in fields if field != OTHERS)
  return named, f"task {task} by the loss {name}" + (f", for records of {shown}" if fields else "")


def _guess(loss: Loss, kind: str, fields: Collection[str]) -> str:
  known = [task for task in _ORDER if kind in TASKS[task]]
  if not known:
    kinds = sorted({kind for kinds in TASKS.values() for kind in kinds})
    raise ValueError(f"model must be one that the command fine-tunes, of the kinds {', '.join(kinds)}; got a {kind}, "
                     "which the functions of jaxft.models and jaxft.training take")
  task = loss.task
  if task is None:  # no other task reads a reward, or a teacher
    task = "rl" if loss.reward else "distill" if loss.teacher is not None else None
  if task is not None:
    one_of(f"task with this {kind}", task, [task for task, kinds in TASKS.items() if kind in kinds])
    known = [task]
  # The field to be learnt may have another name.
  given = {*fields} | ({"label", "value"} if loss.target else set())
  for task in known:
    for needed, name in TASKS[task][kind]:
      if {*needed} <= given or not fields:
        if loss.target and loss.task is None and len(known) > 1:
          raise ValueError(f"--target {loss.target} needs --task: what is it, a label to classify by or a value?")
        return "gist" if loss.guide is not None and name == "mnrl" else name
  takes = "; ".join(f"{task}: {' or '.join(', '.join(needed) or 'texts' for needed, _ in TASKS[task][kind])}"
                    for task in known)
  raise ValueError(f"data of {', '.join(fields)} are none that this {kind} learns from ({takes}); see `jaxft formats`")
