"""Settings of JAX that hold for the whole process."""

from pathlib import Path

import jax
import platformdirs

from cutnmix_jax.errors import UsageError, one_line

# XLA's names for how 32-bit products are made; a CPU has one way only.
_PRODUCTS = {"tf32": "tensorfloat32", "float32": "highest", "bfloat16": "default"}


def set_up_jax(precision: str) -> None:
    """Chooses the precision of products and keeps compiled programs for the next start.

    Args:
      precision: `tf32`, `float32` or `bfloat16`.

    Raises:
      UsageError: JAX finds no device of the kind that it was told to use.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        raise UsageError(f"JAX finds no device: {one_line(error)[:200]}; see JAX_PLATFORMS") from error
    jax.config.update("jax_default_matmul_precision", _PRODUCTS[precision])
    if jax.config.values["jax_compilation_cache_dir"] is None:  # not chosen by JAX_COMPILATION_CACHE_DIR
        folder = Path(platformdirs.user_cache_dir("cutnmix_jax"), "compiled")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
