"""Objects, copies on disk, the lock, and a run's folder, on moto's S3 and an emulator of Google's."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxft.stores import copies, lease, mirror, store
from jaxft.stores.copies import local_copy
from jaxft.stores.lease import Lease
from jaxft.stores.mirror import Mirror, mirrored
from jaxft.stores.store import Store, is_url, url_of


def test_urls():
  assert is_url("gs://bucket/x") and not is_url("hf:org/name") and not is_url("/s3/x") and not is_url("http://x/y")
  for url in ("s3://bucket/a b/c", "gs://bucket"):
    assert url_of(url) == url
  from pathlib import Path
  assert url_of(Path("s3://bucket/run")) == "s3://bucket/run" and url_of(Path("runs/s3")) is None
  with pytest.raises(ValueError, match="must be named as s3://bucket/path or gs://bucket/path; got 's3://'"):
    Store("s3://")
  with pytest.raises(ValueError, match="cannot be a place"):
    Store("s3://No Bucket/x")


def test_objects(at):
  proxy, url = at
  there, beside = Store(url), Store(f"{url}-other")
  content, none = there.read("a")
  assert content is None
  first = there.write("a", b"one", if_version=none)
  assert first and there.write("a", b"two", if_version=none) is None and there.read("a")[0] == b"one"
  content, version = there.read("a")
  assert there.read("a", unless=version) == (None, version)
  assert there.write("a", b"three", if_version=version) and there.read("a", unless=version)[0] == b"three"
  for name in ("d/x", "d/y é", "d2"):
    there.write(name, b"+")
  beside.write("a", b"beside")
  assert there.keys() == ["a", "d/x", "d/y é", "d2"] and there.keys("d/") == ["x", "y é"]
  there.delete_all("d/")
  there.delete("never was")
  assert there.keys() == ["a", "d2"] and beside.keys() == ["a"]
  with pytest.raises(ValueError, match="under"):
    there.delete_all("")
  # A part of the requests is refused: they are tried again.
  proxy.refused, before = 0.3, list(proxy.seen)
  for i in range(20):
    there.write(f"more/{i}", bytes([i]))
  assert [there.read(f"more/{i}")[0] for i in range(20)] == [bytes([i]) for i in range(20)]
  assert proxy.seen[1] > before[1]


def test_a_store_that_is_gone_or_does_not_answer_is_named(at, monkeypatch):
  proxy, url = at
  monkeypatch.setattr(store, "RETRIES", {"max_retries": 2, "initial_delay": "10ms", "max_delay": "10ms"})
  there = Store(url)
  proxy.refused = 1.0
  with pytest.raises(OSError, match=f"{url}/a could not be read: .*2 retry attempts"):
    there.read("a")
  proxy.refused, proxy.delay = 0.0, 3.0
  monkeypatch.setattr(store, "PATIENCE", 0.2)
  with pytest.raises(OSError, match=f"{url}/a could not be written: no answer in 0 s"):
    there.write("a", b"")


def test_copies_are_fetched_once_and_again_what_changed(at):
  proxy, url = at
  Store(url).write("data/train.jsonl", b"one\n")
  Store(url).write("data/test.jsonl", b"two\n")
  file = local_copy(f"{url}/data/train.jsonl")
  assert file.name == "train.jsonl" and file.read_bytes() == b"one\n"
  folder = local_copy(f"{url}/data/")
  assert {p.name: p.read_bytes() for p in folder.glob("*.jsonl")} == {"train.jsonl": b"one\n", "test.jsonl": b"two\n"}
  before = {p: p.stat().st_mtime_ns for p in folder.glob("*.jsonl")}
  assert local_copy(f"{url}/data") == folder
  assert {p: p.stat().st_mtime_ns for p in folder.glob("*.jsonl")} == before
  Store(url).write("data/train.jsonl", b"another\n")
  Store(url).delete("data/test.jsonl")
  (folder / "train.jsonl").write_bytes(b"cut")  # and what was damaged on disk in a way that its size tells
  assert [p.read_bytes() for p in local_copy(f"{url}/data").glob("*.jsonl")] == [b"another\n"]
  with pytest.raises(ValueError, match=f"there is nothing at {url}/dat:"):
    local_copy(f"{url}/dat")


def held_by(there, **holder):
  there.write(Lease.KEY, json.dumps(holder).encode())


def test_one_holder_at_a_time(at, monkeypatch):
  there = Store(at[1])
  first = Lease(there, 0.05)
  first.acquire()
  first.renew()
  # One on another machine that lives: its object changes while somebody waits.
  held_by(there, host="elsewhere", process=7)
  reads, words = there.read, iter(range(100))

  def read(key, **more):
    held_by(there, host="elsewhere", process=7, word=next(words))
    return reads(key, **more)

  monkeypatch.setattr(there, "read", read)
  with pytest.raises(ValueError, match=r"another process \(pid 7 on elsewhere\) trains in"):
    Lease(there, 0.05).acquire()
  monkeypatch.setattr(there, "read", reads)
  with pytest.raises(ValueError, match="pid 7 on elsewhere"):
    first.renew()  # it was taken over
  Lease(there, 0.05).acquire()  # as it does not change any more
  first = Lease(there, 0.05)
  first.acquire()
  first.release()
  assert there.keys() == []


def test_a_bucket_that_is_not_there_is_no_other_process(at):
  url = at[1].replace("bucket", "nobucket", 1)
  with pytest.raises(OSError, match=f"{url}/lock.json could not be "):
    Lease(Store(url), 0.05).acquire()


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_at_once(at, monkeypatch):
  there = Store(at[1])
  dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
  held_by(there, host=lease._host(), process=int(dead.stdout))
  monkeypatch.setattr(lease, "time", None)  # it neither waits nor looks how long
  Lease(there, 10.0).acquire()
  assert json.loads(there.read(Lease.KEY)[0])["process"] == os.getpid()


def files_of(folder):
  return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
          if p.is_file() and not p.name.startswith(".")}


def fill(folder, step, *, config="{}"):
  """A run's folder after so many steps."""
  rng = np.random.default_rng(step)
  (folder / "config.json").write_text(config)
  (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, step + 1)))
  for name in ("state/d/0", "state/manifest", "_METADATA"):
    path = folder / f"checkpoints/{step}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.bytes(50))


