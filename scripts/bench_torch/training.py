"""The same method, losses, augmentation and optimizer in PyTorch.

What it trains is described by a plain dictionary, which `cutnmix_jax/benchmark/reference.py` makes of a configuration:
`networks` (names), `classes`, `batch`, `precision`, `views`, `mix` (kind, prob, alpha), `weights`, `temperature`,
`teacher_moves_peers`, `momentum`, `nesterov`, `weight_decay`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from scripts.bench_torch.networks import NETWORKS, Result

PADDING = 4
MEAN = STD = 1 / 3  # of random images any will do, as long as both sides take the same


class Model(nn.Module):
    """The peers and the peer teacher."""

    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.peers = nn.ModuleList(NETWORKS[name](spec["classes"]) for name in spec["networks"])
        joined = 0
        for peer in self.peers:  # whose features may differ in size
            with torch.no_grad():
                joined += peer.eval()(torch.zeros(1, 3, 32, 32))[1].shape[1]
        self.teacher = nn.Linear(joined, spec["classes"]) if "pt" in spec["weights"] else None
        self.train()


def distance(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """tau^2 KL(teacher || student), mean over the batch."""
    log_p = functional.log_softmax(student / temperature, 1)
    log_q = functional.log_softmax(teacher / temperature, 1)
    return functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def objective(
    model: Model, images: Sequence[torch.Tensor], targets: torch.Tensor, spec: dict[str, Any]
) -> torch.Tensor:
    """The sum over peers of Eq. 8 and the peer teacher's own loss; images [n, 3, H, W] of each, targets [n, K]."""
    weights, temperature = spec["weights"], spec.get("temperature", 1.0)
    if spec["precision"] == "bfloat16":
        with torch.autocast(images[0].device.type, torch.bfloat16):
            outputs: list[Result] = [peer(x) for peer, x in zip(model.peers, images, strict=True)]
        outputs = [(logits.float(), features.float()) for logits, features in outputs]
    else:
        outputs = [peer(x) for peer, x in zip(model.peers, images, strict=True)]
    total = sum(functional.cross_entropy(logits, targets) for logits, _ in outputs) * weights["ce"]
    pairs = [(j, k) for j in range(len(outputs)) for k in range(len(outputs)) if j != k]
    others = max(len(outputs) - 1, 1)
    if weights.get("dml"):
        each = [distance(outputs[j][0], outputs[k][0].detach(), temperature) for j, k in pairs]
        total = total + weights["dml"] / others * sum(each)
    if weights.get("mmd"):
        means = [features.mean(0) for _, features in outputs]
        total = total + weights["mmd"] / others * sum(((means[j] - means[k].detach()) ** 2).sum() for j, k in pairs)
    if model.teacher is not None:
        joined = torch.cat([features for _, features in outputs], 1)
        taught = model.teacher(joined if spec["teacher_moves_peers"] else joined.detach())
        if weights.get("pt"):
            total = total + weights["pt"] * sum(distance(out[0], taught.detach(), temperature) for out in outputs)
        total = total + weights["peer_teacher_ce"] * functional.cross_entropy(taught, targets)
    return total


def optimizer(model: Model, spec: dict[str, Any], learning_rate: float, fused: bool) -> torch.optim.Optimizer:
    """SGD with coupled weight decay on everything."""
    kwargs = {name: spec[name] for name in ("momentum", "nesterov", "weight_decay")}
    return torch.optim.SGD(model.parameters(), lr=learning_rate, fused=fused, **kwargs)


