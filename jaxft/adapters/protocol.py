"""`Adapter`: a method that adds something to a model's activations, as two pure functions.

`init` draws the numbers that train, a nested dict; `edits` makes of them the edits that the model takes. They live
beside the model's params in one tree, so that a `ParamTransform` decides what trains, and checkpoints, shardings and
the training step know nothing new:

    method = prefix(config, length=16)
    params = {"model": model, "edits": method.init(key)}
    transform = train("edits/**")

    def objective(params, batch, key):
      nll = decoder.token_nll(params["model"], config, batch["ids"], edits=method.edits(params["edits"]))
      return Mean.of(*nll), {}

What goes into the layers has a leading layer axis and lies below `layers/`, so that choices, depths and partition rules
read it as they read the model's. A method that computes its edits from other numbers (P-tuning, a prefix with an MLP)
does so once per step, outside the layers; after training, keep `method.edits(params)` and drop the rest.

This folder, not `transforms`, because an adapter acts through the sites of `jaxft.models`, of which transforms know
nothing: they act on any tree. Without edits the traced program is the plain model's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxft.models.sites import Edits
from jaxft.signatures import explain_errors
from jaxft.tree.paths import Tree


class Adapter(NamedTuple):
  """A change of activations; see the module's docstring.

  Attributes:
    init: `key -> params`, the numbers that train.
    edits: `params -> edits`, for the `edits` of a model.
  """

  init: Callable[[jax.Array], Tree]
  edits: Callable[[Tree], Edits]


@explain_errors
def chain_adapters(*adapters: Adapter) -> Adapter:
  """Several adapters of one model; where two edit one site, the edits are applied in the order given.

      chain_adapters(a, b).init(key)  ->  (a's params, b's params)

  >>> both = chain_adapters(soft_prompt(2, 4), soft_prompt(3, 4))
  >>> params = both.init(jax.random.key(0))
  >>> jax.tree.map(jnp.shape, params), [edit.values.shape for edit in both.edits(params)["embed"]]
  (({'prompt': (2, 4)}, {'prompt': (3, 4)}), [(2, 4), (3, 4)])

  Raises:
    ValueError: no adapter.
  """
  if not adapters:
    raise ValueError("chain_adapters takes at least one adapter; got none")

  def init(key: jax.Array) -> Tree:
    return tuple(a.init(jax.random.fold_in(key, i)) for i, a in enumerate(adapters))

  def edits(params: Tree) -> Edits:
    out: dict[str, Any] = {}
    for a, part in zip(adapters, params, strict=True):
      for site, at_site in a.edits(part).items():
        out.setdefault(site, []).extend(at_site if isinstance(at_site, (list, tuple)) else [at_site])
    return out

  return Adapter(init, edits)
