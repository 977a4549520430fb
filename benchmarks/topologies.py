"""Steps of 8B and 70B models compiled for pods that are not here: what a chip holds, computes and sends.

    python -m benchmarks.topologies            # all that benchmarks/results/topologies.json lacks; a minute or two each
    python -m benchmarks.topologies --page     # the page and the plot from what is there

Needs the extra `tpu-aot`. The programs are those that a pod would run: `libtpu` compiles them for the topology, with no
weights and no chips. Times are rooflines from data sheets, not measurements.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxft.choices import s2ft_units
from jaxft.files import write_text
from jaxft.formats.shapes import read_shape
from jaxft.losses import Mean, guided_info_nce
from jaxft.models import decoder, encoder
from jaxft.training import Recipe, make_mesh, plan
from jaxft.training.gradient_cache import embed_cached
from jaxft.training.planning.collectives import GATHERED
from jaxft.training.planning.plan import DoesNotFit
from jaxft.training.planning.roofline import CHIPS, roofline
from jaxft.training.rules import DECODER_RULES, ENCODER_RULES
from jaxft.transforms import ParamTransform, chain, dora, full, lora, quantize, submatrix, train
from jaxft.tree.choice import mask
from jaxft.tree.coupled import MLP_CHANNELS, key_heads
from jaxft.tree.partition import count

RESULTS = Path(__file__).parent / "results"
MATRICES, RANK, LENGTH = "layers/**/kernel", 16, 2048
# Half of the attention's matrices and one of the MLP's three, the same in all layers: a draw for each would take a
# program for each layer.
HALF = ["layers/attention/{query,out}/kernel", "layers/mlp/up/kernel"]
PAIRS, TEXT = 32_768, 64  # of the contrastive step: pairs in the global batch, tokens of a text

METHODS: dict[str, Callable[[Any], ParamTransform]] = {
    "full": lambda params: full(),
    "hft": lambda params: train(HALF),
    "s2ft": lambda params: submatrix(s2ft_units(
        jax.random.key(0), params, units=[MLP_CHANNELS, key_heads(128, queries_per_key=4)])),
    "lora": lambda params: lora(MATRICES, rank=RANK),
    "dora": lambda params: dora(MATRICES, rank=RANK),
    "qlora": lambda params: chain(lora(MATRICES, rank=RANK), quantize(MATRICES, format="nf4")),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One step: a model and a method on a topology, 2,048 tokens a chip; `data` and `context` are the mesh axes.

  A row has 2,048 tokens on each of the chips of `context`, which cut it.
  """

  model: str
  method: str
  topology: str
  data: int = 1
  context: int = 1

  def __str__(self) -> str:
    return f"{self.model} {self.method} {self.topology}" + "".join(
        f" {name} {size}" for name, size in (("data", self.data), ("context", self.context)) if size > 1)


CASES = (
    *(Case("llama3-8b", method, "v5e:16x16") for method in METHODS),
    *(Case("llama3-8b", "lora", topology) for topology in ("v5e:4x4", "v5e:8x8", "v6e:16x16", "v5p:4x4x4")),
    *(Case("llama3-8b", "full", topology) for topology in ("v6e:16x16", "v5p:4x4x4")),
    Case("llama3-8b", "full", "v5p:4x4x4", data=4),
    Case("gemma3-27b", "lora", "v6e:16x16"),
    *(Case("llama3-70b", method, "v5p:4x4x4") for method in ("lora", "full")),
    Case("llama3-8b", "lora", "v5e:16x16", context=16),
    Case("bert-base", "gist", "v5e:16x16", data=256),
)


