"""Every error a user can cause: ValueErrors that say what, where, and what to do."""

from __future__ import annotations

MAX_MESSAGE = 10_000
"""Characters of an error's message: it may quote a file of any size."""


class ClipDepthError(ValueError):
    """Base of all errors that clipdepth_plugin raises on bad input or wrong use."""

    def __init__(self, message: str = "") -> None:
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]}... ({len(message)} characters)"
        super().__init__("\n".join(map(printable, message.split("\n"))))


class ConfigError(ClipDepthError):
    """A configuration, of a head or of a training run, is wrong or contradicts itself."""


class FeaturesError(ClipDepthError):
    """Tower features lack a level, or a tensor of them has a wrong shape."""


class TowerNotFoundError(ClipDepthError):
    """The host holds no vision tower that can be tapped, or several and no choice was made."""


class HeadMismatchError(ClipDepthError):
    """The head does not fit the host's tower, or is attached to it already."""


class NoDepthError(ClipDepthError):
    """There is no depth map to read: no tower pass, or one that did not fire every tap."""


class HeadFileError(ClipDepthError):
    """A head's file or folder is missing, truncated, or of another format."""


class HostError(ClipDepthError):
    """A host could not be loaded, or lacks what was asked of it."""


class ImageError(ClipDepthError):
    """A picture could not be found or read."""


class DepthFileError(ClipDepthError):
    """A depth map could not be written, or is not a single (H, W) map."""


class DataError(ClipDepthError):
    """A data set's folder, list or file is missing or does not follow its format."""


class SourceError(ClipDepthError):
    """A depth source (a teacher) can't be opened, or gives something else than depth."""


class TrainingError(ClipDepthError):
    """A training run cannot start, continue or resume."""


class KernelError(ClipDepthError):
    """A fused op was given shapes that do not fit, or a backend that cannot run."""


class ExportError(ClipDepthError):
    """An export can't be made, or an exported folder can't be opened or run."""


class BenchError(ClipDepthError):
    """A time measurement cannot be made, or has too few rounds."""


def printable(value: object) -> str:
    """The whole text of a value in one line that any console shows: what can't be is escaped."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def shortened(value: object, limit: int = 100) -> str:
    """The text of a value for a message: ``printable`` lines, ``limit`` characters at most."""
    text = str(value)
    cut = text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
    return "\n".join(map(printable, cut.split("\n")))


def quoted(value: object, limit: int = 100) -> str:
    """A wrong value as Python writes it, ``shortened``; its type where it has no repr."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (a number of 5000 digits, a class of the user's own)
        return f"a {type(value).__name__}"
    return shortened(text, limit)
