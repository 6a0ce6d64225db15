"""Data-parallel training: one run, written by the first rank, with means over all ranks.

    torchrun --standalone --nproc-per-node 2 distributed.py

`log()` never synchronizes ranks. A definition names the values to reduce over all ranks, and the
ranks merge them when every rank calls `end_epoch()`.
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset, random_split
from torch.utils.data.distributed import DistributedSampler

import metricbus
from metricbus import EarlyStopping, MetricBus

dist.init_process_group("gloo")  # "nccl" on GPUs
rank = dist.get_rank()

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.data).float() / 16, torch.tensor(digits.target))
train_set, val_set = random_split(data, [0.8, 0.2])
sampler = DistributedSampler(train_set)
train_loader = DataLoader(train_set, batch_size=32, sampler=sampler)
# A DistributedSampler would repeat some samples, so that all ranks have the same number.
val_share = torch.utils.data.Subset(val_set, range(rank, len(val_set), dist.get_world_size()))
val_loader = DataLoader(val_share, batch_size=64)

model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

# Every rank creates a bus and logs; only the first one writes (ranks=0 is the default).
with MetricBus(name="distributed", sinks="csv") as bus:
    bus.define("train/loss", on_step=False, on_epoch=True, across_ranks="mean")
    bus.define("val/*", on_step=False, on_epoch=True, across_ranks="mean")
    stopping = EarlyStopping(bus, "val/accuracy", patience=2, mode="max")
    for epoch in bus.epochs(8):
        sampler.set_epoch(epoch)
        for images, labels in bus.steps(train_loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bus.log("train/loss", loss, weight=len(labels))
        with torch.no_grad():
            for images, labels in val_loader:
                correct = (model.module(images).argmax(dim=1) == labels).float().mean()
                bus.log("val/accuracy", correct, weight=len(labels))

        # Every rank calls this: the ranks' sums are merged, and the first rank decides.
        if stopping(bus.end_epoch()):
            break

if rank == 0:
    history = metricbus.read(bus.dir)
    accuracy = history.series("val/accuracy")
    print(f"accuracy {accuracy.value[-1]:.4f} after {len(accuracy)} epochs, over both ranks")
dist.destroy_process_group()
