"""A small decoder that calls tools: its rows of training data, what it calls, and what is wrong with that."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.tasks import small_decoder as model
from experiments.tasks.small_decoder import EOS, Rows, Vocabulary
from experiments.tasks.tools import world
from experiments.tasks.tools.world import Request
from jaxft.data import (
  CallError,
  call_error,
  deciding_offsets,
  drop_failed_turns,
  key_token_weights,
  reports_error,
  tool_call_reward,
)
from jaxft.models.decoder import DecoderConfig

Params = Any


class Agent:
  """Shape and vocabulary of the decoder, and what it makes of conversations.

  Args:
    dim, num_layers, num_heads: of the decoder.
    length: longest row, in tokens.
    asked: longest request, and the sign that a call is wanted.
    answer: longest call, its end included.
  """

  def __init__(self, *, dim: int, num_layers: int, num_heads: int, length: int = 40, asked: int = 10, answer: int = 12):
    self.vocabulary = Vocabulary.of(world.all_texts())
    self.config: DecoderConfig = model.shape(
        self.vocabulary, dim=dim, num_layers=num_layers, num_heads=num_heads, length=length)
    self.length, self.asked, self.answer = length, asked, answer
    self._names = {name: self.vocabulary.encode(" ".join(world.name_tokens(name))) for name in world.WORDINGS}

  def rows(
      self, requests: Sequence[Request], failing: Sequence[bool], *, drop_failed: bool, max_weight: float = 1.0
  ) -> Rows:
    """One row for each turn of the agent's conversations.

    Args:
      requests: what was asked.
      failing: where the agent failed first.
      drop_failed: whether turns that failed are no targets.
      max_weight: of the tokens that decide the tool; 1 weighs none.
    """
    pairs, weights = [], []
    for request, fails in zip(requests, failing, strict=True):
      failed = reports_error if drop_failed else lambda reply: False
      turns = drop_failed_turns(world.conversation(request, failing=fails), failed)
      for turn in turns:
        prompt, answer = world.prompt_of(turn.context), turn.target["content"]
        pairs.append((prompt, answer))
        weights.append(self._weights(prompt, answer, max_weight))
    rows = model.rows_of(self.vocabulary, pairs, length=self.length)
    scored = np.zeros(rows.ids.shape, np.float32)
    for row, of_tokens in enumerate(weights):
      scored[row, : len(of_tokens)] = of_tokens
    return Rows(rows.ids, scored)

  def _weights(self, prompt: str, answer: str, max_weight: float) -> Float[np.ndarray, " time"]:
    start, name = len(prompt.split()), self.vocabulary.encode(answer)
    loss_mask = np.array([0] * start + [1] * (len(name) + 1))
    name = name[: answer.split().index("(")]
    keys = [start + at for at in deciding_offsets(name, list(self._names.values()))]
    return key_token_weights(loss_mask, keys, max_weight=max_weight)

  def prompts(self, requests: Sequence[Request]) -> model.Prompts:
    """The requests, as the agent reads them before its first call; all of one width."""
    texts = [f"{request.text} {world.ASK}" for request in requests]
    return model.prompts_of(self.vocabulary, texts, length=self.asked)

  def calls(self, params: Params, requests: Sequence[Request]) -> list[str]:
    """What it calls, greedily, spelled."""
    tokens = model.decode(params, self.config, self.prompts(requests), max_new_tokens=self.answer)
    return self.texts(tokens)

  def texts(self, tokens: Int[np.ndarray, "n time"]) -> list[str]:
    """Answers up to their end; one that has none is cut off, and no call."""
    return [self.vocabulary.decode(row.tolist()) if EOS in row else "" for row in tokens]

  def rewards(self, calls: Sequence[str], requests: Sequence[Request]) -> Float[np.ndarray, " n"]:
    """TL-Training's reward of each."""
    return np.array([
        tool_call_reward(world.read_call(text), request.gold, world.schemas())
        for text, request in zip(calls, requests, strict=True)], np.float32)


class Judged(NamedTuple):
  """Of each call, 1 or 0."""

  exact: Float[np.ndarray, " n"]
  tool: Float[np.ndarray, " n"]  # the right tool
  invented: Float[np.ndarray, " n"]  # a tool or a parameter that does not exist
  repeated: Float[np.ndarray, " n"]  # the very mistake of the training data
  values: Float[np.ndarray, " n"]  # right but for a value


def judge(calls: Sequence[str], requests: Sequence[Request]) -> Judged:
  """What is right and wrong in calls."""
  errors: list[CallError] = []
  repeated = []
  for text, request in zip(calls, requests, strict=True):
    call = world.read_call(text)
    errors.append(call_error(call, request.gold, world.schemas()))
    repeated.append(call is not None and call == world.wrong_call(request))
  no_tool = {"unparsable", "unknown tool", "wrong tool"}
  of = lambda right: np.array([float(right(error)) for error in errors])
  return Judged(
      of(lambda error: error == "none"), of(lambda error: error not in no_tool),
      of(lambda error: error.startswith("unknown")), np.array(repeated, np.float64),
      of(lambda error: error == "values"))
