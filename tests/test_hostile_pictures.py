"""Files that are no pictures, or no files, are named: nothing is started, filled or waited for."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from clipdepth_plugin.cli.predict_overwrite import check_names, check_replaced
from clipdepth_plugin.data.files import read_image, stored_depth
from clipdepth_plugin.errors import ClipDepthError, DataError, DepthFileError, ImageError
from clipdepth_plugin.files import depth_maps
from clipdepth_plugin.files.colours import depth_panel, image_grid
from clipdepth_plugin.files.depth_maps import (
    NPY_NOTE,
    write_colour,
    write_confidence_png,
    write_depth_png,
    write_npy,
)
from clipdepth_plugin.files.pictures import find_images, load_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def png(width: int, height: int) -> bytes:
    """A valid grey PNG of zeros: some KB, whatever it holds."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (EPS, "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5"),
        (b"\x76\x2f\x31\x01" + bytes(40), "OpenEXR"),
        (b"PK\x03\x04" + bytes(40), r"zip \(\.npz"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1", "HEIC"),
        (b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00", "video"),
        (b"\x1a\x45\xdf\xa3" + bytes(40), "video"),
        (b"RIFF\x00\x10\x00\x00AVI LIST", "video"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"8BPS\x00\x01" + bytes(40), "Photoshop"),
        (b"GIMP text\n", "text file"),
        (bytes(range(200, 250)), "not a picture"),
    ],
)
def test_other_kinds_of_file_are_called_by_their_names(
    tmp_path: Path, content: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    path = tmp_path / "named.jpg"
    path.write_bytes(content)
    for read in (load_image, read_image, lambda path: read_image(path.read_bytes(), "named.jpg")):
        with pytest.raises(ImageError, match=rf"named\.jpg: .*{kind}.*give a PNG") as caught:
            read(path)
        assert "download it again" not in str(caught.value)
    if kind != "NumPy":
        for source in (path, content):
            with pytest.raises(DataError, match=rf"named.*{kind}.*16 bits.*\.npy"):
                stored_depth(source, "named")
    assert not started


def test_only_the_formats_of_a_list_are_read(tmp_path: Path) -> None:
    path, picture = tmp_path / "picture.png", Image.new("RGB", (32, 32), "red")
    for name in ("JPEG", "MPO", "PNG", "TIFF", "BMP", "GIF", "PPM", "WEBP"):
        picture.save(path, name)
        assert load_image(path).size == (32, 32)
    for name in ("EPS", "DDS", "ICO", "PCX", "SGI", "TGA", "PDF"):
        picture.save(path, name)
        with pytest.raises(ImageError, match=r"picture\.png: .*(not a picture|damaged)"):
            load_image(path)


def test_one_place_opens_pictures() -> None:
    package = Path(__file__).parent.parent / "clipdepth_plugin"
    openers = [path.name for path in package.rglob("*.py") if "Image.open(" in path.read_text()]
    assert openers == ["opening.py"]


def test_a_small_file_that_holds_gigabytes_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(8193, 8193))
    assert path.stat().st_size < 300_000
    with pytest.raises(ImageError, match=r"bomb\.png: its pixels, 8193 x 8193.*--max-pixels"):
        load_image(path)
    with pytest.raises(DataError, match="8193 x 8193"):
        stored_depth(path, "depth")
    path.write_bytes(png(30, 20))
    with pytest.raises(ImageError, match="30 x 20, are more than 599 in all"):
        load_image(path, max_pixels=599)
    assert load_image(path, max_pixels=600).size == (30, 20)
    # Beyond Pillow's own bounds, too, which warn or raise.
    for width in (13_000, 2**31 - 1):
        path.write_bytes(png(8, 8)[:16] + struct.pack(">II", width, width) + bytes(60))
        with pytest.raises(ImageError, match=r"bomb\.png"):
            load_image(path)


