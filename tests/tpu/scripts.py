"""The launchers, run as a person would, and as modules."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
TPU = ROOT / "tpu"
SCRIPTS = sorted(TPU.glob("*.sh"))
COMMAND = ("--", "finetune", "--model", "/mnt/my model", "--out", "/mnt/run")


def shell(script, *arguments, status=0, **options):
  command = ["bash", TPU / script, *map(str, arguments)]
  done = subprocess.run(command, text=True, capture_output=True, timeout=60, **options)
  assert done.returncode == status, done.stdout + done.stderr
  return done.stdout + done.stderr


def manifests(*arguments):
  done = subprocess.run([sys.executable, TPU / "manifest.py", *map(str, arguments)], text=True, capture_output=True)
  assert done.returncode == 0, done.stderr
  return list(yaml.safe_load_all(done.stdout))


def refused(script, *arguments):
  """What a launcher says of what no cluster would take; nothing but that."""
  run = [sys.executable] if script.endswith(".py") else ["bash"]
  done = subprocess.run([*run, TPU / script, *map(str, arguments)], text=True, capture_output=True, timeout=60)
  assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr, done.stdout + done.stderr
  return done.stderr


def module_of(name):
  spec = importlib.util.spec_from_file_location(name, TPU / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


GKE = ("gke", "--name", "tune", "--image", "i", "--chip", "v5e", "--topology", "4x4", "--slices", 2, "--spot",
       "--bucket", "gs://b", *COMMAND)
JOB = ("job", "--name", "tune", "--image", "i", "--processes", 4, "--gpus", 1, "--claim", "c", *COMMAND)
RAY = ("--address", "http://h:8265", "--processes", "4", "--gpus", "2", *COMMAND)
VM = ("launch", "--name", "n", "--zone", "z", "--type", "v5litepod-16")
XPK = ("--cluster", "c", "--name", "n", "--image", "i", "--type", "v6e-16")
