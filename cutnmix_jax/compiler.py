"""How this program has JAX compile, the one place that calls `jax.jit`; and whether what comes out is right."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from cutnmix_jax.errors import UsageError

# For a CPU, XLA hands sums to a library, YNNPACK, and in these releases gets wrong numbers back, silently (jax issues
# 39103 and 39257). The empty value hands nothing to it, which makes steps about half as long again. A GPU does not look
# at it.
_SUM_WRONGLY = ("0.10.2", "0.11.0")


def _options(version: str) -> dict[str, Any]:
    """What a release of jaxlib needs to sum rightly."""
    return {"xla_cpu_experimental_ynn_fusion_type": ""} if version in _SUM_WRONGLY else {}


_OPTIONS = _options(jaxlib.__version__)

# With all its effort JAX 0.12 compiles the first weights of a ResNet-32 for 43 s, with the least for 2 s.
_LEAST_EFFORT: dict[str, Any] = {"xla_backend_optimization_level": 0}


def compiled(
    function: Callable[..., Any], *, once: bool = False, donate: int | tuple[int, ...] = (), **shardings: Any
) -> Any:
    """`jax.jit` with options that give right numbers on every version of JAX that is supported.

    Args:
      function: pure, of arrays.
      once: whether it runs only once, or so seldom that on a CPU compiling it is what takes the time.
      donate: the arguments whose memory it may take over.
      **shardings: `in_shardings` and `out_shardings`, of a run on several devices.

    Returns:
      the compiled function. JAX allows options on the outermost program alone, so it cannot be called in another one.
    """
    effort = _LEAST_EFFORT if once and jax.default_backend() == "cpu" else {}
    return jax.jit(function, donate_argnums=donate, compiler_options=_OPTIONS | effort, **shardings)


@contextlib.contextmanager
def compiled_beside(function: Any, *arguments: Any) -> Iterator[None]:
    """While entered, compiles a program in another thread; the end waits for it, and the first call finds it done.

    What is raised within is raised at once, and the thread left to end by itself.

    Args:
      function: from `compiled`.
      arguments: as of the first call, or their shapes.

    Raises:
      what compiling raises, at the end.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        yield
        return
    lowered = function.lower(*arguments)  # here, because JAX keeps some of its settings for each thread
    pool = ThreadPoolExecutor(1)
    try:
        compiling = pool.submit(lowered.compile)
        yield
        compiling.result()
    finally:
        pool.shutdown(wait=False)


@functools.cache
def check() -> None:
    """Compiles sums that releases of JAX have got wrong, and compares them with numpy's; once a process.

    Raises:
      UsageError: they are wrong, so nothing that is trained could be trusted.
    """
    arguments, expected = _example()
    for found, right in zip(compiled(_sums)(*arguments), expected, strict=True):
        if worst := np.max(np.abs(np.asarray(found, np.float64) - right)):
            raise UsageError(
                f"JAX {jax.__version__} computes wrong numbers on this {jax.local_devices()[0].device_kind} (a sum is "
                f"off by {worst:.3g}); install another release of jax and jaxlib"
            )


def _sums(
    rows: jax.Array, ones: jax.Array, left: jax.Array, right: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the issues named above, and 39336 for a GPU, are about."""
    squares = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))(rows)
    return squares, jnp.sum(jnp.broadcast_to(ones, (2, 1024, 1024))), 3 * (left @ right + bias)


def _example() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """The arguments of `_sums`, of sizes at which wrong numbers were seen, and what numpy makes of them in float64.

    All are small whole numbers, so that every sum is exact in any order and precision.
    """
    rng = np.random.default_rng(0)
    shapes = (33_000, 3), (32, 15), (15, 100), (100,)  # over 32,768 rows
    rows, left, right, bias = (rng.integers(0, 4, shape).astype(np.float64) for shape in shapes)
    arguments = rows, np.ones((1024, 1)), left, right, bias
    expected = np.sum(rows**2, axis=1), np.array(2.0 * 1024 * 1024), 3 * (left @ right + bias)
    return tuple(argument.astype(np.float32) for argument in arguments), expected
