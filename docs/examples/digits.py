"""A small convolutional network on 1,797 handwritten digits, logged with media of every kind.

`metricbus demo` runs this program.

The digits are scikit-learn's copy of the UCI data set of handwritten digits
(https://archive.ics.uci.edu/dataset/80), with 8x8 pixels in 17 gray levels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from metricbus import (
    Audio,
    Chart,
    File,
    Histogram,
    Image,
    MetricBus,
    Report,
    Table,
    Text,
    Video,
)

BATCH, CHANNELS, MAX_LR, CLIP = 64, 16, 1e-2, 5.0
LOGGED_ERRORS = 6  # misclassified digits that are logged as images
WINDOW = 5  # training steps that are averaged into one value
CONFIG = {"optimizer": "AdamW", "max_lr": MAX_LR, "batch_size": BATCH, "channels": CHANNELS}


def run_demo(sinks: str, dir: Path, epochs: int) -> tuple[Report, Path]:
    """Train and log; return the final counts and the run's folder."""
    torch.manual_seed(0)
    train, validation = load_data()
    model = make_model(CHANNELS)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=MAX_LR, total_steps=epochs * len(train)
    )
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", level=logging.INFO)
    with MetricBus(name="digits", project="demo", config=CONFIG, sinks=sinks, dir=dir) as bus:
        bus.define("train/*", every=WINDOW, reduce="mean")
        bus.define("val/*", on_step=False, on_epoch=True)
        for name in ("train/loss", "val/accuracy"):
            bus.define(name, progress=True)  # shown in the progress bars
        for _ in bus.epochs(epochs):
            model.train()
            for images, labels in bus.steps(train):
                logits = model(images)
                loss = nn.functional.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                grad_norm = nn.utils.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                schedule.step()
                bus.log("train/loss", loss)
                bus.log("train/accuracy", accuracy(logits, labels))
                bus.log("train/learning_rate", schedule.get_last_lr()[0])
                bus.log("train/grad_norm", grad_norm)
            for batch_accuracy, size in validate(model, validation):
                bus.log("val/accuracy", batch_accuracy, weight=size)
            log_weights(bus, model)
        log_errors(bus, model, validation)
        folder = bus.dir or dir
    return bus.stats(), folder


def log_weights(bus: MetricBus, model: nn.Module) -> None:
    """Log a histogram of each layer's weights."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            bus.log(f"weights/{name}", Histogram(parameter))


@torch.no_grad()
def log_errors(bus: MetricBus, model: nn.Module, data: DataLoader[tuple[Tensor, ...]]) -> None:
    """Log the validation errors as media of all kinds, and the model as a file."""
    model.eval()
    images, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    predictions = model(images).argmax(dim=1)
    wrong = (predictions != labels).nonzero()[:, 0]
    pairs = {"digit": labels, "prediction": predictions}
    bus.log("val/confusion", Chart(pairs, kind="confusion", title="digits and predictions"))
    table = Table(columns=["image", "digit", "prediction"])
    for i in wrong.tolist():
        image = Image(enlarge(images[i]), caption=f"{labels[i]}, predicted {predictions[i]}")
        if len(table.rows) < LOGGED_ERRORS:
            bus.log(f"val/errors/{len(table.rows)}", image)
        table.append([image, labels[i], predictions[i]])
    bus.log("val/error_table", table)
    bus.log("val/film", Video([enlarge(image) for image in images[:20]], fps=4))
    bus.log("val/sound", Audio(torch.sin(torch.arange(8000) ** 1.5 / 500), 8000, "a rising tone"))
    bus.log("notes", Text(f"**{len(wrong)}** of {len(labels)} digits were misclassified."))
    bus.log("model", File(save(model, bus.dir)))


def enlarge(image: Tensor, times: int = 8) -> Tensor:
    """Return the image with each pixel repeated in both dimensions."""
    return image.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def save(model: nn.Module, folder: Path | None) -> Path:
    """Write the model's weights into the run's folder and return the file's path."""
    path = (folder or Path()) / "model.pt"
    torch.save(model.state_dict(), path)
    return path


def load_data() -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """Return the digits, 80 % for training, as images of shape (1, 8, 8) in [0, 1]."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = TensorDataset(images, torch.tensor(digits.target))
    train, validation = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    return DataLoader(train, batch_size=BATCH, shuffle=True), DataLoader(validation, batch_size=256)


def make_model(channels: int) -> nn.Module:
    """Return a network of two convolutions and a linear layer, for images of shape (1, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * channels * 4, 10),
    )


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the fraction of images whose largest logit is that of their label."""
    return (logits.argmax(dim=1) == labels).float().mean()


@torch.no_grad()
def validate(
    model: nn.Module, data: DataLoader[tuple[Tensor, ...]]
) -> Iterator[tuple[Tensor, int]]:
    """Yield the accuracy on each batch of `data`, and the batch's size."""
    model.eval()
    for images, labels in data:
        yield accuracy(model(images), labels), len(labels)


if __name__ == "__main__":
    print(run_demo(sinks="csv", dir=Path("runs"), epochs=5))
