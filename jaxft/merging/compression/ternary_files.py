"""Ternary task vectors in files: Golomb-coded, tied to their base by its fingerprint, whole or not at all.

    8 bytes   magic
    4 bytes   version
    4 bytes   CRC-32 of all that follows
    8 bytes   length of the header
    header    JSON: b, count, size, scales, leaves as [path, shape, offset], fingerprint of the base
    payload   the Golomb code of all signs, leaves in turn

All numbers are little-endian.
"""

import hashlib
import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxft.files import write_atomically
from jaxft.merging.compression.golomb import golomb_decode, golomb_encode, rice_parameter
from jaxft.merging.compression.ternary import Ternary, flat_signs
from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree, is_leaf, leaves_with_paths

MAGIC = b"JAXFT3\r\n"  # the line end shows a file that was copied as text
VERSION = 1
PREFIX = struct.Struct("<8sIIQ")


@explain_errors
def base_fingerprint(params: Tree) -> str:
  """A hash of a checkpoint's paths, dtypes, shapes and bits, the same however its layers' arrays are held.

  >>> base_fingerprint({"w": jnp.ones(2)}) == base_fingerprint({"w": np.ones(2, np.float32)})
  True
  >>> base_fingerprint({"w": jnp.ones(2)}) == base_fingerprint({"w": np.ones(2, np.float16)})
  False
  """
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in leaves_with_paths(params):
    if leaf is not None:
      array = np.asarray(leaf, order="C")
      digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
      digest.update(array.reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


@explain_errors
def save_ternary(path: str | os.PathLike, ternary: Ternary, base: Tree) -> int:
  """Writes a ternary task vector; a file of that name is replaced when the new one is complete and on disk.

  >>> import tempfile
  >>> signs = (np.arange(10_000) % 20 == 0).astype(np.int8)  # one entry in twenty
  >>> with tempfile.TemporaryDirectory() as at:  # in float32 it would take 40,000 bytes
  ...   save_ternary(f"{at}/delta", Ternary({"w": signs}, np.float32(0.5)), {"w": np.zeros(10_000, np.float32)})
  581

  Args:
    path: the file.
    ternary: what `ternarize` gave.
    base: the checkpoint that it belongs to; only its fingerprint is kept.

  Returns:
    The size of the file in bytes.
  """
  signs = flat_signs(ternary)
  count = int(np.count_nonzero(signs))
  b, offset, leaves = rice_parameter(count / max(1, signs.size)), 0, []
  for name, leaf in leaves_with_paths(ternary.signs):
    if leaf is not None:
      leaves.append([name, list(leaf.shape), offset])
      offset += leaf.size
  scales = {name: np.asarray(x, np.float32).tolist() for name, x in leaves_with_paths(ternary.scale) if x is not None}
  header = json.dumps({
      "b": b, "count": count, "size": int(signs.size), "scales": scales, "leaves": leaves,
      "base": base_fingerprint(base),
  }, separators=(",", ":")).encode()
  body = struct.pack("<Q", len(header)) + header + golomb_encode(signs, b=b)
  data = struct.pack("<8sII", MAGIC, VERSION, zlib.crc32(body)) + body
  write_atomically(path, lambda part: part.write_bytes(data))
  return len(data)


@explain_errors
def load_ternary(path: str | os.PathLike, base: Tree, *, like: Tree | None = None) -> Ternary:
  """Reads a ternary task vector back, for the base that it was made from.

  >>> import tempfile
  >>> base, ternary = {"w": np.zeros(3)}, Ternary({"w": np.array([1, -1, 0], np.int8)}, np.float32(0.5))
  >>> with tempfile.TemporaryDirectory() as at:
  ...   size = save_ternary(f"{at}/delta", ternary, base)
  ...   load_ternary(f"{at}/delta", base).dense()
  {'w': Array([ 0.5, -0.5,  0. ], dtype=float32)}

  Args:
    path: the file.
    base: the checkpoint; another one than it was saved for is refused.
    like: a tree with the structure that the task vector had; None takes that of `base`. Leaves that the file lacks are
      None.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is truncated, corrupt, of another kind or version, or made for another base, or has leaves that
      `like` lacks; names the file.
  """
  path = Path(path)
  data = path.read_bytes()
  try:
    header, payload = _open(data)
    signs = golomb_decode(payload, header["size"], b=header["b"], count=header["count"])
    arrays = {name: signs[at : at + int(np.prod(shape, dtype=np.int64))].reshape(shape)
              for name, shape, at in header["leaves"]}
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f"{path} is not a whole ternary checkpoint: {e}") from None
  if (got := base_fingerprint(base)) != header["base"]:
    raise ValueError(f"{path} belongs to the base {header['base']}; the base given is {got}")
  like = base if like is None else like
  named = leaves_with_paths(like)
  if unknown := sorted(set(arrays) - {name for name, _ in named}):
    raise ValueError(f"{path} has leaves that the tree given lacks: {', '.join(unknown[:5])}")
  structure = jax.tree.structure(like, is_leaf=is_leaf)
  fill = lambda of: structure.unflatten([jnp.asarray(of[name]) if name in of else None for name, _ in named])
  scales = {name: np.asarray(x, np.float32) for name, x in header["scales"].items()}
  return Ternary(fill(arrays), jnp.asarray(scales[""]) if "" in scales else fill(scales))


def _open(data: bytes) -> tuple[dict[str, Any], bytes]:
  """The header and the payload of a file."""
  if len(data) < PREFIX.size:
    raise ValueError(f"it has {len(data)} bytes, fewer than its prefix of {PREFIX.size}")
  magic, version, crc, size = PREFIX.unpack_from(data)
  if magic != MAGIC:
    raise ValueError(f"it starts with {magic!r} in place of {MAGIC!r}")
  if version != VERSION:
    raise ValueError(f"its version is {version}; this library reads {VERSION}")
  if zlib.crc32(data[16:]) != crc:
    raise ValueError("its checksum does not fit: it is truncated or corrupt")
  return json.loads(data[PREFIX.size : PREFIX.size + size]), data[PREFIX.size + size :]
