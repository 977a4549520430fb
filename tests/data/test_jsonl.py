"""JSONL files: every format is told by its keys, and a broken line stops everything before anything is written."""

import json

import pytest

from jaxft import data
from jaxft.data.builders.jsonl import jsonl_builder

CHAT = {"messages": [{"role": "user", "content": "héllo 你好"}, {"role": "assistant", "content": ""}]}
RECORDS = {
  "chat": CHAT,
  "completion": {"prompt": "", "completion": "b"},
  "text": {"text": "a\nb"},
  "pairs": {"anchor": "a", "positive": "b"},
  "triples": {"anchor": "a", "positive": "b", "negative": "c"},
  "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
}


def write(folder, *lines):
  path = folder / "file.jsonl"
  path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
  return path


@pytest.mark.parametrize("format", list(RECORDS))
def test_a_file_comes_back_as_it_is(tmp_path, format):
  path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(RECORDS[format]).encode(), b"", RECORDS[format], b" ")
  records = data.source(path, "train", data_dir=tmp_path / "data")
  assert list(records) == [RECORDS[format]] * 2
  assert data.builder(path, data_dir=tmp_path / "data").info.metadata["format"] == format


def test_a_byte_order_mark_on_a_line_of_its_own(tmp_path):
  path = write(tmp_path, b"\xef\xbb\xbf", {"text": "a \U0001f600"})
  assert list(data.source(path, "train", data_dir=tmp_path / "data")) == [{"text": "a \U0001f600"}]


def test_order_is_kept_and_splits_are_cut(tmp_path):
  path = write(tmp_path, *({"text": str(i)} for i in range(50)))
  read = lambda split: [int(record["text"]) for record in data.source(path, split, data_dir=tmp_path / "data")]
  assert read("train") == list(range(50))
  assert read("train[:80%]") + read("train[80%:]") == list(range(50))


def test_a_changed_file_is_prepared_anew(tmp_path, capfd):
  for text in ("one", "one", "two"):
    path = write(tmp_path, {"text": text})
    assert data.source(path, "train", data_dir=tmp_path / "data")[0] == {"text": text}
  assert capfd.readouterr().err.count("preparing jsonl") == 2


def test_other_keys_can_be_left_out(tmp_path):
  path = write(tmp_path, {"text": "a", "id": 3})
  builder = jsonl_builder(path, ignore=["id"], data_dir=tmp_path / "data")
  assert data.Records(builder, "train")[0] == {"text": "a"}


@pytest.mark.parametrize(("lines", "message"), [
  ([{"text": "a"}, b'{"text": "b"'], "line 2: not JSON: Expecting ',' delimiter at character 12$"),
  ([{"text": "a"}, b"nonsense", {"text": 1}], r"line 2: not JSON: .* \(1 more broken lines, the next is 3\)"),
  ([{"text": "a"}, b'{"text": "\xff"}'], "line 2: not UTF-8"),
  ([{"text": "a"}, b'{"text": "a", "text": "b"}'], "line 2: not JSON: a key occurs twice"),
  ([{"text": "a"}, b"[" * 100_000], "line 2: not JSON"),
  ([{"text": "a"}, [1]], "line 2: must be a JSON object; got list"),
  ([[1]], "line 1: must be a JSON object; got list"),
  ([{"text": "a"}, {"prompt": "b", "completion": "c"}], r"line 2: text takes the keys text; text missing from"),
  ([{"text": "a"}, {"text": None}], "line 2: text must be text; got NoneType"),
  ([{"text": "a"}, {"text": " "}], "line 2: text is empty"),
  ([{"anchor": "a", "positive": "b", "negatve": "c"}], "line 1: pairs takes .*; unknown: negatve"),
  ([{"foo": "a"}], r"line 1: keys \['foo'\] are of no format; chat: messages; completion: prompt, completion"),
  ([{"messages": []}], "line 1: messages must be a list of at least one message"),
  ([{"messages": [{"role": "user"}]}], r"line 1: messages\[0\] must have the keys role and content; got \['role'\]"),
  ([{"messages": [{"role": "bot", "content": "a"}]}], r"line 1: messages\[0\] role must be one of .*; got 'bot'"),
  ([{"messages": [{"role": "user", "content": "a"}]}], "line 1: messages has no turn of the assistant"),
  ([{"text": "a"}, {"text": "a\ud800b"}],
   r"line 2: text is not valid Unicode: a lone surrogate, \\ud800, at character 1"),
  ([{"prompt": "a", "completion": "\udc00"}], "line 1: completion is not valid Unicode"),
  ([{"prompt": "\udc00", "completion": "a"}], "line 1: prompt is not valid Unicode"),
  ([{"anchor": "a", "positive": "b", "negative": "\udfff"}], "line 1: negative is not valid Unicode"),
  ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ud83d"}]}],
   r"line 1: messages\[1\] content is not valid Unicode"),
  ([], "the file holds no record"),
  ([b"", b"  "], "the file holds no record"),
])
def test_one_error_with_file_and_line_and_nothing_written(tmp_path, lines, message):
  path = write(tmp_path, *lines)
  with pytest.raises(ValueError, match=message) as error:
    data.source(path, "train", data_dir=tmp_path / "data")
  assert str(path) in str(error.value)
  assert not (tmp_path / "data").exists()


def test_unknown_format(tmp_path):
  with pytest.raises(ValueError, match="format must be one of .* got 'pair'; nearest: pairs"):
    jsonl_builder(write(tmp_path, {"text": "a"}), format="pair", data_dir=tmp_path / "data")


def test_images_lie_beside_their_file_and_labels_may_be_numbers(tmp_path):
  import numpy as np
  from PIL import Image

  for folder in ("a", "b"):
    (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / folder / "x.png")
    path = write(tmp_path / folder, {"image": "x.png", "label": 3})
    record, = data.source(path, "train", data_dir=tmp_path / "data")
    assert record == {"image": str(tmp_path / folder / "x.png"), "label": "3"}  # each its own, by the same lines
  path = write(tmp_path, {"text": "a", "value": 2})
  assert list(data.source(path, "train", data_dir=tmp_path / "data")) == [{"text": "a", "value": 2.0}]
