"""An endpoint beside vLLM's OpenAI-compatible server: the depth of a request that it answered.

    GET /v1/depth/{id}             id: of the chat completion
    {"id": ..., "pictures": [{"hash": ..., "modality": "image", "problem": null,
                              "views": [{"head": "demo", "view": 0, "size": [H, W],
                                         "png": base64 of a 16-bit PNG in millimetres}]}]}

With CLIPDEPTH_VLLM_FOLDER ``?to=file`` writes the PNGs there and says their ``file`` instead.
"""

from __future__ import annotations

import base64
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from clipdepth_plugin.errors import HostError, NoDepthError
from clipdepth_plugin.files.depth_maps import write_depth_png
from clipdepth_plugin.serving.vllm import PictureDepth, first_answers, pictures_of

FOLDER = "CLIPDEPTH_VLLM_FOLDER"
_NAMES = re.compile(r"[^A-Za-z0-9._-]")


class DepthEndpoint:
    """Of the group ``vllm.endpoint_plugins``: VLLM_PLUGINS must name ``clipdepth``."""

    name = "clipdepth"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Adds the route."""
        from fastapi import Request
        from fastapi.responses import JSONResponse

        async def depth(request_id: str, raw_request: Request, to: str = "base64") -> Any:
            client = raw_request.app.state.clipdepth_client
            try:
                return await answer(client, request_id, to)
            except HostError as error:
                return JSONResponse({"error": {"message": str(error)}}, 400)
            except NoDepthError as error:
                return JSONResponse({"error": {"message": str(error)}}, 404)

        # As FastAPI reads them; postponed annotations name what is imported here only.
        depth.__annotations__ = {"request_id": str, "raw_request": Request, "to": str}
        app.add_api_route("/v1/depth/{request_id}", depth, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, _: Any) -> None:
        """Keeps the engine's client, for the route."""
        state.clipdepth_client = engine_client


async def answer(client: Any, request_id: str, to: str = "base64") -> dict[str, Any]:
    """What the endpoint answers.

    Args:
        client: vLLM's ``EngineClient``.
        request_id: Of a chat completion.
        to: ``base64``, or ``file`` where CLIPDEPTH_VLLM_FOLDER is set.

    Raises:
        HostError: The engine has no head, or ``to`` is another or can't be had.
        NoDepthError: The request is not known.
    """
    folder = os.environ.get(FOLDER)
    if to not in ("base64", "file") or (to == "file" and not folder):
        raise HostError(f"to={to!r}: expected base64; or file, where the server has {FOLDER} set")
    replies = await client.collective_rpc("clipdepth_answers", args=([request_id],))
    (said,) = first_answers(replies)
    pictures = pictures_of(said)
    shown = [
        {
            "hash": one.hash,
            "modality": one.modality,
            "problem": one.problem,
            "views": _views(one, Path(folder) if to == "file" and folder else None),
        }
        for one in pictures
    ]
    return {"id": request_id, "pictures": shown}


def _views(picture: PictureDepth, folder: Path | None) -> list[dict[str, Any]]:
    views = []
    for head, maps in picture.maps.items():
        for view, metres_HW in enumerate(maps):
            said = {"head": head, "view": view, "size": [*metres_HW.shape]}
            if folder is not None:
                name = _NAMES.sub("_", f"{picture.hash}_{Path(head).name}_{view}.png")
                write_depth_png(folder / name, metres_HW)
                views.append({**said, "file": str(folder / name)})
                continue
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "depth.png"
                write_depth_png(file, metres_HW)
                views.append({**said, "png": base64.b64encode(file.read_bytes()).decode()})
    return views
