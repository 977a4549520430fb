"""A fine-tuning run from its options to its folder: data, recipe, loop, tuned model and summary."""

import contextlib
import dataclasses
import math
import sys
from typing import Any

import jax

from jaxft.files import check_apart, write_text
from jaxft.formats.pretrained import load
from jaxft.formats.safetensors import read_json
from jaxft.host_memory import keep_freed_memory
from jaxft.recipes import run_folder
from jaxft.recipes.account.counts import count_tokens
from jaxft.recipes.account.overlap import overlaps
from jaxft.recipes.account.start import begins, holds, more_than_whole, unit_of
from jaxft.recipes.distillation.on_policy import on_policy_step
from jaxft.recipes.distillation.teacher import KEY, teacher_of
from jaxft.recipes.examples import read_splits, training_batches
from jaxft.recipes.finish import finish
from jaxft.recipes.forms.form import Reading
from jaxft.recipes.forms.table import prepare
from jaxft.recipes.forms.targets import target_of
from jaxft.recipes.guess import with_loss
from jaxft.recipes.inputs import check_urls_apart, places
from jaxft.recipes.options import Finetune, defining
from jaxft.recipes.output import init_output
from jaxft.recipes.preference.preparation import preference_splits
from jaxft.recipes.rl.preparation import SHOWN, policy_step
from jaxft.recipes.rl.prompts import Prompts
from jaxft.recipes.run import check_options, found_of, mesh_of, recipe_of, with_data
from jaxft.recipes.run_file import as_text
from jaxft.recipes.run_loss import WITH_OUTPUT, check_loss, early_name, loss_name, rows_of
from jaxft.stores.copies import place_of
from jaxft.stores.mirror import mirrored
from jaxft.stores.store import url_of
from jaxft.together import check_same, check_shared, from_first, is_first, wait_for_all
from jaxft.training import Checkpoints, JsonLines, checksum, fit, init_state, make_train_step
from jaxft.training.mesh import check_rows, on_host
from jaxft.training.metrics import check_tracker, tracker
from jaxft.training.quiet import quiet_threads
from jaxft.training.step import cast_floating
from jaxft.tree import count


def finetune(options: Finetune) -> dict[str, Any] | None:
  """Runs to the end, or resumes to it, and returns the summary that is also written to `summary.json`.

  Under `jax.distributed` every process calls it with the same options and the same `out`. The first writes what is
  written, and it alone returns the summary; the others return None.

  Raises:
    ValueError, TypeError, OSError: bad input, before anything is trained; or the disk, with the last checkpoint named.
    Diverged: a loss or a norm is not finite; nothing is saved from there on, and the last checkpoint is named.
    Stopped: SIGINT or SIGTERM, with the last checkpoint named; see `fit`.
  """
  keep_freed_memory()
  options = with_data(options)
  check_options(options)
  for name in options.output.track:
    check_tracker(name)
  if (url := url_of(options.output.out)) is None:
    return _in_folder(options)
  check_urls_apart(url, options)
  on_disk = dataclasses.replace(options, output=dataclasses.replace(options.output, out=place_of("runs", url)))
  with mirrored(url) if is_first() else contextlib.nullcontext():
    return _in_folder(on_disk)


def _in_folder(options: Finetune) -> dict[str, Any] | None:
  """The run in a folder on disk."""
  out = options.output.out
  check_apart(out, places(options))
  with run_folder.held(out) if is_first() else contextlib.nullcontext():
    resumed = is_first() and run_folder.open_run(out, defining(options), overwrite=options.output.overwrite)
    resumed, = from_first(resumed)
    check_shared(out)
    try:
      return _train(options, resumed)
    except KeyboardInterrupt:  # before or after the training loop, which stops by itself
      raise KeyboardInterrupt(run_folder.last_checkpoint(out)) from None


