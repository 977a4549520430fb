"""Processes find each other, name who is missing, and notice who is gone; here as threads, over real sockets."""

import socket
import threading
import time

import pytest

from jaxft import roll_call
from jaxft.cli.processes import Options, status_of_all, take
from jaxft.processes import RESTART, Place, finish, place_of
from jaxft.roll_call import ProcessLost, RollCall


@pytest.fixture
def address():
  return f"127.0.0.1:{roll_call.free_port()}"


def called(address, *numbers, count=3, timeout=10.0, heartbeat=10.0):
  """What became of the processes with these numbers: a `RollCall` each, or its error."""
  found = [None] * len(numbers)

  def join(at, number):
    try:
      found[at] = RollCall(address, count, number, timeout=timeout, heartbeat=heartbeat)
    except Exception as e:
      found[at] = e

  threads = [threading.Thread(target=join, args=pair) for pair in enumerate(numbers)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(timeout=30)
  return found


def hang_up(call):
  """As the kernel does for a process that was killed."""
  for line in call._lines.values():
    line.socket.shutdown(socket.SHUT_RDWR)


def watched(calls, monkeypatch):
  monkeypatch.setattr(roll_call, "GRACE", 0.0)
  ends = {}
  for call in calls:
    call.watch(lambda status, why, call=call: ends.setdefault(call.process, (status, why)))
  return ends


def wait_until(done):
  deadline = time.monotonic() + 20
  while not done() and time.monotonic() < deadline:
    time.sleep(0.01)
  assert done()


def test_all_know_the_hosts_of_all_and_the_port_is_free_for_the_coordinator(address):
  calls = called(address, 2, 0, 1)
  assert all(call.hosts == {i: socket.gethostname() for i in range(3)} for call in calls)
  host, port = address.split(":")
  with socket.create_server((host, int(port))):
    pass


def test_a_process_that_never_starts_is_named_to_all(address):
  for error in called(address, 0, 2, count=4, timeout=0.5):
    assert isinstance(error, ProcessLost)
    assert "processes 1, 3 of 4 did not start within 0.5 s; there are 0 on" in str(error)
  error, = called(address, 1, timeout=0.3)
  assert f"process 0 of 3, the coordinator at {address}, did not answer within 0.3 s" in str(error)


def test_two_with_one_number_and_two_sizes_are_refused_by_all(address):
  found = called(address, 0, 1, 1, timeout=5.0)
  assert any(isinstance(e, ValueError) and "a number of its own, from 0 to 2; got 1" in str(e) for e in found)
  assert isinstance(found[0], ValueError)


def test_strangers_on_the_port_are_passed_over(address):
  def shout():
    host, port = address.split(":")
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", b'{"process": "x"}\n', b"x" * 10000):
      for _ in range(50):
        try:
          with socket.create_connection((host, int(port)), timeout=1) as s:
            s.sendall(words)
          break
        except OSError:
          time.sleep(0.02)

  stranger = threading.Thread(target=shout)
  stranger.start()
  first = []
  waiting = threading.Thread(target=lambda: first.extend(called(address, 0, count=2)))
  waiting.start()
  stranger.join()
  second, = called(address, 1, count=2)
  waiting.join(timeout=20)
  assert first[0].hosts == second.hosts


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_is_named_to_all_others(address, monkeypatch, victim):
  calls = called(address, 0, 1, 2)
  others = [call for call in calls if call.process != victim]
  ends = watched(others, monkeypatch)
  hang_up(calls[victim])
  wait_until(lambda: len(ends) == 2)
  for status, why in ends.values():
    assert status is None and f"process {victim} of 3 (on {socket.gethostname()}) died" in why


def test_silence_counts_as_death(address, monkeypatch):
  calls = called(address, 0, 1, 2, heartbeat=0.4)
  ends = watched(calls[:2], monkeypatch)  # the third sends nothing
  wait_until(lambda: len(ends) == 2)
  assert all("process 2 of 3" in why and "silent for 0.4 s" in why for _, why in ends.values())


def test_an_error_ends_all_with_its_status_and_a_good_bye_none(address, monkeypatch):
  calls = called(address, 0, 1, 2, heartbeat=1.0)
  ends = watched(calls, monkeypatch)
  calls[2].leave()
  hang_up(calls[2])
  time.sleep(0.3)
  assert not ends and calls[0].ended() is None
  calls[1].tell(2, "jaxft: error: no space left")
  wait_until(lambda: 0 in ends)
  assert ends[0][0] == 2 and "process 1 of 3" in ends[0][1] and "no space left" in ends[0][1]
  assert 1 not in ends and 2 not in ends


def test_an_error_of_the_first_ends_the_others_before_it_ends_itself(address, monkeypatch):
  # JAX aborts a process whose coordinator is gone, with a status by which launchers would start it again.
  calls = called(address, 0, 1, 2, heartbeat=1.0)
  ends = watched(calls, monkeypatch)
  monkeypatch.setattr(roll_call, "GRACE", 3600.0)  # for nothing that process 0 waits for
  calls[0].tell(2, "jaxft: error: no such file")
  seeing_off = threading.Thread(target=calls[0].see_off, args=(20.0,))
  seeing_off.start()
  wait_until(lambda: len(ends) == 2)
  assert all(status == 2 and "process 0 of 3" in why and "no such file" in why for status, why in ends.values())
  hang_up(calls[1])
  time.sleep(0.2)
  assert seeing_off.is_alive()
  hang_up(calls[2])
  seeing_off.join(timeout=5)
  assert not seeing_off.is_alive()
  calls[0].see_off(20.0)  # of those that have ended


def test_the_place_is_that_of_options_else_of_the_environment_else_of_the_cluster(monkeypatch):
  environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
  assert place_of(environment=environment) == Place("a:1", 4, 3)
  assert place_of("b:2", 2, 0, environment=environment) == Place("b:2", 2, 0)
  assert place_of(count=1, environment=environment) is None and place_of(environment={}) is None
  del environment["JAX_PROCESS_ID"]
  with pytest.raises(ValueError, match="go together; got no JAX_PROCESS_ID"):
    place_of(environment=environment)
  with pytest.raises(ValueError, match="go together; got no --process"):
    place_of("b:2", 2)
  with pytest.raises(ValueError, match="got 2 of 2"):
    place_of("b:2", 2, 2)
  for name, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[01-04]", "SLURM_NTASKS": "4",
                      "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}.items():
    monkeypatch.setenv(name, value)
  place = place_of(environment={})
  assert place.coordinator.startswith("node01:") and (place.count, place.process, place.devices) == (4, 2, (0,))


def test_options_are_taken_from_the_arguments_and_one_status_stands_for_all():
  options, rest = take(["--model", "m", "--processes=2", "--heartbeat", "5", "--out", "o"])
  assert options == Options(processes=2, heartbeat=5.0) and options.local and rest == ["--model", "m", "--out", "o"]
  assert not take(["--processes", "2", "--process", "0", "--coordinator", "h:1"])[0].local
  for wrong, said in ((["--processes"], "takes a value"), (["--processes", "x"], "a whole number; got 'x'"),
                      (["--processes", "0"], "at least 1")):
    with pytest.raises(ValueError, match=said):
      take(wrong)
  assert [status_of_all(s) for s in ([0, 0], [0, RESTART], [-9, RESTART], [1, RESTART], [134, 0])] == [0, 75, 75, 1, 75]
  assert finish(2, "said", fault=True) == (2, "said")  # of a process that is alone
