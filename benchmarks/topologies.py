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
from jaxft.losses import Mean
from jaxft.models import decoder
from jaxft.training import Recipe, make_mesh, plan
from jaxft.training.planning.collectives import GATHERED
from jaxft.training.planning.plan import DoesNotFit
from jaxft.training.planning.roofline import CHIPS, roofline
from jaxft.training.rules import DECODER_RULES
from jaxft.transforms import ParamTransform, chain, dora, full, lora, quantize, submatrix
from jaxft.tree.coupled import MLP_CHANNELS, key_heads
from jaxft.tree.partition import count

RESULTS = Path(__file__).parent / "results"
MATRICES, RANK, LENGTH = "layers/**/kernel", 16, 2048

METHODS: dict[str, Callable[[Any], ParamTransform]] = {
    "full": lambda params: full(),
    "s2ft": lambda params: submatrix(s2ft_units(
        jax.random.key(0), params, units=[MLP_CHANNELS, key_heads(128, queries_per_key=4)])),
    "lora": lambda params: lora(MATRICES, rank=RANK),
    "dora": lambda params: dora(MATRICES, rank=RANK),
    "qlora": lambda params: chain(lora(MATRICES, rank=RANK), quantize(MATRICES, format="nf4")),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One step: a model and a method on a topology, one row of 2,048 tokens a chip."""

  model: str
  method: str
  topology: str

  def __str__(self) -> str:
    return f"{self.model} {self.method} {self.topology}"


CASES = (
    *(Case("llama3-8b", method, "v5e:16x16") for method in METHODS),
    *(Case("llama3-8b", "lora", topology) for topology in ("v5e:4x4", "v5e:8x8", "v6e:16x16", "v5p:4x4x4")),
    *(Case("llama3-8b", "full", topology) for topology in ("v6e:16x16", "v5p:4x4x4")),
    *(Case("llama3-70b", method, "v5p:4x4x4") for method in ("lora", "full")),
)


def compiled(case: Case) -> dict[str, Any]:
  """The facts of one case, or that it does not fit."""
  from jax.experimental import topologies

  devices = topologies.get_topology_desc(platform="tpu", topology_name=case.topology).devices
  config = read_shape(case.model)
  mesh = make_mesh(data=1, fsdp=len(devices), devices=devices)
  # What trains is float32; a method that freezes the model keeps it as it is published.
  dtype = jnp.float32 if case.method == "full" else jnp.bfloat16
  params = jax.eval_shape(lambda: jax.tree.map(lambda x: x.astype(dtype), decoder.init(jax.random.key(0), config)))
  objective = lambda params, batch, key: (
      Mean.of(*decoder.token_nll(params, config, batch["ids"], dtype=jnp.bfloat16, remat="full", chunk=1024)), {})
  recipe = Recipe(objective, METHODS[case.method](params), optax.adamw(1e-4), mesh=mesh, rules=DECODER_RULES,
                  compute_dtype=jnp.bfloat16)
  batch = {"ids": jax.ShapeDtypeStruct((len(devices), LENGTH), jnp.int32)}
  facts: dict[str, Any] = {**dataclasses.asdict(case), "chips": len(devices)}
  try:
    found = plan(recipe, params, batch)
  except DoesNotFit as e:
    return {**facts, "does_not_fit": str(e)}
  assert found.compiled is not None  # as it was asked to compile
  tokens = len(devices) * LENGTH
  limits = roofline(found, case.topology.partition(":")[0])
  return {**facts, **dataclasses.asdict(found), "peak": found.compiled.peak, "per_parameter_and_token":
          found.flops.total / tokens / count(params), "roofline": {**dataclasses.asdict(limits), "bound": limits.bound}}


def page(found: dict[str, dict[str, Any]]) -> str:
  """The table of all cases."""
  lines = [
      "# Steps compiled for pods", "",
      f"Made by `python -m benchmarks.topologies` from `topologies.json`. One row of {LENGTH:,} tokens a chip, "
      "parameters cut over all chips (`fsdp`), bfloat16, layers recomputed (`remat=\"full\"`), AdamW in float32. Bytes "
      "are those of the compiler for one chip; operations a parameter and token count loops in full, attention's too; "
      "times are what each part takes at the least by the data sheet.", "",
      "| model | method | topology | trained | state a chip | peak a chip | of the chip's | operations | gathered | "
      "reduced | computing | memory | sending | bound by |",
      "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
  ]
  for row in found.values():
    name = f"| {row['model']} | {row['method']} | {row['topology']} |"
    if "does_not_fit" in row:
      lines.append(f"{name} does not fit |" + " |" * 10)
      continue
    chip = CHIPS[row["topology"].partition(":")[0]]
    sent = {kind: sum(c["bytes"] for c in row["compiled"]["collectives"] if c["kind"] in kinds)
            for kind, kinds in (("gathered", ("all-gather", GATHERED)), ("reduced", ("all-reduce", "reduce-scatter")))}
    state = row["trained_bytes"] + row["frozen_bytes"] + row["optimizer_bytes"]
    ms = lambda key, times=row["roofline"]: f"{1000 * times[key]:,.0f} ms"
    lines.append(
        f"{name} {row['trained'] / row['params']:.2%} | {state / 1e9:.2f} GB | {row['peak'] / 1e9:.2f} GB | "
        f"{row['peak'] / chip.memory:.0%} | {row['per_parameter_and_token']:.2f} | {sent['gathered'] / 1e9:.2f} GB | "
        f"{sent['reduced'] / 1e9:.3f} GB | {ms('compute')} | {ms('memory')} | {ms('interconnect')} | "
        f"{row['roofline']['bound']} |")
  return "\n".join([*lines, "", "![](topologies.svg)", ""])


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
  """What a chip holds at the peak, beside what it has."""
  import matplotlib

  matplotlib.use("Agg")
  matplotlib.rcParams["svg.hashsalt"] = "jaxft"
  from matplotlib import pyplot

  rows = [row for row in found.values() if "does_not_fit" not in row]
  figure, axis = pyplot.subplots(figsize=(8, 0.35 * len(rows) + 1))
  names = [f"{row['model']} {row['method']}, {row['topology']}" for row in rows]
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
