"""`Audio`: a sound."""

from __future__ import annotations

import io
import wave
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metricbus._common.media_base import (
    EncodeContext,
    EncodeJob,
    MediaValue,
    as_path,
    check_format,
    check_text,
)
from metricbus._common.media_records import AudioRecord
from metricbus.media.arrays import Array, snapshot, told, view_of

_FORMATS = (".wav", ".mp3", ".ogg", ".flac", ".m4a", ".opus")
_MOST_CHANNELS = 16
_FASTEST = 1 << 26  # a WAV has 32 bits for the bytes in a second
_LOUDEST = 32_767
_ACCEPTED = "samples as int16, or as floats from -1 to 1, with one axis or (time, channels); a path"


class Audio(MediaValue):
    """A sound: samples and their rate, or the path of a file.

    Samples have one axis, or time and channels; the longer axis is the time. They are int16, or
    floats from -1 to 1; what is outside is clipped, NaN becomes silence, and both are told once.
    They become a WAV file of 16-bit PCM. A file (wav, mp3, ogg, flac, m4a, opus) is copied in the
    background, as it is; it must stay until then.
    """

    def __init__(self, data: Any, sample_rate: int | None = None, caption: str = "") -> None:
        self._data = data
        self._rate = sample_rate
        self._caption = caption

    def _capture(self, name: str) -> EncodeJob:
        """Checks and copies the samples."""
        check_text(name, "caption=", self._caption)
        path = as_path(self._data)
        if path is not None:
            check_format(name, path, "sound", _FORMATS)
            return EncodeJob(0, partial(_copy, path, self._caption))
        if isinstance(self._rate, bool) or not isinstance(self._rate, int | np.integer):
            raise TypeError(
                f"metric {name!r}: sample_rate= is a whole number of samples a second, "
                f"not {self._rate!r}"
            )
        if not 1 <= self._rate <= _FASTEST:
            raise ValueError(
                f"metric {name!r}: sample_rate= is from 1 to {_FASTEST:,}, not {self._rate:,}"
            )
        view = view_of(name, self._data, _ACCEPTED)
        if view.dtype != np.int16 and view.dtype.kind != "f":
            raise TypeError(
                f"metric {name!r} was given {told(self._data, view)}; it takes {_ACCEPTED}"
            )
        if view.ndim not in (1, 2) or not view.size or min(view.shape[1:], default=1) < 1:
            raise ValueError(f"metric {name!r} was given {told(self._data)}; it takes {_ACCEPTED}")
        if view.ndim == 2 and view.shape[0] < view.shape[1]:
            view = view.T
        if view.ndim == 2 and view.shape[1] > _MOST_CHANNELS:
            raise ValueError(
                f"metric {name!r} was given {view.shape[1]} channels, up to {_MOST_CHANNELS} "
                "are taken"
            )
        copy = snapshot(view)
        return EncodeJob(copy.nbytes, partial(_encode, copy, int(self._rate), self._caption))


def _encode(samples: Array, rate: int, caption: str, work: EncodeContext) -> AudioRecord:
    if samples.dtype != np.int16:
        with np.errstate(over="ignore"):  # infinities are clipped like what is too loud
            samples = samples.astype(np.float32)
        samples = _as_pcm(samples, work)
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return work.record(
        AudioRecord,
        file=work.save("audio", ".wav", content.getvalue()),
        format="wav",
        sample_rate=rate,
        channels=channels,
        frames=len(samples),
        caption=caption,
    )


def _as_pcm(samples: Array, work: EncodeContext) -> Array:
    if np.isnan(samples).any():
        work.tell("NaN samples are silent")
        samples = np.nan_to_num(samples, nan=0.0, posinf=np.inf, neginf=-np.inf)
    if np.abs(samples).max() > 1:
        work.tell("samples outside of -1 to 1 are clipped")
        samples = samples.clip(-1, 1)
    pcm: Array = np.rint(samples * _LOUDEST).astype(np.int16)
    return pcm


def _copy(path: Path, caption: str, work: EncodeContext) -> AudioRecord:
    file = work.copy("audio", path)
    rate = channels = frames = 0
    if path.suffix.lower() == ".wav":
        try:
            with wave.open(str(path), "rb") as opened:
                rate, channels = opened.getframerate(), opened.getnchannels()
                frames = opened.getnframes()
        except (wave.Error, EOFError, OSError):
            pass  # a WAV of another kind than PCM; players know more of them
    return work.record(
        AudioRecord,
        file=file,
        format=path.suffix.lower().lstrip("."),
        sample_rate=rate,
        channels=channels,
        frames=frames,
        caption=caption,
    )
