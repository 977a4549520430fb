"""`plan`, `evaluate`, `fetch`, `convert` and `generate` on real inputs."""

import json

import jax
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import f1_score, log_loss

from jaxft import load
from jaxft.fetch import home
from jaxft.tree import count
from tests.cli.conftest import write_lines


def test_plan_counts_what_a_run_trains(jaxft, tiny, tmp_path):
  answer = jaxft("plan", "--model", tiny, "--data", "not-read", "--batch-size", 4, "--max-length", 16, "--rank", 2,
                 "--data-parallel", 2, "--fsdp", 2, "--json")
  assert answer.status == 0, answer.err
  found = json.loads(answer.out)
  layers, dim, mlp, rank = 2, 16, 32, 2
  assert found["trained"] == layers * rank * (4 * 2 * dim + 2 * (dim + mlp)) and found["devices"] == 4
  assert found["flops"]["matmul"] > 0 and found["compiled"]["temporaries"] > 0
  assert not list(tmp_path.iterdir())
  # Longer inputs than the position table holds are cut, as a run cuts them.
  text = jaxft("plan", "--model", tiny, "--data", "x", "--batch-size", 4, "--method", "full", "--no-compile",
               "--data-parallel", 1).out
  assert "trained (100.00% of the model's " in text and "compiled" not in text


def test_a_search_wants_a_topology_and_the_compiler(jaxft, tiny):
  for more, said in (((), "got none"), (("--topology", "v5e:4x4", "--no-compile"), "got --no-compile")):
    answer = jaxft("plan", "--model", tiny, "--data", "x", "--search", *more)
    assert answer.status == 2 and "--search compiles for a --topology, such as v5e:16x16" in answer.err
    assert said in answer.err


@pytest.mark.parametrize(("more", "said"), [
    (("--try-tensor", 0), "--try-tensor must be at least 1; got 0"),
    (("--try-data", 2, -1), "--try-data must be at least 1; got -1"),
    (("--try-accumulate", 0), "--try-accumulate must be at least 1; got 0"),
    (("--try-rank", -1), "--try-rank must be at least 1; got -1"),
    (("--most", 0), "--most must be at least 1; got 0"),
    (("--try-remat", "bogus"), "--try-remat must be one of none, dots, full; got 'bogus'"),
    (("--try-remat", "--try-rank", 4), "--try-remat must have a value; got none"),
])
def test_a_search_tries_what_can_be(jaxft, tiny, more, said):
  answer = jaxft("plan", "--model", tiny, "--data", "x", "--search", "--topology", "v5e:4x4", *more)
  assert answer.status == 2 and said in answer.err


def test_context_cuts_the_rows_of_decoders(jaxft, tiny, tiny_decoder):
  plan = lambda model, length: jaxft("plan", "--model", model, "--data", "x", "--data-parallel", 1, "--context", 4,
                                     "--max-length", length, "--no-compile", "--json")
  for model, length, said in ((tiny, 16, "16 and a model of the kind encoder"), (tiny_decoder, 18, "rows of 18")):
    answer = plan(model, length)
    assert answer.status == 2 and "--context cuts rows of decoders whose --max-length it divides" in answer.err
    assert said in answer.err
  assert json.loads(plan(tiny_decoder, 16).out)["devices"] == 4


def test_a_search_leaves_the_chips_of_context_to_it(jaxft, tiny_decoder, monkeypatch):
  from jaxft.cli import plan
  from jaxft.training.planning import search

  meshes = []
  monkeypatch.setattr(plan, "_described", lambda topology, slices: jax.devices()[:8])
  fits = lambda c: search.Tried(c, 0.1, "compute", 10**9, True)
  monkeypatch.setattr(search, "search", lambda tried, *rest, **more: meshes.extend(tried) or [*map(fits, tried)])
  args = ["plan", "--model", tiny_decoder, "--data", "x", "--search", "--topology", "v5e:2x4", "--context"]
  assert jaxft(*args, 2).status == 0
  assert meshes and all(c.data * c.fsdp * c.tensor == 4 for c in meshes)
  assert "--context must divide the chips of a slice, v5e:2x4; got 3" in jaxft(*args, 3).err


