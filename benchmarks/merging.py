"""Merging beside `mergekit-yaml`: whole processes in alternation, memory, the disk, and growth. `make bench-merging`.

Four bfloat16 checkpoints of SmolLM2-135M's shapes, a base and three with small seeded noise, are merged and written in
float32. Files are in the system's cache for both sides, and for the measure of the disk, which reads and writes as many
bytes as the merge and waits until they are on it.
"""

import argparse
import json
import os
import platform
import re
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

from jaxft.evaluation.result import write_text
from jaxft.models.presets import fetch
from jaxft.models.safetensors import open_checkpoint, save_shards

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
DISK_TARGET = 0.6  # of the disk's rate, for linear


def mergekit() -> str:
  """The command `mergekit-yaml`, beside this Python or where BENCH_MERGEKIT says."""
  command = os.environ.get("BENCH_MERGEKIT") or str(Path(sys.executable).with_name("mergekit-yaml"))
  if shutil.which(command) is None:
    sys.exit(f"benchmark: no {command}; the extra `parity` installs it, BENCH_MERGEKIT names another")
  return command


def timed(command: Sequence[str]) -> dict[str, float]:
  """Seconds and peak memory of a process."""
  with open(os.devnull, "w") as nothing, tempfile.TemporaryFile("w+") as errors:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=nothing, stderr=errors, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    peak = 0
    while process.poll() is None:
      # Not the rusage of the child, which begins with the memory of this process.
      peak = max(peak, _peak(process.pid))
      time.sleep(0.005)
    seconds = time.perf_counter() - start
    if process.returncode:
      errors.seek(0)
      sys.exit(f"benchmark: {' '.join(command)} failed: {errors.read()[-2000:]}")
  return {"seconds": seconds, "peak_bytes": peak}


def _peak(pid: int) -> int:
  try:
    status = Path(f"/proc/{pid}/status").read_text()
  except OSError:  # it has ended
    return 0
  found = re.search(r"VmHWM:\s+(\d+) kB", status)
  return int(found[1]) * 1024 if found else 0


def ours(config: Path, out: Path) -> dict[str, float]:
  return timed([sys.executable, "-m", "jaxft.cli", "merge", str(config), "-o", str(out)])


def theirs(config: Path, out: Path) -> dict[str, float]:
  return timed([mergekit(), str(config), str(out)])


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
  sides: Mapping[str, Callable[[Path, Path], dict[str, float]]] = {"jaxft": ours, "mergekit": theirs}
  for method in METHODS:
    config = configure(folder / f"{method}.yaml", method, 3)
    names = ["m0", "m1", "m2", *(["base"] if METHODS[method][1] else [])]
    inputs = [folder / name / "model.safetensors" for name in names]
    written = 2 * inputs[0].stat().st_size
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    disk = []
    for i in tqdm(range(rounds), desc=method, leave=False):
      disk.append(disk_seconds(inputs, written, folder))
      for name in list(sides) if i % 2 == 0 else reversed(sides):
        shutil.rmtree(folder / f"out-{name}", ignore_errors=True)
        taken[name].append(sides[name](config, folder / f"out-{name}"))
    found = compare(folder / "out-jaxft", folder / "out-mergekit")
    for name in sides:
      shutil.rmtree(folder / f"out-{name}")
    results[method] = {name: _median(runs) for name, runs in taken.items()} | {
        "agreement": None if method in RANDOM else found,
        "disk_seconds": statistics.median(disk), "bytes": sum(f.stat().st_size for f in inputs) + written}
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
    config = configure(place / "linear.yaml", "linear", 2, "bfloat16")
    files = [f for i in range(2) for f in (place / f"m{i}").glob("*.safetensors")]
    runs, disk = [], []
    for _ in tqdm(range(rounds), desc=label, leave=False):
      disk.append(disk_seconds(files, parameters * 2, folder))
      runs.append(ours(config, place / "out"))
      shutil.rmtree(place / "out")
    leaf = 4 * 4 * width * width
    rows.append({"label": label, "parameters": parameters, "bytes": 6 * parameters, "leaf_bytes": leaf,
                 "disk_seconds": statistics.median(disk), **_median(runs)})
    shutil.rmtree(place)
  return rows


