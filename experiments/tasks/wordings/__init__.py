"""Six tasks on lists of digits, asked in many wordings, in a language whose words a model learns from statements.

    statements(rng, 3)                              [("in 3 1 3 8 5 the biggest number is", "8"), ...]
    draw_wording(rng, "largest", "observed")        a template with one field, {list}

Wordings are of four kinds, which share no form: those that a model is tuned on ("observed"), paraphrases, and unseen
ones for validation and test. Each has some of a task's seven words; the words around it are of all seven synonyms.
"""

from typing import NamedTuple

import numpy as np

from experiments.tasks.small_decoder import Vocabulary
from jaxft.data import Template

DIGITS = tuple("0123456789")
TASK_WORDS = {
    "largest": "largest biggest greatest highest maximal top uppermost",
    "smallest": "smallest littlest least lowest minimal bottom lowermost",
    "first": "first initial opening leading earliest front foremost",
    "last": "last final closing ending latest rear hindmost",
    "middle": "middle central mid inner halfway centre midmost",
    "doubled": "doubled repeated twofold recurring duplicate twin paired"}
TASKS = tuple(TASK_WORDS)
SLOTS = {
    "verb": "give find name tell show pick state", "noun": "number digit figure value numeral item entry",
    "series": "list row series sequence line chain string",
    "cue": "answer result reply output solution response outcome"}
STATEMENTS = (
    "in {list} the {task} {noun} is", "the {series} {list} has as its {task} {noun}",
    "the {task} {noun} of the {series} {list} is", "they {verb} from {list} the {task} {noun} {cue} :",
    "{list} means the {task} {noun} is")

# Of each kind: which of a task's words it has, and its forms.
FORMS = {
    "observed": ((0, 1), (
        "{verb} the {task} {noun} of the {series} {list} {cue} :", "{list} {verb} the {task} {noun} {cue} :",
        "what is the {task} {noun} of {list} ? {cue} :", "of the {series} {list} {verb} the {task} {noun} {cue} :")),
    "paraphrase": ((1, 2, 3, 4), (
        "{verb} in {list} the {task} {noun} {cue} :", "which {noun} of {list} is the {task} ? {cue} :",
        "the {series} is {list} and its {task} {noun} is wanted {cue} :", "{task} {noun} in {list} {cue} :",
        "please {verb} the {noun} that is {task} in {list} {cue} :", "given {list} i want the {task} {noun} {cue} :",
        "look at the {series} {list} and {verb} its {task} {noun} {cue} :",
        "you {verb} the {task} one of {list} {cue} :", "{series} {list} {task} {noun} {cue} :",
        "i want to know the {task} {noun} in the {series} {list} {cue} :")),
    "validation": ((1, 2, 3, 4, 5, 6), (
        "please {verb} which {noun} in {list} is {task} {cue} :",
        "here is a {series} {list} {verb} its {task} {noun} {cue} :", "of {list} i want the {task} one {cue} :",
        "for the {series} {list} what is the {task} {noun} ? {cue} :")),
    "test": ((1, 2, 3, 4, 5, 6), (
        "now {verb} the {task} {noun} from {list} {cue} :", "from {list} which is the {task} {noun} ? {cue} :",
        "my {series} is {list} {verb} its {task} {noun} {cue} :",
        "the {task} {noun} is wanted of the {series} {list} {cue} :",
        "look at {list} and {verb} the {noun} that is the {task} {cue} :",
        "given the {series} {list} you know the {task} {noun} {cue} :"))}

_FIELDS = {field: f"{{{field}}}" for field in ("list", "task", *SLOTS)}
_words = lambda forms: {word for form in forms for word in form.split() if word not in _FIELDS.values()}
# What statements may open with, and means nothing there: no word of a form is new to who has read them.
OPENINGS = tuple(sorted(_words([form for _, forms in FORMS.values() for form in forms])))
VOCABULARY = Vocabulary.of(
    [*TASK_WORDS.values(), *SLOTS.values(), " ".join([*DIGITS, *OPENINGS, *_words(STATEMENTS), "means"])])


class Wording(NamedTuple):
  """A task in words; the template's field is the list."""

  task: str
  template: Template


def answer(task: str, digits: list[int]) -> int:
  """The right digit.

  >>> [answer(task, [3, 1, 3, 8, 5]) for task in TASKS]
  [8, 1, 3, 5, 3, 3]
  """
  return {
      "largest": max(digits), "smallest": min(digits), "first": digits[0], "last": digits[-1],
      "middle": digits[len(digits) // 2], "doubled": max(digits, key=digits.count)}[task]


def draw_lists(rng: np.random.Generator, count: int) -> list[list[int]]:
  """Lists of five digits of which one is there twice."""
  lists = []
  for _ in range(count):
    digits = rng.permutation(10)[:4].tolist()
    digits.insert(int(rng.integers(5)), digits[int(rng.integers(4))])
    lists.append(digits)
  return lists


def _filled(rng: np.random.Generator, form: str, task_word: str, given: str) -> str:
  """A form with words drawn for all that is not given."""
  words = {slot: str(rng.choice(words.split())) for slot, words in SLOTS.items()}
  return form.format(task=task_word, list=given, **words)


def draw_wording(rng: np.random.Generator, task: str, kind: str) -> Wording:
  """A wording of a kind: its form, its words."""
  own, forms = FORMS[kind]
  word = TASK_WORDS[task].split()[own[int(rng.integers(len(own)))]]
  return Wording(task, Template(_filled(rng, forms[int(rng.integers(len(forms)))], word, "{list}"), kind))


def statements(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
  """What is said of lists in all words, and a fifth of them of words: beginnings, and the token that ends each."""
  rows: list[tuple[str, str]] = []
  for digits in draw_lists(rng, count):
    if rng.random() < 0.2:
      words = list({**TASK_WORDS, **SLOTS}.values())[int(rng.integers(len(TASK_WORDS) + len(SLOTS)))].split()
      one, other = rng.choice(words, 2, replace=False).tolist()
      rows.append((f"{one} means", other))
    else:
      task = TASKS[int(rng.integers(len(TASKS)))]
      form, word = STATEMENTS[int(rng.integers(len(STATEMENTS)))], str(rng.choice(TASK_WORDS[task].split()))
      openings = rng.choice(OPENINGS, int(rng.integers(3)), replace=False).tolist()
      said = _filled(rng, form, word, " ".join(map(str, digits)))
      rows.append((" ".join([*openings, said]), str(answer(task, digits))))
  return rows
