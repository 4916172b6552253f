"""Which patch embedding feeds which blocks, which tower a path means, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach, find_towers
from clipdepth_plugin.adapters.structure import find_skeletons
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.errors import TowerNotFoundError
from clipdepth_plugin.features import one_size
from tests.tiny.open_clip_timm import timm_vit

WIDTH, SIDE = 32, 8


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        mixed: Tensor = x + self.attn(y, y, y)[0]
        return mixed


class WindowBlock(Block):
    window_size = 4


def embed(width: int = WIDTH) -> nn.Module:
    return nn.Conv2d(3, width, SIDE, stride=SIDE)


def blocks(width: int = WIDTH, kind: type[Block] = Block) -> nn.Module:
    return nn.ModuleList(kind(width) for _ in range(3))


def holder(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def pairs(model: nn.Module) -> dict[str, str]:
    skeletons, _ = find_skeletons(model)
    return {s.patch_embedding.path: s.block_list.path for s in skeletons}


def reasons(model: nn.Module) -> dict[str, str]:
    return {misfit.path: misfit.reason for misfit in find_skeletons(model)[1]}


@pytest.mark.parametrize(
    "order",
    [
        ("left_embed", "left_blocks", "right_embed", "right_blocks"),
        ("left_embed", "right_embed", "left_blocks", "right_blocks"),
    ],
)
def test_side_by_side_are_paired_in_order(order: tuple[str, ...]) -> None:
    parts = {name: embed() if name.endswith("embed") else blocks() for name in order}
    model = holder(**parts)
    assert pairs(model) == {"left_embed": "left_blocks", "right_embed": "right_blocks"}
    with pytest.raises(TowerNotFoundError, match="2 vision towers"):
        choose_tower(model)
    assert choose_tower(model, "right_blocks").patch_embed is parts["right_embed"]


def test_side_by_side_of_two_widths_are_paired_by_width() -> None:
    model = holder(a_embed=embed(16), b_embed=embed(), b_blocks=blocks(), a_blocks=blocks(16))
    assert pairs(model) == {"a_embed": "a_blocks", "b_embed": "b_blocks"}


@pytest.mark.parametrize("lists", [1, 3])
def test_unequal_numbers_are_ambiguous(lists: int) -> None:
    parts = {f"blocks_{i}": blocks() for i in range(lists)}
    model = holder(left=embed(), right=embed(), **parts)
    assert pairs(model) == {}
    assert "ambiguous" in reasons(model)["left"]
    with pytest.raises(TowerNotFoundError, match="which feeds which is ambiguous"):
        choose_tower(model)


def test_one_embedding_before_two_lists_takes_the_first() -> None:
    """As in Mllama: the blocks, then the global blocks."""
    model = holder(embed=embed(), transformer=blocks(), global_transformer=blocks())
    assert pairs(model) == {"embed": "transformer"}


@pytest.mark.parametrize("first", ["aux", "blocks"])
def test_a_list_belongs_to_the_embedding_beside_it(first: str) -> None:
    aux = holder(embed=embed(), blocks=blocks())
    parts = {"aux": aux, "embed": embed(), "blocks": blocks()}
    model = holder(**{first: parts[first]}, **{k: x for k, x in parts.items() if k != first})
    assert pairs(model) == {"aux.embed": "aux.blocks", "embed": "blocks"}


def test_an_embedding_without_blocks_does_not_take_another_towers() -> None:
    model = holder(embed=embed(), tower=holder(embed=embed(), blocks=blocks()))
    assert pairs(model) == {"tower.embed": "tower.blocks"}
    assert "nearer patch embedding" in reasons(model)["embed"]
    assert choose_tower(model).path == "tower"


def test_a_hierarchical_tower_is_still_refused() -> None:
    model = holder(embed=embed(), a=blocks(), b=blocks(64))
    assert pairs(model) == {}
    assert "hierarchical" in reasons(model)["embed"]


def test_a_tower_at_the_path_comes_before_those_inside() -> None:
    aux = holder(embed=embed(), blocks=blocks())
    model = holder(embed=embed(), blocks=blocks(), aux=aux)
    assert [tower.path for tower in find_towers(model)] == ["", "aux"]
    assert choose_tower(model, "").blocks_path == "blocks"
    assert choose_tower(model, "aux").blocks_path == "aux.blocks"
    assert choose_tower(model, "aux.blocks").path == "aux"
    outer = holder(model=model)
    assert choose_tower(outer, "model").blocks_path == "model.blocks"
    with pytest.raises(TowerNotFoundError, match="2 vision towers at ''"):
        choose_tower(outer, "")


class Chunk(nn.ModuleList):
    """As in DINOv2's own code: filled up with identities, so that blocks keep their numbers."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


class Chunked(nn.Module):
    """A ViT whose blocks lie in chunks."""

    def __init__(self, chunks: nn.Module) -> None:
        super().__init__()
        self.embed, self.blocks = embed(), chunks

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).mT
        for chunk in cast("nn.ModuleList", self.blocks):
            x = chunk(x)
        return x


def chunk(start: int) -> nn.Module:
    return Chunk([*(nn.Identity() for _ in range(start)), Block(WIDTH), Block(WIDTH)])


