"""The places that a run reads, which its own folder must lie apart from."""

from jaxft.data.sources import is_place
from jaxft.formats.presets import PRESETS
from jaxft.hub import on_hub
from jaxft.recipes.options import Finetune
from jaxft.stores.store import is_url


def _given(options: Finetune) -> tuple[dict[str, str], dict[str, str]]:
  """Models and data sets, by option."""
  models = {"model": options.model, "guide": options.loss.guide, "teacher": options.loss.teacher,
            **{f"reference {i + 1}": name for i, name in enumerate(options.loss.reference)}}
  there = lambda own: {name: x for name, x in own.items() if x is not None}
  return there(models), there({"data": options.data, "control": options.examples.control})


def places(options: Finetune) -> dict[str, str]:
  """The files and folders on disk that a run reads; presets and data sets of a name lie in the cache folder."""
  models, data = _given(options)
  named = lambda m: m.partition(":")[0] in PRESETS or on_hub(m) or is_url(m)
  return {name: m for name, m in models.items() if not named(m)} | {name: d for name, d in data.items() if is_place(d)}


def check_urls_apart(out: str, options: Finetune) -> None:
  """Raises ValueError where a run in an object store lies in what it reads there, or the other way around."""
  models, data = _given(options)
  own = out.rstrip("/") + "/"
  for name, given in (models | data).items():
    if is_url(given) and (own.startswith(given.rstrip("/") + "/") or f"{given}/".startswith(own)):
      raise ValueError(f"out must lie apart from what is read: {out} and the {name} {given} do not; choose another")
