"""Depth from vLLM's own vision pass.

    llm = LLM(model, worker_extension_cls="clipdepth_plugin.serving.vllm.DepthWorker",
              additional_config={"clipdepth": {"heads": ["demo"]}})
    for one in generate_with_depth(llm, prompts):
        one.output.outputs[0].text, one.pictures[0].depth

Axes: H W a map's size.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.errors import HostError, NoDepthError
from clipdepth_plugin.serving.options import options_of, read_options

Map = NDArray[np.float32]
EXTENSION = "clipdepth_plugin.serving.vllm.DepthWorker"
_NO_HEAD = (
    f"this engine has no head: LLM(..., worker_extension_cls={EXTENSION!r}, "
    "additional_config={'clipdepth': {'heads': ['demo']}}); or its environment variable "
    "VLLM_PLUGINS leaves out clipdepth"
)


@dataclass(frozen=True)
class PictureDepth:
    """The depth of one picture of a prompt.

    Attributes:
        hash: The engine's name of the picture.
        modality: image, or video.
        problem: Why there is no depth; None where there is.
        maps: By head: (H, W) float32 metres of each view that the tower saw of it, in order, at
            the tower's input size: one, or tiles, or frames. NaN as in ``DepthPlugin.depth``.
    """

    hash: str
    modality: str
    problem: str | None
    maps: dict[str, list[Map]]

    @property
    def depth(self) -> Map:
        """The map (H, W) of a picture that is one view, of the one head.

        Raises:
            NoDepthError: There is none, or several: ``maps`` has them.
        """
        if self.problem is not None:
            raise NoDepthError(self.problem)
        views = [one for maps in self.maps.values() for one in maps]
        if len(views) != 1:
            raise NoDepthError(
                f"{len(self.maps)} heads and {len(views)} views: read .maps[head][view]"
            )
        return views[0]


@dataclass(frozen=True)
class DepthOutput:
    """A prompt's output as vLLM gives it, and the depth of its pictures.

    Attributes:
        output: vLLM's ``RequestOutput``.
        problem: Why it is not known which pictures the prompt had; None where it is.
    """

    output: Any
    problem: str | None
    _pictures: list[PictureDepth]

    @property
    def pictures(self) -> list[PictureDepth]:
        """The prompt's pictures, in order; [] of a prompt without.

        Raises:
            NoDepthError: There is a ``problem``.
        """
        if self.problem is not None:
            raise NoDepthError(self.problem)
        return self._pictures


class DepthWorker:
    """What ``worker_extension_cls`` adds to each worker of vLLM, for ``collective_rpc``."""

    def clipdepth_attach(self: Any, given: dict[str, Any] | None = None) -> bool:
        """Attaches heads; ``given``: options in the place of the engine's. False: not this worker.

        Raises:
            ClipDepthError: As of ``attach``; or heads are attached, or none is named.
        """
        from clipdepth_plugin.serving.engine import EngineDepth

        if getattr(self, "_clipdepth", None) is not None:
            raise HostError("heads are attached to this engine: clipdepth_detach takes them off")
        config = self.vllm_config
        options = options_of(config) if given is None else read_options(given, "options")
        if options is None:
            raise HostError(
                "no head is named: additional_config={'clipdepth': {'heads': [...]}}, or "
                "CLIPDEPTH_VLLM_HEAD in the environment of the engine"
            )
        if not _sees_all():
            return False
        self._clipdepth = EngineDepth(self, options)
        return True

    def clipdepth_detach(self: Any) -> None:
        """Takes the heads off; the model is as it was."""
        if (depth := getattr(self, "_clipdepth", None)) is not None:
            depth.detach()
            self._clipdepth = None

    def clipdepth_answers(self: Any, requests: list[str]) -> list[dict[str, Any]] | None:
        """The depth of requests by their ids, in plain types; None of a worker without heads."""
        depth = getattr(self, "_clipdepth", None)
        return None if depth is None else [depth.answer(one) for one in requests]


def _sees_all() -> bool:
    """Whether this worker is the one of its model that depth is read in: the others see the same.

    Of pipeline stages the first has the tower; tensor-parallel ranks have the same blocks' outputs.
    """
    from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank

    return bool(get_pp_group().is_first_rank) and get_tensor_model_parallel_rank() == 0


def generate_with_depth(
    llm: Any, prompts: Any, sampling_params: Any = None, **options: Any
) -> list[DepthOutput]:
    """``llm.generate``, and the depth of each prompt's pictures.

    Args:
        llm: vLLM's ``LLM``, made with ``worker_extension_cls`` and a head.
        prompts: As of ``generate``.
        sampling_params: As of ``generate``.
        options: More of ``generate``.

    Raises:
        HostError: The engine has no head.
    """
    check_extended(llm.llm_engine.vllm_config)
    first_answers(llm.collective_rpc("clipdepth_answers", args=([],)))
    found = []
    for output in llm.generate(prompts, sampling_params, **options):
        # One by one: a message holds the maps of one request.
        replies = llm.collective_rpc("clipdepth_answers", args=([output.request_id],))
        (answer,) = first_answers(replies)
        pictures = [] if answer["problem"] else pictures_of(answer)
        found.append(DepthOutput(output, answer["problem"], pictures))
    return found


def pictures_of(answer: dict[str, Any]) -> list[PictureDepth]:
    """What a worker's answer says.

    Raises:
        NoDepthError: The request is not known.
    """
    if answer["problem"] is not None:
        raise NoDepthError(answer["problem"])
    return [
        PictureDepth(one["hash"], one["modality"], one["problem"], _arrays(one["maps"]))
        for one in answer["pictures"]
    ]


def _arrays(maps: dict[str, Any]) -> dict[str, list[Map]]:
    return {
        head: [np.frombuffer(x["data"], np.float32).reshape(x["shape"]).copy() for x in views]
        for head, views in maps.items()
    }


def check_extended(vllm_config: Any) -> None:
    """Checks that the engine's workers know the calls of ``DepthWorker``.

    Raises:
        HostError: They don't.
    """
    said = vllm_config.parallel_config.worker_extension_cls
    if not said or not issubclass(pkgutil.resolve_name(said), DepthWorker):
        raise HostError(_NO_HEAD)


def first_answers(replies: Sequence[list[dict[str, Any]] | None]) -> list[dict[str, Any]]:
    """The reply of the worker that has the heads.

    Raises:
        HostError: None has.
    """
    for one in replies:
        if one is not None:
            return one
    raise HostError(_NO_HEAD)
