"""Files of records: every format is told by its columns, and a broken row stops everything before anything is written.
"""

import csv
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from jaxft import data
from jaxft.data.files.builder import files_builder
from jaxft.data.files.formats import FORMATS
from jaxft.data.files.records import check, reading_of, records as records_of, with_others

TEXTS = {name: form for name, form in FORMATS.items() if "image" not in form.columns}


def write(folder, *lines):
  path = folder / "file.jsonl"
  path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
  return path


def expected(form):
  """The record that a format's example becomes, by hand for those of others."""
  question = {"question": "Name a colour.", "answer": "Blue."}
  pair = {"anchor": "colour of the sky", "positive": "The sky is blue."}
  return {
    "ShareGPT": FORMATS["chat"].example, "Alpaca": {"question": "Translate.\n\nbleu", "answer": "blue"},
    "prompt and response": question, "query and answer": pair, "query and positive": pair,
    "query, positive and negative": {**pair, "negative": "Grass is green."},
    "sentence labels": {"text": "I loved it.", "label": "positive"},
    "preferences with the prompt in both": {"prompt": "The sky is", "chosen": " blue.", "rejected": " a dog."},
    "preference chats with the prompt in both": FORMATS["preference chats"].example,
  }.get(form, FORMATS[form].example)


@pytest.mark.parametrize("format", TEXTS)
def test_a_file_comes_back_as_it_is(tmp_path, format):
  example = FORMATS[format].example
  path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(example).encode(), b"", example, b" ")
  records = data.source(path, "train", data_dir=tmp_path / "data")
  assert list(records) == [expected(format)] * 2
  found = data.builder(path, data_dir=tmp_path / "data").info.metadata["format"]
  assert found == (FORMATS[format].into or format)
  assert set(expected(format)) == set(FORMATS[found].columns)


def as_csv(path, rows, by):
  cell = lambda value: json.dumps(value) if isinstance(value, list) else str(value)
  with open(path, "w", newline="") as f:
    csv.writer(f, delimiter=by).writerows([list(rows[0]), *([cell(x) for x in row.values()] for row in rows)])
  return path


WRITERS = {
  "json": lambda path, rows: path.write_text(json.dumps(rows)),
  "csv": lambda path, rows: as_csv(path, rows, ","),
  "tsv": lambda path, rows: as_csv(path, rows, "\t"),
  "parquet": lambda path, rows: parquet.write_table(pyarrow.Table.from_pylist(rows), path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_holds_every_format(tmp_path, kind):
  """All formats in one test a kind: what costs is preparing, so the rows are read as the builder reads them."""
  for i, (name, form) in enumerate(TEXTS.items()):
    path = tmp_path / f"{i}.{kind}"
    WRITERS[kind](path, [form.example] * 2)
    reading = reading_of(path, format=None, fields={})
    assert reading.format == name and not check(path, reading)
    assert list(records_of(path, reading)) == [expected(name)] * 2, name


def test_columns_are_renamed_and_others_left_out_in_one_line(tmp_path, capfd):
  path = tmp_path / "file.csv"
  path.write_text('id,query,answer\n1,"a, b",c\n\n2,"d ""e""","f\ng"\n')
  records = data.source(path, "train", fields="query=prompt,answer=completion", data_dir=tmp_path / "data")
  assert list(records) == [{"prompt": "a, b", "completion": "c"}, {"prompt": 'd "e"', "completion": "f\ng"}]
  said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("jaxft: note:")]
  assert said == ["jaxft: note: file.csv is read as completion; left out: id"]
  data.builder(path, data_dir=tmp_path / "data")  # by its own names
  again = data.builder(path, fields="id=", data_dir=tmp_path / "data")
  assert again.info.metadata["format"] == "pairs"
  assert capfd.readouterr().err.count("read as query and answer; left out: id") == 2


def test_rewards_see_what_no_format_reads(tmp_path, capfd):
  first = {"q": "1+1=", "answer": "2", "level": 3, "tests": [["a", {"b": None}]], "far": float("nan")}
  path = write(tmp_path, first, {"q": "2+2=", "answer": "4", "others": "own"})
  made = data.builder(path, fields="q=prompt", others=True, data_dir=tmp_path / "data")
  assert "read as prompts and answers; for rewards alone: level, tests, far, others" in capfd.readouterr().err
  one, two = map(with_others, data.Records(made, "train"))
  assert np.isnan(one.pop("far"))
  assert one == {"prompt": "1+1=", "answer": "2", "level": 3, "tests": [["a", {"b": None}]]}
  assert two == {"prompt": "2+2=", "answer": "4", "others": "own"}
  # Left out by --fields is seen under its own name; the format's own column has its name all the same.
  path.write_text('{"prompt": "a", "answer": "long", "short": "b"}\n')
  made = data.builder(path, fields="answer=,short=answer", others=True, data_dir=tmp_path / "data")
  assert with_others(data.Records(made, "train")[0]) == {"prompt": "a", "answer": "b"}
  plain = data.source(path, "train", fields="short=", data_dir=tmp_path / "data")
  assert plain[0] == {"prompt": "a", "answer": "long"}  # nothing more where no reward asks for it
  # A prompt alone is enough, and only a reward takes others beside it.
  path.write_text('{"prompt": "a", "level": 1}\n')
  with pytest.raises(ValueError, match=r"keys \['level', 'prompt'\] are of no format"):
    data.builder(path, data_dir=tmp_path / "data")
  made = data.builder(path, others=True, data_dir=tmp_path / "data")
  assert with_others(data.Records(made, "train")[0]) == {"prompt": "a", "level": 1}
  with pytest.raises(ValueError, match="unknown: anser .nearest: answer.; say what it is by --fields anser=answer"):
    data.builder(write(tmp_path, {"prompt": "a", "anser": "1"}), others=True, data_dir=tmp_path / "data")
  # What JSON cannot hold is left out.
  parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "a", "raw": b"x", "id": 1}]), tmp_path / "x.parquet")
  made = data.builder(tmp_path / "x.parquet", others=True, data_dir=tmp_path / "data")
  assert with_others(data.Records(made, "train")[0]) == {"prompt": "a", "id": 1}
  assert "read as prompts; for rewards alone: id; left out: raw" in capfd.readouterr().err


