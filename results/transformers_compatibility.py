"""Runs the host tests under other releases of transformers; writes transformers_compatibility.md.

    make test-transformers

Each release gets an environment in .transformers/: all of .venv, with the release's own
transformers, huggingface_hub and tokenizers before it on the path. The tests run there; hosts that
a release does not have are listed by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FOLDER = ROOT / ".transformers"
# None: the one in .venv.
RELEASES: dict[str, str | None] = {"4.57": "4.57.*", "5.5": "5.5.*", "newest": None}
_NAMES = ("hosts", "generate", "copies", "refusals", "trim")
_PACKED_NAMES = (
    *("packed_hosts", "packed_videos", "packed_arguments"),
    *("layouts", "view_rules", "original_sizes"),
)
TESTS = tuple(f"tests/test_{name}.py" for name in (*_NAMES, *_PACKED_NAMES))
PACKAGES = ("transformers", "huggingface_hub", "tokenizers", "torch", "timm", "open_clip_torch")
_ASK = f"""
import importlib.metadata, json
from tests.tiny.packed import EVERY_PACKED
from tests.tiny.table import HOSTS
rows = (*HOSTS, *EVERY_PACKED)
versions = {{name: importlib.metadata.version(name) for name in {PACKAGES!r}}}
print(json.dumps({{"versions": versions, "hosts": {{host.name: host.absent for host in rows}}}}))
"""


def make_environment(name: str, release: str | None) -> Path:
    """A Python that has all of this one's packages, and that release of transformers."""
    if release is None:
        return Path(sys.executable)
    folder = FOLDER / name
    python, stamp = folder / "bin" / "python", folder / "ready"
    if stamp.exists() and stamp.read_text() == f"{release} over {sys.prefix}":
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    # After its own packages on the path; addsitedir reads the .pth file of an editable install.
    below = sysconfig.get_paths()["purelib"]
    (site / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, f"transformers=={release}"], check=True)
    stamp.write_text(f"{release} over {sys.prefix}")
    return python


def run_tests(name: str, python: Path) -> dict[str, Any]:
    """Versions, and which tests passed, failed or were skipped."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    asked = subprocess.run(
        [str(python), "-c", _ASK], capture_output=True, text=True, check=True, cwd=ROOT, env=env
    )
    about = json.loads(asked.stdout.splitlines()[-1])
    report = FOLDER / f"{name}.xml"
    pytest = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = subprocess.run(
        [*pytest, f"--junitxml={report}", *TESTS], cwd=ROOT, env=env, check=False
    )
    cases = list(ET.parse(report).getroot().iter("testcase"))  # noqa: S314
    outcomes: dict[str, list[str]] = {"failure": [], "error": [], "skipped": []}
    for case in cases:
        for kind, named in outcomes.items():
            if (found := case.find(kind)) is not None:
                named.append(f"{case.get('name')}: {found.get('message', '')[:200]}")
    return {
        "versions": about["versions"],
        "tests": len(cases),
        "failed": outcomes["failure"] + outcomes["error"],
        "skipped": outcomes["skipped"],
        "finished": tests.returncode == 0,
        "hosts": sorted(host for host, absent in about["hosts"].items() if not absent),
        "absent": sorted(host for host, absent in about["hosts"].items() if absent),
    }


def as_markdown(results: dict[str, Any]) -> str:
    """The page."""
    header = (*PACKAGES[:3], "hosts", "absent", "tests", "failed")
    rows, absent = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"], []
    for run in results["runs"].values():
        versions = run["versions"]
        cells = [versions[name] for name in PACKAGES[:3]]
        counts = [len(run["hosts"]), len(run["absent"]), run["tests"], len(run["failed"])]
        rows.append(f"| {' | '.join(map(str, [*cells, *counts]))} |")
        names, release = ", ".join(run["absent"]) or "none", versions["transformers"]
        absent.append(f"- Absent from {release}: {names}.")
        absent += [f"- Not run under {release}: {one}" for one in run["skipped"]]
        absent += [f"- Failed under {release}: {one}" for one in run["failed"]]
    versions = results["runs"]["newest"]["versions"]
    with_what = ", ".join(f"{name} {versions[name]}" for name in PACKAGES[3:])
    page = f"""\
# Compatibility with three releases of transformers

Made by `make test-transformers` on {results["date"]}, on a CPU, Python {results["python"]},
{with_what}. CI runs the newest only. Each host is tested as
`tests/test_hosts.py` and `tests/test_packed_hosts.py` say, with a prompt and `generate()` where it
has them, and each preprocessing against the release's own image processors. Absent hosts are those
that a release does not have, or has in an older form.

"""
    return page + "\n".join([*rows, "", *absent, ""])


def main(names: list[str]) -> int:
    """Runs the releases named, or all; writes the page when all have run."""
    chosen = names or RELEASES
    runs = {name: run_tests(name, make_environment(name, RELEASES[name])) for name in chosen}
    if not names:
        about = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "python": sys.version.split()[0]}
        results = {**about, "runs": runs}
        (HERE / "transformers_compatibility.json").write_text(json.dumps(results, indent=2) + "\n")
        (HERE / "transformers_compatibility.md").write_text(as_markdown(results))
    return int(not all(run["finished"] for run in runs.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
