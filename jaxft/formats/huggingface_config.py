"""`config.json` of Hugging Face checkpoints of text, to our configs and back; accepts only what the models compute.

A config may ask for a variation that would load without complaint and give other numbers (scaled rotary angles,
biases, another activation, a sliding window). Every key is therefore one that is read, one whose value is checked, or
one known to leave the forward pass alone; any other key that is set is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from jaxft.checks import nearest
from jaxft.formats.config_reader import NO, Reader
from jaxft.formats.deberta import read_deberta
from jaxft.formats.gemma_config import gemma_json, gemma_options
from jaxft.formats.t5 import read_t5
from jaxft.models.attention.rope import RopeScaling
from jaxft.models.config.clip import ClipConfig, ClipTextConfig
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig
from jaxft.models.decoder import DecoderConfig
from jaxft.models.efficientnet import EfficientNetConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.models.vision import VisionConfig

_BERT_CHECKED = {
  "hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": NO, "add_cross_attention": NO,
  "is_encoder_decoder": NO,
}
# transformers takes 32 buckets whatever the config says.
_MPNET_CHECKED = {
  "hidden_act": ("gelu",), "relative_attention_num_buckets": (32,), "is_decoder": NO, "add_cross_attention": NO,
  "is_encoder_decoder": NO,
}
_LLAMA_CHECKED = {
  "hidden_act": ("silu",), "attention_bias": NO, "mlp_bias": NO, "is_encoder_decoder": NO, "rope_interleaved": NO,
}


TextConfig = EncoderConfig | DecoderConfig | EncoderDecoderConfig
Config = TextConfig | VisionConfig | EfficientNetConfig | ClipConfig


def text_part(config: Config) -> TextConfig | ClipTextConfig | None:
  """What of a model reads texts; None where nothing does."""
  if isinstance(config, ClipConfig):
    return config.text
  return config if isinstance(config, TextConfig) else None


def from_huggingface(
    config: Mapping[str, Any], *, pooling: str = "mean", normalize: bool = False
) -> TextConfig:
  """Our config of a `config.json`.

  Args:
    config: its content.
    pooling: of an encoder; not in that file, but in those of sentence-transformers.
    normalize: of an encoder.

  Raises:
    ValueError: a key is missing or of the wrong kind, or asks for what the models do not compute; all are named.
  """
  readers = {"bert": _bert, "mpnet": _mpnet, "deberta-v2": read_deberta, "llama": _llama, "mistral": _llama,
             "qwen3": _llama, "gemma3_text": _gemma, "t5": read_t5}
  kind = config.get("model_type")
  if kind not in readers:
    raise ValueError(f"model_type {kind!r} is not supported; {nearest(str(kind), sorted(readers))}")
  read = Reader(config)
  out = readers[kind](read)
  read.finish()
  if kind in ("bert", "mpnet", "deberta-v2"):
    return EncoderConfig(**out, pooling=pooling, normalize=normalize)
  return (EncoderDecoderConfig if kind == "t5" else DecoderConfig)(**out)


def sizes_of(read: Reader) -> dict[str, int]:
  return {
    "vocab_size": read("vocab_size", int), "dim": read("hidden_size", int),
    "num_layers": read("num_hidden_layers", int), "num_heads": read("num_attention_heads", int),
    "mlp_dim": read("intermediate_size", int),
  }


def _bert(read: Reader) -> dict[str, Any]:
  read.check(_BERT_CHECKED)
  read.seen.add("tie_word_embeddings")  # of a head that an encoder here does not have
  sizes = sizes_of(read)
  read.special_tokens(sizes["vocab_size"])
  return {
    **sizes,
    "max_length": read("max_position_embeddings", int, 512), "type_vocab_size": read("type_vocab_size", int, 2),
    "norm_eps": read("layer_norm_eps", float, 1e-12),
  }


def _mpnet(read: Reader) -> dict[str, Any]:
  read.check(_MPNET_CHECKED)
  read.seen.add("tie_word_embeddings")
  sizes = sizes_of(read)
  pad = read.special_tokens(sizes["vocab_size"])["pad_id"]
  offset = 2 if pad is None else pad + 1  # the row of the padding token's id stays unread, and those before it
  positions = read("max_position_embeddings", int, 512)
  if positions <= offset:
    read.problems.append(f"max_position_embeddings must be above {offset}; got {positions}")
  return {
    **sizes, "max_length": positions - offset, "position_offset": offset, "type_vocab_size": 0,
    "relative_buckets": 32, "norm_eps": read("layer_norm_eps", float, 1e-12),
  }


def _llama(read: Reader) -> dict[str, Any]:
  read.check(_LLAMA_CHECKED)
  mistral, qwen = (read.config.get("model_type") == name for name in ("mistral", "qwen3"))
  out = {
    **sizes_of(read), **_rope(read), "qk_norm": qwen,
    "max_length": read("max_position_embeddings", int), "norm_eps": read("rms_norm_eps", float, 1e-6),
    "tie_embeddings": read("tie_word_embeddings", bool, False),
  }
  out |= read.special_tokens(out["vocab_size"])
  out["num_kv_heads"] = read("num_key_value_heads", int, 8 if mistral else 32 if qwen else out["num_heads"])
  out["head_dim"] = read("head_dim", int, 128 if qwen else max(1, out["dim"] // out["num_heads"]))
  if qwen:
    read.check({"use_sliding_window": NO})
    read.seen |= {"sliding_window", "max_window_layers", "layer_types"}  # without one, a window says nothing
    if set(read.config.get("layer_types") or ()) - {"full_attention"}:
      read.refuse("layer_types", "supported: 'full_attention' in all")
  if mistral:
    read.seen.add("sliding_window")
    # transformers takes 4096 for a key that is absent, none for null.
    window = read.config.get("sliding_window", 4096)
    if window is not None and not (isinstance(window, int) and window >= out["max_length"]):
      read.refuse("sliding_window", f"supported: null, or at least max_position_embeddings ({out['max_length']})")
  return out


def _gemma(read: Reader) -> dict[str, Any]:
  sizes = sizes_of(read)
  return {**sizes, **gemma_options(read, sizes["num_layers"]), **read.special_tokens(sizes["vocab_size"])}


_STRETCH = {"factor": "factor", "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
            "original_max_position_embeddings": "original_length"}


def _rope(read: Reader) -> dict[str, Any]:
  """Base and stretching of the rotary angles, from the keys of transformers 4 or `rope_parameters` (transformers 5)."""
  thetas, scaling = [read("rope_theta", float, 10000.0)], None
  for key in ("rope_scaling", "rope_parameters"):
    read.seen.add(key)
    settings = read.config.get(key)
    if settings is None:
      continue
    named = settings if isinstance(settings, dict) else {"rope_type": settings}
    kinds = {named[name] for name in ("rope_type", "type") if name in named} or {"default"}
    stretched = kinds == {"llama3"} and set(_STRETCH) <= set(named)
    if not (stretched or kinds == {"default"}) or set(named) - {"rope_theta", "rope_type", "type"} - (
        set(_STRETCH) if stretched else set()):
      read.refuse(key, "supported: null, rope_type 'default', or 'llama3' with its four numbers, and a rope_theta")
      continue
    nested = Reader(named)
    if "rope_theta" in named:
      thetas.append(nested("rope_theta", float))
    if stretched:
      numbers = {ours: nested(theirs, int if ours == "original_length" else float) for theirs, ours in _STRETCH.items()}
      if numbers["low_freq_factor"] < numbers["high_freq_factor"]:
        scaling = RopeScaling(**numbers)
      else:
        read.refuse(key, "low_freq_factor must be below high_freq_factor")
    read.problems += nested.problems
  return {"rope_theta": thetas[-1], "rope_scaling": scaling}


def bert_json(config: EncoderConfig) -> dict[str, Any]:
  """What the `config.json` of a BERT has besides the sizes of every model."""
  return {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute",
    "type_vocab_size": config.type_vocab_size, "layer_norm_eps": config.norm_eps,
  }


def mpnet_json(config: EncoderConfig) -> dict[str, Any]:
  """The same of an MPNet, whose position table has rows that no token reads."""
  return {
    "architectures": ["MPNetModel"], "model_type": "mpnet", "hidden_act": "gelu", "layer_norm_eps": config.norm_eps,
    "relative_attention_num_buckets": config.relative_buckets, "pad_token_id": config.position_offset - 1,
    "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": config.max_length + config.position_offset,
  }


def llama_json(config: DecoderConfig) -> dict[str, Any]:
  """What the `config.json` of a Llama, Qwen3 or Gemma 3 has besides the sizes of every model, for transformers 4 and 5.
  """
  if config.window is not None:
    return gemma_json(config)
  scaling, kind = config.rope_scaling, "Qwen3" if config.qk_norm else "Llama"
  stretch = None if scaling is None else {
    "rope_type": "llama3", **{theirs: getattr(scaling, ours) for theirs, ours in _STRETCH.items()}}
  return {
    "architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(), "hidden_act": "silu",
    "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "rms_norm_eps": config.norm_eps,
    "rope_theta": config.rope_theta, "rope_scaling": stretch, "attention_bias": False,
    **({"use_sliding_window": False} if config.qk_norm else {"mlp_bias": False}),
    "tie_word_embeddings": config.tie_embeddings, "bos_token_id": config.bos_id, "eos_token_id": config.eos_id,
    "pad_token_id": config.pad_id,
  }


def sizes_json(config: Config, *, dtype: str) -> dict[str, Any]:
  """What every `config.json` has, and in those of text their sizes."""
  if not isinstance(config, TextConfig):
    return {"torch_dtype": dtype}
  if isinstance(config, EncoderDecoderConfig):
    return {"vocab_size": config.vocab_size, "torch_dtype": dtype}
  return {
    "vocab_size": config.vocab_size, "hidden_size": config.dim, "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads, "intermediate_size": config.mlp_dim,
    "max_position_embeddings": config.max_length, "torch_dtype": dtype,
  }