def memory(folder: Path) -> list[dict[str, Any]]:
  """Peak memory of our TIES over depth and number of models, with leaves of one size."""
  rows = []
  for depth, count in ((2, 2), (8, 2), (2, 6)):
    place = folder / f"memory-{depth}-{count}"
    make_synthetic(place, width=1024, depth=depth, count=count)
    (place / "m0").rename(place / "base")
    shutil.copytree(place / "m1", place / "m0")
    rows.append({"layers": depth, "models": count, "leaf_bytes": 4 * 4 * 1024 * 1024,
                 **ours(configure(place / "ties.yaml", "ties", count), place / "out")})
    shutil.rmtree(place)
  return rows


def _median(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
  return {"seconds": statistics.median(r["seconds"] for r in runs), "peak_bytes": max(r["peak_bytes"] for r in runs)}


def table(results: Mapping[str, Any]) -> str:
  """The figures for people."""
  rows = [("method", "jaxft", "mergekit 0.1.5", "mergekit / jaxft", "target", "peak memory", "share of the disk's rate",
           "entries that differ, largest difference")]
  for method, row in results["side by side"].items():
    one, other = row["jaxft"], row["mergekit"]
    rows.append((
        method, f"{one['seconds']:.2f} s", f"{other['seconds']:.1f} s", f"{other['seconds'] / one['seconds']:.1f}x",
        f"{TARGETS[method]:.0f}x", f"{one['peak_bytes'] / 1e9:.2f} / {other['peak_bytes'] / 1e9:.2f} GB",
        f"{row['disk_seconds'] / one['seconds']:.0%}",
        "random" if (same := row["agreement"]) is None else
        f"{same['different']:.2%}, {same['largest_difference']:.0e} of the leaf's largest"))
  grown = [("parameters", "seconds", "seconds a GB", "share of the disk's rate", "peak memory", "largest leaf in float32")]
  for row in results["growth"]:
    grown.append((
        f"{row['parameters'] / 1e9:.2f} B", f"{row['seconds']:.2f}", f"{row['seconds'] / row['bytes'] * 1e9:.2f}",
        f"{row['disk_seconds'] / row['seconds']:.0%}", f"{row['peak_bytes'] / 1e9:.2f} GB",
        f"{row['leaf_bytes'] / 1e6:.0f} MB"))
  flat = [("layers", "models", "peak memory", "largest leaf in float32")]
  flat += [(str(r["layers"]), str(r["models"]), f"{r['peak_bytes'] / 1e9:.2f} GB", f"{r['leaf_bytes'] / 1e6:.0f} MB")
           for r in results["memory"]]
  machine = results["machine"]
  disk = results["side by side"]["linear"]
  return "\n".join([
      f"# Merging on {machine['cpus']} cores ({machine['processor']})", "",
      f"Made by `make bench-merging`: medians of {machine['rounds']} whole processes, alternating; three bfloat16 "
      "checkpoints of SmolLM2-135M onto a base, written in float32. The disk reads and writes "
      f"{disk['bytes'] / disk['disk_seconds'] / 1e9:.2f} GB/s (target for linear: {DISK_TARGET:.0%}).", "",
      *_lines(rows), "", "Growth of our linear merge of two bfloat16 models to one:", "", *_lines(grown), "",
      "Our TIES, by depth and number of models:", "", *_lines(flat), ""])


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
  return [f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:])]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
  parser.add_argument("--small", action="store_true", help="leave out the largest models")
  parser.add_argument("--folder", type=Path, default=None, help="where to put checkpoints; default: the temporary folder")
  parser.add_argument("--out", type=Path, default=RESULTS / "merging.json")
  args = parser.parse_args()
  mergekit()
  sizes = [("135M", 1024, 4), ("0.5B", 2048, 4), ("2B", 2048, 15)]
  results: dict[str, Any] = {"machine": {
      "processor": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version(),
      "numpy": np.__version__, "rounds": args.rounds}}
  with tempfile.TemporaryDirectory(dir=args.folder, prefix="merging-") as scratch:
    folder = Path(scratch)
    parts: Mapping[str, Callable[[], Any]] = {
        "side by side": lambda: side_by_side(folder / "smollm2", args.rounds),
        "growth": lambda: growth(folder, args.rounds, sizes[:2] if args.small else sizes),
        "memory": lambda: memory(folder),
    }
    for name, part in parts.items():
      results[name] = part()
      write_text(args.out, json.dumps(results, indent=1) + "\n")  # what is done is kept if the rest is stopped
  write_text(args.out.with_suffix(".md"), table(results))
  print(table(results))


if __name__ == "__main__":
  main()
