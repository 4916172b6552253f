"""What is said of added latency is what the run files say: README's table and results/."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from clipdepth_plugin.latency.verdict import BUSY_PROCESSORS
from tests.results_scripts import ROOT, load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """results/added_latency.py."""
    return load_script("added_latency")


def test_readme_says_what_the_run_files_say(script: ModuleType) -> None:
    assert script.readme_section(script.found()) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_so_does_the_results_file(script: ModuleType) -> None:
    text = "\n".join(script.whole_file(script.found())) + "\n"
    assert text == (ROOT / "results" / "added_latency.md").read_text(encoding="utf-8")


def test_all_hosts_and_presets_are_there(script: ModuleType) -> None:
    audits = script.found()
    assert tuple(audits) == script.HOSTS
    for audit in audits.values():
        assert set(script.PRESETS) <= set(audit.heads)
        separate = [figure.name for figure in audit.figures if figure.scope == "separate"]
        assert separate == ["Depth-Anything-V2-S at 224", "Depth-Anything-V2-S at 518"]
        assert audit.environment.commit is not None
        assert not audit.environment.commit.endswith("-dirty")
        assert audit.others_percent is not None
        assert audit.others_percent / 100 * audit.processors_seen < BUSY_PROCESSORS


def test_every_figure_of_a_run_file_follows_from_its_times(script: ModuleType) -> None:
    """The medians are not typed: they are recomputed from the seconds in the file."""
    for audit in script.found().values():
        for figure in audit.figures:
            assert len(figure.seconds) == audit.settings.rounds
            assert figure.p50_ms == pytest.approx(1e3 * np.median(figure.seconds), rel=1e-3)
            for added in figure.added:
                seconds = np.array(figure.seconds)
                if figure.scope not in ("head", "separate"):
                    seconds = seconds - audit.figure(f"{added.base} alone").seconds
                median = 1e3 * float(np.median(seconds))
                assert added.milliseconds.median == pytest.approx(median, abs=2e-3)
