"""`jaxft finetune`: a pretrained model, a data set, a method and a loss, from one command to a tuned model."""

import dataclasses
import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

from jaxft.cli.options import Finetune, defining, parse

DIVERGED = 3  # exit status of a run that was stopped at a number that is not finite


def main(args: list[str]) -> None:
  options = parse(args, command="finetune", description=Finetune.__doc__)
  from jaxft.training import Diverged  # not before the options: --help needs no JAX

  try:
    summary = finetune(options)
  except Diverged as e:
    print(f"jaxft: error: {e}. Try a lower --learning-rate, with --overwrite or another --out; "
          "--no-stop-if-not-finite goes on all the same", file=sys.stderr)
    raise SystemExit(DIVERGED) from e
  print(as_text(summary))


def finetune(options: Finetune) -> dict[str, Any]:
  """Runs to the end, or resumes to it, and returns the summary that is also written to `summary.json`.

  Raises:
    ValueError, TypeError, OSError: bad input, before anything is trained; or the disk, with the last checkpoint named.
    Diverged: a loss or a norm is not finite; nothing is saved from there on, and the last checkpoint is named.
    Stopped: SIGINT or SIGTERM, with the last checkpoint named.
  """
  from jaxft.cli import runs
  from jaxft.cli.setup import check_options
  from jaxft.host_memory import keep_freed_memory

  keep_freed_memory()
  out = options.output.out
  check_options(options)
  resumed = runs.open_run(out, defining(options), overwrite=options.output.overwrite)
  try:
    if resumed and (out / runs.SUMMARY).exists():
      print(f"jaxft: the run in {out} is complete; nothing is left to do", file=sys.stderr)
      return json.loads((out / runs.SUMMARY).read_text())
    return _train(options)
  except (ValueError, TypeError):
    # A run that was refused before it began must not stand in the way of the corrected command.
    if not resumed and not (out / runs.CHECKPOINTS).exists():
      (out / runs.CONFIG).unlink(missing_ok=True)
    raise
  except KeyboardInterrupt:  # before or after the training loop, which stops by itself
    raise KeyboardInterrupt(runs.last_checkpoint(out)) from None


def _train(options: Finetune) -> dict[str, Any]:
  import jax

  from jaxft.cli import runs
  from jaxft.cli.examples import read_splits, training_batches
  from jaxft.cli.quiet import quiet_threads
  from jaxft.cli.setup import mesh_of, objective_of, recipe_of
  from jaxft.formats.pretrained import load
  from jaxft.training import Checkpoints, JsonLines, TensorBoard, fit, init_state, make_train_step
  from jaxft.training.mesh import check_rows
  from jaxft.tree import count

  out, optimization = options.output.out, options.optimization
  mesh = mesh_of(options.compute)
  if mesh is not None:
    check_rows(optimization.batch_size, mesh, optimization.accumulate)
  splits = read_splits(options.data, options.examples)
  model = load(options.model)
  steps = optimization.steps or max(1, math.ceil(optimization.epochs * len(splits.train) / optimization.batch_size))
  objective = objective_of(options, model.config, mesh)
  recipe = recipe_of(options, model.config, steps)
  transform, optimizer, rules = (recipe.pop(name) for name in ("transform", "optimizer", "rules"))
  step = make_train_step(objective, optimizer, transform, mesh=mesh, **recipe)
  state, frozen = init_state(
      jax.random.key(optimization.seed), model.params, transform, optimizer, mesh=mesh, rules=rules)
  facts = {"steps": steps, "trained_parameters": count(state.trainable), "parameters": count(model.params)}
  records, collate, measure = _prepare(options, model, splits, objective, mesh)
  model = dataclasses.replace(model, params={})  # frozen and the state hold them from here on
  batches = training_batches(records, collate, options.examples, optimization)
  evaluate = measure and (lambda state, frozen: measure(transform.join(frozen, state.trainable)))

  writers = [JsonLines(out / runs.METRICS)]
  if options.output.tensorboard:
    writers.append(TensorBoard(out / runs.TENSORBOARD))
  try:
    if evaluate and not runs.validations(out):
      for writer in writers:
        writer.write(0, {f"eval/{name}": v for name, v in evaluate(state, frozen).items()})
    fingerprint = {**defining(options), "data version": splits.version, "records": len(records)}
    with quiet_threads(), Checkpoints(
        out / runs.CHECKPOINTS, max_to_keep=options.output.keep, configuration=defining(options),
        fingerprint=fingerprint) as saved:
      state = fit(
          step, state, frozen, batches, steps=steps, checkpoints=saved, save_every=options.output.checkpoint_every,
          evaluate=evaluate, evaluate_every=options.output.eval_every, writers=writers,
          log_every=options.output.log_every, stop_if_not_finite=options.output.stop_if_not_finite,
          steps_per_epoch=None if options.examples.pack else math.ceil(len(records) / optimization.batch_size))
  except OSError as e:
    if e.errno is None:  # of a checkpoint: it names the last one already
      raise
    raise OSError(f"{e}; {runs.last_checkpoint(out)}") from e
  finally:
    for writer in writers:
      writer.close()
  return _finish(options, model, transform.join(frozen, state.trainable), facts)


