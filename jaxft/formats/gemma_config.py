"""The keys of Gemma 3's `config.json` (`model_type` "gemma3_text"), to a decoder's options and back."""

from typing import Any

from jaxft.formats.config_reader import NO, Reader
from jaxft.models.attention.rope import LinearScaling
from jaxft.models.config.window import Window
from jaxft.models.decoder import DecoderConfig

_CHECKED = {
  "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": NO, "use_bidirectional_attention": NO,
  "attn_logit_softcapping": NO, "final_logit_softcapping": NO, "is_encoder_decoder": NO,
}
_KINDS = {True: "full_attention", False: "sliding_attention"}
# What distinguishes the family, whatever its sizes.
_FAMILY: dict[str, Any] = {
  "qk_norm": True, "post_norms": True, "zero_centered_norms": True, "scale_embeddings": True,
  "activation": "gelu_tanh",
}


def gemma_options(read: Reader, num_layers: int) -> dict[str, Any]:
  """The options of a `DecoderConfig` besides the sizes of every model and the special tokens; faults go to `read`."""
  read.check(_CHECKED)
  read.seen.add("hidden_act")  # of an older form, which nobody reads
  every = read("sliding_window_pattern", int, read("_sliding_window_pattern", int, 6))
  if (kinds := read.config.get("layer_types")) is not None:
    read.seen.add("layer_types")
    full = [i + 1 for i, kind in enumerate(kinds) if kind == _KINDS[True]] if isinstance(kinds, list) else []
    every = full[0] if full else num_layers + 1
    if kinds != [_KINDS[(i + 1) % every == 0] for i in range(num_layers)]:
      read.refuse("layer_types", "supported: one of num_hidden_layers, 'full_attention' in each n-th layer and "
                                 "'sliding_attention' in the others")
  theta, local, scaling = _rotations(read)
  return {
    **_FAMILY, "num_kv_heads": read("num_key_value_heads", int, 4), "head_dim": read("head_dim", int, 256),
    "max_length": read("max_position_embeddings", int, 131_072), "norm_eps": read("rms_norm_eps", float, 1e-6),
    "query_scale": read("query_pre_attn_scalar", float, 256.0) ** -0.5,
    "tie_embeddings": read("tie_word_embeddings", bool, True), "rope_theta": theta, "rope_scaling": scaling,
    "window": Window(read("sliding_window", int, 4096), every=every, rope_theta=local),
  }


def _rotations(read: Reader) -> tuple[float, float, LinearScaling | None]:
  """Both bases, and the stretching of the first, from the keys of transformers 4 or `rope_parameters` (5)."""
  theta, local = read("rope_theta", float, 1e6), read("rope_local_base_freq", float, 1e4)
  read.seen |= {"rope_scaling", "rope_parameters"}
  scaling = _stretch(read, "rope_scaling", read.config.get("rope_scaling"))[1]
  parameters = read.config.get("rope_parameters")
  if parameters is None:
    return theta, local, scaling
  if not isinstance(parameters, dict) or set(parameters) - set(_KINDS.values()):
    read.refuse("rope_parameters", f"supported: settings for {' and '.join(_KINDS.values())}")
    return theta, local, scaling
  given, again = _stretch(read, "rope_parameters", parameters.get(_KINDS[True]))
  local_given, stretched = _stretch(read, "rope_parameters", parameters.get(_KINDS[False]))
  if stretched is not None:
    read.refuse("rope_parameters", "windowed layers are not stretched")
  return given or theta, local_given or local, again or scaling


def _stretch(read: Reader, key: str, settings: Any) -> tuple[float | None, LinearScaling | None]:
  """The base and the stretching of one kind of layer."""
  if settings is None:
    return None, None
  named = settings if isinstance(settings, dict) else {"rope_type": settings}
  kind = named.get("rope_type", named.get("type", "default"))
  if kind not in ("default", "linear") or set(named) - {"rope_type", "type", "rope_theta", "factor"}:
    read.refuse(key, "supported: null, rope_type 'default', or 'linear' with a factor, and a rope_theta")
    return None, None
  nested = Reader(named)
  theta = nested("rope_theta", float) if "rope_theta" in named else None
  scaling = LinearScaling(nested("factor", float)) if kind == "linear" else None
  read.problems += nested.problems
  return theta, scaling


def gemma_json(config: DecoderConfig) -> dict[str, Any]:
  """What the `config.json` of a Gemma 3 has besides the sizes of every model, in transformers' keys, 4 and 5.

  Raises:
    ValueError: the config has a window, but is not one of this family otherwise.
  """
  window, scaling = config.window, config.rope_scaling
  differs = [name for name, value in _FAMILY.items() if getattr(config, name) != value]
  if window is None or differs or not isinstance(scaling, LinearScaling | None):
    raise ValueError(f"config must be that of a Gemma 3 to be saved with a window; got {config}, which differs in "
                     f"{', '.join(differs) or 'rope_scaling'}")
  stretch = {"rope_type": "default"} if scaling is None else {"rope_type": "linear", "factor": scaling.factor}
  scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
  return {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "rms_norm_eps": config.norm_eps,
    "query_pre_attn_scalar": round(scale**-2), "sliding_window": window.size, "sliding_window_pattern": window.every,
    "layer_types": [_KINDS[bool(window.sees_all(i))] for i in range(config.num_layers)],
    "rope_theta": config.rope_theta, "rope_local_base_freq": window.rope_theta,
    "rope_scaling": None if scaling is None else stretch, "attention_bias": False, "attn_logit_softcapping": None,
    "final_logit_softcapping": None, "tie_word_embeddings": config.tie_embeddings, "bos_token_id": config.bos_id,
    "eos_token_id": config.eos_id, "pad_token_id": config.pad_id,
  }
