"""The affine map of every model here, through arrays or structured leaves."""

from typing import Any

from jaxtyping import Array, Float

from jaxft.leaves import dot, materialize


def linear(x: Float[Array, "... n_in"], params: dict[str, Any]) -> Float[Array, "... n_out"]:
  """`x @ kernel + bias`; without a bias where the params have none, so that one may be added to any matrix."""
  y = dot(x, params["kernel"])
  if params.get("bias") is None:
    return y
  return y + materialize(params["bias"]).astype(y.dtype)
