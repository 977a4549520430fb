"""`jaxft finetune` of a T5: its loss is transformers', and what it saves transformers loads."""

import json

import jax
import numpy as np
import pytest

from jaxft.recipes.encoder_decoder.answers import answer_collate, answer_nll
from jaxft.recipes.model import load
from jaxft.training.metrics import read_json_lines
from tests.cli.conftest import write_lines
from tests.parity.libraries import library

WORDS = "rivers birds engines poems bridges storms coins maps".split()


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
  """A folder with a T5 of two layers and a tokenizer of its own, which ends texts by </s>."""
  from tokenizers import Tokenizer, models, pre_tokenizers, processors

  from jaxft.formats.huggingface import save_directory
  from jaxft.models.config.encoder_decoder import EncoderDecoderConfig, init

  words = ["<pad>", "</s>", "<unk>", "what", "are", "?", *WORDS]
  tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(words[:3])
  tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
  config = EncoderDecoderConfig(vocab_size=16, dim=16, num_heads=2, head_dim=8, mlp_dim=24, encoder_layers=1,
                                decoder_layers=2, buckets=8, farthest=16)
  folder = tmp_path_factory.mktemp("models") / "t5"
  save_directory(init(jax.random.key(0), config), config, folder, tokenizer=tokenizer)
  return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
  lines = [{"prompt": f"what are {word} ?" * (1 + i % 2), "response": " ".join([word] * (1 + i % 3))}
           for i, word in enumerate(WORDS)]
  return write_lines(tmp_path_factory.mktemp("data") / "questions.jsonl", lines), lines


def test_it_is_tuned_measured_saved_and_answers(jaxft, t5, questions, tmp_path):
  torch, transformers = library("torch"), library("transformers")
  path, lines = questions
  args = ("finetune", "--model", t5, "--data", path, "--method", "full", "--learning-rate", 0.05, "--batch-size", 4,
          "--max-length", 16, "--data-parallel", 1, "--log-every", 1, "--schedule", "constant", "--warmup", 0)
  answer = jaxft(*args, "--out", tmp_path / "run", "--steps", 6)
  assert answer.status == 0, answer.err
  assert "task sft by the loss sft" in answer.err and "next: jaxft generate --model" in answer.out
  found = [line["loss"] for line in read_json_lines(tmp_path / "run/metrics.jsonl") if "loss" in line]
  assert found[-1] < found[0]
  measured = read_json_lines(tmp_path / "run/metrics.jsonl")
  assert measured[-1]["eval/perplexity"] == pytest.approx(np.exp(measured[-1]["eval/loss"]))

  # The tuned model in transformers gives each answer the same likelihood, by the labels that its users make.
  model = load(tmp_path / "run/model")
  batch = answer_collate(model, {"question": "", "answer": ""}, max_length=16)(
      [{"question": line["prompt"], "answer": line["response"]} for line in lines])
  config, _ = model.text_encoder_decoder()
  values, weights = map(np.asarray, answer_nll(config)(model.params, batch))
  theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "run/model").eval()
  read = transformers.AutoTokenizer.from_pretrained(tmp_path / "run/model")
  for i, line in enumerate(lines):
    inputs, labels = (read(line[name], return_tensors="pt").input_ids for name in ("prompt", "response"))
    assert labels.shape[1] == weights[i].sum() and labels[0, -1] == 1
    with torch.no_grad():
      wanted = theirs(input_ids=inputs, labels=labels).loss.item()
    assert values[i].sum() / weights[i].sum() == pytest.approx(wanted, rel=1e-5)
  # The command measures it as the validation of a run does: over the tokens of all answers.
  said = jaxft("evaluate", "--model", tmp_path / "run/model", "--data", path, "--batch-size", 3, "--json")
  row, = json.loads(said.out)
  assert row["task"] == "perplexity" and row["records"] == len(lines)
  assert row["loss"] == pytest.approx((values * weights).sum() / weights.sum(), rel=1e-5)
  assert row["perplexity"] == pytest.approx(np.exp(row["loss"]))
  with torch.no_grad():
    inputs = read([line["prompt"] for line in lines], return_tensors="pt", padding=True)
    wanted = theirs.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=1, use_cache=False)
  said = model.generate([line["prompt"] for line in lines], max_new_tokens=4)
  assert said == read.batch_decode(wanted, skip_special_tokens=True)
  with pytest.raises(ValueError, match="chat must be False of an encoder-decoder"):
    model.generate(["what"], chat=True)


@pytest.mark.parametrize("lines, options, said", [
    ([{"text": "rivers"}] * 4, (), "data of text are none that this encoder-decoder learns from"),
    ([{"text": "rivers"}] * 4, ("--loss", "sft"), "an encoder-decoder learns from prompt and completion"),
    ([{"prompt": "what", "response": "maps"}] * 4, ("--loss", "dpo"), "loss with this encoder-decoder"),
    ([{"prompt": "what", "response": "maps"}] * 4, ("--pack", "--steps", 1), "--pack is for decoders"),
])
def test_what_it_does_not_learn_from(jaxft, t5, tmp_path, lines, options, said):
  data = write_lines(tmp_path / "data.jsonl", lines)
  answer = jaxft("finetune", "--model", t5, "--data", data, "--out", tmp_path / "run", "--batch-size", 2,
                 "--data-parallel", 1, *options)
  assert answer.status == 2 and said in answer.error


def test_its_plan_is_of_both_sides(jaxft, t5, questions):
  answer = jaxft("plan", "--model", t5, "--data", questions[0], "--batch-size", 8, "--max-length", 16)
  assert answer.status == 0, answer.err
