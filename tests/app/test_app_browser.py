"""``clipdepth app`` as its user has it: the command, and a real Chromium without a window."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Position, expect, sync_playwright

from clipdepth_plugin import DepthHead
from clipdepth_plugin.adapters.loading import load_host
from clipdepth_plugin.app.model import DepthModel, field_of_view
from clipdepth_plugin.app.serving import MAX_UPLOAD
from tests.tiny.app import CANONICAL, SIZE, film, picture
from tests.tiny.command_line import tiny_host
from tests.tiny.heads import small_head

PATIENCE_MS = 60_000
UPLOAD = "input[type=file]"
expect.set_options(timeout=PATIENCE_MS)


class Served(NamedTuple):
    """The page's address, its files, and what the same host and head give in this process."""

    address: str
    files: Path
    model: DepthModel


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The command; ``kill`` and Ctrl-C have to end it without an error and without a file left."""
    folder, temporary = tiny_host(tmp_path_factory), tmp_path_factory.mktemp("files")
    host, head_folder = load_host(str(folder)), tmp_path_factory.mktemp("head")
    small_head(host.model, **CANONICAL).save_pretrained(head_folder)
    port = free_port()
    command = ["app", "--host", folder, "--head", head_folder, "--port", port]
    server = subprocess.Popen(
        [sys.executable, "-m", "clipdepth_plugin", *map(str, command)],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    said = [*iter(server.stderr.readline, "")] if server.poll() is not None else []
    while not said or not said[-1].startswith("open "):
        line = server.stderr.readline()
        assert line, "".join(said)
        said.append(line)
    head = DepthHead.from_pretrained(head_folder).eval()
    model = DepthModel("tiny", host.model, head, host.preprocessing)
    yield Served(f"http://127.0.0.1:{port}", temporary, model)
    server.send_signal(signal.SIGTERM)  # becomes what Ctrl-C is
    rest = server.communicate(timeout=60)[1]
    assert server.returncode == 0, rest
    assert "Traceback" not in rest
    assert not [*temporary.glob("clipdepth-app-*")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    assert found, "no Chromium on the path: apt-get install chromium (see CONTRIBUTING.md)"
    with sync_playwright() as playwright:
        arguments = [
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        chromium = playwright.chromium.launch(executable_path=found, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Browser, served: Served) -> Iterator[Callable[[], Page]]:
    """Opens tabs; none may ask anything of another machine."""
    contexts, elsewhere = [], []

    def note(url: str) -> None:
        if not url.startswith((served.address, "data:", "blob:")):
            elsewhere.append(url)

    def open_tab() -> Page:
        contexts.append(browser.new_context(viewport={"width": 1400, "height": 1300}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: note(request.url))
        page.goto(served.address)
        page.locator(f"#picture {UPLOAD}").wait_for(state="attached")
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert not elsewhere


def upload(page: Page, path: Path, part: str = "#picture") -> None:
    page.locator(f"{part} {UPLOAD}").set_input_files(path)


def place(page: Page, x: int, y: int) -> Position:
    """Where a pixel of the map is, in the shown picture of it."""
    shown = page.locator("#depth img")
    found = shown.evaluate(
        """async (image, [x, y]) => {
            await image.decode();
            const box = image.getBoundingClientRect();
            const sides = [box.width / image.naturalWidth, box.height / image.naturalHeight];
            const scale = Math.min(...sides);
            return {x: (box.width - scale * image.naturalWidth) / 2 + x * scale,
                    y: (box.height - scale * image.naturalHeight) / 2 + y * scale};
        }""",
        [x, y],
    )
    return Position(x=found["x"], y=found["y"])


def expect_metres(line: Locator, metres_HW: Any, x: int, y: int) -> None:
    """That a line ends with this pixel or the next, as mice stand on whole ones, and its metres."""
    expect(line).to_have_text(re.compile(rf"\(({x - 1}|{x}|{x + 1}), \d+\): [\d.]+ m"))
    column, row, metres = re.findall(r"\((\d+), (\d+)\): ([\d.]+) m", line.text_content() or "")[-1]
    assert abs(int(column) - x) <= 1
    assert abs(int(row) - y) <= 1
    assert metres == f"{metres_HW[int(row), int(column)]:.3f}"


def metres_of(served: Served, path: Path, focal: float | None = None) -> Any:
    with Image.open(path) as image:
        return served.model(image.convert("RGB"), focal).metres_HW


def test_a_picture_is_shown_read_measured_and_downloaded(
    tab: Callable[[], Page], served: Served, tmp_path: Path
) -> None:
    page, path = tab(), picture(tmp_path / "room.png")
    upload(page, path)
    metres_HW = metres_of(served, path)
    expect(page.locator("#cost")).to_have_text(re.compile(r"tower \d+ ms, depth \+\d+ ms"))
    depth = page.locator("#depth img")
    depth.hover(position=place(page, 20, 30))
    expect_metres(page.locator("#pointer"), metres_HW, 20, 30)
    depth.click(position=place(page, 20, 30))
    expect_metres(page.locator("#points"), metres_HW, 20, 30)
    depth.click(position=place(page, 50, 10))
    expect(page.locator("#points")).to_have_text(re.compile(r"; distance [\d.]+ m"))
    expect_metres(page.locator("#points"), metres_HW, 50, 10)
    for name in ("png", "npy", "ply", "glb"):
        with page.expect_download() as download:
            page.locator(f"#download-{name}").click()
        download.value.save_as(tmp_path / f"downloaded.{name}")
        assert download.value.suggested_filename.startswith("room.")
    np.testing.assert_array_equal(np.load(tmp_path / "downloaded.npy"), metres_HW)
    with Image.open(tmp_path / "downloaded.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), np.rint(1e3 * metres_HW))
    assert (tmp_path / "downloaded.glb").read_bytes().startswith(b"glTF")
    expect(page.locator("#cloud canvas")).to_be_visible()


def test_the_lens_changes_the_metres(
    tab: Callable[[], Page], served: Served, tmp_path: Path
) -> None:
    page, path = tab(), picture(tmp_path / "room.png")
    upload(page, path)
    expect(page.locator("#lens-line")).to_contain_text("assumed: that of the head")
    degrees = page.locator("#lens input[type=number]")
    degrees.fill("40")
    degrees.press("Enter")
    degrees.blur()
    expect(page.locator("#lens-line")).to_contain_text("as set here")
    with Image.open(path) as image:
        focal = max(image.size) / 2 / np.tan(np.radians(20))
        assert field_of_view(focal, image) == pytest.approx(40)
    metres_HW = metres_of(served, path, focal)
    page.locator("#depth img").click(position=place(page, 20, 30))
    expect_metres(page.locator("#points"), metres_HW, 20, 30)


def test_a_broken_file_gives_a_message(tab: Callable[[], Page], tmp_path: Path) -> None:
    page = tab()
    upload(page, picture(tmp_path / "whole.png"))
    expect(page.locator("#depth img")).to_be_visible()
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    page.get_by_label("Remove Image").click()
    expect(page.locator("#depth img")).to_have_count(0)
    upload(page, tmp_path / "broken.png")
    message = page.get_by_test_id("toast-body")
    expect(message).to_contain_text("broken.png: damaged, or can't be read")
    expect(page.locator("#depth img")).to_have_count(0)
    expect(page.locator("#download-glb")).to_be_hidden()
    (tmp_path / "film.mp4").write_bytes(b"\0" * 1000)
    page.get_by_role("tab", name="Video").click()
    upload(page, tmp_path / "film.mp4", "#video")
    expect(message.filter(has_text="film.mp4: the video is damaged")).to_be_visible()


def test_two_tabs_never_see_each_others_picture(
    tab: Callable[[], Page], served: Served, tmp_path: Path
) -> None:
    pages = [tab(), tab()]
    paths = [picture(tmp_path / f"of_{name}.png", seed=seed) for seed, name in enumerate("ab")]
    for _ in range(2):
        for page, path in zip(pages, paths, strict=True):
            upload(page, path)
        for page, path in zip(pages, paths, strict=True):
            expect(page.locator("#download-npy")).to_be_visible()
            with page.expect_download() as download:
                page.locator("#download-npy").click()
            assert download.value.suggested_filename == f"{path.stem}.npy"
            download.value.save_as(tmp_path / "downloaded.npy")
            np.testing.assert_array_equal(
                np.load(tmp_path / "downloaded.npy"), metres_of(served, path)
            )
            page.locator("#depth img").click(position=place(page, 20, 30))
            expect_metres(page.locator("#points"), metres_of(served, path), 20, 30)
        paths.reverse()
        for page in pages:
            page.get_by_label("Remove Image").click()
            expect(page.locator("#download-npy")).to_be_hidden()


def test_the_webcam_gives_a_picture(tab: Callable[[], Page]) -> None:
    page = tab()
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#picture video')?.videoWidth > 100")
    page.get_by_label("capture photo").click()
    expect(page.locator("#cost")).to_have_text(re.compile("tower"))


def test_a_video_is_shown_beside_its_depth(tab: Callable[[], Page], tmp_path: Path) -> None:
    page = tab()
    page.get_by_role("tab", name="Video").click()
    upload(page, film(tmp_path / "film.mkv", 8, SIZE), "#video")
    expect(page.locator("#cost")).to_have_text(re.compile("tower"))
    page.locator("#render").click()
    expect(page.locator("#film-line")).to_contain_text("film.mkv: 8 frames")
    page.wait_for_function("document.querySelector('#film video')?.videoWidth > 100")


def test_a_tab_that_closes_leaves_no_file(browser: Browser, served: Served, tmp_path: Path) -> None:
    def files() -> list[Path]:
        return [one for one in served.files.rglob("*leaving*") if one.is_file()]

    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(served.address)
    upload(page, picture(tmp_path / "leaving.png", seed=9))
    expect(page.locator("#download-glb")).to_be_visible()
    assert len(files()) >= 5  # the upload, too
    context.close()
    until = time.monotonic() + 60
    while files() and time.monotonic() < until:
        time.sleep(0.2)
    assert not files()


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "pyproject.toml", "FILES/../../../etc/passwd", "https://example.com/a.png"],
)
def test_files_of_others_are_not_served(served: Served, path: str) -> None:
    (root,) = served.files.glob("clipdepth-app-*")
    asked = path.replace("FILES", str(root))
    quoted = quote(asked, safe="")
    for address in (f"file={quoted}", f"file={asked}", f"file/{quoted}", f"proxy={asked}"):
        assert httpx.get(f"{served.address}/gradio_api/{address}").status_code == 404


def test_calls_without_a_browser_get_no_files_of_others(served: Served, tmp_path: Path) -> None:
    """Gradio checks a path only where the payload has ``meta``, which says that it is a file's."""
    secret, api = picture(tmp_path / "secret.png"), f"{served.address}/gradio_api"
    steps = httpx.get(f"{served.address}/config").json()["dependencies"]
    visitor = {"session_hash": "visitor"}

    def call(name: str, *data: Any) -> str:
        (number,) = (one["id"] for one in steps if one["api_name"] == name)
        httpx.post(f"{api}/queue/join", json={"fn_index": number, "data": data, **visitor})
        with httpx.stream("GET", f"{api}/queue/data", params=visitor, timeout=60) as answer:
            return next(line for line in answer.iter_lines() if "process_completed" in line)

    assert "only uploaded files are taken" in call("_open_picture", {"path": str(secret)})
    assert '"success":true' in call("_leave")
    assert secret.exists()


def test_large_uploads_are_refused(served: Served) -> None:
    content = bytes(MAX_UPLOAD + 1)
    answer = httpx.post(
        f"{served.address}/gradio_api/upload", files={"files": ("a.png", content)}, timeout=60
    )
    assert answer.status_code == 413
    large = [one for one in served.files.rglob("*") if one.is_file() and one.stat().st_size > 1e7]
    assert not large
