"""Online distillation with CutnMix, and the methods it is compared with, in JAX/Flax.

What other programs may use is named here, and shown in `docs/library.md`. A name is imported when it is first used, so
that `import cutnmix_jax` takes no time and asks JAX for nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutnmix_jax import backbones, errors, losses
    from cutnmix_jax.library import configure, history, results
    from cutnmix_jax.mixing import Mixed, cutmix, cutnmix, mixup
    from cutnmix_jax.objective import Objective
    from cutnmix_jax.objective import make as objective_of
    from cutnmix_jax.settings import Settings
    from cutnmix_jax.student.load import load_student
    from cutnmix_jax.student.network import Predictions, Student
    from cutnmix_jax.training import train
    from cutnmix_jax.types import Outputs

__version__ = "0.1.0"
__all__ = [
    "Mixed", "Objective", "Outputs", "Predictions", "Settings", "Student", "backbones", "configure", "cutmix",
    "cutnmix", "errors", "history", "load_student", "losses", "mixup", "objective_of", "results", "train",
]  # fmt: skip

# A name -> the module that has it, and its name there; none where it is the module.
_PLACES = {
    **{name: (name, "") for name in ("backbones", "errors", "losses")},
    **{name: ("library", name) for name in ("configure", "history", "results")},
    **{name: ("mixing", name) for name in ("Mixed", "cutmix", "cutnmix", "mixup")},
    "Objective": ("objective", "Objective"),
    "objective_of": ("objective", "make"),
    "Settings": ("settings", "Settings"),
    "train": ("training", "train"),
    "load_student": ("student.load", "load_student"),
    **{name: ("student.network", name) for name in ("Predictions", "Student")},
    "Outputs": ("types", "Outputs"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    found = importlib.import_module(f"{__name__}.{module}")
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
