"""Where a package of studies lies."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import jaxft


def find_package(package: str) -> ModuleType:
  """A package of experiments: on the path, or in the working folder, or beside the library as in its repository.

  Raises:
    ValueError: it lies at none of these places: the studies are no part of what is installed.
  """
  try:
    return importlib.import_module(package)
  except ModuleNotFoundError as e:
    if e.name is None or not f"{package}.".startswith(f"{e.name}."):  # something that the package itself imports
      raise
  for place in (Path.cwd(), Path(jaxft.__file__).parents[1]):
    if (place / package.partition(".")[0]).is_dir():
      sys.path.append(str(place))
      importlib.invalidate_caches()
      return importlib.import_module(package)
  raise ValueError(f"the studies come with the repository, not with what pip installs: there is no package {package!r} "
                   "here; run this in a clone of it, or name a package of your own by --package")
