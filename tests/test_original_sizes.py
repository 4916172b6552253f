"""Maps in the user's image, all the way: image processor, host, tower pass, one map an image.

The head tells the red of the pixels that the tower saw, and a picture's red says where it is; so a
map must be its picture's own red again, whatever the host did in between.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, TowerFeatures, attach, find_towers
from clipdepth_plugin.adapters.processors.hf import from_processor
from clipdepth_plugin.adapters.processors.lerobot import from_policy
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.config import HeadConfig
from clipdepth_plugin.decoders.readout import DepthEstimate, confidence_of
from clipdepth_plugin.errors import HostError, ImageError
from clipdepth_plugin.plugin.pictures import PictureDepth
from tests.tiny.packed import EVERY_PACKED
from tests.tiny.table import HOSTS

T = 32
SQUARE = {"height": T, "width": T}
PINPOINTS = {"image_grid_pinpoints": [[32, 64], [64, 32]]}
SIZES: tuple[Size, ...] = ((40, 90), (77, 50), (64, 64))


class RedHead(DepthHead):
    """Gives 1 m and the pixels' red; its log scale is the red, less 2."""

    @property
    def reads_pixels(self) -> bool:
        return True

    def estimate(
        self, features: TowerFeatures, size: Size | None = None, **_: Any
    ) -> DepthEstimate:
        assert features.pixels is not None
        red_B1HW = features.pixels[:, :1].float()
        return DepthEstimate(1 + red_B1HW, red_B1HW - 2)


def red_head(host: nn.Module) -> RedHead:
    config = DepthHead.for_host(host, film=False, confidence=True).config
    return RedHead(HeadConfig.model_validate(config.model_dump())).eval()


def picture(size: Size, index: int) -> Tensor:
    """(3, H, W) uint8 whose red grows to the right below; each picture from a red of its own."""
    y_HW = ((torch.arange(size[0]) + 0.5) / size[0])[:, None].expand(size)
    x_HW = ((torch.arange(size[1]) + 0.5) / size[1])[None].expand(size)
    red_HW = 0.1 + 0.2 * index + 0.3 * x_HW + 0.1 * y_HW
    return (torch.stack([red_HW] + [torch.ones(size)] * 2) * 255).round().to(torch.uint8)


def features_of(host: Any, inputs: Any) -> None:
    known = inspect.signature(host.get_image_features).parameters
    if max(inputs.get("batch_num_images", [1])) > 1 and "batch_num_images" not in known:
        pytest.skip("transformers 4.57 takes several images of a prompt in its forward alone")
    host.get_image_features(**{key: value for key, value in inputs.items() if key in known})


def pixels_alone(host: Any, inputs: Any) -> None:
    host.get_image_features(inputs["pixel_values"])


@dataclass(frozen=True)
class Case:
    """A tiny host and its processor.

    Attributes:
        host: Its name in the table of hosts, or of packed hosts.
        processor: Class of its image or video processor.
        options: The processor's settings.
        run: Gives the host what the processor made.
        call: How the processor is called on the pictures.
        unseen: Image pixels at the right and below that the tower may take for padding.
        blurred: Whether the processor resizes padding into the picture's border.
        sizes: (H, W) of the pictures of its pass.
    """

    name: str
    host: str
    processor: str
    options: dict[str, Any]
    run: Callable[[Any, Any], None] = pixels_alone
    call: Callable[[Any, list[Tensor]], Any] = lambda processor, pictures: processor(
        pictures, return_tensors="pt"
    )
    unseen: int = 0
    blurred: bool = False
    sizes: Sequence[Size] = SIZES


def one_prompt(processor: Any, pictures: list[Tensor], **options: Any) -> Any:
    return processor([pictures], return_tensors="pt", **options)


def cut_to_patches(processor: Any, pictures: list[Tensor]) -> Any:
    return processor(pictures, return_tensors="pt", crop_to_patches=True)


def tensors_of(out: Any) -> dict[str, Tensor]:
    return {key: value for key, value in out.items() if isinstance(value, Tensor)}


