"""`ParamTransform`: what of a params tree trains and what stays frozen, as two pure functions.

`split` runs once, before training; `join` runs inside the loss, every step, so that `jax.grad` never sees a frozen
leaf. Both sides keep the structure of the params:

    params     {'up': W,    'down': V}
    frozen     {'up': W,    'down': None}          each leaf an array, a structured leaf, or a hole
    trainable  {'up': None, 'down': V}             each leaf a subtree of arrays, or a hole
    join(..)   {'up': W,    'down': V}             or structured leaves, such as {'up': LowRank(W, a, b), ...}

Params may be any tree. Boxes around its leaves go around what is made of these, and what is no weight, a function or a
random state, is frozen by itself, also under `jax.jit`: see `jaxft.tree.boxes`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxft.leaves.annotated import note_outermost
from jaxft.signatures import explain_errors
from jaxft.transforms.any_tree import join_any_tree, split_any_tree
from jaxft.transforms.shown import shown
from jaxft.tree.choice import Choice, mask, shapes_of
from jaxft.tree.partition import combine, partition
from jaxft.tree.paths import Tree, is_leaf, is_structured

Params = Tree
Frozen = Tree
Trainable = Tree


class _Sides(NamedTuple):
  split: Callable[[jax.Array, Params], tuple[Frozen, Trainable]]
  join: Callable[[Frozen, Trainable], Params]


class ParamTransform(_Sides):
  """A choice of what trains; see the module's docstring.

  Attributes:
    split: `(key, params) -> (frozen, trainable)`. `frozen` has the structure of `params`.
    join: `(frozen, trainable) -> params`, in which leaves may be structured.
  """

  __slots__ = ()

  def __new__(
      cls, split: Callable[[jax.Array, Params], tuple[Frozen, Trainable]], join: Callable[[Frozen, Trainable], Params]
  ) -> "ParamTransform":
    return super().__new__(cls, split_any_tree(split), join_any_tree(join))

  def __repr__(self) -> str:
    """The method with what it chooses, in one line."""
    return shown(self.split, self.join)


def check_transform(transform: ParamTransform, name: str = "transform") -> None:
  """Raises TypeError naming the argument where it is no `ParamTransform`, before anything is split or traced."""
  if not isinstance(transform, ParamTransform):
    raise TypeError(f"{name} must be a ParamTransform, such as lora(...) or full(); got {transform!r:.80}")


@explain_errors
def on(select: Choice, transform: ParamTransform) -> ParamTransform:
  """Restricts a transform to the leaves that are selected; all others stay frozen as they are.

  The choice is read again in `join`, of what is frozen by then: a function of the params sees shapes alone, so that
  one that reads values raises in `split` already, and the second time None in place of what trains.

  >>> import jax.numpy as jnp
  >>> from jaxft.transforms import full
  >>> on("up", full()).split(jax.random.key(0), {"up": jnp.ones(2), "down": jnp.ones(2)})
  ({'down': Array([1., 1.], dtype=float32), 'up': None}, {'down': None, 'up': Array([1., 1.], dtype=float32)})

  Args:
    select: a choice of whole leaves (`jaxft.tree.choice`).
    transform: of these leaves; it sees holes in place of the others.

  Raises:
    TypeError: `transform` is no `ParamTransform`.
    ValueError: from `split`: a glob matches nothing.
  """
  check_transform(transform)

  def split(key: jax.Array, params: Params) -> tuple[Frozen, Trainable]:
    matched, rest = partition(params, mask(select, shapes_of(params)))
    frozen, trainable = transform.split(key, matched)
    return combine(frozen, rest), trainable

  def join(frozen: Frozen, trainable: Trainable) -> Params:
    matched, rest = partition(frozen, mask(select, shapes_of(frozen), allow_empty=True))
    return combine(transform.join(matched, trainable), rest)

  return ParamTransform(split, join)


@explain_errors
def chain(*transforms: ParamTransform) -> ParamTransform:
  """Applies each transform to what the ones before it left frozen: QLoRA is
  `chain(lora("**/kernel"), quantize("**/kernel", format="nf4"))`.

  >>> import jax.numpy as jnp
  >>> from jaxft.transforms import bitfit, lora
  >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
  >>> _, (biases, factors) = chain(bitfit(), lora("kernel", rank=2)).split(jax.random.key(0), params)
  >>> jax.tree.map(jnp.shape, (biases, factors))
  ({'bias': (3,), 'kernel': None}, {'bias': None, 'kernel': {'a': (4, 2), 'b': (2, 3)}})

  Raises:
    TypeError: one of them is no `ParamTransform`.
    ValueError: there is no transform; from `split`: one comes after others that already train every leaf.
  """
  if not transforms:
    raise ValueError("chain takes at least one transform; got none")
  for i, transform in enumerate(transforms):
    check_transform(transform, f"transforms[{i}] of chain")

  def split(key: jax.Array, params: Params) -> tuple[Frozen, Trainable]:
    trainables: list[Any] = []
    leaves = len(jax.tree.leaves(params, is_leaf=is_structured))
    for i, t in enumerate(transforms):
      if leaves and not jax.tree.leaves(params):
        raise ValueError(
            f"transforms[{i}] of chain takes what those before it left frozen, and got nothing: an earlier transform "
            f"already trains all {leaves} leaves")
      params, trainable = t.split(jax.random.fold_in(key, i), params)
      trainables.append(trainable)
    return params, tuple(trainables)

  def join(frozen: Frozen, trainable: Trainable) -> Params:
    for t, part in zip(reversed(transforms), reversed(trainable), strict=True):
      frozen = jax.tree.map(note_outermost, t.join(frozen, part), is_leaf=is_leaf)
    return frozen

  return ParamTransform(split, join)
