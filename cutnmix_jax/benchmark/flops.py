"""The arithmetic of a traced function, counted from its convolutions and products, whatever the platform."""

import math
from typing import Any

import jax


def count(jaxpr: Any) -> int:
    """Floating-point operations, two for each multiply-add, on all devices together.

    Of a loop those of one turn; of branches, of which a device takes one, their mean, which is right where as many
    devices take each.

    Args:
      jaxpr: from `jax.make_jaxpr`, or its inside.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "conv_general_dilated":
            total += convolution(equation)
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        else:
            inside = jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)
            each = [count(one) for one in inside if is_jaxpr(one)]
            if equation.primitive.name == "cond":
                total += sum(each) // len(each)
            elif equation.primitive.name == "shard_map":  # whose inside is what one device does
                sizes, of_12 = equation.params["mesh"].shape, "newly_manual_axes"  # as JAX 0.12 calls them
                axes = equation.params[of_12 if of_12 in equation.params else "manual_axes"]
                total += sum(each) * math.prod(sizes[axis] for axis in axes)
            else:
                total += sum(each)
    return total


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter of an operation is a traced function."""
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def convolution(equation: Any) -> int:
    """Operations of a convolution, those with the padding included, those with the zeros of a dilated input not."""
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    per_output = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])  # input features, then space
    dilated = math.prod(equation.params["lhs_dilation"])
    return 2 * equation.outvars[0].aval.size * per_output // dilated
