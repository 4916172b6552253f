"""The README's example runs as it is written, and what the README points to is there."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_runs() -> None:
    (example,) = re.findall(
        r"<!-- example: run by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL
    )
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(example, names)  # noqa: S102
    assert names["metres"].shape == (2, 1, 224, 224)
    assert names["larger"].shape == (2, 1, 480, 640)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in names["host"].modules())


def test_opens_with_the_two_commands_and_the_three_lines() -> None:
    for said in ("make demo", "make test", "with attach(host, head) as plugin:", "plugin.depth"):
        assert said in README[:900], said


def test_links_lead_somewhere() -> None:
    for text in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)", text.read_text()):
            assert (ROOT / link[0]).exists(), f"{text.name}: {link[0]}"


def test_the_table_of_hosts_is_what_the_tests_run_on() -> None:
    from tests.scripts import host_table

    if host_table.absent():
        pytest.skip(f"this transformers lacks {', '.join(host_table.absent())}")
    assert host_table.BEGIN in README
    assert host_table.END in README
    written = host_table.region(README)
    assert written == host_table.build_table(), f"renew it: {host_table.COMMAND}"


def test_every_preset_is_listed_with_what_it_costs() -> None:
    from clipdepth_plugin import DepthHead, HeadConfig
    from clipdepth_plugin.config import PRESETS
    from clipdepth_plugin.latency.resources import count_gflops
    from tests.tiny.depth_heads import make_features

    for preset in PRESETS:
        config = HeadConfig(width=768, preset=preset)
        head, features = DepthHead(config).eval(), make_features(config, (14, 14), 1)
        kept = (x for name, x in head.named_parameters() if "auxiliary" not in name)
        millions = sum(x.numel() for x in kept) / 1e6
        gmac = count_gflops(partial(head, features)) / 2
        row = next(line for line in README.splitlines() if line.startswith(f"| `{preset}` |"))
        cells = [cell.strip() for cell in row.split("|")[2:4]]
        assert cells == [f"{millions:.2f} M", f"{gmac:.2f}" if gmac < 10 else f"{gmac:.1f}"], preset
