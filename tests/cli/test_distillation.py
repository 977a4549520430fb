"""`jaxft finetune --task distill`: students near their teachers, of tokens, classes and vectors; what is refused."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from jaxft.training.metrics import read_json_lines
from tests.cli.conftest import write_lines

FEW = ("--batch-size", 8, "--max-length", 16, "--steps", 6, "--holdout", 0.34, "--data-parallel", 1, "--learning-rate",
       1e-3, "--warmup", 0, "--schedule", "constant", "--method", "full", "--log-every", 1)
SUBJECTS = "rivers birds engines poems bridges storms coins maps bread glass music stars".split()


@pytest.fixture(scope="module")
def wider(tmp_path_factory, minilm):
  """An encoder with other weights, wider than the small one."""
  from jaxft.formats.huggingface import save_directory
  from jaxft.models import encoder

  config = encoder.EncoderConfig(
      vocab_size=minilm.config.vocab_size, dim=24, num_layers=1, num_heads=2, mlp_dim=32, max_length=64)
  folder = tmp_path_factory.mktemp("models") / "wider"
  save_directory(encoder.init(jax.random.key(5), config), config, folder, tokenizer=minilm.tokenizer)
  return folder


def distilled(jaxft, out, *options):
  answer = jaxft("finetune", "--out", out, *FEW, *options)
  assert answer.status == 0, answer.err
  return answer, json.loads((out / "summary.json").read_text())


def test_a_decoder_learns_its_teachers_tokens(jaxft, tiny_decoder, larger, tmp_path):
  from jaxft.formats import load

  texts = write_lines(tmp_path / "texts.jsonl", [{"text": f"a line of {s} and more"} for s in SUBJECTS])
  answer, summary = distilled(
      jaxft, tmp_path / "run", "--model", tiny_decoder, "--data", texts, "--teacher", larger)
  assert "task distill by the loss gkd" in answer.err and "2306.13649" in answer.out
  assert 0 < summary["after"]["divergence"] < summary["before"]["divergence"]
  assert summary["parameters"] == sum(x.size for x in jax.tree.leaves(load(tiny_decoder).params))
  # What is saved is the student alone, and a run goes on where it was stopped.
  assert load(tmp_path / "run/model").config.dim == 16
  more = jaxft("finetune", "--out", tmp_path / "run", *FEW, "--model", tiny_decoder, "--data", texts, "--teacher",
               larger, "--steps", 7)
  assert more.status == 0 and "at step 6 of 7" in more.err, more.err
  changed = shutil.copytree(tiny_decoder, tmp_path / "other")
  shutil.rmtree(tmp_path / "run/model")
  refused = jaxft("finetune", "--out", tmp_path / "run", *FEW, "--model", tiny_decoder, "--data", texts, "--teacher",
                  changed, "--steps", 8)
  assert refused.status == 2 and "teacher" in refused.error


@pytest.mark.parametrize("loss, options", [
    ("similarity_kl", ("--accumulate", 2)), ("similarity_mse", ()),
    pytest.param("margin_mse", (), marks=pytest.mark.exhaustive)])
def test_an_encoder_learns_its_teachers_vectors(jaxft, tiny, wider, tmp_path, loss, options):
  texts = loss == "similarity_mse"
  rows = [{"text": s} if texts else {"anchor": s, "positive": f"all {s}", "negative": f"no {s}"} for s in SUBJECTS]
  data = write_lines(tmp_path / "rows.jsonl", rows)
  _, summary = distilled(jaxft, tmp_path / "run", "--model", tiny, "--data", data, "--teacher", wider, "--loss", loss,
                         "--task", "distill", *options)
  losses = [line["loss"] for line in read_json_lines(tmp_path / "run/metrics.jsonl") if "loss" in line]
  assert losses[-1] < losses[0] and summary["after"]["cosine_rmse"] != summary["before"]["cosine_rmse"]
  assert -1 <= summary["after"]["agreement"] <= 1


def test_a_classifier_learns_from_a_classifier(jaxft, tiny, wider, tmp_path):
  rows = [{"text": f"{word} {s}", "label": word} for word in ("big", "small", "red") for s in SUBJECTS]
  data = write_lines(tmp_path / "labels.jsonl", rows)
  _, taught = distilled(jaxft, tmp_path / "teacher", "--model", wider, "--data", data)
  assert taught["loss"] == "cross_entropy"
  _, summary = distilled(jaxft, tmp_path / "run", "--model", tiny, "--data", data, "--teacher",
                         tmp_path / "teacher/model")
  assert summary["loss"] == "kd"
  assert summary["after"]["divergence"] < summary["before"]["divergence"] and 0 <= summary["after"]["accuracy"] <= 1
  row, = json.loads(jaxft("evaluate", "--model", tmp_path / "run/model", "--data", data, "--json").out)
  assert row["task"] == "classify"
  plain = write_lines(tmp_path / "plain.jsonl", [{"text": row["text"]} for row in rows])
  _, unlabelled = distilled(jaxft, tmp_path / "plain", "--model", tiny, "--data", plain, "--teacher",
                            tmp_path / "teacher/model", "--loss", "kd")
  assert set(unlabelled["after"]) >= {"agreement", "divergence"} and "accuracy" not in unlabelled["after"]


def test_a_regressor_learns_from_a_regressor(jaxft, tiny, wider, tmp_path):
  import jaxft as library

  rows = [{"text": f"{'very ' * n}{s}", "value": 10.0 * n + len(s)} for n in (1, 2, 4) for s in SUBJECTS]
  data = write_lines(tmp_path / "values.jsonl", rows)
  _, taught = distilled(jaxft, tmp_path / "teacher", "--model", wider, "--data", data, "--learning-rate", 1e-2,
                        "--steps", 20)
  assert taught["loss"] == "mse"
  teacher = tmp_path / "teacher/model"
  answer, summary = distilled(jaxft, tmp_path / "run", "--model", tiny, "--data", data, "--teacher", teacher,
                              "--learning-rate", 1e-2, "--steps", 20, "--control", data)
  assert summary["loss"] == "value_mse" and "task distill by the loss value_mse" in answer.err
  before, after = summary["before"], summary["after"]
  assert after["control/teacher_rmse"] < 0.7 * before["control/teacher_rmse"]
  assert {"pearson", "rmse", "agreement", "teacher_rmse"} <= {*after}
  # On the teacher's own scale, of the records that were held out as of all: what `logits` says by itself.
  texts = [row["text"] for row in rows]
  said, its = (np.asarray(library.load(path).logits(texts))[:, 0] for path in (tmp_path / "run/model", teacher))
  root, own = lambda x: np.sqrt(np.mean(x ** 2)), np.array([row["value"] for row in rows])
  assert after["control/teacher_rmse"] == pytest.approx(root(said - its), rel=1e-3)
  assert after["control/rmse"] == pytest.approx(root(said - own), rel=1e-3)
  assert after["control/agreement"] == pytest.approx(np.corrcoef(said, its)[0, 1], abs=1e-3)
  assert after["control/pearson"] == pytest.approx(np.corrcoef(said, own)[0, 1], abs=1e-3)
  # Without numbers of their own, records are compared with the teacher alone.
  plain = write_lines(tmp_path / "plain.jsonl", [{"text": text} for text in texts])
  _, unlabelled = distilled(jaxft, tmp_path / "plain", "--model", tiny, "--data", plain, "--teacher", teacher, "--loss",
                            "value_mse")
  assert "agreement" in unlabelled["after"] and not {"pearson", "rmse"} & {*unlabelled["after"]}
  # A teacher's head that is not read is said; a teacher of another kind is refused.
  answer, _ = distilled(jaxft, tmp_path / "vectors", "--model", tiny, "--data", plain, "--teacher", teacher)
  assert "its head is not read; --loss value_mse learns its numbers" in answer.err
  for given, why in ((("--data", data, "--teacher", wider), "teacher must be a regressor for loss value_mse; .* no "),
                     (("--data", data, "--teacher", teacher, "--loss", "kd"), "kd; .* a regressor. value_mse")):
    refused = jaxft("finetune", "--model", tiny, "--out", tmp_path / "refused", *given)
    assert refused.status == 2 and re.search(why, refused.error), refused.err
  odd = write_lines(tmp_path / "odd.jsonl", [{"text": text, "rating": "much"} for text in texts])
  refused = jaxft("finetune", "--model", tiny, "--data", odd, "--teacher", teacher, "--out", tmp_path / "refused",
                  "--loss", "value_mse", "--target", "rating")
  assert refused.status == 2 and "the data must have the field 'rating'; it has text" in refused.error
  assert not (tmp_path / "refused").exists()


def test_a_decoder_learns_on_its_own_answers(jaxft, tiny_decoder, larger, chats, tmp_path):
  options = ("--model", tiny_decoder, "--data", chats, "--teacher", larger, "--on-policy", 0.5, "--max-new-tokens", 5,
             "--batch-size", 2, "--max-length", 48)
  answer = jaxft("finetune", "--out", tmp_path / "run", *FEW, *options)
  assert answer.status == 0, answer.err
  lines = [line for line in read_json_lines(tmp_path / "run/metrics.jsonl") if "loss" in line]
  assert {line["on_policy"] for line in lines} == {0.0, 1.0} and all(np.isfinite(line["loss"]) for line in lines)
  # Which steps they are, and what is drawn in them, is the same in a run that was stopped between.
  for steps in (3, 6):
    answer = jaxft("finetune", "--out", tmp_path / "parts", *FEW, *options, "--steps", steps)
    assert answer.status == 0, answer.err
  weights = "model/model.safetensors"
  assert (tmp_path / "parts" / weights).read_bytes() == (tmp_path / "run" / weights).read_bytes()
  texts = write_lines(tmp_path / "texts.jsonl", [{"text": s} for s in SUBJECTS])
  for given, why in ((("--on-policy", 2), r"on_policy must be in \[0, 1\]; got 2"),
                     (("--data", texts), "--on-policy needs data with prompts .* got the fields text"),
                     (("--max-new-tokens", 10**6), "max_length and max_new_tokens may be at most the context"),
                     (("--on-policy", 0), "--max-new-tokens is read with --on-policy alone; got 5"),
                     (("--pack",), "--on-policy goes without --pack")):
    refused = jaxft("finetune", "--out", tmp_path / "refused", *FEW, *options, *given)
    assert refused.status == 2 and re.search(why, refused.error), refused.err
  assert not (tmp_path / "refused").exists()


def test_a_step_on_own_answers_is_what_the_student_generates(tiny_decoder):
  import optax

  import jaxft as library
  from jaxft.losses import Mean
  from jaxft.recipes.distillation.on_policy import OnPolicyStep, asked
  from jaxft.training import Recipe, init_state
  from jaxft.transforms import full

  row = lambda *ids: list(ids) + [0] * (8 - len(ids))
  batch = {"ids": np.array([row(5, 6, 7, 8, 9), row(11, 12, 13, 14, 15, 16, 17), row(21, 22)], np.int32),
           "mask": np.array([row(*[1] * 5), row(*[1] * 7), row(1, 1)], np.int32),
           # Of two answers the last, of a chat; and a row in which nothing is answered.
           "loss_mask": np.array([row(0, 0, 0, 1, 1), row(0, 1, 0, 0, 1, 1, 1), row(0, 0)], np.int32)}
  prompts = asked(batch, 3, 16)
  assert prompts.ids.shape == (3, 16) and list(prompts.where) == [True, True, False]
  assert [ids[mask > 0].tolist() for ids, mask in zip(prompts.ids, prompts.mask, strict=True)] == [
      [5, 6, 7], [11, 12, 13, 14], []]
  assert (prompts.ids[prompts.mask == 0] == 3).all() and prompts.mask[:2, -1].all()

  model, seen = library.load(tiny_decoder), []

  def update(state, frozen, batch):
    seen.append(batch)
    return state._replace(step=state.step + 1), {"loss": 0.0}

  recipe = Recipe(lambda params, batch, key: (Mean.zero(), {}), full(), optax.sgd(0.0))
  state, frozen = init_state(jax.random.key(0), model.params, recipe)
  make = lambda share, temperature: OnPolicyStep(
      update, recipe, model, share=share, temperature=temperature, max_length=16, max_new_tokens=6,
      key=jax.random.key(1))
  make(0.0, 1.0)(state, frozen, batch)
  assert seen.pop() is batch
  _, metrics = make(1.0, 1e-4)(state, frozen, batch)  # nearly without chance: the likeliest tokens
  own, = seen
  assert metrics["on_policy"] == 1.0 and own["ids"].shape == (3, 16 + 6)
  assert not own["loss_mask"][2].any() and not own["loss_mask"][:, :16].any()
  for i, prompt in enumerate(([5, 6, 7], [11, 12, 13, 14])):
    kept = own["loss_mask"][i] > 0
    text = prompt + own["ids"][i][kept].tolist()
    assert own["ids"][i][own["mask"][i] > 0].tolist() == text
    scores = np.asarray(model.logits(np.array([text])))[0]  # each token is the likeliest after those before it
    assert scores[len(prompt) - 1:-1].argmax(axis=1).tolist() == text[len(prompt):]
    assert kept.sum() == 6 or text[-1] == model.config.eos_id


@pytest.mark.parametrize("options, said", [
    (("--task", "distill"), "loss similarity_kl needs --teacher"),
    (("--teacher", "smollm2-135m:tiny"), "teacher must be an encoder with a tokenizer"),
    (("--teacher", "WIDER", "--loss", "embedding_mse"),
     "teacher must give vectors as wide as those of .*, 16, .* gives 24. similarity_kl compares"),
    (("--teacher", "WIDER", "--loss", "margin_mse"), "loss margin_mse learns from triples"),
    (("--teacher", "WIDER", "--loss", "kd"), "teacher must be a classifier for loss kd; .* no classifier"),
    (("--teacher", "WIDER", "--loss", "value_mse"), "teacher must be a regressor for loss value_mse; .* no regr"),
    (("--teacher", "WIDER", "--loss", "similarity_mse", "--temperature", 2), "does not read --temperature"),
    (("--teacher", "WIDER", "--on-policy", 0.5), "loss similarity_kl does not read --on-policy"),
    (("--teacher", "WIDER", "--loss", "mnrl"), "loss mnrl does not read --teacher"),
    (("--teacher", "WIDER", "--task", "embed"), "loss mnrl does not read --teacher"),
])
def test_what_is_no_teacher_is_one_line(jaxft, tiny, wider, pairs, tmp_path, options, said):
  options = [str(wider) if option == "WIDER" else option for option in options]
  answer = jaxft("finetune", "--model", tiny, "--data", pairs, "--out", tmp_path / "run", *options)
  assert answer.status == 2 and re.search(said, answer.error), answer.err
  assert not (tmp_path / "run/config.json").exists()


def test_a_teacher_of_other_tokens(jaxft, tiny_decoder, larger, tmp_path):
  texts = write_lines(tmp_path / "texts.jsonl", [{"text": s} for s in SUBJECTS])
  other = shutil.copytree(larger, tmp_path / "other")
  words = json.loads((other / "tokenizer.json").read_text())
  words["normalizer"] = {"type": "Lowercase"}
  (other / "tokenizer.json").write_text(json.dumps(words))
  answer = jaxft("finetune", "--model", tiny_decoder, "--data", texts, "--out", tmp_path / "run", "--teacher", other)
  assert "teacher must have the tokenizer and vocabulary of" in answer.error


@pytest.mark.parametrize("decoder", [True, False])
def test_a_plan_holds_a_teacher_that_speaks_in_every_step(jaxft, tiny, tiny_decoder, larger, wider, decoder):
  model, teacher = (tiny_decoder, larger) if decoder else (tiny, wider)
  plain = json.loads(jaxft("plan", "--model", model, "--data", "x", "--no-compile", "--json").out)
  taught = json.loads(jaxft(
      "plan", "--model", model, "--data", "x", "--teacher", teacher, "--no-compile", "--json").out)
  assert (taught["frozen_bytes"] > plain["frozen_bytes"]) == decoder
  assert taught["trained"] == plain["trained"]
  if decoder:  # its own answers make rows longer
    own = json.loads(jaxft("plan", "--model", model, "--data", "x", "--teacher", teacher, "--on-policy", 0.5,
                           "--no-compile", "--json").out)
    assert own["batch_bytes"] == 2 * taught["batch_bytes"]
  else:
    number = jaxft("plan", "--model", model, "--data", "x", "--teacher", teacher, "--loss", "value_mse", "--no-compile",
                   "--json")
    assert json.loads(number.out)["trained"] > plain["trained"], number.err


def test_losses_by_hand():
  from jaxft.recipes.distillation.objective import compared

  rng = np.random.default_rng(0)
  vectors = lambda dim: {key: jax.device_put(rng.normal(size=(3, dim)).astype(np.float32)) for key in (
      "anchor", "positive")}
  own, said = vectors(4), vectors(6)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  cosines = [unit(np.asarray(x["anchor"])) @ unit(np.asarray(x["positive"])).T for x in (own, said)]
  values, weights = compared("similarity_mse", own, said, None)
  np.testing.assert_allclose(values, ((cosines[0] - cosines[1]) ** 2).mean(axis=1), rtol=1e-5)
  assert np.array_equal(weights, np.ones(3))
  log_softmax = lambda x: x - np.log(np.exp(x).sum(axis=1, keepdims=True))
  s, t = (log_softmax(x / 0.5) for x in cosines)
  np.testing.assert_allclose(
      compared("similarity_kl", own, said, 0.5)[0], (np.exp(t) * (t - s)).sum(axis=1), rtol=1e-4)
  # A text is not compared with itself: alone it says nothing.
  alone = {"text": own["anchor"][:1]}
  assert np.array_equal(compared("similarity_mse", alone, alone, None)[1], [0.0])
  np.testing.assert_allclose(
      compared("embedding_mse", own, {key: x + 2 for key, x in own.items()}, None)[0], np.full(3, 4.0), rtol=1e-5)