def compiled(case: Case) -> dict[str, Any]:
  """The facts of one case, or that it does not fit."""
  from jax.experimental import topologies

  devices = topologies.get_topology_desc(platform="tpu", topology_name=case.topology).devices
  mesh = make_mesh(data=case.data, fsdp=len(devices) // case.data // case.context, context=case.context,
                   devices=devices)
  recipe, params, batch, tokens = (contrastive if case.method == "gist" else language)(case, mesh)
  facts: dict[str, Any] = {**dataclasses.asdict(case), "chips": len(devices)}
  try:
    found = plan(recipe, params, batch)
  except DoesNotFit as e:
    return {**facts, "does_not_fit": str(e)}
  assert found.compiled is not None and found.placement is not None  # as it was asked to compile for a mesh
  limits = roofline(found, case.topology.partition(":")[0])
  badly = {kind: found.placement.total(kind) for kind in ("replicated", "padded")}
  return {**facts, **dataclasses.asdict(dataclasses.replace(found, placement=None)), "placement": badly,
          "peak": found.compiled.peak, "per_parameter_and_token": found.flops.total / tokens / count(params),
          "roofline": {**dataclasses.asdict(limits), "bound": limits.bound}}


def language(case: Case, mesh: Any) -> tuple[Recipe, Any, Any, int]:
  """A step of a language model, with the tokens of its batch."""
  length = LENGTH * case.context
  config = read_shape(case.model)
  config = dataclasses.replace(config, max_length=max(config.max_length, length))  # it is taught to read on
  # What trains is float32; a method that freezes the model keeps it as it is published.
  shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), config))
  chosen = {"full": "**", "hft": HALF}.get(case.method)
  wide = jax.tree.map(lambda _: False, shapes) if chosen is None else mask(chosen, shapes)
  params = jax.tree.map(lambda x, wide: jax.ShapeDtypeStruct(x.shape, x.dtype if wide else jnp.bfloat16), shapes, wide)
  objective = lambda params, batch, key: (
      Mean.of(*decoder.token_nll(
          params, config, batch["ids"], dtype=jnp.bfloat16, remat="full", chunk=1024)), {})
  recipe = Recipe(objective, METHODS[case.method](params), optax.adamw(1e-4), mesh=mesh, rules=DECODER_RULES,
                  compute_dtype=jnp.bfloat16)
  rows = mesh.size // case.context
  return recipe, params, {"ids": jax.ShapeDtypeStruct((rows, length), jnp.int32)}, rows * length


def contrastive(case: Case, mesh: Any) -> tuple[Recipe, Any, Any, int]:
  """A GIST step of an encoder of BERT's size: a text competes with those of all chips; the guide's vectors are data."""
  del case
  config = encoder.EncoderConfig(
      vocab_size=30_522, dim=768, num_layers=12, num_heads=12, mlp_dim=3072, max_length=512)
  params = jax.eval_shape(lambda: encoder.init(jax.random.key(0), config))

  def embed(params: Any, rows: Any, key: Any) -> Any:
    del key
    side = lambda name: encoder.embed(params, config, rows[name], rows["mask"], dtype=jnp.bfloat16)
    return side("anchor"), side("positive")

  def objective(params: Any, batch: Any, key: Any) -> Any:
    texts = {name: batch[name] for name in ("anchor", "positive", "mask")}
    anchors, positives = embed_cached(embed, params, texts, key, chunks=4, mesh=mesh)
    guide = batch["guide"]
    return Mean.of(*guided_info_nce(anchors, positives, None, guide[:, 0], guide[:, 1], None)), {}

  ids = jax.ShapeDtypeStruct((PAIRS, TEXT), jnp.int32)
  batch = {"anchor": ids, "positive": ids, "mask": ids, "guide": jax.ShapeDtypeStruct((PAIRS, 2, 768), jnp.float32)}
  recipe = Recipe(objective, full(), optax.adamw(1e-4), mesh=mesh, rules=ENCODER_RULES, compute_dtype=jnp.bfloat16)
  return recipe, params, batch, 2 * PAIRS * TEXT


