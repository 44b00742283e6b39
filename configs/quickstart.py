"""A small run that needs no download: ResNet-8 on scikit-learn's digits, a minute and a half on two CPU cores.

Run: python -m cutnmix_jax.main --config=configs/quickstart.py[:dataset,method]
It shows the machinery; its accuracy says nothing about the paper.
"""

from ml_collections import ConfigDict

from cutnmix_jax.settings import recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's recipe on a small network, shortened; digits,cutnmix where the argument says nothing else."""
    return recipe.quickstart(arg)
