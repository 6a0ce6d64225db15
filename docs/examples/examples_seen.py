"""Number of samples as the x axis, so that runs with different batch sizes are comparable.

The step of a bus can count anything: `advance(len(batch))` makes it count samples, in all sinks.
(To count batches and only plot against another series, log that series as well, and use
`bus.define("train/*", axis="examples")`.)
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metricbus
from metricbus import MetricBus

digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))

folders = {}
for batch_size in (16, 128):
    torch.manual_seed(0)
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    config = {"batch_size": batch_size}
    with MetricBus(name=f"batches-of-{batch_size}", config=config, sinks="csv") as bus:
        for _ in bus.epochs(3):
            # advance=False: batches must not be counted, because the last one is smaller.
            for images, labels in bus.steps(loader, advance=False):
                bus.advance(len(images))
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bus.log("train/loss", loss)
    folders[batch_size] = bus.dir

for batch_size, folder in folders.items():
    loss = metricbus.read(folder).series("train/loss")
    print(f"batches of {batch_size}: {len(loss)} values up to {loss.step[-1]} examples")
