"""The jaxft side of each pair: a function that takes one training step and returns the loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import products, workload
from jaxft.choices import cut_at_changes, random_module_mask, s2ft_units
from jaxft.data import pack_texts
from jaxft.formats import load
from jaxft.losses import Mean, guided_info_nce
from jaxft.models import decoder, encoder
from jaxft.training import Recipe, init_state, make_train_step
from jaxft.transforms import ParamTransform, dora, full, ia3, lora, oft, submatrix, train
from jaxft.tree.coupled import MLP_CHANNELS, query_heads

Step = Callable[[], float]

LINEAR = "layers/**/{" + ",".join(workload.LINEAR) + "}/kernel"
KEY = jax.random.key(0)
UNITS = [MLP_CHANNELS, query_heads(64, queries_per_key=3)]

# method -> transform of the stacked params; what both sides have is set up as PEFT's config says (see `peers`).
METHODS: dict[str, Callable[[Any], ParamTransform]] = {
    "full": lambda params: full(),
    "lora": lambda params: lora(LINEAR, rank=workload.RANK, alpha=workload.ALPHA),
    "dora": lambda params: dora(LINEAR, rank=workload.RANK, alpha=workload.ALPHA),
    "ia3": lambda params: ia3(),
    "oft": lambda params: oft(LINEAR, block=workload.OFT_BLOCK, terms=5),
    "hft": lambda params: train(partial(random_module_mask, KEY)),
    "s2ft": lambda params: submatrix(
        s2ft_units(KEY, params, units=UNITS, heads=0.052, channels=0.02, scope="layer")),
}


def smollm2(method: str) -> Step:
  """One step of SmolLM2-135M, float32, 4 x 128 tokens, AdamW, by one of `METHODS`."""
  model = load("smollm2-135m")
  transform = METHODS[method](model.params)
  # A choice that differs by layer saves work only where the stack is cut; see `random_module_mask`.
  params = cut_at_changes(model.params, random_module_mask(KEY, model.params)) if method == "hft" else model.params
  config = model.config  # the model itself is not kept, as the state holds its params

  def objective(params, batch, key):
    del key
    return Mean.of(*decoder.token_nll(params, config, batch["ids"])), {}

  return stepper(params, transform, objective, {"ids": workload.tokens()})


def gist(packed: bool) -> Step:
  """One full GIST step of MiniLM at 64 pairs, the guide's embeddings computed once.

  Padded, each side of the pairs is as long as its longest text, as on the peer's side; packed, texts share rows.
  """
  model = load("minilm-l6")
  encode = lambda texts: [e.ids for e in model.tokenizer.encode_batch(list(texts))]
  sides = list(map(encode, zip(*workload.text_pairs(), strict=True)))
  embed = _embed_packed if packed else _embed_padded
  batch = {"texts": pack_texts(sum(sides, []), length=128) if packed else [_padded(rows) for rows in sides]}
  config = model.config
  batch["guide"] = jax.jit(partial(embed, config=config))(model.params, batch=batch["texts"])

  def objective(params, batch, key):
    del key
    student, guide = embed(params, config, batch["texts"]), batch["guide"]
    return Mean.of(*guided_info_nce(*student, None, *guide, None, temperature=0.01)), {}

  return stepper(model.params, full(), objective, batch)


def _padded(rows: list[list[int]]) -> dict[str, np.ndarray]:
  width = max(map(len, rows))
  return {"ids": np.array([row + [0] * (width - len(row)) for row in rows], np.int32),
          "mask": np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int32)}


def _embed_padded(params, config, batch):
  return [encoder.embed(params, config, text["ids"], text["mask"]) for text in batch]


def _embed_packed(params, config, batch):
  return jnp.split(encoder.embed_packed(params, config, batch["ids"], batch["segment_ids"], 2 * workload.PAIRS), 2)


def stepper(params, transform, objective, batch, optimizer=None, *, compiled=False) -> Step:
  """Steps on one batch; `compiled` before the first, so that no step has the compiler's time."""
  recipe = Recipe(objective, transform, optax.adamw(workload.LEARNING_RATE) if optimizer is None else optimizer)
  step = make_train_step(recipe)
  state, frozen = init_state(jax.random.key(0), params, recipe)
  if compiled:
    step = step.lower(state, frozen, batch).compile()

  def run() -> float:
    nonlocal state
    state, metrics = step(state, frozen, batch)
    return float(metrics["loss"])

  return run


SIDES: dict[str, Callable[[], Step]] = {
    **{f"jaxft-{method}": partial(smollm2, method) for method in METHODS},
    "jaxft-gist": lambda: gist(False), "jaxft-gist-packed": lambda: gist(True),
    **dict(products.sides(products.ours, "jaxft")),
}
