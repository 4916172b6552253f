"""All episodes' depth and a copy of the data set become the new data set.

The source's data and videos are copied byte for byte. Depth videos are joined without encoding them
anew, by LeRobot's own function; each episode's columns and statistics are those that LeRobot wrote.
The whole is made in the folder of parts, read back, and renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipdepth_plugin.annotating.episodes import COUNTS_FILE, FIRST_FILE, TOLERANCE, check_frames
from clipdepth_plugin.annotating.plan import Plan
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.files.documents import MIB, read_json
from clipdepth_plugin.labelling.lerobot import INFO_BYTES, INFO_FILE, lerobot_module

EPISODES = "meta/episodes"
STATS_FILE = "meta/stats.json"
RECORD_FILE = "meta/clipdepth.json"
"""In the new data set: where its depth comes from."""

MOST_SECONDS = 1000.0
"""Of a joined video: LeRobot looks frames up by float32 seconds, to 0.1 ms."""

Rows = dict[int, dict[str, Any]]
"""Episode -> column of ``meta/episodes`` -> its one value, as an array of Arrow."""

_STATS_BYTES = 256 * MIB


class Join:
    """Makes the new data set in a folder."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        """``folder``: where; it is not there."""
        self._plan, self._folder = plan, folder
        self._episodes = range(len(plan.frames.episodes))
        self._infos = [
            read_json(plan.part(one) / INFO_FILE, DataError, limit=INFO_BYTES)
            for one in self._episodes
        ]
        self._keys = list(plan.depth_keys.values())

    def make(self, record: dict[str, Any]) -> dict[str, list[int]]:
        """Makes it; gives the counts of each depth key, summed.

        Raises:
            DataError: Episodes differ in size, or what was written is not what is read back.
            OSError: It can't be written.
        """
        self._check_same()
        shutil.copytree(self._plan.root, self._folder, ignore=_hidden_of(self._plan.root))
        info = self._joined_info()
        rows = {one: self._columns(one) for one in self._episodes}
        for key in self._keys:
            self._place_videos(key, info, rows)
        self._write_episodes(rows)
        self._write_stats()
        _write_json(self._folder / INFO_FILE, info)
        counts = self._counts()
        _write_json(self._folder / RECORD_FILE, {**record, "pixels": counts})
        self._read_back(info, rows)
        return counts

    def _check_same(self) -> None:
        for key in self._keys:
            features = [info["features"][key] for info in self._infos]
            for episode, feature in enumerate(features):
                if feature["shape"] != features[0]["shape"]:
                    raise DataError(
                        f"episode {episode}: {key} is of {feature['shape']}, that of episode 0 of "
                        f"{features[0]['shape']}; LeRobot's videos are of one size"
                    )
                if feature != features[0]:
                    raise DataError(
                        f"episode {episode}: {key} was encoded in another way than that of episode "
                        f"0, by another release of LeRobot; remove {self._plan.part(episode)}, "
                        "and give the command again"
                    )

    def _joined_info(self) -> dict[str, Any]:
        info: dict[str, Any] = read_json(self._plan.root / INFO_FILE, DataError, limit=INFO_BYTES)
        first = self._infos[0]
        info["features"] |= {key: first["features"][key] for key in self._keys}
        for name in ("video_path", "video_files_size_in_mb", "chunks_size"):
            if info.get(name) is None:
                info[name] = first[name]
        return info

    def _columns(self, episode: int) -> dict[str, Any]:
        """What LeRobot says of an episode's depth, as a table of one row."""
        import pyarrow.parquet as pq

        (path,) = (self._plan.part(episode) / EPISODES).rglob("*.parquet")
        table = pq.read_table(path)
        prefixes = tuple(f"{kind}/{key}/" for key in self._keys for kind in ("videos", "stats"))
        return {
            name: table.column(name) for name in table.column_names if name.startswith(prefixes)
        }

    def _place_videos(self, key: str, info: dict[str, Any], rows: Rows) -> None:
        import pyarrow as pa

        utils = lerobot_module("datasets.video_utils", "a depth stream")
        chunk, file = 0, 0
        step = lerobot_module("datasets.utils", "a depth stream").update_chunk_file_indices
        for number, group in enumerate(self._groups(key, info, rows)):
            if number:
                chunk, file = step(chunk, file, info["chunks_size"])
            path = self._folder / _video(info, key, chunk, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            parts = [self._part_video(one, key) for one in group]
            if len(parts) == 1:
                shutil.copyfile(parts[0], path)
            else:
                utils.concatenate_video_files(parts, path)
            check_frames(path, sum(map(self._plan.length, group)), info["fps"])
            began = 0.0
            for one in group:
                ended = began + _seconds(rows[one], key)
                placed = {
                    "chunk_index": chunk,
                    "file_index": file,
                    "from_timestamp": began,
                    "to_timestamp": ended,
                }
                rows[one] |= {
                    f"videos/{key}/{name}": pa.chunked_array([pa.array([value])])
                    for name, value in placed.items()
                }
                began = ended

    def _groups(self, key: str, info: dict[str, Any], rows: Rows) -> Iterator[list[int]]:
        """Episodes of one video file each, by LeRobot's limit of its size."""
        limit = int(info["video_files_size_in_mb"] * MIB)
        group, size, seconds = list[int](), 0, 0.0
        for one in self._episodes:
            more, longer = self._part_video(one, key).stat().st_size, _seconds(rows[one], key)
            if group and (size + more >= limit or seconds + longer > MOST_SECONDS):
                yield group
                group, size, seconds = [], 0, 0.0
            group, size, seconds = [*group, one], size + more, seconds + longer
        yield group

    def _part_video(self, episode: int, key: str) -> Path:
        return self._plan.part(episode) / _video(self._infos[episode], key, **FIRST_FILE)

    def _write_episodes(self, rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in sorted((self._folder / EPISODES).rglob("*.parquet")):
            table = pq.read_table(path)
            numbers = table.column("episode_index").to_pylist()
            for name in rows[0]:
                column = [chunk for one in numbers for chunk in rows[one][name].chunks]
                table = table.append_column(name, pa.chunked_array(column))
            pq.write_table(table, path, compression="snappy", use_dictionary=True)

    def _write_stats(self) -> None:
        """Adds depth's to the source's, whose text stays as it is parsed."""
        utils = lerobot_module("datasets.io_utils", "a depth stream")
        compute = lerobot_module("datasets.compute_stats", "a depth stream")
        kept = [utils.load_stats(self._plan.part(one)) for one in self._episodes]
        depth = compute.aggregate_stats([{key: one[key] for key in self._keys} for one in kept])
        path = self._folder / STATS_FILE
        stats = read_json(path, DataError, limit=_STATS_BYTES) if path.exists() else {}
        serialised = lerobot_module("datasets.utils", "a depth stream").serialize_dict(depth)
        _write_json(path, {**stats, **serialised})

    def _counts(self) -> dict[str, list[int]]:
        sums = {key: [0, 0, 0] for key in self._keys}
        for one in self._episodes:
            counts = read_json(self._plan.part(one) / COUNTS_FILE, DataError)
            for key, values in counts.items():
                sums[key] = [a + b for a, b in zip(sums[key], values, strict=True)]
        return sums

    def _read_back(self, info: dict[str, Any], rows: Rows) -> None:
        """By LeRobot: metadata, and each episode's first and last frame, which must be its own."""
        metadata = lerobot_module("datasets.dataset_metadata", "a depth stream")
        decode = lerobot_module("datasets.video_utils", "a depth stream").decode_video_frames
        meta = metadata.LeRobotDatasetMetadata(self._plan.frames.name, root=self._folder)
        if set(self._keys) - set(meta.depth_keys):
            raise DataError(f"{self._folder}: LeRobot does not read {', '.join(self._keys)}")
        for one in self._episodes:
            last = (self._plan.length(one) - 1) / info["fps"]
            for key in self._keys:
                began = rows[one][f"videos/{key}/from_timestamp"][0].as_py()
                path = self._folder / meta.get_video_file_path(one, key)
                for at in {0.0, last}:
                    joined = decode(path, [began + at], TOLERANCE, is_depth=True)
                    alone = decode(self._part_video(one, key), [at], TOLERANCE, is_depth=True)
                    if not joined.equal(alone):
                        raise DataError(f"{path}: episode {one} is not what it was at {at:g} s")


def _seconds(row: dict[str, Any], key: str) -> float:
    """How long an episode's own video is."""
    began, ended = (
        row[f"videos/{key}/{name}"][0].as_py() for name in ("from_timestamp", "to_timestamp")
    )
    return float(ended - began)


def _video(info: dict[str, Any], key: str, chunk_index: int, file_index: int) -> str:
    path: str = info["video_path"]
    return path.format(video_key=key, chunk_index=chunk_index, file_index=file_index)


def _hidden_of(root: Path) -> Any:
    """Hidden files of the data set's folder (of git, of downloads) are no part of it."""

    def hidden(folder: str, names: list[str]) -> list[str]:
        return [one for one in names if Path(folder) == root and one.startswith(".")]

    return hidden


def _write_json(path: Path, tree: Any) -> None:
    """As LeRobot writes it."""
    path.write_text(json.dumps(tree, indent=4, ensure_ascii=False), encoding="utf-8")
