"""The streaming engine: the numbers of in-memory merges, bounded memory, outputs that appear whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxft.formats.safetensors import open_checkpoint
from jaxft.merging.kernels.leafwise import merge_leaf
from jaxft.merging.kernels.methods import METHODS, REQUIRED, streams
from jaxft.merging.streaming import merge, plan_merge
from jaxft.merging.streaming.shards import Entry, ShardWriter
from jaxft.merging.streaming.staging import staging
from tests.merging.checkpoints import DTYPES, WIDTH, configure, decoder, family, read, recipe, write

GIVEN = {"weight": [1.0, 0.5, -0.3], "density": [0.3, 0.6, 1.0], "epsilon": [0.1, 0.15, 0.1]}
SHARED = {"t": 0.3, "select_topk": 0.5}


def settings_of(name):
  """How many models a method takes, and parameters for them."""
  method = METHODS[name]
  count = method.most or 3
  weights = {"slerp": 1, "nuslerp": 1, "multislerp": 1}
  per_model = {k: GIVEN[k][:count] for k in method.per_model if k in GIVEN}
  if name in weights or name == "linear":
    per_model["weight"] = [0.5, 0.2, 0.4][:count]
  return count, per_model, {k: SHARED[k] for k, v in method.parameters.items() if v is REQUIRED or k in SHARED}


def in_memory(name, models, base, per_model, parameters, dtype, seed=0):
  """The merge of dicts of arrays, leaf by leaf."""
  method = METHODS[name]
  out = {}
  for key, like in models[0].items():
    drawn = {"streams": streams(seed, key, len(models))} if method.random else {}
    origin = None if method.base == "ignored" else base[key]
    out[key] = merge_leaf(method.leafwise, [m[key] for m in models], origin,
                          method.settings(per_model, parameters, **drawn), dtype=DTYPES[dtype])
    assert out[key].shape == like.shape
  return out


def assert_same_bits(got, want):
  assert got.keys() == want.keys()
  for name, x in want.items():
    assert got[name].dtype == x.dtype and got[name].tobytes() == np.ascontiguousarray(x).tobytes(), name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_bits_of_the_merge_in_memory(name, tmp_path):
  count, per_model, parameters = settings_of(name)
  held = family(tmp_path, count=count, dtype="bfloat16")
  config = configure(tmp_path / "merge.yaml", recipe(
      name, count=count, per_model=per_model, parameters=parameters, base=METHODS[name].base != "ignored",
      dtype="float32"))
  merge(config, tmp_path / "out", seed=3)
  want = in_memory(name, [held[f"m{i}"] for i in range(count)], held["base"], per_model, parameters, "float32", seed=3)
  assert_same_bits(read(tmp_path / "out"), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [10**9, 1000])
def test_dtypes_and_shards_change_no_bit(dtype, shards, tmp_path):
  held = family(tmp_path, dtype=dtype, max_shard_bytes=shards)
  per_model = {"weight": [1.0, 0.5, 0.3], "density": [0.3, 0.6, 1.0]}
  config = configure(tmp_path / "merge.yaml", recipe("dare_ties", per_model=per_model))
  merged = merge(config, tmp_path / "out", max_shard_bytes=shards)
  assert len(merged.files) > 1 if shards == 1000 else [f.name for f in merged.files] == ["model.safetensors"]
  want = in_memory("dare_ties", [held[f"m{i}"] for i in range(3)], held["base"], per_model, {}, dtype)
  assert_same_bits(read(tmp_path / "out"), want)
  assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == dtype
  assert open_checkpoint(tmp_path / "out").metadata == {"format": "pt"}


def apart(code):
  """What a process of its own prints: one without JAX, beside which nothing may be forked."""
  done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_processes_change_no_bit(tmp_path):
  variants = {f"{dtype}-{shards}": (dtype, shards) for dtype in DTYPES for shards in (10**9, 1000)}
  document = recipe("dare_ties", per_model={"weight": [1.0] * 3, "density": [0.5] * 3})
  for name, (dtype, shards) in variants.items():
    family(tmp_path / name, dtype=dtype, max_shard_bytes=shards)
    config = configure(tmp_path / name / "merge.yaml", document)
    merge(config, tmp_path / name / "1", max_shard_bytes=shards, processes=1)
  apart(f"""
    from jaxft.merging.streaming import merge
    for name, (_, shards) in {variants!r}.items():
      folder = "{tmp_path}/" + name
      merge(folder + "/merge.yaml", folder + "/3", max_shard_bytes=shards, processes=3)
  """)
  for name in variants:
    assert_same_bits(read(tmp_path / name / "3"), read(tmp_path / name / "1"))


def test_the_public_merge_of_trees_gives_the_same(tmp_path):
  from jaxft import merging

  held = family(tmp_path)
  config = configure(tmp_path / "merge.yaml", recipe("task_arithmetic", per_model={"weight": [0.4, 0.4, 0.4]}))
  merge(config, tmp_path / "out")
  want = merging.task_arithmetic([held[f"m{i}"] for i in range(3)], held["base"], scale=0.4)
  assert_same_bits(read(tmp_path / "out"), {name: np.asarray(x) for name, x in want.items()})


def test_one_rounding_at_the_end(tmp_path):
  held = family(tmp_path, dtype="bfloat16")
  document = recipe("linear", per_model={"weight": [0.2, 0.5, 0.3]}, base=False)
  merge(configure(tmp_path / "a.yaml", document | {"dtype": "float32"}), tmp_path / "wide")
  merge(configure(tmp_path / "b.yaml", document), tmp_path / "narrow")
  merge(tmp_path / "a.yaml", tmp_path / "other", dtype="bfloat16")
  want = {name: x.astype(DTYPES["bfloat16"]) for name, x in read(tmp_path / "wide").items()}
  assert_same_bits(read(tmp_path / "narrow"), want)
  assert_same_bits(read(tmp_path / "other"), want)
  assert held["m0"].keys() == want.keys()


def test_random_drops_depend_on_the_seed_and_the_name_alone(tmp_path):
  family(tmp_path)
  document = recipe("dare_linear", per_model={"weight": [1.0] * 3, "density": [0.5] * 3})
  config = configure(tmp_path / "merge.yaml", document)
  for out, options in {"a": {}, "b": {"processes": 1, "max_shard_bytes": 500}, "c": {"seed": 1}}.items():
    merge(config, tmp_path / out, **options)
  assert_same_bits(read(tmp_path / "b"), read(tmp_path / "a"))
  assert any((x != read(tmp_path / "c")[name]).any() for name, x in read(tmp_path / "a").items())


def test_integers_are_copied(tmp_path):
  held = family(tmp_path, count=2)
  for i, name in enumerate(held):
    write(tmp_path / name, held[name] | {"model.steps": np.array([7]), "model.ids": np.arange(3) + (i == 1)})
  config = configure(tmp_path / "merge.yaml", recipe("ties", count=2, per_model={"weight": [1.0, 1.0]}))
  merged = merge(config, tmp_path / "out")
  out = read(tmp_path / "out")
  assert out["model.steps"].tolist() == [7] and out["model.ids"].tolist() == [0, 1, 2]
  assert [n for n in merged.notes if "model.ids holds integers" in n and "of the base" in n]
  assert not [n for n in merged.notes if "model.steps" in n]


def test_odd_tensors(tmp_path):
  """Scalars, empty tensors, and names of other architectures."""
  tensors = {"logit_scale": np.float32(2.0).reshape(()), "visual.empty": np.zeros((0, 3), np.float32),
             "unet.down_blocks.0.conv.weight": np.ones((2, 3, 3, 3), np.float32)}
  for i in range(2):
    write(tmp_path / f"m{i}", {n: x + i for n, x in tensors.items()})
  document = recipe("linear", count=2, per_model={"weight": [1, 1]}, base=False)
  merge(configure(tmp_path / "m.yaml", document), tmp_path / "o")
  out = read(tmp_path / "o")
  assert out["logit_scale"] == 2.5 and out["logit_scale"].shape == () and out["visual.empty"].shape == (0, 3)
  assert (out["unet.down_blocks.0.conv.weight"] == 1.5).all()


def test_names_of_files_follow_the_base(tmp_path):
  for name in ("base", "m0"):
    write(tmp_path / name, decoder(0))
    (tmp_path / name / "model.safetensors").rename(tmp_path / name / "diffusion_pytorch_model.safetensors")
  document = recipe("task_arithmetic", count=1, per_model={"weight": [1]})
  merged = merge(configure(tmp_path / "m.yaml", document), tmp_path / "o")
  assert [f.name for f in merged.files] == ["diffusion_pytorch_model.safetensors"]
  assert open_checkpoint(tmp_path / "o").tensors.keys() == decoder(0).keys()


# Whole or not at all.

def entries(folder):
  return sorted(p.name for p in folder.iterdir())


def slow_merge(folder, hold, processes):
  """A process that merges and stops after some tensors, saying so."""
  code = f"""
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background hands down that it ignores it
    from jaxft.merging.streaming import engine, merge
    real, seen = engine.merge_tensor, []
    def slow(*args, **options):
      seen.append(1)
      if len(seen) == 5:  # of one process
        print("half", flush=True)
        time.sleep({hold})
      return real(*args, **options)
    engine.merge_tensor = slow
    merge("{folder}/merge.yaml", "{folder}/out", processes={processes}, max_shard_bytes=2000)
  """
  process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.DEVNULL)
  assert process.stdout.readline() == "half\n"
  return process


@pytest.mark.parametrize("how, processes", [
    (signal.SIGKILL, 2), (signal.SIGINT, 1),
    *(pytest.param(*variant, marks=pytest.mark.exhaustive) for variant in (
        (signal.SIGKILL, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1), (signal.SIGTERM, 2))),
])
def test_a_merge_that_is_stopped_leaves_nothing(how, processes, tmp_path):
  family(tmp_path)
  configure(tmp_path / "merge.yaml", recipe("ties", per_model={"weight": [1.0] * 3, "density": [0.5] * 3}))
  before = entries(tmp_path)
  with slow_merge(tmp_path, 60 if how != signal.SIGINT else 2, processes) as process:
    process.send_signal(how)
    assert process.wait(timeout=30) != 0
  assert entries(tmp_path) == before
  merge(tmp_path / "merge.yaml", tmp_path / "out")
  assert len(read(tmp_path / "out")) == len(decoder(0))


def test_what_a_killed_process_left_with_a_name_is_swept(tmp_path):
  family(tmp_path)
  config = configure(tmp_path / "merge.yaml", recipe("linear", per_model={"weight": [1] * 3}, base=False))
  (tmp_path / ".out.abc.part").mkdir()
  (tmp_path / ".out.abc.part" / "half").write_text("")
  with staging(tmp_path / "out") as other:  # alive: it holds a lock on its folder
    assert not (tmp_path / ".out.abc.part").exists()
    living = other.scratch
    merge(config, tmp_path / "out")
    assert living.exists()
  assert not [name for name in entries(tmp_path) if name.startswith(".")]


def test_without_nameless_files_the_same(tmp_path, monkeypatch):
  monkeypatch.delattr(os, "O_TMPFILE")
  held = family(tmp_path)
  config = configure(tmp_path / "merge.yaml", recipe("linear", per_model={"weight": [1] * 3}, base=False))
  merge(config, tmp_path / "out", max_shard_bytes=1000)
  assert read(tmp_path / "out").keys() == held["m0"].keys()
  assert not [name for name in entries(tmp_path) if name.startswith(".")]


def test_a_process_that_dies_is_an_error(tmp_path):
  family(tmp_path)
  configure(tmp_path / "merge.yaml", recipe("linear", per_model={"weight": [1] * 3}, base=False))
  before = entries(tmp_path)
  assert "has died" in apart(f"""
    import os
    from jaxft.merging.streaming import engine, merge
    engine.merge_leaf = lambda *a, **k: os._exit(1)
    try:
      merge("{tmp_path}/merge.yaml", "{tmp_path}/out", processes=2)
    except OSError as e:
      print(e)
  """)
  assert entries(tmp_path) == before


def test_an_error_in_a_tensor_leaves_nothing(tmp_path, monkeypatch):
  from jaxft.merging.streaming import engine

  family(tmp_path)
  config = configure(tmp_path / "merge.yaml", recipe("linear", per_model={"weight": [1] * 3}, base=False))
  before = entries(tmp_path)
  monkeypatch.setattr(engine, "merge_leaf", lambda *a, **k: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    merge(config, tmp_path / "out")
  assert entries(tmp_path) == before


def test_an_output_that_exists(tmp_path):
  family(tmp_path)
  config = configure(tmp_path / "merge.yaml", recipe("linear", per_model={"weight": [1] * 3}, base=False))
  out = tmp_path / "out"
  out.mkdir()
  merge(config, out)  # an empty folder is no output
  (out / "mine.txt").write_text("")
  with pytest.raises(FileExistsError, match="--overwrite"):
    merge(config, out)
  assert (out / "mine.txt").exists()
  merge(config, out, overwrite=True)
  assert not (out / "mine.txt").exists() and len(read(out)) == len(decoder(0))
  with pytest.raises(FileExistsError, match="m.yaml|merge.yaml"):
    merge(config, config)
  assert not [name for name in entries(tmp_path) if name.startswith(".")]


def test_an_output_that_replaces_one_of_its_inputs(tmp_path):
  held = family(tmp_path)
  config = configure(tmp_path / "merge.yaml", recipe("linear", per_model={"weight": [1, 0, 0]}, base=False))
  merge(config, tmp_path / "m1", overwrite=True)
  assert_same_bits(read(tmp_path / "m1"), held["m0"])


def test_a_disk_with_too_little_room(tmp_path, monkeypatch):
  family(tmp_path)
  config = configure(tmp_path / "merge.yaml", recipe("linear", per_model={"weight": [1] * 3}, base=False))
  before = entries(tmp_path)
  import resource

  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
  try:
    with pytest.raises(OSError):
      merge(config, tmp_path / "out")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert entries(tmp_path) == before
  full = os.statvfs(tmp_path)
  monkeypatch.setattr(os, "statvfs", lambda path: type("", (), {"f_bavail": 0, "f_frsize": full.f_frsize}))
  with pytest.raises(OSError, match="out takes .* 0.00 GB are free"):
    merge(config, tmp_path / "out")


def test_tensors_may_be_written_in_any_order(tmp_path):
  arrays = {
      "a": np.arange(5, dtype=np.float16), "b": np.arange(6.0), "c": np.array(True), "d": np.zeros((0, 2), np.int32)}
  with staging(tmp_path / "out") as stage:
    writer = ShardWriter(stage, {n: Entry(x.shape, x.dtype) for n, x in arrays.items()}, max_shard_bytes=30)
    for name in reversed(arrays):
      writer.write(name, arrays[name])
    folder = stage.scratch / "x"
    folder.mkdir()
    assert writer.finish(folder) == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    writer.close()
    stage.commit(folder)
  assert_same_bits(read(tmp_path / "out"), arrays)


# Memory.

def peak(folder, config, processes):
  """Bytes by which a merge raises the peak of a process's memory: of this one, or of the largest that it forks."""
  return int(apart(f"""
    import resource
    import numpy as np
    from jaxft.merging.streaming import merge
    np.add(np.ones(1 << 20), 1)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    merge("{config}", "{folder}/out", overwrite=True, processes={processes})
    who = resource.RUSAGE_SELF if {processes} == 1 else resource.RUSAGE_CHILDREN
    print((resource.getrusage(who).ru_maxrss - start) * 1024)
  """))


