"""The task of `peft_for_code`: from a description of a list or string operation to one line of Python.

A template grammar: each operation has two wordings, one canonical line, and slots for a variable and a small number.
That makes exact match meaningful, although other lines would compute the same. Splits are disjoint in (wording,
variable, number); all operations are in all of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
  """A description and the line that it asks for."""

  intent: str
  code: str
  operation: int  # which operation of the grammar


class Operation(NamedTuple):
  """Two wordings of one operation on `{v}`, with `{n}`, and its line."""

  wordings: tuple[str, str]
  code: str
  over: str


VARIABLES = {
    "numbers": ("xs", "values", "scores", "prices", "ages"),
    "words": ("words", "names", "tags", "labels", "keys"),
    "text": ("text", "line", "title", "name", "s"),
}
NUMBERS = (2, 3, 4, 5)

OPERATIONS = (
    Operation(("sort {v} in descending order", "{v} from largest to smallest"), "sorted({v}, reverse=True)", "numbers"),
    Operation(("sum of the squares of {v}", "square {v} and add up"), "sum(x ** 2 for x in {v})", "numbers"),
    Operation(("mean of {v}", "average value in {v}"), "sum({v}) / len({v})", "numbers"),
    Operation(("the {n} largest of {v}", "top {n} of {v}"), "sorted({v})[-{n}:]", "numbers"),
    Operation(("position of the largest of {v}", "index of the maximum in {v}"), "{v}.index(max({v}))", "numbers"),
    Operation(("every {n}th element of {v}", "{v} in steps of {n}"), "{v}[::{n}]", "numbers"),
    Operation(("lengths of {v}", "how long each of {v} is"), "[len(w) for w in {v}]", "words"),
    Operation(("join {v} with commas", "{v} as comma separated text"), "', '.join({v})", "words"),
    Operation(("distinct {v} in order", "sort {v} without duplicates"), "sorted(set({v}))", "words"),
    Operation(("count the words in {v}", "number of words of {v}"), "len({v}.split())", "text"),
    Operation(("reverse the words of {v}", "words of {v} backwards"), "' '.join({v}.split()[::-1])", "text"),
    Operation(("is {v} a palindrome", "check {v} reads the same backwards"), "{v} == {v}[::-1]", "text"),
)


def problems() -> list[Problem]:
  """All problems of the grammar, in a fixed random order; those of one operation follow no pattern."""
  found = []
  for i, operation in enumerate(OPERATIONS):
    for wording in operation.wordings:
      for variable in VARIABLES[operation.over]:
        for n in NUMBERS if "{n}" in wording else (None,):
          fill = lambda template: template.format(v=variable, n=n)
          found.append(Problem(fill(wording), fill(operation.code), i))
  order = np.random.default_rng(0).permutation(len(found))
  return [found[i] for i in order]


def splits(*, validation: int, test: int) -> dict[str, list[Problem]]:
  """Test, validation and training problems, the operations in turn in each, so that they are even; disjoint.

  Raises:
    ValueError: an operation has too few problems.
  """
  queues = [[p for p in problems() if p.operation == i] for i in range(len(OPERATIONS))]
  if -(-(validation + test) // len(queues)) >= min(map(len, queues)):
    raise ValueError(f"validation and test leave nothing to train on; got {validation} and {test}")
  take = lambda n: [queues[i % len(queues)].pop() for i in range(n)]
  parts = {"test": take(test), "validation": take(validation)}
  return parts | {"train": [p for queue in queues for p in queue]}


def draw(pool: Sequence[Problem], n: int, rng: np.random.Generator) -> list[Problem]:
  """n different problems, as many of each operation as may be, in random order."""
  queues = [[pool[i] for i in rng.permutation(len(pool)) if pool[i].operation == o] for o in range(len(OPERATIONS))]
  order = rng.permutation(len(queues))
  chosen = [queues[order[i % len(queues)]].pop() for i in range(n)]
  return [chosen[i] for i in rng.permutation(n)]


def shown(problem: Problem) -> str:
  """A problem as text, up to its line."""
  return f"# {problem.intent}\n"


def solved(problems: Sequence[Problem]) -> str:
  """Problems with their lines, one after the other."""
  return "".join(f"{shown(p)}{p.code}\n" for p in problems)
