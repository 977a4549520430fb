"""A bar on a terminal, plain lines in a log."""

import re

from jaxft.training import progress


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
  clock = iter(range(0, 1000, 4))
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
  with progress.progress(6, 1, show=True) as bar:
    for step in range(2, 7):
      bar.update()
      bar.set_postfix({"loss": step})
  lines = capsys.readouterr().err.splitlines()
  assert all(re.match(r"\d\d:\d\d:\d\d step \d of 6, loss=\d", line) for line in lines)
  assert 1 < len(lines) < 5 and "step 6 of 6, loss=6" in lines[-1] and " left" not in lines[-1]
  assert any(line.endswith(" s left") for line in lines[:-1])


def test_a_line_names_the_step_whose_values_it_has(capsys, monkeypatch):
  monkeypatch.setattr(progress, "_EVERY", 0.0)
  with progress.progress(3, 0, show=True) as bar:
    for step in (1, 2, 3):  # read one step late, as the loop does, and the last two together
      bar.update()
      if step > 1:
        bar.set_postfix({"loss": step - 1}, step=step - 1)
    bar.set_postfix({"loss": 3}, step=3)
  said = [line.split(" ", 1)[1].split(", 0 s left")[0] for line in capsys.readouterr().err.splitlines()]
  assert said == [f"step {step} of 3, loss={step}" for step in (1, 2, 3)]


def test_the_last_line_comes_once_though_earlier_steps_are_read_when_all_are_done(capsys):
  with progress.progress(20, 0, show=True) as bar:
    for _ in range(20):
      bar.update()
    for step in (18, 19, 20):
      bar.set_postfix({"loss": step}, step=step)
  lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("jaxft:")]
  assert [line.split(" ", 1)[1] for line in lines] == ["step 18 of 20, loss=18", "step 20 of 20, loss=20"]


def test_a_bar_says_whose_values_it_has_if_not_the_last_step_s(capsys, monkeypatch):
  monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
  with progress.progress(4, 0, show=True) as bar:
    bar.update(2)
    bar.set_postfix({"loss": "0.5"}, step=1)
    assert bar.postfix == "of step=1, loss=0.5"
    bar.set_postfix({"loss": "0.4"}, step=2)
    assert bar.postfix == "loss=0.4"


def test_how_long_it_takes_is_said_once_after_ten_steps(capsys, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  with progress.progress(100, 40, show=True) as bar:
    for step in range(41, 61):
      now[0] += 100.0 if step <= 42 else 3.0  # compiling is no measure of the others
      bar.update()
      bar.set_postfix({"loss": step})
  said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jaxft: after")]
  assert len(said) == 1
  assert said[0].startswith("jaxft: after 10 steps: 3 s a step, the 50 that are left take about 2 min, until ")


def test_nothing_where_nothing_is_asked_for(capsys):
  with progress.progress(2, 0, show=False) as bar:
    bar.update()
    bar.set_postfix({"loss": 1})
  assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch):
  monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
  with progress.progress(2, 0, show=True) as bar:
    assert not isinstance(bar, progress.Lines) and bar.total == 2


def test_durations_in_words():
  assert [progress._words(x) for x in (1, 119, 120, 7199, 7200)] == ["1 s", "119 s", "2 min", "120 min", "2 h"]
