"""`jaxft generate`: text from a decoder."""

import dataclasses
import json
import sys
from typing import Annotated, Any

import tyro


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
  options = tyro.cli(Generate, args=args, prog="jaxft generate")
  if not options.prompts:
    options = dataclasses.replace(options, prompts=(sys.stdin.read().rstrip("\n"),))
  for i, answer in enumerate(generate(options)):
    if options.json:
      print(json.dumps(answer))
    else:
      print(("\n" if i else "") + answer["text"])


def generate(options: Generate) -> list[dict[str, Any]]:
  """One dict a prompt: `prompt`, `text`, `tokens` and their `log_probs`.

  Raises:
    ValueError: an option is out of its range, the model is no decoder or gives scores that are not finite, or a chat is
      asked of one without a template.
  """
  import jax

  from jaxft.checks import pick
  from jaxft.decoding.generate import generate as run
  from jaxft.decoding.stepwise import stepwise_decoder
  from jaxft.formats.pretrained import load
  from jaxft.recipes.run import DTYPES

  dtype = pick("dtype", options.dtype, DTYPES)
  _check(options)
  model = load(options.model)
  config, tokenizer = model.text_decoder()
  rows = [_encode(options, model, prompt) for prompt in options.prompts]
  ids, mask = _left_padded(rows, config.pad_id or 0, config.max_length)
  out = run(
      stepwise_decoder(model.params, config, dtype=dtype), ids, jax.random.key(options.seed), mask=mask,
      max_new_tokens=options.max_new_tokens, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
      min_p=options.min_p)
  answers = []
  for prompt, tokens, kept, log_probs in zip(options.prompts, *jax.device_get(out), strict=True):
    tokens, log_probs = tokens[kept].tolist(), log_probs[kept].tolist()
    if -1 in tokens:
      raise ValueError(f"model must give finite scores; {options.model} gave others after the prompt {prompt[-40:]!r}")
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    answers.append({"prompt": prompt, "text": text, "tokens": tokens, "log_probs": log_probs})
  return answers


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


def _encode(options: Generate, model: Any, prompt: str) -> list[int]:
  from jaxft.data.chat import render_chat
  from jaxft.recipes.examples import special_tokens

  if not options.chat:
    ids = model.tokenizer.encode(prompt).ids
  else:
    if model.chat_template is None:
      raise ValueError(f"--chat needs a checkpoint with a chat template; {options.model} has none")
    turns = [] if options.system is None else [{"role": "system", "content": options.system}]
    turns.append({"role": "user", "content": prompt})
    text = render_chat(turns, model.chat_template, add_generation_prompt=True, **special_tokens(model))
    # The template writes the special tokens itself.
    ids = model.tokenizer.encode(text, add_special_tokens=False).ids
  if not ids:
    raise ValueError("a prompt must have at least one token; got an empty one")
  return ids


def _left_padded(rows: list[list[int]], pad_id: int, context: int) -> tuple[Any, Any]:
  """Ids and mask, padded on the left to a multiple of 16 tokens, so that prompts of like length share a compilation.

  Padding goes no further than the context.
  """
  import numpy as np

  longest = max(map(len, rows))
  length = max(longest, min(-(-longest // 16) * 16, context))
  ids, mask = np.full((len(rows), length), pad_id, np.int32), np.zeros((len(rows), length), np.int32)
  for i, row in enumerate(rows):
    ids[i, length - len(row):] = row
    mask[i, length - len(row):] = 1
  return ids, mask
