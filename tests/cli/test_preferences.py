"""`jaxft finetune` learns from pairs and from judged responses, as texts and as chats, and says how it went."""

import json
import re

import numpy as np
import pytest

from tests.cli.conftest import write_lines

FEW = ("--batch-size", 4, "--max-length", 24, "--steps", 2, "--log-every", 1, "--data-parallel", 1, "--learning-rate",
       1e-2, "--warmup", 0, "--holdout", 0.34)
COLOURS = "red blue green grey pink black".split()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """Twelve pairs of texts; the chosen one names the colour."""
  lines = [{"prompt": f"The {thing} is {colour}. It is", "chosen": f" {colour}", "rejected": " no colour at all"}
           for thing in ("door", "coat") for colour in COLOURS]
  return write_lines(tmp_path_factory.mktemp("texts") / "pairs.jsonl", lines)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
  """Six pairs of chats with the prompt in both, and the same as twelve judged answers."""
  folder = tmp_path_factory.mktemp("talks")
  turn = lambda role, content: {"role": role, "content": content}
  lines = [([turn("user", f"Say {c}.")], [turn("assistant", c)], [turn("assistant", "No.")]) for c in COLOURS]
  write_lines(folder / "pairs.jsonl", [{"chosen": p + c, "rejected": p + r} for p, c, r in lines])
  judged = [{"prompt": p, "completion": x, "label": i == 0} for p, *both in lines for i, x in enumerate(both)]
  write_lines(folder / "judged.jsonl", judged)
  return folder


def run(jaxft, model, data, out, *options):
  answer = jaxft("finetune", "--model", model, "--data", data, "--out", out, *FEW, *options)
  assert answer.status == 0, answer.err
  lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
  return json.loads((out / "summary.json").read_text()), lines, answer


def test_pairs_by_dpo_against_the_model_before_tuning(jaxft, tiny_decoder, texts, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXFT_HOME", str(tmp_path / "home"))
  summary, lines, answer = run(jaxft, tiny_decoder, texts, tmp_path / "run")
  assert summary["loss"] == "dpo" and "task prefer by the loss dpo" in answer.err  # by the columns
  before, after = summary["before"], summary["after"]
  # Nothing has moved yet: every pair is a tie, and the loss log 2.
  assert before["accuracy"] == 0.5 and before["margin"] == 0 and before["loss"] == pytest.approx(np.log(2), abs=1e-6)
  assert before["accuracy_low"] < 0.5 < before["accuracy_high"] and after["margin"] > 0
  assert f"validation accuracy: 0.5000 [{before['accuracy_low']:.4f}, {before['accuracy_high']:.4f}] -> " in answer.out
  steps = [line for line in lines if "loss" in line]
  assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6) and steps[1]["loss"] < steps[0]["loss"]
  assert {"accuracy", "margin", "chosen", "rejected"} <= {*steps[1]} and "2305.18290" in summary["arxiv"]
  assert "chosen: beta = 0.1" in (tmp_path / "run/run.yaml").read_text()
  kept = sorted((tmp_path / "home/references").iterdir())
  assert len(kept) == 2  # of the records to train on, and of those to validate on
  times = [path.stat().st_mtime_ns for path in kept]
  # Another loss of the same scores reads them; without labels smoothed, in micro-batches of two rows.
  run(jaxft, tiny_decoder, texts, tmp_path / "other", "--loss", "hinge", "--accumulate", 2)
  assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "home/references").iterdir())] == times
  # Where tokens beyond the shorter response count less, those of the reference do too.
  more, *_ = run(jaxft, tiny_decoder, texts, tmp_path / "more", "--length-alpha", 0.5, "--wpo", "--divergence", "js")
  assert more["before"]["margin"] == pytest.approx(0, abs=1e-4)
  assert {"2309.16240", "2409.06411", "2406.11827"} <= {*more["arxiv"]}
  assert len([*(tmp_path / "home/references").iterdir()]) == 4


def test_the_likelihood_stands_beside_orpo(jaxft, tiny_decoder, texts, tmp_path):
  summary, lines, _ = run(jaxft, tiny_decoder, texts, tmp_path / "run", "--loss", "orpo", "--method", "full",
                          "--accumulate", 2)
  # Of a model that knows nothing the likelihood is log 49152 and the odds are even.
  assert lines[1]["loss"] == pytest.approx(np.log(49152) + 0.1 * np.log(2), rel=1e-2)
  assert lines[2]["loss"] < lines[1]["loss"] and summary["after"]["chosen"] > summary["before"]["chosen"]


