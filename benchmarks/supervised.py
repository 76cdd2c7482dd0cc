"""Plain supervised training: the teachers of the benchmarks and of the built-in examples.

B images of a batch, N in all, C classes, h x w pixels of an image, H x W of a training crop.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datafree.data.segmentation_folder import MaskFolder
from datafree.errors import DataError, Interrupted, RunError, TrainingError
from datafree.ops import augment, modes
from datafree.ops.boxes import mosaic as mosaic_boxes
from datafree.tasks.base import Task
from datafree.tasks.detection import Detection

Optimizer = Literal["adam", "sgd"]
Decay = Literal["cosine", "step"]
LOG_EVERY = 100  # steps
RISE = 100  # steps over which a classifier's learning rate rises: without it some seeds start badly at 0.1


@dataclass(kw_only=True)
class LabelledImages:
    """A labelled data set in memory; what `datafree.evaluation.scoring` asks of labelled data."""

    images: Tensor  # (N, 1 or 3, h, w) uint8, on the CPU; one channel stands for three equal ones
    labels: Tensor  # (N,) class ids int64; for detection targets (N, M, 5), as datafree.boxes has them
    class_names: list[str]  # C names
    skipped: list[str] = field(default_factory=list)  # nothing ever is

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return as_images(self.images[index][None])[0], self.labels[index]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, h, w) float32 in [0, 1] and class ids (B,), in order; the last batch may be smaller."""
        for images, labels in zip(*(torch.split(t, batch_size) for t in (self.images, self.labels)), strict=True):
            yield as_images(images), labels


FASHION = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]


def load_fashion(folder: Path, part: Literal["train", "t10k"]) -> LabelledImages:
    """Fashion-MNIST's 60,000 training ("train") or 10,000 test ("t10k") images, from its gzip files in `folder`.

    Raises OSError when they are not there.
    """
    images = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28)  # 16, 8: the idx format's headers
    ids = np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    return LabelledImages(
        images=torch.from_numpy(pixels.copy()), labels=torch.from_numpy(ids), class_names=list(FASHION)
    )


def as_images(pixels: Tensor) -> Tensor:
    """(B, 1 or 3, h, w) uint8 -> (B, 3, h, w) float32 in [0, 1]; one channel becomes three equal ones."""
    return (pixels.float() / 255).expand(-1, 3, -1, -1)


def train_supervised(
    network: nn.Module,  # images in [0, 1] -> logits (B, C, H, W); normalises by itself (networks.Normalized)
    task: Task,
    images: Tensor,  # (N, 3, h, w) uint8, on the CPU
    masks: Tensor,  # (N, h, w) class ids of any integer type
    *,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    image_size: tuple[int, int],  # (H, W), pixels of the random crops
    optimizer: Optimizer = "adam",
    decay: Decay = "cosine",
    augment: bool = True,  # flip left-right; brightness, contrast and saturation
    scale: tuple[float, float] = (
        1.0,
        1.0,
    ),  # each image is enlarged by a factor from this range, then cropped
    device: torch.device | None = None,  # default: the CPU
    dtype: torch.dtype = torch.float32,  # of forward passes
    log: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    state_path: Path | None = None,
    save_every: int = 1000,  # steps
) -> None:
    """Train `network` in place with `task.target_loss`; it is left on `device`, in eval mode.

    "sgd" has momentum 0.9. "cosine" falls to zero over the run; "step" divides it by 10 after each third
    (as 40 of 120 epochs in arXiv 2011.00809). With `state_path` the state is saved there now and then, and
    when `stop()` turns true; the same call then goes on exactly from there, a finished one returns at once.

    Raises Interrupted on `stop()`, TrainingError for a loss that is not finite, DataError for images that do
    not fit, RunError for a state of another run.
    """
    _check_data(images, masks, image_size, scale)
    device = device or torch.device("cpu")
    modes.seed_everything(seed)
    network.to(device).to(memory_format=torch.channels_last).train()  # a quarter faster on CPUs
    updates = _optimizer(optimizer, network, lr, weight_decay, device)
    setting = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed,
        "image_size": tuple(image_size), "optimizer": optimizer, "decay": decay, "augment": augment,
        "scale": tuple(scale), "images": len(images),
    }  # fmt: skip

    def draw(step: int) -> tuple[Tensor, Tensor]:
        """B images, each cropped at a place of its own."""
        chosen = torch.randint(len(images), (batch_size,)).tolist()
        pairs = [random_crop(images[i], masks[i], image_size, scale) for i in chosen]
        pixels = torch.stack([image for image, _ in pairs]).to(
            device, memory_format=torch.channels_last
        )  # (B, 3, H, W)
        targets = torch.stack([mask for _, mask in pairs]).to(device)  # (B, H, W)
        if augment:
            pixels, targets = random_flip(pixels, targets)
            pixels = colour_jitter(pixels)
        return pixels, targets

    _descend(
        network, task, draw, updates, lambda step: lr * rate(step, steps, decay), setting,
        dtype=dtype, log=log, stop=stop, state_path=state_path, save_every=save_every,
    )  # fmt: skip


