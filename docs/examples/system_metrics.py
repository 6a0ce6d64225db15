"""System metrics, and how the time of a step is spent.

`SystemMonitor` samples in a background thread; `StepTimer` measures the parts of a step. With a
GPU, both log additional metrics.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metricbus
from metricbus import MetricBus, SystemMonitor
from metricbus.torch import StepTimer

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
loader = DataLoader(data, batch_size=64, shuffle=True)

model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

# Every half second, because this run is short; 10 seconds are enough for a run of several hours.
with (
    MetricBus(name="system-metrics", sinks="csv") as bus,
    SystemMonitor(bus, every_secs=0.5),
    StepTimer(bus, every=10) as timer,
):
    for _ in bus.epochs(10):
        for images, labels in timer(bus.steps(loader)):
            with timer.forward():
                loss = nn.functional.cross_entropy(model(images), labels)
            with timer.backward():
                loss.backward()
            with timer.optimizer():
                optimizer.step()
                optimizer.zero_grad()
            timer.count(samples=len(images))
            bus.log("train/loss", loss)

history = metricbus.read(bus.dir)
for name in history.names():
    print(f"{name:24} {history.series(name).value[-1]:.4g}")
