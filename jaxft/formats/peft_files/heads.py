"""The head of a classifier in PEFT's files: modules that are saved whole, beside an adapter of the model under it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxft.formats.heads import Head, HeadForm, head_form, head_tensors
from jaxft.formats.huggingface_config import Config, TextConfig
from jaxft.formats.peft_files.tied import PREFIX

# PEFT adds both names to the settings of every adapter of a classifier, whichever of them the model has.
_NAMES = ("classifier", "score")


def with_head(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], head: Head, config: Config
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The settings and tensors of an adapter with those of a head, whose class in transformers holds the model deeper.

  Raises:
    ValueError: transformers has no such class, or the head is of another form.
  """
  form = head_form(config)
  if form is None:
    raise ValueError(f"head must be None beside a model for which transformers has no such class; got {config!r:.80}")
  saved = sorted({*(settings.get("modules_to_save") or ()), *_modules(form)})
  deeper = {_deeper(name, form): x for name, x in tensors.items()}
  more = {f"{PREFIX}{name}": x for name, x in head_tensors(head, form).items()}
  task = "SEQ_CLS" if isinstance(config, TextConfig) else None
  return {**settings, "modules_to_save": saved, "task_type": task}, {**deeper, **more}


def without_form(tensors: Mapping[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
  """The tensors of an adapter as they are named on the model alone, without the head on top of it."""
  if (form := head_form(config)) is None:
    return dict(tensors)
  inner = PREFIX + form.prefix
  return {name.replace(inner, PREFIX, 1) if name.startswith(inner) else name: x for name, x in tensors.items()}


def split_head(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], config: Config, said: Mapping[str, Any],
    dense: Mapping[str, Any] | None,
) -> tuple[Head | None, dict[str, Any], dict[str, np.ndarray]]:
  """The head of an adapter, and its settings and tensors without it.

  Args:
    settings, tensors: of the file.
    config: of the model.
    said: the `config.json` beside the adapter, which names classes; empty where there is none.
    dense: the layer before the last, of the model, where the file leaves it as it is there.

  Raises:
    ValueError: the head is broken or goes with another model, or the layer before it is nowhere.
  """
  form = head_form(config)
  if form is None or f"{PREFIX}{form.out}.weight" not in tensors:
    return None, dict(settings), dict(tensors)
  left = dict(tensors)

  def layer(module: str) -> dict[str, np.ndarray] | None:
    found = {part: left.pop(f"{PREFIX}{module}.{part}", None) for part in ("weight", "bias")}
    if found["weight"] is None and found["bias"] is None:
      return None
    if found["weight"] is None or found["bias"] is None or found["weight"].ndim != 2 or found["bias"].shape != (
        len(found["weight"]),):
      raise ValueError(f"{module} must have a weight and a bias that fit together; got "
                       f"{ {part: None if x is None else x.shape for part, x in found.items()} }")
    return {"kernel": found["weight"].T, "bias": found["bias"]}

  out, before = layer(form.out), None
  assert out is not None
  if form.dense is not None and (before := layer(form.dense) or dense) is None:
    raise ValueError(f"the file has no {form.dense}, which the head reads, and leaves it as the model has it: load the "
                     "folder with jaxft.load, for which the model is read too, or save it among modules_to_save")
  if out["kernel"].shape[0] != config.dim:
    raise ValueError(f"{form.out} must read {config.dim} numbers; got {out['kernel'].shape[0]}")
  if before is not None and np.shape(before["kernel"]) != (config.dim, config.dim):
    raise ValueError(f"{form.dense} must be of shape {(config.dim, config.dim)}; got {np.shape(before['kernel'])}")
  own = [form.out, *([] if form.dense is None else [form.dense]), *_modules(form), *_NAMES]
  saved = settings.get("modules_to_save")
  kept = saved if not isinstance(saved, list) else [
      name for name in saved if not any(module == name or module.endswith(f".{name}") for module in own)]
  head = Head(out["kernel"], out["bias"], before, _classes(len(out["bias"]), said))
  return head, {**settings, "modules_to_save": kept or None}, left


def _classes(number: int, said: Mapping[str, Any]) -> tuple[str, ...]:
  """The names of the classes, which `config.json` may tell; a single output is a number."""
  labels = said.get("id2label")
  if number == 1 or said.get("problem_type") == "regression":
    return ()
  if isinstance(labels, dict) and sorted(labels) == sorted(map(str, range(number))):
    return tuple(str(labels[str(i)]) for i in range(number))
  return tuple(f"LABEL_{i}" for i in range(number))


def _modules(form: HeadForm) -> list[str]:
  """The modules of a head, each once, under names that no module of the model ends in."""
  top = form.out.partition(".")[0]
  dense = [] if form.dense is None else [form.dense.removeprefix(form.prefix)]
  return [top, *(name for name in dense if not name.startswith(f"{top}."))]


def _deeper(name: str, form: HeadForm) -> str:
  return f"{PREFIX}{form.prefix}{name.removeprefix(PREFIX)}" if name.startswith(PREFIX) else name
