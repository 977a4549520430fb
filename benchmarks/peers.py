"""The peers' side of each pair: transformers, PEFT and sentence-transformers, as their users run them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import products, workload

Step = Callable[[], float]


_LOW_RANK = {"r": workload.RANK, "lora_alpha": workload.ALPHA, "target_modules": list(workload.PEFT_LINEAR)}

# method -> PEFT's config, given the module
CONFIGS: dict[str, Callable[[Any], Any]] = {
    "lora": lambda peft: peft.LoraConfig(**_LOW_RANK),
    "dora": lambda peft: peft.LoraConfig(use_dora=True, **_LOW_RANK),
    "ia3": lambda peft: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "oft": lambda peft: peft.OFTConfig(
        oft_block_size=workload.OFT_BLOCK, target_modules=list(workload.PEFT_LINEAR), use_cayley_neumann=True),
}


def smollm2(method: str) -> Step:
  """One step of SmolLM2-135M in transformers: `full`, or through PEFT by one of `CONFIGS`."""
  from transformers import AutoModelForCausalLM

  model = AutoModelForCausalLM.from_pretrained(workload.smollm2_folder(), dtype=torch.float32)
  if method != "full":
    import peft

    model = peft.get_peft_model(model, CONFIGS[method](peft))
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
  sides = zip(*workload.text_pairs(), strict=True)
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
    **{f"peft-{method}": partial(smollm2, method) for method in CONFIGS}, "transformers-full": lambda: smollm2("full"),
    "sentence-transformers-gist": gist, **dict(products.sides(products.theirs, "torch")),
}
