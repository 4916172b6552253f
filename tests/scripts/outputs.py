"""A table of what the library computes: written before a change that moves code, equal after it.

    python -m tests.scripts.outputs write results/outputs.json
    python -m tests.scripts.outputs check results/outputs.json

Every preset on three hosts, plain and fused; maps in the user's own pictures; ``clipdepth
predict``, ``train`` and ``eval``. Only public names are used, so that the script outlives moves.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from PIL import Image
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.config import PRESETS

SIZE = 64
SQUARE = {"height": SIZE, "width": SIZE}
VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 4,
    "patch_size": 16, "image_size": SIZE,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip
TOLERANCE = 1e-5
"""Relative: the same code on another processor."""


def clip() -> tuple[nn.Module, Any]:
    """A tower whose processor crops."""
    config = transformers.CLIPVisionConfig(**VISION)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE)
    return transformers.CLIPVisionModel(config), processor


def siglip() -> tuple[nn.Module, Any]:
    """A tower whose processor squashes."""
    config = transformers.SiglipVisionConfig(**VISION)
    return transformers.SiglipVisionModel(config), transformers.SiglipImageProcessor(size=SQUARE)


def llava_next() -> tuple[nn.Module, Any]:
    """A multimodal host that cuts pictures into tiles."""
    pinpoints = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE]]
    config = transformers.LlavaNextConfig(
        vision_config={**VISION, "model_type": "clip_vision_model"},
        text_config=dict(TEXT),
        image_grid_pinpoints=pinpoints,
    )
    processor = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=SQUARE, image_grid_pinpoints=pinpoints
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


HOSTS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "clip": clip,
    "siglip": siglip,
    "llava-next": llava_next,
}


def summary(map_CHW: Tensor) -> list[float]:
    """Mean, deviation, ends and two weighted sums of what is finite in a map, and their number."""
    values = map_CHW[map_CHW.isfinite()].double()
    ramp = torch.linspace(-1, 1, len(values), dtype=torch.float64)
    sums = [float((values * ramp).mean()), float((values * ramp.square()).mean())]
    ends = [float(values.min()), float(values.max())]
    return [len(values), float(values.mean()), float(values.std()), *ends, *sums]


def picture(height: int, width: int) -> Image.Image:
    """Colours that say where each pixel is."""
    y_HW, x_HW = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    rgb_HWC = np.stack([255 * y_HW, 255 * x_HW, 127 + 90 * np.sin(9 * x_HW * y_HW)], axis=-1)
    return Image.fromarray(rgb_HWC.astype(np.uint8))


def host_rows() -> Iterator[tuple[str, list[float]]]:
    """Every preset on every host, plain and fused, at the tower's size and in the pictures."""
    sizes = [(80, 150), (120, 90)]
    pictures = [picture(*size) for size in sizes]
    for name, build in HOSTS.items():
        torch.manual_seed(0)
        host, processor = build()
        host = host.eval()
        tower = getattr(getattr(host, "model", host), "vision_tower", host)
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        for preset in PRESETS:
            torch.manual_seed(1)
            options: dict[str, Any] = {"activation": "softplus"} if "space" in preset else {}
            plain = DepthHead.for_host(host, preset=preset, canonical_focal=60.0, **options).eval()
            for form, head in (("plain", plain), ("fused", plain.fused())):
                with torch.no_grad(), attach(host, head, processor=processor) as plugin:
                    tower(pixels.reshape(-1, 3, SIZE, SIZE))
                    yield f"{name} {preset} {form} depth", summary(plugin.depth)
                    given: dict[str, Any] = {"focal_px": [70.0, None], "original_sizes": sizes}
                    for index, map_1HW in enumerate(plugin.predict(**given)):
                        yield f"{name} {preset} {form} predict {index}", summary(map_1HW)
                    called = plugin(pixels.reshape(-1, 3, SIZE, SIZE))
                    yield f"{name} {preset} {form} called", summary(called)


def write_data(root: Path) -> None:
    """An RGB-D folder of slanted planes."""
    for split, count in (("train", 6), ("test", 3)):
        for index in range(count):
            y_HW, x_HW = np.mgrid[0:1:60j, 0:1:80j]
            depth_HW = 1.5 + 0.2 * index + x_HW * (-1) ** index + 0.5 * y_HW
            depth_HW[:6, :6] = 0
            stem = root / split / "scene" / f"{index:03d}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            rgb_HWC = np.stack([70 * depth_HW, 255 * x_HW, 255 * y_HW], axis=-1).clip(0, 255)
            Image.fromarray(rgb_HWC.astype(np.uint8)).save(f"{stem}.png")
            Image.fromarray((depth_HW * 1000).astype(np.uint16)).save(f"{stem}.depth.png")
    camera = {"default": [80.0, 80.0, 39.5, 29.5]}
    meta = {"depth_scale": 1000, "max_depth_m": 10.0, "intrinsics": camera}
    (root / "meta.json").write_text(json.dumps(meta))


