"""``clipdepth eval`` and ``clipdepth layers``, run as a user runs them, on a tiny host and set."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.cli.data_spec import parse_data
from clipdepth_plugin.errors import DataError
from clipdepth_plugin.evaluation.report import Report
from tests.tiny.command_line import run, tiny_host, words


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_host(tmp_path_factory)


@pytest.fixture(scope="module")
def head(host: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    model = load_host(str(host)).model
    small = {"channels": (8, 8, 8, 8), "film_hidden": 8, "activation": "log"}
    DepthHead.for_host(model, preset="spaceclip", **small).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RGB-D folder of two splits, one test picture without depth."""
    root = tmp_path_factory.mktemp("data") / "rooms"
    random = np.random.default_rng(0)
    for split, sequences in (("train", 6), ("test", 2)):
        for sequence in range(sequences):
            folder = root / split / f"seq{sequence}"
            folder.mkdir(parents=True)
            for frame in range(3):
                rgb = random.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                depth = random.integers(500, 4000, (30, 40)).astype(np.uint16)
                if (split, sequence, frame) == ("test", 1, 2):
                    depth[:] = 0
                Image.fromarray(rgb).save(folder / f"{frame:04}.jpg")
                Image.fromarray(depth).save(folder / f"{frame:04}.depth.png")
    camera = {"default": [30.0, 30.0, 19.5, 14.5]}
    meta = {"depth_scale": 1000, "max_depth_m": 10.0, "intrinsics": camera}
    (root / "meta.json").write_text(json.dumps(meta))
    return root