def test_a_search_of_which_nothing_fits_names_the_nearest_and_fails(jaxft, tiny_decoder, monkeypatch):
  from jaxft.cli import plan
  from jaxft.training.planning import search

  monkeypatch.setattr(plan, "_described", lambda topology, slices: jax.devices()[:8])
  large = lambda i, c: search.Tried(c, 0.1, "compute", (30 - i) * 10**9)
  monkeypatch.setattr(search, "search", lambda tried, *rest, **more: [large(i, c) for i, c in enumerate(tried[:3])])
  args = ["plan", "--model", tiny_decoder, "--data", "x", "--search", "--topology", "v5e:2x4"]
  for answer in (jaxft(*args), jaxft(*args, "--json")):
    assert answer.status == 1 and "jaxft: error: nothing fits; the nearest is data " in answer.err
    assert "takes 28.00 GB of a chip's " in answer.err
  assert len(json.loads(answer.out)) == 3  # what was tried is shown all the same


@pytest.mark.parametrize(("topology", "slices", "said"), [
    ("v5e:2x2x4", 1, "--topology of v5e has 2 sides of at least 1; got 'v5e:2x2x4'"),
    ("v5p:4x4", 1, "--topology of v5p has 3 sides of at least 1; got 'v5p:4x4'"),
    ("v5e:0x4", 1, "got 'v5e:0x4'"),
    ("v5e:4x4", 0, "--slices must be at least 1; got 0"),
])
def test_a_topology_has_the_sides_of_its_chip(jaxft, tiny, topology, slices, said):
  answer = jaxft("plan", "--model", tiny, "--data", "x", "--topology", topology, "--slices", slices)
  assert answer.status == 2 and said in answer.err


def test_plan_of_a_decoder_with_quantized_weights(jaxft, smollm2):
  answer = jaxft("plan", "--model", "smollm2-135m", "--data", "x", "--method", "qlora", "--batch-size", 4, "--pack",
                 "--steps", 9, "--data-parallel", 1, "--no-compile", "--json")
  found = json.loads(answer.out)
  quantized = sum(x.size for name in ("attention", "mlp") for x in jax.tree.leaves(smollm2.params["layers"][name]))
  plain = 4 * (count(smollm2.params) - quantized)
  assert 0.51 * quantized < found["frozen_bytes"] - plain < 0.54 * quantized


def test_evaluate_an_encoder(jaxft, pairs):
  row, = json.loads(jaxft("evaluate", "--model", "minilm-l6", "--data", pairs, "--split", "train", "--json").out)
  assert row["task"] == "retrieval" and row["queries"] == row["corpus"] == 12 and row["recall@1"] == 1.0
  table = jaxft("evaluate", "--model", "minilm-l6", "--data", pairs, "--split", "train").out.splitlines()
  assert len(table) == 3 and "ndcg@10" in table[1] and "1.0000" in table[2]


def test_evaluate_a_classifier_by_its_head(jaxft, tiny, tmp_path):
  texts = [f"{word} number {i}" for i in range(4) for word in ("good", "bad", "fair")]
  data = tmp_path / "reviews.csv"
  data.write_text("review,mood\n" + "".join(f"{text},{text.split()[0]}\n" for text in texts))
  fields = ("--fields", "review=text,mood=label")
  assert jaxft("finetune", "--model", tiny, "--data", data, *fields, "--steps", 1, "--batch-size", 8, "--holdout", 0,
               "--out", tmp_path / "run").status == 0
  model = tmp_path / "run" / "model"
  row, = json.loads(jaxft("evaluate", "--model", model, "--data", data, *fields, "--json").out)
  scores = np.asarray(load(model).logits(texts), np.float64)
  own = np.array([["bad", "fair", "good"].index(text.split()[0]) for text in texts])
  said = scores.argmax(1)
  interval = binomtest(int((said == own).sum()), len(own)).proportion_ci(method="wilson")
  want = {"accuracy": (said == own).mean(), "low": interval.low, "high": interval.high, "loss": log_loss(own, softmax(
      scores, axis=1)), "macro_f1": f1_score(own, said, average="macro", labels=sorted({*own, *said}))}
  assert row["task"] == "classify" and row["split"] == "train" and row["records"] == 12
  assert {name: row[name] for name in want} == pytest.approx(want, abs=1e-6)
  other = write_lines(tmp_path / "other.jsonl", [{"text": "x", "label": "excellent"}])
  assert "classes, bad, fair, good; got 'excellent'" in jaxft("evaluate", "--model", model, "--data", other).error
  assert "classify, retrieval, sentiment" in jaxft("evaluate", "--model", model, "--task", "regress").error
  assert "--data must be given for classify" in jaxft("evaluate", "--model", model).error
  assert "does not read --target" in jaxft("evaluate", "--model", tiny, "--target", "x").error


