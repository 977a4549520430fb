"""What primitives do to the units along an axis: keep them, join them, tell them apart, or pass them on."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxft.tree.function.held import Held, broadcast, expanded, reshaped, squeezed

ELEMENTWISE = frozenset((
    "abs add add_any and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erf_inv erfc exp "
    "exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max mesh_cast min mul name ne neg "
    "nextafter not or pow pvary reduce_precision rem reshard round rsqrt select_n sharding_constraint sign sin "
    "sqrt square stop_gradient sub tan tanh xor"
).split())
# They sum over an axis, or take its largest entry: what comes out no longer has it.
REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or".split())
# Entries along these axes move, or meet their neighbours.
ALONG: dict[str, Callable[[Any], Sequence[int]]] = {
    "rev": lambda eqn: eqn.params["dimensions"],
    "pad": lambda eqn: [i for i, given in enumerate(eqn.params["padding_config"]) if any(given)],
    "cumsum": lambda eqn: (eqn.params["axis"],),
    "cumprod": lambda eqn: (eqn.params["axis"],),
    "cummax": lambda eqn: (eqn.params["axis"],),
}
CALLS = frozenset(
    "jit pjit closed_call core_call checkpoint remat remat2 custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr "
    "shard_map".split())
SHAPES: dict[str, Callable[[Held, Any], Held]] = {
    "transpose": lambda held, eqn: held.pick(eqn.params["permutation"]),
    "reshape": reshaped, "squeeze": squeezed, "expand_dims": expanded, "broadcast_in_dim": broadcast,
}
