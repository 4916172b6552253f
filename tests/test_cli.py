"""The command line as a whole: version, help, as a module, without its packages."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

from tests.tiny.command_line import run


def test_version_and_help() -> None:
    assert run("--version").stdout.strip() == version("clipdepth-plugin")
    for command in ("inspect", "predict"):
        assert run(command, "--help").exit_code == 0


def test_runs_as_a_module() -> None:
    for arguments, code in ((["--version"], 0), (["nosuch"], 2)):
        command = [sys.executable, "-m", "clipdepth_plugin", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert (version("clipdepth-plugin") in done.stdout) == (code == 0)


def test_missing_typer_is_named() -> None:
    program = (
        "import sys; sys.modules['typer'] = None\nfrom clipdepth_plugin.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert 'needs the package typer: pip install "clipdepth-plugin[cli]"' in done.stderr
    assert "Traceback" not in done.stderr