def train_classifier(
    network: nn.Module,  # images in [0, 1] -> logits (B, C); normalises by itself (networks.Normalized)
    task: Task,
    data: LabelledImages,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    optimizer: Optimizer = "sgd",
    shift: int = 2,  # pixels, at most; what moves in is black
    device: torch.device | None = None,  # default: the CPU
    dtype: torch.dtype = torch.float32,  # of forward passes
    log: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    state_path: Path | None = None,
    save_every: int = 1000,  # steps
) -> None:
    """Train `network` in place with `task.target_loss`; it is left on `device`, in eval mode.

    "sgd" has Nesterov's momentum of 0.9; `lr` rises over the first 100 steps and falls to zero along a cosine. Each
    image comes once an epoch, an epoch's last batch goes on into the next. A batch is shifted as one, by whole
    pixels; each image is mirrored with probability 0.5. Stops, resumes and raises as `train_supervised` does.
    """
    device = device or torch.device("cpu")
    modes.seed_everything(seed)
    network.to(device).to(memory_format=torch.channels_last).train()
    updates = _optimizer(optimizer, network, lr, weight_decay, device, nesterov=True)
    setting = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed,
        "optimizer": optimizer, "shift": shift, "images": len(data),
    }  # fmt: skip

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = in_epochs(step * batch_size, batch_size, len(data), seed)
        pixels = as_images(data.images[chosen].to(device))
        mirrored = torch.rand(batch_size).lt(0.5).to(device)
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        pixels = random_shift(pixels, shift).contiguous(memory_format=torch.channels_last)
        return pixels, data.labels[chosen].to(device)

    _descend(
        network, task, draw, updates, lambda step: lr * rate(step, steps, "cosine") * min(1.0, (step + 1) / RISE),
        setting, dtype=dtype, log=log, stop=stop, state_path=state_path, save_every=save_every,
    )  # fmt: skip


def train_detector(
    network: nn.Module,  # images in [0, 1] -> Predictions; normalises by itself (networks.Normalized)
    task: Detection,
    images: Tensor,  # (N, 3, H, W) uint8, on the CPU, of the task's size
    targets: Tensor,  # (N, M, 5), as datafree.boxes has them
    *,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    zoom: tuple[float, float] = (0.8, 1.4),  # each image is enlarged by a factor from this range and shifted
    mosaic: float = 0.0,  # share of each batch that is 2 x 2 images
    device: torch.device | None = None,  # default: the CPU
    dtype: torch.dtype = torch.float32,  # of forward passes
    log: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    state_path: Path | None = None,
    save_every: int = 1000,  # steps
) -> None:
    """Train `network` in place with its own loss; it is left on `device`, in eval mode.

    Adam; `lr` rises over the first 100 steps and falls to zero along a cosine. Each image comes once an epoch,
    mirrored with probability 0.5, zoomed, its colours changed. Stops, resumes and raises as `train_supervised` does.
    """
    device = device or torch.device("cpu")
    modes.seed_everything(seed)
    network.to(device).to(memory_format=torch.channels_last).train()
    updates = _optimizer("adam", network, lr, weight_decay, device)
    setting = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed,
        "zoom": tuple(zoom), "mosaic": mosaic, "images": len(images),
    }  # fmt: skip

    def draw(step: int) -> tuple[Tensor, Tensor]:
        chosen = in_epochs(step * batch_size, batch_size, len(images), seed)
        pixels, boxes = as_images(images[chosen].to(device)), targets[chosen].to(device)
        count = round(mosaic * batch_size)
        if count:
            order = torch.randint(batch_size, (count, 4), device=device)
            tiled, tiled_boxes = augment.mosaic(pixels, order), mosaic_boxes(boxes, order, task.image_size)
            pixels, boxes = torch.cat([tiled, pixels[count:]]), torch.cat([tiled_boxes, boxes[count:]])
        pixels, move = augment.shift_and_flip(pixels, 0)
        boxes = task.move_targets(boxes, move)
        pixels, move = augment.scale_crop(pixels, *zoom)
        boxes = task.move_targets(boxes, move)
        pixels = colour_jitter(pixels).contiguous(memory_format=torch.channels_last)
        return pixels, boxes

    _descend(
        network, task, draw, updates, lambda step: lr * rate(step, steps, "cosine") * min(1.0, (step + 1) / RISE),
        setting, dtype=dtype, log=log, stop=stop, state_path=state_path, save_every=save_every,
    )  # fmt: skip


