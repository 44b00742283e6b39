"""Weights by the order in which layers run, so that no table of names is needed.

A file holds arrays named `PEER/NUMBER/KIND/PART`: of peer j, the layer that runs as number i, a `conv` (kernel HWIO and
perhaps bias), a `norm` (scale, bias) or a `dense` (kernel [in, out], bias).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

KINDS = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.Linear: "dense"}


def in_order(network: nn.Module) -> list[nn.Module]:
    """The convolutions, batch norms and linear layers of a network in the order in which they run."""
    ran: list[nn.Module] = []
    hooks = [
        layer.register_forward_hook(lambda layer, *_: ran.append(layer))
        for layer in network.modules()
        if type(layer) in KINDS
    ]
    training = network.training
    network.eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    network.train(training)
    for hook in hooks:
        hook.remove()
    return ran


def load(network: nn.Module, arrays: Mapping[str, np.ndarray], peer: int) -> None:
    """Gives a network on the CPU the weights of a peer.

    Raises:
      ValueError: the layers are not those of the file, in number, kind or shape.
    """
    layers = in_order(network)
    mine = [name.split("/") for name in arrays if name.startswith(f"{peer}/")]
    if (count := len({number for _, number, _, _ in mine})) != len(layers):
        raise ValueError(f"{count} layers there, {len(layers)} here")
    for _, number, kind, part in mine:
        layer = layers[int(number)]
        if kind != KINDS[type(layer)]:
            raise ValueError(f"layer {number} is a {kind} there, a {KINDS[type(layer)]} here")
        array = torch.from_numpy(np.array(arrays[f"{peer}/{number}/{kind}/{part}"]))
        if kind == "conv" and part == "kernel":
            array = array.permute(3, 2, 0, 1)
        elif kind == "dense" and part == "kernel":
            array = array.T
        target = getattr(layer, "bias" if part == "bias" else "weight")
        if target is None or target.shape != array.shape:
            raise ValueError(f"layer {number}, {part}: {tuple(array.shape)} there")
        with torch.no_grad():
            target.copy_(array)
