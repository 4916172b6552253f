"""A command whose work is done succeeds, whatever takes its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny.command_line import save_pictures

PRINT = """
import sys
from rich.table import Table
from clipdepth_plugin.cli import main
from clipdepth_plugin.cli.console import bar, loading, print_table
from clipdepth_plugin.cli.inspect import InspectOptions

def inspect_host(options: InspectOptions, console) -> int:
    table = Table("", title="pictures \\u00e9")
    for number in range(6):
        table.add_column(f"column {number}", justify="right", no_wrap=True)
    table.add_row("AbsRel \\u2193 caf\\u00e9", *(["12.34 [11.11, 13.33]"] * 6))
    with loading(console, "demo \\U0001f600"):
        print_table(table)
    with bar(console, "depth \\u2026", 2) as advance:
        advance(2)
    console.print("a name that is no UTF-8: \\udcff")
    return 0

from clipdepth_plugin.cli import app as module
from clipdepth_plugin.cli.command import add_command
add_command(module.app, inspect_host, "shown")
sys.argv[1:] = ["shown", "x"]
main()
"""


def _run(
    arguments: list[str], environment: dict[str, str], redirect: str = ""
) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "PYTHONIOENCODING")}
    command = [sys.executable, *arguments]
    if redirect:
        command = ["sh", "-c", f'exec "$@" {redirect}', "sh", *command]
    return subprocess.run(
        command,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "40"},
        {"COLUMNS": "1"},
        {"COLUMNS": "0"},
        {"COLUMNS": "x", "TERMINAL_WIDTH": "x"},
        {"COLUMNS": "9" * 30},
        {"TERM": "dumb"},
        {"NO_COLOR": "1", "FORCE_COLOR": "1"},
        {"FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii"},
    ],
    ids=lambda one: " ".join(f"{name}={value[:5]}" for name, value in one.items()),
)
def test_every_encoding_and_width_takes_tables_bars_and_names(environment: dict[str, str]) -> None:
    done = _run(["-c", PRINT], environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("12.34 [11.11, 13.33]") == 6  # no number is cut or wrapped
    assert "AbsRel" in done.stdout


@pytest.mark.parametrize(
    ("redirect", "code"),
    [(">&-", 0), ("2>&-", 0), (">&- 2>&- <&-", 0), ("| true", 0), ("2>&1 | true", 0)],
)
def test_output_that_nobody_takes_is_no_failure(redirect: str, code: int) -> None:
    done = _run(["-c", PRINT], {}, redirect)
    assert done.returncode == code
    assert "Error" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_output_that_can_not_be_written_is_one() -> None:
    done = _run(["-c", PRINT], {}, ">/dev/full")
    assert done.returncode == 3
    assert "No space left on device" in done.stderr


def test_broken_pipes_leave_the_exit_code_of_the_command(tmp_path: Path) -> None:
    """The shell's own pipes give the last command's code; here it is the command's."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", PRINT],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    os.close(write)
    assert (done.returncode, "Broken pipe" in done.stderr) == (0, False)


def test_help_and_version_import_no_torch() -> None:
    program = """
import json, sys
from typer.testing import CliRunner
from clipdepth_plugin.cli.app import app
commands = [[], ["inspect"], ["predict"], ["train"], ["eval"], ["layers"], ["bench"]]
asked = [["--version"], *([*one, "--help"] for one in commands)]
codes = [CliRunner().invoke(app, one).exit_code for one in asked]
print(json.dumps({"codes": codes, "modules": sorted(sys.modules)}))
"""
    seen = json.loads(_run(["-c", program], {}).stdout)
    assert seen["codes"] == [0] * 8
    assert not {"torch", "transformers", "matplotlib"} & set(seen["modules"])


def test_a_command_says_what_it_waits_for(tmp_path: Path) -> None:
    save_pictures(tmp_path / "pictures", {"a.png": (8, 8)})
    arguments = ["predict", str(tmp_path / "pictures"), "--host", "nonsense:x", "--head", "none"]
    done = _run(["-m", "clipdepth_plugin", *arguments, "-o", str(tmp_path / "out")], {})
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "loading nonsense:x and none"