def page(found: dict[str, dict[str, Any]]) -> str:
  """The table of all cases."""
  lines = [
      "# Steps compiled for pods", "",
      f"Made by `python -m benchmarks.topologies` from `topologies.json`. One row of {LENGTH:,} tokens a chip (of "
      f"`context 16` one of {16 * LENGTH:,} over 16 chips), parameters cut over all chips (`fsdp`; of `data 4` over a "
      "fourth of them, of `context 16` over a sixteenth), bfloat16, layers recomputed (`remat=\"full\"`), "
      f"AdamW in float32; of `gist` {PAIRS:,} pairs of {TEXT} tokens, parameters on every chip. "
      "Bytes are those of the compiler for one chip; operations a parameter and token count loops in full, attention's "
      "too; times are what each part takes at the least by the data sheet.", "",
      "What a chip sends is gathered (parameters, before use), reduced (gradients) or passed on (in turns, during a "
      "product). Where `fsdp` spans all three dimensions of a v5p torus, the compiler gathers by a sum over parts in "
      "zeros, which sends twice as much, and reduces whole gradients; with a fourth of the chips in `fsdp` it gathers.",
      "",
      "| model | method | topology | trained | state a chip | peak a chip | of the chip's | operations | gathered | "
      "reduced | passed on | computing | memory | sending | bound by |",
      "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
  ]
  for row in found.values():
    name = f"| {row['model']} | {row['method']} | {row['topology']}{_axes(row)} |"
    if "does_not_fit" in row:
      lines.append(f"{name} does not fit |" + " |" * 11)
      continue
    chip = CHIPS[row["topology"].partition(":")[0]]
    sent = lambda *kinds, row=row: sum(c["bytes"] for c in row["compiled"]["collectives"] if c["kind"] in kinds) / 1e9
    state = row["trained_bytes"] + row["frozen_bytes"] + row["optimizer_bytes"]
    ms = lambda key, times=row["roofline"]: f"{1000 * times[key]:,.0f} ms"
    lines.append(
        f"{name} {row['trained'] / row['params']:.2%} | {state / 1e9:.2f} GB | {row['peak'] / 1e9:.2f} GB | "
        f"{row['peak'] / chip.memory:.0%} | {row['per_parameter_and_token']:.2f} | "
        f"{sent('all-gather', GATHERED):.2f} GB | {sent('all-reduce', 'reduce-scatter'):.3f} GB | "
        f"{sent('collective-permute', 'all-to-all'):.2f} GB | {ms('compute')} | {ms('memory')} | "
        f"{ms('interconnect')} | {row['roofline']['bound']} |")
  return "\n".join([*lines, "", *theory(found), "", *across(found), "", "![](topologies.svg)", ""])


def theory(found: dict[str, dict[str, Any]]) -> list[str]:
  """LoRA on 16 to 256 chips beside what it should take."""
  lines = [
      "LoRA on 8B, beside the theory: the frozen weights in bfloat16 over all n chips, 2 N / n; gathered once in each "
      "of two passes, 4 N (n - 1) / n (what is passed on counts as gathered); N without the embedding, of which rows "
      "alone are read.", "",
      "| chips | frozen a chip | theory | gathered and passed on | theory |", "| ---: | ---: | ---: | ---: | ---: |"]
  config = read_shape("llama3-8b")
  for topology in ("v5e:4x4", "v5e:8x8", "v5e:16x16"):
    row = found.get(str(Case("llama3-8b", "lora", topology)))
    if row is None or "does_not_fit" in row:
      continue
    n, size = row["chips"], row["params"]
    sent = sum(c["bytes"] for c in row["compiled"]["collectives"] if c["kind"] not in ("all-reduce", "reduce-scatter"))
    read = size - config.vocab_size * config.dim
    lines.append(f"| {n} | {row['frozen_bytes'] / 1e9:.3f} GB | {2 * size / n / 1e9:.3f} GB | {sent / 1e9:.2f} GB | "
                 f"{4 * read * (n - 1) / n / 1e9:.2f} GB |")
  return lines


