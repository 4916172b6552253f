"""The example of docs/robots.md runs as written."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

cases: Any = importlib.import_module("tests.lerobot.cases")
PAGE = Path(__file__).parents[2] / "docs" / "robots.md"
EXAMPLE = re.compile(
    r"<!-- example: run by tests/lerobot/test_docs.py -->\n```python\n(.*?)```", re.DOTALL
)


def test_the_example_runs(tmp_path: Path) -> None:
    case = cases.BY_NAME["smolvla"]
    policy = case.make(tmp_path)
    (text,) = EXAMPLE.findall(PAGE.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"policy": policy, "batch": case.batch(policy)}
    exec(text, names)  # noqa: S102
    assert names["wrist"].shape == (2, 1, 60, 40)
    assert names["front"].shape == (2, 1, 48, 96)
