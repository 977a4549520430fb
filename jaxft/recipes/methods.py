"""Methods by name, one table: how each makes its transform, what it adapts, its usual rate and its sources.

The texts of the command line are made from it. It imports no JAX: transforms are made when they are asked for.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from jaxft.checks import one_of, pick
from jaxft.recipes.method_expression import parts_of

if TYPE_CHECKING:
  from jaxft.recipes.options import Adaptation
  from jaxft.transforms import ParamTransform

MATRICES = "layers/**/kernel"
# Words for what most models have, in place of a glob; `matrices` is each model's own.
WORDS = {"matrices": MATRICES, "norms": "**/{attention_norm,mlp_norm,norm}/*", "biases": "**/bias",
         "embeddings": "embed/**"}
Make = Callable[[Any, "Adaptation", Any], "ParamTransform"]


class Method(NamedTuple):
  """A method.

  Attributes:
    kind: what it trains: "whole weights", "low rank", "structured", "multiplicative" or "entries".
    make: `(jaxft.transforms, options, select) -> transform`.
    learning_rate: its usual peak.
    select: the globs that it takes where none are given, and what they choose; None: they must be given; "": the
      method's own default.
    arxiv: of its sources.
    reads_select: False where it has no choice to make.
  """

  kind: str
  make: Make
  learning_rate: float
  select: str | None
  arxiv: tuple[str, ...] = ()
  reads_select: bool = True


def _whole(make: Make, select: str | None, *arxiv: str, reads_select: bool = True) -> Method:
  return Method("whole weights", make, 2e-5, select, arxiv, reads_select)


def _adapter(kind: str, make: Make, *arxiv: str) -> Method:
  return Method(kind, make, 2e-4, MATRICES, arxiv)


def _lora(t: Any, m: "Adaptation", select: Any, **options: Any) -> "ParamTransform":
  return t.lora(select, rank=m.rank, alpha=m.alpha, dropout=m.dropout, **options)


def _qlora(t: Any, m: "Adaptation", select: Any) -> "ParamTransform":
  return t.chain(_lora(t, m, select), t.quantize(select, format="nf4", double=True))


def _half(t: Any, m: "Adaptation", select: Any) -> "ParamTransform":
  del select
  import jax

  from jaxft.choices import random_module_mask

  return t.train(partial(random_module_mask, jax.random.key(m.draw)))


# Rates stand to that of lora as the best of `which-method`, experiments/results, within a step of its grid.
METHODS: dict[str, Method] = {
    "full": _whole(lambda t, m, s: t.full(), "", reads_select=False),
    "freeze": _whole(lambda t, m, s: t.freeze(s), "embed/**"),
    "train": _whole(lambda t, m, s: t.train(s), None),
    "hft": _whole(_half, "", "2404.18466", reads_select=False),
    "bitfit": Method("whole weights", lambda t, m, s: t.bitfit(s), 2e-4, "**/bias", ("2106.10199",)),
    "norm_tuning": Method(
        "whole weights", lambda t, m, s: t.norm_tuning(*([s] if s else [])), 2e-4, "", ("2312.11420",)),
    "lora": _adapter("low rank", _lora, "2106.09685"),
    "rslora": _adapter("low rank", lambda t, m, s: _lora(t, m, s, rank_stabilized=True), "2106.09685", "2312.03732"),
    "qlora": _adapter("low rank", _qlora, "2106.09685", "2305.14314"),
    "dora": _adapter(
        "low rank", lambda t, m, s: t.dora(s, rank=m.rank, alpha=m.alpha, dropout=m.dropout), "2402.09353"),
    "pissa": _adapter("low rank", lambda t, m, s: _lora(t, m, s, init=t.pissa), "2404.02948"),
    "olora": _adapter("low rank", lambda t, m, s: _lora(t, m, s, init=t.olora), "2406.01775"),
    "mica": _adapter("low rank", lambda t, m, s: _lora(t, m, s, init=t.mica, train="a"), "2604.01694"),
    "vera": _adapter("low rank", lambda t, m, s: t.vera(s, rank=m.rank), "2310.11454"),
    "delora": _adapter("low rank", lambda t, m, s: t.delora(s, rank=m.rank), "2503.18225"),
    "rand_lora": _adapter("low rank", lambda t, m, s: t.rand_lora(s, rank=m.rank, alpha=m.alpha), "2502.00987"),
    "loha": _adapter("structured", lambda t, m, s: t.loha(s, rank=m.rank, alpha=m.alpha), "2108.06098"),
    "lokr": _adapter("structured", lambda t, m, s: t.lokr(s, rank=m.rank, alpha=m.alpha), "2309.14859"),
    "hira": _adapter("structured", lambda t, m, s: t.hira(s, rank=m.rank)),
    "miss": _adapter("structured", lambda t, m, s: t.miss(s, rank=m.rank), "2409.15371"),
    "fourier_ft": _adapter("structured", lambda t, m, s: t.fourier_ft(s), "2405.03003"),
    "oft": _adapter("multiplicative", lambda t, m, s: t.oft(s), "2306.07280"),
    "boft": _adapter("multiplicative", lambda t, m, s: t.boft(s), "2311.06243"),
    "hra": _adapter("multiplicative", lambda t, m, s: t.hra(s, rank=m.rank), "2405.17484"),
    "road": _adapter("multiplicative", lambda t, m, s: t.road(s), "2409.00119"),
    "ia3": Method(
        "multiplicative", lambda t, m, s: t.ia3(s, None) if s else t.ia3(), 6e-3, "", ("2205.05638",)),
    "shira": _adapter("entries", lambda t, m, s: t.shira(s, rank=m.rank), "2406.13175"),
}


def make_transform(options: "Adaptation", matrices: str = MATRICES) -> "ParamTransform":
  """The transform of the options, which may join several methods; see `parts_of`.

  Args:
    options: what trains.
    matrices: the glob of a model's own matrices, which methods adapt where none are selected.

  Raises:
    ValueError: an unknown method, one that needs `select` without it, an option given that the method does not read, or
      a method that cannot train beside quantized matrices.
  """
  from jaxft import transforms

  parts = parts_of(options)
  made = [_made(transforms, dataclasses.replace(part, quantize=None), matrices) for part in parts]
  if options.quantize is not None:
    made.append(_quantized(transforms, options.quantize, parts, matrices))
  return made[0] if len(made) == 1 else transforms.chain(*made)


def _made(t: Any, options: "Adaptation", matrices: str) -> "ParamTransform":
  """The transform of one method, which reads all options that are given."""
  method = pick("method", options.method, METHODS)
  select = _select(options, matrices)
  if select is None:
    raise ValueError(f"method {options.method} needs --select; got none")
  seen = _Seen(options)
  transform = method.make(t, cast("Adaptation", seen), select)
  read = seen.read | ({"select"} if method.reads_select else set()) | (
      {"quantize"} if _quantizable(method, options.method) else set())
  ignored = [f.name for f in dataclasses.fields(options)
             if f.name not in read | {"method"} and getattr(options, f.name) != f.default]
  if ignored:
    raise ValueError(f"method {options.method} does not read {', '.join(f'--{name}' for name in ignored)}; it reads "
                     f"{', '.join(f'--{name}' for name in sorted(read)) or 'no option'}")
  return transform


def _select(options: "Adaptation", matrices: str) -> Any:
  """The globs of a method's options, or its usual ones; "" where it has its own, None where they must be given."""
  words = WORDS | {"matrices": matrices}
  if options.select:
    return [words.get(word, word) for word in options.select]
  usual = METHODS[options.method].select
  return [matrices if usual == MATRICES else usual] if usual else usual


