"""Llama models in GGUF files: config, params and tokenizer."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxft.formats.families import LLAMA
from jaxft.formats.gguf import GGUF
from jaxft.formats.huggingface import build_params
from jaxft.formats.names import Rule, misfits
from jaxft.formats.tokenizers import byte_level_bpe
from jaxft.models.decoder import DecoderConfig

NAMES = {
  "embed/tokens/embedding": "token_embd.weight",
  "layers/{layer}/attention_norm/scale": "blk.{layer}.attn_norm.weight",
  "layers/{layer}/attention/query/kernel": "blk.{layer}.attn_q.weight",
  "layers/{layer}/attention/key/kernel": "blk.{layer}.attn_k.weight",
  "layers/{layer}/attention/value/kernel": "blk.{layer}.attn_v.weight",
  "layers/{layer}/attention/out/kernel": "blk.{layer}.attn_output.weight",
  "layers/{layer}/mlp_norm/scale": "blk.{layer}.ffn_norm.weight",
  "layers/{layer}/mlp/gate/kernel": "blk.{layer}.ffn_gate.weight",
  "layers/{layer}/mlp/up/kernel": "blk.{layer}.ffn_up.weight",
  "layers/{layer}/mlp/down/kernel": "blk.{layer}.ffn_down.weight",
  "norm/scale": "output_norm.weight",
  "head/kernel": "output.weight",
}


# Metadata of the llama architecture that config_of reads; any other key may change what the model computes.
_KNOWN = {
  "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "rope.freq_base",
  "rope.dimension_count", "attention.head_count", "attention.head_count_kv", "attention.key_length",
  "attention.value_length", "attention.layer_norm_rms_epsilon",
}


def config_of(file: GGUF) -> DecoderConfig:
  """The config of a GGUF file of the llama architecture.

  Raises:
    ValueError: it is of another architecture, or a key is missing, malformed or asks for what the decoder does not
      compute.
  """
  m = file.metadata
  if (architecture := m.get("general.architecture")) != "llama":
    raise ValueError(f"{file.path}: general.architecture must be 'llama'; got {architecture!r}")
  embedding = file.tensors.get("token_embd.weight")
  if embedding is None or len(embedding.shape) != 2:
    raise ValueError(f"{file.path}: tensor 'token_embd.weight' [vocab, dim] is missing")

  def get(key: str, kind: type, default: Any = None) -> Any:
    value = m.get(f"llama.{key}", default)
    if isinstance(value, bool) or not isinstance(value, (int, kind)) or not 0 < value < 10**12:
      raise ValueError(f"{file.path}: llama.{key} must be a positive {kind.__name__}; got {value!r}")
    return kind(value)

  for key in sorted(m):
    if key.startswith("llama.") and key.removeprefix("llama.") not in _KNOWN:
      raise ValueError(f"{file.path}: {key} = {m[key]!r} is not supported")
  dim, heads = get("embedding_length", int), get("attention.head_count", int)
  head_dim = get("attention.key_length", int, max(1, dim // heads))
  for key in ("rope.dimension_count", "attention.value_length"):
    if get(key, int, head_dim) != head_dim:
      raise ValueError(f"{file.path}: llama.{key} must equal the head's size {head_dim}; got {m[f'llama.{key}']}")
  # float32 in the file; the shortest decimal that rounds to it is what was meant, such as 1e-5.
  shortest = lambda x: float(str(np.float32(x)))
  return DecoderConfig(
    vocab_size=embedding.shape[0], dim=dim, num_layers=get("block_count", int), num_heads=heads,
    num_kv_heads=get("attention.head_count_kv", int, heads), head_dim=head_dim,
    mlp_dim=get("feed_forward_length", int), max_length=get("context_length", int),
    norm_eps=shortest(get("attention.layer_norm_rms_epsilon", float)),
    rope_theta=shortest(get("rope.freq_base", float, 10000.0)),
    tie_embeddings="output.weight" not in file.tensors,
    **_token_ids(file, embedding.shape[0]),
  )


def load_gguf(
    file: GGUF, *, dtype: DTypeLike = jnp.float32, stacked: bool = True
) -> tuple[dict[str, Any], DecoderConfig]:
  """The params and the config of an open GGUF file of the llama architecture.

  Raises:
    ValueError: the tensors are not those of the file's own config; all are named.
  """
  config = config_of(file)
  tensors = LLAMA.tensors(config)
  try:
    expected = tensors.expected(lambda rule: NAMES[rule.path], available=len(file.tensors))
  except ValueError as e:
    raise ValueError(f"{file.path}: {e}") from None
  problems = misfits(expected, file.tensors)
  if problems:
    raise ValueError(f"{file.path}: {len(problems)} tensors do not fit the metadata: {'; '.join(problems)}")

  def read(rule: Rule, layer: int | None) -> np.ndarray:
    tensor = file.read(NAMES[rule.path].format(layer=layer))
    if "/query/" in rule.path or "/key/" in rule.path:
      tensor = _half_split(tensor, config.head_dim)
    return tensor.T if rule.transpose else tensor

  return build_params(tensors, read, dtype=dtype, stacked=stacked), config


def _half_split(w: np.ndarray, head_dim: int) -> np.ndarray:
  """Rows of a projection `[heads * head_dim, dim]` from rotary pairs side by side to pairs half a head apart."""
  pairs = w.reshape(-1, head_dim // 2, 2, w.shape[-1])
  return pairs.swapaxes(1, 2).reshape(w.shape)


def tokenizer_of(file: GGUF) -> Tokenizer:
  """The tokenizer that a GGUF file describes, as a `tokenizers.Tokenizer`.

  Raises:
    ValueError: it is not one of the kinds that `jaxft.formats.tokenizers` rebuilds exactly, or it is corrupt.
  """
  m = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
  try:
    if m.get("model") != "gpt2":
      raise ValueError(f"tokenizer.ggml.model must be 'gpt2' (byte-level BPE); got {m.get('model')!r}")
    bos = _token_ids(file, len(m.get("tokens", ())))["bos_id"] if m.get("add_bos_token") else None
    return byte_level_bpe(m.get("tokens"), m.get("merges"), pre=m.get("pre"), kinds=m.get("token_type"), bos_id=bos)
  except (ValueError, TypeError) as e:
    raise ValueError(f"{file.path}: {e}") from None


_ROLES = {"bos_id": "bos", "eos_id": "eos", "pad_id": "padding"}


def _token_ids(file: GGUF, vocab_size: int, names: Mapping[str, str] = _ROLES) -> dict[str, Any]:
  ids = {role: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for role, name in names.items()}
  for role, value in ids.items():
    if value is not None and (type(value) is not int or not 0 <= value < vocab_size):
      raise ValueError(f"{file.path}: {role} must be a token id below {vocab_size}; got {value!r}")
  return ids


def end_ids_of(file: GGUF, config: DecoderConfig) -> tuple[int, ...]:
  """The tokens beside `config.eos_id` that end an answer: of a turn, and of a message before a tool's answer.

  Raises:
    ValueError: one is no row of the embedding.
  """
  ids = _token_ids(file, config.vocab_size, {"end of turn": "eot", "end of message": "eom"}).values()
  return tuple(dict.fromkeys(token for token in ids if token is not None and token != config.eos_id))
