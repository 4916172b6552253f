"""README and docs/: examples run as written, links lead somewhere, generated parts hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipdepth_plugin import DepthHead, HeadConfig, TowerFeatures
from clipdepth_plugin.config import PRESETS
from tests.results_scripts import ROOT

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
EXAMPLE = re.compile(
    r"<!-- example: run by tests/test_readme.py -->\n```python\n(.*?)```", re.DOTALL
)
EXAMPLES = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, text in enumerate(EXAMPLE.findall(page.read_text(encoding="utf-8")))
]


def name_of(page: Path) -> str:
    """A page's path in the repository, for the names of its tests."""
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_run(text: str) -> None:
    torch.manual_seed(0)
    exec(text, {})  # noqa: S102


def test_readmes_example_gives_maps_and_leaves_no_hooks() -> None:
    (text,) = EXAMPLE.findall(README.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec(text, names)  # noqa: S102
    assert names["metres"].shape == (2, 1, 224, 224)
    assert names["larger"].shape == (2, 1, 480, 640)
    assert [one.depth.shape for one in names["passes"]] == [(2, 1, 224, 224)]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in names["host"].modules())


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/extending.md"])
def test_files_that_contributors_are_sent_to_are_there(page: str) -> None:
    known = [*ROOT.glob("*/"), *ROOT.glob("tests/**/*"), *ROOT.glob("adapters/**/*")]
    known += [
        *ROOT.glob("clipdepth_plugin/**/*"),
        *ROOT.glob("kernels/**/*"),
        *ROOT.glob("results/*"),
    ]
    paths = {f"/{one.relative_to(ROOT).as_posix()}" for one in known}
    text = (ROOT / page).read_text(encoding="utf-8")
    for named in re.findall(r"`([a-z_][\w/]*(?:\.py|/))`", text):
        assert any(path.endswith(f"/{named.rstrip('/')}") for path in paths), named


def test_every_page_is_in_the_sites_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS:
        assert f" {page.relative_to(ROOT / 'docs').as_posix()}\n" in site, page


def test_the_table_of_hosts_is_what_the_tests_run_on() -> None:
    from tests.scripts import host_table

    if host_table.absent():
        pytest.skip(f"this transformers lacks {', '.join(host_table.absent())}")
    page = host_table.PAGE.read_text(encoding="utf-8")
    assert host_table.BEGIN in page
    assert host_table.END in page
    assert host_table.region(page) == host_table.build_table(), f"renew it: {host_table.COMMAND}"
    assert f"\n{host_table.count()} hosts " in README.read_text(encoding="utf-8")


def test_the_table_of_costs_is_what_was_measured() -> None:
    from tests.scripts import cost_table

    readme = README.read_text(encoding="utf-8")
    assert cost_table.BEGIN in readme
    assert cost_table.END in readme
    if not cost_table.MEASURED.exists():
        pytest.skip("not measured yet")
    table = cost_table.build_table(cost_table.read())
    assert cost_table.region(readme) == table, f"renew it: {cost_table.COMMAND}"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_listed_with_their_size_and_operations(preset: str) -> None:
    head = DepthHead(HeadConfig.model_validate({"width": 768, "preset": preset})).eval()
    levels = {level: torch.zeros(1, 14 * 14, 768) for level in head.config.levels}
    pixels = torch.zeros(1, 3, 224, 224) if head.reads_pixels else None
    features = TowerFeatures(levels, torch.zeros(1, 768), (14, 14), pixels)
    kept = (x for name, x in head.named_parameters() if "auxiliary" not in name)
    millions = sum(x.numel() for x in kept) / 1e6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        head(features)
    gmac = counter.get_total_flops() / 2e9
    row = f"| `{preset}` | {millions:.2f} M | {gmac:.{2 if gmac < 10 else 1}f} |"
    for page in (README, ROOT / "docs" / "heads.md"):
        rows = page.read_text(encoding="utf-8").splitlines()
        assert any(one.startswith(row) for one in rows), f"{name_of(page)} needs the row: {row} ..."
