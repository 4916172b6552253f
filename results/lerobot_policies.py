"""Runs the tests of LeRobot's own policies; writes lerobot_policies.md and lerobot_policies.json.

    make test-lerobot                            # or: LEROBOT_VENV=/path/to/one make test-lerobot

LeRobot needs other versions of torch and transformers than the suite, so its environment is one of
its own: .venv-lerobot, made here, or the one that LEROBOT_VENV names, which is taken as it is.
Needs Python 3.12. Arguments go to pytest, and then nothing is written.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REQUIRES = (
    *("lerobot[smolvla,pi,eo1,multi_task_dit,vla_jepa,xvla]==0.6.*", "dm-tree", "peft>=0.18"),
    *("accelerate>=1.14", "torchao", "bitsandbytes", "pytest>=8.3"),
    # Ours; the tree itself is on the path.
    *("kornia>=0.7.3", "open_clip_torch>=2.30", "pydantic>=2.9", "rich>=13.8", "typer>=0.19"),
)
PACKAGES = ("lerobot", "torch", "transformers", "peft", "accelerate", "torchao", "bitsandbytes")
COLUMNS = {
    "tower found": "test_the_tower_is_found",
    "actions equal, RNG and weights too": "test_actions_are_the_same",
    "map in each camera's picture, by name": "test_maps_are_in_each_cameras_own_picture",
    "views in order (no names)": "test_views_are_rows_by_cameras_where_they_have_no_names",
    "loss and gradients equal": "test_training_forward",
    "missing camera never a map": "test_a_camera_that_is_missing_is_never_a_map",
    "compiled (eager backend)": "test_compiled_with_the_eager_backend",
    "500 frames, cameras come and go": "test_no_map_under_another_cameras_name",
}
_ASK = f"""
import importlib.metadata, importlib, json, sys
sys.path.insert(0, {str(ROOT)!r})
import tests
tests.__path__ = [{str(ROOT / "tests")!r}]  # a package that LeRobot needs has one of that name
table = importlib.import_module("tests.lerobot.cases")
versions = {{name: importlib.metadata.version(name) for name in {PACKAGES!r}}}
names = {{case.name: case.tower for case in table.CASES}}
about = {{"python": sys.version.split()[0], "not_built": table.NOT_BUILT}}
print(json.dumps({{"versions": versions, "policies": names, **about}}))
"""


def environment() -> Path:
    """A Python that has LeRobot."""
    named = os.environ.get("LEROBOT_VENV")
    folder = Path(named) if named else ROOT / ".venv-lerobot"
    python, ready = folder / "bin" / "python", folder / "ready"
    if named or (ready.exists() and ready.read_text() == repr(REQUIRES)):
        return python
    own = sys.executable if sys.version_info >= (3, 12) else shutil.which("python3.12")
    if own is None:
        raise SystemExit("LeRobot needs Python 3.12: none is on the path")
    print(f"Making {folder} (some GB of downloads)")
    subprocess.run([own, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *REQUIRES], check=True)
    ready.write_text(repr(REQUIRES))
    return python


def run_tests(python: Path, arguments: list[str], report: Path) -> int:
    """Pytest in that environment, which has not all of the suite's plug-ins and warnings."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    options = ["-o", "addopts=", "-o", "filterwarnings=", "--import-mode=importlib", "-ra"]
    command = [str(python), "-m", "pytest", *options, "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", "tests/lerobot", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


def outcomes(report: Path) -> dict[str, str]:
    """Test -> passed, failed or skipped."""
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314
        kinds = {child.tag for child in case}
        bad = "failed" if kinds & {"failure", "error"} else "passed"
        found[str(case.get("name"))] = "skipped" if "skipped" in kinds else bad
    return found


def cell(found: dict[str, str], test: str, policy: str) -> str:
    """What a test says of a policy."""
    outcome = found.get(f"{test}[{policy}]")
    return {"passed": "yes", None: "-"}.get(outcome, f"**{outcome}**")


def rows(results: dict[str, Any]) -> Iterator[str]:
    """The table of policies."""
    yield f"| policy | tower | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name, tower in results["policies"].items():
        cells = [cell(results["tests"], test, name) for test in COLUMNS.values()]
        yield f"| {name} | `{tower}` | {' | '.join(cells)} |"


def page(results: dict[str, Any]) -> str:
    """The page."""
    tests, versions = results["tests"], results["versions"]
    shown = {*COLUMNS.values()}
    others = [name for name in tests if re.sub(r"\[.*", "", name) not in shown]
    refused = {name: re.sub(r".*\[(.*)\]", r"\1", name) for name in others if "_refused" in name}
    bad = [name for name, outcome in tests.items() if outcome != "passed"]
    with_what = ", ".join(f"{name} {versions[name]}" for name in PACKAGES)
    return f"""\
# Depth beside LeRobot's own policies

Made by `make test-lerobot` on {results["date"]} ({results["machine"]}, CPU, Python
{results["python"]}): {with_what}. {len(tests)} tests in `tests/lerobot/`, {len(bad)} of them not
passed{": " + ", ".join(bad) if bad else ""}. The policies are LeRobot's own classes with tiny
layers and random weights; three cameras of 48 x 96, 60 x 40 and 70 x 70 pixels, two rows. "-": not
asked of that policy. Those with Qwen's towers (EO1, VLA-JEPA, GR00T) are not compiled here: EO1's
whole `sample_actions` failed once for a reason that was not found, VLA-JEPA's had not finished in
minutes on the loaded machine, GR00T's was not reached.
Of pi0-FAST its action tokens are compared, as its tokenizers are downloaded. The machine was
shared.

{chr(10).join(rows(results))}

Refused, as they have no ViT tower: {", ".join(refused.values())}.

## With other libraries

{chr(10).join(f"- `{name}`: {tests[name]}" for name in others if name not in refused)}

## Not built

{chr(10).join(f"- {name}: {why}." for name, why in results["not_built"].items())}
"""


def main(arguments: list[str]) -> int:
    """Runs the tests; writes the page where all of them ran."""
    python = environment()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = run_tests(python, arguments, report)
        if arguments:
            return code
        tests = outcomes(report)
    asked = subprocess.run([str(python), "-c", _ASK], capture_output=True, text=True, check=True)
    about = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    results = {**about, **json.loads(asked.stdout.splitlines()[-1]), "tests": tests}
    (HERE / "lerobot_policies.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "lerobot_policies.md").write_text(page(results))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
