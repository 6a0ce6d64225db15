"""What `log()` takes beside numbers: one neutral type for each kind of medium."""

from metricbus._common.media_base import MediaValue
from metricbus._common.media_records import Box
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
