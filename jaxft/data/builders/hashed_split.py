"""A split by a hash of a name: the same on every machine, and for every data set that has the name."""

import hashlib


def hashed_split(name: str) -> str:
  """`train` for about 80% of names, `validation` for 10%, `test` for 10%.

  >>> [hashed_split(name) for name in ("whale", "dolphin", "crab")]
  ['train', 'train', 'validation']
  """
  bucket = hashlib.sha256(name.encode()).digest()[0] * 10 // 256
  return {0: "test", 1: "validation"}.get(bucket, "train")
