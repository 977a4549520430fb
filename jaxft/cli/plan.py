"""`jaxft plan`: what a finetune would train, hold and cost; nothing is allocated and no weights are read."""

import dataclasses
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

import tyro

from jaxft.command_line import parse
from jaxft.recipes.options import Compute, Finetune


@dataclasses.dataclass(frozen=True)
class Search:
  """Compile several ways to run a step and list those that fit, the fastest by the roofline first."""

  search: bool = False
  """Do so, with all combinations of what is to be tried; fsdp takes the chips that are left. What was compiled is kept
  in the cache folder, so that a search that was stopped goes on."""
  try_data: tuple[int, ...] = (1, 4)
  try_tensor: tuple[int, ...] = (1, 2)
  """Only sizes that divide the model's key heads."""
  try_remat: tuple[str, ...] = ("dots", "full")
  try_accumulate: tuple[int, ...] = (1, 2)
  try_rank: tuple[int, ...] = ()
  """None: that of the method."""
  most: int = 12
  """Compile so many at most, those first whose operations take the least time."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
  """Trained parameters, bytes per device and FLOPs per step of a finetune with the same options."""

  run: Finetune
  topology: str | None = None
  """Compile for TPUs that are not here, such as v5e:16x16 (needs the package libtpu); the mesh spans them, and
  with --slices 2 that many twice."""
  compile: bool = True
  """Ask the compiler for the memory of a step too; takes as long as compiling does."""
  json: bool = False
  """Print JSON."""
  search: Search = dataclasses.field(default_factory=lambda: Search())


def main(args: list[str]) -> None:
  options = parse(
      PlanOptions, args, prog="jaxft plan", config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes))
  if options.search.search:
    return _search(options)
  found = plan_of(options)
  limits = None
  if options.topology is not None and options.compile:
    from jaxft.training.planning.roofline import roofline

    limits = roofline(found, options.topology.partition(":")[0])
  if options.json:
    facts = dataclasses.asdict(found)
    if limits is not None:
      facts["roofline"] = {**dataclasses.asdict(limits), "bound": limits.bound}
    print(json.dumps(facts, indent=1, default=str))
    return
  print(found)
  if limits is not None:
    print(limits)


def _search(options: PlanOptions) -> None:
  """Prints what a search finds."""
  import sys

  from jaxft.fetch import home
  from jaxft.formats.families import family_of
  from jaxft.training.planning.search import Candidate, candidates, key_of, nothing_fits, search, table
  from jaxft.training.progress import progress

  run, wanted, topology = options.run, options.search, options.topology
  if topology is None or not options.compile:
    raise ValueError("--search compiles for a --topology, such as v5e:16x16; got " + (
        "none" if topology is None else "--no-compile"))
  _check_search(wanted)
  config, slices = config_of(run.model), 1 if run.compute.slices is None else run.compute.slices
  chips, rest = divmod(len(_described(topology, slices)) // slices, max(run.compute.context, 1))
  if rest:
    raise ValueError(f"--context must divide the chips of a slice, {topology}; got {run.compute.context}")
  tried = candidates(
      chips, heads=family_of(config).key_sizes(config)[0], tensor=wanted.try_tensor, parts=wanted.try_data,
      remat=wanted.try_remat, accumulate=wanted.try_accumulate, rank=wanted.try_rank or (run.method.rank,))
  if not tried:
    raise ValueError(f"--try-data and --try-tensor must leave a mesh of {chips} chips a slice whose tensor divides the "
                     f"key heads; got {wanted.try_data} and {wanted.try_tensor}")

  def planned(candidate: Candidate, compile: bool) -> Any:
    replace = dataclasses.replace
    compute = replace(run.compute, data_parallel=candidate.data, fsdp=candidate.fsdp, tensor=candidate.tensor,
                      remat=candidate.remat)
    changed = replace(run, compute=compute, method=replace(run.method, rank=candidate.rank),
                      optimization=replace(run.optimization, accumulate=candidate.accumulate))
    return plan_of(replace(options, run=changed, compile=compile))

  chip, bar = topology.partition(":")[0], progress(len(tried) + min(wanted.most, len(tried)), 0, show=not options.json)
  facts = [dataclasses.asdict(dataclasses.replace(run, output=type(run.output)())), topology, slices]
  with bar:
    def update(said: str) -> None:
      bar.set_postfix({"now": said})
      bar.update()

    found = search(
        tried, planned, chip, cache=home() / "plans.jsonl", key=key_of(facts), most=wanted.most, update=update)
  if options.json:
    rows = [{**dataclasses.asdict(r), "seconds": r.seconds if math.isfinite(r.seconds) else None} for r in found]
    print(json.dumps(rows, indent=1))
  else:
    print(table(found, chip), flush=True)
  if not any(r.fits for r in found):
    print(f"jaxft: error: {nothing_fits(found, chip)}", file=sys.stderr)
    raise SystemExit(1)


def _check_search(wanted: Search) -> None:
  """Raises where something to be tried is no such thing, before anything is compiled."""
  from jaxft.checks import one_of
  from jaxft.models.remat import POLICIES

  sizes = {"--try-data": wanted.try_data, "--try-tensor": wanted.try_tensor, "--try-accumulate": wanted.try_accumulate,
           "--try-rank": wanted.try_rank, "--most": (wanted.most,)}
  for name, values in sizes.items():
    for value in values:
      if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
  for name in ("try_data", "try_tensor", "try_remat", "try_accumulate"):
    if not getattr(wanted, name):
      raise ValueError(f"--{name.replace('_', '-')} must have a value; got none")
  for policy in wanted.try_remat:
    one_of("--try-remat", policy, POLICIES)


def plan_of(options: PlanOptions) -> Any:
  """The `jaxft.training.planning.plan.Plan` of the options."""
  from jaxft.formats.families import family_of
  from jaxft.recipes.forms.form import Asked
  from jaxft.recipes.forms.table import form_of
  from jaxft.recipes.guess import with_loss
  from jaxft.recipes.run import check_options, recipe_of, with_data
  from jaxft.recipes.run_loss import loss_name
  from jaxft.training import plan

  run = with_data(options.run)
  check_options(run)
  mesh = _mesh(run.compute, options.topology)
  config = config_of(run.model)
  kind = family_of(config).kind
  # No data are read: pairs for an encoder, labels for a model of images, texts for a decoder, where no task is named.
  usual = {"encoder": ("anchor", "positive"), "vision": ("label",), "decoder": ("text",)}.get(kind, ())
  usual = usual if run.loss.task is None and not run.loss.reward else ()
  run, _ = with_loss(run, kind, usual)
  teacher = None if run.loss.teacher is None else config_of(run.loss.teacher)
  recipe = recipe_of(run, config, run.optimization.steps or 1000, mesh, teacher)
  loss, guide = loss_name(run.loss.loss, kind), config_of(run.loss.guide) if run.loss.guide else None
  batch = form_of(loss, kind).batch(Asked(run, config, loss, mesh, teacher, guide))
  return plan(recipe, _params(run, config, teacher), batch, compile=options.compile)


def config_of(name: str) -> Any:
  """The config of a preset, a shape, a Hugging Face folder or a GGUF file, without its weights."""
  from jaxft.checks import nearest
  from jaxft.formats.gguf import open_gguf
  from jaxft.formats.gguf_llama import config_of as gguf_config
  from jaxft.formats.huggingface import read_config
  from jaxft.formats.presets import PRESETS, fetch
  from jaxft.formats.shapes import read_shape, shape_names

  if name in shape_names() and not Path(name).exists():
    return read_shape(name)
  path = fetch(name) if name in PRESETS else Path(name)
  if not path.exists():
    raise ValueError(f"{name!r} is neither a preset, a shape nor an existing path; "
                     f"{nearest(name, [*PRESETS, *shape_names()])}")
  return gguf_config(open_gguf(path)) if path.suffix == ".gguf" else read_config(path)


def _params(run: Finetune, config: Any, teacher: Any = None) -> Any:
  """The params in shapes; the output layer of a classifier as of two labels, since no data are read."""
  import jax

  from jaxft.formats.families import family_of
  from jaxft.recipes.output import init_output
  from jaxft.recipes.run_loss import WITH_OUTPUT, loss_name

  family = family_of(config)
  loss = loss_name(run.loss.loss, family.kind)
  outputs = 1 if loss in ("mse", "value_mse") else 2
  output = {"output": init_output(config, outputs, run.loss.head)} if loss in WITH_OUTPUT else {}
  beside = {"teacher": (family_of(teacher).init, teacher)} if loss == "gkd" else {}
  return jax.eval_shape(lambda: {**family.init(jax.random.key(0), config), **output, **{
      name: init(jax.random.key(0), its) for name, (init, its) in beside.items()}})


def _mesh(compute: Compute, topology: str | None) -> Any:
  """The run's mesh, on this machine's devices, on described TPUs, or on as many virtual CPU devices as it takes."""
  import jax

  from jaxft.recipes.run import mesh_of

  if topology is not None:
    return mesh_of(compute, _described(topology, 1 if compute.slices is None else compute.slices))
  wanted = math.prod((compute.data_parallel or 1, compute.fsdp, compute.tensor, compute.context, compute.slices or 1))
  if wanted > 1:
    try:
      now = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]: JAX adds it as it starts
      jax.config.update("jax_num_cpu_devices", max(wanted, now))
    except RuntimeError:  # devices exist already; the mesh says so if they are too few
      pass
  devices = jax.devices()
  return mesh_of(compute, devices if len(devices) >= wanted else jax.devices("cpu"))


def _described(topology: str, slices: int) -> Any:
  """The devices of TPUs that are not here: of so many slices of a topology."""
  from jax.experimental import topologies

  from jaxft.checks import one_of
  from jaxft.training.planning.roofline import CHIPS

  chip, colon, shape = topology.partition(":")
  if not colon or not all(n.isdecimal() for n in shape.split("x")):
    raise ValueError(f"--topology takes a chip and a shape, as v5e:16x16 or v5p:4x4x4; got {topology!r}")
  one_of("--topology's chip", chip, CHIPS)
  sides = [int(n) for n in shape.split("x")]
  if len(sides) != CHIPS[chip].sides or not all(sides):
    raise ValueError(f"--topology of {chip} has {CHIPS[chip].sides} sides of at least 1; got {topology!r}")
  if slices < 1:
    raise ValueError(f"--slices must be at least 1; got {slices}")
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError("--topology compiles with libtpu, which is not installed: pip install 'jaxft[tpu-aot]'")
  # libtpu asks the machine for its own chips, and complains in ten lines where it has none.
  for name, value in {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_ID": "0",
                      "TPU_WORKER_HOSTNAMES": "localhost"}.items():
    os.environ.setdefault(name, value)
  host = {"chips_per_host_bounds": (1, 1, 1)} if sides == [1, 1] else {}  # the one shape that is smaller than a host
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=slices, **host).devices
  except Exception as e:
    said = " ".join(str(e).split())[:300].rstrip(".")
    if "lockfile" in said or "already in use" in said:
      said += ". One process at a time can hold libtpu; one that was killed leaves /tmp/libtpu_lockfile, to be removed"
    several = f" in {slices} slices" if slices > 1 else ""
    raise ValueError(f"libtpu does not describe --topology {topology}{several}: {said}") from e
