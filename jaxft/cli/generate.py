"""`jaxft generate`: text from a decoder or an encoder-decoder."""

import dataclasses
import json
import sys
from typing import Annotated, Any

import tyro

from jaxft.command_line import parse


@dataclasses.dataclass(frozen=True)
class Generate:
  """Continues prompts, or answers them as a chat."""

  prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
  """Prompts, continued together as one batch. None: standard input is the prompt."""
  model: str = "smollm2-135m"
  """A preset, a Hugging Face folder (such as the model/ of a finetune), or a GGUF file."""
  chat: bool = False
  """Each prompt is a user's turn, written out by the chat template of the checkpoint."""
  system: str | None = None
  """With --chat: the system message."""
  max_new_tokens: int = 128
  """Most tokens to add."""
  temperature: float = 0.0
  """0 takes the likeliest token."""
  top_k: int | None = None
  """Draw from the k likeliest tokens."""
  top_p: float | None = None
  """Draw from the smallest set of tokens of this probability."""
  min_p: float | None = None
  """Draw from tokens at least this many times as likely as the likeliest."""
  seed: int = 0
  """Of the draws."""
  dtype: str = "float32"
  """Of activations and of the cache: float32 or bfloat16."""
  json: bool = False
  """Print one JSON object a prompt: prompt, text, tokens, log_probs."""


def main(args: list[str]) -> None:
  options = parse(Generate, args, prog="jaxft generate")
  if not options.prompts:
    options = dataclasses.replace(options, prompts=(sys.stdin.read().rstrip("\n"),))
  from jaxft.compilation import use_compilation_cache

  use_compilation_cache()
  for i, answer in enumerate(generate(options)):
    if options.json:
      print(json.dumps(answer))
    else:
      print(("\n" if i else "") + answer["text"])


def generate(options: Generate) -> list[dict[str, Any]]:
  """One dict a prompt: `prompt`, `text`, `tokens` and their `log_probs`.

  Raises:
    ValueError: an option is out of its range, the model writes no text or gives scores that are not finite, or a chat
      is asked of one without a template.
  """
  from jaxft.checks import pick
  from jaxft.formats.pretrained import load
  from jaxft.recipes.dtypes import DTYPES
  from jaxft.recipes.model import answer

  dtype = pick("dtype", options.dtype, DTYPES)
  _check(options)
  return answer(
      load(options.model), options.prompts, chat=options.chat, system=options.system, seed=options.seed, dtype=dtype,
      max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
      min_p=options.min_p)


def _check(options: Generate) -> None:
  for name, value, takes, good in (
      ("max_new_tokens", options.max_new_tokens, ">= 1", lambda x: x >= 1),
      ("temperature", options.temperature, ">= 0", lambda x: 0 <= x < float("inf")),
      ("top_k", options.top_k, ">= 1", lambda x: x >= 1), ("top_p", options.top_p, "in (0, 1]", lambda x: 0 < x <= 1),
      ("min_p", options.min_p, "in (0, 1]", lambda x: 0 < x <= 1),
  ):
    if value is not None and not good(value):
      raise ValueError(f"{name} must be {takes}; got {value}")
  filters = [name for name in ("top_k", "top_p", "min_p") if getattr(options, name) is not None]
  if filters and options.temperature == 0:
    raise ValueError(f"{', '.join(filters)} needs a temperature above 0: at 0 the likeliest token is taken")
  if options.system is not None and not options.chat:
    raise ValueError("--system needs --chat")
