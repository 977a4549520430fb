"""Writing Llama models as GGUF files, for llama.cpp: in half precision, or in blocks of eight bits."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxft.checks import one_of
from jaxft.files import write_atomically
from jaxft.formats.gguf_llama import NAMES
from jaxft.formats.huggingface import to_named
from jaxft.formats.names import DECODER, HEAD
from jaxft.formats.tokenizers import PRE_TOKENIZERS, byte_level_bpe
from jaxft.models.decoder import DecoderConfig

KINDS = ("F16", "Q8_0")
_BLOCK = 32  # of Q8_0, along a row
_ENDS = ("add_eot_token_id", "add_eom_token_id")
# key of generation_config.json -> what writes it, and its kind
_SAMPLING = {"temperature": ("temp", float), "top_k": ("top_k", int), "top_p": ("top_p", float),
             "min_p": ("min_p", float), "repetition_penalty": ("penalty_repeat", float)}


def save_gguf(
    params: Mapping[str, Any], config: DecoderConfig, path: str | os.PathLike, *, kind: str = "F16",
    tokenizer: Tokenizer | None = None, chat_template: str | None = None, name: str | None = None,
    end_ids: Sequence[int] = (), generation: Mapping[str, Any] | None = None,
) -> None:
  """Writes a file of the llama architecture, whole or not at all.

  Vectors stay float32, as llama.cpp has them; rows that blocks of 32 do not divide stay in half precision.

  >>> import tempfile
  >>> from jaxft.formats import load
  >>> model = load("smollm2-135m:tiny")
  >>> with tempfile.TemporaryDirectory() as at:
  ...   save_gguf(model.params, model.config, f"{at}/model.gguf", tokenizer=model.tokenizer)
  ...   load(f"{at}/model.gguf").config == model.config
  True

  Args:
    params: stacked, unrolled or cut; structured leaves are materialized.
    config: of a decoder.
    path: of the file.
    kind: of the matrices: F16, or Q8_0, in blocks of 32 numbers of eight bits with a scale.
    tokenizer: a byte-level BPE of a kind that llama.cpp knows and this library rebuilds; None writes none.
    chat_template: the Jinja template that goes with it.
    name: for `general.name`.
    end_ids: tokens that end an answer beside `config.eos_id`, at most two: the format has one for the end of a turn and
      one for the end of a message.
    generation: of `Pretrained.generation`; where it says that answers are drawn, its temperature, top_k, top_p, min_p
      and repetition_penalty are written as the usual ones of the file.

  Raises:
    ValueError: the params are not those of the config, a matrix overflows half precision, or llama.cpp has no name for
      what the tokenizer does.
    TypeError: the config is no decoder's.
    ImportError: the `gguf` package is not installed.
  """
  try:
    import gguf
  except ImportError:
    raise ImportError("writing GGUF files takes the gguf package: pip install 'jaxft[gguf]'") from None
  one_of("kind", kind, KINDS)
  if not isinstance(config, DecoderConfig):
    raise TypeError(f"config must be that of a decoder; got {config!r:.60}")
  if config.qk_norm or config.window or config.post_norms or config.rope_scaling:
    raise ValueError(f"config must be that of a Llama without stretched positions to be written; got {config}")
  if len(end_ids := [token for token in end_ids if token != config.eos_id]) > len(_ENDS):
    raise ValueError(f"end_ids must be at most {len(_ENDS)} beside the config's eos_id {config.eos_id}, as the format "
                     f"has no more; got {end_ids}")
  tensors, words = to_named(params, config), None if tokenizer is None else _vocabulary(tokenizer, config)
  ours = {rule.name.format(layer=layer): (rule, NAMES[rule.path].format(layer=layer))
          for rule in (*DECODER, HEAD) for layer in (range(config.num_layers) if rule.layered else [None])}

  def write(part: Path) -> None:
    writer = gguf.GGUFWriter(part, "llama")
    _metadata(writer, config, name, kind)
    _sampling(writer, generation or {})
    if words is not None:
      _tokenizer(writer, words, config, chat_template, end_ids)
    for theirs, tensor in tensors.items():
      rule, there = ours[theirs]
      array = np.asarray(tensor, np.float32)
      if "/query/" in rule.path or "/key/" in rule.path:
        array = _side_by_side(array, config.head_dim)
      if array.ndim < 2:
        writer.add_tensor(there, np.ascontiguousarray(array))
      elif kind == "Q8_0" and array.shape[-1] % _BLOCK == 0:
        blocks = gguf.quants.quantize(np.ascontiguousarray(array), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(there, blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
      else:
        with np.errstate(over="ignore"):
          half = np.ascontiguousarray(array, np.float16)
        if not np.isfinite(half).all():
          raise ValueError(f"{rule.path} holds numbers that half precision does not; got {np.abs(array).max():g}")
        writer.add_tensor(there, half)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

  write_atomically(path, write)


def _metadata(writer: Any, config: DecoderConfig, name: str | None, kind: str) -> None:
  import gguf

  file_type = {"F16": gguf.LlamaFileType.MOSTLY_F16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind]
  if name is not None:
    writer.add_name(name)
  writer.add_file_type(int(file_type))
  writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
  writer.add_vocab_size(config.vocab_size)
  writer.add_context_length(config.max_length)
  writer.add_embedding_length(config.dim)
  writer.add_block_count(config.num_layers)
  writer.add_feed_forward_length(config.mlp_dim)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_rope_dimension_count(config.head_dim)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.norm_eps)


def _sampling(writer: Any, generation: Mapping[str, Any]) -> None:
  """The usual settings of drawn answers, where they are drawn at all."""
  if not generation.get("do_sample"):
    return
  for key, (name, kind) in _SAMPLING.items():
    if isinstance(value := generation.get(key), int | float) and not isinstance(value, bool):
      getattr(writer, f"add_sampling_{name}")(kind(value))


def _side_by_side(w: np.ndarray, head_dim: int) -> np.ndarray:
  """Rows of a projection from rotary pairs half a head apart to pairs side by side, as llama.cpp turns them."""
  return w.reshape(-1, 2, head_dim // 2, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def _vocabulary(tokenizer: Tokenizer, config: DecoderConfig) -> dict[str, Any]:
  """Tokens, kinds, merges and the name of the pre-tokenizer."""
  said = json.loads(tokenizer.to_str())
  if said["model"].get("type") != "BPE":
    raise ValueError(f"tokenizer must be a byte-level BPE to be written; got {said['model'].get('type')}")
  by_id = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
  tokens = [by_id.get(i, f"[unused{i}]") for i in range(config.vocab_size)]
  kinds = [1 if i in by_id else 5 for i in range(config.vocab_size)]  # normal, unused
  for added in said["added_tokens"]:
    kinds[added["id"]] = 3 if added["special"] else 4  # control, user-defined
  merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in said["model"]["merges"]]
  for pre in PRE_TOKENIZERS:
    again = json.loads(byte_level_bpe(tokens, merges, pre=pre, kinds=kinds).to_str())
    if all(again[part] == said[part] for part in ("pre_tokenizer", "normalizer")):
      return {"tokens": tokens, "kinds": kinds, "merges": merges, "pre": pre}
  raise ValueError("tokenizer must split texts as one that llama.cpp knows and this library rebuilds: "
                   f"{', '.join(PRE_TOKENIZERS)}; got {json.dumps(said['pre_tokenizer'])[:200]}")


def _tokenizer(
    writer: Any, words: Mapping[str, Any], config: DecoderConfig, chat_template: str | None, end_ids: Sequence[int]
) -> None:
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(words["pre"])
  writer.add_token_list(words["tokens"])
  writer.add_token_types(words["kinds"])
  writer.add_token_merges(words["merges"])
  for add, token in ((writer.add_bos_token_id, config.bos_id), (writer.add_eos_token_id, config.eos_id),
                     (writer.add_pad_token_id, config.pad_id)):
    if token is not None:
      add(token)
  for name, token in zip(_ENDS, end_ids, strict=False):
    getattr(writer, name)(token)
  writer.add_add_bos_token(False)
  if chat_template is not None:
    writer.add_chat_template(chat_template)
