"""Soft prompts and prefixes in PEFT's files: one tensor, `prompt_embeddings`."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxft.adapters.prefix import prefix_from_peft, prefix_to_peft
from jaxft.adapters.soft_prompt import p_tuning
from jaxft.checks import nearest, one_of
from jaxft.formats.families import family_of
from jaxft.formats.peft_files.folder import VERSION, read_folder, write_folder
from jaxft.formats.peft_files.methods import METHODS, PROMPTS
from jaxft.signatures import explain_errors

TENSOR = "prompt_embeddings"


@explain_errors
def save_peft_prompt(
    folder: str | os.PathLike, params: Mapping[str, Any], config: Any, *,
    peft_type: Literal["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"], base_model: str | None = None,
    task_type: str | None = None,
) -> None:
  """Writes the params of `soft_prompt`, `p_tuning` or `prefix` as PEFT stores them.

  The MLP or encoder that makes a prompt is evaluated and, as in PEFT, only its output is stored, so that it cannot be
  trained further.

  >>> import tempfile
  >>> from jaxft.models import DecoderConfig
  >>> config = DecoderConfig(vocab_size=8, dim=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> with tempfile.TemporaryDirectory() as at:
  ...   save_peft_prompt(at, {"prompt": jnp.ones((2, 4))}, config, peft_type="PROMPT_TUNING")
  ...   settings, tensors = read_folder(at)
  >>> settings["num_virtual_tokens"], settings["token_dim"], tensors[TENSOR].shape
  (2, 4, (2, 4))

  Args:
    folder: that holds no adapter yet.
    params: `{'prompt'}` for PROMPT_TUNING; these or those of `p_tuning` for P_TUNING; those of `prefix`, with or
      without an MLP, for PREFIX_TUNING.
    config: of the model.
    peft_type: PEFT's name of the method.
    base_model, task_type: as of `save_peft`.

  Raises:
    ValueError: another type, or params that are not its.
    FileExistsError: the folder holds an adapter.
  """
  one_of("peft_type", peft_type, PROMPTS)
  wanted = {"PROMPT_TUNING": ("prompt",), "P_TUNING": ("prompt", "mlp"), "PREFIX_TUNING": ("layers", "mlp")}[peft_type]
  if not any(name in params for name in wanted):
    raise ValueError(f"params of {peft_type} must have {' or '.join(wanted)}; got {', '.join(params)}")
  heads, head_dim, dim = _sizes(config)
  if peft_type == "PREFIX_TUNING":
    flat = prefix_to_peft(dict(params), config)
  elif "mlp" in params:
    length, hidden = params["rows"].shape[0], params["mlp"]["0"]["kernel"].shape[1]
    prompt: Any = p_tuning(length, dim, hidden=hidden).edits(dict(params))["embed"]
    flat = prompt.values
  else:
    flat = params["prompt"]
  prefix = peft_type == "PREFIX_TUNING"
  settings = {
      "peft_type": peft_type, "task_type": task_type or family_of(config).peft_task,
      "base_model_name_or_path": base_model, "inference_mode": True, "peft_version": VERSION,
      "num_virtual_tokens": flat.shape[0], "num_transformer_submodules": 1, "num_layers": config.num_layers,
      "num_attention_heads": heads if prefix else config.num_heads, "token_dim": heads * head_dim if prefix else dim}
  settings |= {
      "PROMPT_TUNING": {"prompt_tuning_init": "RANDOM"},
      "P_TUNING": {"encoder_hidden_size": dim, "encoder_reparameterization_type": "MLP"},
      "PREFIX_TUNING": {"encoder_hidden_size": dim, "prefix_projection": False}}[peft_type]
  write_folder(folder, settings, {TENSOR: np.asarray(flat)})


@explain_errors
def load_peft_prompt(folder: str | os.PathLike, config: Any) -> dict[str, Any]:
  """The params of a prompt or prefix that PEFT, or `save_peft_prompt`, has saved.

  >>> import tempfile
  >>> from jaxft.models import DecoderConfig
  >>> config = DecoderConfig(vocab_size=8, dim=2, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=8)
  >>> with tempfile.TemporaryDirectory() as at:
  ...   save_peft_prompt(at, {"prompt": jnp.array([[1.0, 2.0]])}, config, peft_type="PROMPT_TUNING")
  ...   load_peft_prompt(at, config)
  {'prompt': Array([[1., 2.]], dtype=float32)}

  Args:
    folder: with `adapter_config.json` and `adapter_model.safetensors`.
    config: of the model.

  Returns:
    Those of `soft_prompt` for PROMPT_TUNING and P_TUNING, of `prefix` for PREFIX_TUNING.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is corrupt or pickled, of another type, or for a model of other sizes.
  """
  settings, tensors = read_folder(folder)
  peft_type = settings.get("peft_type")
  if peft_type in METHODS:
    raise ValueError(f"{folder}: peft_type {peft_type} adapts modules: use load_peft")
  if peft_type not in PROMPTS:
    raise ValueError(f"{folder}: peft_type {peft_type!r} is not known here; {nearest(str(peft_type), PROMPTS)}")
  if set(tensors) != {TENSOR}:
    raise ValueError(f"{folder}: the file must hold the one tensor {TENSOR}; got {', '.join(sorted(tensors))}")
  prompt, dim = jnp.asarray(tensors[TENSOR]), config.dim
  if peft_type == "PREFIX_TUNING":
    return prefix_from_peft(prompt, config)
  if prompt.ndim != 2 or prompt.shape[1] != dim:
    raise ValueError(f"{folder}: {TENSOR} must be of shape [length, {dim}]; got {prompt.shape}")
  return {"prompt": prompt}


def _sizes(config: Any) -> tuple[int, int, int]:
  return *family_of(config).key_sizes(config), config.dim
