"""open_source, and callables as depth sources: the contract of docs/labelling.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipdepth_plugin.errors import SourceError
from clipdepth_plugin.labelling.source import Picture, open_source
from tests.results_scripts import ROOT

EXAMPLE = re.compile(
    r"<!-- example: run by tests/labelling/test_sources.py -->\n```python\n(.*?)```", re.DOTALL
)
PLAIN = """
import numpy as np
import torch


def brightness(pictures, focals):
    return [(image.mean(-1) + 1, None) for image in pictures]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes a module into the working directory; what names it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    written: list[str] = []

    def write(text: str) -> str:
        name = f"teacher_{len(written)}"
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return f"python:{name}"

    yield write
    for name in written:
        sys.modules.pop(name, None)


def picture(seed: int = 0, size: tuple[int, int] = (6, 8), focal: float | None = None) -> Picture:
    image_HW3 = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Picture(f"seq/{seed}", image_HW3, (focal and (focal, focal, 3.5, 2.5)) or None)


def test_a_function_is_called_with_pictures_of_one_size(module: Callable[[str], str]) -> None:
    name = module(
        PLAIN
        + """
SEEN = []


def depth(pictures, focals):
    SEEN.append((len(pictures), focals))
    assert len({one.shape for one in pictures}) == 1
    maps = brightness(pictures, focals)
    for one in pictures:
        one[:] = 0  # its own copies
    return maps
"""
    )
    source = open_source(f"{name}:depth")
    assert source.card.model_dump(exclude={"version"}) == {
        "source": f"{name}:depth",
        "units": "metres",
        "licence": None,
        "max_depth": None,
        "reads_focal": False,
    }
    pictures = [picture(0, focal=9.0), picture(1, (5, 8)), picture(2)]
    labels = source.label(pictures)
    for one, label in zip(pictures, labels, strict=True):
        expected = (one.image_HW3.mean(-1) + 1).astype(np.float32)
        np.testing.assert_array_equal(label.depth_HW, expected)
        assert label.confidence_HW is None
    assert sys.modules[name[7:]].SEEN == [(2, [9.0, None]), (1, [None])]
    assert source.label([]) == []


def test_the_version_is_the_file_where_none_is_said(module: Callable[[str], str]) -> None:
    one, other, again = (module(PLAIN + text) for text in ("", "# changed", ""))
    versions = [open_source(f"{name}:brightness").card.version for name in (one, other, again)]
    assert all(version.startswith("sha256:") for version in versions)
    assert versions[0] != versions[1]
    made = module(PLAIN + "import functools\nmade = functools.partial(brightness)")
    assert open_source(f"{made}:made").card.version.startswith("sha256:")


def test_attributes_say_what_a_callable_is(module: Callable[[str], str]) -> None:
    name = module(
        PLAIN
        + """
class Teacher:
    units = "inverse depth"
    licence = "CC-BY-NC-4.0"
    reads_focal = True

    def __init__(self, device, dtype):
        self.version = f"7 on {device} in {dtype}"

    def __call__(self, pictures, focals):
        return [(torch.zeros(one.shape[:2], dtype=torch.bfloat16), None) for one in pictures]
"""
    )
    source = open_source(f"{name}:Teacher", dtype="float16")
    assert source.card.units == "inverse depth"
    assert source.card.licence == "CC-BY-NC-4.0"
    assert source.card.reads_focal
    assert source.card.version == "7 on cpu in float16"
    (label,) = source.label([picture()])
    assert (label.depth_HW == 0).all()
    with pytest.raises(SourceError, match="a function chooses its own dtype"):
        open_source(f"{name}:brightness", dtype="float16")


def test_where_it_is_not_valid_there_is_no_depth(module: Callable[[str], str]) -> None:
    name = module(
        """
import numpy as np


def depth(pictures, focals):
    metres = np.full((6, 8), 2.0)
    metres[0], metres[1], metres[2] = np.nan, np.inf, -1
    valid = np.ones((6, 8), bool)
    valid[:3] = False
    return [(metres, valid)]
"""
    )
    (label,) = open_source(f"{name}:depth").label([picture()])
    assert np.isnan(label.depth_HW[:3]).all()
    assert (label.depth_HW[3:] == 2).all()


