"""TRL's own loss code on a tiny Llama of transformers, without its trainers: what a trainer holds is given by hand.

The states before the head are kept with their gradient, so that the other side starts from the same numbers.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.parity.libraries import library

torch = library("torch")
transformers = library("transformers")
VOCAB, DIM = 64, 32
FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


class Scored:
  """A model whose head TRL has fused, and the states of its last forward pass."""

  def __init__(self, seed: int, temperature: float = 1.0):
    from trl.trainer.utils import add_fused_lm_head

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=DIM, intermediate_size=DIM, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, initializer_range=0.3, max_position_embeddings=64)
    self.model = transformers.LlamaForCausalLM(config)
    self.states: Any = None

    def keep(_module, _inputs, output):
      self.states = output.last_hidden_state
      if self.states.requires_grad:
        self.states.retain_grad()

    self.model.model.register_forward_hook(keep)
    add_fused_lm_head(self.model, temperature=temperature, outputs=FIELDS)

  @property
  def head(self) -> np.ndarray:
    return self.model.lm_head.weight.detach().numpy()

  def hidden(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    with torch.no_grad():
      return self.model.model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()

  def value_and_grads(self, compute: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Of a loss `compute()`: its value, and its gradients by the last states and by the head."""
    self.model.zero_grad()
    loss = compute()
    loss.backward()
    return loss.item(), self.states.grad.numpy(), self.model.lm_head.weight.grad.numpy()


def batch(rows: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
  """Prompts of 3 tokens and completions of 1 to 6, padded on the right; a completion may be any length."""
  rng = np.random.default_rng(seed)
  lengths = 3 + (np.arange(rows) * 5 + 3) % 6 + 1
  ids, time = rng.integers(1, VOCAB, (rows, 9)), np.arange(9)
  mask = (time < lengths[:, None]).astype(np.int64)
  return {"ids": ids * mask, "mask": mask, "completion": mask * (time >= 3)}


def trainer(**settings: Any) -> SimpleNamespace:
  """What a trainer's loss reads of the trainer."""
  accelerator = SimpleNamespace(
      device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1,
      reduce=lambda x, reduction: x, sync_gradients=True)
  accelerator.autocast = lambda: torch.autocast("cpu", enabled=False)
  return SimpleNamespace(
      accelerator=accelerator, _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
      _total_train_tokens=0, _tp_size=1, aux_loss_enabled=False, precompute_ref_logps=False, **settings)