def _prepare(options: Finetune, model: Any, splits: Any, objective: Any, mesh: Any) -> tuple[Any, Any, Any]:
  """The records to train on, how they become batches, and the measure of validation, None where there is no data."""
  from jaxft.cli import measure, tasks
  from jaxft.cli.choices import loss_name
  from jaxft.cli.examples import Guided, keys_of, language_collate, pair_collate
  from jaxft.formats.pretrained import load

  records, held = splits.train, splits.validation
  if model.tokenizer is None:
    raise ValueError(f"{model.name} has no tokenizer.json, which tuning on text needs")
  light = dataclasses.replace(model, params={})  # what the functions below keep must not keep the weights alive
  loss = loss_name(options.loss.loss, model.family)
  if options.loss.guide and loss != "gist":
    raise ValueError(f"--guide is for the loss gist; the loss is {loss}")
  if model.family == "decoder":
    collate = language_collate(light, records[0], max_length=options.examples.max_length)
    _check_scored(records, collate, options.examples.max_length)
    size = options.optimization.batch_size
    return records, collate, held and measure.perplexity(objective, held, collate, size, mesh)
  if options.examples.pack:
    raise ValueError("--pack is for decoders; an encoder needs one vector a row")
  keys, length = keys_of(records), min(options.examples.max_length, model.max_length)
  if loss == "gist":
    guide = load(options.loss.guide) if options.loss.guide else model
    if guide.family != "encoder":
      raise ValueError(f"guide must be an encoder; {options.loss.guide} is a {guide.family}")
    records = Guided(
        records, guide.tokenizer, tasks.embedder(guide.params, guide.config), max_length=min(length, guide.max_length))
  return records, pair_collate(light, keys, max_length=length), held and measure.retrieval(
      options, light, held, max_length=length)


def _check_scored(records: Any, collate: Any, max_length: int) -> None:
  """Raises ValueError where no record has a token to learn from; reads as far as the first that has one."""
  for record in records:
    if collate([record])["loss_mask"][:, 1:].any():  # the first token follows none that could predict it
      return
  raise ValueError(f"data must hold a token to learn from; got none in {len(records)} records: the data mark none, or "
                   f"max_length = {max_length} cuts them all off")


def _finish(options: Finetune, model: Any, params: Any, facts: dict[str, Any]) -> dict[str, Any]:
  """Saves the tuned model and the summary."""
  from jaxft.cli import runs
  from jaxft.cli.choices import LOSS_CITATIONS, METHODS, loss_name
  from jaxft.files import write_text
  from jaxft.formats.huggingface import save_directory

  out = options.output.out
  if not (out / runs.MODEL).exists():  # it appears complete or not at all
    try:
      save_directory(
          params, model.config, out / runs.MODEL, tokenizer=model.tokenizer, chat_template=model.chat_template,
          max_length=model.max_length)
    except OSError as e:
      raise OSError(f"{e}; {runs.last_checkpoint(out)}") from e
  scores, loss = runs.validations(out), loss_name(options.loss.loss, model.family)
  summary = {
      "model": options.model, "data": options.data, "method": options.method.method, "loss": loss, **facts,
      "before": scores.get(0, {}), "after": scores.get(facts["steps"], {}),
      "examples_per_second": runs.examples_per_second(out), "peak_memory_bytes": peak_memory(),
      "out": str(out), "citations": [*METHODS[options.method.method].citations, *LOSS_CITATIONS.get(loss, ())],
  }
  write_text(out / runs.SUMMARY, json.dumps(summary, indent=1) + "\n")
  return summary


def peak_memory() -> int:
  """Most bytes held at once: on the accelerator that held most, or by this process where memory is the host's."""
  import jax

  stats = [device.memory_stats() for device in jax.local_devices()]
  if all(stats):
    return max(s["peak_bytes_in_use"] for s in stats)
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def as_text(summary: dict[str, Any]) -> str:
  """The summary for people."""
  from jaxft.cli import runs

  s, out = summary, Path(summary["out"])
  share = s["trained_parameters"] / s["parameters"]
  lines = [
      f"{s['model']} on {s['data']}: {s['method']}, {s['loss']}, {s['steps']} steps; "
      f"{s['trained_parameters']:,} parameters trained ({share:.2%} of the model's)"
  ]
  lines += [f"  validation {name}: {s['before'][name]:.4f} -> {value:.4f}" for name, value in s["after"].items()]
  rate = s["examples_per_second"]
  lines += [
      f"  {'?' if rate is None else f'{rate:.1f}'} examples/s, {s['peak_memory_bytes'] / 2**20:,.0f} MiB at most",
      f"  model: {out / runs.MODEL}",
      f"  metrics: {out / runs.METRICS}, checkpoints: {out / runs.CHECKPOINTS}",
  ]
  return "\n".join(lines + [f"  cite: {citation}" for citation in s["citations"]])
