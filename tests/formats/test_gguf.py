"""GGUF files: a small Llama in every block format that can be written here, and files that lie."""

import random
import struct

import jax
import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from jaxft.formats.gguf import open_gguf
from jaxft.formats.gguf_llama import config_of, load_gguf, tokenizer_of

DIM, HEADS, KV_HEADS, MLP, LAYERS, VOCAB = 64, 4, 2, 96, 2, 260
TOKENS = ["<|end|>", "<user>", "ab", "a", "b", *map(chr, range(0x100, 0x100 + VOCAB - 5))]


def weights() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  kv = DIM // HEADS * KV_HEADS
  out = {"token_embd.weight": normal(VOCAB, DIM), "output_norm.weight": normal(DIM)}
  for i in range(LAYERS):
    out |= {
        f"blk.{i}.attn_norm.weight": normal(DIM), f"blk.{i}.ffn_norm.weight": normal(DIM),
        f"blk.{i}.attn_q.weight": normal(DIM, DIM), f"blk.{i}.attn_k.weight": normal(kv, DIM),
        f"blk.{i}.attn_v.weight": normal(kv, DIM), f"blk.{i}.attn_output.weight": normal(DIM, DIM),
        f"blk.{i}.ffn_gate.weight": normal(MLP, DIM), f"blk.{i}.ffn_up.weight": normal(MLP, DIM),
        f"blk.{i}.ffn_down.weight": normal(DIM, MLP),
    }
  return out


def interleaved(w: np.ndarray, heads: int) -> np.ndarray:
  """What llama.cpp's converter does to query and key rows."""
  return w.reshape(heads, 2, -1, w.shape[-1]).swapaxes(1, 2).reshape(w.shape)


def write(path, tensors, *, kind=gguf.GGMLQuantizationType.F32, metadata=(), architecture="llama"):
  """Writes the tensors with query and key permuted and matrices quantized; returns them as quantized."""
  writer = gguf.GGUFWriter(path, architecture)
  writer.add_block_count(LAYERS)
  writer.add_context_length(128)
  writer.add_embedding_length(DIM)
  writer.add_feed_forward_length(MLP)
  writer.add_head_count(HEADS)
  writer.add_head_count_kv(KV_HEADS)
  writer.add_rope_freq_base(50000.0)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("smollm")
  writer.add_token_list(TOKENS)
  writer.add_token_types([3, 4] + [1] * (VOCAB - 2))
  writer.add_token_merges(["a b"])
  writer.add_eos_token_id(0)
  for add, *arguments in metadata:
    getattr(writer, add)(*arguments)
  rounded = {}
  for name, w in tensors.items():
    this = kind if w.ndim == 2 else gguf.GGMLQuantizationType.F32
    heads = HEADS if "attn_q" in name else KV_HEADS if "attn_k" in name else None
    data = gguf.quants.quantize(interleaved(w, heads) if heads else w, this)
    writer.add_tensor(name, data, raw_dtype=this)
    rounded[name] = gguf.quants.dequantize(gguf.quants.quantize(w, this), this)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return rounded


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_quantized_llama_is_read_with_its_rotary_pairs_half_a_head_apart(tmp_path, kind):
  expected = write(tmp_path / "m.gguf", weights(), kind=gguf.GGMLQuantizationType[kind])
  params, config = load_gguf(open_gguf(tmp_path / "m.gguf"))
  layers = params["layers"]
  for i in range(LAYERS):
    for ours, theirs in (("query", "attn_q"), ("key", "attn_k"), ("value", "attn_v"), ("out", "attn_output")):
      np.testing.assert_array_equal(layers["attention"][ours]["kernel"][i].T, expected[f"blk.{i}.{theirs}.weight"])
    for ours in ("gate", "up", "down"):
      np.testing.assert_array_equal(layers["mlp"][ours]["kernel"][i].T, expected[f"blk.{i}.ffn_{ours}.weight"])
  np.testing.assert_array_equal(params["embed"]["tokens"]["embedding"], expected["token_embd.weight"])
  assert config.tie_embeddings and "head" not in params
  assert (config.norm_eps, config.rope_theta, config.head_dim, config.eos_id, config.bos_id) == (1e-5, 5e4, 16, 0, None)
  assert sum(x.size for x in jax.tree.leaves(params)) == sum(w.size for w in expected.values())