def _train(options: Finetune, resumed: bool) -> dict[str, Any] | None:
  out, optimization, given = options.output.out, options.optimization, defining(options)
  mesh = mesh_of(options.compute)
  if mesh is not None:
    check_rows(rows_of(options, early_name(options.loss)), mesh, optimization.accumulate)
  splits = read_splits(options.data or "", options.examples, others=bool(options.loss.reward))
  with on_host(mesh):
    model = load(options.model)
    inputs = {"data version": splits.version, "records": len(splits.train)}
    read = {**inputs, "model's weights": checksum(model.params)}
  check_same(read)
  asked = options  # what `run.yaml` says
  options, chosen = with_loss(options, model.kind, [*splits.train[0]])
  loss = loss_name(options.loss.loss, model.kind)
  splits = preference_splits(options.loss.loss, splits)
  check_loss(options.loss, loss)
  with on_host(mesh):
    teacher = teacher_of(options, loss, model)
  if teacher is not None:
    read["teacher's weights"] = checksum(teacher.params)
    check_same({"teacher's weights": read["teacher's weights"]})
  complete = validated = False
  total = lambda steps, epochs: steps or max(1, math.ceil(epochs * len(splits.train) / optimization.batch_size))
  steps = total(optimization.steps, optimization.epochs)
  if resumed and is_first():
    run_folder.check_inputs(out, read)
    run_folder.grow(out, given, steps, total)
    complete, validated = (out / run_folder.SUMMARY).exists(), bool(run_folder.validations(out))
  complete, validated = from_first(complete, validated)
  if complete:
    if not is_first():
      return None
    print(f"jaxft: the run in {out} is complete; nothing is left to do", file=sys.stderr)
    return read_json(out / run_folder.SUMMARY)
  if chosen is not None and is_first():
    print(f"jaxft: {chosen}", file=sys.stderr)
  recipe = recipe_of(options, model.config, steps, mesh, None if teacher is None else teacher.config)
  target = target_of(options, model, splits, teacher)
  if target is not None and loss in WITH_OUTPUT:
    with on_host(mesh):
      model.params["output"] = init_output(model.config, target.outputs, options.loss.head)
  step = make_train_step(recipe)
  params = model.params if loss != "gkd" or teacher is None else {**model.params, KEY: teacher.params}
  state, frozen = init_state(jax.random.key(optimization.seed), params, recipe)
  facts = {"steps": steps, "trained_parameters": count(state.trainable), "parameters": count(model.params)}
  # Before it all: what is computed from the params as they are now outlives no step.
  joined = lambda: recipe.transform.join(frozen, state.trainable)
  initial = joined if recipe.compute_dtype is None else lambda: cast_floating(joined(), recipe.compute_dtype)
  light = dataclasses.replace(model, params={})
  prepared = prepare(Reading(
      options, loss, light, model.params, splits, target, mesh, initial, read["model's weights"], teacher))
  records, collate = prepared.records, prepared.collate
  packed = options.examples.pack and model.kind == "decoder"  # an epoch has no known number of such rows
  held = {"eval": splits.validation, "control": splits.control}
  measures = {name: prepared.measure(own) for name, own in held.items() if own is not None}
  sizes = {name: None if own is None else len(own) for name, own in held.items()}
  facts |= {"records": len(splits.train), "validated": sizes["eval"] or 0, "controlled": sizes["control"] or 0}
  name, told = loss_name(options.loss.loss, model.kind), ("loss",)
  if isinstance(records, Prompts):
    step = policy_step(options, name, model, records, recipe, step, state, frozen, mesh)
    told = SHOWN
  elif options.loss.on_policy:
    step = on_policy_step(options, model, recipe, step)
  if is_first():
    said: list[str | None] = [begins(
        train=len(splits.train), held=sizes["eval"], control=sizes["control"], steps=steps, packed=packed,
        batch_size=optimization.batch_size, trained=facts["trained_parameters"], parameters=facts["parameters"])]
    counts = None if prepared.uncut is None else count_tokens(records, prepared.alone or collate, prepared.uncut)
    said += [more_than_whole(state.trainable, model.params),
             holds(counts, max_length=min(options.examples.max_length, model.max_length),
                   unit=unit_of(splits.train[0])), prepared.said, *overlaps(splits)]
    for line in filter(None, said):
      print(f"jaxft: {line}", file=sys.stderr)
    if model.head is not None:
      print(f"jaxft: note: the head that {options.model} has is not read, nor kept", file=sys.stderr)
  # From here on frozen and the state hold the weights: what made the measures holds those of a reference or a teacher.
  model, params, teacher = light, {}, None
  del prepared
  batches = training_batches(records, collate, dataclasses.replace(options.examples, pack=packed), optimization, mesh)

  def evaluate(state: Any, frozen: Any) -> dict[str, float]:
    params = recipe.transform.join(frozen, state.trainable)
    return {f"{run_folder.OF_CONTROL if name == 'control' else ''}{key}": x
            for name, measure in measures.items() for key, x in measure(params).items()}

  before = evaluate(state, frozen) if measures and not validated else None
  if not resumed and is_first():
    # Not sooner: what is refused so far loses no run that is there, nor stands in a corrected one's way.
    run_folder.begin_run(out, given, read)
  if is_first():
    write_text(out / run_folder.RUN, as_text(asked, found_of(options, loss, steps), run_folder.growth(out)))

  wait_for_all("run begun")  # in a folder that the first process may have emptied
  writers: list[Any] = [JsonLines(out / run_folder.METRICS)] if is_first() else []
  if is_first():
    writers += [tracker(name, out / name, run=out.name, config=given) for name in options.output.track]
  try:
    if before is not None:
      for writer in writers:
        writer.write(0, {f"eval/{name}": v for name, v in before.items()})
    fingerprint = {**{k: v for k, v in given.items() if k not in run_folder.LENGTH}, **inputs}
    with quiet_threads(), Checkpoints(
        out / run_folder.CHECKPOINTS, max_to_keep=options.output.keep, configuration=given,
        fingerprint=fingerprint) as saved:
      if saved.latest is not None and is_first():
        print(f"jaxft: resuming the run in {out} at step {saved.latest} of {steps}", file=sys.stderr)
      state = fit(
          step, state, frozen, batches, steps=steps, checkpoints=saved, save_every=options.output.checkpoint_every,
          evaluate=evaluate if measures else None, evaluate_every=options.output.eval_every, writers=writers,
          log_every=options.output.log_every, stop_if_not_finite=options.output.stop_if_not_finite,
          steps_per_epoch=None if packed else math.ceil(len(records) / optimization.batch_size),
          traces=out / run_folder.TRACES, shown=told)
  except OSError as e:
    if e.errno is None:  # of a checkpoint: it names the last one already
      raise
    raise OSError(f"{e}; {run_folder.last_checkpoint(out)}") from e
  finally:
    for writer in writers:
      writer.close()
  summary = finish(options, model, recipe, target, frozen, state.trainable, mesh, facts)
  wait_for_all("run finished")
  return summary
