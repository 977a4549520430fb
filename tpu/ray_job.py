"""A run on a Ray cluster: one process a host or a GPU, which find each other on the first one's address.

    python tpu/ray_job.py [--dry-run] --address http://HOST:8265 --processes 4 --gpus 1 [--venv FOLDER] [--restarts 20]
        -- finetune --model ... --out /shared/runs/n

It submits itself by `ray job submit` (pip install 'ray[default]' on this machine), with this repository as the job's
working directory and the versions of constraints.txt as its environment; with --venv each host has one already, of
tpu/setup.sh. In the cluster it takes a bundle for each process, spread over the hosts, and starts them all again where
one ends with 75 (stopped with everything saved, or one of them lost), by a signal, or with its host. `ray job stop`
sends SIGTERM: the run saves a step and ends. --out and the data must lie where all hosts see them.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESTART = 75  # of jaxft.processes; the machine that submits need not have jaxft
ROOT = Path(__file__).resolve().parents[1]
THERE = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"  # Ray's own name of the working directory on a host
CTRL_C = 130  # 128 + SIGINT: somebody wants it to end
CTRL_C = 130  # somebody wants the run to end
LOST = -1  # in place of an exit status: the host or its worker is gone
COMMANDS = ("finetune", "plan", "evaluate", "generate", "run", "list", "cite", "formats", "fetch", "merge",
            "completion", "convert")
LEFT_OUT = ["/.git", "/.venv*", "/experiments/results", "/tests", "/build"]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--address", help="of the cluster's dashboard; none: RAY_API_SERVER_ADDRESS")
  parser.add_argument("--processes", type=int, required=True)
  parser.add_argument("--gpus", type=float, default=0, help="of each process")
  parser.add_argument("--tpus", type=float, default=0, help="of each process: the chips of a host")
  parser.add_argument("--cpus", type=float, default=1, help="of each process")
  parser.add_argument("--venv", help="of tpu/setup.sh, on every host; none: Ray makes an environment")
  parser.add_argument("--restarts", type=int, default=20)
  parser.add_argument("--dry-run", action="store_true", help="print what would be submitted and run")
  parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the cluster already
  parser.add_argument("command", nargs="+", help="of jaxft, after --")
  options = parser.parse_args(arguments)
  for name, least in {"processes": 1, "gpus": 0, "tpus": 0, "cpus": 0, "restarts": 0}.items():
    if not (given := getattr(options, name)) >= least:  # NaN too
      parser.error(f"--{name} must be at least {least}; got {given}")
  if not options.cpus + options.gpus + options.tpus:
    parser.error("one of --cpus, --gpus, --tpus must be above 0: Ray places a process by what it takes")
  if options.gpus and options.tpus:
    parser.error(f"--gpus and --tpus: a process has one kind of accelerator; got {options.gpus:g} and {options.tpus:g}")
  if options.command[0] not in COMMANDS:
    parser.error(f"the command after -- must be one of {' '.join(COMMANDS)}; got {options.command[0]!r}")
  if not (options.here or options.dry_run or shutil.which("ray")):
    parser.error("ray is not on the PATH; pip install 'ray[default]'")
  return options


def main(arguments: Sequence[str] | None = None) -> int:
  options = parsed(arguments)
  if options.here:
    return run_in_cluster(options)
  command = submission(options, list(sys.argv[1:] if arguments is None else arguments))
  if not options.dry_run:
    return subprocess.run(command).returncode
  print("+", shlex.join(command))
  print(f"+ there {options.processes} times, with {bundle(options)} each, and JAX's variables of its place:")
  print("+", shlex.join([*program(options), *options.command]))
  print(f"+ again at exit status {RESTART}, above 128 or with a host lost, at most {options.restarts} times")
  return 0


def submission(options: argparse.Namespace, arguments: list[str]) -> list[str]:
  """The `ray job submit` of this script itself."""
  accelerator = "tpu" if options.tpus else "cuda12" if options.gpus else ""
  packages = [f"-c {THERE}/constraints.txt", f"jax[{accelerator}]" if accelerator else "jax",
              f"{THERE}[gguf,tensorboard]"]
  environment: dict[str, Any] = {"excludes": LEFT_OUT} | ({} if options.venv else {"pip": packages})
  address = [f"--address={options.address}"] if options.address else []
  return ["ray", "job", "submit", *address, f"--working-dir={ROOT}",
          f"--runtime-env-json={json.dumps(environment)}", "--", "python", "tpu/ray_job.py", "--here", *arguments]


def bundle(options: argparse.Namespace) -> dict[str, float]:
  """What Ray reserves for each process."""
  wanted = {"CPU": options.cpus, "GPU": options.gpus, "TPU": options.tpus}
  return {name: amount for name, amount in wanted.items() if amount}


def program(options: argparse.Namespace) -> list[str]:
  return [f"{options.venv}/bin/jaxft"] if options.venv else ["python", "-m", "jaxft"]


class Process:
  """One process of the run, on the host that Ray gave it."""

  def __init__(self) -> None:
    self._child: subprocess.Popen[bytes] | None = None
    self._stopped = False

  def address(self) -> str:
    """`host:port` that is free here."""
    import ray

    with socket.socket() as s:
      s.bind(("", 0))
      return f"{ray.util.get_node_ip_address()}:{s.getsockname()[1]}"

  def run(self, command: list[str], coordinator: str, count: int, number: int) -> int:
    """The exit status of the command; a signal's as a shell has it, above 128."""
    place = {"JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number)}
    command = [sys.executable, *command[1:]] if command[0] == "python" else command
    self._child = subprocess.Popen(command, env={**os.environ, **place})
    if self._stopped:
      self.stop()
    status = self._child.wait()
    return status if status >= 0 else 128 - status

  def stop(self) -> None:
    """SIGTERM, once: a second one would end the run before its save."""
    if self._child is not None and self._child.poll() is None:
      self._child.send_signal(signal.SIGTERM)
    self._stopped = True


def verdict(statuses: Sequence[int]) -> tuple[int, bool]:
  """`(exit status, whether a new start can help)` of a run whose processes ended so.

  An error of one is the error of all, as jaxft tells it on; what was lost or stopped, 75, comes after that.
  """
  errors = [status for status in statuses if 0 < status <= 128 and status != RESTART or status == CTRL_C]
  if errors:
    return errors[0], False
  again = any(status != 0 for status in statuses)
  return (RESTART if again else 0), again


def repeated(once: Callable[[], list[int]], restarts: int, stopped: Callable[[], bool]) -> int:
  """Runs until it is done, cannot be helped, was stopped, or has been started again so many times."""
  start = 0
  while True:
    status, again = verdict(once())
    if not again or stopped():
      return status
    if start >= restarts:
      print(f"ray_job.py: no more after {restarts} restarts", file=sys.stderr)
      return status
    start += 1
    print(f"ray_job.py: restart {start} of {restarts}", file=sys.stderr, flush=True)


def run_in_cluster(options: argparse.Namespace) -> int:
  import ray
  from ray.util.placement_group import placement_group, remove_placement_group
  from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

  ray.init(log_to_driver=True)
  processes: list[Any] = []
  stops: list[int] = []

  def stop(signum: int, frame: object) -> None:
    del frame
    if not stops and processes:
      processes[0].stop.remote()  # JAX tells the others
    stops.append(signum)

  signal.signal(signal.SIGTERM, stop)

  def once() -> list[int]:
    group = placement_group([bundle(options)] * options.processes, strategy="SPREAD")
    try:
      ray.get(group.ready())
      actor = ray.remote(Process)
      processes[:] = [
          actor.options(
              num_cpus=options.cpus, num_gpus=options.gpus, max_concurrency=2,
              resources={"TPU": options.tpus} if options.tpus else None,
              scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)).remote()
          for i in range(options.processes)]
      coordinator = ray.get(processes[0].address.remote())
      command = [*program(options), *options.command]
      waiting = [p.run.remote(command, coordinator, options.processes, i) for i, p in enumerate(processes)]
      return [_status(ray, one) for one in waiting]
    finally:
      processes.clear()
      remove_placement_group(group)

  return repeated(once, options.restarts, lambda: bool(stops))


def _status(ray: Any, waiting: Any) -> int:
  try:
    return ray.get(waiting)
  except ray.exceptions.RayActorError as e:
    print(f"ray_job.py: a process was lost with its host: {e}", file=sys.stderr, flush=True)
    return LOST


if __name__ == "__main__":
  raise SystemExit(main())
