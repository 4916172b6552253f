"""RGB-D data of every format, as samples and batches.

``open_dataset`` opens a set; ``make_loader`` turns sets into batches in an order that depends on
seed and epoch alone. ``data/formats/`` has one file for each format.
"""

from clipdepth_plugin.data import formats  # registers them
from clipdepth_plugin.data.augment_config import AugmentConfig
from clipdepth_plugin.data.config import FORMATS, DataConfig, register_format
from clipdepth_plugin.data.dataset import Mixture, SampleDataset
from clipdepth_plugin.data.items import Batch, ViewMaker
from clipdepth_plugin.data.loader import make_loader
from clipdepth_plugin.data.opening import open_dataset, open_mixture
from clipdepth_plugin.data.order import EpochPlan
from clipdepth_plugin.data.reading import Reading
from clipdepth_plugin.data.sample import Sample
from clipdepth_plugin.data.stream import StreamDataset, StreamMixture

__all__ = [
    "FORMATS",
    "AugmentConfig",
    "Batch",
    "DataConfig",
    "EpochPlan",
    "Mixture",
    "Reading",
    "Sample",
    "SampleDataset",
    "StreamDataset",
    "StreamMixture",
    "ViewMaker",
    "formats",
    "make_loader",
    "open_dataset",
    "open_mixture",
    "register_format",
]
