"""`Family`: all that the rest of the library must know of an architecture, in one record.

What reads or writes files, starts runs and makes tiny models takes the record of a config's class, and never asks a
config for its attributes to find out what it is. Another architecture is another record.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from jaxft.formats.huggingface_config import Config, bert_json, llama_json
from jaxft.formats.names import HEAD, Tensors, bert_tensors, llama_tensors
from jaxft.models import decoder, encoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.encoder import EncoderConfig


class Family(NamedTuple):
  """An architecture.

  Attributes:
    kind: what it is used for.
    config: the class of its configs.
    init: `(key, config) -> params`.
    tensors: `config -> ` its tensors under the names of Hugging Face checkpoints.
    prefix: what may stand before all of these names.
    tied: `config -> ` the name of a tensor that files may hold and that must equal the token embedding; None: no such.
    config_json: `config -> ` what its `config.json` has besides the sizes of every model.
    special_tokens: `(config, tokenizer) -> {role: token}`, for `tokenizer_config.json`.
    key_sizes: `config -> (key heads, size of a head)`.
    peft_task: its task in PEFT's files, where none is given.
    shrink: `(config, heads, dim) -> config` with that many heads and dimensions, otherwise as similar as possible.
  """

  kind: Literal["encoder", "decoder"]
  config: type
  init: Callable[..., dict[str, Any]]
  tensors: Callable[[Any], Tensors]
  prefix: str
  tied: Callable[[Any], str | None]
  config_json: Callable[[Any], dict[str, Any]]
  special_tokens: Callable[[Any, Tokenizer], dict[str, str]]
  key_sizes: Callable[[Any], tuple[int, int]]
  peft_task: str
  shrink: Callable[[Any, int, int], Any]


def _bert_special_tokens(config: EncoderConfig, tokenizer: Tokenizer) -> dict[str, str]:
  del config
  roles = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
  return {f"{role}_token": token for role, token in roles.items() if tokenizer.token_to_id(token) is not None}


def _llama_special_tokens(config: DecoderConfig, tokenizer: Tokenizer) -> dict[str, str]:
  ids = {"bos_token": config.bos_id, "eos_token": config.eos_id, "pad_token": config.pad_id}
  tokens = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
  return {name: token for name, token in tokens.items() if token is not None}


def _shrunk_llama(config: DecoderConfig, heads: int, dim: int) -> DecoderConfig:
  # A decoder with as many key heads as heads keeps that.
  kv_heads = heads if config.num_kv_heads == config.num_heads else heads // 2
  return dataclasses.replace(
      config, dim=dim, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim // heads, mlp_dim=2 * dim)


BERT = Family(
    kind="encoder",
    config=EncoderConfig,
    init=encoder.init,
    tensors=lambda c: bert_tensors(
        vocab=c.vocab_size, dim=c.dim, mlp=c.mlp_dim, positions=c.max_length, types=c.type_vocab_size,
        num_layers=c.num_layers),
    prefix="bert.",
    tied=lambda c: None,
    config_json=bert_json,
    special_tokens=_bert_special_tokens,
    key_sizes=lambda c: (c.num_heads, c.dim // c.num_heads),
    peft_task="FEATURE_EXTRACTION",
    shrink=lambda c, heads, dim: dataclasses.replace(c, dim=dim, num_heads=heads, mlp_dim=4 * dim),
)

LLAMA = Family(
    kind="decoder",
    config=DecoderConfig,
    init=decoder.init,
    tensors=lambda c: llama_tensors(
        vocab=c.vocab_size, dim=c.dim, mlp=c.mlp_dim, query=c.num_heads * c.head_dim, key=c.num_kv_heads * c.head_dim,
        num_layers=c.num_layers, tie_embeddings=c.tie_embeddings),
    prefix="",
    tied=lambda c: HEAD.name if c.tie_embeddings else None,
    config_json=llama_json,
    special_tokens=_llama_special_tokens,
    key_sizes=lambda c: (c.num_kv_heads, c.head_dim),
    peft_task="CAUSAL_LM",
    shrink=_shrunk_llama,
)

FAMILIES = (BERT, LLAMA)


def family_of(config: Config) -> Family:
  """The family of a config, by its class.

  Raises:
    TypeError: no family has such configs.
  """
  for family in FAMILIES:
    if isinstance(config, family.config):
      return family
  known = ", ".join(family.config.__name__ for family in FAMILIES)
  raise TypeError(f"config must be one of {known}; got {config!r:.80}")