ONES = "np.ones((6, 8))"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "returned a NoneType, expected a list of one pair"),
        ("np.ones((1, 2, 6, 8))", "returned a ndarray"),
        (f"[{ONES}]", "returned a ndarray for it, expected a list of one pair"),
        (f"[({ONES},)]", "returned a tuple for it, expected a list of one pair"),
        (f"[({ONES}, None, None)]", "expected a list of one pair"),
        (f"[({ONES}, None)] * 2", "2 depth maps for 1 pictures"),
        ("[]", "0 depth maps for 1 pictures"),
        ("[(np.ones((8, 6)), None)]", r"depth: got float64 \(8, 6\), expected floats \(6, 8\)"),
        ("[(np.ones((1, 6, 8)), None)]", "depth: got"),
        ("[(np.ones((6, 8), int), None)]", "depth: got int64"),
        ("[(np.ones((6, 8), complex), None)]", "depth: got complex128"),
        ("[(np.ones((6, 8), object), None)]", "depth: got object"),
        ("[([[1.0] * 8] * 6, None)]", "expected a NumPy array or a tensor of floats"),
        (f"[(np.ma.masked_array({ONES}), None)]", "expected a NumPy array or a tensor"),
        ("[(torch.ones(6, 8, dtype=torch.int32), None)]", "depth: got int32"),
        (f"[({ONES} * np.nan, None)]", "depth is NaN or infinite at 48 of 48 pixels"),
        (f"[({ONES} * np.inf, None)]", "NaN or infinite"),
        (f"[({ONES} * 1e39, None)]", "NaN or infinite"),
        (f"[({ONES} * 0, None)]", "depth is not above 0 m at 48 of 48"),
        (f"[(-{ONES}, None)]", "not above 0 m"),
        (f"[({ONES}, {ONES})]", "validity: got float64"),
        (f"[({ONES}, np.ones((6, 7), bool))]", "validity: got bool"),
        (f"[({ONES}, True)]", "validity: got True"),
        ("[(torch.ones(6, 8).to_sparse(), None)]", "depth: "),
        ("[(torch.ones(6, 8, device='meta'), None)]", "depth: "),
        ("((torch.ones(6, 8), None) for _ in pictures)", "returned a generator"),
        ("1 / 0", "failed on seq/0 .ZeroDivisionError"),
        ("torch.ones(2) @ torch.ones(3)", "failed on seq/0 .RuntimeError"),
        ("exit(4)", "failed on seq/0 .SystemExit: 4"),
    ],
)
def test_wrong_output_is_refused_with_picture_and_function(
    returned: str, message: str, module: Callable[[str], str]
) -> None:
    name = module(f"import numpy as np, torch\ndef depth(pictures, focals):\n return {returned}")
    with pytest.raises(SourceError, match=message) as caught:
        open_source(f"{name}:depth").label([picture()])
    assert f"{name}:depth" in str(caught.value)
    assert "seq/0" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def depth(p, f): ...\ndepth.units = 'feet'", "units: Input should be 'metres' or"),
        ("def depth(p, f): ...\ndepth.max_depth = -1", "max_depth"),
        ("def depth(p, f): ...\ndepth.licence = 7", "licence"),
        ("depth = 7", "is 7, no callable"),
        ("", "is None, no callable"),
        ("import a_package_that_nobody_has", "package a_package_that_nobody_has is not installed"),
        ("def depth(", r"can't be opened .SyntaxError"),
        ("raise RuntimeError('no weights')", "can't be opened .RuntimeError: no weights"),
        ("exit('no weights')", "can't be opened .SystemExit: no weights"),
        ("class depth:\n def __init__(self): ...", "can't be opened .TypeError"),
    ],
)
def test_callables_that_are_refused(text: str, message: str, module: Callable[[str], str]) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(f"{module(text)}:depth")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "expected KIND:WHAT with a kind of head, hf, onnx, python"),
        ("moge:x", {}, "expected KIND:WHAT"),
        ("hf:", {}, "expected KIND:WHAT"),
        ("hf:no/such/id", {}, "neither a folder that exists nor a hub id"),
        ("python:os", {}, "expected python:module:function"),
        ("python::f", {}, "expected python:module:function"),
        ("python:no_such_module:f", {}, "there is no module no_such_module, neither installed"),
        ("python:os.no_such:f", {}, "there is no module os.no_such"),
        ("python:.x:f", {}, "can't be opened"),
        ("onnx:none.onnx", {}, "none.onnx: no such file"),
        ("head:demo", {}, "expected head:HEAD@HOST"),
        ("head:@demo", {}, "expected head:HEAD@HOST"),
        ("head:demo@nothing:x", {}, "neither a known scheme"),
        ("head:no_such@config:vit-b-16", {}, "no_such"),
        ("hf:x", {"dtype": "float64"}, "expected float32, float16, bfloat16"),
        ("hf:x", {"device": "tpu"}, "device 'tpu'"),
        ("hf:x", {"device": "meta"}, "nothing can be computed there"),
    ],
)
def test_sources_that_do_not_exist(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(text, **options)


@pytest.mark.parametrize(
    "image",
    [np.zeros((6, 8, 3)), np.zeros((6, 8), np.uint8), np.zeros((6, 8, 4), np.uint8), None],
)
def test_what_is_no_picture_is_refused(image: Any, module: Callable[[str], str]) -> None:
    with pytest.raises(SourceError, match=r"seq/9: expected a picture of uint8 RGB, \(H, W, 3\)"):
        open_source(f"{module(PLAIN)}:brightness").label([Picture("seq/9", image)])


def test_the_example_of_the_docs_runs(module: Callable[[str], str]) -> None:
    (text,) = EXAMPLE.findall((ROOT / "docs" / "labelling.md").read_text(encoding="utf-8"))
    source = open_source(f"{module(text)}:floor")
    assert source.card.units == "metres"
    assert source.card.reads_focal
    known, blind = source.label([picture(0, focal=10.0), picture(1)])
    assert np.isnan(blind.depth_HW).all()
    assert np.isnan(known.depth_HW[:3]).all()
    np.testing.assert_allclose(known.depth_HW[5], 1.2 * 10 / 2.5, rtol=1e-6)
    assert torch.from_numpy(known.depth_HW).dtype == torch.float32
