"""RGB-D data of every format, as samples and batches.

Samples of a set are opened by ``open_dataset``; ``make_loader`` turns sets into batches in an
order that depends on seed and epoch alone.
"""

from clipdepth_plugin.data.augment import is_flipped, sample_generator
from clipdepth_plugin.data.augment_config import AugmentConfig
from clipdepth_plugin.data.batch import Batch
from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.dataset import Mixture, SampleDataset
from clipdepth_plugin.data.items import SampleViews, ViewMaker
from clipdepth_plugin.data.loader import Loader, make_loader
from clipdepth_plugin.data.opening import open_dataset, open_mixture
from clipdepth_plugin.data.order import Draw, EpochOrder, EpochPlan
from clipdepth_plugin.data.sample import Intrinsics, Sample
from clipdepth_plugin.data.stream import StreamDataset, StreamMixture
from clipdepth_plugin.data.stream_loader import StreamLoader

__all__ = [
    "AugmentConfig",
    "Batch",
    "DataConfig",
    "Draw",
    "EpochOrder",
    "EpochPlan",
    "Intrinsics",
    "Loader",
    "Mixture",
    "Sample",
    "SampleDataset",
    "SampleViews",
    "StreamDataset",
    "StreamLoader",
    "StreamMixture",
    "ViewMaker",
    "is_flipped",
    "make_loader",
    "open_dataset",
    "open_mixture",
    "sample_generator",
]
