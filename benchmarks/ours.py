"""The jaxft side of each pair: a function that takes one training step and returns the loss."""

from collections.abc import Callable

import jax
import numpy as np
import optax

from benchmarks import workload
from jaxft.losses import Mean, guided_info_nce
from jaxft.models import decoder, encoder, load
from jaxft.training import init_state, make_train_step
from jaxft.transforms import full, lora

Step = Callable[[], float]


def smollm2(method: str) -> Step:
  """One step of SmolLM2-135M, float32, 4 x 128 tokens, AdamW: `full`, or `lora` of rank 8 on all linear layers."""
  model = load("smollm2-135m")
  select = "layers/**/{" + ",".join(workload.LINEAR) + "}/kernel"
  transform = full() if method == "full" else lora(select, rank=workload.RANK, alpha=workload.ALPHA)

  def objective(params, batch, key):
    del key
    return Mean.of(decoder.token_nll(params, model.config, batch["ids"])), {}

  return _stepper(model.params, transform, objective, {"ids": workload.tokens()})


def gist() -> Step:
  """One full GIST step of MiniLM at 64 pairs, padded to the longest text, the guide's embeddings computed once."""
  model = load("minilm-l6")
  pairs = workload.text_pairs()

  def tokenize(texts: list[str]) -> dict[str, np.ndarray]:
    encoded = [e.ids[:256] for e in model.tokenizer.encode_batch(texts)]
    width = max(map(len, encoded))
    row = lambda ids, fill: ids + [fill] * (width - len(ids))
    return {"ids": np.array([row(e, 0) for e in encoded], np.int32),
            "mask": np.array([row([1] * len(e), 0) for e in encoded], np.int32)}

  batch = {"query": tokenize([a for a, _ in pairs]), "document": tokenize([b for _, b in pairs])}
  embed = lambda params, text: encoder.embed(params, model.config, text["ids"], text["mask"])
  for side in ("query", "document"):
    batch[f"guide_{side}"] = jax.jit(embed)(model.params, batch[side])

  def objective(params, batch, key):
    del key
    query, document = embed(params, batch["query"]), embed(params, batch["document"])
    guide = (batch["guide_query"], batch["guide_document"], None)
    return Mean.of(guided_info_nce(query, document, None, *guide, temperature=0.01)), {}

  return _stepper(model.params, full(), objective, batch)


def _stepper(params, transform, objective, batch) -> Step:
  optimizer = optax.adamw(workload.LEARNING_RATE)
  step = make_train_step(objective, optimizer, transform)
  state, frozen = init_state(jax.random.key(0), params, transform, optimizer)

  def run() -> float:
    nonlocal state
    state, metrics = step(state, frozen, batch)
    return float(metrics["loss"])

  return run


SIDES: dict[str, Callable[[], Step]] = {
    "jaxft-lora": lambda: smollm2("lora"), "jaxft-full": lambda: smollm2("full"), "jaxft-gist": gist,
}
