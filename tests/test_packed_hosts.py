"""Hosts that pad or pack pictures of several sizes: each token is led back to its place.

Three routes that know nothing of our layouts check them: pictures of coordinates, packed by the
library's own image processor and passed on by the tower, so that each token says where it comes
from; the library's raw hidden states; and each picture alone in a pass of its own.

Axes: B pictures or views, N tokens, D width, (h, w) patch grid, H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, TowerFeatures, attach, find_towers
from clipdepth_plugin.errors import NoDepthError

PATCH, WIDTH, IMAGE_TOKEN = 8, 32, 90
Grid = tuple[int, int]
# Two of one size side by side, so that neighbours are grouped, and that size again later.
GRIDS: tuple[Grid, ...] = ((4, 2), (4, 2), (2, 6), (4, 2), (4, 4))

_V: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": PATCH,
}
_T: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 99,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_PERCEIVER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "rms_norm_eps": 1e-6,
    "resampler_n_latents": 2,
    "resampler_depth": 1,
    "resampler_n_heads": 2,
    "resampler_head_dim": 8,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True)
class Packed:
    """A host.

    Attributes:
        name: For ids.
        build: Makes it.
        pack: Pictures (3, H, W) -> what the host takes beside its prompt, by the library.
        tower: Path of its tower.
        contexts: Context kinds it must offer.
        grids: Patch grids of the pictures it is tried with.
        norm: Module of the tower, before its blocks, that would change coordinates; or None.
    """

    name: str
    build: Callable[[], nn.Module]
    pack: Callable[[list[Tensor]], dict[str, Tensor]]
    tower: str
    contexts: tuple[str, ...] = ("mean",)
    grids: tuple[Grid, ...] = GRIDS
    norm: str | None = None

    def host(self) -> Any:
        """The host with its fixed weights, in evaluation mode."""
        torch.manual_seed(0)
        return self.build().eval()

    def pictures(self, grids: Sequence[Grid] | None = None) -> list[Tensor]:
        """Random pictures, (3, H, W) each."""
        noise = torch.Generator().manual_seed(1)
        sizes = [(h * PATCH, w * PATCH) for h, w in grids or self.grids]
        return [torch.randn(3, *size, generator=noise) for size in sizes]


def _part(name: str, options: dict[str, Any]) -> Any:
    import transformers

    return getattr(transformers, name)(**options)


def _vlm(
    model: str, vision: tuple[str, dict[str, Any]], text: tuple[str, dict[str, Any]], **options: Any
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        parts = {"vision_config": _part(*vision), "text_config": _part(*text)}
        config = _part(model.replace("ForConditionalGeneration", "Config"), {**options, **parts})
        return cast("nn.Module", getattr(transformers, model)(config))

    return build


def _padded(pictures: list[Tensor], side: int = 0) -> dict[str, Tensor]:
    """One prompt's pictures, padded below and at the right as Idefics' processors do."""
    height, width = (max(side, *(x.shape[axis] for x in pictures)) for axis in (1, 2))
    pixels = torch.zeros(1, len(pictures), 3, height, width)
    mask = torch.zeros(1, len(pictures), height, width, dtype=torch.int64)
    for index, x in enumerate(pictures):
        pixels[0, index, :, : x.shape[1], : x.shape[2]] = x
        mask[0, index, : x.shape[1], : x.shape[2]] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


_SHUFFLED: dict[str, Any] = {"scale_factor": 2, "image_token_id": IMAGE_TOKEN}
_IDEFICS2 = _vlm(
    "Idefics2ForConditionalGeneration",
    ("Idefics2VisionConfig", _V),
    ("MistralConfig", _T),
    perceiver_config=_PERCEIVER,
    image_token_id=IMAGE_TOKEN,
)

PACKED = (
    Packed("idefics2", _IDEFICS2, _padded, "model.vision_model"),
    Packed(
        "idefics3",
        _vlm(
            "Idefics3ForConditionalGeneration",
            ("Idefics3VisionConfig", _V),
            ("LlamaConfig", _T),
            **_SHUFFLED,
        ),
        functools.partial(_padded, side=32),  # its pixel shuffle takes squares
        "model.vision_model",
        grids=((4, 4), (4, 2), (2, 4)),
    ),
    Packed(
        "smolvlm",
        _vlm(
            "SmolVLMForConditionalGeneration",
            ("SmolVLMVisionConfig", _V),
            ("LlamaConfig", _T),
            **_SHUFFLED,
        ),
        functools.partial(_padded, side=32),  # its pixel shuffle takes squares
        "model.vision_model",
        grids=((4, 4), (4, 2), (2, 4)),
    ),
)


@pytest.fixture(params=PACKED, ids=lambda case: case.name)
def packed(request: pytest.FixtureRequest) -> Packed:
    """Every host in turn."""
    return cast("Packed", request.param)


def coordinates(grids: Sequence[Grid]) -> list[Tensor]:
    """Pictures whose patches say where they are: red the row, green the column, blue the picture.

    Counted from 1, so that nothing of a picture is what padding is.
    """
    pictures = []
    for index, (h, w) in enumerate(grids):
        y_hw, x_hw = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        small_3hw = torch.stack([y_hw, x_hw, torch.full_like(y_hw, index)]).float() + 1
        patch = torch.ones(1, PATCH, PATCH)
        pictures.append(torch.kron(small_3hw, patch))
    return pictures


def let_coordinates_through(host: nn.Module, case: Packed) -> None:
    """Makes the tower's tokens the mean red, green and blue of their patches, in every level."""
    (tower,) = find_towers(host)
    for parameter in tower.module.parameters():
        nn.init.zeros_(parameter)  # a block without weights adds nothing to its input
    weight = next(tower.patch_embed.parameters())
    for channel in range(3):
        nn.init.constant_(weight.data[channel, channel], 1 / weight[0, 0].numel())
    if case.norm is not None:
        parent, _, leaf = f"{case.tower}.{case.norm}".rpartition(".")
        setattr(host.get_submodule(parent), leaf, nn.Identity())


