"""`config.json` and `preprocessor_config.json` of vision models and of CLIP, to our configs and back.

As for text: accepts only what the models compute exactly. EfficientNet-Lite has no form of Hugging Face's; here it has
one of its own.
"""

from collections.abc import Mapping
from typing import Any

from jaxft.formats.config_reader import Reader
from jaxft.models.config.clip import ClipConfig, ClipTextConfig
from jaxft.models.efficientnet import Block, EfficientNetConfig
from jaxft.models.pixels import FILTERS, Framing
from jaxft.models.vision import VisionConfig

_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
# Of the pixels in [0, 1], where there is no preprocessor_config.json.
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


ImageConfig = VisionConfig | EfficientNetConfig | ClipConfig


def from_vision_json(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ImageConfig:
  """Our config of the `config.json` of a vision model, or of a CLIP.

  Args:
    config: its content.
    preprocessor: that of `preprocessor_config.json`, how pictures become the pixels that the model reads; empty where
      there is none, which is read as transformers' processor for such a model has it by itself.

  Raises:
    ValueError: a key is missing or of the wrong kind, or asks for what the models do not compute; all are named.
  """
  read = Reader(config)
  out = VISION[config["model_type"]](read, preprocessor)
  read.finish()
  return out


def _vit(read: Reader, preprocessor: Mapping[str, Any]) -> VisionConfig:
  read.check({"qkv_bias": (True,)})
  # Of the pooler, which embeddings here do not use, and of masked-image pretraining.
  read.seen |= {"pooler_act", "pooler_output_size", "encoder_stride"}
  return _transformer(read, preprocessor, _HALF, _HALF, crops=False, eps=1e-12)


# Of the whole CLIP, of which a tower is a part, of its initialization, and of a text model's head.
_OF_NO_WEIGHT = {"projection_dim", "initializer_factor", "dropout", "tie_word_embeddings"}


def _clip(read: Reader, preprocessor: Mapping[str, Any]) -> VisionConfig:
  read.seen |= _OF_NO_WEIGHT
  return _transformer(
      read, preprocessor, _CLIP_MEAN, _CLIP_STD, crops=True, eps=1e-5, activation="quick_gelu", embed_norm=True,
      patch_bias=False)


def _transformer(read, preprocessor, mean, std, *, crops, eps, activation="gelu", **fixed) -> VisionConfig:
  read.check({"hidden_act": tuple(_ACTIVATIONS)})
  sizes = {
    name: read(key, int, default) for name, key, default in (
      ("image_size", "image_size", 224), ("patch_size", "patch_size", 16), ("dim", "hidden_size", None),
      ("num_layers", "num_hidden_layers", None), ("num_heads", "num_attention_heads", None),
      ("mlp_dim", "intermediate_size", None), ("channels", "num_channels", 3))
  }
  norm_eps = read("layer_norm_eps", float, eps)
  read.finish()  # what is wrong here is told before what the config says of it
  given = {name: value for name, value in preprocessor.items() if value is not None}
  framing = _framing(given, sizes["image_size"], crops)
  if given.get("do_normalize", True):
    mean, std = tuple(given.get("image_mean", mean)), tuple(given.get("image_std", std))
  else:
    mean, std = (0.0,) * sizes["channels"], (1.0,) * sizes["channels"]
  return VisionConfig(
      **sizes, norm_eps=norm_eps, activation=_ACTIVATIONS[read.config.get("hidden_act", activation)], mean=mean,
      std=std, framing=framing, **fixed)


# What the preprocessor's file also says: of no pixel, of every picture made red, green and blue as all are here, of the
# labels of a training set, or read below where the sides are.
_OF_NO_PIXEL = {
  "image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "_valid_processor_keys",
  "return_tensors", "data_format", "input_data_format", "device", "disable_grouping", "do_convert_rgb",
  "do_reduce_labels", "image_mean", "image_std", "do_normalize", "default_to_square", "image_processor_class",
}


def _framing(given: Mapping[str, Any], image_size: int, crops: bool) -> Framing:
  """How transformers' processor makes a picture square; `crops`: whether it cuts out the middle where nothing is said.

  Raises:
    ValueError: it does what is not done here, or the result is not as large as the model's images.
  """
  read = Reader(given)
  read.seen |= _OF_NO_PIXEL | {"size", "crop_size", "resample", "rescale_factor", "do_center_crop"}
  read.check({"do_resize": (True,), "do_rescale": (True,)})
  read.check({"do_center_crop": (True, False), "do_normalize": (True, False)})
  crop = given.get("do_center_crop", crops) is True
  own = {"height": image_size, "width": image_size}
  size = given.get("size", {"shortest_edge": image_size} if crop else own)
  if type(size) is int:
    size = {"height": size, "width": size} if given.get("default_to_square", not crops) else {"shortest_edge": size}
  cut = given.get("crop_size", own)
  shorter_side = size.get("shortest_edge") if isinstance(size, Mapping) and len(size) == 1 else None
  whole = size == own
  if crop and cut not in (own, image_size):
    read.refuse("crop_size", f"supported: the model's image_size, {image_size}")
  if not whole and not (crop and type(shorter_side) is int and shorter_side >= image_size):
    read.refuse("size", f"supported: a height and width of the model's image_size, {image_size}" + (
        "; or a shortest_edge of at least so much, of which the middle is cut out" if crop else ""))
  factor = given.get("rescale_factor", 1 / 255)
  if not isinstance(factor, float) or abs(255 * factor - 1) > 1e-6:
    read.refuse("rescale_factor", "supported: 1 / 255")
  number = given.get("resample", FILTERS.index("bicubic" if crops else "bilinear"))
  if type(number) is not int or not 0 <= number < len(FILTERS):
    read.refuse("resample", f"supported: 0 to {len(FILTERS) - 1}, Pillow's {', '.join(FILTERS)}")
  read.finish("preprocessor_config.json", "pixels as they are")
  return Framing(None if whole or shorter_side == image_size else shorter_side, whole, FILTERS[number])


def _efficientnet(read: Reader, preprocessor: Mapping[str, Any]) -> EfficientNetConfig:
  read.seen.add("blocks")
  blocks = read.config.get("blocks")
  if not (isinstance(blocks, list) and blocks and all(
      isinstance(b, list) and len(b) == 5 and all(type(n) is int and 0 < n < 10**6 for n in b) for b in blocks)):
    read.problems.append(f"blocks must be lists of inputs, outputs, kernel, stride and expand; got {blocks!r:.80}")
  sizes = {name: read(name, int) for name in ("stem", "dim", "num_classes", "image_size", "channels")}
  read.finish()
  return EfficientNetConfig(
      tuple(Block(*b) for b in blocks or ()), **sizes, mean=tuple(preprocessor["image_mean"]),
      std=tuple(preprocessor["image_std"]),
      framing=_framing(preprocessor, sizes["image_size"], True) if "resample" in preprocessor else Framing())


def _whole_clip(read: Reader, preprocessor: Mapping[str, Any]) -> ClipConfig:
  read.seen |= {"initializer_factor", "logit_scale_init_value"}
  dim, parts = read("projection_dim", int, 512), {}
  for side in ("vision", "text"):
    key = f"{side}_config"
    read.seen |= {key, f"{key}_dict"}
    own, again = read.config.get(key), read.config.get(f"{key}_dict")
    # Old files say a tower twice, or in the second place alone.
    own = again if not own and isinstance(again, Mapping) else own
    if not isinstance(own, Mapping):
      read.refuse(key, "supported: an object with the tower's sizes")
    elif not isinstance(again or {}, Mapping) or any(own.get(name) != value for name, value in (again or {}).items()):
      read.refuse(f"{key}_dict", f"supported: null, or what {key} says")
    parts[side] = own
  read.finish()
  towers = {}
  for side, reader in (("vision", _clip), ("text", _clip_text)):
    try:
      towers[side] = reader(Reader(parts[side]), preprocessor)
    except ValueError as e:
      raise ValueError(f"{side}_config: {e}") from None
  return ClipConfig(**towers, dim=dim)


def _clip_text(read: Reader, preprocessor: Mapping[str, Any]) -> ClipTextConfig:
  del preprocessor
  read.check({"hidden_act": tuple(_ACTIVATIONS), "is_decoder": (None, False), "add_cross_attention": (None, False)})
  read.seen |= _OF_NO_WEIGHT
  sizes = {
    name: read(key, int, default) for name, key, default in (
      ("vocab_size", "vocab_size", 49408), ("dim", "hidden_size", 512), ("num_layers", "num_hidden_layers", 12),
      ("num_heads", "num_attention_heads", 8), ("mlp_dim", "intermediate_size", 2048),
      ("max_length", "max_position_embeddings", 77))
  }
  norm_eps = read("layer_norm_eps", float, 1e-5)
  eos = read.special_tokens(sizes["vocab_size"])["eos_id"] if "eos_token_id" in read.config else 49407
  read.finish()
  # Old files say 2 and mean the token of the highest id, and transformers reads them so.
  return ClipTextConfig(
      **sizes, norm_eps=norm_eps, activation=_ACTIVATIONS[read.config.get("hidden_act", "quick_gelu")],
      eos_id=None if eos in (None, 2) else eos)


VISION = {"vit": _vit, "clip_vision_model": _clip, "clip": _whole_clip, "efficientnet_lite": _efficientnet}


def vision_json(config: VisionConfig) -> dict[str, Any]:
  """The `config.json` of a vision transformer: of CLIP's image tower where it has a norm before the layers, else ViT.

  Raises:
    ValueError: neither of the two computes what the config says.
  """
  clip = config.embed_norm
  if config.patch_bias == clip or not config.class_token:
    raise ValueError("config must be that of a ViT or of CLIP's image tower to be saved: a class token, and a bias of "
                     f"the patches or a norm before the layers; got {config}")
  return {
    "architectures": ["CLIPVisionModel" if clip else "ViTModel"],
    "model_type": "clip_vision_model" if clip else "vit",
    "image_size": config.image_size, "patch_size": config.patch_size, "num_channels": config.channels,
    "hidden_size": config.dim, "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
    "intermediate_size": config.mlp_dim, "layer_norm_eps": config.norm_eps,
    "hidden_act": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation],
  } | ({} if clip else {"qkv_bias": True})


