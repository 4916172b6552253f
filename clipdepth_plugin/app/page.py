"""The page: what is on it, and which call of a session each part of it makes."""

from __future__ import annotations

import base64
import html
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from clipdepth_plugin.app.session import MOST_FRAMES, Session, Sessions
from clipdepth_plugin.errors import ClipDepthError

Part = TypeVar("Part", gr.Image, gr.Video)
logger = logging.getLogger(__name__)

_TEXT = "Drop a picture or a short video, or take a picture with the webcam. Nothing is kept."
_CALLS: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 8}
_USUAL = 64.0
_POINTER = """<code id="pointer">metres under the pointer</code>
<img hidden data-step="{step}" src="data:image/png;base64,{content}">"""
"""`pointer.js` reads the one and writes the other."""
_NOTHING = [None, None, "", _USUAL, "", "", ""]
"""What all parts that show a picture get where there is none."""
_NO_FILES = [None, *(gr.update(value=None, visible=False) for _ in range(4))]


def _taking_files(part: Part) -> Part:
    """Passes uploads on undecoded, as this library's own openers read them.

    Addresses elsewhere, which Gradio would fetch, are refused. (Gradio writes a file beside the
    source of each subclass of a part, so it is none.)
    """
    moved = part.async_move_resource_to_block_cache

    async def uploaded(place: Any) -> str | None:
        if "://" in str(place):
            raise gr.Error("only uploaded files are taken", print_exception=False)
        return await moved(place)

    def path_of(payload: Any) -> str | None:
        return None if payload is None else str(payload.path)

    vars(part).update(preprocess=path_of, async_move_resource_to_block_cache=uploaded)
    return part


class Page:
    """Builds the page; ``blocks`` is what Gradio serves."""

    def __init__(self, title: str, sessions: Sessions) -> None:
        self._sessions = sessions
        with gr.Blocks(
            title="clipdepth", analytics_enabled=False, delete_cache=(600, 3600)
        ) as page:
            gr.Markdown(f"## {html.escape(title)}\n{_TEXT}")
            with gr.Row():
                with gr.Column():
                    self._make_inputs()
                with gr.Column():
                    self._make_depth()
            with gr.Row():
                self._cloud = gr.Model3D(label="3D", elem_id="cloud", height=420)
                self._sure = gr.Image(
                    label="confidence: white is sure", interactive=False, buttons=["fullscreen"]
                )
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
            picture = gr.Image(
                label="picture",
                sources=["upload", "webcam", "clipboard"],
                elem_id="picture",
                buttons=[],
            )
            self._picture = _taking_files(picture)
        with gr.Tab("Video"):
            video = gr.Video(label="video", sources=["upload"], elem_id="video", buttons=[])
            self._video = _taking_files(video)
            self._second = gr.Slider(0, 1, 0, label="frame shown, at second", interactive=True)
            self._render = gr.Button("Video beside its depth", elem_id="render")
            gr.Markdown(f"The first {MOST_FRAMES} frames of it.")
            self._film = gr.Video(
                label="depth", interactive=False, elem_id="film", buttons=["download"]
            )
            self._film_line = gr.Markdown(elem_id="film-line")
        self._degrees = gr.Slider(
            10, 150, _USUAL, step=0.1, label="field of view, degrees (longer side)", elem_id="lens"
        )
        self._lens_line = gr.Markdown(elem_id="lens-line")

    def _make_depth(self) -> None:
        self._depth = gr.Image(
            label="depth",
            interactive=False,
            type="filepath",
            elem_id="depth",
            buttons=[],  # they would hide the scale
        )
        self._metres = gr.HTML(elem_id="metres")
        self._points_line = gr.Markdown(elem_id="points")
        self._cost_line = gr.Markdown(elem_id="cost")

    def _connect(self) -> None:
        seen = [
            *(self._depth, self._sure, self._metres, self._degrees),
            *(self._lens_line, self._points_line, self._cost_line),
        ]
        files = [self._cloud, *self._downloads]
        for event, part, do, more in (
            (self._picture.input, self._picture, self._open_picture, []),
            (self._video.upload, self._video, self._open_video, [self._second, self._film]),
            (self._second.release, self._second, self._show_frame, []),
            (self._degrees.release, self._degrees, self._turn_lens, []),
        ):
            after: Any = event
            if part in (self._picture, self._video):  # what was shown is not of it
                after = event(_cleared, None, [*seen, *files], **_CALLS).then
            shown = after(do, [part], [*seen, *more], **_CALLS)
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

    def _open_picture(self, path: str | None, request: gr.Request) -> list[Any]:
        with self._session(request) as session:
            if path is None:  # it was taken away
                session.clear()
                return _NOTHING
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
            if session.is_empty:
                return _NO_FILES
            files = session.write_files()
            buttons = [gr.update(value=str(path), visible=True) for path in files]
            return [str(files[-1]), *buttons]

    def _render_video(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio looks for it here)
    ) -> list[Any]:
        with self._session(request) as session:
            path, said = session.colour_video(progress)
            return [str(path), html.escape(said)]

    def _leave(self, request: gr.Request) -> None:
        self._sessions.forget(str(request.session_hash))


def _cleared() -> list[Any]:
    return [*_NOTHING, *_NO_FILES]


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
        _POINTER.format(step=step, content=content),
        round(shown.degrees, 1),
        shown.lens_line(),
        shown.points_line(session.points),
        shown.cost_line(),
    ]
