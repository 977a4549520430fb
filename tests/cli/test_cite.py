"""`jaxft cite`: BibTeX by function, run and experiment."""

import json


def test_functions_and_experiments(jaxft):
  answer = jaxft("cite", "lora", "ties", "gistembed", "lora")
  assert answer.status == 0, answer.err
  numbers = [line.split("{")[1].rstrip("},") for line in answer.out.splitlines() if "eprint" in line]
  assert numbers[:2] == ["2106.09685", "2312.03732"] and "2402.16829" in numbers
  assert len(numbers) == len(set(numbers))


def test_a_run(jaxft, tmp_path):
  (tmp_path / "summary.json").write_text(json.dumps({
      "method": "qlora", "loss": "sft", "arxiv": ["2106.09685", "2305.14314"]}))
  answer = jaxft("cite", tmp_path)
  assert answer.out.count("@misc") == 2 and "QLoRA: Efficient Finetuning" in answer.out


def test_what_names_no_paper_is_refused(jaxft, tmp_path):
  assert "'lorra' is no function of the library, no folder and no experiment" in jaxft("cite", "lorra").error
  assert "no folder of a finished run" in jaxft("cite", tmp_path).error
  assert "names no paper" in jaxft("cite", "full").error
  assert "at least one" in jaxft("cite").error
  for content, said in (("", "is not valid JSON"), ("[1]", "must hold a JSON object"),
                        ("[" * 100_000, "is not valid JSON"), ('{"arxiv": 3}', "arxiv must be a list")):
    (tmp_path / "summary.json").write_text(content)
    answer = jaxft("cite", tmp_path)
    assert answer.status == 2 and "summary.json" in answer.error and said in answer.error