def views_on_device(images: torch.Tensor) -> torch.Tensor:
    """Random crops out of the padded images and mirror images, uint8 [n, 32, 32, 3] to float [n, 3, 32, 32]."""
    count, size = images.shape[:2]
    device = images.device
    padded = functional.pad(images, (0, 0, PADDING, PADDING, PADDING, PADDING))
    offsets = torch.randint(0, 2 * PADDING + 1, (2, count, 1), device=device)
    along = torch.arange(size, device=device)
    columns = torch.where(torch.rand(count, 1, device=device) < 0.5, along, size - 1 - along) + offsets[1]
    rows = along + offsets[0]
    cropped = padded[torch.arange(count, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).float() / 255  # NHWC below, so channels_last


def mixed(
    views: Sequence[torch.Tensor], labels: torch.Tensor, spec: dict[str, Any]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """CutnMix, CutMix, MixUp or nothing, without waiting for the device; normalised images and targets [n, K]."""
    mix, device, size = spec["mix"], labels.device, views[0].shape[-1]
    own = functional.one_hot(labels, spec["classes"]).float()
    if mix["kind"] == "none":
        return [(x - MEAN) / STD for x in views], own
    partner = torch.randperm(len(labels), device=device)
    ratio = torch.rand((), device=device) if mix["alpha"] == 1 else torch.distributions.Beta(
        torch.full((), mix["alpha"], device=device), torch.full((), mix["alpha"], device=device)
    ).sample()  # fmt: skip
    on = (torch.rand((), device=device) < mix["prob"]).float()
    if mix["kind"] == "mixup":
        amount = ratio * on
        blended = [amount * x[partner] + (1 - amount) * x for x in views]
        return [(x - MEAN) / STD for x in blended], amount * own[partner] + (1 - amount) * own
    half = (size * ratio.sqrt()).floor().div(2).floor()
    centre = torch.randint(0, size, (2,), device=device)
    low, high = (centre - half).clamp(min=0), (centre + half).clamp(max=size)
    shape = (high - low) * on
    amount = shape.prod() / size**2
    along = torch.arange(size, device=device)
    results = []
    for x in views:
        if mix["kind"] == "cutnmix" and len(views) > 1:
            # CutMix's law given the shape: a side that was cut lies at either border, one that was not anywhere. A side
            # of `half` comes from a centre of 0 alone.
            free = torch.floor(torch.rand(2, device=device) * (size - shape + 1))
            far = (torch.rand(2, device=device) < 0.5) & (shape > half)
            low = torch.where(shape < 2 * half, (size - shape) * far, free)
        inside = [(along >= low[axis]) & (along < low[axis] + shape[axis]) for axis in range(2)]
        results.append((torch.where(inside[0][:, None] & inside[1], x[partner], x) - MEAN) / STD)
    return results, amount * own[partner] + (1 - amount) * own


def mixed_on_host(
    views: Sequence[torch.Tensor], labels: torch.Tensor, spec: dict[str, Any]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The same as published code has it: boxes drawn on the host, pasted in place; for `cutmix` and `cutnmix`."""
    own = functional.one_hot(labels, spec["classes"]).float()
    if spec["mix"]["kind"] not in ("cutmix", "cutnmix"):
        return mixed(views, labels, spec)
    if torch.rand(()) >= spec["mix"]["prob"]:
        return [(x - MEAN) / STD for x in views], own
    size = views[0].shape[-1]
    partner = torch.randperm(len(labels)).to(labels.device)
    alpha = torch.tensor(float(spec["mix"]["alpha"]))
    half = int(size * math.sqrt(torch.distributions.Beta(alpha, alpha).sample().item())) // 2
    centre = [int(torch.randint(0, size, ())) for _ in range(2)]
    low, high = [max(at - half, 0) for at in centre], [min(at + half, size) for at in centre]
    shape = [high[axis] - low[axis] for axis in range(2)]
    amount = shape[0] * shape[1] / size**2
    results = []
    for x in views:
        if spec["mix"]["kind"] == "cutnmix" and len(views) > 1:
            fits = [[c for c in range(size) if min(c + half, size) - max(c - half, 0) == length] for length in shape]
            low = [max(centres[int(torch.randint(0, len(centres), ()))] - half, 0) for centres in fits]
        box = (slice(low[0], low[0] + shape[0]), slice(low[1], low[1] + shape[1]))
        other = x[partner]
        x[:, :, box[0], box[1]] = other[:, :, box[0], box[1]]
        results.append((x - MEAN) / STD)
    return results, amount * own[partner] + (1 - amount) * own
