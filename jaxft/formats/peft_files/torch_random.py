"""PyTorch's random permutation without PyTorch: where an adapter file holds a seed in place of what was drawn."""

import numpy as np


def randperm(size: int, count: int, seed: int) -> np.ndarray:
  """The first `count` entries of `torch.randperm(size, generator=torch.Generator().manual_seed(seed))` on the CPU.

  A Fisher-Yates shuffle from the front, driven by the Mersenne Twister, of which only what moved is stored.

  Raises:
    ValueError: `size` is 2^32 / 20 or more, where PyTorch draws 64 bits.
  """
  if size >= (2**32 - 1) // 20:
    raise ValueError(f"size must be below {(2**32 - 1) // 20}, where PyTorch draws otherwise; got {size}")
  bits = np.random.MT19937()
  bits._legacy_seeding(seed)  # the seeding of the reference implementation, which PyTorch has too
  moved: dict[int, int] = {}
  out = np.empty(count, np.int64)
  draws = bits.random_raw(count) if count else []
  for i, draw in enumerate(np.asarray(draws, np.uint64).tolist()):
    j: int = i + (draw & 0xFFFFFFFF) % (size - i)
    out[i] = moved.get(j, j)
    moved[j] = moved.get(i, i)
  return out
