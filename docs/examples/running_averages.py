"""Running averages of a noisy loss: over windows, exponential, and over the epoch.

Definitions declare the averages once, and the loop logs plain values. A reduced name has its
average instead of its values. To keep both, log the value under two names.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metricbus
from metricbus import MetricBus

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
loader = DataLoader(data, batch_size=16, shuffle=True)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

with MetricBus(name="running-averages", sinks="csv") as bus:
    bus.define("train/loss", on_epoch=True)  # every value, and train/loss_epoch
    bus.define("train/loss_of_20", every=20, reduce="mean")  # one per 20 steps
    bus.define("train/loss_smooth", every=1, reduce="ema0.95")  # one per step
    bus.define("train/loss_spread", every=20, reduce="std")
    for _ in bus.epochs(3):
        for images, labels in bus.steps(loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bus.log(
                {
                    "train/loss": loss,
                    "train/loss_of_20": loss,
                    "train/loss_smooth": loss,
                    "train/loss_spread": loss,
                }
            )
        print(f"epoch {bus.epoch}: mean loss {bus.end_epoch()['train/loss_epoch']:.3f}")

history = metricbus.read(bus.dir)
for name in history.names():
    series = history.series(name)
    print(f"{name:18} {len(series):3} values, the last {series.value[-1]:.4f}")
