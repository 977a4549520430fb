"""A TIES merge of three 70B checkpoints, compiled for a slice that is not here: what a chip holds and sends.

    python -m benchmarks.merging_topology                      v5p:4x4x4; a few minutes, with the extra `tpu-aot`
    python -m benchmarks.merging_topology --devices 64         the same for virtual devices of this machine's CPU

All leaves in one program, which the compiler takes one after the other; bfloat16, cut over all chips (`fsdp`).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxft.files import write_text
from jaxft.formats.shapes import read_shape
from jaxft.merging import ties
from jaxft.models import decoder
from jaxft.training import DECODER_RULES, make_mesh, shardings_for, specs_for
from jaxft.training.planning.collectives import collectives
from jaxft.training.planning.roofline import CHIPS

RESULTS = Path(__file__).parent / "results"
MODELS, DENSITY = 3, 0.2


def compiled(model: str, devices: list[Any], place: str) -> dict[str, Any]:
  """What the compiler says of the merge on these devices."""
  config, mesh = read_shape(model), make_mesh(data=1, fsdp=len(devices), devices=devices)
  shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), config))
  lie = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=sharding)
  base = jax.tree.map(lie, shapes, shardings_for(specs_for(shapes, DECODER_RULES, mesh), mesh))
  began = time.perf_counter()
  merge = jax.jit(lambda models, base: ties(models, base, density=DENSITY, scope="leaf", zero="positive"))
  program = merge.lower([base] * MODELS, base).compile()
  memory = program.memory_analysis()
  assert memory is not None  # all backends that compile for a mesh say it
  return {
      "model": model, "parameters": sum(x.size for x in jax.tree.leaves(shapes)), "models": MODELS, "place": place,
      "chips": len(devices), "jax": jax.__version__, "compile_seconds": round(time.perf_counter() - began, 1),
      "models_bytes": memory.argument_size_in_bytes, "merged_bytes": memory.output_size_in_bytes,
      "temporary_bytes": memory.temp_size_in_bytes,
      "sent": [{"kind": c.kind, "axes": c.axes, "count": c.count, "bytes": c.bytes}
               for c in collectives(program, mesh)]}


def page(rows: list[dict[str, Any]]) -> str:
  """The facts as a table."""
  lines = [
      "# A merge compiled for a pod", "",
      f"Made by `python -m benchmarks.merging_topology`: TIES by leaf (density {DENSITY}) of {MODELS} checkpoints and "
      "their base in bfloat16, cut over all chips. Thresholds are found by counts, bit by bit, which is all that chips "
      "send; no leaf is gathered. Bytes are the compiler's, for one chip.", "",
      "| model | place | models and base | merged | temporary | of the chip's | sent | by |",
      "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"]
  for row in rows:
    chip = CHIPS.get(row["place"].partition(":")[0])
    held = row["models_bytes"] + row["merged_bytes"] + row["temporary_bytes"]
    sent = ", ".join(f"{c['count']:,} {c['kind']}" for c in row["sent"])
    gigabytes = [f"{row[name] / 1e9:.2f} GB" for name in ("models_bytes", "merged_bytes", "temporary_bytes")]
    share = f"{held / chip.memory:.0%}" if chip else ""
    megabytes = sum(c["bytes"] for c in row["sent"]) / 1e6
    cells = [row["model"], row["place"], *gigabytes, share, f"{megabytes:.2f} MB", sent]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", default="llama3-70b")
  parser.add_argument("--topology", default="v5p:4x4x4")
  parser.add_argument("--devices", type=int, help="so many virtual devices in place of a topology")
  parser.add_argument("--out", type=Path, default=RESULTS / "merging-topology.json")
  args = parser.parse_args()
  if args.devices:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    devices, place = jax.devices(), f"{args.devices} virtual devices"
  else:
    from jax.experimental import topologies

    devices = list(topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices)
    place = args.topology
  held = json.loads(args.out.read_text()) if args.out.exists() else []
  row = compiled(args.model, devices, place)
  rows = [*(r for r in held if (r["model"], r["place"]) != (row["model"], place)), row]
  write_text(args.out, json.dumps(rows, indent=1) + "\n")
  write_text(args.out.with_suffix(".md"), page(rows))
  print(page(rows))


if __name__ == "__main__":
  main()