def _descend(
    network: nn.Module,
    task: Task,
    draw: Callable[[int], tuple[Tensor, Tensor]],  # step -> images (B, 3, H, W) and targets, on the device
    updates: torch.optim.Optimizer,
    lr_at: Callable[[int], float],
    setting: dict[str, Any],  # what may not differ between the pieces of a run; its steps are gone through
    *,
    dtype: torch.dtype,
    log: Callable[[str], None],
    stop: Callable[[], bool],
    state_path: Path | None,
    save_every: int,
) -> None:
    """The loop of both: from the saved state, if there is one, to the last step."""
    steps = setting["steps"]
    step = _load(state_path, setting, network, updates) if state_path and state_path.exists() else 0
    while step < steps:
        if stop():
            if state_path:
                _save(state_path, setting, network, updates, step)
            raise Interrupted(
                f"stopped at step {step} of {steps}; run the same command to resume from the last saved state"
            )

        # One step down the loss on the labels.
        pixels, targets = draw(step)
        for group in updates.param_groups:
            group["lr"] = lr_at(step)
        with modes.autocast(pixels.device, dtype):
            loss = task.target_loss(network(pixels), targets)
        updates.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        updates.step()
        step += 1

        # Say how it goes; save.
        if step % LOG_EVERY == 0 or step == steps:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(f"the loss is {value} at step {step}; try a smaller lr than {setting['lr']}")
            log(f"step {step}/{steps}  loss {value:.4f}  lr {updates.param_groups[0]['lr']:.2e}")
        if state_path and (step % save_every == 0 or step == steps):
            _save(state_path, setting, network, updates, step)
    network.eval().to(memory_format=torch.contiguous_format)


