"""Data sets that would run a command, leave their folder, or take the machine's memory."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from clipdepth_plugin.data import DataConfig, open_dataset
from clipdepth_plugin.data.addresses import checked_address
from clipdepth_plugin.data.dataset import SampleDataset
from clipdepth_plugin.data.hf_files import check_folder
from clipdepth_plugin.errors import DataError
from tests.training.data.conftest import Trees

pytest.importorskip("webdataset")
pytest.importorskip("datasets")

COMMANDS = (
    "PIPE:touch {mark};echo ://",
    "pipe:touch {mark};echo ://x",
    " pipe:touch {mark};echo ://x",
    "\tPipe:touch {mark};echo ://x",
    "\x00pipe:touch {mark};echo ://x",
    "pipe:touch {mark}",
    "PIPE:touch {mark}",
    "a.tar::PIPE:touch {mark};echo ://",
    "{{a,PIPE:touch {mark};echo ://}}",
    "{{PI,pi}}PE:touch {mark};echo ://",
    "http://localhost:1/'$(touch {mark})'.tar",
    "ais://x/y.tar",
    "GS://x/y.tar",
    "s3://x/y.tar",
    "scp://x/y.tar",
    "sftp://x/y.tar",
    "htgs://x/y.tar",
    "simplecache::s3://x/y.tar",
    "zip://a.tar::pipe://x",
    "hf://datasets/a/b::x://y",
    "-",
    "\u200bpipe:x ://y",
    "https\u00a0://x",
    "://x",
    "http://",
)


@pytest.mark.parametrize("form", ["webdataset", "hf"])
@pytest.mark.parametrize("root", COMMANDS)
def test_only_allowed_addresses_are_opened(root: str, form: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    config = DataConfig(format=form, root=root.format(mark=mark), depth_scale=1000.0)
    if root.startswith("http://localhost"):
        with pytest.raises(DataError, match="path or an address"):
            checked_address(root)  # never opened: it has blanks
    else:
        with pytest.raises(DataError):
            list(open_dataset(config))
    assert not mark.exists()


def test_addresses() -> None:
    for good, same in (
        ("HTTPS://host/a.tar", "https://host/a.tar"),
        ("hf://datasets/a/b/c.tar", "hf://datasets/a/b/c.tar"),
        ("file:///a/b%20c.tar", "/a/b c.tar"),
        ("a folder/b.tar", "a folder/b.tar"),
    ):
        assert checked_address(good) == same
    for bad in ("file://host/a.tar", "file:///a%00b", "ftp://a/b", "https://a b"):
        with pytest.raises(DataError):
            checked_address(bad)


@pytest.mark.parametrize(
    "root", ["{0..999999999}.tar", "{a,b}" * 40, "{0..1" + "0" * 5000 + "}", "{" * 5000, "x" * 5000]
)
def test_braces_are_bounded(root: str) -> None:
    with pytest.raises(DataError):
        open_dataset(DataConfig(format="webdataset", root=root))


def test_a_sparse_member_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("000.jpg")
        member.size = 4
        member.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": "0,4",
            "GNU.sparse.size": str(1 << 50),
        }
        archive.addfile(member, io.BytesIO(b"abcd"))
    with pytest.raises(DataError, match="larger than"):
        list(open_dataset(DataConfig(format="webdataset", root=str(path))))


CARDS: dict[str, Any] = {
    "up": "../secret.parquet",
    "deep": {"train": ["data/../../secret.parquet"]},
    "absolute": [{"split": "train", "path": "/etc/*.parquet"}],
    "scheme": "S3://bucket/*.parquet",
    "chain": "zip://x::data/a.zip",
    "file": "file:///etc/passwd",
    "windows": "..\\secret.parquet",
}


@pytest.mark.parametrize("files", CARDS.values(), ids=CARDS)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_card_names_files_of_its_own_set(card: str, files: Any, tmp_path: Path) -> None:
    text = json.dumps({"configs": [{"config_name": "default", "data_files": files}]})
    (tmp_path / card).write_text(f"---\n{text}\n---\n" if card == "README.md" else text)
    with pytest.raises(DataError):
        open_dataset(DataConfig(format="hf", root=str(tmp_path), depth_scale=1.0))


def test_a_saved_set_names_files_of_its_own(tmp_path: Path) -> None:
    for name in ("../x.arrow", "/etc/passwd", "s3://b/x.arrow"):
        state = {"_data_files": [{"filename": name}]}
        (tmp_path / "state.json").write_text(json.dumps(state))
        with pytest.raises(DataError, match="outside of the data set"):
            check_folder(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(DataError, match="outside of the data set"):
        check_folder(tmp_path)


def test_an_alias_bomb_in_a_card(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 12)]
    (tmp_path / "README.md").write_text("---\n" + "\n".join(lines) + "\n---\n")
    with pytest.raises(DataError, match="aliases"):
        open_dataset(DataConfig(format="hf", root=str(tmp_path), depth_scale=1.0))


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "/../secret.png"])
@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("form", ["nyu", "kitti"])
def test_lists_stay_below_their_roots(form: str, column: int, path: str, tmp_path: Path) -> None:
    words = ["a.png", "a.png", "500"]
    words[column] = path
    (tmp_path / "list.txt").write_text(" ".join(words))
    with pytest.raises(DataError, match=r"list\.txt:1: .*outside of the data set"):
        open_dataset(DataConfig(format=form, root=str(tmp_path), files="list.txt"))


def _on_disk(config: DataConfig) -> SampleDataset:
    opened = open_dataset(config)
    assert isinstance(opened, SampleDataset)
    return opened


@pytest.mark.parametrize("form", ["rgbd", "nyu", "kitti"])
def test_links_that_users_put_into_a_folder_are_followed(
    form: str, trees: Trees, tmp_path: Path
) -> None:
    """A root, and a sequence in it, that lie on another disk."""
    config = getattr(trees, form)()
    before = len(_on_disk(config))
    inside = {"rgbd": "train/a", "nyu": "bathroom", "kitti": "raw"}[form]
    moved = tmp_path / "other_disk" / "sequence"
    moved.parent.mkdir()
    (Path(config.root) / inside).rename(moved)
    (Path(config.root) / inside).symlink_to(moved)
    (tmp_path / "linked").symlink_to(config.root)
    samples = _on_disk(config.model_copy(update={"root": str(tmp_path / "linked")}))
    assert len(samples) == before
    assert samples[0].image_3HW.shape[0] == 3


def test_rows_that_name_files(tmp_path: Path) -> None:
    import datasets

    secret = tmp_path / "secret.png"
    secret.write_bytes(b"x")
    folder = tmp_path / "set"
    folder.mkdir()
    kinds = datasets.Features(
        {"image": {"inner": datasets.Image()}, "depth": datasets.Value("string")}
    )
    row = {"image": [{"inner": {"path": str(secret), "bytes": None}}], "depth": ["x"]}
    datasets.Dataset.from_dict(row, features=kinds).to_parquet(folder / "train.parquet")
    with pytest.raises(DataError, match="columns of their own"):
        open_dataset(DataConfig(format="hf", root=str(folder), depth_scale=1.0))


def test_links_in_a_labelled_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [[[[1]]]]
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["images"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")
    with pytest.raises(DataError, match="is a link"):
        open_dataset(DataConfig(format="nyu_mat", root=str(tmp_path / "a.mat"), split="all"))
