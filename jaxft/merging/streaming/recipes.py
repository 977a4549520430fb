"""Configuration in, folder out."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.checks import check_path
from jaxft.files import check_apart
from jaxft.formats.safetensors import open_checkpoint, read_json
from jaxft.merging.streaming.companions import choose_template, output_config, write_companions
from jaxft.merging.streaming.engine import run_plan
from jaxft.merging.streaming.inputs import InputModel, adapted, open_model
from jaxft.merging.streaming.operands import Promised
from jaxft.merging.streaming.plan import Plan
from jaxft.merging.streaming.planner import make_plan
from jaxft.merging.streaming.recipe_files.configuration import Recipe, load_recipes
from jaxft.merging.streaming.recipe_files.references import Reference
from jaxft.merging.streaming.reporting.distances import far_from_base
from jaxft.merging.streaming.shards import ShardWriter
from jaxft.merging.streaming.staging import Staging, staging


@dataclasses.dataclass(frozen=True)
class Merged:
  """What was done.

  Attributes:
    plans: of each merge of the configuration, the last being that of the output.
    files: those of the output that hold tensors.
    notes: what the user should know.
  """

  plans: Sequence[Plan]
  files: Sequence[Path]
  notes: Sequence[str]


def merge(
    configuration: str | os.PathLike | Sequence[Recipe], out: str | os.PathLike, *, seed: int = 0,
    dtype: str | None = None, max_shard_bytes: int = 5 * 10**9, overwrite: bool = False, processes: int | None = None,
    allow_non_finite: bool = False,
    progress: Callable[[Plan], Callable[[int], Any]] = lambda plan: lambda nbytes: None,
    finish: Callable[[Plan, Path], Any] = lambda plan, folder: None,
) -> Merged:
  """Merges checkpoints from disk to disk, tensor by tensor, as a mergekit configuration says; without JAX.

      merge("ties.yaml", "merged/")

  The output appears whole or not at all. Arithmetic is in float32 with one rounding, at the end; random drops depend on
  the seed and on the tensor's name alone.

  >>> import tempfile
  >>> from jaxft.formats.safetensors import save_file
  >>> with tempfile.TemporaryDirectory() as at:
  ...   for name, value in {"a": 1.0, "b": 5.0}.items():
  ...     save_file({"w": np.full(2, value, np.float32)}, f"{at}/{name}.safetensors")
  ...   models = [{"model": f"{at}/{name}.safetensors", "parameters": {"weight": 0.5}} for name in "ab"]
  ...   _ = merge(parse_recipes(json.dumps({"merge_method": "linear", "models": models})), f"{at}/merged", processes=1)
  ...   open_checkpoint(f"{at}/merged").read("w")
  array([3., 3.], dtype=float32)

  Args:
    configuration: a YAML file, or its recipes. Of several the last that has no name, or else the last, makes the
      output; the others are made when it, or what it uses, names them.
    out: the folder to make.
    seed: of random drops.
    dtype: float32, float16 or bfloat16: of the output, in place of what the configuration says.
    max_shard_bytes: upper bound of a file's tensor bytes.
    overwrite: replace what is in `out`, once the merge is complete.
    processes: tensors merged at once, each in a forked process; None takes the number of processors, or one beside JAX.
    allow_non_finite: merge NaN and infinity like other numbers, in place of refusing them.
    progress: called with each plan; what it returns is called with bytes as they are done.
    finish: called with the last plan and the complete folder before that is moved to its place.

  Raises:
    FileExistsError: `out` is not empty, and not to be overwritten.
    ValueError: `out` holds or lies inside a model that is read, or holds the configuration; the configuration or a
      checkpoint is malformed, or they do not fit; a tensor of a model holds NaN or infinity, or the merge overflows its
      dtype.
    OSError: a file cannot be read or written.
  """
  check_path("out", out)
  if not isinstance(overwrite, bool):
    raise TypeError(f"overwrite must be a bool; got {overwrite!r:.60}")
  recipes = in_order(_recipes(configuration))
  _check_apart(Path(out), configuration, recipes)
  plans: list[Plan] = []
  notes: list[str] = []
  files: list[str] = []
  made: dict[str, Path] = {}
  with staging(Path(out), overwrite=overwrite) as stage:
    for recipe in recipes:
      last = recipe is recipes[-1]
      models = {r: open_model(r, made.get(r.model)) for r in recipe.models}
      plan = make_plan(recipe, models, seed=seed, dtype=dtype if last else None)
      plans.append(plan)
      notes += [*plan.notes, *far_from_base(plan)]
      folder, files, more = _run(
          plan, stage, "output" if last else f"merge-{recipe.name}", max_shard_bytes, processes, allow_non_finite,
          progress(plan))
      notes += more
      made[recipe.name or ""] = folder
    output = made[recipes[-1].name or ""]
    finish(plans[-1], output)
    stage.commit(output)
  return Merged(plans, [stage.out / file for file in files], list(dict.fromkeys(notes)))


def plan_merge(
    configuration: str | os.PathLike | Sequence[Recipe], *, seed: int = 0, dtype: str | None = None
) -> Merged:
  """What `merge` would do with the same arguments; reads headers, and a sample of the weights, and writes nothing.

  >>> import tempfile
  >>> from jaxft.formats.safetensors import save_file
  >>> with tempfile.TemporaryDirectory() as at:
  ...   for name in "ab":
  ...     save_file({"w": np.ones(8, np.float32)}, f"{at}/{name}.safetensors")
  ...   models = [{"model": f"{at}/{name}.safetensors", "parameters": {"weight": 0.5}} for name in "ab"]
  ...   planned = plan_merge(parse_recipes(json.dumps({"merge_method": "linear", "models": models})))
  >>> [(plan.bytes_read, plan.bytes_written) for plan in planned.plans]
  [(64, 32)]

  Args:
    configuration, seed, dtype: see `merge`.
  """
  if not isinstance(seed, int) or isinstance(seed, bool):
    raise TypeError(f"seed must be an integer; got {seed!r:.60}")
  recipes = in_order(_recipes(configuration))
  made: dict[str, Plan] = {}
  notes: list[str] = []
  for recipe in recipes:
    last = recipe is recipes[-1]
    models = {r: _promised(r, made[r.model]) if r.model in made else open_model(r) for r in recipe.models}
    plan = made[recipe.name or ""] = make_plan(recipe, models, seed=seed, dtype=dtype if last else None)
    notes += [*plan.notes, *output_config(plan)[1]]
    notes += [] if any(r.model in made for r in recipe.models) else far_from_base(plan)
  return Merged(list(made.values()), [], list(dict.fromkeys(notes)))


def _recipes(configuration: str | os.PathLike | Sequence[Recipe]) -> Sequence[Recipe]:
  if isinstance(configuration, (str, os.PathLike)):
    return load_recipes(configuration)
  if not isinstance(configuration, Sequence) or not all(isinstance(recipe, Recipe) for recipe in configuration):
    raise TypeError(f"configuration must be the path of a YAML file, or recipes of it; got {configuration!r:.80}")
  if not configuration:
    raise ValueError("configuration must hold a recipe; got none")
  return configuration


def _check_apart(out: Path, configuration: str | os.PathLike | Sequence[Recipe], recipes: Sequence[Recipe]) -> None:
  """Raises ValueError where writing `out` would delete or change more than the one model that is to be replaced.

  An output that is one of the models takes its place when the merge is complete, where it may be overwritten.
  """
  made = {recipe.name for recipe in recipes}
  read = {part for recipe in recipes for reference in recipe.models for part in reference
          if part is not None and part not in made and Path(part).exists()}
  inputs = [("model", part) for part in sorted(read)]
  if isinstance(configuration, (str, os.PathLike)):
    inputs.append(("configuration", os.fspath(configuration)))
  for name, given in inputs:
    if os.path.realpath(given) != os.path.realpath(out):
      check_apart(out, {name: given})


def _run(
    plan: Plan, stage: Staging, name: str, max_shard_bytes: int, processes: int | None, allow_non_finite: bool,
    progress: Callable[[int], Any],
) -> tuple[Path, list[str], list[str]]:
  """Runs a plan into a new folder of that name: the folder, its files of tensors, and what the user should know."""
  config, said = output_config(plan)  # a fault shows before the work
  if plan.recipe.chat_template is not None:
    choose_template(plan.recipe.chat_template, list(plan.models.values()))
  writer = ShardWriter(
      stage, {tensor.name: tensor.entry for tensor in plan.tensors}, max_shard_bytes=max_shard_bytes,
      stem=plan.first.stem, metadata={"format": "pt"})
  try:
    notes = run_plan(plan, writer, processes=processes, allow_non_finite=allow_non_finite, progress=progress)
    writer.sync()
    folder = stage.scratch / name
    folder.mkdir()
    notes += [*said, *write_companions(plan, folder)]
    files = writer.finish(folder)
    _check_written(plan, folder, config if plan.first.config else {})
    return folder, files, notes
  finally:
    writer.close()


def _check_written(plan: Plan, folder: Path, config: Mapping[str, Any]) -> None:
  """Reads back what was written: the headers of all files are those of the plan, the config the one decided on."""
  held = {name: (info.shape, info.dtype) for name, info in open_checkpoint(folder).tensors.items()}
  if held != {tensor.name: tuple(tensor.entry) for tensor in plan.tensors}:
    raise OSError(f"{folder} does not hold the tensors that were written to it")
  if config and json.dumps(read_json(folder / "config.json")) != json.dumps(config):
    raise OSError(f"{folder / 'config.json'} is not as it was written")


def _promised(reference: Reference, plan: Plan) -> InputModel:
  operands = {t.name: Promised(t.name, t.entry.shape, t.entry.dtype) for t in plan.tensors}
  model = InputModel(str(reference), plan.first.folder, operands, stem=plan.first.stem, config=output_config(plan)[0])
  return adapted(model, reference)


def in_order(recipes: Sequence[Recipe]) -> list[Recipe]:
  """The recipes that the output takes, each after those that it names.

  Raises:
    ValueError: they name each other in a circle.
  """
  named = {recipe.name: recipe for recipe in recipes if recipe.name is not None}
  last = next((recipe for recipe in reversed(recipes) if recipe.name is None), recipes[-1])
  done: list[Recipe] = []

  def visit(recipe: Recipe, above: tuple[str, ...]) -> None:
    if recipe in done:
      return
    for reference in recipe.models:
      if reference.model in named:
        if reference.model in above:
          raise ValueError(f"the merges {', '.join(above)} need each other")
        visit(named[reference.model], (*above, reference.model))
    done.append(recipe)

  visit(last, () if last.name is None else (last.name,))
  return done
