"""The `Audio` medium."""

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
    check_text,
    media_path,
)
from metricbus._common.media_records import AudioRecord
from metricbus.media.arrays import Array, as_array, snapshot, unexpected

_FORMATS = (".wav", ".mp3", ".ogg", ".flac", ".m4a", ".opus")
_MAX_CHANNELS = 16
_MAX_RATE = 1 << 26  # the header of a WAV file has 32 bits for the bytes per second
_MAX_SAMPLE = 32_767
_ACCEPTED = "samples as int16, or as floats from -1 to 1, with one axis or (time, channels); a path"


class Audio(MediaValue):
    """An audio clip: samples, or the path of an audio file.

    `data` is an array, a tensor or nested lists of samples, of shape (time,), (time, channels) or
    (channels, time), with up to 16 channels; the longer axis is the time. Samples are int16, or
    floats from -1 to 1. Floats outside this range are clipped and NaN becomes silence; a warning
    reports this once per metric. `sample_rate` is in Hz, from 1 to 67,108,864, and is required
    unless `data` is a path. `log()` copies the samples, and a background thread encodes them as a
    WAV file with 16-bit PCM.

    `data` can also be the path of a wav, mp3, ogg, flac, m4a or opus file. A background thread
    copies the file byte for byte; do not change it until `flush()` has returned.

    `log()` raises `TypeError` or `ValueError`, naming the metric, for unsupported samples, sample
    rates and files.
    """

    def __init__(self, data: Any, sample_rate: int | None = None, caption: str = "") -> None:
        self._data = data
        self._rate = sample_rate
        self._caption = caption

    def _capture(self, name: str) -> EncodeJob:
        check_text(name, "caption=", self._caption)
        path = media_path(name, self._data, "an audio file", _FORMATS)
        if path is not None:
            return EncodeJob(0, partial(_copy, path, self._caption))
        if isinstance(self._rate, bool) or not isinstance(self._rate, int | np.integer):
            raise TypeError(
                f"metric {name!r}: sample_rate= must be an integer number of samples per second, "
                f"not {self._rate!r}"
            )
        if not 1 <= self._rate <= _MAX_RATE:
            raise ValueError(
                f"metric {name!r}: sample_rate= must be from 1 to {_MAX_RATE:,}, not {self._rate:,}"
            )
        view = as_array(name, self._data, _ACCEPTED)
        if view.dtype != np.int16 and view.dtype.kind != "f":
            raise TypeError(unexpected(name, self._data, _ACCEPTED, view))
        if view.ndim not in (1, 2) or not view.size:
            raise ValueError(unexpected(name, self._data, _ACCEPTED))
        if view.ndim == 2 and view.shape[0] < view.shape[1]:
            view = view.T
        if view.ndim == 2 and view.shape[1] > _MAX_CHANNELS:
            raise ValueError(
                f"metric {name!r} was given {view.shape[1]} channels; the maximum is "
                f"{_MAX_CHANNELS}"
            )
        copy = snapshot(view)
        return EncodeJob(copy.nbytes, partial(_encode, copy, int(self._rate), self._caption))


def _encode(samples: Array, rate: int, caption: str, context: EncodeContext) -> AudioRecord:
    if samples.dtype != np.int16:
        samples = _as_pcm(samples, context)
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return context.record(
        AudioRecord,
        file=context.save("audio", ".wav", content.getvalue()),
        format="wav",
        sample_rate=rate,
        channels=channels,
        frames=len(samples),
        caption=caption,
    )


def _as_pcm(samples: Array, context: EncodeContext) -> Array:
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is clipped
        samples = samples.astype(np.float32)
    if np.isnan(samples).any():
        context.warn_once("NaN samples are replaced with silence")
        samples = np.nan_to_num(samples, nan=0.0, posinf=np.inf, neginf=-np.inf)
    if np.abs(samples).max() > 1:
        context.warn_once("samples outside -1 to 1 are clipped")
        samples = samples.clip(-1, 1)
    pcm: Array = np.rint(samples * _MAX_SAMPLE).astype(np.int16)
    return pcm


def _copy(path: Path, caption: str, context: EncodeContext) -> AudioRecord:
    file = context.copy("audio", path)
    rate = channels = frames = 0
    if path.suffix.lower() == ".wav":
        try:
            with wave.open(str(path), "rb") as opened:
                rate, channels = opened.getframerate(), opened.getnchannels()
                frames = opened.getnframes()
        except (wave.Error, EOFError, OSError):
            pass  # a WAV file may have another encoding than PCM, which players support
    return context.record(
        AudioRecord,
        file=file,
        format=path.suffix.lower().lstrip("."),
        sample_rate=rate,
        channels=channels,
        frames=frames,
        caption=caption,
    )
