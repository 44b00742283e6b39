"""WRN-20-8 of wide bottleneck blocks: 6.87 M parameters, 1.02 G multiply-adds.

Run: python -m cutnmix_jax.main --config=configs/wrn20_8.py[:dataset,method]
Row cutnmix, top-1 %, three runs, paper: CIFAR-100 80.09 +- 0.07, CIFAR-10 95.90 +- 0.01.
"""

from ml_collections import ConfigDict

from cutnmix_jax.settings import recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's recipe; cifar100,cutnmix where the argument says nothing else."""
    return recipe.make("wrn20_8", arg)
