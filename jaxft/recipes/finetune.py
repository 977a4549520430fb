"""A fine-tuning run from its options to its folder: data, recipe, loop, tuned model and summary."""

import contextlib
import dataclasses
import json
import math
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxft.files import check_apart, write_text
from jaxft.formats.heads import Head
from jaxft.formats.huggingface import save_directory
from jaxft.formats.pretrained import Pretrained, load
from jaxft.formats.safetensors import read_json
from jaxft.host_memory import keep_freed_memory
from jaxft.recipes import run_folder
from jaxft.recipes.account.counts import count_tokens
from jaxft.recipes.account.end import peak_memory, places_of
from jaxft.recipes.account.overlap import overlaps
from jaxft.recipes.account.start import begins, holds, more_than_whole, unit_of
from jaxft.recipes.adapter import no_form, save_adapter
from jaxft.recipes.distillation.losses import DISTILLATIONS
from jaxft.recipes.distillation.on_policy import on_policy_step
from jaxft.recipes.distillation.teacher import KEY, alone, teacher_of
from jaxft.recipes.examples import read_splits, training_batches
from jaxft.recipes.forms.form import Reading
from jaxft.recipes.forms.table import prepare
from jaxft.recipes.forms.targets import target_of
from jaxft.recipes.guess import with_loss
from jaxft.recipes.inputs import check_urls_apart, places
from jaxft.recipes.labels import Target
from jaxft.recipes.methods import sources
from jaxft.recipes.options import Finetune, defining
from jaxft.recipes.output import fits_form, has_form, head_of, init_output, save_output, usual_head
from jaxft.recipes.preference.losses import PREFERENCES, more_sources
from jaxft.recipes.preference.preparation import preference_splits
from jaxft.recipes.rl.losses import POLICY_LOSSES
from jaxft.recipes.rl.preparation import SHOWN, policy_step
from jaxft.recipes.rl.prompts import Prompts
from jaxft.recipes.run import check_options, found_of, mesh_of, recipe_of, transform_of, with_data
from jaxft.recipes.run_file import as_text
from jaxft.recipes.run_loss import WITH_OUTPUT, check_loss, early_name, loss_name, preference_settings, rows_of
from jaxft.stores.copies import place_of, shown
from jaxft.stores.mirror import mirrored
from jaxft.stores.store import url_of
from jaxft.together import check_same, check_shared, from_first, is_first, wait_for_all
from jaxft.training import Checkpoints, JsonLines, checksum, fit, init_state, make_train_step
from jaxft.training.frozen import widened
from jaxft.training.gather import to_host
from jaxft.training.mesh import check_rows
from jaxft.training.metrics import check_tracker, tracker
from jaxft.training.quiet import quiet_threads
from jaxft.training.recipe import Recipe
from jaxft.training.step import cast_floating
from jaxft.transforms import ParamTransform
from jaxft.tree import count

LOSS_SOURCES = {
    "gist": ("2402.16829",), "mnrl": ("1705.00652",), "supcon": ("2004.11362",),
    **{name: loss.arxiv for name, loss in (PREFERENCES | POLICY_LOSSES | DISTILLATIONS).items()}}


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
  with _on_host(mesh):
    model = load(options.model)
    inputs = {"data version": splits.version, "records": len(splits.train)}
    read = {**inputs, "model's weights": checksum(model.params)}
  check_same(read)
  asked = options  # what `run.yaml` says
  options, chosen = with_loss(options, model.kind, [*splits.train[0]])
  loss = loss_name(options.loss.loss, model.kind)
  splits = preference_splits(options.loss.loss, splits)
  check_loss(options.loss, loss)
  with _on_host(mesh):
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
    with _on_host(mesh):
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
  why, frozen = _no_adapter(options, model, target), alone(frozen)
  transform = transform_of(options.method, model.config, loss)  # of the model alone
  tuned, frozen, trainable = _gathered(options, recipe, transform, frozen, state.trainable, mesh, why is None)
  summary = None
  if is_first():
    output = tuned.pop("output", None)
    head = None if output is None or target is None else head_of(output, target)
    with _on_host(mesh):
      facts |= _save_adapter(options, model, transform, frozen, trainable, why, head)
    summary = _finish(options, model, tuned, facts, head)
  wait_for_all("run finished")
  return summary


