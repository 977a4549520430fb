"""safetensors checkpoints: round trips, shards, and files that lie."""

import json
import random

import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.formats.safetensors import check_content, open_checkpoint, save_file, save_shards


def tensors() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  return {
      "a": rng.normal(size=(4, 6)).astype(np.float32),
      "transposed": rng.normal(size=(3, 5)).T,
      "half": np.asarray(jnp.asarray(rng.normal(size=(7,)), jnp.bfloat16)),
      "scalar": np.asarray(np.float16(2.5)),
      "empty": np.zeros((0, 3), np.int32),
      "odd": np.array([np.nan, np.inf, -0.0], np.float32),
      "flags": np.array([True, False]),
  }


def assert_same(checkpoint, expected) -> None:
  assert checkpoint.tensors.keys() == expected.keys()
  for name, x in expected.items():
    info, got = checkpoint.tensors[name], checkpoint.read(name)
    assert (info.shape, info.dtype) == (x.shape, x.dtype) == (got.shape, got.dtype)
    assert got.tobytes() == np.asarray(x, order="C").tobytes(), name


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100, 1])
def test_round_trip_is_bit_for_bit(tmp_path, max_shard_bytes):
  files = save_shards(tensors(), tmp_path, max_shard_bytes=max_shard_bytes, metadata={"format": "pt"})
  assert (len(files) > 1) == (max_shard_bytes < 10**9) == (tmp_path / "model.safetensors.index.json").exists()
  checkpoint = open_checkpoint(tmp_path)
  assert_same(checkpoint, tensors())
  assert checkpoint.metadata == {"format": "pt"}
  with pytest.raises(ValueError, match="no tensor 'b'"):
    checkpoint.read("b")


def test_shards_keep_to_their_size(tmp_path):
  files = save_shards({str(i): np.zeros(10, np.float32) for i in range(7)}, tmp_path, max_shard_bytes=100)
  assert [len(open_checkpoint(file).tensors) for file in files] == [2, 2, 2, 1]


def test_replacing_a_file_leaves_its_reader_the_old_content(tmp_path):
  save_file({"a": np.zeros(1000)}, tmp_path / "x.safetensors")
  old = open_checkpoint(tmp_path / "x.safetensors")
  save_file({"a": np.ones(1000)}, tmp_path / "x.safetensors")
  assert old.read("a").sum() == 0 and open_checkpoint(tmp_path / "x.safetensors").read("a").sum() == 1000


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
  save_file({"a": np.zeros(3)}, tmp_path / "x.safetensors")
  with pytest.raises(OSError, match="cannot be written: Unknown dtype"):
    save_file({"a": np.array([object()])}, tmp_path / "x.safetensors")
  assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
  assert open_checkpoint(tmp_path / "x.safetensors").read("a").shape == (3,)


def file_of(header, data: bytes = bytes(16)) -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + data


def entry(shape, start, stop, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HOSTILE = {
    "empty file": b"",
    "seven bytes": bytes(7),
    "header of 2^64 bytes": b"\xff" * 8 + b"{}",
    "header beyond the file": (1000).to_bytes(8, "little") + b"{}",
    "2^63 elements": file_of({"a": entry([2**63], 0, 16)}),
    "a product that wraps": file_of({"a": entry([2**32, 2**32, 4], 0, 16)}),
    "a shape larger than its bytes": file_of({"a": entry([5], 0, 16)}),
    "negative size": file_of({"a": entry([-4], 0, 16)}),
    "overlap": file_of({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}),
    "hole": file_of({"a": entry([2], 8, 16)}),
    "bytes left over": file_of({"a": entry([2], 0, 8)}),
    "unknown dtype": file_of({"a": entry([4], 0, 16, "F31")}),
    "unsupported dtype": file_of({"a": entry([16], 0, 16, "F8_E4M3FNUZ")}),
    "same name twice": file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry([4], 0, 16)).encode(),) * 2)),
    "not an object": file_of(b"[]"),
    "deep nesting": file_of(b"[" * 100_000),
    "broken text": file_of(b'{"\xff":1}'),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_lies_is_one_value_error_with_its_name(tmp_path, data):
  (tmp_path / "model.safetensors").write_bytes(data)
  with pytest.raises(ValueError, match="model.safetensors: "):
    open_checkpoint(tmp_path)


