"""`Family`: all that the rest of the library must know of an architecture, in one record.

What reads or writes files, starts runs and makes tiny models takes the record of a config's class, and never asks a
config for its attributes to find out what it is. Another architecture is another record.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from jaxft.formats.deberta import deberta_json, deberta_tensors
from jaxft.formats.efficientnet_files import efficientnet_tensors
from jaxft.formats.huggingface_config import Config, bert_json, llama_json, mpnet_json
from jaxft.formats.names import HEAD, Tensors, bert_tensors, clip_tensors, llama_tensors, mpnet_tensors, vision_tensors
from jaxft.formats.t5 import COPIES, t5_json, t5_tensors
from jaxft.formats.vision_config import clip_json, efficientnet_json, vision_json
from jaxft.models import clip, decoder, efficientnet, encoder, vision
from jaxft.models.config.clip import ClipConfig
from jaxft.models.config.encoder_decoder import EncoderDecoderConfig, init as init_encoder_decoder
from jaxft.models.decoder import DecoderConfig
from jaxft.models.efficientnet import Block, EfficientNetConfig
from jaxft.models.encoder import EncoderConfig
from jaxft.models.vision import VisionConfig


class Family(NamedTuple):
  """An architecture.

  Attributes:
    kind: what it is used for.
    config: the class of its configs.
    init: `(key, config) -> params`.
    embed: `(params, config, *inputs, **options) -> [batch, dim]`, the inputs `ids` and `mask`, or standardized images;
      None: it gives no vectors.
    matrices: a glob of what methods that adapt matrices take where nothing is chosen.
    tensors: `config -> ` its tensors under the names of Hugging Face checkpoints.
    prefixes: what may stand before all of these names.
    tied: `config -> ` the names of tensors that files may hold and that must equal the token embedding.
    config_json: `config -> ` what its `config.json` has besides what `sizes_json` gives.
    special_tokens: `(config, tokenizer) -> {role: token}`, for `tokenizer_config.json`.
    key_sizes: `config -> (key heads, size of a head)`.
    peft_task: its task in PEFT's files, where none is given.
    shrink: `(config, layers, heads, dim) -> config` with that many of each, otherwise as similar as possible.
  """

  kind: Literal["encoder", "decoder", "encoder-decoder", "vision", "dual encoder"]
  config: type
  init: Callable[..., dict[str, Any]]
  embed: Callable[..., Any] | None
  matrices: str
  tensors: Callable[[Any], Tensors]
  prefixes: tuple[str, ...]
  tied: Callable[[Any], tuple[str, ...]]
  config_json: Callable[[Any], dict[str, Any]]
  special_tokens: Callable[[Any, Tokenizer], dict[str, str]]
  key_sizes: Callable[[Any], tuple[int, int]]
  peft_task: str
  shrink: Callable[[Any, int, int, int], Any]


def _encoder_tensors(config: EncoderConfig) -> Tensors:
  c = config
  sizes = {"vocab": c.vocab_size, "dim": c.dim, "mlp": c.mlp_dim, "positions": c.max_length + c.position_offset}
  if c.disentangled:
    return deberta_tensors(c)
  if c.relative_buckets:
    return mpnet_tensors(**sizes, buckets=c.relative_buckets, heads=c.num_heads, num_layers=c.num_layers)
  return bert_tensors(**sizes, types=c.type_vocab_size, num_layers=c.num_layers)


def _encoder_json(config: EncoderConfig) -> dict[str, Any]:
  """ValueError where none of BERT, MPNet and DeBERTa computes what the config says."""
  if config.disentangled and not config.position_offset:
    return deberta_json(config)
  mpnet = config.relative_buckets == 32
  if not config.position_table or config.relative_buckets not in (0, 32) or mpnet != (config.position_offset > 0) or (
      mpnet == (config.type_vocab_size > 0)):
    raise ValueError("config must be that of a BERT, with token types, or of an MPNet, with 32 relative_buckets and a "
                     f"position_offset, to be saved; got {config}")
  return mpnet_json(config) if mpnet else bert_json(config)


def _encoder_special_tokens(config: EncoderConfig, tokenizer: Tokenizer) -> dict[str, str]:
  roles = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
  if config.relative_buckets:
    roles = {"bos": "<s>", "eos": "</s>", "unk": "[UNK]", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
  return {f"{role}_token": token for role, token in roles.items() if tokenizer.token_to_id(token) is not None}


def _own_special_tokens(config: Any, tokenizer: Tokenizer) -> dict[str, str]:
  ids = {f"{role}_token": getattr(config, f"{role}_id", None) for role in ("bos", "eos", "pad")}
  tokens = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
  return {name: token for name, token in tokens.items() if token is not None}


def _shrunk_llama(config: DecoderConfig, layers: int, heads: int, dim: int) -> DecoderConfig:
  # A decoder with as many key heads as heads keeps that.
  kv_heads = heads if config.num_kv_heads == config.num_heads else heads // 2
  window = config.window and dataclasses.replace(config.window, size=4, every=min(config.window.every, layers))
  return dataclasses.replace(
      config, num_layers=layers, dim=dim, num_heads=heads, num_kv_heads=kv_heads, head_dim=dim // heads,
      mlp_dim=2 * dim, window=window)


def _shrunk_efficientnet(config: EfficientNetConfig, layers: int, heads: int, dim: int) -> EfficientNetConfig:
  """Every kind of block once: without expansion, with a residual, of both strides and kernels."""
  del layers, heads
  blocks = (Block(8, 8, kernel=3, stride=1, expand=1), Block(8, 12, kernel=3, stride=2, expand=6),
            Block(12, 12, kernel=5, stride=1, expand=6), Block(12, 16, kernel=5, stride=2, expand=6))
  return dataclasses.replace(config, blocks=blocks, stem=8, dim=dim, image_size=64)


ENCODER = Family(
    kind="encoder",
    config=EncoderConfig,
    init=encoder.init,
    embed=encoder.embed,
    matrices="layers/**/kernel",
    tensors=_encoder_tensors,
    prefixes=("bert.", "mpnet.", "deberta."),
    tied=lambda c: (),
    config_json=_encoder_json,
    special_tokens=_encoder_special_tokens,
    key_sizes=lambda c: (c.num_heads, c.dim // c.num_heads),
    peft_task="FEATURE_EXTRACTION",
    shrink=lambda c, layers, heads, dim: dataclasses.replace(
        c, num_layers=layers, dim=dim, num_heads=heads, mlp_dim=4 * dim),
)

LLAMA = Family(
    kind="decoder",
    config=DecoderConfig,
    init=decoder.init,
    embed=None,
    matrices="layers/**/kernel",
    tensors=lambda c: llama_tensors(
        vocab=c.vocab_size, dim=c.dim, mlp=c.mlp_dim, query=c.num_heads * c.head_dim, key=c.num_kv_heads * c.head_dim,
        num_layers=c.num_layers, tie_embeddings=c.tie_embeddings, head=c.head_dim, qk_norm=c.qk_norm,
        post_norms=c.post_norms),
    prefixes=(),
    tied=lambda c: (HEAD.name,) if c.tie_embeddings else (),
    config_json=llama_json,
    special_tokens=_own_special_tokens,
    key_sizes=lambda c: (c.num_kv_heads, c.head_dim),
    peft_task="CAUSAL_LM",
    shrink=_shrunk_llama,
)

ENCODER_DECODER = Family(
    kind="encoder-decoder",
    config=EncoderDecoderConfig,
    init=init_encoder_decoder,
    embed=None,
    matrices="{encoder,decoder}/layers/**/kernel",
    tensors=t5_tensors,
    prefixes=(),
    tied=lambda c: COPIES + ((HEAD.name,) if c.tie_embeddings else ()),
    config_json=t5_json,
    special_tokens=_own_special_tokens,
    key_sizes=lambda c: (c.num_heads, c.head_dim),
    peft_task="SEQ_2_SEQ_LM",
    shrink=lambda c, layers, heads, dim: dataclasses.replace(
        c, encoder_layers=layers, decoder_layers=layers + 1, dim=dim, num_heads=heads, head_dim=dim // heads,
        mlp_dim=2 * dim),
)

VIT = Family(
    kind="vision",
    config=VisionConfig,
    init=vision.init,
    embed=vision.embed,
    matrices="layers/**/kernel",
    tensors=lambda c: vision_tensors(
        dim=c.dim, mlp=c.mlp_dim, positions=c.num_positions, channels=c.channels, patch=c.patch_size,
        num_layers=c.num_layers, clip=c.embed_norm),
    prefixes=("vit.", "vision_model."),
    tied=lambda c: (),
    config_json=vision_json,
    special_tokens=lambda c, tokenizer: {},
    key_sizes=lambda c: (c.num_heads, c.dim // c.num_heads),
    peft_task="FEATURE_EXTRACTION",
    shrink=lambda c, layers, heads, dim: dataclasses.replace(
        c, num_layers=layers, dim=dim, num_heads=heads, mlp_dim=4 * dim, image_size=4 * c.patch_size),
)


def _no_keys(config: EfficientNetConfig) -> tuple[int, int]:
  raise ValueError(f"config must be that of a model with attention; got {config!r:.80}")


EFFICIENTNET = Family(
    kind="vision",
    config=EfficientNetConfig,
    init=efficientnet.init,
    embed=efficientnet.embed,
    matrices="blocks/*/{expand,project}/kernel",
    tensors=efficientnet_tensors,
    prefixes=(),
    tied=lambda c: (),
    config_json=efficientnet_json,
    special_tokens=lambda c, tokenizer: {},
    key_sizes=_no_keys,
    peft_task="FEATURE_EXTRACTION",
    shrink=_shrunk_efficientnet,
)

def _no_one_stack(config: ClipConfig) -> tuple[int, int]:
  raise ValueError(f"config must be that of a model with one stack of layers; got {config!r:.80}")


def _shrunk_clip(config: ClipConfig, layers: int, heads: int, dim: int) -> ClipConfig:
  text = dataclasses.replace(config.text, num_layers=layers + 1, dim=dim, num_heads=heads, mlp_dim=4 * dim)
  return dataclasses.replace(config, vision=VIT.shrink(config.vision, layers, heads, dim), text=text, dim=dim)


CLIP = Family(
    kind="dual encoder",
    config=ClipConfig,
    init=clip.init,
    embed=None,
    matrices="{vision,text}/layers/**/kernel",
    tensors=lambda c: clip_tensors(
        VIT.tensors(c.vision), vocab=c.text.vocab_size, dim=c.text.dim, mlp=c.text.mlp_dim,
        positions=c.text.max_length, num_layers=c.text.num_layers, out=c.dim),
    prefixes=(),
    tied=lambda c: (),
    config_json=clip_json,
    special_tokens=lambda c, tokenizer: {},
    key_sizes=_no_one_stack,
    peft_task="FEATURE_EXTRACTION",
    shrink=_shrunk_clip,
)

FAMILIES = (ENCODER, LLAMA, ENCODER_DECODER, VIT, EFFICIENTNET, CLIP)


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
