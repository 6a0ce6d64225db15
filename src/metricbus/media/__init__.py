"""The non-numeric values that `log()` accepts, and the records that sinks receive for them.

Input: an object such as `Image(pixels)`, passed to `log()`. `MediaValue._capture` validates it on
the caller's thread and copies its data once.
Output: an `EncodeJob`, which the media worker (`_ingest/media_worker.py`) runs in the background.
It writes files into the run's `media/` folder and returns a record, such as `ImageRecord`.
Guarantees: each medium is encoded once, regardless of the number of sinks. Arrays may change after
`log()` returns; files that were logged by their path may not, until they have been read.
Must not access: the bus, the queue, the journal's segments, any sink.
"""

from metricbus._common.media_base import MediaValue
from metricbus._common.media_records import (
    AudioRecord,
    Box,
    ChartRecord,
    FileRecord,
    FileRef,
    HistogramRecord,
    ImageRecord,
    MediumRecord,
    TableRecord,
    TextRecord,
    VideoRecord,
)
from metricbus.media.audio import Audio
from metricbus.media.chart import Chart
from metricbus.media.file import File
from metricbus.media.histogram import Histogram
from metricbus.media.histogram_group import HistogramGroup
from metricbus.media.image import Image
from metricbus.media.table import Table
from metricbus.media.text import Text
from metricbus.media.video import Video

__all__ = [
    "Audio",
    "AudioRecord",
    "Box",
    "Chart",
    "ChartRecord",
    "File",
    "FileRecord",
    "FileRef",
    "Histogram",
    "HistogramGroup",
    "HistogramRecord",
    "Image",
    "ImageRecord",
    "MediaValue",
    "MediumRecord",
    "Table",
    "TableRecord",
    "Text",
    "TextRecord",
    "Video",
    "VideoRecord",
]
