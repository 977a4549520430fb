"""Which loss a run has, which options it reads, and what these set."""

import dataclasses

from jaxft.checks import one_of, pick
from jaxft.recipes.distillation import losses as distilled
from jaxft.recipes.distillation.losses import DISTILLATIONS
from jaxft.recipes.options import Finetune, Loss
from jaxft.recipes.preference.losses import PREFERENCES, Settings, reads
from jaxft.recipes.preference.objective import settings_of
from jaxft.recipes.rl.losses import POLICY_LOSSES, PolicySettings, policy_settings, reads as read_by_policy

# By kind of model; the first where none is named.
LOSSES = {
    "encoder": ("mnrl", "gist", "cosent", "cross_entropy", "mse", "supcon", *distilled.of_kind("encoder")),
    "vision": ("cross_entropy", "mse", "supcon", *distilled.of_kind("vision")),
    "encoder-decoder": ("sft",),
    "decoder": ("sft", *PREFERENCES, *POLICY_LOSSES, *distilled.of_kind("decoder"))}
READ_BY_LOSS = {
    "gist": ("guide", "temperature", "margin"), "mnrl": ("temperature",), "cosent": ("temperature",),
    "cross_entropy": ("target", "head"), "mse": ("target", "head"), "supcon": ("target", "temperature"), "sft": (),
    **{name: reads(name) for name in PREFERENCES}, **{name: read_by_policy(name) for name in POLICY_LOSSES},
    **{name: distilled.reads(name) for name in DISTILLATIONS}}
# The usual field of those that learn one; of kd and value_mse it is what the student is measured by.
TARGETS = {"cross_entropy": "label", "supcon": "label", "mse": "value", "kd": "label", "value_mse": "value"}
WITH_OUTPUT = ("cross_entropy", "mse", "kd", "value_mse")
OF_PAIRS = ("mnrl", "gist")
BY_TOKENS = ("sft", "gkd")  # each example is learnt by itself, token by token


def target_field(loss: Loss, name: str) -> str:
  """The field of the records that the loss of this name learns."""
  return loss.target or TARGETS[name]


def check_loss(loss: Loss, name: str) -> None:
  """Raises ValueError for an option of the loss that the loss of this name does not read, or one that it lacks."""
  flag = lambda name: f"--{name.replace('_', '-')}"
  ignored = [flag(f.name) for f in dataclasses.fields(loss)
             if f.name not in ("loss", "task", *READ_BY_LOSS[name]) and getattr(loss, f.name) != f.default]
  if ignored:
    reads = ", ".join(map(flag, READ_BY_LOSS[name])) or "no option"
    raise ValueError(f"loss {name} does not read {', '.join(ignored)}; it reads {reads}")
  if name in DISTILLATIONS and loss.teacher is None:
    raise ValueError(f"loss {name} needs --teacher: the preset or folder of the model to learn from")


def loss_name(name: str | None, kind: str) -> str:
  """The checked name of a loss for a kind of model, as "encoder"; None takes the kind's first loss."""
  known = pick("kind of model", kind, LOSSES)
  if name is not None:
    one_of(f"loss with this {kind}", name, known)
  return name or known[0]


def early_name(loss: Loss) -> str | None:
  """The name of the loss, as far as the options tell it: what a run by rewards is, or may be left to the data."""
  by_reward = loss.loss is None and (loss.task == "rl" or loss.reward)
  return "grpo" if by_reward else loss.loss


def compares_all(loss: str) -> bool:
  """Whether a loss compares all examples of a batch, which its objective then cuts in micro-batches itself."""
  return PREFERENCES[loss].whole if loss in PREFERENCES else (
      loss not in (*BY_TOKENS, *WITH_OUTPUT, *POLICY_LOSSES))


def rows_of(run: Finetune, loss: str | None) -> int:
  """The rows of an update: examples, or the answers to all prompts."""
  size = run.optimization.batch_size
  return size * run_policy(run.loss, loss).group_size if loss in POLICY_LOSSES else size


def run_policy(loss: Loss, name: str) -> PolicySettings:
  """What the options and, where they say nothing, the table of losses set of a policy loss."""
  return policy_settings(name, **{f: getattr(loss, f) for f in PolicySettings._fields})


def preference_settings(loss: Loss, name: str) -> Settings:
  """What the options and, where they say nothing, the table of losses set of a preference loss."""
  given = {f: getattr(loss, f) for f in Settings._fields}
  return settings_of(name, **given)