def test_eval_writes_the_report(host: Path, head: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "report"
    options = ("--host", host, "--head", head, "-o", output, "--batch-size", "2")
    baseline = ("--baseline-data", f"rgbd:{data}", "--align", "median", "--pictures", "1")
    result = run("eval", *options, "--data", f"rgbd:{data}:test", *baseline)
    assert result.exit_code == 0, result.output
    assert "AbsRel" in result.stdout
    assert "train-median" in result.stdout
    assert "1 without valid depth" in words(result.stderr)
    report = Report.model_validate_json((output / "report.json").read_text())
    assert report.images == 5
    assert report.skipped == ("rooms/test/seq1/0002",)
    assert report.baseline.kind == "train-median"
    assert report.baseline.depth == pytest.approx(2.25, abs=0.1)
    assert report.data["split"] == "test"
    with (output / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    mean = np.mean([float(row["abs_rel"]) for row in rows])
    assert report.means["median"]["abs_rel"] == pytest.approx(mean, rel=1e-5)
    with Image.open(output / "pictures.png") as picture:
        picture.verify()


def test_eval_says_that_a_head_was_trained_at_another_size(
    host: Path, head: Path, data: Path, tmp_path: Path
) -> None:
    trained = DepthHead.from_pretrained(head)
    trained.config = trained.config.trained_on((16, 16), "whole")
    trained.save_pretrained(tmp_path / "trained")
    given = ("--data", f"rgbd:{data}:test", "-o", tmp_path / "out", "--pictures", "0")
    for which, said in ((head, False), ("trained", True)):
        options = ("--host", host, "--head", tmp_path / which, "--input-size", "32", "32")
        result = run("eval", *options, *given)
        assert result.exit_code == 0, result.output
        assert ("trained was trained at 16 16" in words(result.stderr)) == said


def test_eval_shows_names_as_they_are(host: Path, head: Path, data: Path, tmp_path: Path) -> None:
    """Brackets are no markup in a name, dollar signs no formula."""
    rooms = tmp_path / "rooms"
    shutil.copytree(data / "test" / "seq0", rooms / "test" / "$seq_{0$")
    shutil.copy(data / "meta.json", rooms)
    (tmp_path / "host[").mkdir()
    (tmp_path / "host[" / "b]").symlink_to(host)
    output = tmp_path / "out[final]" / "[" / "b]"
    given = ("--host", tmp_path / "host[" / "b]", "--head", head, "--data", f"rgbd:{rooms}:test")
    result = run("eval", *given, "-o", output)
    assert result.exit_code == 0, result.output
    assert "out[final]/[/b]" in words(result.stderr)
    assert (output / "pictures.png").exists()
    result = run("layers", *given[:2], "--data", f"rgbd:{data}", "--max-images", "2")
    assert result.exit_code == 0, result.output


def test_eval_of_what_does_not_fit(host: Path, head: Path, data: Path, tmp_path: Path) -> None:
    options = ("--host", host, "--head", head, "-o", tmp_path / "out")
    result = run("eval", *options, "--data", f"rgbd:{data}", "--protocol", "nyu")
    assert result.exit_code == 2
    assert "the protocol 'nyu' measures at 480 x 640" in words(result.stderr)
    result = run("eval", *options, "--data", f"cube:{data}")
    assert result.exit_code == 2
    assert "with a format of hf, kitti, nyu" in words(result.stderr)
    assert not (tmp_path / "out" / "report.json").exists()


def test_layers_prints_tables(host: Path, data: Path) -> None:
    result = run("layers", "--host", host, "--data", f"rgbd:{data}", "--stages", "2")
    assert result.exit_code == 0, result.output
    assert "each level alone" in result.stdout
    assert re.search(r"semantic_levels: \[\d, \d\]\n +structural_levels: \[\d\]", result.stdout)
    assert "15 pictures fitted, 3 scored (held out: sequence)" in words(result.stdout)


@pytest.mark.parametrize("stages", [1, 4, 5])
def test_layers_proposes_what_a_head_takes(stages: int, host: Path, data: Path) -> None:
    given = ("--host", host, "--data", f"rgbd:{data}")
    result = run("layers", *given, "--stages", str(stages), "--max-images", "4")
    assert result.exit_code == 0, result.output
    proposed = yaml.safe_load(result.stdout.partition("proposed")[2].partition("\n")[2])
    assert ("structural_levels" in proposed) == (stages == 4)
    for preset in ("fast", "guided"):
        head = DepthHead.for_host(load_host(str(host)).model, preset=preset, **proposed)
        assert len(head.config.semantic_levels) == stages


def test_layers_refuses_more_stages_than_levels(host: Path, data: Path) -> None:
    result = run("layers", "--host", host, "--data", f"rgbd:{data}", "--stages", "9")
    assert result.exit_code == 2
    assert "--stages 9: the tower has 5 levels, 0 to 4" in words(result.stderr)


def test_layers_prints_json_alone(host: Path, data: Path) -> None:
    given = ("--data", f"rgbd:{data}", "--val-data", f"rgbd:{data}:test")
    result = run("layers", "--host", host, *given, "--max-images", "4", "--patches", "0", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["images"] == [4, 4]
    assert report["split"] == "given"
    assert [len(step["levels"]) for step in report["steps"]] == [1, 2, 3, 4, 5]
    assert report["options"]["patches"] is None


def test_data_by_name_and_by_file(tmp_path: Path) -> None:
    config = parse_data("rgbd:$CLIPDEPTH_DATA/libero:val")
    assert (config.format, config.root, config.split) == ("rgbd", "$CLIPDEPTH_DATA/libero", "val")
    assert parse_data("rgbd:rooms").split == "test"
    shards = "https://host:8080/shards/train-{000..012}.tar"
    assert parse_data(f"webdataset:{shards}").root == shards
    with pytest.raises(ValueError, match="split: not read by format webdataset"):
        parse_data(f"webdataset:{shards}:val")
    (tmp_path / "with:colon").mkdir()
    assert parse_data(f"rgbd:{tmp_path}/with:colon").root == f"{tmp_path}/with:colon"
    fields = {"format": "kitti", "root": "/kitti", "files": "list.txt"}
    (tmp_path / "kitti.json").write_text(json.dumps(fields))
    (tmp_path / "kitti.yaml").write_text("format: kitti\nroot: /kitti\nfiles: list.txt\n")
    for name in ("kitti.json", "kitti.yaml"):
        config = parse_data(str(tmp_path / name))
        assert (config.format, config.files, config.split) == ("kitti", "list.txt", "test")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.yaml").write_text("a: [")
    for name, why in (("list.yaml", "got list"), ("bad.json", "JSON"), ("bad.yaml", "YAML")):
        with pytest.raises(DataError, match=why):
            parse_data(str(tmp_path / name))
    with pytest.raises(DataError, match="that exists"):
        parse_data("nowhere.yaml")
