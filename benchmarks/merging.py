"""Merging beside `mergekit-yaml`: whole processes in alternation, memory, the disk, and growth. `make bench-merging`.

Four bfloat16 checkpoints of SmolLM2-135M's shapes, a base and three with small seeded noise, are merged and written in
float32. Files are in the system's cache for both sides, and for the measure of the disk, which reads and writes as many
bytes as the merge and waits until they are on it.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import yaml
from tqdm import tqdm

from benchmarks.memory import peak_bytes
from jaxft.files import write_text
from jaxft.formats.presets import fetch
from jaxft.formats.safetensors import open_checkpoint, save_shards

RESULTS = Path(__file__).parent / "results"
NOISE = 0.002  # about what a short fine-tuning moves a weight
METHODS: Mapping[str, tuple[Mapping[str, float], bool]] = {  # parameters of each model; whether there is a base
    "ties": ({"weight": 1.0, "density": 0.2}, True),
    "della": ({"weight": 1.0, "density": 0.5}, True),
    "linear": ({"weight": 1.0}, False),
    "task_arithmetic": ({"weight": 0.4}, True),
}
TARGETS = {"ties": 5.0, "della": 5.0, "linear": 3.0, "task_arithmetic": 3.0}
RANDOM = ("della",)  # both sides draw numbers of their own
PARTS = ("side by side", "growth", "memory")
DISK_TARGET = 0.6  # of the disk's rate, for linear


def mergekit() -> str:
  """The command `mergekit-yaml`, beside this Python or where BENCH_MERGEKIT says."""
  command = os.environ.get("BENCH_MERGEKIT") or str(Path(sys.executable).with_name("mergekit-yaml"))
  if shutil.which(command) is None:
    sys.exit(f"benchmark: no {command}; the extra `parity` installs it, BENCH_MERGEKIT names another")
  return command


def timed(command: Sequence[str]) -> float:
  """Seconds of a process."""
  start = time.perf_counter()
  _run(command)
  return time.perf_counter() - start


def peak_memory(command: Sequence[str]) -> int:
  """The most resident bytes of a process and all that it starts, each at its own peak: what they share counts twice."""
  peaks: dict[int, int] = {}

  def look(process: int) -> None:
    for pid in _family(process):
      peaks[pid] = max(peaks.get(pid, 0), peak_bytes(pid))

  _run(command, look)
  return sum(peaks.values())


def _run(command: Sequence[str], look: Callable[[int], None] | None = None) -> None:
  with open(os.devnull, "w") as nothing, tempfile.TemporaryFile("w+") as errors:
    process = subprocess.Popen(command, stdout=nothing, stderr=errors, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    while look is not None and process.poll() is None:
      look(process.pid)
      time.sleep(0.005)
    if process.wait():
      errors.seek(0)
      sys.exit(f"benchmark: {' '.join(command)} failed: {errors.read()[-2000:]}")


def _family(pid: int) -> list[int]:
  """A process and its descendants."""
  try:
    children = [int(n) for file in Path(f"/proc/{pid}/task").glob("*/children") for n in file.read_text().split()]
  except OSError:  # it has ended
    children = []
  return [pid, *(found for child in children for found in _family(child))]


def ours(config: Path, out: Path) -> list[str]:
  return [sys.executable, "-m", "jaxft", "merge", str(config), "-o", str(out)]


def theirs(config: Path, out: Path) -> list[str]:
  return [mergekit(), str(config), str(out)]


SIDES: Mapping[str, Callable[[Path, Path], list[str]]] = {"jaxft": ours, "mergekit": theirs}


def disk_seconds(files: Sequence[Path], written: int, scratch: Path) -> float:
  """Seconds to read files and to write so many bytes that they are on the disk: two threads, as the merge has."""
  from concurrent.futures import ThreadPoolExecutor

  piece = np.random.default_rng(0).bytes(1 << 22)

  def read(file: Path) -> None:
    buffer = bytearray(1 << 22)
    with open(file, "rb", buffering=0) as f:
      while f.readinto(buffer):
        pass

  def write() -> None:
    with open(scratch / "bytes", "wb", buffering=0) as f:
      for start in range(0, written, len(piece)):
        f.write(piece[:written - start])
      os.fsync(f.fileno())

  start = time.perf_counter()
  with ThreadPoolExecutor(2) as pool:
    done = [pool.submit(write), *(pool.submit(read, file) for file in files)]
    for future in done:
      future.result()
  seconds = time.perf_counter() - start
  (scratch / "bytes").unlink()
  return seconds


def make_family(folder: Path) -> None:
  """`base` and `m0` to `m2` in bfloat16."""
  source = fetch("smollm2-135m")
  checkpoint = open_checkpoint(source)
  for i, name in enumerate(("base", "m0", "m1", "m2")):
    rng = np.random.default_rng(i)
    noise = lambda shape: NOISE * rng.standard_normal(shape, np.float32) if i else 0
    tensors = {n: (checkpoint.view(n) + noise(info.shape)).astype(ml_dtypes.bfloat16)
               for n, info in checkpoint.tensors.items()}
    _write(folder / name, tensors, source)


def make_synthetic(folder: Path, *, width: int, depth: int, count: int, copies_of: Path | None = None) -> int:
  """Models of random bfloat16 in matrices `[4 width, width]`, eight a layer; returns the parameters of one.

  Args:
    folder: that will hold `m0`, `m1`, ...
    width: of the model.
    depth: layers.
    count: models.
    copies_of: a folder with a config.json.
  """
  rng = np.random.default_rng(0)
  one = rng.standard_normal((4 * width, width), np.float32)
  for i in range(count):
    matrix = (one + NOISE * i).astype(ml_dtypes.bfloat16)
    _write(folder / f"m{i}", {f"layers.{k // 8}.part{k % 8}.weight": matrix for k in range(8 * depth)}, copies_of)
  return 8 * depth * one.size


def _write(folder: Path, tensors: Mapping[str, Any], source: Path | None) -> None:
  folder.mkdir(parents=True)
  save_shards(tensors, folder, metadata={"format": "pt"})
  if source is not None:
    for file in source.glob("*.json"):
      shutil.copy(file, folder)


def configure(path: Path, method: str, count: int, dtype: str = "float32") -> Path:
  parameters, based = METHODS[method]
  document: dict[str, Any] = {"merge_method": method, "dtype": dtype, "models": [
      {"model": str(path.parent / f"m{i}"), "parameters": dict(parameters)} for i in range(count)]}
  path.write_text(yaml.safe_dump(document | ({"base_model": str(path.parent / "base")} if based else {})))
  return path


def side_by_side(folder: Path, rounds: int) -> dict[str, Any]:
  """Each method by both programs in alternation, and the disk's seconds for the bytes of each method."""
  make_family(folder)
  results: dict[str, Any] = {}
  for method in METHODS:
    config = configure(folder / f"{method}.yaml", method, 3)
    names = ["m0", "m1", "m2", *(["base"] if METHODS[method][1] else [])]
    inputs = [folder / name / "model.safetensors" for name in names]
    written = 2 * inputs[0].stat().st_size
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    disk = []
    for i in tqdm(range(rounds), desc=method, leave=False):
      disk.append(disk_seconds(inputs, written, folder))
      for name in list(SIDES) if i % 2 == 0 else reversed(SIDES):
        shutil.rmtree(folder / f"out-{name}", ignore_errors=True)
        taken[name].append(timed(SIDES[name](config, folder / f"out-{name}")))
    found = compare(folder / "out-jaxft", folder / "out-mergekit")
    for name in SIDES:
      shutil.rmtree(folder / f"out-{name}")
    results[method] = {name: {"seconds": statistics.median(runs)} for name, runs in taken.items()} | {
        "agreement": None if method in RANDOM else found,
        "disk_seconds": statistics.median(disk), "bytes": sum(f.stat().st_size for f in inputs) + written}
  shutil.rmtree(folder)
  return results