def test_evaluate_says_what_it_takes(jaxft, tiny, pairs):
  assert "nearest: retrieval" in jaxft("evaluate", "--model", tiny, "--task", "retreival").error
  assert "retrieval, sentiment" in jaxft("evaluate", "--model", tiny, "--task", "perplexity").error
  of_pairs = ("--model", tiny, "--data", pairs, "--split")
  assert "'text'" in jaxft("evaluate", *of_pairs, "train", "--task", "sentiment").error
  assert "train" in jaxft("evaluate", *of_pairs, "trian").error


def test_retrieval_scores_by_hand(minilm):
  from jaxft.recipes import tasks

  texts = {"q1": [1.0, 0.0], "q2": [0.0, 1.0], "a1": [0.9, 0.1], "a2": [0.8, 0.2]}
  ids = {tuple(minilm.tokenizer.encode(text).ids): vector for text, vector in texts.items()}

  def embed(rows, mask):
    known = lambda row, m: ids.get(tuple(int(i) for i, on in zip(row, m, strict=True) if on), [0.0, 0.0])
    return np.array([known(row, m) for row, m in zip(rows, mask, strict=True)], np.float32)

  records = [{"anchor": "q1", "positive": "a2"}, {"anchor": "q2", "positive": "a2"}, {"anchor": "q1", "positive": "a1"}]
  scores = tasks.retrieval(embed, records, minilm.tokenizer, max_length=16)
  # a2 is second for the first query and first for the second; a1 is first for the third.
  assert scores["corpus"] == 2 and scores["recall@1"] == pytest.approx(2 / 3)
  assert scores["mrr@10"] == pytest.approx((0.5 + 1 + 1) / 3)
  assert scores["ndcg@10"] == pytest.approx((1 / np.log2(3) + 2) / 3)

  # a1 is a query and an answer: it is not found by itself, so that a2 comes first.
  records = [{"anchor": "q1", "positive": "a1"}, {"anchor": "a1", "positive": "a2"}]
  assert tasks.retrieval(embed, records, minilm.tokenizer, max_length=16)["recall@1"] == 1.0

  # Where vectors differ in length it is angles that count, as they do in the losses: else a2 would come first.
  texts, records = {"q1": [3.0, 0.0], "a1": [0.9, 0.1], "a2": [8.0, 2.0]}, [{"anchor": "q1", "positive": "a1"},
                                                                            {"anchor": "q1", "positive": "a2"}]
  ids = {tuple(minilm.tokenizer.encode(text).ids): vector for text, vector in texts.items()}
  scores = tasks.retrieval_by_query(embed, records, minilm.tokenizer, max_length=16)[0]
  np.testing.assert_array_equal(scores["recall@1"], [1, 0])


def test_fetch(jaxft, minilm):
  from jaxft.formats.presets import fetch

  answer = jaxft("fetch", "minilm-l6", "digits")
  lines = dict(line.split("\t") for line in answer.out.splitlines())
  assert lines["minilm-l6"] == str(fetch("minilm-l6")) and "digits" in lines["digits"]
  assert "presets: minilm-l6" in (shown := jaxft("fetch").out) and "docstrings" in shown
  assert "nearest: minilm-l6" in jaxft("fetch", "minilm-l12").error
  assert "nearest: digits" in jaxft("fetch", "digit").error
  assert "--all" in jaxft("fetch", "--all", "digits").error


