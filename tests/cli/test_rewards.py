"""`jaxft finetune --task rl`: answers to prompts, scored and learnt from; stopped and gone on with, exactly."""

import json
import re
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxft.formats.huggingface import save_directory
from jaxft.models import decoder
from tests.cli.conftest import write_lines

FEW = ("--batch-size", 2, "--group-size", 4, "--max-new-tokens", 8, "--max-length", 16, "--log-every", 1,
       "--learning-rate", 1e-2, "--warmup", 0, "--holdout", 0.34, "--data-parallel", 1, "--checkpoint-every", 1)

REWARD = '''
import os

def letters(texts, records):
  """How many letters of a text are an e; it breaks down where it is told to."""
  if os.environ.get("BREAKS") and any(record["answer"] == os.environ["BREAKS"] for record in records):
    raise RuntimeError("out of order")
  assert all(int(record["answer"]) == record["terms"]["sum"] for record in records)  # a column of no format
  return [text.count("e") / 10 for text in texts]
'''


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
  """Six sums with their answers."""
  lines = [{"prompt": f"{n // 2} plus {n - n // 2} is", "answer": str(n), "terms": {"sum": n}}
           for n in range(3, 9)]
  return write_lines(tmp_path_factory.mktemp("sums") / "sums.jsonl", lines)


@pytest.fixture
def judge(tmp_path, monkeypatch):
  (tmp_path / "judge_of_letters.py").write_text(REWARD)
  monkeypatch.syspath_prepend(tmp_path)
  yield "judge_of_letters:letters"
  sys.modules.pop("judge_of_letters", None)


def test_a_run_goes_on_where_a_reward_broke_down(jaxft, tiny_decoder, sums, judge, tmp_path, monkeypatch):
  args = ("finetune", "--model", tiny_decoder, "--data", sums, "--reward", judge, "exact", "--reward-weights", 1, 0.5,
          "--steps", 3, "--passes", 2, "--beta", 0.05, *FEW)
  whole = jaxft(*args, "--out", tmp_path / "whole")
  assert whole.status == 0, whole.err
  assert "task rl by the loss grpo, for records of answer, prompt\n" in whole.err  # as there is a reward
  assert re.search(r"reward=.*length=.*cut=.*uninformative=", whole.err)
  summary = json.loads((tmp_path / "whole/summary.json").read_text())
  lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
  steps = [line for line in lines if "loss" in line]
  assert [line["step"] for line in steps] == [1, 2, 3]
  for line in steps:
    assert line["reward"] == pytest.approx(line[f"reward/{judge}"] + 0.5 * line["reward/exact"], abs=1e-6)
    assert 0 < line["length"] <= 8 and 0 <= line["cut"] <= 1 and 0 <= line["uninformative"] <= 1
  assert any(line["kl"] > 0 for line in steps) and any(line["uninformative"] < 1 for line in steps)
  before, after = summary["before"], summary["after"]
  assert before["reward_low"] <= before["reward"] <= before["reward_high"] and {*after} == {*before}
  assert "validation reward: " in whole.out and "2402.03300" in summary["arxiv"]
  text = (tmp_path / "whole/run.yaml").read_text()
  assert "chosen: group_size = 4" in text and "chosen: clip_low = 0.2" in text

  # The prompts of the steps are known; that of the last one which the others have not makes the reward break down.
  seen = {}
  for answer in "345678":
    monkeypatch.setenv("BREAKS", answer)
    broken = jaxft(*args, "--out", tmp_path / answer)
    if broken.status == 0:
      continue
    assert f"reward {judge} raised RuntimeError: out of order; of the record {{'answer': '{answer}'" in broken.error
    seen[answer] = [path.name for path in (tmp_path / answer / "checkpoints").glob("[0-9]*")]
    if seen[answer]:
      break
  assert any(seen.values()), seen
  monkeypatch.delenv("BREAKS")
  again = jaxft(*args, "--out", tmp_path / answer)
  assert again.status == 0 and "resuming the run" in again.err, again.err
  one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", answer))
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)
  resumed = [json.loads(line) for line in (tmp_path / answer / "metrics.jsonl").read_text().splitlines()]
  of = lambda lines: {line["step"]: line["reward"] for line in lines if "loss" in line}
  assert of(resumed) == of(lines)


