"""A run's checkpoint as the model that it stands for: what is frozen is made again from the model that was tuned."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.formats.pretrained import Pretrained
from jaxft.formats.safetensors import read_json
from jaxft.leaves import materialize
from jaxft.losses import Mean
from jaxft.recipes import run_folder
from jaxft.recipes.model import load
from jaxft.recipes.options import Adaptation, Examples, Finetune, Loss, Optimization
from jaxft.recipes.output import fits_form, head_of
from jaxft.recipes.run import transform_of
from jaxft.recipes.run_loss import loss_name
from jaxft.training import Checkpoints, Recipe, checksum, init_state
from jaxft.transforms import ParamTransform

# Where `transform_of` puts the head among what trains: a first part of its own, whatever the method.
HEAD = "trainable.0.output."
GROUPS = {"method": Adaptation, "examples": Examples, "loss": Loss, "optimization": Optimization}


class Restored(NamedTuple):
  """A checkpoint.

  Attributes:
    options: of its run.
    step: of it.
    model: the tuned one, with its head.
    transform, frozen, trainable: what makes it, for an adapter.
  """

  options: Finetune
  step: int
  model: Pretrained
  transform: ParamTransform
  frozen: Any
  trainable: Any


def run_of(source: str | Path) -> tuple[Path, int | None] | None:
  """The folder of a run and the step that is meant, from that folder, its checkpoints' or one of these; else None."""
  path = Path(source)
  step = int(path.name) if path.name.isdigit() and path.parent.name == run_folder.CHECKPOINTS else None
  folder = path.parent.parent if step is not None else path.parent if path.name == run_folder.CHECKPOINTS else path
  try:
    saved = read_json(folder / run_folder.CONFIG)
  except (OSError, ValueError):
    return None
  return (folder, step) if all(name in saved for name in run_folder.OWN) else None


def options_of(folder: Path) -> Finetune:
  """The options that a run's `config.json` holds; those that say where and how it computes are the usual ones.

  Raises:
    ValueError: the file is not that of a run of this version.
  """
  saved = read_json(folder / run_folder.CONFIG)
  groups: dict[str, Any] = {}
  for name, kind in GROUPS.items():
    fields = {field.name for field in dataclasses.fields(kind)}
    groups[name] = kind(**{key: tuple(x) if isinstance(x, list) else x for key, x in saved.items() if key in fields})
  return Finetune(saved["model"], saved["data"], **groups)


def restore_run(folder: Path, step: int | None = None) -> Restored:
  """The model of a run's checkpoint, the newest if no step is named.

  Raises:
    ValueError: there is no such checkpoint, it is damaged, or the model that was tuned is another by now.
    OSError: a file cannot be read.
  """
  options = options_of(folder)
  if not (folder / run_folder.CHECKPOINTS).is_dir():
    raise ValueError(f"{folder} holds no checkpoint")
  with Checkpoints(folder / run_folder.CHECKPOINTS, max_to_keep=None) as saved:
    if not saved.steps:
      raise ValueError(f"{folder} holds no checkpoint")
    step = saved.steps[-1] if step is None else step
    arrays, _ = saved.read(step)
  model = load(options.model)
  inputs = read_json(folder / run_folder.INPUTS)
  if inputs.get("model's weights") != checksum(model.params):
    raise ValueError(f"{options.model} is no longer the model that the run in {folder} began with: its weights differ")
  output = {name: x for name, x in arrays.items() if name.startswith(HEAD)}
  params = dict(model.params)
  if output:
    params["output"] = _nested(
        {name.removeprefix(HEAD): jnp.zeros_like(x) for name, x in output.items()})
  transform = transform_of(options.method, model.config, "cross_entropy" if output else "")
  recipe = Recipe(lambda params, batch, key: (Mean.zero(), {}), transform, optax.identity())
  state, frozen = init_state(jax.random.key(options.optimization.seed), params, recipe)
  trainable = _filled(state.trainable, arrays, folder)
  tuned = materialize(transform.join(frozen, trainable))
  head = None
  if output:
    head = head_of(tuned.pop("output"), _target(options, model))
    if not fits_form(head, model.config):
      raise ValueError(f"the head of the run in {folder} has no form in transformers; finetune writes it to model/")
  return Restored(options, step, dataclasses.replace(model, params=tuned, head=head), transform, frozen, trainable)


def _filled(trainable: Any, arrays: dict[str, Any], folder: Path) -> Any:
  """What trains, with the checkpoint's numbers in it."""
  leaves, structure = jax.tree_util.tree_flatten_with_path({"trainable": trainable})
  names = [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in leaves]
  there = {name for name in arrays if name.startswith("trainable.")}
  differ = sorted({*names} ^ there) + [
      name for name, (_, x) in zip(names, leaves, strict=True) if name in there and arrays[name].shape != x.shape]
  if differ:
    raise ValueError(f"the checkpoint in {folder} holds other arrays than its options make: {', '.join(differ[:3])}")
  return jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in names])["trainable"]


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
  out: dict[str, Any] = {}
  for name, x in flat.items():
    *parents, last = name.split(".")
    inner = out
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[last] = x
  return out


def _target(options: Finetune, model: Pretrained) -> Any:
  """The classes or the scale of what a run learns, from its data as it read them."""
  from jaxft.recipes.distillation.teacher import teacher_of
  from jaxft.recipes.examples import read_splits
  from jaxft.recipes.forms.targets import target_of
  from jaxft.recipes.guess import with_loss

  splits = read_splits(options.data or "", options.examples, others=bool(options.loss.reward))
  options, _ = with_loss(options, model.kind, [*splits.train[0]])
  return target_of(options, model, splits, teacher_of(options, loss_name(options.loss.loss, model.kind), model))
