"""Checkpoints: the state, the position in the data and the configuration, saved together and restored only together.

The order of resuming, in `jaxft.training.fit`:
1. the run's own newest checkpoint;
2. otherwise the state it was given, which may come from another run: `Checkpoints(other).restore(state)`;
3. otherwise that state is fresh from `init_state`.

Saving is asynchronous and atomic (Orbax): a checkpoint appears under its final name only when it is complete, so that
a kill at any time leaves the one before. What is frozen is not saved: it is split again from the same params.

Files can be damaged later, and most of their bits decode to some number whatever they are. Each checkpoint holds
checksums of its arrays, taken on the device from what is saved, and of the rest; what is read is held against them.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import Any, TypeVar, overload

import jax
import orbax.checkpoint as ocp
from etils import epath

from jaxft.signatures import explain_errors
from jaxft.together import all_of, is_first, wait_for_all
from jaxft.training.checksums import checksum, checksums, json_checksum, kind_of
from jaxft.training.state import TrainState
from jaxft.tree.paths import path_of

Tree = Any
Json = dict[str, Any]
T = TypeVar("T")

logger = logging.getLogger(__name__)


class Checkpoints:
  """A folder of checkpoints, one subfolder a step.

  Args:
    folder: made where it is missing; any path that Orbax takes, such as `gs://bucket/run`.
    max_to_keep: older ones are deleted; None keeps all.
    configuration: what the run was made from, stored with each checkpoint for its readers; JSON values.
    fingerprint: what must be equal for a checkpoint to be restored; JSON values. The shapes and dtypes of the state and
      a checksum of what is frozen are added by `fit`.

  Raises:
    OSError: the folder cannot be made or written.
  """

  def __init__(
      self,
      folder: str | os.PathLike[str],
      *,
      max_to_keep: int | None = 3,
      configuration: Json | None = None,
      fingerprint: Json | None = None,
  ):
    self.folder = epath.Path(folder)
    if "://" not in os.fspath(folder):
      self.folder = epath.Path(os.path.abspath(folder))  # Orbax takes no relative path
    self.configuration = configuration or {}
    self.fingerprint = fingerprint or {}
    self._options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, enable_async_checkpointing=True, cleanup_tmp_directories=True)
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._manager = self._open()
    except OSError as e:
      raise OSError(f"checkpoints cannot be written to {self.folder}: {e}") from e

  def __repr__(self) -> str:
    steps = ", ".join(map(str, self.steps)) or "none"
    return f"Checkpoints({os.fspath(self.folder)!r}, steps: {steps})"

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(self.folder, options=self._options, item_names=("state", "run"))

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *error: Any) -> None:
    self.close()

  @property
  def latest(self) -> int | None:
    """The step of the newest checkpoint, one still being saved included; None where there is none."""
    return self._manager.latest_step()

  @property
  def steps(self) -> list[int]:
    """The steps of all checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def require(self, more: Json) -> None:
    """Adds entries to the fingerprint, which must be equal for a checkpoint to be restored."""
    self.fingerprint = {**self.fingerprint, **more}

  def save(self, state: TrainState, position: Any = None) -> None:
    """Starts saving and returns as soon as the state has left the device; `wait` for the end.

    Args:
      state: the state after `state.step` steps.
      position: of the iterator over the data; JSON values.

    Raises:
      OSError: this save could not start or the one before it failed; checkpoints already complete are untouched.
    """
    step, flat = int(state.step), _flat(state)
    run = _as_json({"position": position, "configuration": self.configuration, "fingerprint": self.fingerprint,
                    "state": checksums(flat)})
    sealed = {**run, "checksum": json_checksum(run)}
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(flat), run=ocp.args.JsonSave(sealed))
    try:
      self._manager.save(step, args=args, force=True)
    except Exception as e:
      raise self._unwritten(e) from e

  def wait(self) -> None:
    """Waits for the save under way.

    Raises:
      OSError: it failed; the last complete checkpoint is named.
    """
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      raise self._unwritten(e) from e

  @overload
  def restore(self) -> tuple[dict[str, Any], Json]: ...

  @overload
  def restore(self, state: TrainState) -> tuple[TrainState, Any] | None: ...

  def restore(self, state: TrainState | None = None) -> Any:
    """Reads the newest checkpoint that can be read, onto the devices and shardings of `state`.

    A checkpoint that cannot be read (cut short or damaged, were it by one bit) is set aside as `unreadable-<step>` with
    a warning, and the one before it is taken.

    Args:
      state: says the structure, dtypes and shardings; arrays or shapes. The number of devices may differ from the
        number at saving. Without it the newest checkpoint is read as it is; see `read`.

    Returns:
      `(state, position)`, or None where there is no checkpoint.

    Raises:
      ValueError: the checkpoint has another fingerprint (the keys that differ are named) or other arrays, or none can
        be read.
    """
    if state is None:
      return self.read()
    failed = []
    for step in reversed(self.steps):
      run, e = _tried(lambda step=step: self._read_run(step))
      if run is None:
        failed.append((step, e))
        continue
      self._check(step, run["fingerprint"])
      target = _flat(jax.tree.map(_shape, state))
      self._check_kinds(step, run["state"], target)
      flat, e = _tried(lambda step=step, run=run, target=target: self._read_state(step, run["state"], target))
      if flat is None:
        failed.append((step, e))
        continue
      self._set_aside(failed)
      return _unflat(flat, state), run["position"]
    if failed:
      reasons = "; ".join(f"step {step}: {_first_line(e)}" for step, e in failed)
      raise ValueError(f"none of the checkpoints in {self.folder} can be read: {reasons}")
    return None

  def read(self, step: int | None = None) -> tuple[dict[str, Any], Json]:
    """The arrays of a checkpoint by path and what it was made from, whatever run it is of; onto the host.

        arrays, configuration = Checkpoints("runs/chat/checkpoints").read()
        arrays["trainable.layers.mlp.up.kernel.a"], configuration["rank"]

    Args:
      step: None takes the newest.

    Raises:
      ValueError: there is none, or none of that step, or it is damaged.
    """
    if not self.steps or step is not None and step not in self.steps:
      raise ValueError(f"{self.folder} holds the checkpoints of the steps {self.steps}; got {step}")
    step = self.steps[-1] if step is None else step
    try:
      run = self._read_run(step)
      target = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in _kinds(run["state"]).items()}
      return self._read_state(step, run["state"], target), run["configuration"]
    except Exception as e:
      raise ValueError(f"the checkpoint of step {step} in {self.folder} cannot be read: {_first_line(e)}") from None

  def _read_run(self, step: int) -> Json:
    run = dict(self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"])
    said = run.pop("checksum", None)
    if said is None:
      raise ValueError("it holds no checksum: it is damaged, or of a version that wrote none")
    if said != json_checksum(run):
      raise ValueError("the checksum of its run metadata is another: it is damaged")
    return run

  def _read_state(self, step: int, saved: dict[str, str], target: dict[str, Any]) -> dict[str, Any]:
    args = ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
    flat = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
    read = checksums(flat)
    damaged = [name for name in saved if read[name] != saved[name]]
    if damaged:
      raise ValueError(f"the checksums of {len(damaged)} of its {len(saved)} arrays are others: it is damaged, at "
                       + ", ".join(damaged[:3]) + (", ..." if len(damaged) > 3 else ""))
    return flat

  def close(self) -> None:
    """Waits for the save under way and lets the folder go."""
    self.wait()
    self._manager.close()

  def _check(self, step: int, saved: Json) -> None:
    wanted = _as_json(self.fingerprint)
    differ = [k for k in {**saved, **wanted} if k not in saved or k not in wanted or saved[k] != wanted[k]]
    if differ:
      shown = "; ".join(f"{k}: {saved.get(k, 'absent')} there, {wanted.get(k, 'absent')} here" for k in differ[:8])
      raise ValueError(f"the checkpoint of step {step} in {self.folder} belongs to another run; {len(differ)} keys "
                       f"differ: {shown}. Use another folder to start anew")

  def _check_kinds(self, step: int, saved: dict[str, str], target: dict[str, Any]) -> None:
    there = {name: kind.rpartition(":")[0] for name, kind in saved.items()}
    here = {name: kind_of(x) for name, x in target.items()}
    differ = [k for k in {**there, **here} if there.get(k) != here.get(k)]
    if differ:
      shown = "; ".join(f"{k}: {there.get(k, 'absent')} there, {here.get(k, 'absent')} here" for k in differ[:8])
      raise ValueError(f"the checkpoint of step {step} in {self.folder} holds other arrays than state; {len(differ)} "
                       f"differ: {shown}")

  def _set_aside(self, failed: list[tuple[int, Exception]]) -> None:
    for step, e in failed:
      aside = self.folder / f"unreadable-{step}"
      if is_first():  # all processes read the same and agree on it
        logger.warning("checkpoint %s cannot be read and is set aside as %s: %s",
                       self.folder / str(step), aside.name, _first_line(e))
        (self.folder / str(step)).rename(aside)
    if failed:
      wait_for_all("unreadable checkpoints set aside")
      self._manager.reload()

  def _unwritten(self, e: Exception) -> OSError:
    free = ""
    if "://" not in str(self.folder) and self.folder.exists():
      free = f" ({shutil.disk_usage(str(self.folder)).free / 2**20:.0f} MiB are free there)"
    if jax.process_count() == 1:  # of several, the one that failed ends, and the others with it
      self._sweep()
      self._manager = self._open()  # the old one would report the same failure at every later save
    last = f"{self.folder / str(self.steps[-1])} is the last complete one" if self.steps else "none is complete"
    return OSError(f"a checkpoint could not be written to {self.folder}{free}: {_first_line(e)}; {last}")

  def _sweep(self) -> None:
    """Removes what the failed save left. Its threads may still be writing there, so a removal can need several tries;
    left to the next save, one that comes too early would fail that save too."""
    if "://" in str(self.folder):
      return
    for left in self.folder.glob("*.orbax-checkpoint-tmp*"):
      for _ in range(50):
        shutil.rmtree(left, ignore_errors=True)
        if not left.exists():
          break
        time.sleep(0.1)


def _tried(read: Callable[[], T]) -> tuple[T | None, Exception]:
  """What was read, None where a process of the run could not read its part, and this one's error."""
  result, error = None, Exception("another process cannot read its part")
  try:
    result = read()
  except Exception as e:
    error = e
  return (result if all_of(result is not None) else None), error


def _first_line(e: Exception) -> str:
  return (str(e).strip().splitlines() or [type(e).__name__])[0][:300]


def _kinds(saved: dict[str, str]) -> dict[str, tuple[tuple[int, ...], str]]:
  """Shape and dtype of each array, from what `checksums` wrote: `float32[2, 3]:0f...`."""
  out = {}
  for name, said in saved.items():
    dtype, _, shape = said.rpartition(":")[0].partition("[")
    out[name] = (tuple(int(size) for size in shape.rstrip("]").split(",") if size.strip()), dtype)
  return out


def _as_json(x: Any) -> Any:
  return json.loads(json.dumps(x))


def _shape(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def _flat(state: TrainState) -> dict[str, Any]:
  """The state's arrays by path, the typed key as its words: what is on disk depends on no Python class."""
  leaves = jax.tree_util.tree_flatten_with_path(state._replace(key=_words(state.key)))[0]
  flat = {jax.tree_util.keystr(keys, simple=True, separator="."): x for keys, x in leaves}
  if len(flat) < len(leaves):
    raise ValueError("two arrays of the state have the same path joined by dots; rename a key of the params")
  return flat


def _words(key: Any) -> Any:
  if not isinstance(key, jax.ShapeDtypeStruct):
    return jax.random.key_data(key)
  words = jax.eval_shape(jax.random.key_data, key)
  return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=key.sharding)


def _unflat(flat: dict[str, Any], like: TrainState) -> TrainState:
  leaves = [flat[name] for name in _flat(jax.tree.map(_shape, like))]
  state = jax.tree.unflatten(jax.tree.structure(like), leaves)
  return state._replace(key=jax.random.wrap_key_data(state.key, impl=jax.random.key_impl(like.key)))


@explain_errors
def fingerprint_of(state: TrainState, frozen: Tree) -> Json:
  """Shapes and dtypes of the state by path, the key's kind, and a checksum of what is frozen.

  >>> state = TrainState(jnp.array(0), {"up": jnp.ones((2, 3))}, {}, jax.random.key(0))
  >>> before, after = (fingerprint_of(state, {"down": jnp.full(2, x)}) for x in (1.0, 2.0))
  >>> before["state/trainable/up"], before["frozen"] == after["frozen"]
  ('float32[2, 3]', False)

  Args:
    state, frozen: of `init_state`.
  """
  shapes = {f"state/{path_of(keys)}": f"{x.dtype}{list(x.shape)}"
            for keys, x in jax.tree_util.tree_flatten_with_path(state)[0]}
  return {**shapes, "frozen": checksum(frozen)}
