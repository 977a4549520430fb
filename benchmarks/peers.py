"""The peers' side of each pair: transformers, PEFT and sentence-transformers, as their users run them."""

from collections.abc import Callable

import torch

from benchmarks import workload

Step = Callable[[], float]


def smollm2(method: str) -> Step:
  """One step of SmolLM2-135M in transformers; with `lora`, through PEFT."""
  from transformers import AutoModelForCausalLM

  model = AutoModelForCausalLM.from_pretrained(workload.smollm2_folder(), dtype=torch.float32)
  if method == "lora":
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=workload.RANK, lora_alpha=workload.ALPHA, target_modules=list(workload.PEFT_LINEAR))
    model = get_peft_model(model, config)
  model.train()
  ids = torch.from_numpy(workload.tokens()).long()
  return _stepper(model, lambda: model(input_ids=ids, labels=ids).loss)


def gist() -> Step:
  """One GISTEmbedLoss step of MiniLM at 64 pairs, the guide run in every step, as the library does; no dropout."""
  from sentence_transformers import SentenceTransformer
  from sentence_transformers.losses import GISTEmbedLoss

  model, guide = (SentenceTransformer(str(workload.minilm_folder()), device="cpu") for _ in range(2))
  loss = GISTEmbedLoss(model, guide)
  model.eval()  # switches dropout off, and nothing else
  sides = zip(*workload.text_pairs())
  features = [{k: v for k, v in model.tokenize(list(texts)).items() if torch.is_tensor(v)} for texts in sides]
  return _stepper(model, lambda: loss([dict(f) for f in features], None))


def _stepper(model, loss_of: Callable[[], torch.Tensor]) -> Step:
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trained, lr=workload.LEARNING_RATE)

  def run() -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of()
    loss.backward()
    optimizer.step()
    return loss.item()

  return run


SIDES: dict[str, Callable[[], Step]] = {
    "peft-lora": lambda: smollm2("lora"), "transformers-full": lambda: smollm2("full"),
    "sentence-transformers-gist": gist,
}
