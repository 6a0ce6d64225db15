"""Everything that `log()` accepts besides numbers, and the records that sinks receive for it.

In: an object such as `Image(pixels)`, given to `log()`. `MediaValue._capture` checks it on the
caller's thread and makes one copy.
Out: an `EncodeJob`, which the media worker (`_ingest/media_worker.py`) runs in the background. It
writes the files into the run's `media/` folder and returns a record, such as `ImageRecord`.
Promises: encoding happens once, whatever the number of sinks; the caller's data may change after
`log()` returns.
May not touch: the bus, the queue, the journal's segments, any sink.
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
from metricbus.media.histogram_group import Histograms
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
    "HistogramRecord",
    "Histograms",
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
