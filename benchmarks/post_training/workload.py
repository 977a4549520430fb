"""What both sides get: the same tokens, the same advantages, the same settings."""

import numpy as np

from benchmarks.workload import smollm2_folder, text_pairs

__all__ = ["ANSWERS", "BETA", "CLIP_NORM", "LEARNING_RATE", "PAIRS", "PROMPT", "RESPONSE", "answers", "pairs",
           "smollm2_folder"]

PAIRS, ANSWERS, PROMPT, RESPONSE = 4, 8, 64, 64
BETA, LEARNING_RATE, CLIP_NORM = 0.1, 1e-6, 1.0  # TRL's


def pairs() -> dict[str, np.ndarray]:
  """`ids`, `mask` and `completion` `[2 pairs, PROMPT + RESPONSE]`: chosen responses, then rejected ones.

  Prompts of one length, as TRL and this library pad them alike then; responses of several, padded on the right.
  """
  ids = _text(2 * PAIRS, PROMPT + RESPONSE)
  ids[PAIRS:, :PROMPT] = ids[:PAIRS, :PROMPT]
  lengths = PROMPT + RESPONSE - 7 * np.arange(2 * PAIRS) % (RESPONSE - 8)
  mask = (np.arange(PROMPT + RESPONSE) < lengths[:, None]).astype(np.int32)
  return {"ids": ids * mask, "mask": mask, "completion": mask * (np.arange(PROMPT + RESPONSE) >= PROMPT)}


def answers() -> dict[str, np.ndarray]:
  """Prompts `[answers, PROMPT]`, padded on the left, answers `[answers, RESPONSE]` and an advantage of each."""
  ids = _text(ANSWERS, PROMPT + RESPONSE)
  prompt = (np.arange(PROMPT) >= 5 * np.arange(ANSWERS)[:, None] % (PROMPT // 2)).astype(np.int32)
  own = (np.arange(RESPONSE) < RESPONSE - 7 * np.arange(ANSWERS)[:, None] % (RESPONSE - 8)).astype(np.int32)
  return {"prompt_ids": ids[:, :PROMPT] * prompt, "prompt_mask": prompt, "completion_ids": ids[:, PROMPT:] * own,
          "completion_mask": own, "advantages": np.linspace(-1, 1, ANSWERS, dtype=np.float32)}


def _text(rows: int, time: int) -> np.ndarray:
  """Tokens of real text, one row after the other."""
  from tokenizers import Tokenizer

  tokenizer = Tokenizer.from_file(str(smollm2_folder() / "tokenizer.json"))
  ids = tokenizer.encode(" ".join(pair[1] for pair in text_pairs(1000))).ids
  return np.array(ids[:rows * time], np.int32).reshape(rows, time)
