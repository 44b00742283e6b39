"""ResNet-32 of basic blocks: 0.47 M parameters, 69 M multiply-adds.

Run: python -m cutnmix_jax.main --config=configs/resnet32.py[:dataset,method]
Row cutnmix, top-1 %, three runs, paper: CIFAR-100 73.84 +- 0.25, CIFAR-10 94.24 +- 0.04.
"""

from ml_collections import ConfigDict

from cutnmix_jax.settings import recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's recipe; cifar100,cutnmix where the argument says nothing else."""
    return recipe.make("resnet32", arg)
