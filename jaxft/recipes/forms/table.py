"""Which form each loss learns from, and a run's data made ready by it."""

from collections.abc import Mapping

from jaxft.recipes.distillation.form import TAUGHT
from jaxft.recipes.distillation.losses import DISTILLATIONS
from jaxft.recipes.encoder_decoder.form import ANSWERS
from jaxft.recipes.forms.form import Form, Prepared, Reading
from jaxft.recipes.forms.pairs import PAIRS
from jaxft.recipes.forms.scored_pairs import SCORED_PAIRS
from jaxft.recipes.forms.targets import LABELLED
from jaxft.recipes.forms.texts import TEXTS
from jaxft.recipes.preference.form import RESPONSES
from jaxft.recipes.preference.losses import PREFERENCES
from jaxft.recipes.rl.form import PROMPTS
from jaxft.recipes.rl.losses import POLICY_LOSSES
from jaxft.recipes.run_loss import OF_PAIRS

_FORMS: Mapping[str, Form] = {
    "mnrl": PAIRS, "gist": PAIRS, "cosent": SCORED_PAIRS, "cross_entropy": LABELLED, "mse": LABELLED,
    "supcon": LABELLED,
    **dict.fromkeys(PREFERENCES, RESPONSES), **dict.fromkeys(POLICY_LOSSES, PROMPTS),
    **dict.fromkeys(DISTILLATIONS, TAUGHT)}


def form_of(loss: str, kind: str) -> Form:
  """The form that a loss has for a kind of model, both as `loss_name` has checked them."""
  if loss == "sft":
    return ANSWERS if kind == "encoder-decoder" else TEXTS
  return _FORMS[loss]


def prepare(reading: Reading) -> Prepared:
  """The records to train on, how they become batches, and how others are measured.

  Raises:
    ValueError: options that do not go together, or records that the loss does not learn from.
  """
  model, examples, loss = reading.model, reading.options.examples, reading.loss
  if model.tokenizer is None and model.kind != "vision":
    raise ValueError(f"{model.name} has no tokenizer.json, which tuning on text needs")
  if reading.several and examples.pack:
    raise ValueError("--pack is for one process: how many rows the texts of an epoch fill is known only in order")
  pairs = model.kind == "encoder" and loss in OF_PAIRS
  if examples.pack and model.kind != "decoder" and not pairs:
    raise ValueError(f"--pack is for decoders and for the losses of pairs, {', '.join(OF_PAIRS)}; got loss {loss}")
  if examples.pad and not pairs:
    raise ValueError(f"--pad is for the losses of pairs, {', '.join(OF_PAIRS)}, whose texts may share rows; got {loss}")
  return form_of(loss, model.kind).prepare(reading)
