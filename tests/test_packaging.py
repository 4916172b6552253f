"""What the layout promises: two folders without ``__init__.py``, two links, and one whole wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("adapters", "kernels")
HEAD_FILES = ("README.md", "config.json", "model.safetensors")
IMPORT_ALL = """
import importlib, pathlib, sys
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
"""


def run_python(*args: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run this Python in `cwd`, with only `path` as PYTHONPATH, and return what it prints."""
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONSAFEPATH"}}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that a build reads, so that no stale build folder gets into the wheel."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy)
    for name in ("clipdepth_plugin", *FOLDERS):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    return copy


@pytest.fixture(scope="session")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run_python("-m", "build", "--no-isolation", "--sdist", "--outdir", out, source, cwd=out)
    return next(out.glob("*.tar.gz"))


def build_wheel(origin: Path, out: Path) -> Path:
    pip = ("-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index")
    run_python(*pip, "--no-deps", "--no-build-isolation", "-w", out, origin, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as a package index's is."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def wheel_names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="session")
def metadata(wheel: Path, wheel_names: list[str]) -> Message:
    (name,) = (name for name in wheel_names if name.endswith(".dist-info/METADATA"))
    return message_from_string(zipfile.ZipFile(wheel).read(name).decode())


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_folders_have_no_init(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    assert (ROOT / folder / "README.md").is_file()


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_links_are_relative_and_resolve(folder: str) -> None:
    link = ROOT / "clipdepth_plugin" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert link.resolve() == ROOT / folder


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_bare_name_is_not_ours_even_from_the_root(folder: str) -> None:
    probe = (
        "import importlib.util, sys; spec = importlib.util.find_spec(sys.argv[1]); "
        "print(spec.origin or '' if spec else '')"
    )
    origin = run_python("-c", probe, folder, cwd=ROOT)
    # A namespace has no origin; a package of that name, if installed, is not one in this tree.
    in_the_way = (ROOT / folder, ROOT / "clipdepth_plugin")
    assert not origin or not any(Path(origin).resolve().is_relative_to(p) for p in in_the_way)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_package_of_that_name_wins_from_the_root(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "__init__.py").write_text("owner = 'theirs'\n", encoding="utf-8")
    code = f"import sys; assert sys.path[0] == ''; import {folder}; print({folder}.owner)"
    assert run_python("-c", code, cwd=ROOT, path=tmp_path) == "theirs"


def test_transformers_imports_from_the_root() -> None:
    # It looks for a package named kernels, and once found a folder of ours instead.
    run_python("-c", "from transformers import CLIPVisionModel", cwd=ROOT)


def test_every_folder_with_code_is_listed(pyproject: dict[str, Any]) -> None:
    found = set()
    for top in ("clipdepth_plugin", *FOLDERS):
        for folder, _, files in os.walk(ROOT / top):  # does not follow the links
            if any(name.endswith(".py") for name in files):
                name = ".".join(Path(folder).relative_to(ROOT).parts)
                found.add(name if top == "clipdepth_plugin" else f"clipdepth_plugin.{name}")
    assert found == set(pyproject["tool"]["setuptools"]["packages"])


def test_the_wheel_holds_one_package_and_all_its_code(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert "clipdepth_plugin" in tops
    assert all(t.endswith(".dist-info") for t in tops - {"clipdepth_plugin"}), tops
    for folder in FOLDERS:
        expected = {f"clipdepth_plugin/{folder}/{p.name}" for p in (ROOT / folder).glob("*.py")}
        assert expected, f"{folder}/ has no code"
        assert expected <= set(wheel_names)
    modules = {f"clipdepth_plugin/{p.name}" for p in (ROOT / "clipdepth_plugin").glob("*.py")}
    assert {*modules, "clipdepth_plugin/py.typed"} <= set(wheel_names)


def test_a_wheel_from_the_tree_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    contents = []
    for path in (wheel, build_wheel(source, tmp_path)):
        with zipfile.ZipFile(path) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist()})
    assert contents[0] == contents[1]


def test_the_wheel_holds_nothing_but_code_and_the_shipped_head(wheel_names: list[str]) -> None:
    inside = (Path(name) for name in wheel_names if name.startswith("clipdepth_plugin/"))
    other = {str(p) for p in inside if p.suffix != ".py" and p.name != "py.typed"}
    head = {f"clipdepth_plugin/heads/demo/{name}" for name in HEAD_FILES}
    assert other == {*head, "clipdepth_plugin/app/pointer.js"}


def test_an_installed_wheel_imports_away_from_the_tree(
    wheel: Path, wheel_names: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "site"
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile")
    run_python(*pip, "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    files = (Path(name) for name in wheel_names if name.endswith(".py"))
    modules = [".".join(p.with_suffix("").parts).removesuffix(".__init__") for p in files]
    assert any(name.startswith("clipdepth_plugin.adapters.") for name in modules)
    run_python("-c", IMPORT_ALL, target, *modules, cwd=tmp_path, path=target)


def test_the_sdist_holds_the_licence_and_both_folders(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "clipdepth_plugin/py.typed"} <= names
    for folder in FOLDERS:
        assert any(re.fullmatch(rf"{folder}/\w+\.py", name) for name in names)


def test_the_metadata_says_what_users_choose_by(
    metadata: Message, pyproject: dict[str, Any]
) -> None:
    assert metadata["Name"] == "clipdepth-plugin"
    assert metadata["Version"] == pyproject["project"]["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"cli", "demo", "dev", "hosts"} <= set(metadata.get_all("Provides-Extra", []))
    core = {
        requirement.name
        for requirement in map(Requirement, metadata.get_all("Requires-Dist", []))
        if requirement.marker is None
    }
    assert core == {
        "einops",
        "huggingface_hub",
        "kornia",
        "numpy",
        "open_clip_torch",
        "pillow",
        "pydantic",
        "safetensors",
        "torch",
    }


@pytest.mark.parametrize("version", ["0.34.0", "0.36.2", "1.31.0", "2.4.0"])
def test_the_hub_client_of_either_transformers_is_admitted(
    version: str, pyproject: dict[str, Any]
) -> None:
    requirements = map(Requirement, pyproject["project"]["dependencies"])
    (hub,) = (r for r in requirements if r.name == "huggingface_hub")
    assert hub.specifier.contains(version)


def test_pre_commit_runs_the_pinned_tools(pyproject: dict[str, Any]) -> None:
    dev = set(pyproject["project"]["optional-dependencies"]["dev"])
    config = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pins = re.findall(r"[\w-]+==[\w.]+", config)
    assert any(pin.startswith("ruff==") for pin in pins)
    assert set(pins) <= dev
    assert any(pin.startswith("mypy==") for pin in dev)
