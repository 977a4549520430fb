"""Starting as one of the processes of a run under `jax.distributed`, and ending together.

Where this process stands comes from its options, from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
from the cluster as JAX detects it: a TPU slice or several, SLURM, Open MPI.
"""

import contextlib
import dataclasses
import faulthandler
import os
import signal
from collections.abc import Mapping

from jaxft.roll_call import GRACE, RollCall, end_process

# The exit status of a run that was stopped with everything saved, or lost one of its processes: start it again. It is
# EX_TEMPFAIL of sysexits.h; every other one that is not 0 says that a new start would end the same way.
RESTART = 75

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# Of JAX's detectors those that ask nothing outside; Kubernetes' own needs rights in the cluster, so its manifests set
# the variables.
CLUSTERS = ("gketpu", "gcetpu", "slurm", "ompi")


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a process stands in its run.

  Attributes:
    coordinator: `host:port` of process 0.
    count: number of processes.
    process: number of this one.
    devices: those of this machine's devices that are its own; None takes all.
  """

  coordinator: str
  count: int
  process: int
  devices: tuple[int, ...] | None = None


def place_of(
    coordinator: str | None = None, count: int | None = None, process: int | None = None, *, timeout: float = 300.0,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
  """The place that options, else the environment, else the cluster give; None where there is one process.

  >>> place_of("10.0.0.1:8476", 4, 2)
  Place(coordinator='10.0.0.1:8476', count=4, process=2, devices=None)
  >>> place_of(environment={"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}).count
  2

  Args:
    coordinator, count, process: see `Place`; all three, or none to find out. `count=1` is one process wherever it runs.
    timeout: seconds that a cluster may take to know its hosts.
    environment: the variables.

  Raises:
    ValueError: some of the three are given and others not, or are out of range.
  """
  if count == 1 and coordinator is None and process is None:
    return None
  given = (coordinator, count, process)
  if all(value is None for value in given):
    values = [environment.get(name) for name in VARIABLES]
    if any(value is not None for value in values):
      if any(value is None for value in values):
        absent = [name for name, value in zip(VARIABLES, values, strict=True) if value is None]
        raise ValueError(f"{', '.join(VARIABLES)} go together; got no {', '.join(absent)}")
      coordinator = values[0]
      count, process = (_whole(name, value) for name, value in zip(VARIABLES[1:], values[1:], strict=True))
    else:
      return _detected(timeout)
  if coordinator is None or count is None or process is None:
    names = ("--coordinator", "--processes", "--process")
    absent = [name for name, value in zip(names, given, strict=True) if value is None]
    raise ValueError(f"{', '.join(names)} go together; got no {', '.join(absent)}")
  if count < 1 or not 0 <= process < count:
    raise ValueError(f"process must be a number from 0 to processes - 1; got {process} of {count}")
  return None if count == 1 else Place(coordinator, count, process)


def _whole(name: str, text: str | None) -> int:
  if text is None or not text.isdecimal():
    raise ValueError(f"{name} must be a whole number; got {text!r}")
  return int(text)


def _detected(timeout: float) -> Place | None:
  # JAX has no public way to ask without starting at once, and a start that lacks a process ends in an abort.
  from jax._src.clusters import ClusterEnv

  for cluster in ClusterEnv._cluster_types:
    if cluster.name in CLUSTERS and cluster.is_env_present():
      count = cluster.get_process_count()
      if count == 1:
        return None
      address = cluster.get_coordinator_address(int(timeout), os.environ.get("JAX_COORDINATOR_PORT"))
      own = None if "tpu" in cluster.name else cluster.get_local_process_id()
      return Place(address, count, cluster.get_process_id(), None if own is None else (own,))
  return None


_joined: RollCall | None = None


def join(place: Place | None, *, timeout: float = 300.0, heartbeat: float = 60.0) -> None:
  """Starts `jax.distributed` once all processes are there; without a place, does nothing but the first line below.

  SIGUSR1 makes any process write where all of its threads stand to standard error, without ending it; SIGUSR2 has a
  run trace its next steps (`jaxft.training.traces`).

  Args:
    place: of this process; see `place_of`.
    timeout: seconds to wait for all processes.
    heartbeat: seconds of silence after which a process is taken for dead. One that dies on a machine that lives is
      noticed at once; the others then end within `roll_call.GRACE` seconds, with the status RESTART and its name.

  Raises:
    ProcessLost: not all are there in time; names those that are missing.
    ValueError: two have the same number, or they do not agree on how many they are.
  """
  global _joined
  with contextlib.suppress(AttributeError, OSError, ValueError):  # no such signal, or standard error is no file
    faulthandler.register(signal.SIGUSR1, all_threads=True)
  if place is None:
    return
  if _joined is not None:
    raise ValueError("a process joins one run; this one has joined one already")
  for name, value in (("timeout", timeout), ("heartbeat", heartbeat)):
    if not value > 0:
      raise ValueError(f"{name} must be above 0 seconds; got {value}")
  call = RollCall(place.coordinator, place.count, place.process, timeout=timeout, heartbeat=heartbeat)
  call.watch(_end_with_it)
  _joined = call
  import jax

  jax.distributed.initialize(
      place.coordinator, place.count, place.process,
      local_device_ids=None if place.devices is None else list(place.devices), cluster_detection_method="deactivate",
      # Later than the roll call, which names whom it misses; JAX's own end is an abort.
      initialization_timeout=max(60, int(timeout)), heartbeat_timeout_seconds=max(10, int(2 * heartbeat)))


def joined() -> bool:
  """Whether this process has joined a run of several."""
  return _joined is not None


def _end_with_it(status: int | None, why: str) -> None:
  end_process(*_verdict(status, why))


def _verdict(status: int | None, why: str) -> tuple[int, str]:
  """The status and the line with which this process ends, where another ended with that status or was lost."""
  if status is None:
    return RESTART, f"jaxft: {why}; the same command resumes from the last checkpoint (exit status {RESTART})"
  return status, f"jaxft: {why}"


def finish(status: int, said: str | None, *, fault: bool) -> tuple[int, str | None]:
  """The status and the line with which this process ends, having told the others; (status, said) where it is alone.

  Args:
    status: with which it would end.
    said: its line on standard error; None has been written already, or there is none.
    fault: whether an error ended it. Errors of communication come from the death of another, which is then what counts.
  """
  global _joined
  call, _joined = _joined, None
  if call is None:
    return status, said
  if not fault:
    call.leave()
    return status, said
  other = call.ended(wait=2.0)
  if other is None:
    call.tell(status, said or f"exit status {status}")
  else:
    status, said = _verdict(*other)
  call.see_off(2 * GRACE)
  end_process(status, said or "")
  return status, said