def test_a_folder_comes_back_as_it_was(at, tmp_path):
  url = at[1]
  first = Mirror(url)
  first.pull()
  fill(first.folder, 2)
  first.push()
  fill(first.folder, 4)
  (first.folder / ".lock").write_text("mine")
  (first.folder / "checkpoints/6.orbax-checkpoint-tmp").mkdir()
  (first.folder / "checkpoints/6.orbax-checkpoint-tmp/x").write_text("half")
  shutil.rmtree(first.folder / "checkpoints/2")  # by the retention
  (first.folder / "model").mkdir()
  (first.folder / "model/config.json").write_text("{}")
  first.push()
  shutil.rmtree(first.folder / "checkpoints/6.orbax-checkpoint-tmp")
  whole = files_of(first.folder)
  assert "checkpoints/4/state/d/0" in whole and "checkpoints/2.json" not in first.store.keys()
  os.environ["JAXFT_HOME"] = str(tmp_path / "another machine")
  second = Mirror(url)
  second.pull()
  assert second.folder != first.folder and files_of(second.folder) == whole
  # What goes here goes there, but not where somebody has emptied the folder.
  shutil.rmtree(second.folder / "model")
  second.push()
  assert "model/config.json" not in second.store.keys()
  before = second.store.keys()
  shutil.rmtree(second.folder)
  second.push()
  assert second.store.keys() == before


@pytest.mark.parametrize("after", range(1, 9))
def test_whenever_the_copying_is_killed_the_store_holds_a_run(s3_server, at, tmp_path, after, monkeypatch):
  url = at[1]
  if url.startswith("gs"):
    pytest.skip("the order of the writes is the same")
  first = Mirror(url)
  first.pull()
  fill(first.folder, 2)
  first.push()
  before = files_of(first.folder)
  fill(first.folder, 4)
  writes = iter(range(after))
  write = first.store._objects.write

  class Killed(BaseException):
    pass

  class Counting:
    def __getattr__(self, name):
      return getattr(objects, name)

    def write(self, *args, **more):
      if next(writes, None) is None:
        raise Killed
      future = write(*args, **more)
      future.result()  # what is under way as a process is killed may still arrive, and is no object of this test
      return future

  objects, first.store._objects = first.store._objects, Counting()
  try:
    first.push()
    killed = False
  except Killed:
    killed = True
  os.environ["JAXFT_HOME"] = str(tmp_path / "another machine")
  second = Mirror(url)
  second.pull()
  found = files_of(second.folder)
  steps = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
  assert steps == ({"2"} if killed else {"2", "4"})
  assert killed or found == files_of(first.folder)
  assert all(found[name] == content for name, content in before.items() if name.startswith("checkpoints/"))
  # No checkpoint is ahead of its metrics, and half of one is removed.
  assert len(found["metrics.jsonl"].splitlines()) >= max(int(step) for step in steps)
  assert not killed or not second.store.keys("checkpoints/4/")


