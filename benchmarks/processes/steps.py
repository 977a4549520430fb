"""One process of a side: `python -m benchmarks.processes.steps MODEL METHOD COUNT NUMBER PORT`.

For each line on standard input it takes one step, or for `save` a step beside an asynchronous save of the state that it
begins with, and answers with a line of JSON: seconds of the step, of the call of `save`, and until the save has ended.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

ROWS, LENGTH = 8, 128


def main(model_name: str, method: str, sizes: list[int]) -> None:
  count, number, port = sizes
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print, gloo's C++ included, must not get between the answers
  from jaxft.processes import Place, join

  join(Place(f"127.0.0.1:{port}", count, number) if count > 1 else None)
  import jax
  import numpy as np
  import optax

  from jaxft.formats import load
  from jaxft.host_memory import keep_freed_memory
  from jaxft.losses import Mean
  from jaxft.models import decoder
  from jaxft.training import Checkpoints, Recipe, init_state, make_mesh, make_train_step
  from jaxft.transforms import full, lora

  keep_freed_memory()
  model = load(model_name)

  def objective(params: Any, batch: Any, key: Any) -> Any:
    del key
    return Mean.of(*decoder.token_nll(params, model.config, batch["ids"])), {}

  mesh = make_mesh(data=len(jax.devices()))
  transform = full() if method == "full" else lora("layers/**/kernel", rank=8)
  recipe = Recipe(objective, transform, optax.adamw(1e-4), mesh=mesh)
  step = make_train_step(recipe)
  state, frozen = init_state(jax.random.key(0), model.params, recipe)
  ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (ROWS, LENGTH), np.int32)
  own = {"ids": np.split(ids, count)[number]}
  trained = sum(x.size for x in jax.tree.leaves(state.trainable))
  print(json.dumps({"devices": len(jax.devices()), "trained_parameters": trained}), file=answers, flush=True)
  with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, max_to_keep=1) as checkpoints:
    for line in sys.stdin:
      start, taken = time.perf_counter(), {}
      if line.strip() == "save":
        checkpoints.save(state)
        taken["save_call_seconds"] = time.perf_counter() - start
      begun = time.perf_counter()
      state, metrics = step(state, frozen, own)
      loss = float(metrics["loss"])
      taken |= {"seconds": time.perf_counter() - begun, "loss": loss}
      if line.strip() == "save":
        checkpoints.wait()
        taken["until_saved_seconds"] = time.perf_counter() - start
      print(json.dumps(taken), file=answers, flush=True)


if __name__ == "__main__":
  main(sys.argv[1], sys.argv[2], list(map(int, sys.argv[3:])))
