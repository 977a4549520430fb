"""Policy losses by name, one table: what each makes of a token, how they add up, usual settings. It imports no JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

# (jaxft.losses, log-probabilities, old ones, advantages of sequences, settings, where) -> (values, weights)
Make = Callable[[Any, Any, Any, Any, Any, Any], tuple[Any, Any]]


class Policy(NamedTuple):
  """A loss.

  Attributes:
    make: the loss of each token; `settings` is that of a run, below.
    mode: of `jaxft.losses.aggregate_tokens`.
    arxiv: of its sources.
    scale: of `group_advantages`; "leave-one-out": `leave_one_out_advantages`.
    clip_low, clip_high: the usual ones; None: it has none.
    level: whose ratio it takes.
    beta: the usual weight of the divergence from the model before tuning.
    beta_of_reward: the divergence is taken off the reward, and not added to the loss.
    rate: the usual peak learning rate, as a share of the method's in supervised tuning.
  """

  make: Make
  mode: Any
  arxiv: tuple[str, ...]
  scale: Any = "group"
  clip_low: float | None = None
  clip_high: float | None = None
  level: Any = "token"
  beta: float = 0.0
  beta_of_reward: bool = False
  rate: float = 0.05


class PolicySettings(NamedTuple):
  """What a run sets; see `options.Loss`."""

  beta: float = 0.0
  clip_low: float | None = None
  clip_high: float | None = None
  temperature: float = 1.0
  group_size: int = 8
  max_new_tokens: int = 128
  passes: int = 1
  drop_cut: bool = False


USUAL = PolicySettings()
GRPO = "2402.03300"


def _clipped(level: str) -> Make:
  return lambda losses, new, old, advantages, settings, where: losses.clipped_policy_loss(
      new, old, advantages, low=settings.clip_low, high=settings.clip_high, level=level, where=where)


def _cispo(losses: Any, new: Any, old: Any, advantages: Any, settings: Any, where: Any) -> Any:
  return losses.cispo(new, old, advantages, high=settings.clip_high, where=where)


def _plain(name: str) -> Make:
  return lambda losses, new, old, advantages, settings, where: getattr(losses, name)(new, old, advantages, where=where)


BY_TOKENS, BY_SEQUENCES = "token-mean", "seq-mean-token-mean"
POLICY_LOSSES: dict[str, Policy] = {
    "grpo": Policy(_clipped("token"), BY_SEQUENCES, (GRPO,), clip_low=0.2, clip_high=0.2),
    "dr_grpo": Policy(_clipped("token"), "seq-mean-token-sum-norm", (GRPO, "2503.20783"), "none", 0.2, 0.2),
    "dapo": Policy(_clipped("token"), BY_TOKENS, (GRPO, "2503.14476"), clip_low=0.2, clip_high=0.28),
    "gspo": Policy(_clipped("sequence"), BY_SEQUENCES, (GRPO, "2507.18071"), clip_low=3e-4, clip_high=4e-4,
                   level="sequence"),
    "cispo": Policy(_cispo, BY_TOKENS, (GRPO, "2506.13585"), clip_high=5.0),
    "sapo": Policy(_plain("sapo"), BY_SEQUENCES, (GRPO, "2511.20347")),
    "vespo": Policy(_plain("vespo"), BY_TOKENS, (GRPO, "2602.10693")),
    "rloo": Policy(_clipped("sequence-sum"), BY_SEQUENCES, ("2402.14740",), "leave-one-out", 0.2, 0.2,
                   level="sequence-sum", beta=0.05, beta_of_reward=True),
}


def reads(name: str) -> tuple[str, ...]:
  """The options that a loss of this name reads."""
  clips = tuple(option for option in ("clip_low", "clip_high") if getattr(POLICY_LOSSES[name], option) is not None)
  return ("reward", "reward_weights", "marker", "beta", "temperature", *clips, "group_size", "max_new_tokens", "passes",
          "drop_cut")


def check_clips(name: str, given: Any) -> None:
  """Raises ValueError where a run is given a clip that is never read: its first update has the ratio 1 everywhere."""
  clips = [f"--{option.replace('_', '-')}" for option in ("clip_low", "clip_high")
           if option in reads(name) and getattr(given, option) is not None]
  if clips and given.passes in (None, 1):
    raise ValueError(f"{' and '.join(clips)} must come with --passes above 1: in the first update on a set of answers "
                     "the ratio that it clips is 1")


def policy_settings(name: str, **given: Any) -> PolicySettings:
  """The settings of a loss: those that are given and not None, and the usual ones for the others."""
  loss = POLICY_LOSSES[name]
  usual = USUAL._asdict() | {option: getattr(loss, option) for option in ("beta", "clip_low", "clip_high")}
  return PolicySettings(**usual | {option: value for option, value in given.items() if value is not None})
