"""The README's example runs as it is written, and what the README points to is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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


def test_every_preset_is_listed() -> None:
    from clipdepth_plugin.config import PRESETS

    for preset in PRESETS:
        assert f"`{preset}`" in README, preset