def load_folder(
    path: Path, *, image_size: tuple[int, int], num_classes: int, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """All of `path`/{images,masks} in memory: images (N, 3, H, W) uint8 and masks (N, H, W) uint8.

    `image_size`, (height, width) in pixels: images of another size are scaled and cropped. Raises DataError.
    """
    folder = MaskFolder(path, image_size=image_size, num_classes=num_classes, ignore_index=ignore_index)
    pairs = [
        (image.mul(255).round().byte(), mask.byte())
        for batch in folder.batches(64)
        for image, mask in zip(*batch, strict=True)
    ]
    return torch.stack([image for image, _ in pairs]), torch.stack([mask for _, mask in pairs])


def in_epochs(first: int, count: int, size: int, seed: int) -> Tensor:
    """(count,) entries, from place `first` on, of the endless sequence of 0 .. size - 1 shuffled anew each epoch.

    A pure function: a resumed training draws what an unbroken one would have drawn.
    """
    parts = []
    while count:
        epoch, position = divmod(first, size)
        order = torch.randperm(size, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
        parts.append(order[position : position + count])
        first, count = first + len(parts[-1]), count - len(parts[-1])
    return torch.cat(parts)


def random_shift(images: Tensor, most: int) -> Tensor:
    """Move images (B, 3, h, w) together, by up to `most` pixels down or up, right or left; black moves in."""
    down, right = torch.randint(2 * most + 1, (2,)).tolist()
    height, width = images.shape[-2:]
    return F.pad(images, (most, most, most, most))[..., down : down + height, right : right + width]


def rate(step: int, steps: int, decay: Decay) -> float:
    """What the learning rate is multiplied by at `step` of `steps`."""
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / steps))
    return float(0.1 ** (3 * step // steps))


def random_crop(
    image: Tensor, mask: Tensor, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """A random part of `image` (3, h, w) uint8 and `mask` (h, w): (3, H, W) in [0, 1] and (H, W) int64."""
    least = max(s / limit for s, limit in zip(size, mask.shape, strict=True))  # the whole of one side
    factor = max(float(torch.empty(()).uniform_(*scale)), least)
    height, width = (min(round(s / factor), limit) for s, limit in zip(size, mask.shape, strict=True))
    top = int(torch.randint(mask.shape[0] - height + 1, ()))
    left = int(torch.randint(mask.shape[1] - width + 1, ()))
    pixels = image[:, top : top + height, left : left + width].float() / 255
    ids = mask[top : top + height, left : left + width]
    if (height, width) != tuple(size):
        pixels = F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
        ids = F.interpolate(ids[None, None].float(), size=size, mode="nearest-exact")[0, 0]
    return pixels, ids.long()


def random_flip(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror left and right in half of the images (B, 3, H, W) and their masks (B, H, W)."""
    flip = torch.rand(len(images)).lt(0.5).to(images.device)
    mirrored = torch.where(flip[:, None, None, None], images.flip(-1), images)
    return mirrored, torch.where(flip[:, None, None], masks.flip(-1), masks)


def colour_jitter(images: Tensor, strength: float = 0.25) -> Tensor:
    """Brightness, contrast and saturation of each of (B, 3, H, W) times 1 +- `strength`, kept in [0, 1]."""
    factors = (1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1) - 1)).to(images.device)
    brightness, contrast, saturation = factors.unbind()  # each (B, 1, 1, 1)
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def _check_data(images: Tensor, masks: Tensor, size: tuple[int, int], scale: tuple[float, float]) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise DataError(f"images are {tuple(images.shape)} {images.dtype}: give (N, 3, h, w) uint8, N at least 1")
    if masks.shape != (len(images), *images.shape[2:]):
        raise DataError(f"masks are {tuple(masks.shape)}, images {tuple(images.shape)}: give (N, h, w) for them")
    if not 0 < scale[0] <= scale[1]:
        raise DataError(f"scale is {scale}: give the smallest factor, then the largest, both above 0")
    if size[0] > masks.shape[1] or size[1] > masks.shape[2]:
        raise DataError(
            f"image_size {tuple(size)} is larger than the images, {tuple(masks.shape[1:])}; make it smaller"
        )


def _optimizer(
    name: Optimizer,
    network: nn.Module,
    lr: float,
    weight_decay: float,
    device: torch.device,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    weights = [p for p in network.parameters() if p.requires_grad]
    if name == "adam":
        return torch.optim.Adam(weights, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=nesterov)


def _save(path: Path, setting: dict[str, Any], network: nn.Module, updates: torch.optim.Optimizer, step: int) -> None:
    """Write the whole state; a crash leaves the older file or the newer one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    state = {
        "setting": setting,
        "step": step,
        "network": network.state_dict(),
        "optimizer": updates.state_dict(),
    }
    torch.save({**state, "random": modes.random_state()}, half)
    half.replace(path)


def _load(path: Path, setting: dict[str, Any], network: nn.Module, updates: torch.optim.Optimizer) -> int:
    """Put the state back; returns the step to go on from. Raises RunError for another run's."""
    state = torch.load(path, map_location="cpu", weights_only=True)  # tensors and plain values only
    changed = sorted(name for name, value in setting.items() if state["setting"].get(name) != value)
    if changed:
        was = ", ".join(f"{name} was {state['setting'].get(name)!r}, is {setting[name]!r}" for name in changed)
        raise RunError(f"{path} belongs to another run: {was}; remove it to start again")
    network.load_state_dict(state["network"])
    updates.load_state_dict(state["optimizer"])
    modes.set_random_state(state["random"])
    return int(state["step"])
