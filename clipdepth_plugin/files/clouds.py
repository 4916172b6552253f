"""``save_ply`` and ``save_glb``: a depth map as points, and as a mesh, for other programs.

Axes: H W pixels of the map, N points, T triangles.
"""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdepth_plugin.arguments import StrPath
from clipdepth_plugin.errors import NoDepthError
from clipdepth_plugin.files.atomic import write_atomically
from clipdepth_plugin.files.depth_maps import DepthMap
from clipdepth_plugin.files.surfaces import MOST_POINTS, Image_HW3, Surface, grazing, surface_of

GENERATOR = "clipdepth-plugin: metric depth along the optical axis"
"""What a file of ours says of itself, and by which it is known as ours."""

_JPEG_QUALITY = 92
_LARGEST_TEXTURE = 4096
_FLOAT, _UINT32 = 5126, 5125  # glTF's names of types
_ARRAY, _ELEMENTS = 34962, 34963
_VERTEX = np.dtype(
    [
        *((name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")),
        *((name, "u1") for name in ("red", "green", "blue")),
    ]
)
_PLY_TYPES = {"<f4": "float", "|u1": "uchar"}


def save_ply(
    path: StrPath,
    depth: DepthMap,
    intrinsics: Any,
    image: Image.Image | Image_HW3 | None = None,
    *,
    confidence: DepthMap | None = None,
    max_points: int = MOST_POINTS,
) -> None:
    """Writes or replaces a PLY file: points in metres with normals and colours (binary).

    The points are in the camera's frame as OpenCV and ROS have it: x right, y down, z forward.
    Pixels on the ramp between a near and a far surface, seen at less than 5 degrees, are left
    out, so that borders of objects do not smear.

    Args:
        path: Of the file.
        depth: (H, W), or (1, H, W) as a plug-in gives it, in metres; NaN is no depth.
        intrinsics: (fx, fy, cx, cy) or a 3x3 matrix K, in pixels of the map.
        image: The picture, of the map's size; None: depth in colours.
        confidence: As a head predicts it, of the map's size: pixels under half of its median
            are left out, too.
        max_points: From a larger map every second, third, ... pixel of both sides is taken.

    Raises:
        DepthFileError: The maps and the picture do not fit together, or the file can't be
            written.
        NoDepthError: The map has no surface in it.
        HostError: The intrinsics are no camera's of such a map.
    """
    surface = surface_of(depth, intrinsics, image, confidence=confidence, max_points=max_points)
    write_atomically(path, ply_bytes(surface))


def save_glb(
    path: StrPath,
    depth: DepthMap,
    intrinsics: Any,
    image: Image.Image | Image_HW3 | None = None,
    *,
    confidence: DepthMap | None = None,
    max_points: int = MOST_POINTS,
) -> None:
    """Writes or replaces a GLB file (glTF 2.0): a mesh in metres with the picture as its texture.

    In glTF's frame, x right, y up, z towards the viewer, as Blender, browsers and Windows show it.
    The mesh has holes where pixels are left out, and is cut between near and far surfaces.

    Args:
        path: Of the file.
        depth: As ``save_ply``.
        intrinsics: As ``save_ply``.
        image: As ``save_ply``.
        confidence: As ``save_ply``.
        max_points: As ``save_ply``; the texture keeps the picture's size up to 4096 pixels.

    Raises:
        DepthFileError: As ``save_ply``.
        NoDepthError: As ``save_ply``; or no triangle is left.
        HostError: As ``save_ply``.
    """
    surface = surface_of(depth, intrinsics, image, confidence=confidence, max_points=max_points)
    write_atomically(path, glb_bytes(surface))


def ply_bytes(surface: Surface) -> bytes:
    """The content of a PLY file."""
    keep_HW, step = surface.keep_HW, surface.step
    vertices_N = np.empty(int(keep_HW.sum()), _VERTEX)
    columns = [
        *surface.points_HW3[keep_HW].T,
        *surface.normals_HW3[keep_HW].T,
        *surface.picture_HW3[::step, ::step][keep_HW].T,
    ]
    for name, column_N in zip(_VERTEX.names or (), columns, strict=True):
        vertices_N[name] = column_N
    properties = [
        f"property {_PLY_TYPES[_VERTEX[name].str]} {name}" for name in _VERTEX.names or ()
    ]
    lines = [
        *("ply", "format binary_little_endian 1.0", f"comment {GENERATOR}"),
        "comment metres; x right, y down, z forward",
        *(f"element vertex {len(vertices_N)}", *properties, "end_header"),
    ]
    return "".join(f"{line}\n" for line in lines).encode() + vertices_N.tobytes()


def glb_bytes(surface: Surface) -> bytes:
    """The content of a GLB file: a chunk of JSON and one of arrays and the picture.

    Raises:
        NoDepthError: No triangle is left.
    """
    triangles_T3 = _triangles(surface)
    used_N, triangles_T3 = np.unique(triangles_T3, return_inverse=True)
    if not used_N.size:
        raise NoDepthError("no mesh in this depth map: no three neighbouring pixels are kept")
    flipped = np.array([1, -1, -1])
    height, width = surface.picture_HW3.shape[:2]
    rows_N, columns_N = np.divmod(used_N, surface.keep_HW.shape[1])
    places_N2 = np.stack(
        [(columns_N * surface.step + 0.5) / width, (rows_N * surface.step + 0.5) / height], 1
    )
    arrays = {
        "POSITION": (surface.points_HW3.reshape(-1, 3)[used_N] * flipped).astype("<f4"),
        "NORMAL": (surface.normals_HW3.reshape(-1, 3)[used_N] * flipped).astype("<f4"),
        "TEXCOORD_0": places_N2.astype("<f4"),
        "indices": triangles_T3.reshape(-1, 1).astype("<u4"),
    }
    return _packed(arrays, _jpeg(surface.picture_HW3))


def _triangles(surface: Surface) -> NDArray[np.int64]:
    """Two of each cell of the grid whose corners are kept; counter-clockwise as seen.

    Those that are seen at a grazing angle span a gap between two surfaces.
    """
    height, width = surface.keep_HW.shape
    index_HW = np.arange(height * width).reshape(height, width)
    a, b = index_HW[:-1, :-1].ravel(), index_HW[:-1, 1:].ravel()
    c, d = index_HW[1:, :-1].ravel(), index_HW[1:, 1:].ravel()
    triangles_T3 = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    triangles_T3 = triangles_T3[surface.keep_HW.ravel()[triangles_T3].all(1)]
    first_T3, second_T3, third_T3 = surface.points_HW3.reshape(-1, 3)[triangles_T3.T]
    normals_T3 = np.cross(second_T3 - first_T3, third_T3 - first_T3)
    seen_T3: NDArray[np.int64] = triangles_T3[~grazing(normals_T3, first_T3 + second_T3 + third_T3)]
    return seen_T3


def _jpeg(picture_HW3: Image_HW3) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(picture_HW3)
    picture.thumbnail((_LARGEST_TEXTURE, _LARGEST_TEXTURE))
    picture.save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _packed(arrays: dict[str, NDArray[Any]], texture: bytes) -> bytes:
    blobs = [*(array.tobytes() for array in arrays.values()), texture]
    views, accessors, start = [], [], 0
    for blob in blobs:
        views.append({"buffer": 0, "byteOffset": start, "byteLength": len(blob)})
        start += len(blob) + -len(blob) % 4
    for index, (name, array) in enumerate(arrays.items()):
        views[index]["target"] = _ELEMENTS if name == "indices" else _ARRAY
        accessors.append(
            {
                "bufferView": index,
                "componentType": _UINT32 if name == "indices" else _FLOAT,
                "count": len(array),
                "type": "SCALAR" if name == "indices" else f"VEC{array.shape[1]}",
                "min": array.min(0).tolist(),
                "max": array.max(0).tolist(),
            }
        )
    *attributes, indices = range(len(arrays))
    primitive = {
        "attributes": dict(zip(arrays, attributes, strict=False)),
        "indices": indices,
        "material": 0,
    }
    tree = {
        "asset": {"version": "2.0", "generator": GENERATOR},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "depth"}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [
            {
                "pbrMetallicRoughness": {
                    "baseColorTexture": {"index": 0},
                    "metallicFactor": 0,
                    "roughnessFactor": 1,
                },
                "doubleSided": True,
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}],
        "images": [{"bufferView": len(arrays), "mimeType": "image/jpeg"}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": start}],
    }
    text = json.dumps(tree, separators=(",", ":")).encode()
    body = b"".join(blob + bytes(-len(blob) % 4) for blob in blobs)
    chunks = [(b"JSON", text + b" " * (-len(text) % 4)), (b"BIN\0", body)]
    content = b"".join(len(one).to_bytes(4, "little") + name + one for name, one in chunks)
    total = (12 + len(content)).to_bytes(4, "little")
    return b"glTF" + (2).to_bytes(4, "little") + total + content
