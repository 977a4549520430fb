"""The difference of two models as a LoRA adapter: by the singular values of each matrix, with the error told."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.formats.families import family_of
from jaxft.formats.pretrained import Pretrained
from jaxft.transforms import ParamTransform, chain, lora, train
from jaxft.tree import leaves_with_paths
from jaxft.tree.finite_leaves import check_finite
from jaxft.tree.globs import glob_to_regex

TOLERANCE = 1e-3  # of a difference's norm, that the rank may leave out where none is given


class Difference(NamedTuple):
  """A model as another and an adapter.

  Attributes:
    rank: of the factors.
    adapted: the paths of the matrices that have some.
    whole: the paths of other leaves that differ, kept as they are.
    error: the largest share of the norm of a matrix's difference that its factors lack.
    worst: the path of that matrix.
    transform, frozen, trainable: what joins to the model.
  """

  rank: int
  adapted: tuple[str, ...]
  whole: tuple[str, ...]
  error: float
  worst: str
  transform: ParamTransform
  frozen: Any
  trainable: Any


def difference(base: Pretrained, tuned: Pretrained, rank: int | None = None) -> Difference:
  """The change from one model to another of the same architecture as low-rank factors of its matrices.

  Of each matrix and layer `tuned - base = U S V^T` is cut to a rank, the same for all: `a = U sqrt(S)`,
  `b = sqrt(S) V^T`. What else differs, such as norms, is kept whole.

  Args:
    base, tuned: models.
    rank: of the factors; None takes the smallest that leaves out at most a thousandth of each difference's norm.

  Raises:
    ValueError: a weight is not finite; the models differ in more than weights, or in none; no rank below half the size
      of a matrix is enough; or the rank is more than a matrix has.
  """
  if base.config != tuned.config:
    raise ValueError(f"base must have the config of {tuned.name}, {tuned.config!r:.300}; {base.name} has "
                     f"{base.config!r:.300}")
  before, after = dict(leaves_with_paths(base.params)), dict(leaves_with_paths(tuned.params))
  odd = [path for path in before | after if path not in before or path not in after
         or before[path].shape != after[path].shape]
  if odd:
    raise ValueError(f"base must have the tensors of {tuned.name}; {', '.join(odd[:3])} differ in shape")
  changed = [path for path in before if not np.array_equal(before[path], after[path])]
  if not changed:
    raise ValueError(f"{tuned.name} is {base.name}: no weight differs")
  check_finite({"base": base.params, "tuned": tuned.params})  # LAPACK never comes back from an infinity
  is_matrix = glob_to_regex(family_of(tuned.config).matrices).fullmatch
  adapted = tuple(path for path in changed if is_matrix(path))
  whole = tuple(path for path in changed if not is_matrix(path))
  if not adapted:
    raise ValueError(f"no matrix differs between {base.name} and {tuned.name}, only {', '.join(whole[:3])}: an adapter "
                     "would hold these whole")
  cut = {path: np.linalg.svd(
      np.asarray(after[path], np.float64) - np.asarray(before[path], np.float64), full_matrices=False)
      for path in adapted}
  needed = {path: _rank(s, TOLERANCE) for path, (_, s, _) in cut.items()}
  sizes = {path: s.shape[-1] for path, (_, s, _) in cut.items()}
  if rank is None:
    rank = max(needed.values())
    full = max(adapted, key=lambda path: needed[path] / sizes[path])
    if needed[full] > sizes[full] // 2:
      errors = ", ".join(f"--rank {r} leaves {_left(cut[full][1], r):.1%}" for r in (8, 32, 128) if r < sizes[full])
      raise ValueError(f"the difference of {full} is not low-rank: {needed[full]} of {sizes[full]} singular values are "
                       f"needed for {1 - TOLERANCE:.1%} of it ({errors})")
  elif not 1 <= rank <= min(sizes.values()):
    raise ValueError(f"rank must lie in [1, {min(sizes.values())}], the size of the smallest matrix; got {rank}")
  errors = {path: _left(s, rank) for path, (_, s, _) in cut.items()}
  worst = max(errors, key=lambda path: errors[path])
  transform = lora(list(adapted), rank=rank, alpha=float(rank))
  if whole:
    transform = chain(transform, train(list(whole)))
  frozen, trainable = transform.split(jax.random.key(0), base.params)
  factors = {path: _factors(u, s, v, rank) for path, (u, s, v) in cut.items()}
  trainable = jax.tree_util.tree_map_with_path(lambda keys, x: _value(keys, x, factors, after), trainable)
  return Difference(rank, adapted, whole, errors[worst], worst, transform, frozen, trainable)


def _rank(s: np.ndarray, tolerance: float) -> int:
  """The smallest rank that leaves out at most this share of the norm of every layer."""
  return next(r for r in range(1, s.shape[-1] + 1) if _left(s, r) <= tolerance)


def _left(s: np.ndarray, rank: int) -> float:
  """The largest share of a layer's norm that a rank leaves out; layers without a change have none."""
  norm = np.sqrt(np.sum(s**2, axis=-1))
  left = np.sqrt(np.sum(s[..., rank:] ** 2, axis=-1))
  return float(np.max(np.divide(left, norm, out=np.zeros_like(norm), where=norm > 0)))


def _factors(u: np.ndarray, s: np.ndarray, v: np.ndarray, rank: int) -> dict[str, np.ndarray]:
  root = np.sqrt(s[..., :rank])
  return {"a": (u[..., :rank] * root[..., None, :]).astype(np.float32),
          "b": (root[..., None] * v[..., :rank, :]).astype(np.float32)}


def _value(keys: Any, x: Any, factors: dict[str, Any], after: dict[str, Any]) -> Any:
  """A leaf of what trains: a factor of the matrix that its path goes on from, or the tuned leaf itself."""
  names = [str(getattr(key, "key", getattr(key, "idx", key))) for key in keys]
  names = names[1:] if names[0].isdigit() else names  # of a chain
  path = "/".join(names)
  found = after[path] if path in after else factors["/".join(names[:-1])][names[-1]]
  if found.shape != x.shape:
    raise ValueError(f"{path} must have the shape {x.shape}; its values have {found.shape}")
  return jnp.asarray(found, x.dtype)
