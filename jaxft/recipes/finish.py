"""The end of a run: what trained is joined to what stayed, and written as a model, an adapter and a summary."""

import json
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxft.files import write_text
from jaxft.formats.heads import Head
from jaxft.formats.huggingface import save_directory
from jaxft.formats.pretrained import Pretrained, load
from jaxft.recipes import run_folder
from jaxft.recipes.account.end import peak_memory, places_of
from jaxft.recipes.adapter import no_form, save_adapter
from jaxft.recipes.distillation.losses import DISTILLATIONS
from jaxft.recipes.distillation.teacher import alone
from jaxft.recipes.forms.labels import Target
from jaxft.recipes.methods import sources
from jaxft.recipes.options import Finetune
from jaxft.recipes.output import fits_form, has_form, head_of, save_output, usual_head
from jaxft.recipes.preference.losses import PREFERENCES, more_sources
from jaxft.recipes.rl.losses import POLICY_LOSSES
from jaxft.recipes.run import transform_of
from jaxft.recipes.run_loss import WITH_OUTPUT, loss_name, preference_settings
from jaxft.stores.copies import shown
from jaxft.together import is_first
from jaxft.training.frozen import widened
from jaxft.training.gather import to_host
from jaxft.training.mesh import on_host
from jaxft.training.recipe import Recipe
from jaxft.transforms import ParamTransform

LOSS_SOURCES = {
    "gist": ("2402.16829",), "mnrl": ("1705.00652",), "supcon": ("2004.11362",),
    **{name: loss.arxiv for name, loss in (PREFERENCES | POLICY_LOSSES | DISTILLATIONS).items()}}


def finish(
    options: Finetune, model: Pretrained, recipe: Recipe, target: Target | None, frozen: Any, trainable: Any,
    mesh: Mesh | None, facts: Mapping[str, Any],
) -> dict[str, Any] | None:
  """Writes what a run has made; the summary on the first process, None on the others, all of which call it.

  Args:
    options: of the run.
    model: the pretrained one; its weights are not read.
    recipe: of the run.
    target: what a head that trained with it has learnt; None: there is none.
    frozen, trainable: both sides of the params after the last step, a teacher's among the first or not.
    mesh: where they lie; None: on one device.
    facts: of the summary, those that are known before the end.

  Raises:
    OSError: of the disk, with the last checkpoint named.
  """
  why, frozen = _no_adapter(options, model, target), alone(frozen)
  transform = transform_of(options.method, model.config, loss_name(options.loss.loss, model.kind))  # of the model alone
  tuned, frozen, trainable = _gathered(options, recipe, transform, frozen, trainable, mesh, why is None)
  if not is_first():
    return None
  output = tuned.pop("output", None)
  head = None if output is None or target is None else head_of(output, target)
  with on_host(mesh):
    adapter = _save_adapter(options, model, transform, frozen, trainable, why, head)
  return _saved(options, model, tuned, {**facts, **adapter}, head)


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
    with on_host(mesh):  # of the weights as they were read, of which the run has held the leading bits
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


def _saved(
    options: Finetune, model: Pretrained, params: Any, facts: Mapping[str, Any], head: Head | None
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
