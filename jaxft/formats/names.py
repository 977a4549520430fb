"""How the tensors of this library and those of Hugging Face checkpoints are called: the name map, as a table.

One rule per tensor; `{layer}` stands for the layer's index on both sides. A kernel here is `[in, out]`, a weight
there `[out, in]`. Reading, writing, and importing or exporting adapters are all derived from these tables.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

STACK = "layers"


class Rule(NamedTuple):
  """One tensor under both names.

  Attributes:
    path: its path here with layers unrolled, such as `layers/{layer}/attention/query/kernel`.
    name: its name there.
    shape: its shape here, for one layer, as numbers or names of the sizes that `sizes` gives.
    transpose: whether its last two axes are the other way round there.
    there: its shape there where that has other axes, after the transposition; None where it has not.
  """

  path: str
  name: str
  shape: tuple[str | int, ...]
  transpose: bool = False
  there: tuple[str | int, ...] | None = None

  @property
  def layered(self) -> bool:
    return "{layer}" in self.path

  @property
  def stack(self) -> str:
    """What its layers belong to: `layers`, or `decoder/layers`; '' where it is in no layer."""
    return self.path.partition("/{layer}")[0] if self.layered else ""


def linear_rules(path: str, name: str, n_in: str, n_out: str, *, bias: bool) -> list[Rule]:
  """A matrix, and its bias if it has one."""
  kernel = Rule(f"{path}/kernel", f"{name}.weight", (n_in, n_out), transpose=True)
  return [kernel, Rule(f"{path}/bias", f"{name}.bias", (n_out,))] if bias else [kernel]


def norm_rules(path: str, name: str) -> list[Rule]:
  """A norm's scale and bias."""
  return [Rule(f"{path}/scale", f"{name}.weight", ("dim",)), Rule(f"{path}/bias", f"{name}.bias", ("dim",))]


_BERT = "encoder.layer.{layer}"
_OURS = f"{STACK}/{{layer}}"

