"""What `log()` takes beside numbers: one neutral type for each kind of medium."""

from metricbus._common.media_base import Kind
from metricbus._common.media_records import Box
from metricbus.kinds.audio import Audio
from metricbus.kinds.chart import Chart
from metricbus.kinds.file import File
from metricbus.kinds.histogram import Histogram
from metricbus.kinds.histograms import Histograms
from metricbus.kinds.image import Image
from metricbus.kinds.table import Table
from metricbus.kinds.text import Text
from metricbus.kinds.video import Video

__all__ = [
    "Audio",
    "Box",
    "Chart",
    "File",
    "Histogram",
    "Histograms",
    "Image",
    "Kind",
    "Table",
    "Text",
    "Video",
]
