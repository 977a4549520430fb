"""The jaxft side of each pair: a function that takes one training step and returns the loss."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import workload
from jaxft.data import pack_texts
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


def gist(packed: bool) -> Step:
  """One full GIST step of MiniLM at 64 pairs, the guide's embeddings computed once.

  Padded, each side of the pairs is as long as its longest text, as on the peer's side; packed, texts share rows.
  """
  model = load("minilm-l6")
  sides = [[e.ids for e in model.tokenizer.encode_batch(list(texts))] for texts in zip(*workload.text_pairs())]
  embed = _embed_packed if packed else _embed_padded
  batch = {"texts": pack_texts(sum(sides, []), length=128) if packed else [_padded(rows) for rows in sides]}
  batch["guide"] = jax.jit(partial(embed, config=model.config))(model.params, batch=batch["texts"])

  def objective(params, batch, key):
    del key
    student, guide = embed(params, model.config, batch["texts"]), batch["guide"]
    return Mean.of(guided_info_nce(*student, None, *guide, None, temperature=0.01)), {}

  return _stepper(model.params, full(), objective, batch)


def _padded(rows: list[list[int]]) -> dict[str, np.ndarray]:
  width = max(map(len, rows))
  return {"ids": np.array([row + [0] * (width - len(row)) for row in rows], np.int32),
          "mask": np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int32)}


def _embed_padded(params, config, batch):
  return [encoder.embed(params, config, text["ids"], text["mask"]) for text in batch]


def _embed_packed(params, config, batch):
  return jnp.split(encoder.embed_packed(params, config, batch["ids"], batch["segment_ids"], 2 * workload.PAIRS), 2)


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
    "jaxft-lora": lambda: smollm2("lora"), "jaxft-full": lambda: smollm2("full"),     "jaxft-gist": lambda: gist(False), "jaxft-gist-packed": lambda: gist(True),
}
