"""The names of the command line and what they stand for. Only here does a name choose a function."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxft.checks import nearest
from jaxft.choices import random_module_mask
from jaxft.cli.options import Method, Optimization
from jaxft.transforms import (
  ParamTransform,
  bitfit,
  boft,
  chain,
  delora,
  dora,
  fourier_ft,
  freeze,
  full,
  hira,
  hra,
  ia3,
  loha,
  lokr,
  lora,
  low_rank,
  mica,
  miss,
  norm_tuning,
  oft,
  olora,
  pissa,
  rand_lora,
  road,
  shira,
  train,
  vera,
)
from jaxft.transforms.low_rank.lora import FactorInit
from jaxft.transforms.quantize import quantize

T = TypeVar("T")


class Choice(NamedTuple):
  """A method: how the options make its transform, its usual peak learning rate, its sources."""

  make: Callable[[Method], ParamTransform]
  learning_rate: float
  citations: tuple[str, ...] = ()


LORA = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685"
RSLORA = "Kalajdzievski 2023, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, arXiv 2312.03732"
QLORA = "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs, arXiv 2305.14314"

LOSS_CITATIONS = {
    "gist": ("Solatorio 2024, GISTEmbed: Guided In-sample Selection of Training Negatives, arXiv 2402.16829",),
    "mnrl": ("Henderson et al. 2017, Efficient Natural Language Response Suggestion, arXiv 1705.00652",),
}


def pick(what: str, name: str, table: Mapping[str, T]) -> T:
  """The entry of a name; ValueError with the nearest names where there is none."""
  if name not in table:
    raise ValueError(f"{what} must be one of {', '.join(table)}; got {name!r}; {nearest(name, list(table))}")
  return table[name]


def _select(m: Method, default: str | None) -> list[str]:
  if not m.select and default is None:
    raise ValueError(f"method {m.method} needs --select; got none")
  return list(m.select) or [default]


def _lora(m: Method, **options: Any) -> ParamTransform:
  return lora(_matrices(m), rank=m.rank, alpha=m.alpha, dropout=m.dropout, **options)


def _matrices(m: Method) -> list[str]:
  return _select(m, "layers/**/kernel")


def _start(m: Method, init: FactorInit) -> ParamTransform:
  return low_rank(_matrices(m), rank=m.rank, scale=m.alpha / m.rank, dropout=m.dropout, init=init)


def _adapter(make: Callable[[Method], ParamTransform], *arxiv: str) -> Choice:
  return Choice(make, 2e-4, tuple(f"arXiv {number}" for number in arxiv))


METHODS: dict[str, Choice] = {
    "full": Choice(lambda m: full(), 2e-5),
    "freeze": Choice(lambda m: freeze(_select(m, "embed/**")), 2e-5),
    "train": Choice(lambda m: train(_select(m, None)), 2e-5),
    "lora": Choice(_lora, 2e-4, (LORA,)),
    "rslora": Choice(lambda m: _lora(m, rank_stabilized=True), 2e-4, (LORA, RSLORA)),
    "qlora": Choice(
        lambda m: chain(_lora(m), quantize(_matrices(m), format="nf4", double=True)), 2e-4, (LORA, QLORA)),
    "dora": _adapter(lambda m: dora(_matrices(m), rank=m.rank, alpha=m.alpha, dropout=m.dropout), "2402.09353"),
    "pissa": _adapter(lambda m: _start(m, pissa), "2404.02948"),
    "olora": _adapter(lambda m: _start(m, olora), "2406.01775"),
    "mica": _adapter(lambda m: mica(_matrices(m), rank=m.rank, alpha=m.alpha), "2604.01694"),
    "vera": _adapter(lambda m: vera(_matrices(m), rank=m.rank), "2310.11454"),
    "delora": _adapter(lambda m: delora(_matrices(m), rank=m.rank), "2503.18225"),
    "rand_lora": _adapter(lambda m: rand_lora(_matrices(m), rank=m.rank, alpha=m.alpha), "2502.00987"),
    "loha": _adapter(lambda m: loha(_matrices(m), rank=m.rank, alpha=m.alpha), "2108.06098"),
    "lokr": _adapter(lambda m: lokr(_matrices(m), rank=m.rank, alpha=m.alpha), "2309.14859"),
    "hira": _adapter(lambda m: hira(_matrices(m), rank=m.rank)),
    "miss": _adapter(lambda m: miss(_matrices(m), rank=m.rank), "2409.15371"),
    "fourier_ft": _adapter(lambda m: fourier_ft(_matrices(m)), "2405.03003"),
    "oft": _adapter(lambda m: oft(_matrices(m)), "2306.07280"),
    "boft": _adapter(lambda m: boft(_matrices(m)), "2311.06243"),
    "hra": _adapter(lambda m: hra(_matrices(m), rank=m.rank), "2405.17484"),
    "road": _adapter(lambda m: road(_matrices(m)), "2409.00119"),
    "ia3": _adapter(lambda m: ia3(m.select, None) if m.select else ia3(), "2205.05638"),
    "shira": _adapter(lambda m: shira(_matrices(m), rank=m.rank), "2406.13175"),
    "bitfit": _adapter(lambda m: bitfit(_select(m, "**/bias")), "2106.10199"),
    "norm_tuning": _adapter(lambda m: norm_tuning(m.select) if m.select else norm_tuning(), "2312.11420"),
    "hft": Choice(lambda m: train(partial(random_module_mask, jax.random.key(m.draw))), 2e-5, ("arXiv 2404.18466",)),
}

LOSSES = {"encoder": ("gist", "mnrl"), "decoder": ("sft",)}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# (peak, steps after the warm-up) -> schedule
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
}


def loss_name(name: str | None, family: str) -> str:
  """The loss that a name stands for with a model of this family, "encoder" or "decoder"; its first where None."""
  known = LOSSES[family]
  return known[0] if name is None else pick(f"loss with this {family}", name, {loss: loss for loss in known})


def learning_rate(o: Optimization, method: Method) -> float:
  """The peak learning rate, the method's usual one where none is given."""
  return pick("method", method.method, METHODS).learning_rate if o.learning_rate is None else o.learning_rate


def make_optimizer(o: Optimization, method: Method, steps: int) -> optax.GradientTransformation:
  """AdamW with clipping, warm-up and schedule. It sees only what trains.

  Raises:
    ValueError: an unknown schedule, or a value out of its range.
  """
  after = pick("schedule", o.schedule, SCHEDULES)
  peak = learning_rate(o, method)
  for name, value, good in (
      ("learning_rate", peak, peak > 0), ("warmup", o.warmup, 0 <= o.warmup < 1),
      ("weight_decay", o.weight_decay, o.weight_decay >= 0), ("clip_norm", o.clip_norm, o.clip_norm >= 0),
  ):
    if not (good and math.isfinite(value)):
      raise ValueError(f"{name} is out of its range (learning_rate > 0, 0 <= warmup < 1, others >= 0, all finite); "
                       f"got {value}")
  rising = round(o.warmup * steps)
  falling = after(peak, max(steps - rising, 1))
  # From peak / rising and not from 0, so that the first step moves.
  rates = optax.linear_schedule(peak / rising, peak, rising - 1) if rising > 1 else optax.constant_schedule(peak)
  schedule = optax.join_schedules([rates, falling], [rising]) if rising else falling
  adam = optax.adamw(schedule, weight_decay=o.weight_decay)
  return optax.chain(optax.clip_by_global_norm(o.clip_norm), adam) if o.clip_norm else adam
