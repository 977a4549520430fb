"""Structured leaves: small dataclasses that stand for an array in a params tree without forming it.

Each has the logical `shape` and `dtype` of the array it stands for, computed from its parts, so that a leaf whose
parts carry a leading layer axis can be sliced by `jax.lax.scan` like an array; `materialize()` forms the array;
`dot(x)` and `dot_transposed(x)` contract it with an array in its cheap form; `lookup(ids)` reads rows.
Any class with these is a structured leaf: there is no base class, and `leaf_class` saves writing what all have alike.
Two methods are for `lazy` alone and may be left out: `cut(axis, take)`, the leaf of some rows or columns (`cuts`), and
`row_product(x, product, transposed)`, its cheap form in a convolution or a `ragged_dot` (`products`).
They nest: QLoRA is `LowRank(w=Quantized(...))`. What is formed is rounded to `dtype` once, however deep leaves nest:
within `materialize`, parts are read `unrounded`.

`dot`, `lookup` and `materialize` take an array or a leaf; `lazy` runs any JAX function on leaves.
"""

from jaxft.leaves.concatenated import Concatenated
from jaxft.leaves.dropout import seed_dropout
from jaxft.leaves.evaluation.evaluator import MaterializedWarning
from jaxft.leaves.lazy import lazy
from jaxft.leaves.leaf_class import leaf_class
from jaxft.leaves.low_rank import LowRank
from jaxft.leaves.materialize import materialize
from jaxft.leaves.products import dot, lookup
from jaxft.leaves.row_delta import RowDelta
from jaxft.leaves.scaled import Scaled
