"""Learning rates of several parameter groups with a scheduler.

The rate of each group is logged as `lr/<name>`, with the "name" of the group.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metricbus
from metricbus import MetricBus
from metricbus.torch import watch_optimizer

EPOCHS = 3

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
loader = DataLoader(data, batch_size=64, shuffle=True)

body = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
head = nn.Linear(128, 10)
optimizer = torch.optim.AdamW(
    [
        {"params": body.parameters(), "weight_decay": 0.1, "name": "body"},
        {"params": head.parameters(), "weight_decay": 0.0, "name": "head"},
    ]
)
schedule = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=[0.003, 0.03], total_steps=EPOCHS * len(loader)
)

with (
    MetricBus(name="learning-rates", sinks="csv") as bus,
    watch_optimizer(bus, optimizer, momentum=True, weight_decay=True),
):
    for _ in bus.epochs(EPOCHS):
        for images, labels in bus.steps(loader):
            loss = nn.functional.cross_entropy(head(body(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # logs the rates of this step
            schedule.step()
            bus.log("train/loss", loss)

history = metricbus.read(bus.dir)
for group in ("body", "head"):
    rates = history.series(f"lr/{group}")
    peak = rates.value.argmax()
    print(f"{group}: {rates.value[0]:.1e}, highest at step {rates.step[peak]}", end=" ")
    print(f"({rates.value[peak]:.1e}), finally {rates.value[-1]:.1e}")
