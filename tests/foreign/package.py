"""What a model of another package tells the tests about itself."""

from typing import Any, NamedTuple

import jax

KEY = jax.random.key(0)
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 29)
VOCABULARY, DIM, HEADS, HEAD, HIDDEN, LAYERS = 29, 24, 4, 6, 48, 3


class Package(NamedTuple):
  """A model as its package gives it.

  Attributes:
    params: as the package has them: a dict, a State, a module.
    apply: `(params, inputs) -> outputs`.
    inputs: of apply.
    out: glob of the arranged matrices that attention writes to the stream by; their rows are heads.
    down: glob of those that the mlp writes by; their rows are hidden channels.
    matrices: globs of the arranged matrices that adapters go to.
    layers: for `axes_of`: what of several siblings are layers.
  """

  params: Any
  apply: Any
  inputs: Any
  out: str
  down: str
  matrices: tuple[str, ...]
  layers: tuple[str, ...] = ()