def _on_host(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """Where a model is read that will be cut over a mesh: in the host's memory, as one device may not hold it whole."""
  if mesh is None:
    return contextlib.nullcontext()
  try:
    return jax.default_device(jax.local_devices(backend="cpu")[0])
  except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
    return contextlib.nullcontext()


def _gathered(
    options: Finetune, recipe: Recipe, transform: ParamTransform, frozen: Any, trainable: Any, mesh: Mesh | None,
    apart: bool,
) -> tuple[Any, Any, Any]:
  """On the first process, in the host's memory: the tuned params and, if `apart`, what stayed and what trained."""
  if recipe.frozen_dtype is None:
    tuned = to_host(transform.join(frozen, trainable))
    if not apart:
      return tuned, None, None
    return tuned, to_host(frozen, plain=False), to_host(trainable, plain=False)
  tuned, frozen, trainable = None, to_host(frozen, plain=False), to_host(trainable, plain=False)
  if is_first():
    with _on_host(mesh):  # of the weights as they were read, of which the run has held the leading bits
      frozen = widened(frozen, load(options.model).params)
      tuned = transform.join(*jax.tree.map(jnp.asarray, jax.device_get((frozen, trainable))))
  return tuned, frozen, trainable


def _no_adapter(options: Finetune, model: Pretrained, target: Target | None) -> str | None:
  """Why a run has no adapter, where its options say so already."""
  if target is not None and loss_name(options.loss.loss, model.kind) in WITH_OUTPUT:
    if not has_form(options.loss.head or usual_head(model.config), model.config):
      return "transformers has no form for the head that trains with it, which goes with the merged model alone"
  return no_form(options.method)


def _save_adapter(
    options: Finetune, model: Pretrained, transform: ParamTransform, frozen: Any, trainable: Any, why: str | None,
    head: Head | None,
) -> dict[str, Any]:
  """Writes the adapter where there is one, and says so, or why there is none."""
  if why is None:
    try:
      why = save_adapter(
          options, transform, frozen, trainable, model.config, options.output.out / run_folder.ADAPTER, head=head)
    except OSError as e:
      raise OSError(f"{e}; {run_folder.last_checkpoint(options.output.out)}") from e
  if why is not None and not options.output.merge:
    print(f"jaxft: note: the merged model is written all the same, as there is no adapter: {why}", file=sys.stderr)
  return {"adapter": why is None, **({} if why is None else {"no_adapter": why})}


def _finish(
    options: Finetune, model: Pretrained, params: Any, facts: dict[str, Any], head: Head | None
) -> dict[str, Any]:
  """Saves the tuned model, with the output layer of one that has it, and the summary."""
  out = options.output.out
  shutil.rmtree(out / run_folder.MODEL, ignore_errors=True)  # of a run that was killed before its summary
  own = head if head is not None and fits_form(head, model.config) else None
  try:
    if options.output.merge or not facts.get("adapter"):
      save_directory(  # it appears complete or not at all
          params, model.config, out / run_folder.MODEL, tokenizer=model.tokenizer, chat_template=model.chat_template,
          max_length=model.max_length, head=own, end_ids=model.end_ids, generation=model.generation)
      if head is not None and own is None:
        save_output(head, out / run_folder.MODEL)
  except OSError as e:
    raise OSError(f"{e}; {run_folder.last_checkpoint(out)}") from e
  scores, loss = run_folder.validations(out), loss_name(options.loss.loss, model.kind)
  beside = more_sources(preference_settings(options.loss, loss)) if loss in PREFERENCES else ()
  summary = {
      "model": options.model, "kind": model.kind, "chat": model.chat_template is not None, "head": head is not None,
      "data": options.data or " ".join(options.loss.reward), "method": options.method.method, "loss": loss, **facts,
      "before": scores.get(0, {}), "after": scores.get(facts["steps"], {}), "control": options.examples.control,
      "places": places_of(out, options.output.track),
      "examples_per_second": run_folder.examples_per_second(out), "peak_memory_bytes": peak_memory(),
      "out": shown(out), "arxiv": [*sources(options.method), *LOSS_SOURCES.get(loss, ()), *beside],
  }
  write_text(out / run_folder.SUMMARY, json.dumps(summary, indent=1) + "\n")
  return summary