@pytest.mark.parametrize(("fields", "message"), [
  ("query", "fields must be pairs as query=anchor,answer=positive; got 'query'"),
  ("=anchor", "fields must be pairs"), ("a=x,b=x", "no name twice"), ("a=x,a=y", "each column one name"),
  ("qury=anchor", "line 1: fields names the column 'qury', which is not there; nearest: query"),
  ("query=answer", "line 1: fields names a column 'answer', and there is one already; leave it out by answer="),
])
def test_fields_that_are_none(tmp_path, fields, message):
  path = write(tmp_path, {"query": "a", "answer": "b"})
  with pytest.raises(ValueError, match=message):
    data.source(path, "train", fields=fields, data_dir=tmp_path / "data")
  with pytest.raises(ValueError, match="fields renames the columns of files, of which digits is none"):
    data.builder("digits", fields="label=value")


def test_a_folder_of_files_has_the_splits_that_their_names_say(tmp_path):
  folder = tmp_path / "owner" / "data"
  folder.mkdir(parents=True)
  for name, texts in {"train-00000-of-00002": "ab", "train-00001-of-00002": "c", "dev": "d", "test-0": "e"}.items():
    WRITERS["parquet"](folder / f"{name}.parquet", [{"text": text} for text in texts])
  (folder.parent / "README.md").write_text("words")
  read = lambda split: [r["text"] for r in data.source(folder.parent, split, data_dir=tmp_path / "data")]
  assert read("train") == [*"abc"] and read("validation") == ["d"] and read("test") == ["e"]
  WRITERS["parquet"](folder / "more.parquet", [{"text": "f"}])
  with pytest.raises(ValueError, match="more.parquet has no split in its name"):
    read("train")


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_that_save_to_disk_wrote(tmp_path, several):
  datasets = pytest.importorskip("datasets")
  features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
  made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
  wanted = [{"text": "a", "label": "yes"}, {"text": "b", "label": "no"}]
  (datasets.DatasetDict({"train": made, "test": made}) if several else made).save_to_disk(tmp_path / "disk")
  for split in ("train", "test") if several else ("train",):
    assert list(data.source(tmp_path / "disk", split, data_dir=tmp_path / "data")) == wanted
  arrow = next((tmp_path / "disk").rglob("*.arrow"))
  arrow.write_bytes(arrow.read_bytes()[:40])
  with pytest.raises(ValueError, match="row 1: .* is no Arrow stream"):
    data.source(tmp_path / "disk", "train", data_dir=tmp_path / "data")