def packed(host: str) -> Callable[[Any, Any], None]:
    (case,) = (case for case in EVERY_PACKED if case.name == host)
    return lambda model, inputs: case.run(model, tensors_of(inputs))


SCAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 16,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
IDEFICS2 = {"size": {"shortest_edge": 16, "longest_edge": 48}}
IDEFICS3 = {"size": {"longest_edge": 2 * T}, "max_image_size": {"longest_edge": T}}
QWEN = {"size": {"shortest_edge": 256, "longest_edge": 2048}, "patch_size": 8}
LFM2 = {
    "encoder_patch_size": 8, "tile_size": T, "min_image_tokens": 2, "max_image_tokens": 6,
    "max_pixels_tolerance": 2.0, "max_tiles": 4,
}  # fmt: skip
CASES = [
    Case(
        "llava_next", "llava_next", "LlavaNextImageProcessor",
        {"size": {"shortest_edge": T}, "crop_size": SQUARE, **PINPOINTS}, features_of,
    ),
    Case(  # tiles that are no whole pieces of a canvas show their middle alone
        "llava_next-pieces", "llava_next", "LlavaNextImageProcessor",
        {"size": {"shortest_edge": T}, "crop_size": SQUARE,
         "image_grid_pinpoints": [[48, 96], [96, 48]]},
        lambda host, inputs: host.model.vision_tower(inputs["pixel_values"].flatten(0, 1)),
        blurred=True,
    ),
    Case(
        "onevision", "llava_onevision", "LlavaOnevisionImageProcessor",
        {"size": SQUARE, **PINPOINTS}, features_of,
    ),
    Case(
        "onevision-one-prompt", "llava_onevision", "LlavaOnevisionImageProcessor",
        {"size": SQUARE, **PINPOINTS}, features_of, one_prompt, blurred=True,
    ),
    Case("aya", "aya_vision", "GotOcr2ImageProcessor", {"size": SQUARE}, call=cut_to_patches),
    Case("internvl", "internvl", "GotOcr2ImageProcessor", {"size": SQUARE}, call=cut_to_patches),
    Case("internvl-whole", "internvl", "GotOcr2ImageProcessor", {"size": SQUARE}),
    Case("ovis2", "ovis2", "Ovis2ImageProcessor", {"size": SQUARE}, call=cut_to_patches),
    Case("cohere2_vision", "cohere2_vision", "Cohere2VisionImageProcessor", {"size": SQUARE}),
    Case("gemma3", "gemma3", "Gemma3ImageProcessor", {"size": SQUARE, **SCAN}),
    Case("paligemma", "paligemma", "SiglipImageProcessor", {"size": SQUARE}),
    Case(
        "idefics2", "idefics2", "Idefics2ImageProcessor", IDEFICS2, features_of, one_prompt,
        unseen=16,
    ),
    Case(
        "idefics2-split", "idefics2", "Idefics2ImageProcessor",
        {**IDEFICS2, "do_image_splitting": True}, features_of, one_prompt, unseen=16,
    ),
    Case(
        "idefics3", "idefics3", "Idefics3ImageProcessor", IDEFICS3, features_of, one_prompt,
    ),
    Case("smolvlm-prompts", "smolvlm", "SmolVLMImageProcessor", IDEFICS3, features_of,
         lambda processor, pictures: processor([[p] for p in pictures], return_tensors="pt")),
    Case(
        "mllama", "mllama", "MllamaImageProcessor", {"size": SQUARE, "max_image_tiles": 4},
        packed("mllama"), one_prompt,
    ),
    Case(
        "mllama-prompts", "mllama", "MllamaImageProcessor", {"size": SQUARE, "max_image_tiles": 4},
        packed("mllama"),
        lambda processor, pictures: processor(
            [pictures[:1], pictures[1:]], return_tensors="pt"
        ),
    ),
    Case(  # which normalises in bfloat16
        "llama4", "llama4", "Llama4ImageProcessor", {"size": SQUARE, "do_normalize": False},
        lambda host, inputs: host.vision_model(inputs["pixel_values"]),
    ),
    Case(
        "minicpm", "minicpmv4_6", "MiniCPMV4_6ImageProcessor",
        {"scale_resolution": T, "patch_size": 8}, packed("minicpmv4_6"),
    ),
    Case(
        "molmo2", "molmo2", "Molmo2ImageProcessor",
        {"size": SQUARE, "patch_size": 8, "overlap_margins": [1, 1]},
        lambda host, inputs: host(inputs["pixel_values"]),
    ),
    Case(
        "perception_lm", "perception_lm", "PerceptionLMImageProcessor",
        {"tile_size": T, "max_num_tiles": 6},
        lambda host, views: host.model.vision_tower(views),
        lambda processor, pictures: torch.cat(
            [processor(one, return_tensors="pt")["pixel_values"][0] for one in pictures]
        ),
    ),
    Case(
        "pixtral", "pixtral", "PixtralImageProcessor",
        {"size": {"longest_edge": 48}, "patch_size": 8}, packed("pixtral"),
    ),
    *(
        Case(name, name, "Qwen2VLImageProcessor", QWEN, packed(name))
        for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    ),
    Case(
        "siglip2", "siglip2", "Siglip2ImageProcessor", {"patch_size": 8, "max_num_patches": 24},
        packed("siglip2"),
    ),
    Case("lfm2_vl", "lfm2_vl", "Lfm2VlImageProcessor", LFM2, packed("lfm2_vl")),
    Case(
        "lfm2_vl-whole", "lfm2_vl", "Lfm2VlImageProcessor", {**LFM2, "do_image_splitting": False},
        packed("lfm2_vl"),
    ),
]  # fmt: skip


