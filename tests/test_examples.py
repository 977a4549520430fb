"""The examples in the docstrings run, and every public function has one."""

import doctest
import importlib
import inspect
from collections import defaultdict
from pathlib import Path
from types import FunctionType

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxft

ROOT = Path(__file__).parents[1]
PACKAGES = [
    ".".join(file.parent.relative_to(ROOT).parts)
    for area in jaxft.AREAS for file in sorted((ROOT / "jaxft" / area).rglob("__init__.py"))
]


def public_names(package: str) -> dict[str, object]:
  module = importlib.import_module(package)
  return {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}


def public_functions() -> dict[str, FunctionType]:
  """Every function of the library that a package shows, by the package's name and its own."""
  return {
      f"{package}.{name}": inspect.unwrap(value)
      for package in PACKAGES for name, value in public_names(package).items()
      if isinstance(value, FunctionType) and value.__module__.startswith("jaxft.")
  }


FUNCTIONS = public_functions()
MODULES = defaultdict(list)
for _name, _function in FUNCTIONS.items():
  if ">>>" in (_function.__doc__ or ""):
    MODULES[_function.__module__].append(_name)


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_show(module):
  """With the names of the function's module and package, and jax, jnp, np, optax."""
  for name in MODULES[module]:
    names = vars(importlib.import_module(module)) | public_names(name.rpartition(".")[0])
    names |= {"jax": jax, "jnp": jnp, "np": np, "optax": optax}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(FUNCTIONS[name]), names, name, None, None)
    shown: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=shown.append)
    assert not failed, "".join(shown)


def test_every_public_function_has_an_example():
  without = sorted(name for name, function in FUNCTIONS.items() if ">>>" not in (function.__doc__ or ""))
  assert not without, f"write a short example in the docstring of {', '.join(without)}"