def compare(ours: Path, theirs: Path) -> dict[str, float]:
  """Whether two outputs are the same: the share of entries that differ, and by how much, relative to their leaf."""
  one, other = open_checkpoint(ours), open_checkpoint(theirs)
  if one.tensors.keys() != other.tensors.keys():
    sys.exit(f"benchmark: the outputs hold other tensors: {sorted(one.tensors.keys() ^ other.tensors.keys())}")
  different, total, largest = 0, 0, 0.0
  for name in one.tensors:
    a, b = one.view(name), other.view(name)
    different += int(np.count_nonzero(a != b))
    total += a.size
    largest = max(largest, float(np.max(np.abs(a - b)) / np.max(np.abs(b))))
  return {"different": different / total, "largest_difference": largest}


def growth(folder: Path, rounds: int, sizes: Sequence[tuple[str, int, int]]) -> list[dict[str, Any]]:
  """Seconds and memory of our linear merge of two models from small to large, bfloat16 in and out."""
  rows = []
  for label, width, depth in sizes:
    place = folder / label
    parameters = make_synthetic(place, width=width, depth=depth, count=2)
    command = ours(configure(place / "linear.yaml", "linear", 2, "bfloat16"), place / "out")
    files = [f for i in range(2) for f in (place / f"m{i}").glob("*.safetensors")]
    runs, disk = [], []
    for _ in tqdm(range(rounds), desc=label, leave=False):
      disk.append(disk_seconds(files, parameters * 2, folder))
      runs.append(timed(command))
      shutil.rmtree(place / "out")
    rows.append({"label": label, "parameters": parameters, "bytes": 6 * parameters, "leaf_bytes": _leaf_bytes(width),
                 "disk_seconds": statistics.median(disk), "seconds": statistics.median(runs)})
    shutil.rmtree(place)
  return rows