@pytest.mark.parametrize(("name", "content", "message"), [
  ("a.csv", "text,text\na,b\n", "line 1: the header must name each column once"),
  ("a.csv", "text,label\na,b\nc\n", "line 3: has 1 cells, and the header names 2 columns"),
  ("a.csv", 'text\n"a\n', "line 2: cannot be read"), ("a.csv", b"text\n\xff\n", "not UTF-8"),
  ("a.csv", "text\n", "the file holds no record"), ("a.csv", "", "the file holds no record"),
  ("a.csv", "text,value\na,high\n", "line 2: value must be a finite number; got 'high'"),
  ("a.csv", "text,value\na,nan\n", "line 2: value must be a finite number; got nan"),
  ("a.csv", "messages\nhello\n", "line 2: messages must be a list"),
  ("a.json", '{"text": "a"}', "line 1: must be a list of objects; got dict"),
  ("a.json", '{"text": "a"}\n{"text": "b"}\n', r"line 2: not JSON: Extra data .a file of one object a line has the"),
  ("a.json", "[" * 100_000, "line 1: not JSON"), ("a.parquet", "PAR1", "row 1: no Parquet file"),
  ("a.txt", "a", "no data set"), ("a.jsonl", '{"text": "a", "label": "b", "value": 1}', "are of labels and of values"),
  ("a.jsonl", '{"conversations": [{"from": "bot", "value": "a"}]}', "from must be one of .*; got 'bot'"),
  ("a.jsonl", '{"instruction": "a", "input": 3, "output": "b"}', "line 1: input must be text; got int"),
])
def test_broken_files_of_each_kind(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(ValueError, match=message) as error:
    data.source(path, "train", data_dir=tmp_path / "data")
  assert str(path) in str(error.value) and not (tmp_path / "data").exists()


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
  assert capfd.readouterr().err.count("preparing files") == 2


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
    files_builder(write(tmp_path, {"text": "a"}), format="pair", data_dir=tmp_path / "data")


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


@pytest.mark.parametrize("chosen, rejected, prompt", [
  ("The sky is blue.", "The sky is brown.", "The sky is"), ("Hi there", "Hi there friend", "Hi"), ("Hi", "Hi you", ""),
  ("Yes", "No", ""), ("The cats", "The cat s", "The"), ("Say:\n\nA b", "Say:\n\nC", "Say:"),
])
def test_what_both_begin_with_is_the_prompt(chosen, rejected, prompt):
  made = FORMATS["preferences with the prompt in both"].convert({"chosen": chosen, "rejected": rejected})
  assert made["prompt"] == prompt and all(made[name].strip() for name in ("chosen", "rejected"))
  assert (prompt + made["chosen"], prompt + made["rejected"]) == (chosen, rejected)


@pytest.mark.parametrize("change, said", [
  ({"chosen": "A dog.", "prompt": None}, "chosen and rejected are the same"),
  ({"chosen": [{"role": "user", "content": "Blue."}]}, "chosen must be one turn of the assistant.*got user"),
  ({"chosen": [{"role": "assistant", "content": " "}]}, "chosen is empty"),
  ({"chosen": [{"role": "assistant", "content": "a"}] * 2}, "one turn of the assistant.*got assistant, assistant"),
  ({"prompt": [{"role": "user"}], "chosen": []}, r"prompt\[0\] must have the keys role and content"),
  ({"chosen": [], "prompt": []}, "prompt must be a list of at least one message"),
  ({"rejected": None}, "rejected must be text; got NoneType"),
])
def test_pairs_that_are_none(tmp_path, change, said):
  form = FORMATS["preference chats" if isinstance(change.get("chosen"), list) else "preferences"]
  row = {name: value for name, value in (form.example | change).items() if name != "prompt" or value is not None}
  path = write(tmp_path, row)
  with pytest.raises(ValueError, match=f"line 1: .*{said}"):
    check(path, reading_of(path, format=None, fields={}))


def test_a_judgement_is_true_or_false(tmp_path):
  row = FORMATS["judged responses"].example
  path = write(tmp_path, row, {**row, "label": "good"}, {**row, "label": 2})
  with pytest.raises(ValueError, match=r"line 2: label must be true or false; got 'good' \(1 more broken line"):
    check(path, reading_of(path, format=None, fields={}))
  path = tmp_path / "file.csv"
  path.write_text("prompt,completion,label\na,b,False\nc,d,1\n")
  assert [r["label"] for r in records_of(path, reading_of(path, format=None, fields={}))] == [False, True]