def across(found: dict[str, dict[str, Any]]) -> list[str]:
  """What goes between the chips that hold one row, beside what the ring should take."""
  lines = [
      "Between the chips of `context`, each of which holds a part of one row: what ring attention passes on, beside "
      "the theory of its turns: keys and values once round in the forward pass, once as it is computed again, and once "
      "in the backward pass with their gradients in float32 beside them. What is more than that takes queries, keys, "
      "values and outputs to the devices of their pieces and back. Of whole rows only the embeddings are gathered, "
      "once a step, where they are looked up.", "",
      "| | kind | axes | times | sent | theory of the turns |", "| --- | --- | --- | ---: | ---: | ---: |"]
  for row in found.values():
    case = case_of(row)
    if case.context == 1 or "does_not_fit" in row:
      continue
    config = read_shape(case.model)
    block = LENGTH * config.num_kv_heads * config.head_dim  # of keys, or of values, on one chip
    ring = case.context * config.num_layers * block * (3 * 2 * 2 + 2 * 4)
    for c in row["compiled"]["collectives"]:
      if "context" in c["axes"].split("+"):
        passed = c["kind"] == "collective-permute" and c["axes"] == "context"
        lines.append(f"| {case} | {c['kind']} | {c['axes']} | {c['count']:,} | {c['bytes'] / 1e9:.3f} GB | "
                     f"{f'{ring / 1e9:.3f} GB' if passed else ''} |")
  return lines


def case_of(row: dict[str, Any]) -> Case:
  """The case of a row; those of before meshes had other shapes have sizes of 1."""
  return Case(row["model"], row["method"], row["topology"], row.get("data", 1), row.get("context", 1))


def _axes(row: dict[str, Any]) -> str:
  case = case_of(row)
  return "".join(f", {name} {size}" for name, size in (("data", case.data), ("context", case.context)) if size > 1)


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
  """What a chip holds at the peak, beside what it has."""
  import matplotlib

  matplotlib.use("Agg")
  matplotlib.rcParams["svg.hashsalt"] = "jaxft"
  from matplotlib import pyplot

  rows = [row for row in found.values() if "does_not_fit" not in row]
  figure, axis = pyplot.subplots(figsize=(8, 0.35 * len(rows) + 1))
  names = [f"{row['model']} {row['method']}, {row['topology']}{_axes(row)}" for row in rows]
  state = [(row["trained_bytes"] + row["frozen_bytes"] + row["optimizer_bytes"]) / 1e9 for row in rows]
  axis.barh(names, [row["peak"] / 1e9 for row in rows], color="#9ecae1", label="peak")
  axis.barh(names, state, color="#08519c", label="kept from step to step")
  memory = [CHIPS[row["topology"].partition(":")[0]].memory / 1e9 for row in rows]
  axis.scatter(memory, names, marker="|", s=120, color="black", label="a chip's memory", zorder=3)
  axis.set_xscale("log")
  axis.set_xlabel("GB a chip")
  axis.invert_yaxis()
  axis.legend(loc="lower right", fontsize=8)
  figure.tight_layout()
  figure.savefig(path, metadata={"Date": None})
  pyplot.close(figure)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--page", action="store_true", help="compile nothing")
  parser.add_argument("--again", action="store_true", help="compile also what the file has")
  parser.add_argument("--only", default="", help="cases that contain this, such as 'lora v5e'")
  options = parser.parse_args()
  file = RESULTS / "topologies.json"
  held = json.loads(file.read_text())["cases"] if file.exists() else {}
  for case in () if options.page else CASES:
    if options.only in str(case) and (options.again or str(case) not in held):
      print(case, flush=True)
      held[str(case)] = compiled(case)
      held = {str(c): held[str(c)] for c in CASES if str(c) in held}
      facts = {"jax": jax.__version__, "cases": held}
      write_text(file, json.dumps(facts, indent=1, default=_plain) + "\n")
  write_text(RESULTS / "topologies.md", page(held))
  plot(held, RESULTS / "topologies.svg")


def _plain(x: Any) -> Any:
  return sorted(x) if isinstance(x, frozenset) else x


if __name__ == "__main__":
  main()
