"""Gradient accumulation with mixed precision, in the style of Hugging Face's training loops.

`watch_optimizer(advance=True)` counts optimizer steps, however many micro-batches each of them
uses. Steps that `GradScaler` skips do not count. On a GPU, use "cuda" and torch.float16.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import metricbus
from metricbus import MetricBus
from metricbus.torch import clip_grad_norm_, watch_optimizer

DEVICE, DTYPE = "cpu", torch.bfloat16
MICRO_BATCH, ACCUMULATE, MAX_NORM, EPOCHS = 16, 4, 1.0, 3

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
# The last incomplete batch is dropped, so that every step has the same number of micro-batches.
loader = DataLoader(data, batch_size=MICRO_BATCH, shuffle=True, drop_last=True)

model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(DEVICE)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
    optimizer, T_max=EPOCHS * len(loader) // ACCUMULATE
)
scaler = torch.amp.GradScaler(DEVICE)

with (
    MetricBus(name="accumulation-amp", config={"accumulate": ACCUMULATE}, sinks="csv") as bus,
    watch_optimizer(bus, optimizer, advance=True),
):
    # One value for each optimizer step: the mean over its micro-batches.
    bus.define("train/loss", every=ACCUMULATE, reduce="mean")
    for _ in bus.epochs(EPOCHS):
        # advance=False: the optimizer advances the step, not the loop.
        for number, (images, labels) in enumerate(bus.steps(loader, advance=False), start=1):
            with torch.autocast(DEVICE, dtype=DTYPE):
                loss = nn.functional.cross_entropy(model(images.to(DEVICE)), labels.to(DEVICE))
            bus.log("train/loss", loss)
            scaler.scale(loss / ACCUMULATE).backward()
            if number % ACCUMULATE == 0:
                scaler.unscale_(optimizer)  # clipping needs unscaled gradients
                clip_grad_norm_(bus, model.parameters(), MAX_NORM)
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                optimizer.zero_grad()

history = metricbus.read(bus.dir)
loss = history.series("train/loss")
print(f"{len(loss)} steps of {ACCUMULATE} x {MICRO_BATCH} examples, loss {loss.value[-1]:.3f}")