@pytest.mark.exhaustive
def test_a_run_teaches_what_the_reward_asks_for(jaxft, tmp_path):
  """A model of random weights learns to say the first of two digits, of pairs too that it has never seen."""
  words = ["<pad>", "<s>", "</s>", *"0123456789", "?"]
  tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
  tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # pyright: ignore[reportAttributeAccessIssue]
  config = decoder.DecoderConfig(
      vocab_size=len(words), dim=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=64, eos_id=2,
      pad_id=0, bos_id=1, max_length=16)
  save_directory(decoder.init(jax.random.key(0), config), config, tmp_path / "model", tokenizer=tokenizer)
  data = write_lines(tmp_path / "pairs.jsonl", [
      {"prompt": f"{a}{b}?", "answer": str(a)} for a in range(10) for b in range(10)])
  answer = jaxft(
      "finetune", "--model", tmp_path / "model", "--data", data, "--reward", "exact", "--method", "full", "--steps",
      150, "--learning-rate", 1e-2, "--batch-size", 16, "--group-size", 8, "--max-new-tokens", 1, "--max-length", 8,
      "--holdout", 0.4, "--data-parallel", 1, "--out", tmp_path / "run")
  assert answer.status == 0, answer.err
  summary = json.loads((tmp_path / "run/summary.json").read_text())
  before, after = summary["before"], summary["after"]
  assert before["reward"] < 0.2 and after["reward_low"] > before["reward_high"] + 0.2, (before, after)


@pytest.mark.parametrize("options, said", [
  (("--task", "rl"), "--reward must say what an answer is worth"),
  (("--loss", "grpo", "--reward", "exakt"), "--reward must be exact, reasoning-gym:TASK or module:function"),
  (("--task", "sft", "--loss", "grpo", "--reward", "exact"), "loss with task sft must be one of sft"),
  (("--task", "sft", "--group-size", 4), "loss sft does not read --group-size"),
  (("--task", "sft", "--reward", "exact"), "loss sft does not read --reward"),
  (("--loss", "sapo", "--reward", "exact", "--clip-low", 0.1), "loss sapo does not read --clip-low"),
  (("--loss", "grpo", "--reward", "exact", "--margin", 1), "loss grpo does not read --margin; it reads --reward, "),
  (("--reward", "exact", "--group-size", 1), "group_size must be at least 2; got 1"),
  (("--reward", "exact", "--passes", 0), "passes must be at least 1; got 0"),
  (("--reward", "exact", "--accumulate", 3), "accumulate must divide the 256 answers of a step"),
  (("--reward", "exact", "--batch-size", 3, "--data-parallel", 2), "prompts of a step: the batch must divide by 2 dev"),
  (("--reward", "exact", "--clip-low", 0.1), "--clip-low must come with --passes above 1"),
  (("--reward", "exact", "--loss", "cispo", "--clip-high", 4, "--passes", 1), "--clip-high must come with --passes ab"),
  (("--reward", "exact", "--beta", -1), "beta must be >= 0; got -1"),
  (("--reward", "exact", "--pack", "--steps", 1), "--pack is for --task sft"),
  (("--reward", "exact", "--max-length", 1), "max_length must leave a prompt; the shortest has"),
  (("--reward", "exact", "--max-new-tokens", 9000), "together; got 128 and 9000"),
  (("--reward", "reasoning-gym:chain_sum"), "has the questions of reasoning_gym/chain_sum; got the data"),
  (("--reward", "reasoning-gym"), "answers to the questions of --data reasoning_gym/TASK; got the fields"),
])
def test_what_does_not_go_together_is_one_line(jaxft, tiny_decoder, sums, tmp_path, options, said):
  answer = jaxft("finetune", "--model", tiny_decoder, "--data", sums, "--out", tmp_path / "run", "--data-parallel", 1,
                 *options)
  assert answer.status != 0 and re.search(said, answer.error), answer.error
  assert not (tmp_path / "run/model").exists()


def test_data_that_a_reward_does_not_read(jaxft, tiny, tiny_decoder, pairs, sums, tmp_path):
  words = write_lines(tmp_path / "words.jsonl", [{"prompt": "The sky is", "answer": "blue"}] * 3)
  for model, data, said in (
      (tiny_decoder, words, "reward exact needs --marker where an `answer` is no number; got 'blue'"),
      (tiny_decoder, pairs, "reward exact reads the field answer; got the fields anchor"),
      (tiny, sums, "task with this encoder must be one of")):
    answer = jaxft("finetune", "--model", model, "--data", data, "--out", tmp_path / "run", "--reward", "exact")
    assert said in answer.error, answer.error
  assert "--data must be given" in jaxft("finetune", "--model", tiny_decoder, "--out", tmp_path / "run").error


def test_a_plan_of_the_updates(jaxft, tiny_decoder):
  answer = jaxft("plan", "--model", tiny_decoder, "--reward", "reasoning-gym:gcd", "--loss", "rloo", "--passes", 2,
                 "--no-compile", "--json", "--batch-size", 2, "--group-size", 2, "--max-length", 16, "--max-new-tokens",
                 8, "--data-parallel", 1)
  assert answer.status == 0 and json.loads(answer.out)["trained"] > 0, answer.err
