"""The page: what is on it, and which call of a session each part of it makes."""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from clipdepth_plugin.app.session import MOST_FRAMES, Session, Sessions
from clipdepth_plugin.errors import ClipDepthError

logger = logging.getLogger(__name__)

_TEXT = "Drop a picture or a short video, or take a picture with the webcam. Nothing is kept."
_CALLS: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 8}
_HIDDEN: dict[str, Any] = {"value": None, "visible": False}

from gradio.events import Dependency

class _Upload(gr.Component):
    """What is uploaded is passed on as it is: this library's own openers read it."""

    is_template = True

    def preprocess(self, payload: Any) -> str | None:
        return None if payload is None else str(payload.path)

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        if "://" in str(url_or_file_path):
            raise gr.Error("only uploaded files are taken", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class _Picture(gr.Image):
    is_template = True
    preprocess = _as_it_is
    async_move_resource_to_block_cache = _uploaded
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class _Video(gr.Video):
    is_template = True
    preprocess = _as_it_is
    async_move_resource_to_block_cache = _uploaded
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Page:
    """Builds the page; ``blocks`` is what Gradio serves."""

    def __init__(self, title: str, sessions: Sessions) -> None:
        self._sessions = sessions
        with gr.Blocks(title="clipdepth", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            gr.Markdown(f"## {html.escape(title)}\n{_TEXT}")
            with gr.Row():
                with gr.Column():
                    self._make_inputs()
                with gr.Column():
                    self._make_depth()
            with gr.Row():
                self._cloud = gr.Model3D(label="3D", elem_id="cloud", height=420)
                self._sure = gr.Image(label="confidence: white is sure", interactive=False)
            with gr.Row():
                self._downloads = [
                    gr.DownloadButton(name, elem_id=f"download-{name[:3].lower()}", visible=False)
                    for name in ("PNG (16-bit, mm)", "NPY (metres)", "PLY (points)", "GLB (mesh)")
                ]
            self._connect()
            page.unload(self._leave)
        self.blocks = page

    def _make_inputs(self) -> None:
        with gr.Tab("Picture"):
            self._picture = _Picture(
                label="picture",
                sources=["upload", "webcam", "clipboard"],
                elem_id="picture",
                buttons=[],
            )
        with gr.Tab("Video"):
            self._video = _Video(label="video", sources=["upload"], elem_id="video", buttons=[])
            self._second = gr.Slider(0, 1, 0, label="frame shown, at second", interactive=True)
            self._render = gr.Button("Video beside its depth", elem_id="render")
            gr.Markdown(f"The first {MOST_FRAMES} frames of it.")
            self._film = gr.Video(label="depth", interactive=False, elem_id="film")
            self._film_line = gr.Markdown()
        self._degrees = gr.Slider(
            10, 150, 64, step=0.1, label="field of view, degrees (longer side)", elem_id="lens"
        )
        self._lens_line = gr.Markdown(elem_id="lens-line")

    def _make_depth(self) -> None:
        self._depth = gr.Image(
            label="depth",
            interactive=False,
            type="filepath",
            elem_id="depth",
            buttons=["fullscreen"],
        )
        gr.HTML('<code id="pointer">metres under the pointer</code>')
        self._metres = gr.HTML(elem_id="metres", visible="hidden")
        self._points_line = gr.Markdown(elem_id="points")
        self._cost_line = gr.Markdown(elem_id="cost")

    def _connect(self) -> None:
        seen = [
            *(self._depth, self._sure, self._metres, self._degrees),
            *(self._lens_line, self._points_line, self._cost_line),
        ]
        files = [self._cloud, *self._downloads]
        for event, given, do, more in (
            (self._picture.upload, [self._picture], self._open_picture, []),
            (self._picture.input, [self._picture], self._open_picture, []),
            (self._video.upload, [self._video], self._open_video, [self._second, self._film]),
            (self._second.release, [self._second], self._show_frame, []),
            (self._degrees.release, [self._degrees], self._turn_lens, []),
        ):
            shown = event(do, given, [*seen, *more], **_CALLS)
            shown.success(self._write_files, None, files, show_progress="minimal", **_CALLS)
        self._depth.select(self._click, None, [self._depth, self._points_line], **_CALLS)
        self._render.click(self._render_video, None, [self._film, self._film_line], **_CALLS)

    @contextmanager
    def _session(self, request: gr.Request) -> Iterator[Session]:
        """The visitor's session; what fails becomes a message on the page."""
        session = self._sessions.of(str(request.session_hash))
        try:
            with session.lock:
                yield session
        except ClipDepthError as error:
            message = html.escape(str(error))
        except Exception:
            logger.exception("the page could not do this")
            message = "an unexpected error; the console of clipdepth app says which"
        else:
            return
        raise gr.Error(message, duration=None, print_exception=False)

    def _open_picture(self, path: str, request: gr.Request) -> list[Any]:
        with self._session(request) as session:
            session.open_picture(Path(path))
            return _seen(session)

    def _open_video(self, path: str, request: gr.Request) -> list[Any]:
        with self._session(request) as session:
            seconds = session.open_video(Path(path))
            slider = gr.update(value=0, maximum=max(seconds, 0.01))
            return [*_seen(session), slider, None]

    def _show_frame(self, seconds: float, request: gr.Request) -> list[Any]:
        with self._session(request) as session:
            session.show_frame(seconds)
            return _seen(session)

    def _turn_lens(self, degrees: float, request: gr.Request) -> list[Any]:
        with self._session(request) as session:
            session.turn_lens(degrees)
            return _seen(session)

    def _click(self, event: gr.SelectData, request: gr.Request) -> list[Any]:
        with self._session(request) as session:
            column, row = (int(value) for value in event.index)
            session.click((column, row))
            return [_depth(session), session.shown.points_line(session.points)]

    def _write_files(self, request: gr.Request) -> list[Any]:
        with self._session(request) as session:
            files = session.write_files()
            buttons = [gr.update(value=str(path), visible=True) for path in files]
            return [str(files[-1]), *buttons]

    def _render_video(
        self, request: gr.Request, progress: gr.Progress = gr.Progress()
    ) -> list[Any]:
        with self._session(request) as session:
            path, said = session.colour_video(progress)
            return [str(path), html.escape(said)]

    def _leave(self, request: gr.Request) -> None:
        self._sessions.forget(str(request.session_hash))


def _depth(session: Session) -> str:
    return str(session.save(session.shown.depth_picture(session.points)))


def _seen(session: Session) -> list[Any]:
    """What all parts that show a picture get."""
    shown = session.shown
    sure = shown.confidence_picture()
    pointer, step = shown.pointer_picture()
    content = base64.b64encode(session.save(pointer).read_bytes()).decode()
    return [
        _depth(session),
        gr.update(visible=False) if sure is None else str(session.save(sure)),
        f'<img data-step="{step}" src="data:image/png;base64,{content}">',
        shown.degrees,
        shown.lens_line(),
        shown.points_line(session.points),
        shown.cost_line(),
    ]