def test_an_array_that_claims_more_than_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 2), np.float32))
    content = (tmp_path / "a.npy").read_bytes()
    header = content.replace(b"(2, 2), }" + b" " * 10, b"(900000, 900000), }")
    (tmp_path / "a.npy").write_bytes(header)
    for source in (tmp_path / "a.npy", header):
        with pytest.raises(DataError, match=r"a: (the depth map is damaged|its pixels)"):
            stored_depth(source, "a")


@pytest.mark.parametrize(
    ("mode", "options", "named"),
    [
        ("L", {}, "8-bit grey"),
        ("LA", {}, "8-bit grey with alpha"),
        ("P", {}, "8-bit palette"),
        ("RGB", {}, "8-bit RGB"),
        ("RGBA", {}, "8-bit RGBA"),
        ("CMYK", {"format": "JPEG"}, "8-bit CMYK"),
        ("1", {}, "black and white"),
    ],
)
def test_what_is_no_depth_is_called_by_its_name(
    tmp_path: Path, mode: str, options: dict[str, str], named: str
) -> None:
    path = tmp_path / "d.png"
    Image.new(mode, (4, 4)).save(path, **options)
    with pytest.raises(DataError, match=rf"is {named} \(mode {mode}\), expected 16-bit grey"):
        stored_depth(path, "d.png")


@pytest.mark.parametrize(("kind", "channels", "named"), [(2, 3, "RGB"), (4, 2, "grey with alpha")])
def test_16_bit_colours_are_called_that(
    tmp_path: Path, kind: int, channels: int, named: str
) -> None:
    path = tmp_path / "deep.png"
    rows = zlib.compress(bytes((1 + 4 * 2 * channels) * 4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(name + data))
        content += struct.pack(">I", len(data)) + name + data + crc
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"is 16-bit {named} \("):
        stored_depth(path, "deep.png")
    assert load_image(path).size == (4, 4)


@pytest.mark.parametrize("name", ["d.npy", "d.png", "d.tif", "d.pfm", "f64.tif", "u32.tif"])
def test_depth_of_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    depth_HW = np.arange(12, dtype=np.float32).reshape(3, 4)
    if name == "d.npy":
        np.save(path, depth_HW[None])
    elif name == "d.png":
        Image.fromarray(depth_HW.astype(np.uint16)).save(path)
    elif name == "u32.tif":
        Image.fromarray(depth_HW.astype(np.int32)).save(path)
    else:
        Image.fromarray(depth_HW).save(path, "PPM" if name == "d.pfm" else "TIFF")
    for source in (path, path.read_bytes()):
        np.testing.assert_array_equal(stored_depth(source, name), depth_HW)


def odd_paths(folder: Path) -> dict[str, Path]:
    """What -> a path at which no file can be read."""
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "broken.png").symlink_to("gone.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    return {
        **{name: folder / f"{name}.png" for name in ("loop", "broken", "pipe", "device", "folder")},
        "long": folder / ("x" * 300 + ".png"),
        "inside a file": folder / "a.png" / "b.png",
        "null": folder / "a\0b.png",
    }


def test_what_is_no_regular_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(4, 4))
    for what, path in odd_paths(tmp_path).items():
        for read in (load_image, read_image, lambda path: stored_depth(path, str(path))):
            with pytest.raises(ClipDepthError) as caught:
                read(path)
            assert isinstance(caught.value, ImageError | DataError), what
    with pytest.raises(ImageError, match="Too many levels of symbolic links"):
        find_images(tmp_path / "loop.png")
    with pytest.raises(ImageError, match="File name too long"):
        find_images(tmp_path / ("x" * 300))
    with pytest.raises(ImageError, match="null"):
        find_images(tmp_path / "a\0b")
    # In a folder they are listed, so that predict names each and goes on.
    names = [path.name for path in find_images(tmp_path)]
    assert names == ["a.png", "broken.png", "device.png", "loop.png", "pipe.png"]


