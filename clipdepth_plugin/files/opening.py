"""The one way in which pictures and depth maps are opened.

Pillow has some forty formats; a few start other programs (EPS), others are read by code that
nobody tests. Those of ``FORMATS`` are tried, whatever the file's name is.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from clipdepth_plugin.errors import ClipDepthError, printable
from clipdepth_plugin.files.paths import Error, check_file

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""The formats that are read, by Pillow's names; its JPEG has MPO in it."""

MAX_PIXELS = 1 << 26
"""Pixels of a picture, 67 million (8192 x 8192), unless a caller allows more."""

Source = Path | bytes

_HEAD = 64
_OTHERS: tuple[tuple[str, bytes], ...] = (
    ("PostScript", rb"(\xc5\xd0\xd3\xc6|%!)"),
    ("PDF", rb"%PDF"),
    ("NumPy (.npy)", rb"\x93NUMPY"),
    ("HDF5 (.h5, .mat)", rb"\x89HDF"),
    ("MATLAB", rb"MATLAB 5"),
    ("OpenEXR", rb"\x76\x2f\x31\x01"),
    ("Radiance HDR", rb"#\?R"),
    ("zip (.npz, .zip)", rb"PK"),
    ("gzip", rb"\x1f\x8b"),
    ("tar", rb".{48,}ustar"),
    ("HEIC", rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)"),
    ("camera raw", rb".{4}ftypcrx|FUJIFILMCCD-RAW"),
    ("JPEG XL", rb"\xff\x0a|\x00\x00\x00\x0cJXL "),
    (
        "video",
        rb".{4}(ftyp(?!avi[fs])|moov|mdat)|RIFF.{4}AVI |\x1a\x45\xdf\xa3|\x00\x00\x01\xba|FLV",
    ),
    ("Photoshop", rb"8BPS"),
    ("icon", rb"\x00\x00[\x01\x02]\x00"),
    ("Git LFS pointer (run git lfs pull)", rb"version https://git-lfs"),
    ("HTML or XML", rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]"),
    ("pickle", rb"\x80[\x02-\x05]"),
)
"""Kind of file -> how it begins."""

_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey with alpha",
    "La": "grey with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "I": "32-bit grey",
    "F": "float grey",
    "LAB": "Lab",
}


@contextlib.contextmanager
def opened(
    source: Source,
    what: str,
    error: Error,
    *,
    wanted: str,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Image.Image]:
    """Opens a picture as it is stored; what fails inside becomes the error, too.

    Args:
        source: A file, or its content.
        what: Its name in errors.
        error: The class of error.
        wanted: What it should be, for the message about what it is not.
        max_pixels: More are not decoded: a file of some KB can hold gigabytes.

    Raises:
        ClipDepthError: ``error``; it is missing, empty, damaged, too large, or another format.
    """
    what = printable(what)
    size = check_file(source, error) if isinstance(source, Path) else len(source)
    if size == 0:
        raise error(f"{what}: the file is empty; copy or download it again")
    try:
        head = head_of(source)
        file = source if isinstance(source, Path) else io.BytesIO(source)
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height > max_pixels:
                raise too_large(what, image.size, max_pixels, error)
            yield image
    except ClipDepthError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as problem:
        raise too_large(what, None, max_pixels, error) from problem
    except MemoryError as problem:
        raise error(f"{what}: does not fit into memory; make it smaller") from problem
    except UnidentifiedImageError as problem:
        raise error(f"{what}: {_unknown(head)}; {wanted}") from problem
    except Exception as problem:  # a damaged file makes Pillow's decoders raise almost anything
        raise error(
            f"{what}: damaged, or can't be read ({type(problem).__name__}: {problem}); copy or "
            f"download it again; {wanted}"
        ) from problem


def head_of(source: Source) -> bytes:
    """The first bytes, by which a format is known."""
    if isinstance(source, bytes):
        return source[:_HEAD]
    with source.open("rb") as file:
        return file.read(_HEAD)


def too_large(
    what: str, size: tuple[int, ...] | None, max_pixels: int, error: Error
) -> ClipDepthError:
    """The error about a picture of (width, height), None where only too large is known."""
    shape = "more than Pillow allows" if size is None else " x ".join(map(str, size))
    return error(
        f"{what}: its pixels, {shape}, are more than {max_pixels} in all; make it smaller, or "
        "allow more (predict --max-pixels, load_image(max_pixels=...))"
    )


def stored_as(image: Image.Image) -> str:
    """How an opened picture is stored, as "16-bit RGB"; to be asked before it is decoded."""
    mode = image.mode
    if mode == "1" or mode.startswith("I;") or mode in ("I", "F"):
        return _MODES.get(mode, "16-bit grey")
    # Pillow decodes 16-bit colours to 8 bits; only the raw mode of its tiles tells.
    deep = re.search(r"(\w+);16[BLN]?\b", str(getattr(image, "tile", "")))
    mode = deep[1] if deep else mode
    return f"{16 if deep else 8}-bit {_MODES.get(mode, mode)}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _unknown(head: bytes) -> str:
    for kind, start in _OTHERS:
        if re.match(start, head, re.DOTALL):
            return f"is a {kind} file, not a picture that is read"
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return "is a text file, not a picture"
    known = ", ".join(_formats())
    return f"not a picture that is read, or damaged from the start (known are {known})"
