"""Online distillation with CutnMix, and the methods it is compared with, in JAX/Flax."""

__version__ = "0.1.0"
