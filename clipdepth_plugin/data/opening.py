"""open_dataset: a data set of any format from its config."""

from __future__ import annotations

from collections.abc import Sequence

from clipdepth_plugin.data.config import DataConfig
from clipdepth_plugin.data.dataset import Mixture, SampleDataset, Spread
from clipdepth_plugin.data.lists import ListedSet
from clipdepth_plugin.data.nyu_mat import NyuMat
from clipdepth_plugin.data.rgbd import RgbdFolder
from clipdepth_plugin.data.stream import StreamDataset, StreamMixture
from clipdepth_plugin.data.stream_hf import HubStream
from clipdepth_plugin.data.stream_tar import TarStream
from clipdepth_plugin.errors import DataError


def open_dataset(config: DataConfig) -> SampleDataset | StreamDataset:
    """Opens a data set; lists its samples, but reads none.

    Returns:
        A ``SampleDataset`` (by number: ``len``, ``[index]``, ``name(index)``), or for the formats
        ``hf`` and ``webdataset`` a ``StreamDataset`` (to be iterated over).

    Raises:
        DataError: A folder, list or package is missing, an environment variable is not set, or
            nothing is left after filtering.
    """
    if config.format == "hf":
        return HubStream(config)
    if config.format == "webdataset":
        return TarStream(config)
    opened: SampleDataset
    if config.format == "rgbd":
        opened = RgbdFolder(config)
    elif config.format == "nyu_mat":
        opened = NyuMat(config)
    else:
        opened = ListedSet(config)
    if config.limit is not None:
        opened = Spread(opened, config.limit)
    opened.own_augment = config.augment
    opened.reading = config.reading()
    return opened


def open_mixture(configs: Sequence[DataConfig]) -> Mixture | StreamMixture:
    """Opens several sets as one.

    Args:
        configs: All streams, or none of them.

    Returns:
        Their samples one set after the other, or the streams interleaved.

    Raises:
        DataError: As ``open_dataset``; no set, or streams mixed with others.
    """
    if not configs:
        raise DataError("no data set given")
    if len({config.is_stream for config in configs}) > 1:
        raise DataError(
            "hf and webdataset streams can't be mixed with sets on disk: there is no common "
            "order; make all of them streams, or none"
        )
    opened = [open_dataset(config) for config in configs]
    repeats = [config.repeat for config in configs]
    streams = [one for one in opened if isinstance(one, StreamDataset)]
    if streams:
        return StreamMixture(streams, repeats)
    sets = [one for one in opened if isinstance(one, SampleDataset)]
    return Mixture(sets, repeats)
