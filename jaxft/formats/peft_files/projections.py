"""What PEFT keeps once for all modules of an adapter: shared random projections, a bank of vectors, a seed.

Each is a pair of functions: `gather` makes the file's tensors of what the adapted matrices hold, and refuses what
PEFT could not read back as it is here; `spread` gives a matrix its part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxft.formats.peft_files.modules import Place
from jaxft.formats.peft_files.torch_random import randperm

Numbers = Mapping[str, np.ndarray]
ROOT = "base_model."


class Shared(NamedTuple):
  """Attributes:
    names: the tensors in the file.
    gather: `(matrices and their numbers, settings) -> tensors`.
    spread: `(tensors, place, settings) -> numbers` of one matrix.
  """

  names: tuple[str, ...]
  gather: Callable[[Sequence[tuple[Place, Numbers]], Mapping[str, Any]], dict[str, np.ndarray]]
  spread: Callable[[Numbers, Place, Mapping[str, Any]], dict[str, np.ndarray]]


def _merge(whole: np.ndarray, known: np.ndarray, index: Any, part: np.ndarray, module: str, method: str) -> None:
  """Writes a part of the projection; two matrices that hold other numbers at one place have no common file."""
  if not np.array_equal(np.where(known[index], whole[index], part), part):
    raise ValueError(
        f"{method} keeps one projection for all modules, and that of {module} is not cut from the same one as the "
        "others' (RandLoRA: it cuts them alike only where all matrices have as many terms; let select match such, or "
        "start from an adapter of PEFT)")
  whole[index], known[index] = part, True


def _gather_vera(items: Sequence[tuple[Place, Numbers]], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  rank, dtype = items[0][1]["a"].shape[-1], items[0][1]["a"].dtype
  rows, columns = (max(place.shape[i] for place, _ in items) for i in (0, 1))
  a, b = np.zeros((rank, rows), dtype), np.zeros((columns, rank), dtype)
  known_a, known_b = a.astype(bool), b.astype(bool)
  for place, x in items:
    _merge(a, known_a, np.s_[:, : place.shape[0]], x["a"].T, place.module, "VeRA")
    _merge(b, known_b, np.s_[: place.shape[1]], x["b"].T, place.module, "VeRA")
  return {f"{ROOT}vera_A": a, f"{ROOT}vera_B": b}


def _spread_vera(tensors: Numbers, place: Place, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  m, n = place.shape
  return {"a": tensors[f"{ROOT}vera_A"][:, :m].T, "b": tensors[f"{ROOT}vera_B"][:n].T}


VERA = Shared((f"{ROOT}vera_A", f"{ROOT}vera_B"), _gather_vera, _spread_vera)


def _gather_rand_lora(items: Sequence[tuple[Place, Numbers]], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  # A matrix reads the first `terms` of B's middle axis, flat, as (rank, terms): the order depends on its own terms.
  rank, dtype = items[0][1]["narrow"].shape[0], items[0][1]["narrow"].dtype
  short = min(max(place.shape[i] for place, _ in items) for i in (0, 1))
  long = max(max(place.shape) for place, _ in items)
  a, b = np.zeros((rank, 1, short), dtype), np.zeros((long, -(-short // rank), rank), dtype)
  known_a, known_b = a.astype(bool), b.astype(bool)
  for place, x in items:
    terms, q = x["wide"].shape[1:]
    part = np.moveaxis(x["wide"], -1, 0).reshape(q, terms, rank)
    _merge(a, known_a, np.s_[:, :, : min(place.shape)], x["narrow"][:, None], place.module, "RandLoRA")
    _merge(b, known_b, np.s_[:q, :terms], part, place.module, "RandLoRA")
  out = {f"{ROOT}randlora_A": a, f"{ROOT}randlora_B": b}
  for place, _ in items:  # PEFT stores a copy of the pair with each module, and misses what is not there
    out |= {f"{ROOT}model.{place.module}.randlora_A": a, f"{ROOT}model.{place.module}.randlora_B": b}
  return out


def _spread_rand_lora(tensors: Numbers, place: Place, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  p, q = min(place.shape), max(place.shape)
  a, b = tensors[f"{ROOT}randlora_A"], tensors[f"{ROOT}randlora_B"]
  terms = -(-p // a.shape[0])
  wide = b[:q, :terms].reshape(q, a.shape[0], terms)
  return {"narrow": a[:, 0, :p], "wide": np.moveaxis(wide, 0, -1)}


RAND_LORA = Shared((f"{ROOT}randlora_A", f"{ROOT}randlora_B"), _gather_rand_lora, _spread_rand_lora)

BANK = f"{ROOT}vblora_vector_bank"


def _gather_bank(items: Sequence[tuple[Place, Numbers]], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  bank = items[0][1]["bank"]
  if other := [place.module for place, x in items if not np.array_equal(x["bank"], bank)]:
    raise ValueError(f"VB-LoRA keeps one bank for all modules; {other[0]} has another than {items[0][0].module}")
  return {BANK: bank}


VECTOR_BANK = Shared((BANK,), _gather_bank, lambda tensors, place, settings: {})


def frequencies(place: Place, count: int, seed: int) -> np.ndarray:
  """The flat places `[count]`, in a matrix `[m, n]` here, that PEFT's FourierFT draws for a module from its seed."""
  m, n = place.shape
  drawn = randperm(m * n, count, seed)
  return ((drawn % m) * n + drawn // m).astype(np.int32)


def _check_frequencies(items: Sequence[tuple[Place, Numbers]], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  seed = settings["random_loc_seed"]
  for place, x in items:
    if not np.array_equal(x["places"], frequencies(place, len(x["places"]), seed)):
      raise ValueError(
          f"FourierFT's file holds no places of its frequencies, and those of {place.module} are not the ones that "
          f"PEFT draws from random_loc_seed={seed}: start training from frozen = peft_frequencies(frozen, config), or "
          "export the merged weights")
  return {}


FREQUENCIES = Shared(
    (), _check_frequencies, lambda tensors, place, settings: {
        "places": frequencies(place, settings["n_frequency"], settings["random_loc_seed"])})
