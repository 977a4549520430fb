"""A fine-tuning run from its options to its folder: data, recipe, loop, tuned model and summary."""

import contextlib
import dataclasses
import json
import math
import resource
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from jaxft.data.sources import is_place
from jaxft.files import check_apart, write_text
from jaxft.formats.huggingface import save_directory
from jaxft.formats.presets import PRESETS
from jaxft.formats.pretrained import Pretrained, load
from jaxft.host_memory import keep_freed_memory
from jaxft.recipes import measure, run_folder, tasks
from jaxft.recipes.examples import (
  Collate,
  Guided,
  Records,
  Splits,
  as_pairs,
  keys_of,
  language_collate,
  pair_collate,
  read_splits,
  target_collate,
  training_batches,
)
from jaxft.recipes.labels import Target, labels_of, numbers_of
from jaxft.recipes.methods import METHODS
from jaxft.recipes.options import Finetune, defining
from jaxft.recipes.output import init_output, save_output
from jaxft.recipes.quiet import quiet_threads
from jaxft.recipes.run import (
  DTYPES,
  TARGETS,
  WITH_OUTPUT,
  check_options,
  loss_name,
  mesh_of,
  recipe_of,
  target_field,
)
from jaxft.together import check_same, check_shared, from_first, is_first, wait_for_all
from jaxft.training import Checkpoints, JsonLines, TensorBoard, checksum, fit, init_state, make_train_step
from jaxft.training.gather import to_host
from jaxft.training.mesh import check_rows, rows_of_process
from jaxft.training.recipe import Objective
from jaxft.tree import count

LOSS_SOURCES = {"gist": ("2402.16829",), "mnrl": ("1705.00652",), "supcon": ("2004.11362",)}


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
  out = options.output.out
  check_options(options)
  check_apart(out, _places(options))
  with run_folder.held(out) if is_first() else contextlib.nullcontext():
    resumed = is_first() and run_folder.open_run(out, defining(options), overwrite=options.output.overwrite)
    resumed, = from_first(resumed)
    check_shared(out)
    try:
      return _train(options, resumed)
    except KeyboardInterrupt:  # before or after the training loop, which stops by itself
      raise KeyboardInterrupt(run_folder.last_checkpoint(out)) from None


def _places(options: Finetune) -> dict[str, str]:
  """The files and folders that a run reads, by option; presets and data sets of a name lie in the cache folder."""
  models = {"model": options.model, "guide": options.loss.guide}
  places = {name: m for name, m in models.items() if m is not None and m.partition(":")[0] not in PRESETS}
  return places | ({"data": options.data} if is_place(options.data) else {})


