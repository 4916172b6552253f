"""open_dataset: a data set of any format from its config."""

from __future__ import annotations

from collections.abc import Sequence

from clipdepth_plugin.data.config import FORMATS, DataConfig, check_mixture
from clipdepth_plugin.data.dataset import Mixture, SampleDataset, Spread
from clipdepth_plugin.data.stream import StreamDataset, StreamMixture
from clipdepth_plugin.errors import DataError


def open_dataset(config: DataConfig) -> SampleDataset | StreamDataset:
    """Opens a data set; lists its samples, but reads none.

    Returns:
        A ``SampleDataset`` (by number: ``len``, ``[index]``, ``name(index)``), or for a format
        that streams a ``StreamDataset`` (to be iterated over).

    Raises:
        DataError: A folder, list or package is missing, an environment variable is not set, or
            nothing is left after filtering.
    """
    opened: SampleDataset | StreamDataset = FORMATS[config.format].open(config)
    if isinstance(opened, StreamDataset):
        return opened
    if config.limit is not None:
        opened = Spread(opened, config.limit)
    opened.own_augment = config.augment
    return opened


def open_mixture(configs: Sequence[DataConfig]) -> Mixture | StreamMixture:
    """Opens several sets one after the other as one, or several streams interleaved.

    Raises:
        DataError: As ``open_dataset``; no set, or streams mixed with others.
    """
    if not configs:
        raise DataError("no data set given")
    check_mixture(configs)
    opened = [open_dataset(config) for config in configs]
    repeats = [config.repeat for config in configs]
    streams = [one for one in opened if isinstance(one, StreamDataset)]
    if streams:
        return StreamMixture(streams, repeats)
    sets = [one for one in opened if isinstance(one, SampleDataset)]
    return Mixture(sets, repeats)
