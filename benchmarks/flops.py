"""The matmul FLOPs that a step's mathematics needs, from shapes: no recomputation counted."""

from benchmarks import workload


def step_flops(pair: str) -> float:
  """FLOPs of one step: 6 (full) or 4 (LoRA) for each matmul parameter and token, attention apart.

  For GIST the student's alone, as the guide's embeddings are computed before training: of the tokens with their
  padding, or packed, of the tokens.
  """
  from jaxft.formats import load

  if pair.startswith("gist"):
    model = load("minilm-l6")
    sides = zip(*workload.text_pairs(), strict=True)
    encoded = [[len(e.ids) for e in model.tokenizer.encode_batch(list(side))] for side in sides]
    padded = sum(len(side) * max(side) for side in encoded)
    tokens, per_token = sum(map(sum, encoded)) if pair == "gist, packed" else padded, 6
    matmul = _kernels(model.params)
  else:
    model = load("smollm2-135m")
    tokens, per_token = workload.BATCH * workload.TIME, {"full": 6, "lora": 4}[pair]
    matmul = _kernels(model.params) + model.params["embed"]["tokens"]["embedding"].size  # tied to the head
  return float(per_token * matmul * tokens)


def _kernels(params) -> int:
  from jaxft.tree import leaves_with_paths

  return sum(leaf.size for path, leaf in leaves_with_paths(params) if path.endswith("kernel"))