@pytest.mark.parametrize(
    "chunks",
    [
        nn.ModuleList([chunk(0), chunk(2)]),
        nn.ModuleList([chunk(0), chunk(0)]),
        nn.Sequential(nn.Sequential(Block(WIDTH), Block(WIDTH)), chunk(0)),
    ],
    ids=["identities", "chunks", "sequential"],
)
def test_chunks_of_blocks_are_one_list(chunks: nn.Module, make_head: Make) -> None:
    model = Chunked(chunks).eval()
    (tower,) = find_towers(model)
    assert (tower.blocks_path, tower.depth) == ("blocks", 4)
    pixels = torch.randn(2, 3, 4 * SIDE, 4 * SIDE)
    with torch.no_grad(), attach(model, make_head(model)) as plugin, plugin.capture() as seen:
        last = model(pixels)
    features = one_size(seen[0].features)
    torch.testing.assert_close(features.levels[4], last, rtol=0, atol=0)


@pytest.mark.parametrize("width", [WIDTH, 64])
def test_lists_that_may_run_side_by_side_are_refused(width: int) -> None:
    """CrossViT's branches, of one width or two; no order of theirs is a tower's."""
    branches = nn.ModuleList(nn.Sequential(Block(one), Block(one)) for one in (WIDTH, width))
    parts = {"embed": embed()} if width == WIDTH else {"a": embed(), "b": embed(width)}
    with pytest.raises(TowerNotFoundError, match=r"one of the lists blocks\.0, blocks\.1: whe"):
        choose_tower(holder(**parts, blocks=branches))


def test_a_list_of_towers_is_no_list_of_blocks() -> None:
    """Two of timm's that pool by attention: each looks like a block with attention and a norm."""
    make = timm_vit(class_token=False, global_pool="map")
    model = nn.ModuleList([make(), make()])
    towers = find_towers(model)
    assert [(t.path, t.blocks_path) for t in towers] == [("0", "0.blocks"), ("1", "1.blocks")]


def test_stages_of_several_widths_are_no_row_of_blocks() -> None:
    stages = nn.Sequential(*(nn.Sequential(Block(w), Block(w)) for w in (WIDTH, 64)))
    with pytest.raises(TowerNotFoundError, match="hierarchical tower"):
        choose_tower(holder(embed=embed(), stages=stages))


def test_a_patch_embedding_that_pads_is_refused() -> None:
    """As VitPose's: all maps would lie two pixels off."""
    padded = nn.Conv2d(3, WIDTH, SIDE, stride=SIDE, padding=2)
    with pytest.raises(TowerNotFoundError, match=r"embed pads its pictures by \(2, 2\)"):
        choose_tower(holder(embed=padded, blocks=blocks()))
    same = nn.Conv2d(3, WIDTH, SIDE, stride=SIDE, padding="valid")
    assert choose_tower(holder(embed=same, blocks=blocks())).blocks_path == "blocks"


def test_blocks_on_maps_are_refused_with_the_reason() -> None:
    with pytest.raises(TowerNotFoundError, match=r"within windows of maps \(blocks, as SAM's\)"):
        choose_tower(holder(embed=embed(), blocks=blocks(kind=WindowBlock)))


def _timm_sam() -> nn.Module:
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    return cast(
        "nn.Module",
        VisionTransformerSAM(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2),
    )


def _hf_sam() -> nn.Module:
    from transformers import SamVisionConfig, SamVisionModel

    config = SamVisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        output_channels=8,
        global_attn_indexes=[1],
        window_size=2,
    )
    return SamVisionModel(config)


@pytest.mark.parametrize("build", [_timm_sam, _hf_sam])
def test_sam_is_refused(build: Callable[[], nn.Module]) -> None:
    with pytest.raises(TowerNotFoundError, match="as SAM's"):
        choose_tower(build())


_TIMM: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": WIDTH,
    "depth": 4,
    "num_heads": 4,
    "num_classes": 5,
}
Make = Callable[..., DepthHead]


def run_head(host: nn.Module, context: str, make_head: Make) -> Any:
    levels: dict[str, Any] = {"semantic_levels": (4, 3, 2, 1), "structural_levels": (2, 1, 0)}
    head = make_head(host, context=context, **levels)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), attach(host, head) as plugin, plugin.capture() as seen:
        host(x)
        return x, seen[-1].features


def test_distilled_vit_has_no_pooled_vector(make_head: Make) -> None:
    from timm.models.deit import VisionTransformerDistilled

    torch.manual_seed(0)
    make: Any = VisionTransformerDistilled
    host = make(**_TIMM).eval()
    (tower,) = find_towers(host)
    assert (tower.family, tower.num_prefix_tokens) == ("timm", 2)
    assert tower.contexts == ("cls", "mean")
    _, features = run_head(host, "cls", make_head)
    assert features.levels[4].shape == (2, 16, WIDTH)


@pytest.mark.parametrize("pool", ["token", "avg", ""])
def test_cait_has_no_prefix_and_its_own_pooled_vector(pool: str, make_head: Make) -> None:
    from timm.models.cait import Cait

    torch.manual_seed(0)
    host: Any = Cait(**{**_TIMM, "num_classes": 0 if not pool else 5}, global_pool=pool).eval()
    (tower,) = find_towers(host)
    assert (tower.family, tower.num_prefix_tokens, tower.blocks_path) == ("timm", 0, "blocks")
    assert tower.contexts == (("pooled", "mean") if pool else ("mean",))
    x, features = run_head(host, tower.contexts[0], make_head)
    with torch.no_grad():
        expected = host.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        pooled = host.forward_head(host.forward_features(x), pre_logits=True)
    for level, tokens in enumerate(expected, start=1):
        torch.testing.assert_close(features.levels[level], tokens, rtol=0, atol=1e-6)
    if pool:
        torch.testing.assert_close(features.context, pooled, rtol=0, atol=1e-6)
