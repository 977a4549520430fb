"""The libraries that jaxft is compared with, imported where a test first uses them.

Collecting the tests would otherwise take ten seconds more in every worker, whichever of them runs these.
"""

import functools
import importlib
import importlib.util
import types
from collections.abc import Callable
from typing import Any

import pytest


class _Module:
  """A module that is imported when it is asked for something. Tests patch it by name, `setattr("torch.x", ...)`."""

  __slots__ = ("_name",)

  def __init__(self, name: str):
    self._name = name

  def __getattr__(self, name: str) -> Any:
    return getattr(_imported(self._name), name)


@functools.cache
def _imported(name: str) -> types.ModuleType:
  return importlib.import_module(name)


def library(name: str) -> Any:
  """The module of that name; where its package is not installed, the tests of the module that asks are skipped."""
  package = name.split(".")[0]
  if importlib.util.find_spec(package) is None:
    pytest.skip(f"could not import {package!r}", allow_module_level=True)
  return _Module(name)


def later(kind: str, **settings: Any) -> Callable[[], Any]:
  """A function that makes peft's `<kind>Config(**settings)`."""
  return lambda: getattr(_imported("peft"), f"{kind}Config")(**settings)
