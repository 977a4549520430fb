"""Writing an adapter so that PEFT reads it: the trained numbers of each module, and the settings that go with them."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxft.checks import nearest
from jaxft.formats.families import family_of
from jaxft.formats.heads import Head, head_form, head_json
from jaxft.formats.huggingface_config import sizes_json
from jaxft.formats.peft_files.export import to_tensors
from jaxft.formats.peft_files.folder import VERSION, write_folder
from jaxft.formats.peft_files.heads import with_head
from jaxft.formats.peft_files.load import from_tensors
from jaxft.formats.peft_files.methods import method_of
from jaxft.leaves.annotated import Annotated
from jaxft.signatures import explain_errors
from jaxft.transforms.protocol import ParamTransform
from jaxft.tree.paths import Tree, is_leaf, leaves_with_paths


@explain_errors
def save_peft(
    folder: str | os.PathLike, transform: ParamTransform, frozen: Tree, trainable: Tree, params: Tree, config: Any, *,
    peft_type: str = "LORA", base_model: str | None = None, task_type: str | None = None, head: Head | None = None,
    **settings: Any,
) -> None:
  """Writes `adapter_config.json` and `adapter_model.safetensors`, with which PEFT computes what is computed here.

      save_peft("adapter", transform, frozen, state.trainable, params, config)                      # LoRA, DoRA
      save_peft("adapter", transform, frozen, state.trainable, params, config, peft_type="LOHA", alpha=8.0)

  Ranks, scales, blocks and targets are read off what trains, per module where they differ. Settings that cannot be read
  off must be given, and are checked: the adapter read back must join to the same leaves. Leaves that train whole beside
  the adapter become `modules_to_save`, and biases `bias`.

  Nothing is written unless params and adapter together make the weights that were trained here, within rounding. LoRA
  inits that took a product off the weights (PiSSA, OLoRA, CorDA, LoRA-GA) get factors of twice the rank, which put it
  back: `params + s [a, a'] @ [b; b']`, the second pair from what stayed frozen less params. That is not possible for
  weights that were quantized.

  >>> import tempfile
  >>> from jaxft.formats import load
  >>> from jaxft.transforms import lora
  >>> model, transform = load("minilm-l6:tiny"), lora("layers/mlp/up/kernel", rank=2)
  >>> frozen, trainable = transform.split(jax.random.key(0), model.params)
  >>> with tempfile.TemporaryDirectory() as at:
  ...   save_peft(at, transform, frozen, trainable, model.params, model.config)
  ...   load_peft(at, model.params, model.config).settings["target_modules"]
  ['intermediate.dense']

  Args:
    folder: that holds no adapter yet; made where it does not exist.
    transform, frozen, trainable: a transform of a model of this library and its two sides, after training.
    params: the weights that the file will be loaded onto: those given to `split`, or `frozen` for an adapter that goes
      with what stayed frozen, as with LoftQ and QLoRA.
    config: of the model.
    peft_type: PEFT's name of the method; see `jaxft.formats.peft_files.methods`. "LORA" also takes whatever else
      joins to low-rank factors (MiCA, EVA, ...), and DoRA.
    base_model: name or path of the model, for `base_model_name_or_path`.
    task_type: "CAUSAL_LM" and so on; None takes that, "FEATURE_EXTRACTION" for an encoder, or that of the head.
    head: of a classifier or regressor, which is then saved whole; its classes are told by a `config.json` beside the
      adapter.
    **settings: in PEFT's names, those that `peft_type` asks for: `alpha` (LOHA), `use_cayley_neumann` and
      `num_cayley_neumann_terms` (OFT), `scaling` and `random_loc_seed` (FOURIERFT), `topk` (VBLORA),
      `randlora_alpha` (RANDLORA); for LORA `use_rslora` and `lora_dropout`, which are for training on.

  Raises:
    ValueError: an unknown type or setting, a setting that is missing or does not describe the transform, an
      adapter that the format cannot hold, or params with which no adapter computes what is computed here; nothing is
      written.
    FileExistsError: the folder holds an adapter.

  The file's format is that of PEFT 0.21 (Mangrulkar et al. 2022, huggingface/peft).
  """
  method = method_of(peft_type)
  known = {*method.defaults, *method.asks}
  if unknown := [name for name in settings if name not in known]:
    raise ValueError(f"{peft_type} has no setting {unknown[0]!r} to be given; {nearest(unknown[0], sorted(known))}")
  if missing := [name for name in method.asks if name not in settings]:
    raise ValueError(f"{peft_type} takes {', '.join(missing)}: nothing in what trains tells")
  found, tensors = to_tensors(method, transform, frozen, trainable, config, settings, params=params)
  task = task_type or family_of(config).peft_task
  found = {
      "peft_type": peft_type, "task_type": task, "base_model_name_or_path": base_model, "inference_mode": True,
      "peft_version": VERSION, **found}
  if method.asks:
    _check_settings(found, tensors, transform.join(frozen, trainable), frozen, config, settings)
  beside: dict[str, Any] = {}
  if head is not None:
    found, tensors = with_head(found, tensors, head, config)
    found |= {} if task_type is None else {"task_type": task_type}
    form = head_form(config)
    assert form is not None
    beside["config.json"] = sizes_json(config, dtype="float32") | family_of(config).config_json(config) | head_json(
        head, form)
  write_folder(folder, found, tensors, beside)


def _check_settings(
    found: dict[str, Any], tensors: dict[str, np.ndarray], joined: Tree, frozen: Tree, config: Any,
    settings: Mapping[str, Any],
) -> None:
  """Reads the adapter back and compares: a setting that was given wrongly shows in what the leaves join to."""
  plain = lambda leaf, whole: whole if leaf is None else leaf.w if isinstance(leaf, Annotated) else leaf
  params = jax.tree.map(plain, frozen, joined, is_leaf=is_leaf)
  again = from_tensors(found, tensors, params, config)
  back = dict(leaves_with_paths(again.transform.join(again.frozen, again.trainable)))
  for path, leaf in leaves_with_paths(joined):
    ours, theirs = jax.tree.flatten(leaf), jax.tree.flatten(back[path])
    if ours[1] != theirs[1] or not all(np.array_equal(x, y) for x, y in zip(ours[0], theirs[0], strict=True)):
      given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
      raise ValueError(f"the settings {given} do not describe the transform: read back, {path} is another matrix")