def clipdepth(*words: str | Path) -> None:
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "clipdepth_plugin", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def save_host(folder: Path) -> None:
    """A tower of two blocks with its processor, as transformers saves it."""
    torch.manual_seed(2)
    vision = {**VISION, "hidden_size": 16, "num_hidden_layers": 2, "mlp_ratio": 2}
    vision.pop("intermediate_size")
    transformers.Dinov2Model(transformers.Dinov2Config(**vision)).save_pretrained(folder)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "size": SQUARE,
        "do_resize": True,
        "do_normalize": True,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def command_rows(root: Path) -> Iterator[tuple[str, list[float]]]:
    """A short training run, its head on pictures, and the demo's head evaluated."""
    write_data(root / "data")
    save_host(root / "host")
    train = {"format": "rgbd", "root": str(root / "data"), "split": "train"}
    head = {"preset": "fast", "options": {"semantic_levels": [2, 1], "structural_levels": [0]}}
    config = {
        "run": str(root / "run"), "host": str(root / "host"), "head": head, "steps": 8,
        "data": {"train": [train], "validation": [{**train, "split": "test"}]},
        "loss": {"auxiliary": []}, "optimiser": {"lr": 1e-3}, "batch_size": 2,
        "output_size": [32, 32],
        "validate_every": 4, "checkpoint_every": 4, "precision": "no",
        "logging": {"every": 1, "pictures": 0, "tensorboard": False},
    }  # fmt: skip
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    clipdepth("train", root / "run.yaml")
    log = [json.loads(line) for line in (root / "run" / "log.jsonl").read_text().splitlines()]
    yield "train losses", [one["loss"] for one in log if one["kind"] == "train"]
    sources: dict[str, tuple[str | Path, str | Path]]
    sources = {"trained": (root / "host", root / "run" / "head"), "demo": ("demo", "demo")}
    for name, (host, of_host) in sources.items():
        chosen: list[str | Path] = ["--host", host, "--head", of_host]
        data = f"rgbd:{root / 'data'}:test"
        clipdepth("eval", *chosen, "--data", data, "-o", root / name, "--pictures", "0")
        report = json.loads((root / name / "report.json").read_text())
        yield f"eval {name}", list(numbers(report["means"]))
        pictures = root / "data" / "test" / "scene"
        clipdepth("predict", pictures / "000.png", *chosen, "-o", root / f"{name}-maps", "--npy")
        (written,) = (root / f"{name}-maps").glob("*.npy")
        yield f"predict {name}", summary(torch.from_numpy(np.load(written)))


def numbers(tree: Any) -> Iterator[float]:
    """Every number of nested lists and dicts, in the order of sorted keys."""
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from numbers(tree[key])
    elif isinstance(tree, list):
        for one in tree:
            yield from numbers(one)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield float(tree)


def rows() -> dict[str, list[float]]:
    """The whole table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return {**dict(host_rows()), **dict(command_rows(Path(folder)))}


def differences(before: dict[str, list[float]], now: dict[str, list[float]]) -> Iterator[str]:
    """One line for each row that differs."""
    for name in sorted(before.keys() | now.keys()):
        pair = before.get(name, []), now.get(name, [])
        same = len(pair[0]) == len(pair[1]) > 0
        if not (same and all(map(close, *pair))):
            yield f"{name}: {pair[0]} before, {pair[1]} now"


def close(before: float, now: float) -> bool:
    """Whether two figures are the same but for the processor's rounding."""
    both = math.isnan(before) and math.isnan(now)
    return both or math.isclose(before, now, rel_tol=TOLERANCE, abs_tol=1e-8)


def main(verb: str, file: str) -> None:
    """Writes the table, or holds today's against it."""
    now = rows()
    if verb == "write":
        lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(now.items()))
        Path(file).write_text(f"{{\n{lines}\n}}\n")
        return
    before = json.loads(Path(file).read_text())
    if odd := list(differences(before, now)):
        sys.exit("\n".join(odd))
    sys.stdout.write(f"{len(now)} rows, all equal\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
