"""A worker with the PyTorch program, in one of the ways in which people write such programs.

- A, as published: eager, NCHW, views made with Pillow in a DataLoader's workers, boxes drawn on the host, the loss read
  (`.item()`) in each step.
- B, tuned: eager, images as uint8 on the device and everything done there, channels_last, `cudnn.benchmark`, fused SGD.
- C: B, compiled by `torch.compile` with CUDA graphs (`reduce-overhead`). Cmax: with `max-autotune`.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from cutnmix_jax.benchmark import worker
from scripts.bench_torch import training

WARM_UP = {"A": 5, "B": 5, "C": 12, "Cmax": 12}  # CUDA graphs are recorded after a few
IMAGES = 50_000


class Views(Dataset):
    """Each image as all its views, made with Pillow, and its label."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, count: int, shared: bool) -> None:
        self.images, self.labels, self.count, self.shared = images, labels, count, shared

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """[J, 3, 32, 32] float in [0, 1], and the label."""
        image = Image.fromarray(self.images[index])
        views = [self.view(image)] * self.count if self.shared else [self.view(image) for _ in range(self.count)]
        return torch.stack(views), int(self.labels[index])

    def view(self, image: Image.Image) -> torch.Tensor:
        """A random crop out of the padded image, mirrored half of the time."""
        pad = training.PADDING
        left, top = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
        image = ImageOps.expand(image, pad).crop((left, top, left + image.width, top + image.height))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255


def forever(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Epoch after epoch."""
    while True:
        yield from loader


def as_published(spec: dict[str, Any], model: training.Model, device: torch.device) -> Callable[[], None]:
    """A step of tier A."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    data = Views(images, rng.integers(0, spec["classes"], IMAGES), len(spec["networks"]), spec["views"] == "shared")
    workers = min(4, os.cpu_count() or 1)
    loader = DataLoader(data, spec["batch"], shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True,
                        # Windows are short on a CPU, and what was made ahead costs nothing within them.
                        prefetch_factor=2 if device.type == "cuda" else 1,
                        pin_memory=device.type == "cuda")  # fmt: skip
    batches = forever(loader)
    optimizer = training.optimizer(model, spec, 0.01, fused=False)
    running = 0.0

    def step() -> None:
        nonlocal running
        views, labels = next(batches)
        views, labels = views.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        inputs, targets = training.mixed_on_host(list(views.unbind(1)), labels, spec)
        loss = training.objective(model, inputs, targets, spec)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        running += loss.item()

    return step


def tuned(spec: dict[str, Any], model: training.Model, device: torch.device, mode: str | None) -> Callable[[], None]:
    """A step of tier B, or of tier C with the mode of `torch.compile`."""
    images = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, spec["classes"], (IMAGES,), device=device)
    optimizer = training.optimizer(model, spec, 0.01, fused=True)
    order, position = torch.randperm(IMAGES, device=device), 0

    def loss_of(pixels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        if spec["views"] == "shared":
            views = [training.views_on_device(pixels)] * len(spec["networks"])
        else:
            views = [training.views_on_device(pixels) for _ in spec["networks"]]
        return training.objective(model, *training.mixed(views, classes, spec), spec)

    if mode:
        loss_of = torch.compile(loss_of, mode=mode)

    def step() -> None:
        nonlocal position, order
        if position + spec["batch"] > IMAGES:
            order, position = torch.randperm(IMAGES, device=device), 0
        index = order[position : position + spec["batch"]]
        position += spec["batch"]
        loss = loss_of(images[index], labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], worker.Window, Callable[[], dict[str, Any]]]:
    """Makes the networks and warms up; compiling is part of warming up."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    allowed = spec["precision"] != "float32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = spec["tier"] != "A"
    torch.manual_seed(0)
    model = training.Model(spec).to(device)
    if spec["tier"] != "A":
        model = model.to(memory_format=torch.channels_last)
    mode = {"C": "reduce-overhead", "Cmax": "max-autotune"}.get(spec["tier"])
    step = as_published(spec, model, device) if spec["tier"] == "A" else tuned(spec, model, device, mode)

    def call(steps: int) -> None:
        for _ in range(steps):
            step()
        if cuda:
            torch.cuda.synchronize()

    begun = time.perf_counter()
    call(1)
    first = time.perf_counter() - begun
    call(WARM_UP[spec["tier"]])
    if cuda:
        torch.cuda.reset_peak_memory_stats()  # without what `cudnn.benchmark` tried
    found = {
        "compile_cold_s": first,  # the first step whole
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": {"torch": torch.__version__},
    }
    return found, lambda steps: worker.timed(call, steps), after


def after() -> dict[str, Any]:
    """The most memory that was in use at once, where the device tells."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"peak_memory_mib": peak / 2**20 if peak else None}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        worker.serve(prepare)
