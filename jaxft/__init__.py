"""jaxft: fine-tuning methods for JAX as pure functions.

Areas, and the few names that nearly every script needs, are imported when they are first used: `import jaxft;
jaxft.losses.info_nce`, or `from jaxft.losses import ...`.
"""

from jaxft.deferred import defer

# Area -> its names that are here too.
_NAMES = {
    "tree": (),
    "leaves": ("lazy", "materialize"),
    "choices": (),
    "transforms": (),
    "losses": ("Mean",),
    "models": (),
    "adapters": (),
    "optimizers": (),
    "formats": (),
    "analysis": (),
    "merging": (),
    "selection": (),
    "decoding": (),
    "data": (),
    "evaluation": (),
    "training": ("Recipe", "init_state", "make_train_step"),
    "recipes": ("load",),
    "studies": (),
}
__version__ = "0.1.0"
AREAS = tuple(_NAMES)
__all__ = defer(__name__, _NAMES)
