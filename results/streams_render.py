"""Renders the videos of streams.py: procedural rooms, in which the camera or a box moves.

    python results/streams_render.py ROOMS RENDERED --videos 12

ROOMS is the folder of the room renderer: render_rooms.py, room_scene.py, room_textures.py and
photos. It needs moderngl and EGL. Video N is a room of seed N: 00_camera, 01_object, 02_both,
03_camera and so on. Exposure and lens are a video's own, noise is each frame's. An interrupted run
goes on.

Poses are 4 x 4, camera to world, with x right, y down, z forward.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
WIDTH, HEIGHT = 256, 192
FRAMES = 30
PER_METRE, NEAREST, FARTHEST = 3000, 0.05, 20.0
KINDS = ("camera", "object", "both")
COMES = 8
"""The frame in which the box comes into view."""
TO_RENDERER = np.diag([1.0, -1.0, -1.0, 1.0])
"""From and to the renderer's x right, y up, z backward."""


class Lens:
    """The random numbers of a video's exposure and lens, and those of a frame's noise."""

    def __init__(self, seed: int, frame: int) -> None:
        self._video = np.random.default_rng([7, seed])
        self._frame = np.random.default_rng([8, seed, frame])

    def normal(self, mean: float = 0.0, spread: float = 1.0, size: Any = None) -> Any:
        """A picture of numbers is noise, few numbers are the lens's."""
        noise = isinstance(size, tuple) and len(size) > 1
        return (self._frame if noise else self._video).normal(mean, spread, size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._video, name)


@dataclass
class Renderer:
    """The room renderer's modules, its textures and its GL context."""

    module: Any
    layers: dict[str, list[int]]
    gl: Any

    @classmethod
    def of(cls, folder: Path) -> Renderer:
        """Of a folder."""
        sys.path.insert(0, str(folder))
        module = importlib.import_module("render_rooms")
        textures, layers = module.library(200, str(folder / "photos"))
        return cls(module, layers, module.GL(textures))

    def depth(self, pose: Array, focal: float) -> tuple[Array, Array]:
        """Depth (H, W), 0 where there is none, and the projection, of the room that is loaded."""
        view = TO_RENDERER @ np.linalg.inv(pose)
        buffer_HW4, projection = self.gl.geometry(pose[:3, 3], view, focal, WIDTH, HEIGHT)
        depth_HW = np.array(buffer_HW4[..., 3], dtype=np.float64)
        depth_HW[(depth_HW > FARTHEST) | (depth_HW < NEAREST)] = 0
        return depth_HW, projection

    def picture(self, pose: Array, focal: float, projection: Array, lens: Lens) -> Any:
        """Pixels (H, W, 3) of the room that is loaded."""
        view = TO_RENDERER @ np.linalg.inv(pose)
        light = self.gl.shade(pose[:3, 3], view, focal, WIDTH, HEIGHT, projection)
        return self.module.develop(light.astype("f4"), lens)


@dataclass
class Shot:
    """A room, the pose of a camera in it, its focal length in pixels and the median depth."""

    room: Any
    pose: Array
    focal: float
    median: float


def find_shot(renderer: Renderer, seed: int) -> Shot:
    """A camera that sees a room's surfaces everywhere, nothing nearer than half a metre."""
    for scene in range(100):
        room = renderer.module.make_scene([4, seed, scene], renderer.layers)
        found = renderer.module.camera(room, np.array(room.boxes).reshape(-1, 6))
        if found is None:
            continue
        place, target, angle, roll, _ = found
        pose = np.linalg.inv(TO_RENDERER @ renderer.module.look(place, target, roll))
        focal = WIDTH / 2 / np.tan(angle / 2)
        renderer.gl.load(room)
        depth_HW, _ = renderer.depth(pose, focal)
        renderer.gl.free()
        seen = depth_HW[depth_HW > 0]
        if seen.size > 0.95 * depth_HW.size and np.percentile(seen, 1) > 0.5:
            return Shot(room, pose, focal, float(np.median(seen)))
    raise RuntimeError(f"seed {seed}: no such camera in a hundred rooms")


def sway(renderer: Renderer, seed: int, frame: int) -> Array:
    """From a frame's camera to the first's (4, 4): centimetres and degrees a frame, smoothly."""
    random = np.random.default_rng([5, seed])
    speed_36, phase_36 = random.uniform(0.1, 0.35, (3, 6)), random.uniform(0, 2 * np.pi, (3, 6))
    waves_6 = (np.sin(frame * speed_36 + phase_36) - np.sin(phase_36)).sum(axis=0)
    rooms, (x, y, z) = renderer.module, np.radians(2.0 * waves_6[3:])
    return np.array(rooms.tr(*(0.06 * waves_6[:3])) @ rooms.rx(x) @ rooms.ry(y) @ rooms.rz(z))


def add_box(shot: Shot, seed: int, frame: int) -> None:
    """The box of a frame: from one side of the first camera's view to the other, and nearer."""
    random = np.random.default_rng([6, seed])
    depth = np.clip(0.55 * shot.median, 0.5, 2.0)
    done = (frame - COMES) / (FRAMES - 1 - COMES)
    half = WIDTH / 2 / shot.focal
    across = random.choice([-1, 1]) * (1.2 - 2.4 * done) * half
    distance = depth * (1.25 - 0.5 * done)
    at = shot.pose @ [across * distance, random.uniform(-0.1, 0.2) * distance, distance, 1.0]
    sizes = half * depth * random.uniform(0.3, 0.7, 3)
    own, shot.room.r = shot.room.r, random  # the same texture in each frame
    material = shot.room.mat(random.choice(["carton", "wood", "fabric"]), scale=0.4)
    shot.room.box(tuple(at[:3]), tuple(sizes), material, fit=True)
    shot.room.r = own


def render(renderer: Renderer, seed: int, folder: Path) -> None:
    """A video; its poses are written last."""
    folder.mkdir(parents=True, exist_ok=True)
    shot, kind, poses = find_shot(renderer, seed), KINDS[seed % len(KINDS)], {}
    for frame in range(FRAMES):
        pose = shot.pose if kind == "object" else shot.pose @ sway(renderer, seed, frame)
        without = shot.room.rm.mark()
        if kind != "camera" and frame >= COMES:
            add_box(shot, seed, frame)
        renderer.gl.load(shot.room)
        depth_HW, projection = renderer.depth(pose, shot.focal)
        pixels = renderer.picture(pose, shot.focal, projection, Lens(seed, frame))
        renderer.gl.free()
        shot.room.rm.drop(without)
        name = f"{frame:04d}"
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=92)
        units = np.round(depth_HW * PER_METRE).astype(np.uint16)
        Image.fromarray(units).save(folder / f"{name}.depth.png")
        poses[name] = pose.tolist()
    lens = [shot.focal, shot.focal, (WIDTH - 1) / 2, (HEIGHT - 1) / 2]
    (folder / "intrinsics.json").write_text(json.dumps(dict.fromkeys(poses, lens)), "utf-8")
    (folder / "poses.json").write_text(json.dumps(poses), "utf-8")


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rooms", type=Path)
    parser.add_argument("rendered", type=Path)
    parser.add_argument("--videos", type=int, default=12)
    given = parser.parse_args()
    os.environ.setdefault("LP_NUM_THREADS", "1")  # of the software renderer
    renderer = Renderer.of(given.rooms)
    for seed in range(given.videos):
        folder = given.rendered / f"{seed:02d}_{KINDS[seed % len(KINDS)]}"
        if not (folder / "poses.json").exists():
            render(renderer, seed, folder)


if __name__ == "__main__":
    main()