def clip_json(config: ClipConfig) -> dict[str, Any]:
  """The `config.json` of a CLIP.

  Raises:
    ValueError: its image tower is not CLIP's, or its vocabulary is too small for one that ends texts by the highest id.
  """
  text = config.text
  if not config.vision.embed_norm:
    raise ValueError(f"config must have CLIP's image tower, with a norm before the layers; got {config.vision}")
  return {
    "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": config.dim,
    "vision_config": vision_json(config.vision) | {"projection_dim": config.dim},
    "text_config": {
      "model_type": "clip_text_model", "vocab_size": text.vocab_size, "hidden_size": text.dim,
      "num_hidden_layers": text.num_layers, "num_attention_heads": text.num_heads, "intermediate_size": text.mlp_dim,
      "max_position_embeddings": text.max_length, "layer_norm_eps": text.norm_eps, "projection_dim": config.dim,
      "hidden_act": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[text.activation],
      "bos_token_id": None, "pad_token_id": None, "eos_token_id": 2 if text.eos_id is None else text.eos_id,
    },
  }


def efficientnet_json(config: EfficientNetConfig) -> dict[str, Any]:
  """The `config.json` of an EfficientNet-Lite."""
  blocks = [[b.inputs, b.outputs, b.kernel, b.stride, b.expand] for b in config.blocks]
  return {
    "model_type": "efficientnet_lite", "blocks": blocks, "stem": config.stem, "dim": config.dim,
    "num_classes": config.num_classes, "image_size": config.image_size, "channels": config.channels,
  }


def preprocessor_json(config: ImageConfig) -> dict[str, Any]:
  """The `preprocessor_config.json`: how pictures become square, and their pixels are standardized."""
  config = config.vision if isinstance(config, ClipConfig) else config
  framing, square = config.framing, {"height": config.image_size, "width": config.image_size}
  # CLIP's processor does all that a `Framing` says, for a ViT too; that of ViT cuts nothing out.
  return {
    "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
    "size": square if framing.stretch else {"shortest_edge": framing.shorter_side or config.image_size},
    "resample": FILTERS.index(framing.resample), "do_center_crop": not framing.stretch, "crop_size": square,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(config.mean),
    "image_std": list(config.std),
  }
