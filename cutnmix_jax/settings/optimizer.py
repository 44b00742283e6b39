"""The fields of the optimizer."""

import dataclasses

from cutnmix_jax.fields import Change, field, increasing_epochs, number, one_of, truth

OPTIMIZERS = ("sgd", "adamw", "lars")
SCHEDULES = ("stepwise", "cosine")

# Fields of the optimizer that one of these looks at, and others do not.
_OF_SGD_AND_LARS = {"name": ("sgd", "lars")}
_OF_ADAMW = {"name": ("adamw",)}
_OF_LARS = {"name": ("lars",)}
_OF_STEPWISE = {"schedule": ("stepwise",)}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """SGD as section 3.1 has it, or another one; see `engine.optim.make`."""

    name: str = field("sgd", one_of(OPTIMIZERS), "sgd, adamw or lars; section 3.1 has sgd", Change.NEVER)
    # Less than 1e-12 changes no digit of a float32 weight; with more than 1e6 they overflow in a few steps.
    learning_rate: float = field(0.05, number(1e-12, 1e6), "section 3.1")
    schedule: str = field("stepwise", one_of(SCHEDULES), "how the rate falls: by milestones, or to 0")
    warm_up_epochs: float = field(0.0, number(0), "in which the rate rises linearly first; the paper has none")
    milestones: tuple[int, ...] = field(
        (150, 180, 210),
        increasing_epochs,
        "0-based epochs from which the rate is multiplied by decay; () for none",
        of=_OF_STEPWISE,
    )
    decay: float = field(
        0.1, number(1e-6, 1), '"by 10%" in the text; x0.1 in SSKD [26] and in the lineage', of=_OF_STEPWISE
    )
    # Gradients count 1 / (1 - momentum) times: 10,000 at most.
    momentum: float = field(0.9, number(0, 0.9999), "section 3.1", of=_OF_SGD_AND_LARS)
    nesterov: bool = field(True, truth, "section 3.1", of=_OF_SGD_AND_LARS)
    # At 1 a weight counts as much as its gradient.
    weight_decay: float = field(
        5e-4,
        number(1e-12, 1, or_zero=True),
        "on every parameter, as in the single parameter group of the lineage; of lars not on biases and norms",
    )
    beta_1: float = field(0.9, number(0, 0.9999), "Loshchilov and Hutter 2019", of=_OF_ADAMW)
    beta_2: float = field(0.999, number(0, 0.999999), "likewise", of=_OF_ADAMW)
    epsilon: float = field(1e-8, number(1e-12, 1), "likewise", of=_OF_ADAMW)
    trust: float = field(1e-3, number(1e-6, 1), "the share of its own norm that an array may move by", of=_OF_LARS)