ENCODER = (
  Rule("embed/tokens/embedding", "embeddings.word_embeddings.weight", ("vocab", "dim")),
  Rule("embed/positions/embedding", "embeddings.position_embeddings.weight", ("positions", "dim")),
  Rule("embed/types/embedding", "embeddings.token_type_embeddings.weight", ("types", "dim")),
  *norm_rules("embed/norm", "embeddings.LayerNorm"),
  *linear_rules(f"{_OURS}/attention/query", f"{_BERT}.attention.self.query", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/key", f"{_BERT}.attention.self.key", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/value", f"{_BERT}.attention.self.value", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/out", f"{_BERT}.attention.output.dense", "dim", "dim", bias=True),
  *norm_rules(f"{_OURS}/attention_norm", f"{_BERT}.attention.output.LayerNorm"),
  *linear_rules(f"{_OURS}/mlp/up", f"{_BERT}.intermediate.dense", "dim", "mlp", bias=True),
  *linear_rules(f"{_OURS}/mlp/down", f"{_BERT}.output.dense", "mlp", "dim", bias=True),
  *norm_rules(f"{_OURS}/mlp_norm", f"{_BERT}.output.LayerNorm"),
)

MPNET = (
  *(rule for rule in ENCODER if not rule.layered and "types" not in rule.path),
  Rule("relative/embedding", "encoder.relative_attention_bias.weight", ("buckets", "heads")),
  *linear_rules(f"{_OURS}/attention/query", f"{_BERT}.attention.attn.q", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/key", f"{_BERT}.attention.attn.k", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/value", f"{_BERT}.attention.attn.v", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/out", f"{_BERT}.attention.attn.o", "dim", "dim", bias=True),
  *norm_rules(f"{_OURS}/attention_norm", f"{_BERT}.attention.LayerNorm"),
  *(rule for rule in ENCODER if "/mlp" in rule.path),
)

_LLAMA = "model.layers.{layer}"

DECODER = (
  Rule("embed/tokens/embedding", "model.embed_tokens.weight", ("vocab", "dim")),
  Rule(f"{_OURS}/attention_norm/scale", f"{_LLAMA}.input_layernorm.weight", ("dim",)),
  *linear_rules(f"{_OURS}/attention/query", f"{_LLAMA}.self_attn.q_proj", "dim", "query", bias=False),
  *linear_rules(f"{_OURS}/attention/key", f"{_LLAMA}.self_attn.k_proj", "dim", "key", bias=False),
  *linear_rules(f"{_OURS}/attention/value", f"{_LLAMA}.self_attn.v_proj", "dim", "key", bias=False),
  *linear_rules(f"{_OURS}/attention/out", f"{_LLAMA}.self_attn.o_proj", "query", "dim", bias=False),
  Rule(f"{_OURS}/mlp_norm/scale", f"{_LLAMA}.post_attention_layernorm.weight", ("dim",)),
  *linear_rules(f"{_OURS}/mlp/gate", f"{_LLAMA}.mlp.gate_proj", "dim", "mlp", bias=False),
  *linear_rules(f"{_OURS}/mlp/up", f"{_LLAMA}.mlp.up_proj", "dim", "mlp", bias=False),
  *linear_rules(f"{_OURS}/mlp/down", f"{_LLAMA}.mlp.down_proj", "mlp", "dim", bias=False),
  Rule("norm/scale", "model.norm.weight", ("dim",)),
)

QK_NORM = tuple(
  Rule(f"{_OURS}/attention/{ours}_norm/scale", f"{_LLAMA}.self_attn.{theirs}_norm.weight", ("head",))
  for ours, theirs in (("query", "q"), ("key", "k")))

# The norm before the MLP has another name there, and its usual one is that of the norm behind attention.
POST_NORM = (
  Rule(f"{_OURS}/attention_post_norm/scale", f"{_LLAMA}.post_attention_layernorm.weight", ("dim",)),
  Rule(f"{_OURS}/mlp_norm/scale", f"{_LLAMA}.pre_feedforward_layernorm.weight", ("dim",)),
  Rule(f"{_OURS}/mlp_post_norm/scale", f"{_LLAMA}.post_feedforward_layernorm.weight", ("dim",)),
)

_VIT, _CLIP = "encoder.layer.{layer}", "encoder.layers.{layer}"


def _positions(name: str, *, there: tuple[str | int, ...] | None) -> Rule:
  return Rule("embed/positions", name, (1, "positions", "dim"), there=there)


def _patches(name: str) -> Rule:
  return Rule("embed/patches/kernel", name, ("pixels", "dim"), transpose=True,
              there=("dim", "channels", "patch", "patch"))


VIT = (
  _patches("embeddings.patch_embeddings.projection.weight"),
  Rule("embed/patches/bias", "embeddings.patch_embeddings.projection.bias", ("dim",)),
  Rule("embed/class_token", "embeddings.cls_token", (1, 1, "dim")),
  _positions("embeddings.position_embeddings", there=None),
  *norm_rules(f"{_OURS}/attention_norm", f"{_VIT}.layernorm_before"),
  *linear_rules(f"{_OURS}/attention/query", f"{_VIT}.attention.attention.query", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/key", f"{_VIT}.attention.attention.key", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/value", f"{_VIT}.attention.attention.value", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/out", f"{_VIT}.attention.output.dense", "dim", "dim", bias=True),
  *norm_rules(f"{_OURS}/mlp_norm", f"{_VIT}.layernorm_after"),
  *linear_rules(f"{_OURS}/mlp/up", f"{_VIT}.intermediate.dense", "dim", "mlp", bias=True),
  *linear_rules(f"{_OURS}/mlp/down", f"{_VIT}.output.dense", "mlp", "dim", bias=True),
  *norm_rules("norm", "layernorm"),
)

CLIP_VISION = (
  _patches("embeddings.patch_embedding.weight"),
  Rule("embed/class_token", "embeddings.class_embedding", (1, 1, "dim"), there=("dim",)),
  _positions("embeddings.position_embedding.weight", there=("positions", "dim")),
  *norm_rules("embed/norm", "pre_layrnorm"),
  *norm_rules(f"{_OURS}/attention_norm", f"{_CLIP}.layer_norm1"),
  *linear_rules(f"{_OURS}/attention/query", f"{_CLIP}.self_attn.q_proj", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/key", f"{_CLIP}.self_attn.k_proj", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/value", f"{_CLIP}.self_attn.v_proj", "dim", "dim", bias=True),
  *linear_rules(f"{_OURS}/attention/out", f"{_CLIP}.self_attn.out_proj", "dim", "dim", bias=True),
  *norm_rules(f"{_OURS}/mlp_norm", f"{_CLIP}.layer_norm2"),
  *linear_rules(f"{_OURS}/mlp/up", f"{_CLIP}.mlp.fc1", "dim", "mlp", bias=True),
  *linear_rules(f"{_OURS}/mlp/down", f"{_CLIP}.mlp.fc2", "mlp", "dim", bias=True),
  *norm_rules("norm", "post_layernorm"),
)

CLIP_TEXT = (
  Rule("embed/tokens/embedding", "embeddings.token_embedding.weight", ("vocab", "dim")),
  Rule("embed/positions/embedding", "embeddings.position_embedding.weight", ("positions", "dim")),
  *(rule for rule in CLIP_VISION if rule.layered),
  *norm_rules("norm", "final_layer_norm"),
)

HEAD = Rule("head/kernel", "lm_head.weight", ("dim", "vocab"), transpose=True)


class Tensors(NamedTuple):
  """All tensors of one model under both names.

  Attributes:
    rules: one for each tensor, in the order of files.
    sizes: what the names in `Rule.shape` stand for.
    num_layers: how many layers it has, or how many each of its stacks has.
  """

  rules: tuple[Rule, ...]
  sizes: Mapping[str, int]
  num_layers: int | Mapping[str, int]

  def layers(self, rule: Rule) -> Sequence[int | None]:
    """The layers that have a tensor of this rule; one None where it is in none."""
    if not rule.layered:
      return [None]
    return range(self.num_layers if isinstance(self.num_layers, int) else self.num_layers[rule.stack])

  def shape(self, rule: Rule) -> tuple[int, ...]:
    """The shape of one layer's tensor here."""
    return self._numbers(rule.shape)

  def to_here(self, rule: Rule, tensor: Any) -> Any:
    """One layer's tensor as it is here, from what it is there."""
    if rule.there is not None:
      shape = self.shape(rule)
      tensor = tensor.reshape(shape[::-1] if rule.transpose else shape)
    return tensor.T if rule.transpose else tensor

  def to_there(self, rule: Rule, tensor: Any) -> Any:
    """The inverse of `to_here`."""
    tensor = tensor.T if rule.transpose else tensor
    return tensor if rule.there is None else tensor.reshape(self._numbers(rule.there))

  def _numbers(self, sizes: tuple[str | int, ...]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else self.sizes[size] for size in sizes)

  def expected(self, name_of: Callable[[Rule], str], *, available: int) -> dict[str, tuple[int, ...]]:
    """What a checkpoint of this model holds: the shapes there, by name, in the order of the rules.

    Args:
      name_of: a rule's name in the checkpoint's format, with `{layer}`.
      available: how many tensors the checkpoint has, which bounds the list whatever number of layers a config claims.

    Raises:
      ValueError: the layers alone would need more tensors than there are.
    """
    layered = sum(len(self.layers(rule)) for rule in self.rules if rule.layered)
    if layered > available:
      raise ValueError(f"{layered} tensors in layers are claimed; there are {available} in all")
    out = {}
    for rule in self.rules:
      shape = self.shape(rule)
      shape = self._numbers(rule.there) if rule.there is not None else shape[::-1] if rule.transpose else shape
      for layer in self.layers(rule):
        out[name_of(rule).format(layer=layer)] = shape
    return out


def bert_tensors(*, vocab: int, dim: int, mlp: int, positions: int, types: int, num_layers: int) -> Tensors:
  """The tensors of a BERT of these sizes."""
  return Tensors(
      ENCODER, {"vocab": vocab, "dim": dim, "mlp": mlp, "positions": positions, "types": types}, num_layers)


def mpnet_tensors(
    *, vocab: int, dim: int, mlp: int, positions: int, buckets: int, heads: int, num_layers: int
) -> Tensors:
  """The tensors of an MPNet of these sizes."""
  sizes = {"vocab": vocab, "dim": dim, "mlp": mlp, "positions": positions, "buckets": buckets, "heads": heads}
  return Tensors(MPNET, sizes, num_layers)


def llama_tensors(
    *, vocab: int, dim: int, mlp: int, query: int, key: int, num_layers: int, tie_embeddings: bool, head: int,
    qk_norm: bool = False, post_norms: bool = False,
) -> Tensors:
  """The tensors of a Llama of these sizes, with `qk_norm` of a Qwen3, with `post_norms` too of a Gemma 3.

  `query` and `key` are the sizes of all heads.

  A tied head is no tensor.
  """
  sizes = {"vocab": vocab, "dim": dim, "mlp": mlp, "query": query, "key": key, "head": head}
  rules = DECODER if not post_norms else (*(r for r in DECODER if "mlp_norm" not in r.path), *POST_NORM)
  return Tensors((*rules, *(QK_NORM if qk_norm else ()), *(() if tie_embeddings else (HEAD,))), sizes, num_layers)


def vision_tensors(
    *, dim: int, mlp: int, positions: int, channels: int, patch: int, num_layers: int, clip: bool
) -> Tensors:
  """The tensors of a vision transformer of these sizes, under CLIP's names or ViT's."""
  sizes = {"dim": dim, "mlp": mlp, "positions": positions, "channels": channels, "patch": patch,
           "pixels": channels * patch**2}
  return Tensors(CLIP_VISION if clip else VIT, sizes, num_layers)


def clip_tensors(
    vision: Tensors, *, vocab: int, dim: int, mlp: int, positions: int, num_layers: int, out: int
) -> Tensors:
  """The tensors of a CLIP: those of its image tower, of a text tower of these sizes, and projections to `out`."""
  text = Tensors(CLIP_TEXT, {"vocab": vocab, "dim": dim, "mlp": mlp, "positions": positions}, num_layers)
  rules, sizes = [Rule("logit_scale", "logit_scale", ())], {"out": out}
  for side, tower in (("vision", vision), ("text", text)):
    own = lambda shape, side=side: shape and tuple(n if isinstance(n, int) else f"{side} {n}" for n in shape)
    rules += [rule._replace(path=f"{side}/{rule.path}", name=f"{side}_model.{rule.name}", shape=own(rule.shape),
                            there=own(rule.there)) for rule in tower.rules]
    name = "visual" if side == "vision" else side
    rules += linear_rules(f"projection/{side}", f"{name}_projection", f"{side} dim", "out", bias=False)
    sizes |= {f"{side} {size}": n for size, n in tower.sizes.items()}
  layers = {"vision/layers": vision.num_layers, "text/layers": num_layers}
  return Tensors(tuple(rules), sizes, layers)


def misfits(expected: Mapping[str, tuple[int, ...]], held: Mapping[str, Any]) -> list[str]:
  """What is wrong with a checkpoint's tensors (anything with a `shape`), one phrase for each that does not fit."""
  out = [f"missing {name} {shape}" for name, shape in expected.items() if name not in held]
  for name, info in held.items():
    if name not in expected:
      out.append(f"unknown {name} {info.shape}")
    elif info.shape != expected[name]:
      out.append(f"{name} has shape {info.shape}, the config wants {expected[name]}")
  return out


def template_of(path: str) -> str:
  """The rule's path for a leaf with layers unrolled, stacked or cut: `layers/mlp/up` -> `layers/{layer}/mlp/up`."""
  return re.sub(rf"(^|/){STACK}/(?:\d+(?::\d+)?/)?", rf"\1{STACK}/{{layer}}/", path, count=1)


def huggingface_name(path: str, rules: tuple[Rule, ...]) -> tuple[Rule, int | None]:
  """The rule and the layer of an unrolled path: `layers/3/mlp/up/kernel` -> `(the rule of mlp/up/kernel, 3)`.

  Raises:
    ValueError: no rule has this path.
  """
  template = template_of(path)
  layer = re.search(r"/(\d+)/", path) if "{layer}" in template else None
  for rule in rules:
    if rule.path == template:
      return rule, None if layer is None else int(layer[1])
  raise ValueError(f"path {path!r} has no name in Hugging Face checkpoints")
