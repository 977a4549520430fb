"""What the suite may cost: core-seconds of every test file, and the share of the exhaustive tier that a run takes.

Core-seconds are processor time, of this process, its threads and the processes that it waited for: they do not change
much with what else the machine does, as seconds on the clock would.
"""

import resource
import time
import zlib
from collections import defaultdict

import jax
import pytest

# Test files that may take longer than `--file-seconds`, and why.
LONG = {
    "tests/experiments/test_contract.py": "it runs all experiments",
    "tests/contracts/test_losses.py": "it compiles all losses",
    "tests/contracts/test_transforms.py": "it runs all transforms",
    "tests/contracts/test_transform_costs.py": "it compiles a step of all transforms",
    "tests/contracts/test_transform_steps.py": "it trains with all transforms",
    "tests/contracts/test_transform_states.py": "it saves and shards all transforms",
    "tests/transforms/test_every_pair.py": "it traces every pair of transforms",
    "tests/test_types.py": "it checks the types of the whole library",
    "tests/cli/test_installed.py": "it installs the library into empty environments",
    "tests/cli/test_processes.py": "it starts runs of several processes, ends them and goes on",
    "tests/cli/test_journeys.py": "it goes forty ways through the command",
    "tests/stores/test_runs.py": "it runs in two stores, is killed there and goes on",
    "tests/foreign/test_packages.py": "it adapts the models of seven packages by eight methods each",
    "tests/test_examples.py": "it runs the example of every public function",
}

# Run first: a test that takes a minute by itself must not be the last one, for which the other workers would wait.
FIRST = "tests/test_types.py"


def core_seconds() -> float:
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


def share_of(node: str, shares: int) -> int:
  """The share that a test belongs to: its name alone decides, so that a new test moves no other."""
  return zlib.crc32(node.encode()) % shares


def parse_share(text: str) -> tuple[int, int]:
  """`"21/16"`, the twenty-first commit in sixteen shares, is share 5 of 16."""
  number, _, shares = text.partition("/")
  if not (number.isdecimal() and shares.isdecimal() and int(shares)):
    raise pytest.UsageError(f"--share takes NUMBER/SHARES, two whole numbers; got {text!r}")
  return int(number) % int(shares), int(shares)


# How many programs importing the test modules compiled.
COMPILED = pytest.StashKey[int]()


class Budget:
  """A pytest plugin: measures each test, sums over files, and fails a run in which a file took too long."""

  def __init__(self, limit: float | None, share: tuple[int, int] | None):
    self.limit, self.share = limit, share
    self.files: dict[str, float] = defaultdict(float)
    self.started = 0.0
    self.compiled = 0
    jax.monitoring.register_event_duration_secs_listener(self.count_compiled)

  def count_compiled(self, event: str, duration: float, **_: object) -> None:
    del duration
    self.compiled += event == "/jax/core/compile/backend_compile_duration"

  def pytest_collection_finish(self, session):
    session.config.stash[COMPILED] = self.compiled

  def pytest_collection_modifyitems(self, config, items):
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    if self.share is None:
      return
    number, shares = self.share
    out = [
        item for item in items
        if item.get_closest_marker("exhaustive") and share_of(item.nodeid, shares) != number]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in set(out)]

  @pytest.hookimpl(tryfirst=True)
  def pytest_runtest_logstart(self):
    self.started = core_seconds()

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_makereport(self, item, call):
    report = yield
    if call.when == "teardown":
      report.user_properties = [*report.user_properties, ("core_seconds", core_seconds() - self.started)]
    return report

  def pytest_runtest_logreport(self, report):
    if report.when == "teardown":
      self.files[report.nodeid.split("::")[0]] += dict(report.user_properties).get("core_seconds", 0.0)

  def over(self) -> list[str]:
    if self.limit is None:
      return []
    return [f for f, seconds in self.files.items() if seconds > self.limit and f not in LONG]

  def pytest_terminal_summary(self, terminalreporter):
    total = sum(self.files.values())
    terminalreporter.section(f"core-seconds: {total:.0f} in all, the ten longest files")
    for file, seconds in sorted(self.files.items(), key=lambda pair: -pair[1])[:10]:
      terminalreporter.line(f"{seconds:7.1f}  {file}")
    for file in self.over():
      terminalreporter.line(
          f"ERROR: {file} took {self.files[file]:.0f} core-seconds of {self.limit:g}; make it quicker, "
          "or name it in tests/budget.py with the reason")

  @pytest.hookimpl(trylast=True)
  def pytest_sessionfinish(self, session, exitstatus):
    if exitstatus == 0 and self.over() and not hasattr(session.config, "workerinput"):
      session.exitstatus = pytest.ExitCode.TESTS_FAILED
