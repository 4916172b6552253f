"""Tests of another package's own classes, in an environment of its own; what came of each.

`lerobot_policies.py` and `vllm_engine.py` use it: the package needs other versions of torch and
transformers than the suite. Needs Python 3.12.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Install = Callable[[Path, list[str]], object]
"""(the environment's Python, the pip command so far): installs everything."""


@dataclass(frozen=True, kw_only=True)
class OwnEnvironment:
    """A package with an environment of its own.

    Attributes:
        package: What messages call it.
        variable: Of the process: names an environment, which is taken as it is.
        folder: In the tree, where one is made otherwise.
        key: All that it depends on; another key makes it anew.
        install: Fills it.
        tests: The folder of the tests.
        options: More of pytest.
        ask: Python code that prints a JSON object of what the page says beside the tests.
        newest: Whether a newer Python than 3.12 will do.
    """

    package: str
    variable: str
    folder: str
    key: object
    install: Install
    tests: str
    options: Sequence[str] = ()
    ask: str
    newest: bool = False

    def python(self) -> Path:
        """The Python of the environment, which is made where it is not there."""
        named = os.environ.get(self.variable)
        folder = Path(named) if named else ROOT / self.folder
        python, ready = folder / "bin" / "python", folder / "ready"
        if named or (ready.exists() and ready.read_text() == repr(self.key)):
            return python
        own = sys.version_info >= (3, 12) if self.newest else sys.version_info[:2] == (3, 12)
        base = sys.executable if own else _python_3_12()
        if base is None:
            raise SystemExit(
                f"{self.package} needs Python 3.12: none on the path, or in pyenv, runs"
            )
        print(f"Making {folder} (some GB of downloads)")
        subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        self.install(python, pip)
        ready.write_text(repr(self.key))
        return python

    def run(self, arguments: list[str], stem: str, page: Callable[[dict[str, Any]], str]) -> int:
        """Runs the tests; writes STEM.json and STEM.md where all of them ran: pytest's exit code.

        ``arguments`` go to pytest, and then nothing is written.
        """
        python = self.python()
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            code = self._run_tests(python, arguments, report)
            if arguments:
                return code
            tests = _outcomes(report)
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        asked = subprocess.run(
            [str(python), "-c", self.ask], env=env, capture_output=True, text=True, check=True
        )
        about = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
        results = {**about, **json.loads(asked.stdout.splitlines()[-1]), "tests": tests}
        (HERE / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
        (HERE / f"{stem}.md").write_text(page(results))
        return code

    def _run_tests(self, python: Path, arguments: list[str], report: Path) -> int:
        """Pytest there, which has not all of the suite's plug-ins and warnings."""
        env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        options = ["-o", "addopts=", "-o", "filterwarnings=", "--import-mode=importlib", "-ra"]
        command = [str(python), "-m", "pytest", *options, "-p", "no:cacheprovider", *self.options]
        command += [f"--junitxml={report}", self.tests, *arguments]
        return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


def _python_3_12() -> str | None:
    """One that runs: pyenv has commands on the path for versions that are not chosen."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = shutil.which("python3.12")
    for one in filter(None, (on_path, *sorted(map(str, pyenv.glob("3.12*/bin/python3.12"))))):
        asked = subprocess.run([one, "-c", "import ensurepip"], capture_output=True, check=False)
        if asked.returncode == 0:
            return one
    return None


def _outcomes(report: Path) -> dict[str, str]:
    """Test -> passed, failed or skipped."""
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314
        kinds = {child.tag for child in case}
        bad = "failed" if kinds & {"failure", "error"} else "passed"
        found[str(case.get("name"))] = "skipped" if "skipped" in kinds else bad
    return found


def cell(tests: dict[str, str], test: str) -> str:
    """What a table says of a test."""
    outcome = tests.get(test)
    return {"passed": "yes", None: "-"}.get(outcome, f"**{outcome}**")