def test_any_damage_gives_a_value_error_or_the_tensors_of_the_header(tmp_path):
  save_file({name: x for name, x in tensors().items() if x.size}, tmp_path / "x.safetensors")
  whole = (tmp_path / "x.safetensors").read_bytes()
  header = 8 + int.from_bytes(whole[:8], "little")
  rng = random.Random(0)
  damaged, refused = tmp_path / "damaged.safetensors", 0
  for trial in range(400):
    data = bytearray(whole)
    if trial % 4 == 0:
      data = data[: rng.randrange(len(data))]
    else:
      for _ in range(rng.randint(1, 4)):
        data[rng.randrange(header)] ^= 1 << rng.randrange(8)
    damaged.write_bytes(data)
    try:
      checkpoint = open_checkpoint(damaged)
      for name, info in checkpoint.tensors.items():
        assert checkpoint.read(name).nbytes == info.nbytes <= len(whole)
    except ValueError as e:
      refused += 1
      assert str(damaged) in str(e)
  assert refused > 300


def sharded(folder):
  save_shards({"a": np.zeros(4), "b": np.ones(4)}, folder, max_shard_bytes=32)
  return folder / "model.safetensors.index.json"


@pytest.mark.parametrize(("change", "message"), [
    ({"weight_map": {"a": "../secret.safetensors"}}, "same folder.*secret"),
    ({"weight_map": {"a": "/etc/passwd"}}, "same folder.*passwd"),
    ({"weight_map": {"a": "x\\y.safetensors"}}, "same folder"),
    ({"weight_map": {"a": "model.bin"}}, "same folder"),
    ({"weight_map": {"a": 3}}, "same folder"),
    ({"weight_map": {"a": "gone.safetensors"}}, "'gone.safetensors' is missing .*'a'"),
    ({"weight_map": dict.fromkeys("ab", "model-00001-of-00002.safetensors")}, "'b' is not in"),
    ({"weight_map": {"a": "model-00002-of-00002.safetensors"}}, "'b' is not the one"),
    ({"weight_map": {}}, "weight_map must map"),
    ({}, "weight_map must map"),
    ([], "must hold a JSON object"),
])
def test_an_index_that_does_not_fit_its_shards(tmp_path, change, message):
  file = sharded(tmp_path)
  file.write_text(json.dumps(change))
  with pytest.raises(ValueError, match=message):
    open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"weight_map": {"a": "x", "a": "y"}}', "[" * 100_000])
def test_an_index_that_is_not_json(tmp_path, text):
  sharded(tmp_path).write_text(text)
  with pytest.raises(ValueError, match="model.safetensors.index.json is not valid JSON"):
    open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "flax_model.msgpack"])
def test_pickled_checkpoints_are_never_opened(tmp_path, name):
  (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
  for path in (tmp_path, tmp_path / name):
    with pytest.raises(ValueError, match="safe_serialization=True"):
      open_checkpoint(path)


def test_nothing_there(tmp_path):
  with pytest.raises(ValueError, match="holds no model.safetensors"):
    open_checkpoint(tmp_path)
  with pytest.raises(FileNotFoundError):
    open_checkpoint(tmp_path / "x.safetensors")


def test_equal_content_is_equal_bytes_whatever_the_metadata(tmp_path):
  tensors, text = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float16)}, {c: "é" + c for c in "fedcba"}
  for i in range(4):
    save_file(tensors, tmp_path / f"{i}", metadata=dict(sorted(text.items(), reverse=bool(i % 2))), checksum=True)
  assert len({(tmp_path / f"{i}").read_bytes() for i in range(4)}) == 1
  found = open_checkpoint(tmp_path / "0")
  check_content(found, tmp_path / "0")
  assert {key: found.metadata[key] for key in text} == text
  assert all(np.array_equal(found.view(name), x) for name, x in tensors.items())