@pytest.mark.parametrize("sizes, processes", [
    (((2, 2), (12, 2)), (1,)),
    pytest.param(((2, 2), (24, 2), (24, 5)), (1, 2), marks=pytest.mark.exhaustive),
])
def test_memory_is_flat_in_depth_and_bounded_by_leaves(sizes, processes, tmp_path):
  leaf = 2 << 20  # bytes in float32
  peaks = {}
  for depth, count in sizes:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(512, leaf // 4 // 512)).astype(np.float32)
    for name in ("base", *(f"m{i}" for i in range(count))):
      write(tmp_path / name, {f"layers.{i}.weight": one + rng.normal() for i in range(depth)})
    per_model = {"weight": [1.0] * count, "density": [0.3] * count}
    config = configure(tmp_path / "merge.yaml", recipe("ties", count=count, per_model=per_model))
    peaks[depth, count] = max(peak(tmp_path, config, at_once) for at_once in processes)
    # K + 2 leaves, what is held in blocks, and what the allocator keeps.
    assert peaks[depth, count] < (count + 2) * leaf + (12 << 20), peaks
  assert peaks[sizes[1]] - peaks[2, 2] < 3 << 20, peaks


def test_the_plan_knows_its_bytes(tmp_path):
  held = family(tmp_path, dtype="bfloat16")
  config = configure(tmp_path / "merge.yaml", recipe("ties", per_model={"weight": [1.0] * 3}, dtype="float32"))
  plan, = plan_merge(config).plans
  entries_ = sum(x.size for x in held["base"].values())
  assert plan.bytes_read == 4 * 2 * entries_ and plan.bytes_written == 4 * entries_
  largest = max(x.size for x in held["base"].values())
  assert plan.budget == 5 * 4 * largest and 2 * WIDTH * WIDTH == largest


def test_neither_engine_nor_command_imports_jax(tmp_path):
  family(tmp_path, count=2, dtype="bfloat16")
  document = recipe("della", count=2, per_model={"weight": [1, 1], "density": [0.5] * 2})
  config = configure(tmp_path / "merge.yaml", document)
  code = "import sys; from jaxft.cli import main; " \
         f"status = main(['merge', '{config}', '-o', '{tmp_path}/out']); " \
         "print(status, [m for m in ('jax', 'jaxlib', 'torch', 'matplotlib', 'scipy') if m in sys.modules])"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
  assert done.stdout.splitlines()[-1] == "0 []", done.stdout + done.stderr