def _train(options: Finetune, resumed: bool) -> dict[str, Any] | None:
  out, optimization = options.output.out, options.optimization
  mesh = mesh_of(options.compute)
  if mesh is not None:
    check_rows(optimization.batch_size, mesh, optimization.accumulate)
  splits = read_splits(options.data, options.examples)
  with _on_host(mesh):
    model = load(options.model)
    inputs = {"data version": splits.version, "records": len(splits.train)}
    read = {**inputs, "model's weights": checksum(model.params)}
  check_same(read)
  complete = validated = False
  total = lambda steps, epochs: steps or max(1, math.ceil(epochs * len(splits.train) / optimization.batch_size))
  steps = total(optimization.steps, optimization.epochs)
  if resumed and is_first():
    run_folder.check_inputs(out, read)
    run_folder.grow(out, defining(options), steps, total)
    complete, validated = (out / run_folder.SUMMARY).exists(), bool(run_folder.validations(out))
  complete, validated = from_first(complete, validated)
  if complete:
    if not is_first():
      return None
    print(f"jaxft: the run in {out} is complete; nothing is left to do", file=sys.stderr)
    return json.loads((out / run_folder.SUMMARY).read_text())
  recipe, target = recipe_of(options, model.config, steps, mesh), _target(options, model, splits)
  if target is not None and loss_name(options.loss.loss, model.kind) in WITH_OUTPUT:
    with _on_host(mesh):
      model.params["output"] = init_output(model.config.dim, target.outputs)
  step = make_train_step(recipe)
  state, frozen = init_state(jax.random.key(optimization.seed), model.params, recipe)
  facts = {"steps": steps, "trained_parameters": count(state.trainable), "parameters": count(model.params)}
  records, collate, validate = _prepare(options, model, splits, target, recipe.objective, mesh)
  model = dataclasses.replace(model, params={})  # frozen and the state hold them from here on
  batches = training_batches(records, collate, options.examples, optimization, mesh)
  evaluate = None if validate is None else (
      lambda state, frozen: validate(recipe.transform.join(frozen, state.trainable)))

  before = evaluate(state, frozen) if evaluate and not validated else None
  if not resumed and is_first():
    # Not sooner: what is refused so far loses no run that is there, nor stands in a corrected one's way.
    run_folder.begin_run(out, defining(options), read)

  wait_for_all("run begun")  # in a folder that the first process may have emptied
  writers: list[Any] = [JsonLines(out / run_folder.METRICS)] if is_first() else []
  if options.output.tensorboard and is_first():
    writers.append(TensorBoard(out / run_folder.TENSORBOARD))
  try:
    if before is not None:
      for writer in writers:
        writer.write(0, {f"eval/{name}": v for name, v in before.items()})
    fingerprint = {**{k: v for k, v in defining(options).items() if k not in run_folder.LENGTH}, **inputs}
    with quiet_threads(), Checkpoints(
        out / run_folder.CHECKPOINTS, max_to_keep=options.output.keep, configuration=defining(options),
        fingerprint=fingerprint) as saved:
      if saved.latest is not None and is_first():
        print(f"jaxft: resuming the run in {out} at step {saved.latest} of {steps}", file=sys.stderr)
      state = fit(
          step, state, frozen, batches, steps=steps, checkpoints=saved, save_every=options.output.checkpoint_every,
          evaluate=evaluate, evaluate_every=options.output.eval_every, writers=writers,
          log_every=options.output.log_every, stop_if_not_finite=options.output.stop_if_not_finite,
          steps_per_epoch=None if options.examples.pack else math.ceil(len(records) / optimization.batch_size))
  except OSError as e:
    if e.errno is None:  # of a checkpoint: it names the last one already
      raise
    raise OSError(f"{e}; {run_folder.last_checkpoint(out)}") from e
  finally:
    for writer in writers:
      writer.close()
  tuned = to_host(recipe.transform.join(frozen, state.trainable))
  summary = _finish(options, model, tuned, facts, target) if is_first() else None
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


def _target(options: Finetune, model: Pretrained, splits: Splits) -> Target | None:
  """What a classifier, a regressor or an embedder of labels learns; None of other losses."""
  loss = loss_name(options.loss.loss, model.kind)
  if loss not in TARGETS:
    return None
  return (numbers_of if loss == "mse" else labels_of)(splits.train, target_field(options.loss, loss))


