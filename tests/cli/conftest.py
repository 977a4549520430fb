"""A small encoder in the real format with a real tokenizer, data files, and the command called in this process."""

import dataclasses
import json
from typing import NamedTuple

import jax
import pytest

from jaxft.cli import main


class Answer(NamedTuple):
  status: int
  out: str
  err: str

  @property
  def error(self) -> str:
    """The one line that an error is; fails where there is more, or a trace."""
    lines = [line for line in self.err.splitlines() if line.startswith("jaxft: error: ")]
    assert len(lines) == 1 and "Traceback" not in self.err, self.err[-3000:]
    return lines[0].removeprefix("jaxft: error: ")


@pytest.fixture
def jaxft(capsys):
  """`jaxft("list", "--json")` -> status, standard output, standard error."""

  def call(*args) -> Answer:
    capsys.readouterr()
    try:
      status = main([str(a) for a in args])
    except SystemExit as e:  # of tyro: help and malformed options
      status = e.code
    return Answer(status, *capsys.readouterr())

  return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, minilm):
  """A folder with an encoder of two narrow layers, random weights and MiniLM's tokenizer."""
  from jaxft.formats.huggingface import save_directory
  from jaxft.models import encoder

  config = encoder.EncoderConfig(
      vocab_size=minilm.config.vocab_size, dim=16, num_layers=2, num_heads=2, mlp_dim=32, max_length=64)
  folder = tmp_path_factory.mktemp("models") / "tiny"
  save_directory(encoder.init(jax.random.key(0), config), config, folder, tokenizer=minilm.tokenizer)
  return folder


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory, smollm2):
  """A folder with a decoder of two narrow layers, random weights and SmolLM2's tokenizer and chat template."""
  from jaxft.formats.huggingface import save_directory
  from jaxft.models import decoder

  config = dataclasses.replace(
      smollm2.config, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32)
  folder = tmp_path_factory.mktemp("models") / "tiny-decoder"
  params = decoder.init(jax.random.key(0), config)
  save_directory(params, config, folder, tokenizer=smollm2.tokenizer, chat_template=smollm2.chat_template)
  return folder


@pytest.fixture(scope="session")
def larger(tmp_path_factory, smollm2):
  """A decoder with other weights, wider than the small one, which knows the same tokens."""
  from jaxft.formats.huggingface import save_directory
  from jaxft.models import decoder

  config = dataclasses.replace(
      smollm2.config, dim=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32)
  folder = tmp_path_factory.mktemp("models") / "larger"
  save_directory(decoder.init(jax.random.key(5), config), config, folder, tokenizer=smollm2.tokenizer)
  return folder


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
  """Twelve pairs."""
  subjects = "rivers birds engines poems bridges storms coins maps bread glass music stars".split()
  lines = [{"anchor": f"a question about {s}", "positive": f"{s} are explained here"} for s in subjects]
  return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", lines)


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
  """Four chats of two turns."""
  turns = [
      ("Name a colour.", "Blue."), ("Name a fruit.", "An apple."), ("What is 2 + 2?", "4."), ("Say hello.", "Hello!"),
  ]
  lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in turns]
  return write_lines(tmp_path_factory.mktemp("data") / "chats.jsonl", lines)


def write_lines(path, lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path
