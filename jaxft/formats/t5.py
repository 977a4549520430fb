"""T5's checkpoints: the names of its tensors, and its `config.json`, read and written."""

from typing import Any

from jaxft.formats.config_reader import NO, Reader
from jaxft.formats.names import HEAD, Rule, Tensors
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig

# What files may hold beside these: each side's own copy of the embedding, which is the same.
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# `feed_forward_proj`, our activation, whether it is gated, and the activation's name there
_FEED_FORWARD = {
  "relu": ("relu", False, "relu"), "gated-gelu": ("gelu_tanh", True, "gelu_new"), "gated-silu": ("silu", True, "silu"),
  "gated-relu": ("relu", True, "relu"), "silu": ("silu", False, "silu"), "gelu_new": ("gelu_tanh", False, "gelu_new"),
}


def t5_tensors(config: EncoderDecoderConfig) -> Tensors:
  """The tensors of a T5 of this config."""
  c = config
  sizes = {"vocab": c.vocab_size, "dim": c.dim, "mlp": c.mlp_dim, "wide": c.num_heads * c.head_dim,
           "buckets": c.buckets, "heads": c.num_heads}
  rules = [Rule("embed/tokens/embedding", "shared.weight", ("vocab", "dim"))]
  for side in ("encoder", "decoder"):
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rules += [Rule(f"{side}/relative/embedding", bias, ("buckets", "heads")), *_layer(side, gated=c.gated)]
    rules.append(Rule(f"{side}/norm/scale", f"{side}.final_layer_norm.weight", ("dim",)))
  head = () if c.tie_embeddings else (HEAD,)
  return Tensors((*rules, *head), sizes, {"encoder/layers": c.encoder_layers, "decoder/layers": c.decoder_layers})


def _layer(side: str, *, gated: bool) -> list[Rule]:
  here, there = f"{side}/layers/{{layer}}", f"{side}.block.{{layer}}.layer"
  kernel = lambda path, name, n_in, n_out: Rule(f"{here}/{path}/kernel", f"{there}.{name}.weight", (n_in, n_out), True)
  parts = [("attention", "SelfAttention")] + ([("cross_attention", "EncDecAttention")] if side == "decoder" else [])
  rules = []
  for i, (ours, theirs) in enumerate(parts):
    rules.append(Rule(f"{here}/{ours}_norm/scale", f"{there}.{i}.layer_norm.weight", ("dim",)))
    rules += [kernel(f"{ours}/{name}", f"{i}.{theirs}.{name[0]}", "dim", "wide") for name in ("query", "key", "value")]
    rules.append(kernel(f"{ours}/out", f"{i}.{theirs}.o", "wide", "dim"))
  last = len(parts)
  rules.append(Rule(f"{here}/mlp_norm/scale", f"{there}.{last}.layer_norm.weight", ("dim",)))
  for ours, theirs in (("gate", "wi_0"), ("up", "wi_1")) if gated else (("up", "wi"),):
    rules.append(kernel(f"mlp/{ours}", f"{last}.DenseReluDense.{theirs}", "dim", "mlp"))
  return [*rules, kernel("mlp/down", f"{last}.DenseReluDense.wo", "mlp", "dim")]


def read_t5(read: Reader) -> dict[str, Any]:
  """The fields of an `EncoderDecoderConfig` from a `config.json`.

  Whether the head is tied is also whether states are scaled before it. transformers 5 writes of every model that its
  embedding is tied, and `scale_decoder_outputs` tells the two apart.
  """
  kind = read.config.get("feed_forward_proj", "relu")
  if kind not in _FEED_FORWARD:
    read.refuse("feed_forward_proj", f"supported: {', '.join(map(repr, _FEED_FORWARD))}")
    kind = "relu"
  activation, gated, theirs = _FEED_FORWARD[kind]
  read.check({"dense_act_fn": (theirs,), "is_gated_act": (gated,), "is_encoder_decoder": (True,), "is_decoder": NO,
              "tie_encoder_decoder": NO})
  read.seen |= {"feed_forward_proj", "dropout_rate", "initializer_factor", "output_past", "task_specific_params"}
  tied = read("tie_word_embeddings", bool, True)
  scaled = read("scale_decoder_outputs", bool, tied)
  if scaled and not tied:
    read.refuse("scale_decoder_outputs", "supported: only beside a tied embedding")
  layers, vocab = read("num_layers", int, 6), read("vocab_size", int, 32128)
  special = read.special_tokens(vocab)
  missing = {"eos_id": 1, "pad_id": 0}
  special = {role: special[role] if f"{role[:3]}_token_id" in read.config else i for role, i in missing.items()}
  start = read.token("decoder_start_token_id")
  if start is None and special["pad_id"] is None:
    read.problems.append("decoder_start_token_id must be a token id where pad_token_id is null; got null")
  out = {
    "vocab_size": vocab, "dim": read("d_model", int, 512), "num_heads": read("num_heads", int, 8),
    "head_dim": read("d_kv", int, 64), "mlp_dim": read("d_ff", int, 2048), "encoder_layers": layers,
    "decoder_layers": read("num_decoder_layers", int, layers), "activation": activation, "gated": gated,
    "buckets": read("relative_attention_num_buckets", int, 32), "tie_embeddings": scaled,
    "farthest": read("relative_attention_max_distance", int, 128), "norm_eps": read("layer_norm_epsilon", float, 1e-6),
    "max_length": read("n_positions", int, 512),
  }
  return {**out, "start_id": special["pad_id"] or 0 if start is None else start, **special}


def t5_json(config: EncoderDecoderConfig) -> dict[str, Any]:
  """What the `config.json` of a T5 has, for transformers 4 and 5.

  Raises:
    ValueError: an activation that has no name there.
  """
  c = config
  names = {(ours, gated): kind for kind, (ours, gated, _) in _FEED_FORWARD.items()}
  return {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": c.dim, "d_kv": c.head_dim,
    "d_ff": c.mlp_dim, "num_heads": c.num_heads, "num_layers": c.encoder_layers, "num_decoder_layers": c.decoder_layers,
    "relative_attention_num_buckets": c.buckets, "relative_attention_max_distance": c.farthest,
    "feed_forward_proj": names[c.activation, c.gated], "layer_norm_epsilon": c.norm_eps, "is_encoder_decoder": True,
    "tie_word_embeddings": c.tie_embeddings, "decoder_start_token_id": c.start_id, "eos_token_id": c.eos_id,
    "pad_token_id": c.pad_id, "n_positions": c.max_length,
  }
