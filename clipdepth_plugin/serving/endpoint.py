"""An endpoint beside vLLM's OpenAI-compatible server: the depth of a request that it answered.

    GET /v1/depth/{id}             id: of the chat completion
    {"id": ..., "pictures": [{"hash": ..., "modality": "image", "problem": null,
                              "views": [{"head": "demo", "view": 0, "size": [H, W],
                                         "png": base64 of a 16-bit PNG in millimetres}]}]}

With CLIPDEPTH_VLLM_FOLDER ``?to=file`` writes the PNGs there and says their ``file`` instead.
Errors are {"error": {"message": ...}}: 400 of the question, 404 of an id, 500 of the folder.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from clipdepth_plugin.errors import ClipDepthError, DepthFileError, HostError, NoDepthError
from clipdepth_plugin.files.depth_maps import write_depth_png
from clipdepth_plugin.files.paths import is_folder
from clipdepth_plugin.serving.vllm import PictureDepth, check_extended, first_answers, pictures_of

FOLDER = "CLIPDEPTH_VLLM_FOLDER"
_STATUS: dict[type[ClipDepthError], int] = {HostError: 400, NoDepthError: 404, DepthFileError: 500}


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
            except tuple(_STATUS) as error:
                return JSONResponse({"error": {"message": str(error)}}, _STATUS[type(error)])

        # As FastAPI reads them; postponed annotations name what is imported here only.
        depth.__annotations__ = {"request_id": str, "raw_request": Request, "to": str}
        app.add_api_route("/v1/depth/{request_id}", depth, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, _: Any) -> None:
        """Keeps the engine's client, for the route.

        Raises:
            HostError: CLIPDEPTH_VLLM_FOLDER is not a folder that can be written to.
        """
        folder = os.environ.get(FOLDER)
        if folder and not (is_folder(Path(folder)) and os.access(folder, os.W_OK)):
            raise HostError(f"{FOLDER}={folder}: is not a folder that can be written to")
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
        DepthFileError: A file can't be written.
    """
    folder = os.environ.get(FOLDER)
    if to not in ("base64", "file") or (to == "file" and not folder):
        raise HostError(f"to={to!r}: expected base64; or file, where the server has {FOLDER} set")
    check_extended(client.vllm_config)
    replies = await client.collective_rpc("clipdepth_answers", args=([request_id],))
    (said,) = first_answers(replies)
    into = folder if to == "file" else None
    # In a thread: the server answers others meanwhile.
    return {"id": request_id, "pictures": await asyncio.to_thread(_shown, said, into)}


def _shown(said: dict[str, Any], folder: str | None) -> list[dict[str, Any]]:
    return [
        {
            "hash": one.hash,
            "modality": one.modality,
            "problem": one.problem,
            "views": _views(one, Path(folder).absolute() if folder else None),
        }
        for one in pictures_of(said)
    ]


def _views(picture: PictureDepth, folder: Path | None) -> list[dict[str, Any]]:
    views = []
    for head, maps in picture.maps.items():
        for view, metres_HW in enumerate(maps):
            said = {"head": head, "view": view, "size": [*metres_HW.shape]}
            if folder is not None:
                # A client may choose the picture's name, and two heads' folders be called alike.
                name = hashlib.sha256(f"{picture.hash}\0{head}".encode()).hexdigest()
                file = folder / f"{name}_{view}.png"
                write_depth_png(file, metres_HW)
                views.append({**said, "file": str(file)})
                continue
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "depth.png"
                write_depth_png(file, metres_HW)
                views.append({**said, "png": base64.b64encode(file.read_bytes()).decode()})
    return views
