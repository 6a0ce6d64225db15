"""torchmetrics objects as values: `pip install torchmetrics`.

`log()` computes nothing. When the epoch ends, each metric is computed over all the data that it has
seen, logged, and reset.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import metricbus
from metricbus import MetricBus

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
train_set, val_set = random_split(data, [0.8, 0.2])
train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
val_loader = DataLoader(val_set, batch_size=100)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

mean_loss = MeanMetric()
scores = MetricCollection(
    {
        "accuracy": MulticlassAccuracy(num_classes=10, average="micro"),
        "f1": MulticlassF1Score(num_classes=10),
        "accuracy_of": MulticlassAccuracy(num_classes=10, average=None),
    }
)

with MetricBus(name="metric-objects", sinks="csv") as bus:
    for _ in bus.epochs(5):
        for images, labels in bus.steps(train_loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean_loss.update(loss.detach(), weight=len(labels))
        bus.log("train/loss", mean_loss)

        with torch.no_grad():
            for images, labels in val_loader:
                scores.update(model(images), labels)
        bus.log("val", scores)  # val/accuracy, val/f1, val/accuracy_of/0 to val/accuracy_of/9

history = metricbus.read(bus.dir)
for name in history.names():
    print(f"{name:18} {history.series(name).value[-1]:.4f}")