def test_an_output_folder_with_pipes_does_not_hang(tmp_path: Path) -> None:
    for suffix in ("depth.png", "colour.png", "npy"):
        path = tmp_path / f"a.{suffix}"
        for make in (os.mkfifo, lambda path: path.symlink_to(path.name)):
            make(path)
            with pytest.raises(DepthFileError, match=r"a\..*: not written, as it is, by predict"):
                check_replaced([Path("a.jpg")], tmp_path, npy=True, confidence=False)
            path.unlink()


def test_names_that_can_not_be_written_are_refused_before_any_work() -> None:
    with pytest.raises(ImageError, match="longer than 255 bytes"):
        check_names([Path("ü" * 121 + ".png")])
    check_names([Path("x" * 240 + ".png")])


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[31mb.png", "a\udc80b.png", "a\u202eb.png"])
def test_a_name_is_one_printable_line_in_messages(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no picture")
    for read in (load_image, lambda path: stored_depth(path, str(path))):
        with pytest.raises(ClipDepthError) as caught:
            read(path)
        assert str(caught.value).isprintable()


def test_every_cut_and_flip_of_a_file_gives_a_picture_or_our_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    noise_HW3 = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"):
        Image.fromarray(noise_HW3).save(path, kind)
        whole = path.read_bytes()
        for _ in range(60):
            harmed = bytearray(whole)
            harmed[int(random.integers(len(whole)))] ^= int(random.integers(1, 256))
            harmed = harmed[: int(random.integers(1, 2 * len(whole)))]
            path.write_bytes(bytes(harmed))
            for read in (load_image, lambda path: stored_depth(path, str(path))):
                with contextlib.suppress(ImageError, DataError):
                    read(path)


def test_maps_of_an_interrupted_run_are_known_as_ours(tmp_path: Path) -> None:
    """Each by itself: a run may end between any two of its files."""
    depth_HW = np.full((4, 5), 2.0, np.float32)
    write_depth_png(tmp_path / "a.depth.png", depth_HW)
    for name in ("a.npy", "a.confidence.npy"):
        write_npy(tmp_path / name, depth_HW + 1)
        np.testing.assert_array_equal(np.load(tmp_path / name), depth_HW + 1)
        np.testing.assert_array_equal(np.load(tmp_path / name, mmap_mode="r"), depth_HW + 1)
    check_replaced([Path("a.jpg")], tmp_path, npy=True, confidence=True)
    (tmp_path / "a.depth.png").unlink()
    check_replaced([Path("a.jpg")], tmp_path, npy=True, confidence=True)
    whole = (tmp_path / "a.npy").read_bytes()
    for foreign in (whole.removesuffix(NPY_NOTE), whole[:20], b""):
        (tmp_path / "a.npy").write_bytes(foreign)
        with pytest.raises(DepthFileError, match=r"a\.npy: not written"):
            check_replaced([Path("a.jpg")], tmp_path, npy=True, confidence=True)


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    write_npy(tmp_path / ("x" * 251 + ".npy"), np.ones((2, 2)))


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (70, 71)])
def test_large_maps_are_written_in_strips(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    depth_HW = np.random.default_rng(0).uniform(-1, 70, size)
    write_depth_png(tmp_path / "a.png", depth_HW)
    write_confidence_png(tmp_path / "c.png", depth_HW)
    whole = [(tmp_path / name).read_bytes() for name in ("a.png", "c.png")]
    monkeypatch.setattr(depth_maps, "_STRIP_PIXELS", 1000)
    monkeypatch.setattr(depth_maps, "_DRAWN_PIXELS", 1000)
    write_depth_png(tmp_path / "a.png", depth_HW)
    write_confidence_png(tmp_path / "c.png", depth_HW)
    assert whole == [(tmp_path / name).read_bytes() for name in ("a.png", "c.png")]
    image = Image.new("RGB", size[::-1])
    write_colour(tmp_path / "b.png", depth_HW, image=image)
    assert load_image(tmp_path / "b.png").size[0] > 100


def test_titles_that_are_no_text_are_drawn() -> None:
    panel = depth_panel(np.ones((8, 8)), title="a\udc80\x1b$x\nb")
    assert image_grid([[panel]]).startswith(b"\x89PNG")
