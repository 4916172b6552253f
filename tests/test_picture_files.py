"""Pictures of every kind are read right, or refused by name."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipdepth_plugin.adapters.pixels import to_pixels
from clipdepth_plugin.adapters.preprocessing import Preprocessing
from clipdepth_plugin.errors import ImageError
from clipdepth_plugin.files.pictures import find_images, load_image

PREPROCESSING = Preprocessing(
    mean=(0.48, 0.45, 0.40), std=(0.26, 0.26, 0.27), size=(32, 48), resize="squash"
)


def rgb(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("RGB", (10, 20, 30), "png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "png", (10, 20, 30)),
        ("L", 77, "png", (77, 77, 77)),
        ("LA", (77, 0), "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("I;16", 65535, "png", (255, 255, 255)),
        ("I;16", 32896, "png", (128, 128, 128)),
        ("I;16", 256, "tif", (1, 1, 1)),
        ("I", 32896, "tif", (128, 128, 128)),
        ("F", 0.5, "tif", (128, 128, 128)),
        ("YCbCr", (255, 128, 128), "tif", (255, 255, 255)),
    ],
)
def test_modes(
    tmp_path: Path, mode: str, colour: object, suffix: str, expected: tuple[int, int, int]
) -> None:
    path = tmp_path / f"picture.{suffix}"
    # Pillow 12 can't read the raw YCbCr that it writes.
    options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}
    Image.new(mode, (5, 3), colour).save(path, **options)  # type: ignore[arg-type]
    pixels_HWC = rgb(path)
    assert pixels_HWC.shape == (3, 5, 3)
    assert (pixels_HWC == expected).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    Image.new("CMYK", (8, 8), (255, 0, 255, 0)).save(path, quality=100)
    assert np.abs(rgb(path).astype(int) - (0, 255, 0)).max() <= 3


def test_16_bit_ramp_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "ramp.png"
    Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16)[None]).save(path)
    assert (rgb(path)[0, :, 0] == np.arange(256)).all()


def test_palette_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=b"\x00\x80")
    assert rgb(path).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(path, exif=exif)
    pixels_HWC = rgb(path)
    assert pixels_HWC.shape == (4, 2, 3)
    assert pixels_HWC[0, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_first_frame_of_several(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"frames.{suffix}"
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert rgb(path).min() > 250


def test_one_pixel(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("RGB", (1, 1), (255, 0, 0)).save(path)
    pixels_BCHW = to_pixels([load_image(path)], PREPROCESSING)
    assert pixels_BCHW.shape == (1, 3, 32, 48)
    assert torch.isfinite(pixels_BCHW).all()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    noise_HWC = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise_HWC).save(good)
    content = good.read_bytes()
    cases = {
        "truncated.png": content[: len(content) // 2],
        "header.png": content[:20],
        "empty.png": b"",
        "text.jpg": b"no picture at all",
        "length.png": content[:11] + b"\x0a" + content[12:],  # the header's, 13 by the format
        "bomb.png": content[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + content[24:],
    }
    for name, damaged in cases.items():
        path = tmp_path / name
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=name), warnings.catch_warnings():
            load_image(path)


@pytest.mark.parametrize(
    "values", [[[0.0, float("nan")]], [[0.0, 300.0]], [[-0.1, 0.5]]], ids=["nan", "high", "low"]
)
def test_floats_without_a_white_are_refused(tmp_path: Path, values: list[list[float]]) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.array(values, dtype=np.float32)).save(path)
    with pytest.raises(ImageError, match=r"float\.tif: float32 grey values"):
        load_image(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png: no such file"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="is a folder, expected a file"):
        load_image(tmp_path)


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "a.depth.png", "a.colour.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.png").write_bytes(b"x")
    odd = tmp_path / "notes.txt"
    assert [path.name for path in find_images([odd, tmp_path])] == ["notes.txt", "a.png", "b.JPG"]
    assert find_images(tmp_path / "a.png") == [tmp_path / "a.png"]
    assert find_images([tmp_path / "a.png", tmp_path / "below" / ".." / "a.png"]) == [
        tmp_path / "a.png"
    ]


def test_find_images_names_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty: no pictures in this folder"):
        find_images([tmp_path / "empty"])
    with pytest.raises(ImageError, match=r"gone\.png: no such file or folder"):
        find_images([tmp_path / "gone.png"])
    with pytest.raises(ImageError, match="no pictures given"):
        find_images([])


def test_to_pixels_squashes_the_whole_picture_and_normalises() -> None:
    ramp_HWC = np.zeros((48, 96, 3), dtype=np.uint8)
    ramp_HWC[:, :48] = 255  # left half white: a centre crop would keep that share as well,
    ramp_HWC[:8] = 128  # but not the strip at the top
    picture = Image.fromarray(ramp_HWC)
    pixels_BCHW = to_pixels([picture, picture.resize((7, 9))], PREPROCESSING)
    assert pixels_BCHW.shape == (2, 3, 32, 48)
    assert pixels_BCHW.dtype == torch.float32
    assert pixels_BCHW.is_contiguous()
    mean_C11 = torch.tensor(PREPROCESSING.mean).view(3, 1, 1)
    std_C11 = torch.tensor(PREPROCESSING.std).view(3, 1, 1)
    rgb_CHW = pixels_BCHW[0] * std_C11 + mean_C11
    torch.testing.assert_close(rgb_CHW[:, 20, 4], torch.ones(3))
    torch.testing.assert_close(rgb_CHW[:, 20, 44], torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(rgb_CHW[:, 1, 44], torch.full((3,), 128 / 255))


def test_to_pixels_of_no_pictures_and_of_another_mode() -> None:
    assert to_pixels([], PREPROCESSING).shape == (0, 3, 32, 48)
    with pytest.raises(ImageError, match="picture 0 has mode L"):
        to_pixels([Image.new("L", (4, 4))], PREPROCESSING)
