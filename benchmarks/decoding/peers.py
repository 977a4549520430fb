"""transformers' sides: `generate` as its users call it, with its usual cache."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.decoding import workload

Step = Callable[[], float]


def decode(kind: str, rows: int, new: int = workload.NEW) -> Step:
  """One generation, float32; the value tells the tokens of greedy decoding, or how many were drawn."""
  from transformers import AutoModelForCausalLM

  model = AutoModelForCausalLM.from_pretrained(workload.smollm2_folder(), dtype=torch.float32).eval()
  ids, mask = (torch.from_numpy(x).long() for x in workload.prompts(rows))
  model.generation_config.eos_token_id = None  # nothing ends a row
  model.generation_config.pad_token_id = 0
  drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if kind == "sampled" else {
      "do_sample": False}

  def run() -> float:
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, **drawn)
    tokens = out[:, ids.shape[1]:].numpy()
    return workload.told(tokens) if kind == "greedy" else float(tokens.size)

  return run


SIDES: dict[str, Callable[[], Step]] = {
    f"transformers-{kind}-{rows}": partial(decode, kind, rows)
    for kind in workload.KINDS for rows in workload.BATCHES}