def test_what_a_killed_process_left_on_disk_counts_where_it_is_further_in_the_same_run(at, capsys):
  url = at[1]
  first = Mirror(url)
  first.pull()
  fill(first.folder, 2)
  first.push()
  fill(first.folder, 4)
  again = Mirror(url)
  again.pull()
  assert "is further than" in capsys.readouterr().err
  assert (again.folder / "checkpoints/4").is_dir()
  again.push()
  assert Mirror(url).store.keys("checkpoints/4/") and "checkpoints/4.json" in again.store.keys()
  fill(again.folder, 6, config='{"another": "run"}')
  Mirror(url).pull()
  assert not (again.folder / "checkpoints/6").exists() and (again.folder / "checkpoints/4").is_dir()


def test_the_configuration_of_a_new_run_never_stands_over_the_checkpoints_of_the_old_one(at, monkeypatch):
  first = Mirror(at[1])
  first.pull()
  fill(first.folder, 4)
  first.push()
  upload, seen = first.store.upload, {}

  def note(folder, names, under=""):
    seen[under or names[0]] = {key for key in first.store.keys("checkpoints/") if "/" not in key}
    return upload(folder, names, under)

  monkeypatch.setattr(first.store, "upload", note)
  fill(first.folder, 6)
  shutil.rmtree(first.folder / "checkpoints/4")  # of the same run: the old one goes when the new one is there
  (first.folder / "config.json").touch()
  os.utime(first.folder / "config.json", ns=(0, first._files["config.json"][0]))
  first.push()
  assert seen["checkpoints/6/"] == {"4.json"} and "checkpoints/4.json" not in first.store.keys()
  shutil.rmtree(first.folder / "checkpoints")
  fill(first.folder, 2, config='{"another": "run"}')
  first.push()
  assert seen["config.json"] == set() and "checkpoints/2.json" in first.store.keys()


def test_a_store_that_goes_away_loses_nothing(at, monkeypatch, capsys):
  proxy, url = at
  monkeypatch.setattr(store, "RETRIES", {"max_retries": 1, "initial_delay": "10ms", "max_delay": "10ms"})
  words = "could not be written.*what was not copied lies in"
  with pytest.raises(OSError, match=words), mirrored(url, every=0.1) as to:
    fill(to, 2)
    proxy.refused = 1.0
    deadline = time.monotonic() + 20
    while "tried again every 0.1 s" not in capsys.readouterr().err and time.monotonic() < deadline:
      time.sleep(0.05)
  assert (to / "checkpoints/2").is_dir()
  proxy.refused = 0.0
  with mirrored(url, every=0.1) as again:
    assert again == to and (to / "checkpoints/2").is_dir()
  assert "checkpoints/2.json" in Store(url).keys() and Lease.KEY not in Store(url).keys() and not to.exists()


def test_who_loses_the_lock_writes_no_more(at, monkeypatch):
  url = at[1]
  stopped = []
  monkeypatch.setattr(mirror.signal, "raise_signal", stopped.append)
  with pytest.raises(ValueError, match="pid 9 on elsewhere"), mirrored(url, every=0.05) as to:
    held_by(Store(url), host="elsewhere", process=9)
    fill(to, 2)
    deadline = time.monotonic() + 20
    while not stopped and time.monotonic() < deadline:
      time.sleep(0.02)
  assert stopped and "checkpoints/2.json" not in Store(url).keys() and Lease.KEY in Store(url).keys()
  assert copies.shown(to) == url
