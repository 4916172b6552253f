"""Serves the page: to this machine alone unless told otherwise, and no files but its own."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from clipdepth_plugin.app.model import DepthModel
from clipdepth_plugin.app.session import RenderVideo, Session, Sessions, is_below
from clipdepth_plugin.errors import HostError

MAX_UPLOAD = 100 * 1024 * 1024
"""Bytes of a file."""
_FILE = re.compile(r"/file[=/](.*)", re.DOTALL)


@contextmanager
def served(
    model: DepthModel, render_video: RenderVideo, *, listen: str, port: int
) -> Iterator[str]:
    """Serves while it is entered; its files are gone afterwards.

    Args:
        model: What shows depth.
        render_video: Writes a video beside its depth.
        listen: The address; 0.0.0.0 is all of this machine's.
        port: Of it.

    Yields:
        The page's address.

    Raises:
        HostError: Gradio is missing, or the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="clipdepth-app-") as folder:
        root = Path(folder).resolve()
        # Read where Gradio is imported and where parts are made.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(root)
        try:
            import gradio as gr
            from starlette.middleware import Middleware
        except ModuleNotFoundError as error:
            raise HostError(
                f'the page needs the package {error.name}: pip install "clipdepth-plugin[app]"'
            ) from error
        from clipdepth_plugin.app.page import Page

        sessions = Sessions(lambda: Session(model, render_video, root))
        blocks = Page(model.name, sessions).blocks
        try:
            _, address, _ = blocks.launch(
                server_name=listen,
                server_port=port,
                max_file_size=MAX_UPLOAD,
                theme=gr.themes.Default(font=["system-ui"], font_mono=["monospace"]),
                js=(Path(__file__).parent / "pointer.js").read_text(encoding="utf-8"),
                app_kwargs={"middleware": [Middleware(_OwnFiles, root=root)]},
                footer_links=[],
                **dict.fromkeys(("share", "ssr_mode", "mcp_server", "pwa"), False),
                **dict.fromkeys(("run_history", "enable_monitoring"), False),
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise HostError(
                f"--listen {listen} --port {port}: can't be listened to ({error}); give another"
            ) from error
        try:
            yield address
        finally:
            blocks.close(verbose=False)


class _OwnFiles:
    """Passes on what asks for no file, and for files of the page's folder; 404 for the rest.

    Gradio would also fetch addresses elsewhere (``/file=https://``, ``/proxy=``) for who asks.
    """

    def __init__(self, app: Callable[..., Any], root: Path) -> None:
        self._app, self._root = app, root

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._is_own(unquote(scope.get("path", ""))):
            await self._app(scope, receive, send)
            return
        start = {"type": "http.response.start", "status": 404, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": b"not found"})

    def _is_own(self, path: str) -> bool:
        asked = _FILE.search(path)
        if asked is None:
            return "/proxy=" not in path
        return is_below(Path(asked[1]), self._root)
