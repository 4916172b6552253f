"""A network of depth in a session of onnxruntime, as its card describes it.

Axes: B pictures, H W pixels of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdepth_plugin.adapters.arrays import Pixels, of_one_colour
from clipdepth_plugin.arguments import Size, parse_count
from clipdepth_plugin.errors import ClipDepthError, quoted, shortened
from clipdepth_plugin.runtime.card import CARD_FILE, Card

FOCAL, DEPTH, CONFIDENCE = "focal_px", "depth", "confidence"

PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ),
}
"""Name -> onnxruntime's; those behind the first run what it can't."""

_TYPES: dict[str, type] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Floats = NDArray[np.float32]


def open_session(
    path: Path,
    provider: str,
    error: type[ClipDepthError],
    *,
    device: int = 0,
    threads: int | None = None,
    spinning: bool = True,
) -> Any:
    """A session that runs on a provider, and on no other in its place.

    ``spinning``: whether its threads wait for the next run without sleeping, for a while.

    Raises:
        ClipDepthError: ``error``; no such provider, onnxruntime lacks it or is missing, or the
            file is no network that it can run.
    """
    if not isinstance(provider, str) or provider not in PROVIDERS:
        raise error(f"provider {quoted(provider)}: there are {', '.join(PROVIDERS)}")
    try:
        import onnxruntime
    except ModuleNotFoundError as problem:
        raise error(
            "the package onnxruntime is not installed: pip install onnxruntime (onnxruntime-gpu "
            "for cuda and tensorrt)"
        ) from problem
    if not isinstance(device, int) or device < 0:
        raise error(f"device: got {quoted(device)}, expected the number of a GPU, from 0 on")
    wanted, *others = PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    lacks = (
        f"provider {provider}: this onnxruntime has {', '.join(available)}, not {wanted}; install "
        "onnxruntime-gpu and what it needs, or take another provider"
    )
    if wanted not in available:
        raise error(lacks)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 0 if threads is None else parse_count(threads, "threads")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    where = {} if provider == "cpu" else {"device_id": device}
    providers = [(wanted, where), *(one for one in others if one in available)]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as problem:  # onnxruntime has no base of its errors
        raise error(
            f"{path} can't be opened by onnxruntime ({type(problem).__name__}: "
            f"{shortened(problem, 500)}); copy or export it again"
        ) from problem
    if session.get_providers()[0] != wanted:  # it takes another where libraries are missing
        raise error(f"{lacks} (it fell back to {session.get_providers()[0]})")
    return session


class Network:
    """From pixels to depth; (N, 3, H, W) floats in, (N, 1, H, W) or (N, H, W) out.

    Attributes:
        card: Its card.
        name: For messages.
        size: (H, W) of its input.
        dtype: Of its input.
    """

    def __init__(self, card: Card, session: Any, name: str, error: type[ClipDepthError]) -> None:
        """Checks that the network is one from pictures to depth.

        Raises:
            ClipDepthError: ``error``; it is not, or the card does not fit it.
        """
        self.card, self.name = card, name
        self._session, self._error = session, error
        inputs, outputs = session.get_inputs(), session.get_outputs()
        pictures = [one for one in inputs if one.name != FOCAL]
        self._focal = len(pictures) < len(inputs)
        names = [one.name for one in outputs]
        fits = len(pictures) == 1 and len(pictures[0].shape) == 4 and pictures[0].shape[1] == 3
        if (
            not fits
            or pictures[0].type not in _TYPES
            or not (len(outputs) == 1 or DEPTH in names)
            or (self._focal and card.canonical_focal is None)
        ):
            described = ", ".join(f"{x.name} {x.type} {x.shape}" for x in (*inputs, *outputs))
            raise error(
                f"{name}: expected one input of floats (N, 3, H, W), {FOCAL} beside it only where "
                f"{CARD_FILE} has canonical_focal, and one output, or one that is called {DEPTH}; "
                f"it has {described}"
            )
        (self._input,) = pictures
        self._outputs = [DEPTH if DEPTH in names else names[0]]
        if CONFIDENCE in names:
            self._outputs.append(CONFIDENCE)
        self.dtype = np.dtype(_TYPES[self._input.type]).name
        self.size = self._fixed_size()

    def _fixed_size(self) -> Size:
        fixed = self._input.shape[2:]
        size = self.card.size or fixed
        if not all(isinstance(side, int) for side in size):
            raise self._error(
                f'{self.name}: its input has no fixed size: {fixed}; say "size": [height, width] '
                f"in {CARD_FILE}"
            )
        if any(isinstance(a, int) and a != b for a, b in zip(fixed, size, strict=True)):
            raise self._error(f"{self.name}: its input is {fixed}, but {CARD_FILE} says {size}")
        return (size[0], size[1])

    def run(
        self, pixels_B3HW: Pixels, scales: Sequence[float | None], names: Sequence[str]
    ) -> tuple[Floats, Floats | None]:
        """Depth (B, H, W) in the card's units and confidence, in batches as the network takes them.

        Args:
            pixels_B3HW: Normalised, of any number of pictures.
            scales: True over canonical focal length of each; None: not known, or of no matter.
            names: Of the pictures, for messages.

        Returns:
            Finite, or NaN all over for pictures of one colour.

        Raises:
            ClipDepthError: It fails, or gives another shape, or depth that is not finite.
        """
        count, at_once = len(pixels_B3HW), self._input.shape[0]
        if not isinstance(at_once, int):
            at_once = count
        scale_B = np.array([1.0 if one is None else one for one in scales], np.float32)
        starts = [slice(start, start + at_once) for start in range(0, count, at_once)]
        parts = [self._batch(pixels_B3HW[one], scale_B[one], at_once) for one in starts]
        depth_BHW, *confidence = (np.concatenate(maps) for maps in zip(*parts, strict=True))
        if not self._focal:
            depth_BHW = depth_BHW * scale_B[:, None, None]
        for index in np.flatnonzero(~np.isfinite(depth_BHW).all(axis=(1, 2))):
            if not of_one_colour(pixels_B3HW[index]):
                raise self._error(f"{self.name}, {names[int(index)]}: depth is NaN or infinite")
            depth_BHW[index] = np.nan
        return depth_BHW, confidence[0] if confidence else None

    def _batch(self, pixels_B3HW: Pixels, scale_B: Floats, at_once: int) -> list[Floats]:
        """One run; where it takes more pictures, the last is repeated."""
        spare = at_once - len(pixels_B3HW)
        full = np.concatenate([pixels_B3HW, np.repeat(pixels_B3HW[-1:], spare, axis=0)])
        feed: dict[str, Any] = {self._input.name: full.astype(self.dtype)}
        if self._focal:
            assert self.card.canonical_focal is not None
            focal_B = np.concatenate([scale_B, np.repeat(scale_B[-1:], spare)])
            feed[FOCAL] = focal_B * np.float32(self.card.canonical_focal)
        try:
            outputs = self._session.run(self._outputs, feed)
        except Exception as problem:  # onnxruntime has no base of its errors
            raise self._error(
                f"{self.name}: onnxruntime fails on {full.shape} ({type(problem).__name__}: "
                f"{shortened(problem, 500)})"
            ) from problem
        return [self._as_maps(out, full.shape)[: len(pixels_B3HW)] for out in outputs]

    def _as_maps(self, out: NDArray[Any], shape: tuple[int, ...]) -> Floats:
        """(B, H, W) float32."""
        if out.ndim == 4 and out.shape[1] == 1:
            out = out[:, 0]
        if out.ndim != 3 or len(out) != shape[0] or out.dtype.kind != "f":
            raise self._error(
                f"{self.name}: gave {out.dtype} {out.shape} for {shape}, expected floats (N, H, W) "
                "or (N, 1, H, W)"
            )
        return out.astype(np.float32, copy=False)
