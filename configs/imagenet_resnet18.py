"""ResNet-18 for 224x224 images by ImageNet's usual recipe, 90 epochs: 11.7 M parameters, 1.81 G multiply-adds.

Prepare: python -m cutnmix_jax.data prepare --dataset=folder:/data/ILSVRC --size=224
Run: python -m cutnmix_jax.main --config=configs/imagenet_resnet18.py:folder:/data/ILSVRC[,method]
Not run to its end yet: the paper leaves ImageNet to others.
"""

from ml_collections import ConfigDict

from cutnmix_jax.settings import recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """Two peers, by the row cutnmix where the argument names no other; the data set has to be named."""
    return recipe.imagenet("resnet18_imagenet", arg)
