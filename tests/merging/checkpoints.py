"""Small checkpoints on disk, named as those of Llama, and configurations that merge them."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import yaml

from jaxft.formats.safetensors import open_checkpoint, save_shards

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
WIDTH, VOCAB = 12, 20


def decoder(seed, *, layers=3, vocab=VOCAB, head=False, near=None):
  """The tensors of a decoder; near another one if given, as a fine-tuned model is."""
  rng = np.random.default_rng(seed)
  shapes = {"model.embed_tokens.weight": (vocab, WIDTH), "model.norm.weight": (WIDTH,)}
  shapes |= {"lm_head.weight": (vocab, WIDTH)} if head else {}
  for layer in range(layers):
    shapes |= {
        f"model.layers.{layer}.input_layernorm.weight": (WIDTH,),
        f"model.layers.{layer}.mlp.up_proj.weight": (2 * WIDTH, WIDTH),
        f"model.layers.{layer}.self_attn.q_proj.weight": (WIDTH, WIDTH),
    }
  draw = lambda shape: rng.normal(size=shape).astype(np.float32)
  if near is None:
    return {name: draw(shape) for name, shape in shapes.items()}
  return {name: near[name].astype(np.float32) + 0.1 * draw(shape) for name, shape in shapes.items()}


def write(folder: Path, tensors, *, dtype="float32", config=None, max_shard_bytes=10**9):
  """A checkpoint's folder."""
  folder.mkdir(parents=True, exist_ok=True)
  layers = 1 + max((int(n.split(".")[2]) for n in tensors if n.startswith("model.layers.")), default=-1)
  rows = len(tensors.get("model.embed_tokens.weight", ()))
  config = {"model_type": "llama", "num_hidden_layers": layers, "vocab_size": rows, "torch_dtype": dtype,
            "tie_word_embeddings": "lm_head.weight" not in tensors} | (config or {})
  cast = lambda x: x.astype(DTYPES[dtype]) if np.issubdtype(x.dtype, np.floating) else x
  cast_tensors = {n: cast(x) for n, x in tensors.items()}
  save_shards(cast_tensors, folder, max_shard_bytes=max_shard_bytes, metadata={"format": "pt"})
  (folder / "config.json").write_text(json.dumps(config))
  return folder


def family(folder: Path, *, count=3, dtype="float32", max_shard_bytes=10**9, **shape):
  """A base and fine-tuned models: `base`, `m0`, `m1`, ...; returns their tensors as they were written."""
  base = decoder(0, **shape)
  out = {"base": base} | {f"m{i}": decoder(i + 1, near=base, **shape) for i in range(count)}
  for name, tensors in out.items():
    write(folder / name, tensors, dtype=dtype, max_shard_bytes=max_shard_bytes)
  return {name: read(folder / name) for name in out}


def read(folder: Path):
  """All tensors of a folder."""
  checkpoint = open_checkpoint(folder)
  return {name: checkpoint.read(name) for name in checkpoint.tensors}


def configure(path: Path, *documents):
  """A YAML file of documents, whose models are relative to its folder."""
  text = "---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents)
  path.write_text(text.replace("$", f"{path.parent}/"))
  return path


def recipe(method, *, count=3, per_model=None, parameters=None, base=True, **more):
  """A document that merges `m0`, `m1`, ...; values of `per_model` are lists over the models."""
  models = [{"model": f"$m{i}", "parameters": {name: xs[i] for name, xs in (per_model or {}).items()}}
            for i in range(count)]
  document = {"merge_method": method, "models": models, "parameters": parameters or {}, **more}
  return document | ({"base_model": "$base"} if base else {})
