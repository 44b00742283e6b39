"""ResNet-18 in its CIFAR form, 64 to 512 channels: 11.2 M parameters, 556 M multiply-adds.

The paper's text names it, its tables have ResNet-32.

Run: python -m cutnmix_jax.main --config=configs/resnet18.py[:dataset,method]
"""

from ml_collections import ConfigDict

from cutnmix_jax.settings import recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """The paper's recipe; cifar100,cutnmix where the argument says nothing else."""
    return recipe.make("resnet18", arg)
