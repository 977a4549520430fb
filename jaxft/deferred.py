"""Packages whose names are imported when they are first used, so that what needs no JAX does not wait for it."""

import importlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any


def defer(package: str, names: Mapping[str, Sequence[str]]) -> list[str]:
  """Gives a package its submodules, and names of theirs, each imported at first use.

      __all__ = defer(__name__, {"sites": (), "pretrained": ("Pretrained", "load")})

  >>> sys.modules["zoo"] = types.ModuleType("zoo")
  >>> defer("zoo", {"cat": ("purr",), "dog": ("bark", "fetch")})  # nothing of it is imported yet
  ['bark', 'cat', 'dog', 'fetch', 'purr']
  >>> del sys.modules["zoo"]

  Args:
    package: the name of the package that is being imported.
    names: submodule -> its functions and types that the package has too. Where one of them has the submodule's own
      name, the name is that of the function. A submodule of a subpackage, as `compression.golomb`, is no name itself.

  Returns:
    All the names.
  """
  module_of = {module: module for module in names if "." not in module}
  module_of |= {name: module for module, shown in names.items() for name in shown}

  class Deferred(types.ModuleType):

    def __getattr__(self, name: str) -> Any:
      if name not in module_of:
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(module_of))}")
      module = importlib.import_module(f"{package}.{module_of[name]}")
      return getattr(module, name) if name in names[module_of[name]] else module

    def __setattr__(self, name: str, value: Any) -> None:
      # Importing a submodule binds its name here, over that of its function where the two are one word.
      same = isinstance(value, types.ModuleType) and name in names.get(name, ())
      super().__setattr__(name, getattr(value, name) if same else value)

    def __dir__(self) -> list[str]:
      return sorted({*super().__dir__(), *module_of})

  sys.modules[package].__class__ = Deferred
  return sorted(module_of)
