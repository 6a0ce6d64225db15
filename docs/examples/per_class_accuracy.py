"""Accuracy of each class, counted on the device over the whole validation set.

A mean of batch accuracies would be wrong, because a batch may contain no sample of a class. Correct
predictions and samples are therefore summed for each class and divided at the end.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import metricbus
from metricbus import MetricBus

CLASSES = [str(digit) for digit in range(10)]

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
train_set, val_set = random_split(data, [0.8, 0.2])
train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
val_loader = DataLoader(val_set, batch_size=256)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)


@torch.no_grad()
def class_accuracies() -> torch.Tensor:
    """Return the fraction of correct predictions for each class; shape (classes,)."""
    correct = torch.zeros(len(CLASSES))
    samples = torch.zeros(len(CLASSES))
    for images, labels in val_loader:
        is_correct = model(images).argmax(dim=1) == labels
        one_hot = nn.functional.one_hot(labels, len(CLASSES)).float()
        correct += is_correct.float() @ one_hot
        samples += one_hot.sum(dim=0)
    return correct / samples  # NaN for a class without samples, which is logged unchanged


with MetricBus(name="per-class-accuracy", sinks="csv") as bus:
    for _ in bus.epochs(5):
        for images, labels in bus.steps(train_loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bus.log("train/loss", loss)
        accuracy = class_accuracies()
        # A nested mapping is logged as val/accuracy/0, val/accuracy/1 and so on.
        bus.log({"val/accuracy": dict(zip(CLASSES, accuracy, strict=True))})
        bus.log({"val/accuracy_mean": accuracy.mean(), "val/accuracy_worst": accuracy.min()})

history = metricbus.read(bus.dir)
for name in CLASSES:
    print(f"digit {name}: {history.series(f'val/accuracy/{name}').value[-1]:.3f}")
