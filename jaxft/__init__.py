"""jaxft: fine-tuning methods for JAX as pure functions.

Areas are imported when they are first used: `import jaxft; jaxft.losses.info_nce`, or `from jaxft.losses import ...`.
"""

from jaxft.deferred import defer

AREAS = (
    "adapters", "analysis", "data", "decoding", "evaluation", "losses", "merging", "models", "selection", "training",
    "transforms",
)
__all__ = defer(__name__, dict.fromkeys(AREAS, ()))
