"""What configs and names of models tell of their kind: whether their tensors are weights, and of one architecture."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxft.merging.streaming.inputs import InputModel

# What codes go with: in GPTQ, AWQ and HQQ; in bitsandbytes; in FP8 and compressed-tensors.
_CODES = re.compile(r"\.(qweight|qzeros|W_q|SCB|weight\.(absmax|quant_map|quant_state\..+)|"
                    r"weight_scale(_inv)?|weight_packed|weight_zero_point)$")
# Matrices, which in a file of integers are codes; the second are the experts of MXFP4.
_MATRIX = re.compile(r"(\.weight|_blocks)$")

# Keys that say nothing of the forward pass, or of which a merge takes care.
_SETTLED = frozenset("""
  _name_or_path transformers_version torch_dtype dtype use_cache initializer_range gradient_checkpointing
  pretraining_tp output_attentions output_hidden_states return_dict id2label label2id problem_type finetuning_task
  _attn_implementation vocab_size tie_word_embeddings max_position_embeddings hidden_dropout_prob
  attention_probs_dropout_prob attention_dropout classifier_dropout num_labels
""".split())
_COUNTS = re.compile(r"(^|_|n)(layers?|blocks?|depth)$|layer_types|_token_(id|index)$|dropout|^(max|min)_length$")


def check_weights(model: InputModel) -> None:
  """Raises ValueError where a model's tensors are codes, of which no sum and no mean is a weight.

  Args:
    model: an open model.
  """
  said = next((config["quantization_config"] for config in (model.config, *_parts(model.config))
               if config.get("quantization_config")), None)
  codes = [name for name in model.operands if _CODES.search(name)]
  packed = [name for name, x in model.operands.items()
            if _MATRIX.search(name) and len(x.shape) > 1 and np.issubdtype(x.dtype, np.integer)]
  if said is None and not codes and not packed:
    return
  if said is not None:
    how = said.get("quant_method") if isinstance(said, dict) else None
    why = f"quantization_config in its config.json says {how or 'so'}"
  else:
    why = f"it holds {(codes or packed)[0]}"
  raise ValueError(f"model {model.name} is quantized ({why}); a merge takes weights, not codes: name the model that it "
                   "was made of, or save it dequantized")


def other_kinds(models: Sequence[InputModel]) -> list[str]:
  """A note for each model whose config asks for another forward pass than that of the first, which the output gets."""
  first, *others = models
  notes = []
  for model in others:
    differing = _differing(first.config, model.config)
    if not differing:
      continue
    listed = ", ".join(f"{key} ({_short(one)} and {_short(other)})" for key, one, other in differing[:6])
    more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
    notes.append(f"the configs of {first.name} and {model.name} differ in {listed}{more}: the output has that of "
                 f"{first.name}, in which the other's tensors may mean something else")
  return notes


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
  """The keys that both have with other values."""
  out = []
  for key in one:
    if key not in other or key in _SETTLED or _COUNTS.search(key) or one[key] == other[key]:
      continue
    if isinstance(one[key], dict) and isinstance(other[key], dict):
      out += _differing(one[key], other[key], f"{prefix}{key}.")
    else:
      out.append((prefix + key, one[key], other[key]))
  return out


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  return [part for part in config.values() if isinstance(part, dict)]


def _short(value: Any) -> str:
  text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
  return text if len(text) <= 40 else f"{text[:37]}..."
