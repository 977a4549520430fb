"""What single methods need beyond their row: settings read off their numbers, and other spellings of their files."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxft.formats.peft_files.method import Item, Settings, Tensors
from jaxft.formats.peft_files.modules import Place, shortest
from jaxft.formats.peft_files.projections import Numbers
from jaxft.formats.peft_files.settings import are_rows
from jaxft.leaves.annotated import Annotated
from jaxft.leaves.low_rank import LowRank
from jaxft.transforms.low_rank.dora import ColumnNormalized, dora
from jaxft.transforms.low_rank.lora import lora
from jaxft.transforms.protocol import ParamTransform
from jaxft.transforms.structured.lokr import divisors_near_root
from jaxft.tree.choice import Choice


def tidy(x: float) -> int | float:
  """A scale times a rank without the rounding of the division that made the scale."""
  x = round(float(x), 6) if math.isclose(x, round(float(x), 6), rel_tol=1e-12) else float(x)
  return int(x) if x == int(x) else x


def lora_parts(joined: Any, frozen: Any, trained: Any) -> dict[str, Any]:
  """Read off the joined leaf: whatever joins to factors is LoRA, and a factor that does not train counts too."""
  v = joined.v if isinstance(joined, ColumnNormalized) else joined
  if not isinstance(v, LowRank):
    kind = type(joined).__name__
    raise ValueError(f"peft_type LORA takes leaves that join to LowRank or ColumnNormalized; got {kind}")
  magnitude = {"magnitude": joined.magnitude} if v is not joined else {}
  return {"a": v.a, "b": v.b, **magnitude}


def lora_scale(leaf: Any) -> float:
  return (leaf.v if isinstance(leaf, ColumnNormalized) else leaf).scale


def lora_measure(x: Numbers, leaf: Any, place: Place, s: Settings) -> dict[str, Any]:
  rank = x["a"].shape[-1]
  per = math.sqrt(rank) if s["use_rslora"] else rank
  return {"r": rank, "lora_alpha": tidy(lora_scale(leaf) * per), "use_dora": isinstance(leaf, ColumnNormalized)}


def moved_base(s: Settings) -> str:
  init = str(s.get("init_lora_weights", True)).lower()
  if not init.startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
    return ""
  return (
      f"init_lora_weights={init!r} changes the base weights, which the file does not hold; convert it where it was "
      "trained: model.save_pretrained(folder, path_initial_model_for_weight_conversion=...)")


def lora_or_dora(select: Choice, s: Settings) -> ParamTransform:
  options = {"rank": s["r"], "dropout": float(s["lora_dropout"])}
  if s["use_dora"]:
    return dora(select, alpha=s["lora_alpha"] * (math.sqrt(s["r"]) if s["use_rslora"] else 1), **options)
  return lora(select, alpha=s["lora_alpha"], rank_stabilized=s["use_rslora"], **options)


def restore_pruned(s: Settings, tensors: Tensors) -> Tensors:
  """AdaLoRA's files leave out the triplets that `rank_pattern` marks as pruned: zeros here, in their places."""
  out, pattern = dict(tensors), s.get("rank_pattern") or {}
  if not (isinstance(pattern, dict) and all(isinstance(kept, list) for kept in pattern.values())):
    raise ValueError(f"rank_pattern must map modules to lists of which triplets were kept; got {str(pattern)[:80]}")
  for name, kept in pattern.items():
    module = f"base_model.model.{name.rpartition('.lora_')[0]}"
    kept = np.asarray(kept, bool).reshape(-1)
    for short, axis in (("lora_A", 0), ("lora_E", 0), ("lora_B", 1)):
      x = tensors.get(f"{module}.{short}")
      if x is None or x.shape[axis] == len(kept) or x.shape[axis] != kept.sum():
        continue
      shape = list(x.shape)
      shape[axis] = len(kept)
      whole = np.zeros(shape, x.dtype)
      whole[kept if axis == 0 else (slice(None), kept)] = x
      out[f"{module}.{short}"] = whole
  return out


