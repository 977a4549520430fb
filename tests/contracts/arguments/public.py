"""Every public function of some areas, held to the contract of wrong arguments."""

import importlib
from typing import Any

import jaxft
from tests.contracts.arguments.exceptions import EXCEPTIONS, NOT_CALLED
from tests.contracts.arguments.wrong_calls import faults_of_example
from tests.test_examples import FUNCTIONS, public_names


def public(*areas: str) -> list[str]:
  """The names of the public functions of some areas, each function once."""
  once = {id(function): name for name, function in reversed(FUNCTIONS.items()) if name.split(".")[1] in areas
          and function.__module__.split(".")[1] in jaxft.AREAS}
  return sorted(once.values())


def hold(name: str) -> None:
  """Asserts that a function does with wrong arguments what it must, but for its exceptions, all of which are needed."""
  package, _, short = name.rpartition(".")
  function: Any = getattr(importlib.import_module(package), short)
  names = vars(importlib.import_module(FUNCTIONS[name].__module__)) | public_names(package)
  faults = faults_of_example(function, names)
  assert (faults is None) == (name in NOT_CALLED), "its example does not call it, or does again"
  excepted = {(argument, label) for of, argument, label in EXCEPTIONS if of == name}
  told = [f"{argument}, {label}: {what}" for argument, label, what in faults or ()
          if (argument, label) not in excepted]
  assert not told, f"{name}\n" + "\n".join(told)
  needless = excepted - {(argument, label) for argument, label, _ in faults or ()}
  assert not needless, f"no longer needed in exceptions.py: {name}, {needless}"
