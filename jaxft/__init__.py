"""jaxft: fine-tuning methods for JAX as pure functions.

Areas are imported when they are first used: `import jaxft; jaxft.losses.info_nce`, or `from jaxft.losses import ...`.
"""

import importlib
from typing import Any

AREAS = (
    "adapters", "analysis", "data", "decoding", "evaluation", "losses", "merging", "models", "selection", "training",
    "transforms",
)


def __getattr__(name: str) -> Any:
  if name in AREAS:
    return importlib.import_module(f"jaxft.{name}")
  raise AttributeError(f"module 'jaxft' has no attribute {name!r}; its areas are {', '.join(AREAS)}")


def __dir__() -> list[str]:
  return sorted((*globals(), *AREAS))