def _quantized(t: Any, format: str, parts: Sequence["Adaptation"], matrices: str) -> "ParamTransform":
  """What keeps the matrices in few bits beside which the methods train."""
  from jaxft.transforms.quantize import FORMATS

  one_of("quantize", format, FORMATS)
  for part in parts:
    if part.method == "qlora" or not any(_quantizable(METHODS[p.method], p.method) for p in parts):
      raise ValueError(f"quantize goes with a method that leaves its matrices frozen; {part.method} "
                       f"{'quantizes them itself' if part.method == 'qlora' else 'trains them'}")
  selected = [_select(p, matrices) or [matrices] for p in parts if _quantizable(METHODS[p.method], p.method)]
  return t.quantize([glob for globs in selected for glob in globs], format=format)


def _quantizable(method: Method, name: str) -> bool:
  """Whether the method leaves matrices frozen that are not in few bits already."""
  return method.kind not in ("whole weights", "entries") and name != "qlora"


class _Seen:
  """The options as a method sees them, and which of them it looks at."""

  def __init__(self, options: "Adaptation"):
    self._options, self.read = options, set()

  def __getattr__(self, name: str) -> Any:
    self.read.add(name)
    return getattr(self._options, name)


def usual_rate(options: "Adaptation") -> float:
  """The usual peak learning rate of a method; of several joined, that of the first."""
  return pick("method", parts_of(options)[0].method, METHODS).learning_rate


def sources(options: "Adaptation") -> list[str]:
  """The arXiv ids of the methods that the options join."""
  found = [source for part in parts_of(options) for source in METHODS[part.method].arxiv]
  return list(dict.fromkeys(found))


def names_by_kind() -> str:
  """The methods' names for a help page, grouped by kind."""
  kinds: dict[str, list[str]] = {}
  for name, method in METHODS.items():
    kinds.setdefault(method.kind, []).append(name)
  return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items()) + "."


def rates_by_method() -> str:
  """The usual learning rates for a help page."""
  rates: dict[float, list[str]] = {}
  for name, method in METHODS.items():
    rates.setdefault(method.learning_rate, []).append(name)
  most = max(rates, key=lambda rate: len(rates[rate]))
  others = [f"{rate:g} for {', '.join(names)}" for rate, names in rates.items() if rate != most]
  return ", ".join([*others, f"{most:g} for all others"])


def selected_by_default() -> str:
  """What methods adapt where no globs are given, for a help page."""
  globs: dict[str, list[str]] = {}
  for name, method in METHODS.items():
    if method.select:
      globs.setdefault(method.select, []).append(name)
  most = max(globs, key=lambda glob: len(globs[glob]))
  others = [f"{', '.join(names)}: {glob}" for glob, names in globs.items() if glob != most]
  needed = [name for name, method in METHODS.items() if method.select is None]
  return "; ".join([*others, f"{', '.join(needed)}: must be given", f"all others that adapt matrices: {most}"])
