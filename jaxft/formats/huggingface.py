"""Hugging Face model folders (`config.json`, safetensors, tokenizer) to params trees and back.

BERT, MPNet and DeBERTa encoders, with the pooling that sentence-transformers keeps beside them, Llama, Qwen3 and Gemma
3 decoders, T5, ViT, CLIP and its image tower, and EfficientNet-Lite, whose folders are this library's own. What is
loaded is exactly what is on disk: a tensor that is missing, unknown, of another shape or of another kind is an error,
never a warning.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from jaxft.files import followed, part_of, remove_leftovers, write_text
from jaxft.formats.families import family_of
from jaxft.formats.heads import Head, head_form, head_json, head_names, head_tensors
from jaxft.formats.huggingface_config import Config, TextConfig, from_huggingface, sizes_json, text_part
from jaxft.formats.names import Rule, Tensors, misfits, template_of
from jaxft.formats.safetensors import Checkpoint, open_checkpoint, parse_json, read_json, save_shards
from jaxft.formats.tokenizers import GENERATION, check_tokenizer, generation_json
from jaxft.formats.vision_config import VISION, from_vision_json, preprocessor_json
from jaxft.leaves import materialize
from jaxft.models.encoder import EncoderConfig
from jaxft.signatures import explain_errors
from jaxft.tree import layer_of, leaves_with_paths

# Buffers that old versions saved, a table of T5's that nothing reads, and the poolers of BERT, MPNet and ViT and
# the heads of DeBERTa's pretraining, which embeddings do not use.
_IGNORED = re.compile(
    r"(bert\.|mpnet\.|deberta\.|vit\.|vision_model\.|text_model\.)?(embeddings\.position_ids|pooler\..*)|.*\.rotary_emb\.inv_freq|"
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight|"
    r"(lm|mask)_predictions\..*")

EMBEDDING = "embed/tokens/embedding"


@explain_errors
def load_directory(
    path: str | os.PathLike, *, dtype: DTypeLike = jnp.float32, stacked: bool = True
) -> tuple[dict[str, Any], Config]:
  """Loads the params and the config of a Hugging Face folder.

  >>> import tempfile
  >>> from jaxft.formats import load
  >>> model = load("minilm-l6:tiny")
  >>> with tempfile.TemporaryDirectory() as at:
  ...   save_directory(model.params, model.config, f"{at}/model")
  ...   params, config = load_directory(f"{at}/model", dtype=jnp.bfloat16, stacked=False)
  >>> list(params["layers"]), params["layers"]["0"]["mlp"]["up"]["kernel"].dtype.name, config == model.config
  (['0', '1'], 'bfloat16', True)

  Args:
    path: the folder.
    dtype: of the params; tensors of another floating dtype are cast.
    stacked: layers along a leading axis `layers/...`, or one subtree per layer `layers/0/...`.

  Raises:
    FileNotFoundError: the folder, or its `config.json`, does not exist.
    ValueError: the checkpoint is corrupt or pickled, its config asks for what the models do not compute, or its
      tensors are not those of its config; all faults of one kind are named together.
  """
  path = Path(path)
  config = read_config(path)
  checkpoint = open_checkpoint(path)
  family = family_of(config)
  tensors = family.tensors(config)
  prefix = next((p for p in family.prefixes if any(name.startswith(p) for name in checkpoint.tensors)), "")
  _check(checkpoint, config, prefix, path)

  def read(rule: Rule, layer: int | None) -> np.ndarray:
    name = prefix + rule.name.format(layer=layer)
    tensor = checkpoint.read(name)
    checkpoint.release(name)  # else the whole file would lie in memory beside the params
    return tensors.to_here(rule, tensor)

  return build_params(tensors, read, dtype=dtype, stacked=stacked), config


def build_params(
    tensors: Tensors, read: Callable[[Rule, int | None], np.ndarray], *, dtype: DTypeLike = jnp.float32,
    stacked: bool = True,
) -> dict[str, Any]:
  """A params tree from a function that reads one layer's tensor, in our layout.

  Stacked layers are read straight into one array, so that besides the params one leaf and one tensor are held.
  """
  params: dict[str, Any] = {}
  for rule in tensors.rules:
    shape, layers = tensors.shape(rule), tensors.layers(rule)
    if not rule.layered:
      _set(params, rule.path, _filled(shape, [(..., read(rule, None))], dtype))
    elif stacked:
      each = ((layer, read(rule, layer)) for layer in layers)
      _set(params, rule.path.replace("/{layer}", ""), _filled((len(layers), *shape), each, dtype))
    else:
      for layer in layers:
        _set(params, rule.path.format(layer=layer), _filled(shape, [(..., read(rule, layer))], dtype))
  return params


def _filled(shape: tuple[int, ...], parts: Any, dtype: DTypeLike) -> jax.Array:
  out = np.empty(shape, dtype)
  for index, tensor in parts:
    out[index] = tensor
  return jnp.asarray(out)


def _set(tree: dict[str, Any], path: str, leaf: Any) -> None:
  *parents, name = path.split("/")
  for parent in parents:
    tree = tree.setdefault(parent, {})
  tree[name] = leaf


def read_config(path: str | os.PathLike) -> Config:
  """The config of a Hugging Face folder; an encoder's pooling from the files of sentence-transformers beside it.

  Without those files an encoder pools by the mean and does not normalize, as sentence-transformers does then.
  """
  path = Path(path)
  if not (path / "config.json").is_file():
    raise FileNotFoundError(f"no config.json in {path}")
  try:
    config = read_json(path / "config.json")
    if config.get("model_type") in VISION:
      beside = path / "preprocessor_config.json"
      return from_vision_json(config, read_json(beside) if beside.is_file() else {})
    return from_huggingface(config, **_pooling(path))
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None


def _pooling(path: Path) -> dict[str, Any]:
  if not (path / "modules.json").is_file():
    return {}
  try:
    modules = parse_json((path / "modules.json").read_text(encoding="utf-8"))
    folders = {module["type"].rpartition(".")[2]: str(module["path"]) for module in modules}
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
    raise ValueError(f"modules.json is not a list of modules with type and path: {e}") from None
  if list(folders) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
    raise ValueError(f"modules.json must list Transformer, Pooling and perhaps Normalize; got {list(folders)}")
  if not re.fullmatch(r"[\w-]+", folders["Pooling"]):
    raise ValueError(f"modules.json: the path of Pooling must be a folder's name; got {folders['Pooling']!r}")
  settings = read_json(path / folders["Pooling"] / "config.json")
  # One key per mode until sentence-transformers 5, then one key for all.
  modes = [key.removeprefix("pooling_mode_") for key, on in settings.items() if key.startswith("pooling_mode_") and on]
  modes += [settings["pooling_mode"]] if "pooling_mode" in settings else []
  known = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
  if len(modes) != 1 or str(modes[0]) not in known:
    raise ValueError(f"{folders['Pooling']}/config.json: pooling must be mean or cls; got {modes}")
  return {"pooling": known[modes[0]], "normalize": "Normalize" in folders}


def _check(checkpoint: Checkpoint, config: Config, prefix: str, path: Path) -> None:
  """Raises one ValueError that names all tensors that are missing, unknown, of another shape, or not floating."""
  family = family_of(config)
  try:
    expected = family.tensors(config).expected(
        lambda rule: prefix + rule.name, available=len(checkpoint.tensors))
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None
  heads = head_names(config)  # which `read_head` reads
  held = {name: info for name, info in checkpoint.tensors.items()
          if not _IGNORED.fullmatch(name) and name not in heads}
  embedding = prefix + next((rule.name for rule in family.tensors(config).rules if rule.path == EMBEDDING), "")
  for name in family.tied(config):
    if prefix + name in held:
      _check_tied(checkpoint, prefix + name, held.pop(prefix + name), embedding, path)
  problems = misfits(expected, held)
  problems += [
    f"{name} has dtype {info.dtype}, which is not floating" for name, info in held.items()
    if name in expected and not jnp.issubdtype(info.dtype, jnp.floating)
  ]
  if problems:
    raise ValueError(f"{path}: {len(problems)} tensors do not fit config.json: " + "; ".join(problems))


def _check_tied(checkpoint: Checkpoint, name: str, copy: Any, embedding: str, path: Path) -> None:
  """A checkpoint may store a tied table again; if the two differ, the model is not the one that config.json says."""
  info = checkpoint.tensors.get(embedding)
  if info is not None and (info.shape != copy.shape or not np.array_equal(
      checkpoint.read(name), checkpoint.read(embedding), equal_nan=True)):
    raise ValueError(f"{path}: config.json ties the head to the embedding, but {name} differs from {embedding}")


def to_named(params: Mapping[str, Any], config: Config) -> dict[str, np.ndarray]:
  """A params tree as the arrays of a Hugging Face checkpoint, by name; views where no copy is needed.

  Args:
    params: stacked, unrolled or cut; structured leaves are materialized.
    config: their config.

  Raises:
    ValueError: the params are not those of the config; all faults are named.
  """
  tensors = family_of(config).tensors(config)
  rules = {rule.path: rule for rule in tensors.rules}
  layers: dict[tuple[str, int | None], np.ndarray] = {}
  problems = []
  for path, leaf in leaves_with_paths(materialize(params)):
    if leaf is None:
      problems.append(f"{path} is a hole")
      continue
    template = template_of(path)
    if template not in rules:
      problems.append(f"unknown {path} {tuple(leaf.shape)}")
      continue
    rule, where = rules[template], layer_of(path, leaf) if rules[template].layered else None
    array = np.asarray(leaf)
    if isinstance(where, np.ndarray) and len(array) > len(where):
      problems.append(f"{path} holds {len(array)} layers and its name says {len(where)}")
    # A piece with fewer rows than its name says lacks layers, which are named below.
    for layer, one in zip(where, array, strict=False) if isinstance(where, np.ndarray) else [(where, array)]:
      if one.shape != (wanted := tensors.shape(rule)):
        problems.append(f"{path} has shape {one.shape} in one layer, the config wants {wanted}")
        break
      layers[template, None if layer is None else int(layer)] = tensors.to_there(rule, one)
  wanted = [(rule.path, layer) for rule in rules.values() for layer in tensors.layers(rule)]
  problems += [f"missing {path.format(layer=layer)}" for path, layer in wanted if (path, layer) not in layers]
  problems += [f"unknown {path.format(layer=layer)}" for path, layer in sorted(layers.keys() - set(wanted))]
  if problems:
    raise ValueError(f"params do not fit the config: {'; '.join(problems)}")
  return {rules[path].name.format(layer=layer): layers[path, layer] for path, layer in wanted}


@explain_errors
def save_directory(
    params: Mapping[str, Any], config: Config, path: str | os.PathLike, *, tokenizer: Tokenizer | None = None,
    chat_template: str | None = None, max_length: int | None = None, head: Head | None = None,
    end_ids: Sequence[int] = (), generation: Mapping[str, Any] | None = None, max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Saves a folder that `load_directory`, transformers and sentence-transformers load; it appears whole or not at all.

  >>> import tempfile
  >>> from jaxft.formats import load
  >>> model = load("minilm-l6:tiny")
  >>> with tempfile.TemporaryDirectory() as at:
  ...   save_directory(model.params, model.config, f"{at}/model", tokenizer=model.tokenizer)
  ...   sorted(name for name in os.listdir(f"{at}/model") if "token" in name or "model." in name)
  ['model.safetensors', 'tokenizer.json', 'tokenizer_config.json']

  Args:
    params: stacked, unrolled or cut; structured leaves are materialized. Their dtype is kept.
    config: their config.
    path: a folder that does not exist yet, or is empty.
    tokenizer: saved as `tokenizer.json`.
    chat_template: the Jinja template that goes with it.
    max_length: the most tokens of an encoder's input; None takes the size of its position table.
    head: of a classifier or regressor, for which transformers must have a form (`jaxft.formats.heads`).
    end_ids: of a decoder the tokens that end an answer beside its `eos_id`, for `generation_config.json`.
    generation: what that file is to hold beside them: temperature and so on, as `Pretrained.generation` has it.
    max_shard_bytes: larger checkpoints are cut into several files.

  Raises:
    FileExistsError: there is something at `path`.
    ValueError: the params are not those of the config, or the tokenizer has tokens for which the embedding has no row,
      or there is no form for the head.
  """
  path = followed(path)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise FileExistsError(f"{path} exists; saving does not replace it")
  tensors, said, text = to_named(params, config), {}, text_part(config)
  if head is not None:
    if (form := head_form(config)) is None:
      raise ValueError(f"head must be None beside a model for which transformers has no such class; got {config!r:.80}")
    tensors = {form.prefix + name: x for name, x in tensors.items()} | head_tensors(head, form)
    said = head_json(head, form)
  if tokenizer is not None:
    if text is None:
      raise ValueError("tokenizer must be None beside a model of images")
    check_tokenizer(tokenizer, text.vocab_size)
  remove_leftovers(path)
  part = part_of(path)
  part.mkdir(parents=True)
  try:
    # transformers refuses a file whose header does not name a framework.
    save_shards(tensors, part, max_shard_bytes=max_shard_bytes, metadata={"format": "pt"})
    dtype = str(jnp.result_type(*(x.dtype for x in tensors.values())))
    family = family_of(config)
    files = {"config.json": sizes_json(config, dtype=dtype) | family.config_json(config) | said}
    if tokenizer is not None and text is not None:
      tokenizer.save(str(part / "tokenizer.json"))
      special = family.special_tokens(config, tokenizer)
      files["tokenizer_config.json"] = _tokenizer_config(chat_template, max_length or text.max_length) | special
    if isinstance(config, EncoderConfig):
      files |= _sentence_transformers(config, max_length)
    if not isinstance(config, TextConfig):
      files["preprocessor_config.json"] = preprocessor_json(config)
    if (answers := generation_json(generation or {}, end_ids, files["config.json"])) is not None:
      files[GENERATION] = answers
    for name, content in files.items():
      write_text(part / name, json.dumps(content, indent=2) + "\n")
    os.replace(part, path)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _tokenizer_config(chat_template: str | None, max_length: int) -> dict[str, Any]:
  out: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, "clean_up_tokenization_spaces": False}
  return out | ({"chat_template": chat_template} if chat_template else {})


def _sentence_transformers(config: EncoderConfig, max_length: int | None) -> dict[str, Any]:
  kinds = [("Transformer", ""), ("Pooling", "1_Pooling")] + ([("Normalize", "2_Normalize")] if config.normalize else [])
  modules = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (kind, path) in enumerate(kinds)
  ]
  modes = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": None, "mean_sqrt_len_tokens": None}
  pooling = {f"pooling_mode_{mode}": config.pooling == ours for mode, ours in modes.items()}
  return {
    "modules.json": modules,
    "sentence_bert_config.json": {"max_seq_length": max_length or config.max_length, "do_lower_case": False},
    "1_Pooling/config.json": {"word_embedding_dimension": config.dim} | pooling,
  }
