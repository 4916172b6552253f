"""mkdocs hooks: what the site takes from outside of docs/.

- griffe reads only packages that have an ``__init__.py``; adapters and kernels are links without
  one (CONTRIBUTING.md says why). It reads a copy in build/, in which they have one.
- Pages of results/ and CONTRIBUTING.md and CHANGELOG.md are pages of the site, too. Links are
  written as they work in the repository: ``../results/hooks.md``. Links to other files of the
  repository are shown as their text.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "docs-sources"
TAKEN = ("CHANGELOG.md", "CONTRIBUTING.md", "results/*.md", "results/*.png")
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_startup(**_: object) -> None:
    """Copies the sources before mkdocstrings looks for them."""
    shutil.rmtree(COPY, ignore_errors=True)
    package = COPY / "clipdepth_plugin"
    unread = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "clipdepth_plugin", package, ignore=unread)
    for folder in (package / "adapters", package / "kernels"):
        for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            (inner / "__init__.py").touch()


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages from outside of docs/."""
    for path in sorted(one for pattern in TAKEN for one in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Turns links within the repository into links within the site, or into their text."""
    outside = any((ROOT / page.file.src_uri).match(pattern) for pattern in TAKEN)
    folder = (ROOT if outside else ROOT / "docs") / Path(page.file.src_uri).parent

    def mended(link: re.Match[str]) -> str:
        text, target, anchor = link[1], (folder / link[2]).resolve(), link[3] or ""
        base = ROOT / "docs" if target.is_relative_to(ROOT / "docs") else ROOT
        name = target.relative_to(base).as_posix()
        if files.get_file_from_path(name) is None:
            return text
        up = "../" * page.file.src_uri.count("/")
        return f"[{text}]({up}{name}{anchor})"

    return _LINK.sub(mended, markdown)
