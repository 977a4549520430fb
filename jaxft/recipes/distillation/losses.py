"""Losses of distillation by name, one table: what of the teacher each takes, and its sources. It imports no JAX."""

from typing import NamedTuple

NEW_TOKENS = 128  # of a student's own answer, where nothing is said
OF_HEADS = ("classes", "numbers")


class Distillation(NamedTuple):
  """A loss.

  Attributes:
    of: what is learnt: "tokens" of decoders, "classes" of classifiers, "numbers" of regressors, "vectors" of encoders.
    temperature: the usual one; None: it takes none.
    arxiv: of its sources.
    beta: GKD's usual one; None: it takes none.
  """

  of: str
  temperature: float | None
  arxiv: tuple[str, ...]
  beta: float | None = None


DISTILLATIONS: dict[str, Distillation] = {
    "gkd": Distillation("tokens", 1.0, ("2306.13649",), beta=0.5),
    "kd": Distillation("classes", 2.0, ("1503.02531",)),
    "value_mse": Distillation("numbers", None, ()),
    "similarity_kl": Distillation("vectors", 0.05, ("1503.02531", "2112.01488")),
    "similarity_mse": Distillation("vectors", None, ()),
    "margin_mse": Distillation("vectors", None, ("2010.02666",)),
    "embedding_mse": Distillation("vectors", None, ("2004.09813",)),
}


def of_kind(kind: str) -> tuple[str, ...]:
  """The losses for a kind of model."""
  learnt = {"decoder": ("tokens",), "encoder": ("vectors", "classes", "numbers"), "vision": (
      "classes", "numbers")}[kind]
  return tuple(name for what in learnt for name, loss in DISTILLATIONS.items() if loss.of == what)


def reads(name: str) -> tuple[str, ...]:
  """The options that a loss of this name reads."""
  loss = DISTILLATIONS[name]
  more = ("on_policy", "max_new_tokens") if loss.of == "tokens" else ()
  out = ["teacher", *more, *(option for option in ("beta", "temperature") if getattr(loss, option) is not None)]
  return (*out, *(("target", "head") if loss.of in OF_HEADS else ()))


def setting(name: str, option: str, given: float | None) -> float:
  """What a run sets of a loss, or its usual value."""
  return getattr(DISTILLATIONS[name], option) if given is None else given