def memory(folder: Path, sizes: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
  """Peak memory of both sides, over size, and over depth and models; in runs of its own, as measuring takes time."""
  family = folder / "smollm2"
  make_family(family)
  sides: dict[str, Any] = {}
  for method in tqdm(METHODS, desc="memory", leave=False):
    config = configure(family / f"{method}.yaml", method, 3)
    sides[method] = {name: peak_memory(side(config, family / f"out-{name}")) for name, side in SIDES.items()}
    for name in SIDES:
      shutil.rmtree(family / f"out-{name}")
  shutil.rmtree(family)

  def synthetic(method: str, width: int, depth: int, count: int) -> int:
    place = folder / "synthetic"
    make_synthetic(place, width=width, depth=depth, count=count)
    if METHODS[method][1]:
      (place / "m0").rename(place / "base")
      shutil.copytree(place / "m1", place / "m0")
    found = peak_memory(ours(configure(place / "merge.yaml", method, count, "bfloat16"), place / "out"))
    shutil.rmtree(place)
    return found

  grown = {label: synthetic("linear", width, depth, 2) for label, width, depth in sizes}
  flat = [{"layers": depth, "models": count, "leaf_bytes": _leaf_bytes(1024),
           "peak_bytes": synthetic("ties", 1024, depth, count)} for depth, count in ((2, 2), (8, 2), (2, 6))]
  return {"side by side": sides, "growth": grown, "depth": flat}


def _leaf_bytes(width: int) -> int:
  """Of a matrix of `make_synthetic`, in float32."""
  return 4 * 4 * width * width


def table(results: Mapping[str, Any]) -> str:
  """The figures for people."""
  rows = [("method", "jaxft", "mergekit 0.1.5", "mergekit / jaxft", "target", "peak memory", "share of the disk's rate",
           "entries that differ, largest difference")]
  for method, row in results["side by side"].items():
    one, other = row["jaxft"], row["mergekit"]
    peak = results["memory"]["side by side"][method]
    rows.append((
        method, f"{one['seconds']:.2f} s", f"{other['seconds']:.1f} s", f"{other['seconds'] / one['seconds']:.1f}x",
        f"{TARGETS[method]:.0f}x", f"{peak['jaxft'] / 1e9:.2f} / {peak['mergekit'] / 1e9:.2f} GB",
        f"{row['disk_seconds'] / one['seconds']:.0%}",
        "random" if (same := row["agreement"]) is None else
        f"{same['different']:.2%}, {same['largest_difference']:.0e} of the leaf's largest"))
  grown = [("parameters", "seconds", "seconds a GB", "share of the disk's rate", "peak memory",
            "largest leaf in float32")]
  for row in results["growth"]:
    grown.append((
        f"{row['parameters'] / 1e9:.2f} B", f"{row['seconds']:.2f}", f"{row['seconds'] / row['bytes'] * 1e9:.2f}",
        f"{row['disk_seconds'] / row['seconds']:.0%}", f"{results['memory']['growth'][row['label']] / 1e9:.2f} GB",
        f"{row['leaf_bytes'] / 1e6:.0f} MB"))
  flat = [("layers", "models", "peak memory", "largest leaf in float32")]
  flat += [(str(r["layers"]), str(r["models"]), f"{r['peak_bytes'] / 1e9:.2f} GB", f"{r['leaf_bytes'] / 1e6:.0f} MB")
           for r in results["memory"]["depth"]]
  machine = results["machine"]
  disk = results["side by side"]["linear"]
  return "\n".join([
      f"# Merging on {machine['cpus']} cores ({machine['processor']})", "",
      f"Made by `make bench-merging`: medians of {machine['rounds']} whole processes, alternating; three bfloat16 "
      "checkpoints of SmolLM2-135M onto a base, written in float32. The disk reads and writes "
      f"{disk['bytes'] / disk['disk_seconds'] / 1e9:.2f} GB/s (target for linear: {DISK_TARGET:.0%}). Peak memory is "
      "the sum over a program's processes, from runs of their own.", "",
      *_lines(rows), "", "Growth of our linear merge of two bfloat16 models to one:", "", *_lines(grown), "",
      "Our TIES, by depth and number of models:", "", *_lines(flat), ""])


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
  return [f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:])]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
  parser.add_argument("--small", action="store_true", help="leave out the largest models")
  parser.add_argument("--folder", type=Path, default=None, help="where checkpoints go; default: the temporary folder")
  parser.add_argument("--out", type=Path, default=RESULTS / "merging.json")
  parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="the others stay as the file has them")
  args = parser.parse_args()
  mergekit()
  sizes = [("135M", 1024, 4), ("0.5B", 2048, 4), ("2B", 2048, 15)]
  sizes = sizes[:2] if args.small else sizes
  results: dict[str, Any] = {}
  if set(args.parts) != set(PARTS):
    if not args.out.exists():
      parser.error(f"--parts must name all of {', '.join(PARTS)} where {args.out} does not exist yet")
    results = json.loads(args.out.read_text())
  if "side by side" in args.parts:  # what the table says of the machine is said of these times
    results["machine"] = {
        "processor": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version(),
        "numpy": np.__version__, "rounds": args.rounds}
  with tempfile.TemporaryDirectory(dir=args.folder, prefix="merging-") as scratch:
    folder = Path(scratch)
    parts: Mapping[str, Callable[[], Any]] = {
        "side by side": lambda: side_by_side(folder / "smollm2", args.rounds),
        "growth": lambda: growth(folder, args.rounds, sizes),
        "memory": lambda: memory(folder, sizes),
    }
    for name in args.parts:
      results[name] = parts[name]()
      write_text(args.out, json.dumps(results, indent=1) + "\n")  # what is done is kept if the rest is stopped
  write_text(args.out.with_suffix(".md"), table(results))
  print(table(results))


if __name__ == "__main__":
  main()
