"""open_dataset: a data set of any format from its config."""

from __future__ import annotations

from collections.abc import Sequence

from clipdepth_plugin.data.config import FORMATS, DataConfig, check_mixture
from clipdepth_plugin.data.dataset import Mixture, SampleDataset, Spread
from clipdepth_plugin.data.order import repeats_of
from clipdepth_plugin.data.stream import StreamDataset, StreamMixture
from clipdepth_plugin.errors import DataError

_NAMED = 10

Opened = SampleDataset | StreamDataset


def open_dataset(config: DataConfig, *, bad_file_limit: int = 0, relative: bool = False) -> Opened:
    """Opens a data set; lists its samples, but reads none.

    Args:
        config: Of the set.
        bad_file_limit: Samples that may lack a file; reading one of them is an error, see
            ``Reading``.
        relative: Also take a set of relative depth; else one is refused, as it has no metres.

    Returns:
        A ``SampleDataset`` (by number: ``len``, ``[index]``, ``name(index)``), or for a format
        that streams a ``StreamDataset`` (to be iterated over).

    Raises:
        DataError: A folder, list, package or too many of the files are missing, an environment
            variable is not set, or nothing is left after filtering; or the set's depth is
            relative.
    """
    opened = _opened(config)
    if not relative:
        check_metres([config], [opened])
    _check_missing([opened], bad_file_limit)
    return opened


def _opened(config: DataConfig) -> Opened:
    opened: Opened = FORMATS[config.format].open(config)
    if isinstance(opened, StreamDataset):
        return opened
    if config.limit is not None:
        opened = Spread(opened, config.limit)
    opened.own_augment = config.augment
    return opened


def check_metres(configs: Sequence[DataConfig], opened: Sequence[Opened]) -> None:
    """Refuses sets of relative depth; a DataError names the first."""
    for config, one in zip(configs, opened, strict=True):
        if isinstance(one, SampleDataset) and one.units != "metres":
            raise DataError(
                f"{config.location()}: holds relative depth (meta.json: units: {one.units}), known "
                "up to each picture's own scale and shift, and metres are needed here. Such a set "
                "trains and validates only a head with head.options.metric: false"
            )


def _check_missing(sets: Sequence[Opened], limit: int) -> None:
    stored = [one for one in sets if isinstance(one, SampleDataset)]
    missing = [
        f"{one.name(index)}: {reason}" for one in stored for index, reason in one.missing.items()
    ]
    if len(missing) > limit:
        more = [f"and {len(missing) - _NAMED} more"] if missing[_NAMED:] else []
        raise DataError(
            f"{len(missing)} of {sum(map(len, stored))} samples lack a file, more than "
            f"bad_file_limit = {limit}; repair or remove them, or raise bad_file_limit:"
            + "".join(f"\n  {line}" for line in [*missing[:_NAMED], *more])
        )


def open_mixture(
    configs: Sequence[DataConfig], *, bad_file_limit: int = 0, relative: bool = False
) -> Mixture | StreamMixture:
    """Opens several sets one after the other as one, or several streams interleaved.

    Args:
        configs: Of the sets.
        bad_file_limit: Samples of all sets together that may lack a file.
        relative: As ``open_dataset``.

    Raises:
        DataError: As ``open_dataset``; no set, or streams mixed with others.
    """
    if not configs:
        raise DataError("no data set given")
    check_mixture(configs)
    opened = [_opened(config) for config in configs]
    if not relative:
        check_metres(configs, opened)
    _check_missing(opened, bad_file_limit)
    weights = [config.repeat if config.share is None else config.share for config in configs]
    streams = [one for one in opened if isinstance(one, StreamDataset)]
    if streams:
        return StreamMixture(streams, weights)
    sets = [one for one in opened if isinstance(one, SampleDataset)]
    if configs[0].share is None:
        return Mixture(sets, weights)
    repeats = repeats_of(weights, list(map(len, sets)))
    for config, one, repeat in zip(configs, sets, repeats, strict=True):
        if round(repeat * len(one)) == 0:
            raise DataError(
                f"{config.title}: share: {config.share:g} of {sum(weights):g} gives it not one of "
                f"an epoch's {sum(map(len, sets))} samples; raise it, or leave the set out"
            )
    return Mixture(sets, repeats)
