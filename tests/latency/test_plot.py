"""The plot of an audit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipdepth_plugin.latency.plot import write_plot
from tests.tiny.audits import ROUNDS, an_audit


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Dollar signs in a folder's name are not read as a formula."""
    audit = an_audit({"runs/$a^$/head": np.full(ROUNDS, 0.010)})
    write_plot(tmp_path / "plot.svg", audit)
    assert "runs/$a^$/head" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