def lokr_rank(x: Numbers, leaf: Any, place: Place, s: Settings) -> dict[str, Any]:
  rank = x["a"].shape[-1] if "a" in x else s.get("r", -(-max(x["right"].shape) // 2))
  if "a" not in x and rank < max(x["right"].shape) / 2:
    rank = -(-max(x["right"].shape) // 2)  # the least for which PEFT keeps the factor whole
  return {"r": rank, "alpha": tidy(leaf.scale * rank)}


def feedforward(items: Sequence[Item], modules: Sequence[str]) -> dict[str, Any]:
  """IA3's modules whose inputs are scaled: their factors are a column here."""
  return {"feedforward_modules": shortest(
      [place.module for place, x in items if x["scale"].shape != (1, place.shape[1])], modules)}


def lokr_factor(items: Sequence[Item], modules: Sequence[str]) -> dict[str, Any]:
  sides = [both for place, x in items for both in zip(place.shape, x["left"].shape, strict=True)]
  for factor in (-1, *sorted({part for _, part in sides})):
    if all(divisors_near_root(size, None if factor == -1 else factor)[0] == part for size, part in sides):
      return {"decompose_factor": factor}
  raise ValueError("LOKR has one decompose_factor for all modules, and none gives the shapes of these")


def whole_left(s: Settings, tensors: Tensors) -> Tensors:
  """LoKr with decompose_both: the left factor is a product as well, multiplied out here."""
  out = dict(tensors)
  for name in tensors:
    if name.endswith(".lokr_w1_a") and f"{name[:-1]}b" in tensors:
      out[name[:-2]] = out.pop(name) @ out.pop(f"{name[:-1]}b")
  return out


def divisor_near(size: int, wanted: int) -> int:
  """The divisor that PEFT takes in place of a block size that does not divide."""
  if wanted >= size:
    return size
  above = next(d for d in range(wanted, size + 1) if size % d == 0)
  below = next(d for d in range(wanted, 0, -1) if size % d == 0)
  return below if wanted - below <= above - wanted else above


def oft_block(s: Settings, place: Place) -> dict[str, int]:
  m = place.shape[0]
  return {"block": divisor_near(m, s["oft_block_size"]) if s["oft_block_size"] else m // divisor_near(m, s["r"])}


def oft_blocks(items: Sequence[Item], modules: Sequence[str]) -> dict[str, int]:
  """One size of the blocks for all modules, or one number of them."""
  sizes = {block_of(x["skew"].shape[-1]) for _, x in items}
  counts = {x["skew"].shape[0] for _, x in items}
  if len(sizes) > 1 and len(counts) > 1:
    raise ValueError(f"OFT has one size or one number of blocks for all modules; got {sorted(sizes)}, {sorted(counts)}")
  return {"r": 0, "oft_block_size": sizes.pop()} if len(sizes) == 1 else {"r": counts.pop(), "oft_block_size": 0}


def block_of(entries: int) -> int:
  return round((1 + (1 + 8 * entries) ** 0.5) / 2)


def strange_rows(s: Settings) -> str:
  rows = s.get("token_indices")
  if rows and are_rows(rows):
    return ""
  return f"token_indices must be a list of rows of the embedding; got {str(rows)[:80]}"


def endless_series(s: Settings) -> str:
  terms = s.get("num_cayley_neumann_terms") or 0
  return f"num_cayley_neumann_terms={terms!r} is more than 100" if isinstance(terms, int) and terms > 100 else ""


def boft_block(s: Settings, place: Place) -> dict[str, int]:
  if bool(s["boft_block_size"]) == bool(s["boft_block_num"]):
    raise ValueError(
        f"one of boft_block_size and boft_block_num must be 0; got {s['boft_block_size']} and {s['boft_block_num']}")
  return {"block": s["boft_block_size"] or max(1, place.shape[0] // s["boft_block_num"])}


def full_logits(s: Settings, tensors: Tensors) -> Tensors:
  """VB-LoRA with save_only_topk_weights: logits that give the stored weights back, all others at minus infinity."""
  out = dict(tensors)
  check_bank(s, tensors)
  for name in tensors:
    if not name.endswith("_topk_indices"):
      continue
    stem = name.removesuffix("_topk_indices")
    ids, weights = out.pop(name).astype(np.int64), out.pop(f"{stem}_topk_weights").astype(np.float32)
    weights = np.concatenate([weights, 1 - weights.sum(-1, keepdims=True)], axis=-1)
    logits = np.full((*weights.shape[:-1], s["num_vectors"]), -np.inf, np.float32)
    np.put_along_axis(logits, ids, np.log(weights), axis=-1)
    out[stem] = logits
  return out


def check_bank(s: Settings, tensors: Tensors) -> None:
  """Raises ValueError unless the bank is of the size that the settings give, which the stored weights point into."""
  bank = next((x for name, x in tensors.items() if name.endswith("vblora_vector_bank")), None)
  if bank is None or bank.shape != (s["num_vectors"], s["vector_length"]):
    got = "none" if bank is None else f"shape {bank.shape}"
    raise ValueError(f"vblora_vector_bank must be of shape ({s['num_vectors']}, {s['vector_length']}); got {got}")


def shira_parts(joined: Any, frozen: Any, trained: Any) -> dict[str, Any]:
  """Flat indices of a whole stack as those of its layers, each of which must have as many."""
  indices, values = np.asarray(frozen.note), np.asarray(trained)
  if len(frozen.shape) == 2:
    return {"entries": indices, "values": values}
  layers, size = frozen.shape[0], math.prod(frozen.shape[1:])
  order = np.argsort(indices // size, kind="stable")
  counts = np.bincount(indices // size, minlength=layers)
  if len(set(counts.tolist())) > 1:
    raise ValueError(f"SHIRA takes as many entries in every layer; got {counts.tolist()}")
  return {"entries": (indices[order] % size).reshape(layers, -1), "values": values[order].reshape(layers, -1)}


def shira_fill(frozen: Any, trained: Any, numbers: dict[str, Any]) -> tuple[Any, Any]:
  entries = numbers["entries"].astype(np.int32)
  if entries.ndim == 2:
    entries = entries + math.prod(frozen.shape[1:]) * np.arange(len(entries), dtype=np.int32)[:, None]
  return Annotated(frozen.w, entries.reshape(-1)), numbers["values"].reshape(-1)


def shira_rank(x: Numbers, leaf: Any, place: Place, s: Settings) -> dict[str, Any]:
  rank, left = divmod(len(x["values"]), sum(place.shape))
  if left or not rank:
    raise ValueError(f"SHIRA takes a multiple of {sum(place.shape)} entries of {place.path}; got {len(x['values'])}")
  return {"r": rank}


def without_the_head(s: Settings, tensors: Tensors) -> Tensors:
  """The rows of a tied head are those of the embedding, and stored twice."""
  head = "base_model.model.lm_head.trainable_tokens_delta"
  twice = head in tensors and any(
      name != head and name.endswith(".trainable_tokens_delta") and np.array_equal(x, tensors[head])
      for name, x in tensors.items())
  return {name: x for name, x in tensors.items() if not (twice and name == head)}


def without_copies(s: Settings, tensors: Tensors) -> Tensors:
  """RandLoRA's projections stand in the file once, and again with each module."""
  copy = lambda name: name.startswith("base_model.model.") and name.endswith((".randlora_A", ".randlora_B"))
  return {name: x for name, x in tensors.items() if not copy(name)}