def test_convert_reads_back_what_it_wrote(jaxft, tiny, tmp_path):
  from jaxft.formats import load

  answer = jaxft("convert", tiny, tmp_path / "out", "--max-shard-bytes", 10**6)
  assert answer.status == 0 and "equal" in answer.out
  assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
  one, other = load(tiny), load(tmp_path / "out")
  assert one.config == other.config
  assert all(map(np.array_equal, jax.tree.leaves(one.params), jax.tree.leaves(other.params)))
  assert "exists" in jaxft("convert", tiny, tmp_path / "out").error
  assert "lies inside the source" in jaxft("convert", tmp_path / "out", tmp_path / "out" / "new").error
  assert "nearest: bfloat16" in jaxft("convert", tiny, tmp_path / "other", "--dtype", "bfloat").error


def test_convert_compares_bits():
  from jaxft.cli.convert import compare

  params = {"a": np.array([0.0, np.nan], np.float32), "b": np.ones(2, np.float32)}
  compare(params, params)
  with pytest.raises(ValueError, match="2 tensors read back are not those written: a, c"):
    compare(params, {"a": np.array([-0.0, np.nan], np.float32), "b": np.ones(2, np.float32), "c": np.ones(1)})


@pytest.mark.parametrize("args, said", [
    (("--temperature", "-1"), "temperature"), (("--max-new-tokens", "0"), "max_new_tokens"),
    (("--top-p", "0"), "top_p"), (("--system", "x"), "--chat"), (("--dtype", "f"), "dtype"),
])
def test_generate_refuses_options(jaxft, args, said):
  assert said in jaxft("generate", "a prompt", *args).error


def test_generate_takes_a_decoder(jaxft, tiny):
  assert "is an encoder" in jaxft("generate", "--model", tiny, "a prompt").error


def test_formats_are_in_the_readme_as_the_command_prints_them(jaxft):
  from pathlib import Path

  from jaxft.cli import COMMANDS
  from jaxft.data.files.formats import FORMATS

  table = jaxft("formats", "--markdown").out
  assert table in (Path(__file__).parents[2] / "README.md").read_text()  # made by `jaxft formats --markdown`
  for command, (_, what) in COMMANDS.items():
    assert f"| `{command}` | {what} |" in (Path(__file__).parents[2] / "README.md").read_text()
  text = jaxft("formats").out
  for name, form in FORMATS.items():
    assert name in text and json.dumps(form.example) in text


def test_convert_merges_an_adapter_and_writes_for_llama_cpp(jaxft, tiny_decoder, tmp_path):
  from jaxft.formats import load, save_peft
  from jaxft.leaves import materialize
  from jaxft.transforms import lora

  model = load(tiny_decoder)
  transform = lora("layers/mlp/up/kernel", rank=2)
  frozen, trainable = transform.split(jax.random.key(0), model.params)
  trainable = jax.tree.map(lambda x: x + 0.1, trainable)
  save_peft(tmp_path / "adapter", transform, frozen, trainable, model.params, model.config)
  assert "names none" in jaxft("convert", tmp_path / "adapter", tmp_path / "out").error
  assert jaxft("convert", tmp_path / "adapter", tmp_path / "out", "--base", tiny_decoder).status == 0
  wanted = materialize(transform.join(frozen, trainable))
  for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(load(tmp_path / "out").params), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
  answer = jaxft("convert", tmp_path / "out", tmp_path / "m.gguf", "--dtype", "Q8_0")
  assert answer.status == 0 and "every tensor read back in Q8_0" in answer.out, answer.err
  assert "nearest: F16" in jaxft("convert", tmp_path / "out", tmp_path / "n.gguf", "--dtype", "float16").error
  assert "--base goes with an adapter" in jaxft("convert", tiny_decoder, tmp_path / "x", "--base", "y").error


@pytest.mark.parametrize("command", [
    ("finetune", "--model", "missing", "--data", "missing", "--out", "{out}"), ("evaluate", "--model", "missing"),
    ("generate", "--model", "missing", "a prompt")])
def test_commands_that_compile_keep_their_programs(jaxft, command, tmp_path):
  kept = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  try:
    assert "missing" in jaxft(*(part.format(out=tmp_path / "out") for part in command)).error
    assert jax.config.jax_compilation_cache_dir == str(home() / "xla")
  finally:
    jax.config.update("jax_compilation_cache_dir", kept)