def _prepare(
    options: Finetune, model: Pretrained, splits: Splits, target: Target | None, objective: Objective, mesh: Mesh | None
) -> tuple[Records, Collate, measure.Measure | None]:
  """The records to train on, how they become batches, and the measure of validation, None where there is no data."""
  records, held = splits.train, splits.validation
  if model.tokenizer is None and model.kind != "vision":
    raise ValueError(f"{model.name} has no tokenizer.json, which tuning on text needs")
  several = rows_of_process(mesh)[1] > 1  # each pads its own rows, and all to the same length
  if several and options.examples.pack:
    raise ValueError("--pack is for one process: how many rows the texts of an epoch fill is known only in order")
  light = dataclasses.replace(model, params={})  # what the functions below keep must not keep the weights alive
  loss = loss_name(options.loss.loss, model.kind)
  if options.examples.pack and model.kind != "decoder":
    raise ValueError("--pack is for decoders; a model of vectors needs one a row")
  if target is not None:
    length = min(options.examples.max_length, model.max_length)
    collate = target_collate(light, target, max_length=length, one_length=several)
    collate([records[0]])  # what is wrong with the records is told before anything is compiled
    if held is None:
      return records, collate, None
    over = (held, collate, options.optimization.batch_size, mesh)
    kind = measure.same_label if loss == "supcon" else partial(measure.prediction, target=target)
    return records, collate, kind(model.config, *over, dtype=DTYPES[options.compute.dtype])
  if model.kind == "decoder":
    collate = language_collate(light, records[0], max_length=options.examples.max_length, one_length=several)
    _check_scored(records, collate, options.examples.max_length)
    size = options.optimization.batch_size
    validate = None if held is None else measure.perplexity(objective, held, collate, size, mesh)
    return records, collate, validate
  records, held = as_pairs(records), None if held is None else as_pairs(held)
  keys, length = keys_of(records), min(options.examples.max_length, model.max_length)
  _check_different(records, keys, options.optimization.batch_size)
  if loss == "gist":
    guide = load(options.loss.guide) if options.loss.guide else model
    config, tokenizer = guide.text_encoder("guide")
    # Each process embeds by itself, on one device; a model of the run itself may lie in the host's memory.
    params = guide.params if mesh is None else jax.device_put(guide.params, jax.local_devices()[0])
    records = Guided(records, tokenizer, tasks.embedder(params, config), max_length=min(length, guide.max_length))
  dtype = DTYPES[options.compute.dtype]
  validate = None if held is None else measure.retrieval(light, held, max_length=length, dtype=dtype, mesh=mesh)
  return records, pair_collate(light, keys, max_length=length, one_length=several), validate


def _check_scored(records: Records, collate: Collate, max_length: int) -> None:
  """Raises ValueError where no record has a token to learn from; reads as far as the first that has one."""
  for record in records:
    if collate([record])["loss_mask"][:, 1:].any():  # the first token follows none that could predict it
      return
  raise ValueError(f"data must hold a token to learn from; got none in {len(records)} records: the data mark none, or "
                   f"max_length = {max_length} cuts them all off")


def _check_different(records: Records, keys: Sequence[str], batch_size: int) -> None:
  """Raises ValueError where a batch must hold an example twice, which would be a negative of itself.

  Reads as far as the record with which there are enough.
  """
  different: set[tuple[str, ...]] = set()
  for record in records:
    different.add(tuple(record[key] for key in keys))
    if len(different) >= batch_size:
      return
  raise ValueError(f"batch_size must be at most the number of different pairs, {len(different)} of {len(records)}, as "
                   f"the others of a batch are the negatives of each; got {batch_size}")


def _finish(
    options: Finetune, model: Pretrained, params: Any, facts: dict[str, Any], target: Target | None
) -> dict[str, Any]:
  """Saves the tuned model, with the output layer of one that has it, and the summary."""
  out, output = options.output.out, params.get("output")
  params = {name: part for name, part in params.items() if name != "output"}
  shutil.rmtree(out / run_folder.MODEL, ignore_errors=True)  # of a run that was killed before its summary
  try:
    save_directory(  # it appears complete or not at all
        params, model.config, out / run_folder.MODEL, tokenizer=model.tokenizer, chat_template=model.chat_template,
        max_length=model.max_length)
    if target is not None and output is not None:
      save_output(output, target, out / run_folder.MODEL)
  except OSError as e:
    raise OSError(f"{e}; {run_folder.last_checkpoint(out)}") from e
  scores, loss = run_folder.validations(out), loss_name(options.loss.loss, model.kind)
  summary = {
      "model": options.model, "data": options.data, "method": options.method.method, "loss": loss, **facts,
      "before": scores.get(0, {}), "after": scores.get(facts["steps"], {}),
      "examples_per_second": run_folder.examples_per_second(out), "peak_memory_bytes": peak_memory(),
      "out": str(out), "arxiv": [*METHODS[options.method.method].arxiv, *LOSS_SOURCES.get(loss, ())],
  }
  write_text(out / run_folder.SUMMARY, json.dumps(summary, indent=1) + "\n")
  return summary


def peak_memory() -> int:
  """The most bytes held at once: on the accelerator that held most, or by this process where there is none."""
  stats = [device.memory_stats() for device in jax.local_devices()]
  if all(stats):
    return max(s["peak_bytes_in_use"] for s in stats)
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
