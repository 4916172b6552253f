"""What others took of the machine's processors during a measurement."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipdepth_plugin.latency import other_work
from clipdepth_plugin.latency.other_work import OtherWork

FIRST = "cpu  1000 0 200 7000 300 10 20 30 0 0\n"
LATER = "cpu  1400 0 250 7400 350 10 20 130 0 0\ncpu0 1 2 3\n"


def test_it_is_what_was_busy_and_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """400 user, 50 system and 100 stolen of 1,000 ticks; of them this process took a quarter."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(other_work, "_STAT", stat)
    stat.write_text(FIRST, encoding="ascii")
    work = OtherWork.start()
    assert work is not None
    assert work.percent() is None  # no time has passed
    stat.write_text(LATER, encoding="ascii")
    tick = os.sysconf("SC_CLK_TCK")
    earlier = OtherWork(work.busy, work.own - 250 / tick, work.total)
    found = earlier.percent()
    assert found is not None
    assert found == pytest.approx(30.0, abs=2.0)


def test_where_the_system_does_not_tell_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_work, "_STAT", Path("/not/there"))
    assert OtherWork.start() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="read from Linux's /proc/stat")
def test_a_working_neighbour_is_seen() -> None:
    """Half a second of another process's work, whatever else the machine does."""
    work = OtherWork.start()
    assert work is not None
    spin = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    time.sleep(0.05)
    now = OtherWork.start()
    percent = work.percent()
    assert now is not None
    assert percent is not None
    assert percent * (now.total - work.total) / 100 > 0.4
