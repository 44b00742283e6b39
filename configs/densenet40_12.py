"""DenseNet-BC-40-12: 0.19 M parameters, 72 M multiply-adds.

Run: python -m cutnmix_jax.main --config=configs/densenet40_12.py[:dataset,method]
Row cutnmix, top-1 %, three runs, paper: CIFAR-100 72.64 +- 0.12, CIFAR-10 93.64 +- 0.12.
"""

from ml_collections import ConfigDict

from cutnmix_jax.settings import recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's recipe; cifar100,cutnmix where the argument says nothing else."""
    return recipe.make("densenet40_12", arg)
