"""Images, a table, audio and video from one training run.

Misclassified digits as images and in a table; the weights of the first layer as a video over the
epochs; the loss as a sound whose pitch follows it.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import metricbus
from metricbus import Audio, Image, MetricBus, Table, Video

SAMPLE_RATE = 16_000

torch.manual_seed(0)
digits = load_digits()
data = TensorDataset(torch.tensor(digits.images).float() / 16, torch.tensor(digits.target))
train_set, val_set = random_split(data, [0.8, 0.2])
train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
val_images, val_labels = val_set[:]

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.003)


def enlarged(picture: torch.Tensor, times: int = 8) -> torch.Tensor:
    """Return the image of shape (height, width) with each pixel enlarged to a square."""
    return picture.repeat_interleave(times, dim=0).repeat_interleave(times, dim=1)


def weights_as_picture() -> torch.Tensor:
    """Return the first layer's 32 templates of 8 x 8 as 4 rows of 8, with values from 0 to 1."""
    weights = model[1].weight.detach().reshape(4, 8, 8, 8)
    picture = weights.permute(0, 2, 1, 3).reshape(32, 64)
    return enlarged((picture / 0.6 + 0.5).clamp(0, 1), times=4)


def as_sound(losses: list[float], seconds: float = 3.0) -> np.ndarray:
    """Return a tone of 220 Hz for a loss of 0, one octave higher for each unit of loss."""
    times = np.linspace(0, 1, int(SAMPLE_RATE * seconds))
    loss = np.interp(times, np.linspace(0, 1, len(losses)), losses)
    phase = np.cumsum(220 * 2**loss) / SAMPLE_RATE
    return 0.5 * np.sin(2 * np.pi * phase)


with MetricBus(name="media", sinks="csv") as bus:
    frames = []
    for _ in bus.epochs(12):
        for images, labels in bus.steps(train_loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bus.log("train/loss", loss)
        frames.append(weights_as_picture())
        bus.log("weights/first_layer", Image(frames[-1]))

    with torch.no_grad():
        guesses = model(val_images).argmax(dim=1)
    misread = (guesses != val_labels).nonzero().flatten().tolist()
    pictures = {index: Image(enlarged(val_images[index])) for index in misread}
    bus.log(
        "val/misread",
        Image([enlarged(val_images[index]) for index in misread], columns=6),
    )
    table = Table(columns=["index", "digit", "guess", "picture"])
    for index, picture in pictures.items():
        table.append([index, int(val_labels[index]), int(guesses[index]), picture])
    bus.log("val/misread_table", table)
    bus.log("weights/film", Video(torch.stack(frames).unsqueeze(-1), fps=4))
    bus.flush()  # so that all losses can be read back
    losses = metricbus.read(bus.dir).series("train/loss").value
    bus.log("train/sound", Audio(as_sound(losses), SAMPLE_RATE, caption="pitch falls as loss does"))

for medium in metricbus.read(bus.dir).media():
    print(f"{medium.name} at step {medium.step}: {type(medium).__name__}")
