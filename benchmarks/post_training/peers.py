"""TRL's sides: its trainers' own loss and backward pass, then the optimizer that they make.

Activations are kept, where TRL's default is to recompute them: that is slower, and no fair comparison of time.
"""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.post_training import workload

Step = Callable[[], float]
SETTINGS = {
    "learning_rate": workload.LEARNING_RATE, "beta": workload.BETA, "bf16": False, "use_cpu": True,
    "gradient_checkpointing": False, "report_to": [], "lr_scheduler_type": "constant"}


def _model() -> tuple[Any, Any]:
  from transformers import AutoModelForCausalLM, AutoTokenizer

  folder = workload.smollm2_folder()
  tokenizer = AutoTokenizer.from_pretrained(folder)
  tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
  return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


def dpo(in_step: bool = False) -> Step:
  """`DPOTrainer`; the reference's log-probabilities are computed before, or by a pass in each step, its default."""
  from datasets import Dataset
  from trl import DPOConfig, DPOTrainer

  model, tokenizer = _model()
  told = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}] * workload.PAIRS)
  with tempfile.TemporaryDirectory() as folder:
    args = DPOConfig(output_dir=folder, per_device_train_batch_size=workload.PAIRS, **SETTINGS)
    trainer: Any = DPOTrainer(
        model, ref_model=copy.deepcopy(model), args=args, train_dataset=told, processing_class=tokenizer)
  data = workload.pairs()
  inputs = {name: torch.from_numpy(data[theirs]).long() for name, theirs in (
      ("input_ids", "ids"), ("attention_mask", "mask"), ("completion_mask", "completion"))}
  if not in_step:
    chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, inputs)
    inputs |= {"ref_chosen_logps": chosen.detach(), "ref_rejected_logps": rejected.detach()}
    trainer.precompute_ref_logps, trainer.ref_model = True, None
  return _stepper(trainer, lambda: trainer.compute_loss(trainer.model, inputs))


def grpo() -> Step:
  """`GRPOTrainer` on answers that are given; its default loss, without a reference."""
  from datasets import Dataset
  from trl import GRPOConfig, GRPOTrainer

  model, tokenizer = _model()
  with tempfile.TemporaryDirectory() as folder:
    args = GRPOConfig(
        output_dir=folder, per_device_train_batch_size=workload.ANSWERS, num_generations=workload.ANSWERS,
        max_completion_length=workload.RESPONSE, **SETTINGS | {"beta": 0.0})
    trainer: Any = GRPOTrainer(
        model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=args,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * workload.ANSWERS), processing_class=tokenizer)
  data = workload.answers()
  inputs = {name: torch.from_numpy(x) for name, x in data.items()}
  inputs = {name: x if x.is_floating_point() else x.long() for name, x in inputs.items()}
  inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
  trainer.current_gradient_accumulation_steps = 1
  trainer.model.train()
  return _stepper(trainer, lambda: trainer._compute_loss(trainer.model, inputs))


def _stepper(trainer: Any, loss_of: Callable[[], torch.Tensor]) -> Step:
  trainer.model.train()
  trainer.create_optimizer()
  optimizer = trainer.optimizer

  def run() -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of()
    trainer.accelerator.backward(loss)
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), workload.CLIP_NORM)
    optimizer.step()
    return loss.item()

  return run


SIDES: dict[str, Callable[[], Step]] = {
    "trl-dpo": dpo, "trl-dpo-reference": lambda: dpo(in_step=True), "trl-grpo": grpo}
