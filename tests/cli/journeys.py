"""Forty journeys of a practitioner: each format, task and output, by real commands on small models.

    python -m tests.cli.journeys                 all, with their seconds; ends with 1 where one fails
    python -m tests.cli.journeys resume merge    those whose names have one of these words
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ENCODER, DECODER, IMAGES = "minilm-l6:tiny", "smollm2-135m:tiny", "efficientnet-lite0:tiny"
MODELS = {"embed": ENCODER, "classify": ENCODER, "regress": ENCODER}  # all others are for decoders
FEW = ("--steps", 1, "--batch-size", 4, "--max-length", 64, "--data-parallel", 1, "--learning-rate", 1e-2)
OF_TASK = {"rl": ("--max-new-tokens", 4)}
ROWS = 8

Journey = Callable[[Path], None]
JOURNEYS: dict[str, Journey] = {}


def lengths(texts: list[str], records: list[dict[str, Any]]) -> list[int]:
  """A reward that reads texts alone."""
  del records
  return [len(text) for text in texts]


def journey(function: Journey) -> Journey:
  """Adds a journey under the name of its function."""
  JOURNEYS[function.__name__.replace("_", " ")] = function
  return function


def jaxft(*args: Any, status: int = 0) -> str:
  """Both outputs of a command; fails where its status is another."""
  from jaxft.cli import main

  said = io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    found = main([str(arg) for arg in args])
  assert found == status, f"status {found} of {' '.join(map(str, args))}: {said.getvalue()[-2000:]}"
  return said.getvalue()


def finetune(out: Path, model: str, data: Any, *options: Any, status: int = 0) -> str:
  """A run of one step."""
  return jaxft("finetune", "--model", model, "--data", data, "--out", out, *FEW, *options, status=status)


def varied(value: Any, i: int, name: str = "") -> Any:
  """An example of a format as its i-th row: texts, numbers and labels that differ."""
  if name in ("role", "from"):
    return value
  if isinstance(value, bool):
    return i % 2 == 0
  if isinstance(value, str) and value.isdigit():  # an answer that is a number stays one
    return str(int(value) + i)
  if isinstance(value, float):
    return value + i / 100
  if isinstance(value, list):
    return [varied(x, i) for x in value]
  if isinstance(value, Mapping):
    return {key: varied(x, i, key) for key, x in value.items()}
  return f"{value} {i % 2}" if name == "label" else f"{i}.png" if name == "image" else f"{value} {i}"


def rows_of(example: Mapping[str, Any]) -> list[dict[str, Any]]:
  """As many rows as an example makes; what both texts begin with stays the same."""
  rows = [varied(example, i) for i in range(ROWS)]
  if {*example} == {"chosen", "rejected"} and isinstance(example["chosen"], str):
    rows = [{key: f"{i} {x}" for key, x in example.items()} for i in range(ROWS)]
  return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
  """A JSONL file."""
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def pictures(folder: Path) -> None:
  """A picture for each row."""
  from PIL import Image

  rng = np.random.default_rng(0)
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(ROWS):
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def of_format(name: str) -> Journey:
  """A run on a file of a format, told by its columns."""

  def run(at: Path) -> None:
    from jaxft.data.files.formats import FORMATS

    form = FORMATS[name]
    assert form.task is not None
    if "image" in form.columns:
      pictures(at)
    data = write(at / "data.jsonl", rows_of(form.example))
    model = IMAGES if "image" in form.columns else MODELS.get(form.task, DECODER)
    reward = "exact" if "answer" in form.columns else f"{__name__}:lengths"
    more = ("--reward", reward) if form.task == "rl" else ()
    said = finetune(at / "run", model, data, *OF_TASK.get(form.task, ()), *more)
    assert f"task {form.task} by the loss" in said and "next: jaxft" in said, said
    assert (at / "run/model/config.json").exists() and (at / "run/run.yaml").exists()

  return run


def add_formats() -> None:
  """A journey for each format that the command knows."""
  from jaxft.data.files.formats import FORMATS

  for name, form in FORMATS.items():
    if form.task is not None:
      JOURNEYS[f"format {name}"] = of_format(name)


add_formats()
PAIRS = [{"anchor": f"a question about {i}", "positive": f"{'so ' * i} it is {i}"} for i in range(ROWS)]
LABELS = [{"text": f"{word} thing {i}", "label": word} for i in range(ROWS // 2) for word in ("big", "small")]
TEXTS = [{"text": f"line {i} of some text"} for i in range(ROWS)]


def table(path: Path, separator: str) -> Path:
  """Labels as a table."""
  rows = [("text", "label"), *((row["text"], row["label"]) for row in LABELS)]
  path.write_text("".join(separator.join(row) + "\n" for row in rows))
  return path


@journey
def a_csv_file(at: Path) -> None:
  assert "cross_entropy" in finetune(at / "run", ENCODER, table(at / "x.csv", ","))


@journey
def a_tsv_file(at: Path) -> None:
  assert "cross_entropy" in finetune(at / "run", ENCODER, table(at / "x.tsv", "\t"))


@journey
def a_json_file(at: Path) -> None:
  (at / "x.json").write_text(json.dumps(PAIRS))
  assert "mnrl" in finetune(at / "run", ENCODER, at / "x.json")


@journey
def a_parquet_file(at: Path) -> None:
  import pyarrow
  import pyarrow.parquet

  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), at / "x.parquet")
  assert "mnrl" in finetune(at / "run", ENCODER, at / "x.parquet")


@journey
def columns_of_other_names(at: Path) -> None:
  data = write(at / "x.jsonl", [{"q": row["anchor"], "a": row["positive"], "n": 1} for row in PAIRS])
  said = finetune(at / "run", ENCODER, data, "--fields", "q=anchor,a=positive")
  assert "mnrl" in said and "n" in said


@journey
def a_folder_of_pictures(at: Path) -> None:
  for label in ("cat", "dog"):
    pictures(at / "pets" / label)
  assert "cross_entropy" in finetune(at / "run", IMAGES, at / "pets")


@journey
def a_classifier_in_transformers(at: Path) -> None:
  import torch
  from transformers import AutoModelForSequenceClassification, AutoTokenizer

  import jaxft as library

  finetune(at / "run", ENCODER, write(at / "x.jsonl", LABELS))
  folder = at / "run/model"
  model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
  with torch.no_grad():
    theirs = model(**tokenizer(["big thing"], return_tensors="pt")).logits.numpy()
  np.testing.assert_allclose(np.asarray(library.load(folder).logits(["big thing"])), theirs, atol=1e-4)


@journey
def a_decoder_in_transformers(at: Path) -> None:
  import torch
  from transformers import AutoModelForCausalLM

  import jaxft as library

  finetune(at / "run", DECODER, write(at / "x.jsonl", TEXTS))
  ids = np.array([[5, 9, 11, 2]])
  with torch.no_grad():
    theirs = AutoModelForCausalLM.from_pretrained(at / "run/model")(torch.tensor(ids)).logits.numpy()
  np.testing.assert_allclose(np.asarray(library.load(at / "run/model").logits(ids)), theirs, atol=1e-3)


@journey
def an_adapter_in_peft(at: Path) -> None:
  from peft import PeftModel
  from transformers import AutoModelForCausalLM

  jaxft("convert", DECODER, at / "base")
  said = finetune(at / "run", str(at / "base"), write(at / "x.jsonl", TEXTS), "--no-merge")
  assert "jaxft convert" in said and not (at / "run/model").exists()
  PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(at / "base"), at / "run/adapter")


@journey
def an_encoder_in_sentence_transformers(at: Path) -> None:
  from sentence_transformers import SentenceTransformer

  import jaxft as library

  finetune(at / "run", ENCODER, write(at / "x.jsonl", PAIRS))
  theirs = SentenceTransformer(str(at / "run/model"), device="cpu").encode(["a text"])
  np.testing.assert_allclose(library.load(at / "run/model").encode(["a text"]), theirs, atol=1e-4)


@journey
def a_gguf_file_and_its_reader(at: Path) -> None:
  import gguf

  finetune(at / "run", DECODER, write(at / "x.jsonl", TEXTS))
  jaxft("convert", at / "run/model", at / "x.gguf", "--dtype", "F16")
  assert gguf.GGUFReader(at / "x.gguf").tensors


@journey
def resume_and_grow(at: Path) -> None:
  data = write(at / "x.jsonl", TEXTS)
  finetune(at / "run", DECODER, data)
  assert "nothing is left to do" in finetune(at / "run", DECODER, data)
  assert "at step 1 of 2" in finetune(at / "run", DECODER, data, "--steps", 2)


@journey
def repeat_by_the_run_file(at: Path) -> None:
  finetune(at / "run", DECODER, write(at / "x.jsonl", TEXTS))
  jaxft("finetune", at / "run/run.yaml", "--out", at / "again")
  one, other = ((at / name / "model/model.safetensors").read_bytes() for name in ("run", "again"))
  assert one == other


@journey
def merge_two_runs(at: Path) -> None:
  for seed in (0, 1):
    finetune(at / f"run{seed}", DECODER, write(at / "x.jsonl", TEXTS), "--seed", seed)
  (at / "merge.yaml").write_text(
      "merge_method: linear\ndtype: float32\nmodels:\n" + "".join(
          f"  - model: {at / f'run{seed}/model'}\n    parameters: {{weight: 0.5}}\n" for seed in (0, 1)))
  jaxft("merge", at / "merge.yaml", "--out", at / "merged")
  assert (at / "merged/model.safetensors").exists()


@journey
def an_adapter_merged(at: Path) -> None:
  finetune(at / "run", DECODER, write(at / "x.jsonl", TEXTS), "--method", "dora")
  jaxft("convert", at / "run/adapter", at / "merged", "--base", DECODER)
  assert (at / "merged/model.safetensors").exists()


@journey
def a_checkpoint_as_a_model(at: Path) -> None:
  finetune(at / "run", DECODER, write(at / "x.jsonl", TEXTS))
  assert "step 1" in jaxft("convert", at / "run", at / "model")
  one, other = ((at / name / "model.safetensors").read_bytes() for name in ("run/model", "model"))
  assert one == other


@journey
def back_to_an_adapter(at: Path) -> None:
  finetune(at / "run", ENCODER, write(at / "x.jsonl", PAIRS), "--rank", 2)
  assert "rank 2" in jaxft("convert", at / "run/model", at / "adapter", "--adapter", "--base", ENCODER)


@journey
def distill_and_see_what_is_forgotten(at: Path) -> None:
  data = write(at / "x.jsonl", TEXTS)
  said = finetune(at / "run", DECODER, data, "--teacher", DECODER, "--control", data)
  assert "divergence" in said and f"control {data} loss" in said
  assert "of --control are learnt from, so that they do not tell what is forgotten" in said


@journey
def methods_joined_and_quantized(at: Path) -> None:
  # The tiny model's matrices have 48 rows, and the blocks of a quantized one 64.
  said = finetune(at / "run", f"{DECODER.partition(':')[0]}:1", write(at / "x.jsonl", TEXTS), "--method",
                  "lora(rank=2) + train(norms)", "--quantize", "int8")
  assert "adapter: " in said


@journey
def evaluate_plan_and_generate(at: Path) -> None:
  data = write(at / "x.jsonl", TEXTS)
  assert "perplexity" in jaxft("evaluate", "--model", DECODER, "--data", data)
  assert "MiB" in jaxft("plan", "--model", DECODER.partition(":")[0], "--data", data, "--no-compile")
  assert jaxft("generate", "--model", DECODER, "The sky is", "--max-new-tokens", 2)


@journey
def track_and_cite(at: Path) -> None:
  finetune(at / "run", DECODER, write(at / "x.jsonl", TEXTS), "--track", "tensorboard")
  assert list((at / "run/tensorboard").iterdir()) and "2106.09685" in jaxft("cite", at / "run")


@journey
def a_bad_line_is_one_line(at: Path) -> None:
  (at / "x.jsonl").write_text('{"text": "a"}\n{"text": \n')
  said = finetune(at / "run", DECODER, at / "x.jsonl", status=2)
  assert said.count("jaxft: error: ") == 1 and "Traceback" not in said and not (at / "run/config.json").exists()


@journey
def formats_and_completion(at: Path) -> None:
  del at
  said = jaxft("formats")
  assert all(name in said for name in ("ShareGPT", "preferences", "image labels"))
  subprocess.run(["bash", "-n"], input=jaxft("completion", "bash"), text=True, check=True)


def main(words: list[str]) -> int:
  """Runs the journeys whose names have one of the words, all where there are none."""
  failed = []
  for name, run in JOURNEYS.items():
    if words and not any(word in name for word in words):
      continue
    start, said = time.monotonic(), "ok"
    with tempfile.TemporaryDirectory() as at:
      try:
        run(Path(at))
      except Exception:
        traceback.print_exc()
        failed.append(name)
        said = "FAILED"
    print(f"{said:<6} {time.monotonic() - start:6.1f} s  {name}", flush=True)
  print(f"{len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
  return bool(failed)


if __name__ == "__main__":
  raise SystemExit(main(sys.argv[1:]))
