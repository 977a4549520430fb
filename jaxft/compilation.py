"""Compiled programs kept on disk, so that the second run of a command starts at once."""

import jax

from jaxft.fetch import home


def use_compilation_cache() -> None:
  """Turns on JAX's persistent compilation cache, in jaxft's cache folder; commands call this, the library never does.

  A folder that the user has set, in JAX_COMPILATION_CACHE_DIR or the config, stays.
  """
  folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]: JAX adds it as it starts
  if folder is None:
    jax.config.update("jax_compilation_cache_dir", str(home() / "xla"))
    # Small programs too: a look at the disk takes a quarter of the time of compiling an addition, and there are many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