def rows_of(out: Any) -> int:
    """Number of tokens that a host's pictures take in its prompt, as its library counts them."""
    out = getattr(out, "pooler_output", out)
    if isinstance(out, Tensor):
        return out.shape[:-1].numel()
    return sum(x.shape[:-1].numel() for x in out)


def prompt(host: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The host's inputs with a prompt that has room for its pictures."""
    count = rows_of(host.get_image_features(**inputs))
    ids = torch.tensor([[1, *[IMAGE_TOKEN] * count, 5, 6]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}


def views_of(batches: Sequence[TowerFeatures]) -> list[tuple[TowerFeatures, int]]:
    """(features, index in them) of each view, in order."""
    return [(one, index) for one in batches for index in range(one.batch)]


def all_levels(make_head: Callable[..., DepthHead], host: nn.Module, **options: Any) -> DepthHead:
    return make_head(
        host, semantic_levels=(4, 3, 2, 1), structural_levels=(2, 1, 0), context="mean", **options
    )


def test_found(packed: Packed) -> None:
    (tower,) = find_towers(packed.host())
    assert (tower.path, tower.depth, tower.width) == (packed.tower, 4, WIDTH)
    assert (tower.patch_size, tower.contexts) == ((PATCH, PATCH), packed.contexts)


def test_each_token_comes_from_its_place(
    packed: Packed, make_head: Callable[..., DepthHead]
) -> None:
    host = packed.host()
    let_coordinates_through(host, packed)
    head = all_levels(make_head, host)
    with torch.no_grad(), attach(host, head) as plugin, plugin.capture() as seen:
        host.get_image_features(**packed.pack(coordinates(packed.grids)))
        batches = seen[-1].batches
    views = views_of(batches)
    assert [one.grid for one, _ in views] == list(packed.grids)
    for picture, (features, index) in enumerate(views):
        h, w = features.grid
        for level, tokens_BND in features.levels.items():
            where_hw3 = tokens_BND[index, :, :3].reshape(h, w, 3).round().int() - 1
            expected = [[[y, x, picture] for x in range(w)] for y in range(h)]
            assert where_hw3.tolist() == expected, f"picture {picture}, level {level}"
        assert features.context is not None
        mean = torch.tensor([(h + 1) / 2, (w + 1) / 2, picture + 1])
        torch.testing.assert_close(features.context[index, :3], mean, rtol=0, atol=1e-4)


def test_host_is_not_touched(packed: Packed, make_head: Callable[..., DepthHead]) -> None:
    host = packed.host()
    with torch.no_grad():
        inputs = prompt(host, packed.pack(packed.pictures()))
        hooks = hook_count(host)
        alone = host(**inputs).logits
        told = host.generate(**inputs, max_new_tokens=3, do_sample=False)
        with attach(host, all_levels(make_head, host)) as plugin:
            assert torch.equal(host(**inputs).logits, alone)
            first = plugin.depths
            assert torch.equal(host.generate(**inputs, max_new_tokens=3, do_sample=False), told)
            second = plugin.depths
        assert hook_count(host) == hooks
        assert torch.equal(host(**inputs).logits, alone)
    sizes = [(1, h * PATCH, w * PATCH) for h, w in packed.grids]
    assert [tuple(x.shape) for x in first] == sizes
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def hook_count(host: nn.Module) -> dict[str, int]:
    """Module -> number of its hooks."""
    return {
        name: sum(len(table) for key, table in vars(module).items() if key.endswith("_hooks"))
        for name, module in host.named_modules()
        if not isinstance(module, nn.Identity)
    }


def test_a_picture_is_read_as_if_it_were_alone(
    packed: Packed, make_head: Callable[..., DepthHead]
) -> None:
    """Neither padding nor neighbours enter a picture's tokens, context or map."""
    host, pictures = packed.host(), packed.pictures()
    with torch.no_grad(), attach(host, all_levels(make_head, host)) as plugin:
        with plugin.capture() as seen:
            for picture in pictures:
                host.get_image_features(**packed.pack([picture]))
            host.get_image_features(**packed.pack(pictures))
        *alone, together = seen
        for index, (features, row) in enumerate(views_of(together.batches)):
            (own,) = alone[index].batches
            assert own.context is not None
            assert features.context is not None
            torch.testing.assert_close(features.context[row], own.context[0], rtol=0, atol=1e-5)
            for level, tokens_BND in features.levels.items():
                own_ND = own.levels[level][0]
                torch.testing.assert_close(tokens_BND[row], own_ND, rtol=0, atol=1e-5)
        maps = [one.depth[0] for one in alone]
        torch.testing.assert_close(together.depths, maps, rtol=0, atol=1e-4)


def test_reading_views_of_several_sizes(
    packed: Packed, make_head: Callable[..., DepthHead]
) -> None:
    host = packed.host()
    with torch.no_grad(), attach(host, all_levels(make_head, host)) as plugin:
        with plugin.capture() as seen:
            host.get_image_features(**packed.pack(packed.pictures()))
        assert isinstance(seen[0].features, list)
        with pytest.raises(NoDepthError, match=r"views of several sizes .*\.depths"):
            _ = plugin.depth
        maps = plugin.predict()
        assert isinstance(maps, list)
        torch.testing.assert_close(maps, plugin.depths)
        one = plugin.predict((20, 30))
        assert isinstance(one, Tensor)
        assert one.shape == (len(packed.grids), 1, 20, 30)
        host.get_image_features(**packed.pack(packed.pictures([packed.grids[0]] * 2)))
        h, w = packed.grids[0]
        assert plugin.depth.shape == (2, 1, h * PATCH, w * PATCH)


# --- what padding is not ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask[1, 1:, 1:].fill_(0), "are no rectangle"),
        (lambda mask: mask[1].fill_(0), "view 1 is padding alone"),
    ],
)
def test_masks_that_make_no_map(
    change: Callable[[Tensor], Any], message: str, make_head: Callable[..., DepthHead]
) -> None:
    host = _IDEFICS2().eval()
    tower: Any = find_towers(host)[0].module
    mask_Bhw = torch.ones(2, 4, 4, dtype=torch.bool)
    change(mask_Bhw)
    with torch.no_grad(), attach(host, make_head(host, context="mean")) as plugin:
        tower(torch.randn(2, 3, 32, 32), patch_attention_mask=mask_Bhw)
        with pytest.raises(NoDepthError, match=message):
            _ = plugin.depth


def test_unfinished_patches_belong_to_the_picture(make_head: Callable[..., DepthHead]) -> None:
    """Pixels beyond the last whole patch: a map has them where its picture reaches them."""
    host = _IDEFICS2().eval()
    head = make_head(host, context="mean")
    mask_Bhw = torch.ones(2, 4, 4, dtype=torch.bool)
    mask_Bhw[1, :, 2:] = False
    with torch.no_grad(), attach(host, head) as plugin:
        depths = plugin(torch.randn(2, 3, 35, 33), patch_attention_mask=mask_Bhw)
    assert [tuple(x.shape) for x in depths] == [(1, 35, 33), (1, 35, 16)]
