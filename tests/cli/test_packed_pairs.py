"""`jaxft finetune` on pairs whose texts share rows: the numbers of padded ones, and fewer tokens."""

import json

import numpy as np
import pytest

from jaxft.training.metrics import read_json_lines
from tests.cli.conftest import write_lines

STEPS = ("--batch-size", 8, "--max-length", 32, "--steps", 2, "--log-every", 1, "--holdout", 0)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
  """Pairs of short anchors and of positives from four tokens to more than a row holds."""
  words = "rivers birds engines poems bridges storms coins maps bread glass music stars".split()
  answer = lambda i, word: f"{word} and " * (19 if i == 5 else 1) + "more"
  lines = [{"anchor": word, "positive": answer(i, word), "negative": f"no {word}" * (1 + i % 3)}
           for i, word in enumerate(words)]
  return write_lines(tmp_path_factory.mktemp("data") / "uneven.jsonl", lines)


def losses(out):
  return [[line["loss"], line["grad_norm"]] for line in read_json_lines(out / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("options", [
    ("--data-parallel", 1, "--accumulate", 2),
    ("--data-parallel", 2, "--loss", "gist"),
    pytest.param(("--data-parallel", 1), marks=pytest.mark.exhaustive),
    pytest.param(("--data-parallel", 2, "--accumulate", 2, "--loss", "gist"), marks=pytest.mark.exhaustive),
])
def test_the_loss_is_that_of_padded_rows(jaxft, tiny, uneven, tmp_path, options):
  run = lambda name, *more: jaxft(
      "finetune", "--model", tiny, "--data", uneven, "--out", tmp_path / name, *STEPS, *options, *more)
  packed, padded = run("packed"), run("padded", "--pad")
  assert packed.status == padded.status == 0, packed.err + padded.err
  assert "jaxft: texts share rows, " in packed.err and "times fewer tokens than padded" in packed.err
  assert "share rows" not in padded.err
  line = next(line for line in packed.err.splitlines() if "an epoch weighs" in line)
  assert line in padded.err  # what is counted is the texts, not their rows
  np.testing.assert_allclose(losses(tmp_path / "packed"), losses(tmp_path / "padded"), rtol=2e-5)
  assert json.loads((tmp_path / "packed/summary.json").read_text())["steps"] == 2


def test_rows_are_shared_where_it_pays_or_is_asked_for(jaxft, tiny, tmp_path):
  texts = [f"{n} " + "word " * 60 for n in range(8)]  # all fill their rows
  full = write_lines(tmp_path / "full.jsonl", [{"anchor": text, "positive": f"{text}s"} for text in texts])
  run = lambda name, *more: jaxft("finetune", "--model", tiny, "--data", full, "--out", tmp_path / name, "--steps", 1,
                                  "--batch-size", 4, "--max-length", 16, "--data-parallel", 1, "--holdout", 0, *more)
  by_itself, asked = run("by-itself"), run("asked", "--pack")
  assert by_itself.status == asked.status == 0, by_itself.err + asked.err
  assert "share rows" not in by_itself.err and "4 of 16 tokens and 4 of 16 tokens a step, 1.0 times" in asked.err


@pytest.mark.parametrize("options, said", [
    (("--pack", "--pad"), "--pack and --pad say the opposite"),
    (("--task", "classify", "--pack"), "--pack is for decoders and for the losses of pairs, mnrl, gist"),
    (("--task", "classify", "--pad"), "--pad is for the losses of pairs, mnrl, gist"),
])
def test_what_shares_no_rows_refuses_to(jaxft, tiny, tmp_path, options, said):
  labels = write_lines(tmp_path / "labels.jsonl", [{"text": str(n), "label": "ab"[n % 2]} for n in range(8)])
  answer = jaxft("finetune", "--model", tiny, "--data", labels, "--out", tmp_path / "run", *STEPS, *options)
  assert answer.status == 2 and said in answer.error


def test_a_decoder_that_packs_is_told_how_long(jaxft, tiny_decoder, chats, tmp_path):
  answer = jaxft("finetune", "--model", tiny_decoder, "--data", chats, "--out", tmp_path / "run", "--pack")
  assert answer.status == 2 and "--pack needs --steps" in answer.error
