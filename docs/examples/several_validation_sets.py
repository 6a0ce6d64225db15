"""Several validation sets, and a checkpoint of the model that is best on one of them.

Each set is a phase: its values are reduced to one value per epoch.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import metricbus
from metricbus import Best, MetricBus

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.images).float() / 16, torch.tensor(digits.target))
train_set, val_set = random_split(data, [0.8, 0.2])
train_loader = DataLoader(train_set, batch_size=64, shuffle=True)

images, labels = val_set[:]
val_sets = {
    "clean": images,
    "noisy": images + 0.3 * torch.randn(images.shape),
    "shifted": images.roll(1, dims=2),
}
val_loaders = {
    name: DataLoader(TensorDataset(changed, labels), batch_size=100)
    for name, changed in val_sets.items()
}

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)

with MetricBus(name="several-validation-sets", sinks="csv") as bus:
    best = Best(bus, "val/noisy/accuracy", mode="max")
    for _ in bus.epochs(8):
        model.train()
        for images, labels in bus.steps(train_loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bus.log("train/loss", loss)

        model.eval()
        with torch.no_grad():
            for name, loader in val_loaders.items():
                val = bus.phase(f"val/{name}", on="epoch")
                for images, labels in loader:
                    accuracy = (model(images).argmax(dim=1) == labels).float().mean()
                    val.log("accuracy", accuracy, weight=len(labels))

        # The accuracies of the sets are available only after the epoch has ended.
        if best(bus.end_epoch()):
            torch.save(model.state_dict(), bus.dir / "best.pt")

history = metricbus.read(bus.dir)
for name in val_sets:
    print(f"{name:8} {history.series(f'val/{name}/accuracy').value[-1]:.3f}")
print(f"best on noisy digits: {best.value:.3f} in epoch {best.epoch}, saved as best.pt")