@pytest.mark.parametrize("name", ["pairs", "judged"])
def test_chats_by_kto(jaxft, tiny_decoder, talks, tmp_path, name):
  summary, lines, answer = run(
      jaxft, tiny_decoder, talks / f"{name}.jsonl", tmp_path / "run", "--loss", "kto", "--task", "prefer",
      "--accumulate", 2)
  assert summary["before"]["loss"] == pytest.approx(0.5, abs=1e-6)  # of either kind, where nothing has moved
  assert {"kl", "gain_desirable"} <= {*lines[1]} and summary["before"]["accuracy"] == 0.5
  assert "12 records scored once" not in answer.err or name == "judged"


def test_responses_that_aligned_models_find_likely(jaxft, tiny_decoder, tmp_path):
  data = write_lines(tmp_path / "data.jsonl", [{"prompt": f"{c} is", "completion": " a colour"} for c in COLOURS])
  summary, *_ = run(jaxft, tiny_decoder, data, tmp_path / "run", "--loss", "poft", "--reference", tiny_decoder)
  assert summary["before"]["loss"] == pytest.approx(np.log(2), abs=1e-6) and summary["after"]["margin"] > 0


@pytest.mark.parametrize("options, said", [
  (("--loss", "dpoo"), "loss with this decoder must be one of.*nearest: dpo"),
  (("--task", "sft", "--loss", "dpo"), "loss with task sft must be one of sft"),
  (("--loss", "dpo", "--margin", 1), "loss dpo does not read --margin; it reads --beta, --label-smoothing, "),
  (("--loss", "simpo", "--wpo"), "loss simpo does not read --wpo"),
  (("--loss", "ipo", "--divergence", "js"), "loss ipo does not read --divergence"),
  (("--loss", "dpo", "--divergence", "kl"), "divergence must be one of reverse_kl, forward_kl, js, alpha; got 'kl'"),
  (("--loss", "dpo", "--divergence-alpha", 0.2), "--divergence-alpha is read with --divergence alpha alone"),
  (("--loss", "dpo", "--length-alpha", 2), r"length_alpha must be in \[0, 1\]; got 2"),
  (("--loss", "simpo", "--reference", "x"), "loss simpo does not read --reference"),
  (("--loss", "poft"), "poft needs --reference"),
  (("--loss", "dpo", "--accumulate", 3), "accumulate must divide the 32 examples of a step, batch_size; got 3"),
  (("--loss", "kto", "--desirable-weight", 0, "--undesirable-weight", 0), "must not both be 0"),
  (("--loss", "dpo", "--beta", 0), "beta must be > 0; got 0"),
  (("--loss", "dpo", "--label-smoothing", 0.5), r"label_smoothing must be in \[0, 0.5\); got 0.5"),
  (("--loss", "exo", "--label-smoothing", 0), r"label_smoothing must lie in \(0, 1\); got 0"),
  (("--loss", "dpo", "--pack", "--steps", 1), "--pack is for --task sft"),
  (("--loss", "dpo", "--max-length", 2000000), "max_length may be at most the context"),
])
def test_what_does_not_go_together_is_one_line(jaxft, tiny_decoder, texts, tmp_path, options, said):
  answer = jaxft("finetune", "--model", tiny_decoder, "--data", texts, "--out", tmp_path / "run", *options)
  assert answer.status != 0 and re.search(said, answer.error), answer.error
  assert not (tmp_path / "run/model").exists()


def test_data_that_a_loss_does_not_learn_from(jaxft, tiny_decoder, texts, talks, chats, tmp_path):
  one = write_lines(tmp_path / "one.jsonl", [{"prompt": "a", "completion": x, "label": True} for x in "bc"])
  for loss, data, said in (
      ("dpo", talks / "judged.jsonl", "loss dpo learns from pairs (fields prompt, chosen, rejected); got the fields"),
      ("kto", chats, "loss kto learns from judged responses"),
      ("kto", one, "loss kto compares responses with those to other prompts; all 2 records have one prompt")):
    answer = jaxft("finetune", "--model", tiny_decoder, "--data", data, "--out", tmp_path / "run", "--loss", loss,
                   "--steps", 1, "--holdout", 0)
    assert said in answer.error


def test_a_plan_of_pairs(jaxft, tiny_decoder):
  answer = jaxft("plan", "--model", tiny_decoder, "--data", "not-read", "--loss", "kto", "--no-compile", "--json",
                 "--batch-size", 2, "--max-length", 16, "--data-parallel", 1)
  assert answer.status == 0 and json.loads(answer.out)["trained"] > 0, answer.err
