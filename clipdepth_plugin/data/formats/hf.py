"""Hugging Face data sets, streamed.

From the hub, from a local folder of parquet files, or from one that ``save_to_disk`` wrote. No code
from a data set's repository is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipdepth_plugin.data.config import DataConfig, register_format
from clipdepth_plugin.data.files import require
from clipdepth_plugin.data.hf_files import check_folder, check_hub_card, checked_place
from clipdepth_plugin.data.stream import FIELDS, Record, StreamDataset
from clipdepth_plugin.errors import DataError


@register_format("hf", reads={*FIELDS, "subset", "revision"}, streams=True)
class HubStream(StreamDataset):
    """The rows of a data set, pictures not yet decoded."""

    def __init__(self, config: DataConfig, *, with_depth: bool = True) -> None:
        """Opens the data set; reads its description, but no row."""
        super().__init__(config, with_depth=with_depth)
        self._datasets = require("datasets", "stream", "format hf")
        self._image_column = config.image_column or "image"
        self._depth_column = config.depth_column or "depth" if with_depth else None
        self._camera_column = config.intrinsics_column or None
        self._columns = [
            one for one in (self._image_column, self._depth_column, self._camera_column) if one
        ]
        self._refuse_idle()
        self._rows = self._undecoded(self._opened())

    def _refuse_idle(self) -> None:
        """Refuses what a folder on disk has no use for."""
        place = Path(self.config.location())
        saved = any((place / name).is_file() for name in ("state.json", "dataset_dict.json"))
        idle = ("subset", "revision") if saved else ("revision",)
        for name in idle if place.is_dir() else ():
            if self.config.given(name):
                raise DataError(f"{name}: does nothing for {place}, a folder; leave it out")

    @property
    def shard_count(self) -> int:
        """See ``StreamDataset``."""
        count: int = self._rows.num_shards
        return count

    def shard_name(self, shard: int) -> str:
        """See ``StreamDataset``."""
        return f"{self.config.title}/{self.config.split}/{shard:05d}"

    def read_shard(self, shard: int) -> Iterator[Record]:
        """See ``StreamDataset``."""
        rows = self._rows.shard(num_shards=self.shard_count, index=shard)
        name = self.shard_name(shard)
        for number, row in enumerate(_reporting(rows, name)):
            yield Record(
                f"{name}/{number:06d}",
                self._encoded(row, self._image_column),
                self._encoded(row, self._depth_column) if self._depth_column else None,
                row[self._camera_column] if self._camera_column else None,
            )

    def _encoded(self, row: dict[str, Any], column: str) -> Any:
        """An encoded picture's bytes; anything else as it is."""
        value = row[column]
        if not isinstance(value, dict) or "bytes" not in value:
            return value
        if value["bytes"] is None and value.get("path"):
            raise DataError(
                f"{self.config.location()}: column {column!r} only names files "
                f"({value['path']}), which are not read; store the pictures in the rows (datasets' "
                "push_to_hub does)"
            )
        return value["bytes"]

    def _opened(self) -> Any:
        config, place = self.config, checked_place(self.config.location())
        is_saved = Path(place).is_dir() and check_folder(Path(place))
        try:
            if is_saved:
                saved = self._datasets.load_from_disk(place)
                one = saved[config.split] if isinstance(saved, dict) else saved
                return one.to_iterable_dataset()
            if not Path(place).is_dir():
                check_hub_card(place, config.revision)
            return self._datasets.load_dataset(
                place, config.subset, split=config.split, revision=config.revision, streaming=True
            )
        except DataError:
            raise
        except Exception as error:  # the library and its hub client raise almost anything
            raise DataError(
                f"{place}: the data set can't be opened ({type(error).__name__}: {error}); check "
                "root, subset, split and revision, and the network"
            ) from error

    def _undecoded(self, rows: Any) -> Any:
        """The rows with encoded pictures left as bytes."""
        features = rows.features or {}
        missing = [one for one in self._columns if features and one not in features]
        if missing:
            raise DataError(
                f"{self.config.location()}: no column {missing[0]!r}, only {', '.join(features)}; "
                "say image_column, depth_column, intrinsics_column"
            )
        for column in self._columns:
            if isinstance(features.get(column), self._datasets.Image):
                rows = rows.cast_column(column, self._datasets.Image(decode=False))
        rows = rows.select_columns(self._columns)
        if self._datasets.features.features.require_decoding(dict(rows.features or {})):
            # The library would open whatever path a row names.
            raise DataError(f"{self.config.root}: pictures must be in columns of their own")
        return rows


def _reporting(rows: Any, name: str) -> Iterator[dict[str, Any]]:
    """The rows, with the library's exceptions as ours."""
    try:
        yield from rows
    except Exception as error:  # the library and its hub client raise almost anything
        raise DataError(
            f"{name}: the stream broke off ({type(error).__name__}: {error}); check the network "
            "and the data set, and resume"
        ) from error