def test_what_the_metadata_leave_out_is_what_llama_cpp_takes(tmp_path):
  write(tmp_path / "m.gguf", weights())
  file = open_gguf(tmp_path / "m.gguf")
  for key in ("rope.freq_base", "attention.head_count_kv"):
    del file.metadata[f"llama.{key}"]
  config = config_of(file)
  assert (config.rope_theta, config.num_kv_heads, config.head_dim) == (10000.0, HEADS, DIM // HEADS)


def test_an_untied_head(tmp_path):
  expected = write(tmp_path / "m.gguf", weights() | {"output.weight": weights()["token_embd.weight"] + 1})
  params, config = load_gguf(open_gguf(tmp_path / "m.gguf"), stacked=False)
  assert not config.tie_embeddings and set(params["layers"]) == {"0", "1"}
  np.testing.assert_array_equal(params["head"]["kernel"].T, expected["output.weight"])


def test_the_tokenizer_never_splits_special_tokens(tmp_path):
  write(tmp_path / "m.gguf", weights(), metadata=[("add_add_bos_token", True), ("add_bos_token_id", 1)])
  tokenizer = tokenizer_of(open_gguf(tmp_path / "m.gguf"))
  assert tokenizer.encode("ab<|end|>ab<user>").ids == [1, 2, 0, 2, 1]
  assert tokenizer.decode([2, 0, 2, 1]) == "abab<user>"


@pytest.mark.parametrize(("change", "message"), [
    ({"architecture": "gemma3"}, "architecture must be 'llama'; got 'gemma3'"),
    ({"metadata": [("add_rope_scaling_type", gguf.RopeScalingType.YARN)]}, "llama.rope.scaling.type = 'yarn'"),
    ({"metadata": [("add_expert_count", 8)]}, "llama.expert_count = 8"),
    ({"metadata": [("add_rope_dimension_count", 8)]}, "rope.dimension_count must equal the head's size 16; got 8"),
    ({"metadata": [("add_bos_token_id", VOCAB)]}, "bos_id must be a token id below 260; got 260"),
])
def test_what_the_decoder_does_not_compute_is_refused(tmp_path, change, message):
  write(tmp_path / "m.gguf", weights(), **change)
  with pytest.raises(ValueError, match=message):
    load_gguf(open_gguf(tmp_path / "m.gguf"))


def test_tensors_that_do_not_fit_are_all_named(tmp_path):
  tensors = weights() | {"rope_freqs.weight": np.ones(8, np.float32)}
  tensors["blk.1.ffn_up.weight"] = np.ones((MLP, 32), np.float32)
  del tensors["output_norm.weight"]
  tensors["extra.weight"] = np.ones(4, np.float32)
  write(tmp_path / "m.gguf", tensors)
  with pytest.raises(ValueError) as e:
    load_gguf(open_gguf(tmp_path / "m.gguf"))
  for phrase in ("missing output_norm", "unknown rope_freqs", "unknown extra", "blk.1.ffn_up.weight has shape (96, 32"):
    assert phrase in str(e.value)


def header(*, tensors=0, pairs=0, version=3, body=b"", magic=b"GGUF") -> bytes:
  return magic + struct.pack("<IQQ", version, tensors, pairs) + body


def text(s: bytes, length: int | None = None) -> bytes:
  return struct.pack("<Q", len(s) if length is None else length) + s


def tensor(shape, kind=0, offset=0, name=b"a") -> bytes:
  return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


END = bytes(64)
HOSTILE = {
    "empty": b"",
    "magic": header(magic=b"GGML", body=END),
    "version": header(version=9, body=END),
    "big-endian": header(version=3 << 24, body=END),
    "2^63 tensors": header(tensors=2**63, body=END),
    "2^63 pairs": header(pairs=2**63, body=END),
    "long key": header(pairs=1, body=text(b"k", 2**62) + END),
    "unknown type": header(pairs=1, body=text(b"k") + struct.pack("<I", 77) + END),
    "long array": header(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 4, 2**61) + END),
    "long array of texts": header(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 8, 2**61) + END),
    "nested arrays": header(pairs=1, body=text(b"k") + struct.pack("<IIQ", 9, 9, 1) + END),
    "same key twice": header(pairs=2, body=2 * (text(b"k") + struct.pack("<IB", 0, 1)) + END),
    "broken text": header(pairs=1, body=text(b"\xff\xfe") + struct.pack("<IB", 0, 1) + END),
    "alignment": header(pairs=1, body=text(b"general.alignment") + struct.pack("<II", 4, 0) + END),
    "rank": header(tensors=1, body=text(b"a") + struct.pack("<I", 2**31) + END),
    "2^63 elements": header(tensors=1, body=tensor([2**63]) + END),
    "a product that wraps": header(tensors=1, body=tensor([2**32, 2**32, 2]) + END),
    "no elements": header(tensors=1, body=tensor([0]) + END),
    "unknown kind": header(tensors=1, body=tensor([4], kind=999) + END),
    "part of a block": header(tensors=1, body=tensor([33], kind=2) + END),
    "beyond the end": header(tensors=1, body=tensor([4], offset=2**40) + END),
    "offset that wraps": header(tensors=1, body=tensor([4], offset=2**64 - 32) + END),
    "overlap": header(tensors=2, body=tensor([8]) + tensor([8], name=b"b") + END),
    "same name twice": header(tensors=2, body=2 * tensor([4]) + END),
    "unaligned": header(tensors=1, body=tensor([4], offset=4) + END),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_lies_is_one_value_error_with_its_name(tmp_path, data):
  (tmp_path / "m.gguf").write_bytes(data)
  with pytest.raises(ValueError, match="m.gguf: "):
    open_gguf(tmp_path / "m.gguf")


def test_any_damage_gives_a_value_error_or_a_model(tmp_path):
  write(tmp_path / "m.gguf", weights(), kind=gguf.GGMLQuantizationType.Q4_0)
  whole = (tmp_path / "m.gguf").read_bytes()
  start = min(t.offset for t in open_gguf(tmp_path / "m.gguf").tensors.values())
  rng = random.Random(0)
  damaged, refused = tmp_path / "damaged.gguf", 0
  for trial in range(300):
    data = bytearray(whole)
    if trial % 4 == 0:
      data = data[: rng.randrange(len(data))]
    else:
      for _ in range(rng.randint(1, 4)):
        data[rng.randrange(start)] ^= 1 << rng.randrange(8)
    damaged.write_bytes(data)
    try:
      file = open_gguf(damaged)
      tokenizer_of(file)
      load_gguf(file)
    except ValueError:
      refused += 1
  assert 150 < refused < 300


def test_a_tensor_that_is_not_there(tmp_path):
  write(tmp_path / "m.gguf", weights())
  with pytest.raises(ValueError, match="no tensor 'x'"):
    open_gguf(tmp_path / "m.gguf").read("x")
