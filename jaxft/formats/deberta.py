"""Checkpoints of DeBERTa's second and third version: the names of tensors, and `config.json`, read and written."""

from typing import Any

from jaxft.formats.config_reader import NO, Reader
from jaxft.formats.names import ENCODER, Rule, Tensors, linear_rules, norm_rules
from jaxft.models.attention import Disentangled
from jaxft.models.encoder import EncoderConfig

_NORMED = "layer_norm"


def deberta_tensors(config: EncoderConfig) -> Tensors:
  """The tensors of a DeBERTa of this config."""
  c, kind = config, config.disentangled
  assert kind is not None
  sizes = {"vocab": c.vocab_size, "dim": c.dim, "mlp": c.mlp_dim, "positions": c.max_length, "types": c.type_vocab_size,
           "rows": 2 * kind.span}
  absent = ["positions"] * (not c.position_table) + ["types"] * (not c.type_vocab_size)
  rules = [rule for rule in ENCODER if not rule.layered and rule.path.split("/")[1] not in absent]
  rules.append(Rule("relative/embedding", "encoder.rel_embeddings.weight", ("rows", "dim")))
  rules += norm_rules("relative/norm", "encoder.LayerNorm") if kind.normed else []
  here, there = "layers/{layer}/attention", "encoder.layer.{layer}.attention.self"
  names = {"query": "query_proj", "key": "key_proj", "value": "value_proj"}
  if not kind.shared:
    names |= {"position_key": "pos_key_proj"} if kind.content_to_position else {}
    names |= {"position_query": "pos_query_proj"} if kind.position_to_content else {}
  for ours, theirs in names.items():
    rules += linear_rules(f"{here}/{ours}", f"{there}.{theirs}", "dim", "dim", bias=True)
  rest = [rule for rule in ENCODER if rule.layered and rule.path.split("/")[3] not in ("query", "key", "value")]
  return Tensors((*rules, *rest), sizes, c.num_layers)


def read_deberta(read: Reader) -> dict[str, Any]:
  """The fields of an `EncoderConfig` from a `config.json`."""
  read.check({"hidden_act": ("gelu",), "relative_attention": (True,), "is_decoder": NO, "add_cross_attention": NO,
              "is_encoder_decoder": NO, "conv_kernel_size": (None, 0)})
  if "relative_attention" not in read.config:
    read.problems.append("relative_attention must be true; it is absent")
  read.seen |= {
    "tie_word_embeddings", "legacy", "pooler_dropout", "pooler_hidden_act", "pooler_hidden_size", "conv_act",
    "conv_groups", "position_buckets", "max_relative_positions", "pos_att_type", "norm_rel_ebd", "z_steps"}
  dim, positions = read("hidden_size", int, 1536), read("max_position_embeddings", int, 512)
  heads = read("num_attention_heads", int, 24)
  read.check({"embedding_size": (None, dim), "attention_head_size": (None, dim // heads)})
  count = lambda key: value if isinstance(value := read.config.get(key), int) and value > 0 else 0
  farthest, buckets = count("max_relative_positions") or positions, count("position_buckets")
  kinds, norms = (_parts(read, key) for key in ("pos_att_type", "norm_rel_ebd"))
  if strange := sorted((kinds - {"c2p", "p2c"}) | (norms - {"none", _NORMED})):
    read.problems.append(
      f"pos_att_type may have c2p and p2c, norm_rel_ebd none and {_NORMED}; got {', '.join(strange)}")
  vocab = read("vocab_size", int, 128100)
  read.special_tokens(vocab)
  types = read.config.get("type_vocab_size")
  return {
    "vocab_size": vocab, "dim": dim, "num_heads": heads, "num_layers": read("num_hidden_layers", int, 24),
    "mlp_dim": read("intermediate_size", int, 6144), "max_length": positions,
    "position_table": read("position_biased_input", bool, True),
    "type_vocab_size": read("type_vocab_size", int, 1) if types else _none(read, "type_vocab_size"),
    "norm_eps": read("layer_norm_eps", float, 1e-7),
    "disentangled": Disentangled(
      span=buckets or farthest, farthest=farthest if buckets else 0, content_to_position="c2p" in kinds,
      position_to_content="p2c" in kinds, shared=read("share_att_key", bool, False), normed=_NORMED in norms),
  }


def _none(read: Reader, key: str) -> int:
  read.seen.add(key)
  return 0


def _parts(read: Reader, key: str) -> set[str]:
  """A list, or its names with bars between."""
  value = read.config.get(key) or []
  return {str(part).strip().lower() for part in (value.split("|") if isinstance(value, str) else value)}


def deberta_json(config: EncoderConfig) -> dict[str, Any]:
  """What the `config.json` of a DeBERTa has besides the sizes of every model."""
  kind = config.disentangled
  assert kind is not None
  terms = {"c2p": kind.content_to_position, "p2c": kind.position_to_content}
  return {
    "architectures": ["DebertaV2Model"], "model_type": "deberta-v2", "hidden_act": "gelu", "relative_attention": True,
    "position_biased_input": config.position_table, "pos_att_type": [name for name, has in terms.items() if has],
    "position_buckets": kind.span if kind.farthest else -1, "max_relative_positions": kind.farthest or kind.span,
    "share_att_key": kind.shared, "norm_rel_ebd": _NORMED if kind.normed else "none",
    "type_vocab_size": config.type_vocab_size, "layer_norm_eps": config.norm_eps,
  }
