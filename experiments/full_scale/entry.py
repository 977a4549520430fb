"""How the programs of this folder are entered."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jaxft import command_line

T = TypeVar("T")


def enter(kind: type[T], run: Callable[[T], dict[str, Any]], args: Sequence[str], name: str) -> int:
  """Runs a program with the options of a command line and prints its result; what is wrong with them is one line.

  Args:
    kind: of the options.
    run: the program.
    args: the command line.
    name: of the module.

  Returns:
    The exit status.
  """
  try:
    print(json.dumps(run(command_line.parse(kind, args, prog=f"python -m experiments.full_scale.{name}")), indent=1))
  except (ValueError, OSError, ImportError) as e:
    print(f"{name}: error: {e}", file=sys.stderr)
    return 1
  return 0
