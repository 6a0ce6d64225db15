"""Gradient clipping: the norm before and after, and how often gradients are clipped.

`clip_grad_norm_` is torch's own, with the bus as its first argument; it does not wait for the GPU.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metricbus
from metricbus import MetricBus
from metricbus.torch import clip_grad_norm_

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
loader = DataLoader(data, batch_size=64, shuffle=True)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

with MetricBus(name="clipping", sinks="csv") as bus:
    for _ in bus.epochs(3):
        for images, labels in bus.steps(loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(bus, model.parameters(), max_norm=1.0)
            optimizer.step()
            bus.log("train/loss", loss)

history = metricbus.read(bus.dir)
before, after = history.series("clip/norm_before"), history.series("clip/norm_after")
clipped = history.series("clip/clipped").value.mean()
print(f"largest norm {before.value.max():.2f}, clipped to {after.value.max():.2f}")
print(f"{clipped:.0%} of the steps were clipped")
