"""Per-layer gradient norms, and histograms of the gradients, every 10 steps.

`watch` logs the gradients that the optimizer uses: accumulated, unscaled and clipped, if any
of these apply.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metricbus
from metricbus import MetricBus
from metricbus.torch import watch

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
loader = DataLoader(data, batch_size=64, shuffle=True)

# Deep and with sigmoids, so that the gradients of the first layers vanish, which the norms show.
layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Sigmoid())]
model = nn.Sequential(*layers, nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

# The block restores the model when it ends; steps in between cost nothing.
with MetricBus(name="gradient-norms", sinks="csv") as bus, watch(bus, model, every=10):
    for _ in bus.epochs(3):
        for images, labels in bus.steps(loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bus.log("train/loss", loss)

history = metricbus.read(bus.dir)
for name in history.names():
    if name.startswith("grad_norm/"):
        norms = history.series(name).value
        print(f"{name:20} first {norms[0]:.2e}   last {norms[-1]:.2e}")
