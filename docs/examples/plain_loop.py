"""A plain training loop: log lines every 10 batches, epoch times, early stopping, and plots.

It logs to Python's logging and to CSV. The plots are drawn from the logged values and saved as
`training.png` in the run folder.
"""

import logging

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import metricbus
from metricbus import EarlyStopping, MetricBus

logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
torch.manual_seed(0)

digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
train_set, val_set = random_split(data, [0.8, 0.2])
train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
val_loader = DataLoader(val_set, batch_size=256)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
loss_fn = nn.CrossEntropyLoss()


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the fraction of correct predictions in the batch."""
    return (logits.argmax(dim=1) == labels).float().mean()


with MetricBus(name="plain-loop", config={"lr": 0.003}, sinks="logging,csv") as bus:
    # One line for 10 batches with their mean; for validation, one value per epoch.
    bus.define("train/*", every=10, reduce="mean")
    bus.define("val/*", on_step=False, on_epoch=True)
    stopping = EarlyStopping(bus, "val/loss", patience=3, min_delta=0.001)

    for _ in bus.epochs(30):  # logs the duration of each epoch as time/epoch
        model.train()
        for images, labels in bus.steps(train_loader):
            logits = model(images)
            loss = loss_fn(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            # Log tensors without .item(), which would wait for a GPU.
            bus.log({"train/loss": loss, "train/accuracy": accuracy(logits, labels)})

        model.eval()
        with torch.no_grad():
            for images, labels in bus.steps(val_loader, advance=False):
                logits = model(images)
                # The last batch is smaller, so the mean must be weighted.
                bus.log(
                    {"val/loss": loss_fn(logits, labels), "val/accuracy": accuracy(logits, labels)},
                    weight=len(labels),
                )

        # The mean over the epoch exists only when the epoch has ended, so end it first.
        if stopping(bus.end_epoch()):
            print(f"stopped in epoch {bus.epoch}; the best was at step {stopping.best_step}")
            break

history = metricbus.read(bus.dir)  # now or at any later time
figure, (loss_axes, accuracy_axes, time_axes) = plt.subplots(1, 3, figsize=(12, 3.5))
for axes, quantity in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
    for phase in ("train", "val"):
        series = history.series(f"{phase}/{quantity}")
        axes.plot(series.step, series.value, marker="." if phase == "val" else "", label=phase)
    axes.set(xlabel="step", ylabel=quantity)
    axes.legend()
seconds = history.series("time/epoch")
time_axes.bar(seconds.epoch, seconds.value)
time_axes.set(xlabel="epoch", ylabel="time (s)")
figure.tight_layout()
figure.savefig(bus.dir / "training.png")
print(f"plots: {bus.dir / 'training.png'}")
