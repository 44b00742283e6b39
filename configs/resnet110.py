"""ResNet-110 of bottleneck blocks: 1.17 M parameters, 167 M multiply-adds.

Run: python -m cutnmix_jax.main --config=configs/resnet110.py[:dataset,method]
Row cutnmix, top-1 %, three runs, paper: CIFAR-100 79.32 +- 0.35, CIFAR-10 95.76 +- 0.14.
"""

from ml_collections import ConfigDict

from cutnmix_jax.settings import recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's recipe; cifar100,cutnmix where the argument says nothing else."""
    return recipe.make("resnet110", arg)
