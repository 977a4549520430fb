"""The types of numbers that a run may compute in, by the names that its options have for them."""

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