def build(name: str) -> nn.Module:
    tables: dict[str, Any] = {case.name: case for case in HOSTS}
    tables |= {case.name: case for case in EVERY_PACKED}
    if tables[name].absent:
        pytest.skip(f"transformers {transformers.__version__} lacks {name}")
    host: nn.Module = tables[name].host()
    return host


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_maps_come_back_in_the_users_images(case: Case) -> None:
    host = build(case.host)
    plain = {"resample": 2, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    kind = getattr(transformers, case.processor, None)
    kind = kind or getattr(transformers, f"{case.processor}Fast")  # transformers 4 has no other
    processor = kind(**{**plain, **case.options})
    pictures = [picture(size, index) for index, size in enumerate(case.sizes)]
    inputs = case.call(processor, pictures)
    with torch.no_grad(), attach(host, red_head(host), processor=processor) as plugin:
        case.run(host, inputs)
        maps = plugin.predict(original_sizes=case.sizes)
        sure = plugin.predict_confidence(original_sizes=case.sizes)
    assert [tuple(one.shape) for one in maps] == [(1, *size) for size in case.sizes]
    for one_1HW, sure_1HW, shown in zip(maps, sure, pictures, strict=True):
        error_HW = one_1HW[0] - (1 + shown[0] / 255)
        beside_1HW = confidence_of(one_1HW - 3)  # but tiles fade in log depth
        torch.testing.assert_close(sure_1HW, beside_1HW, rtol=0, atol=1e-3, equal_nan=True)
        height, width = error_HW.shape
        error_HW = error_HW[: height - case.unseen, : width - case.unseen]
        if case.blurred:
            error_HW = error_HW[4:-4, 4:-4]
        # A pixel of a view is up to four of the picture's; at a border half of one is held.
        assert error_HW.abs().max() < 0.03
        assert error_HW.mean().abs() < 0.002


def test_each_view_has_a_camera_of_its_own() -> None:
    """Mllama's tiles have no overview to take a scale from: theirs is that of their zoom."""
    (case,) = (case for case in CASES if case.name == "mllama")
    host = build(case.host)
    head = red_head(host)
    head.config = head.config.model_copy(update={"canonical_focal": 50.0})
    plain = {"resample": 2, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    processor = getattr(transformers, case.processor)(**{**plain, **case.options})
    pictures = [picture(size, 0) for size in SIZES]
    with torch.no_grad(), attach(host, head, processor=processor) as plugin:
        case.run(host, case.call(processor, pictures))
        plain_maps = plugin.predict(original_sizes=SIZES)
        maps = plugin.predict(original_sizes=SIZES, focal_px=[100.0, None, 200.0])
    (rule,) = from_processor(processor).rules
    for size, focal, one, before in zip(SIZES, (100.0, None, 200.0), maps, plain_maps, strict=True):
        scale = rule.views(size).views[-1].scale
        factor = 1.0 if focal is None else focal * math.sqrt(scale[0] * scale[1]) / 50.0
        torch.testing.assert_close(one, before * factor)


class _Pi0Config:
    __module__ = "lerobot.policies.pi0.configuration_pi0"
    image_resolution = (T, T)


class _Agent(nn.Module):
    """What has a policy inside."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy


@pytest.mark.parametrize("around", [lambda policy: policy, _Agent, nn.DataParallel])
@pytest.mark.parametrize(
    "config",
    [SimpleNamespace(resize_imgs_with_padding=(T, T)), _Pi0Config()],
    ids=["end", "middle"],
)
def test_a_policy_that_pads_its_own_pictures(config: Any, around: Callable[[Any], Any]) -> None:
    """As LeRobot's do: at the left and above, or around, which no processor says."""
    policy: Any = build("lerobot_smolvla")
    policy.config = config
    host = around(policy)
    sizes = SIZES[:2]
    cameras, pictures = [], [picture(size, index) for index, size in enumerate(sizes)]
    for (height, width), shown in zip(sizes, pictures, strict=True):
        ratio = max(width, height) / T
        small = F.interpolate(shown[None] / 255, (int(height / ratio), int(width / ratio)))
        right, below = T - small.shape[3], T - small.shape[2]
        if isinstance(config, _Pi0Config):
            pads = (right // 2, right - right // 2, below // 2, below - below // 2)
        else:
            pads = (right, 0, below, 0)
        cameras.append(F.pad(small, pads))
    with torch.no_grad(), attach(host, red_head(host)) as plugin, plugin.capture() as seen:
        policy.select_action(cameras, torch.zeros(1, 4))
        maps = [one.predict(original_sizes=size)[0] for one, size in zip(seen, sizes, strict=True)]
    for one_1HW, shown in zip(maps, pictures, strict=True):
        assert (one_1HW[0] - (1 + shown[0] / 255)).abs().max() < 0.03
    processor = transformers.SiglipImageProcessor(size=SQUARE)
    with pytest.raises(HostError, match="resizes and pads its own pictures"):
        attach(host, red_head(host), processor=processor)
    attach(host, red_head(host), processor=from_processor(processor)).detach()


def test_a_policy_says_width_before_height() -> None:
    host: Any = nn.Module()
    host.config = SimpleNamespace(resize_imgs_with_padding=(64, T))
    preprocessing = from_policy(host)
    assert preprocessing is not None
    assert preprocessing.size == (T, 64)
    host.config = SimpleNamespace(resize_imgs_with_padding=None, image_resolution=(T, T))
    assert from_policy(host) is None


def test_the_table_names_hosts_of_other_tables() -> None:
    assert all(find_towers(build(host)) for host in {case.host for case in CASES})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pictures_are_shown_by_the_hosts_rule(case: Case) -> None:
    """As ``test_maps_come_back_in_the_users_images``, with the views that we make."""
    host = build(case.host)
    plain = {"resample": 2, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    processor = getattr(transformers, case.processor)(**{**plain, **case.options})
    pictures = [picture(size, index) for index, size in enumerate(case.sizes)]
    images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pictures]
    depth_of = PictureDepth(attach(host, red_head(host), processor=processor))
    if case.host == "mllama":  # its tiles see each other, as they lie
        with pytest.raises(ImageError, match=r"the tower takes \(prompts, images, tiles, "):
            depth_of(images)
        return
    with torch.no_grad():
        maps = depth_of(images)
    for one_2HW, shown in zip(maps, pictures, strict=True):
        error_HW = one_2HW[0] - (1 + shown[0] / 255)
        if case.blurred or case.processor == "LlavaOnevisionImageProcessor":
            error_HW = error_HW[4:-4, 4:-4]
        error_HW = error_HW[~error_HW.isnan()]
        assert error_HW.abs().max() < 0.05
        assert error_HW.mean().abs() < 0.003
