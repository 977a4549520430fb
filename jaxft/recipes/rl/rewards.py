"""What answers are worth: rewards by name, each `(texts, records) -> numbers`, and their weighted sum."""

import importlib
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxft.data.files.records import with_others
from jaxft.recipes.examples import Records

Record = Mapping[str, Any]
Score = Callable[[Sequence[str], Sequence[Record]], Any]
GYM = "reasoning-gym"
# A sign belongs to a number where nothing stands before it that it could join: "7-3" ends with 3.
LARGEST = 1e15  # of a reward, whose square float32 holds
_NUMBER = re.compile(r"(?:(?<![\w)\]])[-+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Reward(NamedTuple):
  """A reward.

  Attributes:
    name: as it was asked for.
    weight: what it is multiplied by.
    score: the function.
    check: raises ValueError where a record has not what it reads.
  """

  name: str
  weight: float
  score: Score
  check: Callable[[Records], None]


def data_of(rewards: Sequence[str], data: str | None) -> str | None:
  """The data set of a run, which `reasoning-gym:TASK` names where nothing else does.

  Raises:
    ValueError: it names another one than is given, or two.
  """
  named = [f"reasoning_gym/{name.partition(':')[2]}" for name in rewards if name.startswith(f"{GYM}:")]
  for found in named:
    if data not in (None, found):
      raise ValueError(f"reward {GYM}:{found.partition('/')[2]} has the questions of {found}; got the data {data}")
    data = found
  return data


def rewards_of(names: Sequence[str], weights: Sequence[float], marker: str | None) -> list[Reward]:
  """The rewards of a run.

  Args:
    names, weights, marker: `reward`, `reward_weights` and `marker` of the options.

  Raises:
    ValueError: none, one twice, an unknown one, other weights than rewards, weights that are all 0 or not finite, or a
      marker that none reads.
    ImportError: `reasoning-gym` is not installed.
  """
  if not names:
    raise ValueError("--reward must say what an answer is worth: exact, reasoning-gym:TASK or module:function")
  if len({*names}) < len(names):
    raise ValueError(f"--reward must name each reward once; got {', '.join(names)}")
  if weights and len(weights) != len(names):
    raise ValueError(f"--reward-weights must be one for each of the {len(names)} rewards; got {len(weights)}")
  weights = weights or (1.0,) * len(names)
  if not all(map(math.isfinite, weights)) or not any(weights):
    raise ValueError(f"--reward-weights must be finite, and not all 0; got {', '.join(map(str, weights))}")
  if marker is not None and "exact" not in names:
    raise ValueError(f"--marker is read by the reward exact alone; got {', '.join(names)}")
  if marker is not None and not marker.strip():
    raise ValueError(f"--marker must be a text; got {marker!r}")
  return [Reward(name, weight, *_named(name, marker)) for name, weight in zip(names, weights, strict=True)]


def total(rewards: Sequence[Reward], texts: Sequence[str], records: Sequence[Record]) -> dict[str, np.ndarray]:
  """`reward`, the weighted sum of each answer and, of several, `reward/NAME` of each: `[answers]`, float64.

  Raises:
    ValueError: a reward raised something, or gave something else than a finite number for each answer; the record is
      named.
  """
  each = {reward.name: _scores(reward, texts, records) for reward in rewards}
  found = {"reward": sum((reward.weight * each[reward.name] for reward in rewards), np.zeros(len(texts)))}
  return found if len(rewards) == 1 else found | {f"reward/{name}": x for name, x in each.items()}


def _named(name: str, marker: str | None) -> tuple[Score, Callable[[Records], None]]:
  if name == "exact":
    return partial(exact, marker=marker), partial(_check_answers, marker=marker)
  head, colon, tail = name.partition(":")
  if head == GYM:
    from jaxft.data.builders import reasoning

    reasoning.require()
    score = lambda texts, records: [reasoning.score(r, text) for text, r in zip(texts, records, strict=True)]
    return score, partial(_check_gym, task=tail)
  if not (colon and head and tail):
    raise ValueError(f"--reward must be exact, {GYM}:TASK or module:function; got {name!r}")
  return _function(name, head, tail), lambda records: None


def _function(name: str, module: str, function: str) -> Score:
  """A function of a module, which is looked for in the working folder too."""
  if "" not in sys.path:
    sys.path.insert(0, "")
  try:
    found = importlib.import_module(module)
    for part in function.split("."):
      found = getattr(found, part)
  except Exception as e:  # whatever a module of the user does as it is read
    raise ValueError(f"--reward {name}: {type(e).__name__}: {e}") from e
  if not callable(found):
    raise ValueError(f"--reward {name} must name a function; got {found!r:.60}")
  return found


def _scores(reward: Reward, texts: Sequence[str], records: Sequence[Record]) -> np.ndarray:
  try:
    given = reward.score(list(texts), [dict(record) for record in records])
  except Exception as e:  # of a function of the user, which may raise anything
    raise ValueError(f"reward {reward.name} raised {type(e).__name__}: {e}; {_culprit(reward, texts, records)}") from e
  if isinstance(given, Mapping | Set | str | bytes) or not isinstance(given, Iterable):
    raise ValueError(f"reward {reward.name} must give a sequence of numbers; got {given!r:.60}")
  try:
    given = list(given)
  except Exception as e:  # a generator may raise anything as well
    raise ValueError(f"reward {reward.name} raised {type(e).__name__}: {e}; {_culprit(reward, texts, records)}") from e
  if len(given) != len(texts):
    raise ValueError(f"reward {reward.name} must give one number for each of {len(texts)} answers; got {len(given)}")
  out = np.zeros(len(texts))
  for i, value in enumerate(given):
    try:
      out[i] = np.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
      out[i] = np.nan
    if not abs(out[i]) <= LARGEST:
      raise ValueError(f"reward {reward.name} must give finite numbers, of {LARGEST:g} at most; got {value!r:.60} of "
                       f"{_shown(texts, records, i)}")
  return out


def _culprit(reward: Reward, texts: Sequence[str], records: Sequence[Record]) -> str:
  """The first record of which the reward raises something by itself."""
  for i in range(len(texts)):
    try:
      list(reward.score([texts[i]], [dict(records[i])]))
    except Exception:
      return f"of {_shown(texts, records, i)}"
  return f"of {len(texts)} answers together, and of none by itself"


def _shown(texts: Sequence[str], records: Sequence[Record], i: int) -> str:
  return f"the record {dict(records[i])!r:.300} and the answer {texts[i]!r:.100}"


def exact(texts: Sequence[str], records: Sequence[Record], *, marker: str | None = None) -> list[float]:
  """1 for each text whose answer is the record's `answer`, and 0 for the others.

  With a marker the answer is what follows its last place, up to the end of the line, without white space around it and
  a full stop at its end; the record's `answer`, where it has the marker, is read likewise. Two numbers are compared as
  numbers, others as texts in lower case. Without a marker it is the last number of a text; `1/2` ends with 2.

  >>> exact(["3 and 4 make 7.", "so 1,000.0", "none"], [{"answer": "7"}, {"answer": "1000"}, {"answer": "2"}])
  [1.0, 1.0, 0.0]
  >>> exact(["The sky. Answer: Blue.", "Blue"], [{"answer": "blue"}] * 2, marker="Answer:")
  [1.0, 0.0]

  Raises:
    ValueError: a record's `answer` is no number, and there is no marker.
  """
  return [float(_said(text, marker) == _wanted(record, marker)) for text, record in zip(texts, records, strict=True)]


def _said(text: str, marker: str | None) -> Decimal | str | None:
  if marker is None:
    found = _NUMBER.findall(text)
    return _number(found[-1]) if found else None
  before, at, after = text.rpartition(marker)
  return _plain(after) if at else None


def _wanted(record: Record, marker: str | None) -> Decimal | str:
  answer = str(record["answer"])
  if marker is not None:
    return _plain(answer.rpartition(marker)[2])
  number = _number(answer)
  if number is None:
    raise ValueError(f"reward exact needs --marker where an `answer` is no number; got {answer!r:.60}")
  return number


def _plain(text: str) -> Decimal | str:
  """The first line of a text, as a number where it is one."""
  line = text.strip().partition("\n")[0].strip().removesuffix(".").strip()
  number = _number(line)
  return line.casefold() if number is None else number


def _number(text: str) -> Decimal | None:
  try:
    number = Decimal(text.strip().replace(",", ""))
  except InvalidOperation:
    return None
  return number if number.is_finite() else None


def _check_answers(records: Records, marker: str | None) -> None:
  for i in range(len(records)):
    if "answer" not in records[i]:
      raise ValueError(f"reward exact reads the field answer; got the fields {', '.join(with_others(records[i]))}")
    if _wanted(records[i], marker) == "":
      raise ValueError(f"reward exact: the answer of record {i + 1} is empty behind the marker {marker!r}: "
                       f"{records[i]['answer']!r:.100}")


def _check_gym(records: Records, task: str) -> None:
  first = records[0]
  if not {"question", "answer", "task", "metadata"} <= {*first}:
    raise ValueError(f"reward {GYM} scores answers to the questions of --data reasoning_gym/TASK; got the fields "
                     f"{', '.join(with_others(first))}")
  if task and first["task"] != task:
    raise ValueError(f"reward {GYM}:{task} scores answers to {task}; the data are of {first['task']}")
