"""TokenLayout rules: what they make of a tower's call, and what they refuse."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import transformers
from einops import rearrange
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach, find_towers
from clipdepth_plugin.adapters.clips import ClipRule
from clipdepth_plugin.adapters.families.hf_given_places import GivenPlacesRule
from clipdepth_plugin.adapters.families.hf_minicpmv import StripRule
from clipdepth_plugin.adapters.families.hf_mllama import MllamaRule
from clipdepth_plugin.adapters.families.hf_molmo2 import CropRule
from clipdepth_plugin.adapters.families.hf_pixtral import PixtralRule
from clipdepth_plugin.adapters.families.hf_qwen import QwenRule
from clipdepth_plugin.adapters.families.hf_radio import RadioRule
from clipdepth_plugin.adapters.families.hf_siglip import NaflexRule
from clipdepth_plugin.adapters.layout_rules import POSITIONS, LayoutRule, TowerCall
from clipdepth_plugin.adapters.layouts import ViewTokens
from clipdepth_plugin.adapters.plain import PlainRule
from clipdepth_plugin.adapters.rotary import check_positions
from clipdepth_plugin.adapters.towers import choose_tower
from clipdepth_plugin.arguments import Size
from clipdepth_plugin.errors import NoDepthError, TowerNotFoundError
from tests.tiny.case import VISION, library_names
from tests.tiny.hf_towers import make
from tests.tiny.packed import PACKED

MakeHead = Callable[..., DepthHead]
IDEFICS2 = next(case for case in PACKED if case.name == "idefics2")

CALLS: dict[str, tuple[LayoutRule, TowerCall, str]] = {
    "qwen without a grid": (
        QwenRule((8, 8), 2, 2, None),
        TowerCall({}, (8, 3, 2, 8, 8), (8, 32, 1, 1, 1)),
        "was not given grid_thw",
    ),
    "qwen without positions": (
        QwenRule((8, 8), 2, 2, None),
        TowerCall({"grid_thw": torch.tensor([[1, 2, 4]])}, (8, 3, 2, 8, 8), (8, 32, 1, 1, 1)),
        "get no position_embeddings",
    ),
    "qwen with half squares": (
        QwenRule((8, 8), 2, 2, None),
        TowerCall({"grid_thw": torch.tensor([[1, 3, 4]])}, (12, 3, 2, 8, 8), (12, 32, 1, 1, 1)),
        "is not made of squares of",
    ),
    "naflex whose mask and shapes differ": (
        NaflexRule((8, 8)),
        TowerCall(
            {
                "spatial_shapes": torch.tensor([[2, 2]]),
                "pixel_attention_mask": torch.tensor([[1, 1, 1, 0, 1]]),
            },
            (1, 5, 192),
            (1, 5, 32),
        ),
        "does not keep just the first",
    ),
    "naflex of another length": (
        NaflexRule((8, 8)),
        TowerCall({"spatial_shapes": torch.tensor([[2, 2]] * 2)}, (1, 5, 192), (1, 5, 32)),
        "has 2 entries for 1 pictures",
    ),
    "pixtral larger than its pixels": (
        PixtralRule((8, 8)),
        TowerCall({"image_sizes": [(32, 40)]}, (1, 3, 32, 32), (1, 32, 4, 4)),
        "do not fit 1 pictures padded to 32 x 32",
    ),
    "mllama's padding alone": (
        MllamaRule(),
        TowerCall(
            {"aspect_ratio_mask": torch.tensor([[[1, 0]]]), "aspect_ratio_ids": torch.zeros(1, 1)},
            (2, 3, 32, 32),
            (2, 32, 4, 4),
        ),
        "padding alone: there is no view",
    ),
    "patches as pictures": (
        PlainRule(0, False, (8, 8), ("pixel_values", "patch_attention_mask")),
        TowerCall({}, (1, 3, 8, 400), (1, 32, 1, 50)),
        "were cut before",
    ),
    "patches as pictures, and something beside them": (
        PlainRule(0, False, (8, 8), ("pixels", "image_shapes"), needs_more=True),
        TowerCall({}, (1, 3, 8, 128), (1, 32, 1, 16)),
        "were cut before",
    ),
    "a packing that is not known": (
        PlainRule(0, False, (8, 8), ("pixel_values", "target_sizes")),
        TowerCall({"target_sizes": torch.tensor([[2, 2]])}, (1, 3, 16, 16), (1, 32, 2, 2)),
        "was given target_sizes, which says how",
    ),
}


CALLS |= {
    "frames that make no clips": (
        ClipRule((8, 8), 1, tokens="frames last", frames=4, clips=True),
        TowerCall({}, (6, 3, 32, 32), (6, 32, 4, 4)),
        "was given 6 frames: no clips of 4",
    ),
    "radio of other patches": (
        RadioRule((8, 8), 5),
        TowerCall({"image_grid_hw": torch.tensor([[2, 3]])}, (7, 192), (1, 12, 32)),
        "does not account for 7 patches",
    ),
    "places that leave a hole": (
        GivenPlacesRule((8, 8), "pixel_position_ids"),
        TowerCall(
            {"pixel_position_ids": torch.tensor([[[0, 0], [1, 0], [0, 1], [-1, -1]]])},
            (1, 4, 192),
            (1, 4, 32),
        ),
        "do not fill a grid of 2 x 2",
    ),
    "a place twice": (
        GivenPlacesRule((8, 8), "pixel_position_ids"),
        TowerCall(
            {"pixel_position_ids": torch.tensor([[[0, 0], [1, 0], [1, 0]]])},
            (1, 3, 192),
            (1, 3, 32),
        ),
        "do not fill a grid of 1 x 2",
    ),
    "places of other patches": (
        GivenPlacesRule((8, 8), "flattened_patches"),
        TowerCall({"flattened_patches": torch.zeros(1, 3, 194)}, (1, 4, 192), (1, 4, 32)),
        "does not say the places of 1 x 4 patches",
    ),
    "places of padding alone": (
        GivenPlacesRule((8, 8), "flattened_patches"),
        TowerCall({"flattened_patches": torch.zeros(1, 3, 194)}, (1, 3, 192), (1, 3, 32)),
        "padding alone",
    ),
    "crops of another size": (
        CropRule((8, 8), (4, 4)),
        TowerCall({}, (2, 9, 192), (2, 9, 32)),
        "crops of 9 patches, where the tower's have 4 x 4",
    ),
    "a strip of other pictures": (
        StripRule((8, 8)),
        TowerCall({"target_sizes": torch.tensor([[2, 2]])}, (1, 3, 8, 40), (1, 32, 1, 5)),
        "do not account for the patches",
    ),
    "a strip that nobody cut": (
        StripRule((8, 8)),
        TowerCall({}, (1, 3, 8, 40), (1, 32, 1, 5)),
        "was not given target_sizes",
    ),
    "squares that do not fit their picture": (
        QwenRule((8, 8), 1, 1, None),
        TowerCall(
            {"grid_thw": torch.tensor([[1, 2, 3]]), "merge_sizes": torch.tensor([2])},
            (6, 192),
            (6, 32),
        ),
        "is not made of squares",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_are_not_understood(name: str) -> None:
    rule, call, message = CALLS[name]
    with pytest.raises(NoDepthError, match=message):
        rule.resolve(call)


_GROUPS: dict[str, Any] = {
    "depths": [2, 2],
    "num_output_groups": [4, 2],
    "num_group_tokens": [4, 2],
}
_SEGGPT = {"merge_index": 0, "intermediate_hidden_state_indices": [1, 2, 3]}


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("ViTMAEModel", {"decoder_hidden_size": 32}, "shuffles its patches"),
        ("GroupViTVisionModel", _GROUPS, r"own \(encoder\.stages\.0\.group_token"),
        ("ViltModel", {}, r"read words, too \(input_ids\)"),
        (
            "RfDetrDinov2Backbone",
            {"num_windows": 2},
            r"within windows of a picture \(encoder\.layer, num_windows 2",
        ),
        ("SegGptModel", _SEGGPT, "once for each of pixel_values, prompt_pixel_values"),
    ],
)
def test_towers_that_are_refused(model: str, options: dict[str, Any], message: str) -> None:
    if model not in library_names():
        pytest.skip(f"transformers {transformers.__version__} lacks {model}")
    with pytest.raises(TowerNotFoundError, match=message):
        choose_tower(make(model, **{**VISION, **options}))


class _OfPatches(nn.Module):
    """A tower of a made-up kind, whose stem gives tokens in an order of its own."""

    def __init__(self, stem: nn.Module, **said: Any) -> None:
        super().__init__()
        vars(self).update(said)
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
        self.patch_embed = stem
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    "host",
    [
        _OfPatches(nn.Conv3d(3, 32, (2, 8, 8), (2, 8, 8))),
        _OfPatches(nn.Linear(192, 32), patch_size=8),
        _OfPatches(nn.Linear(192, 32), patch_size=[8, 8]),
    ],
    ids=["tubelets", "flattened patches", "sides as a list"],
)
def test_an_order_that_nobody_proved_is_refused(host: nn.Module) -> None:
    with pytest.raises(TowerNotFoundError, match="in an order that no adapter knows"):
        choose_tower(host)


# --- what padding is not ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask[1, 1:, 1:].fill_(0), "are no rectangle"),
        (lambda mask: mask[1].fill_(0), "view 1 is padding alone"),
    ],
)
def test_masks_that_make_no_map(
    change: Callable[[Tensor], Any], message: str, make_head: MakeHead
) -> None:
    host = IDEFICS2.host()
    tower: Any = find_towers(host)[0].module
    mask_Bhw = torch.ones(2, 4, 4, dtype=torch.bool)
    change(mask_Bhw)
    with torch.no_grad(), attach(host, make_head(host, context="mean")) as plugin:
        try:
            tower(torch.randn(2, 3, 32, 32), patch_attention_mask=mask_Bhw)
        except RuntimeError:  # transformers 4 counts patches along two edges
            assert transformers.__version__.startswith("4.")
            pytest.skip("transformers 4 itself takes no mask that is no rectangle")
        with pytest.raises(NoDepthError, match=message):
            _ = plugin.depth


def qwen_positions(grid: Size, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a grid's rows and columns, all computed in one dtype."""
    speed_C = (1e4 ** -(torch.arange(0, 40, 2) / 40)).to(dtype)
    angles_SC = torch.outer(torch.arange(max(grid)).to(dtype), speed_C)
    y_hw, x_hw = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    angles_NC = torch.cat([angles_SC[y_hw.flatten()], angles_SC[x_hw.flatten()]], dim=1)
    return angles_NC.cos(), angles_NC.sin()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(4, 6), (1, 8), (26, 36), (140, 200)], ids=str)
def test_positions_prove_an_order_in_every_precision(dtype: torch.dtype, grid: Size) -> None:
    """As Qwen-VL's blocks get them, where older releases compute them in the host's own dtype."""
    h, w = grid
    call = TowerCall({POSITIONS: qwen_positions(grid, dtype)}, (), ())
    in_order_N = torch.arange(h * w)
    exchanged_N = in_order_N.clone()
    exchanged_N[[1, -2]] = in_order_N[[-2, 1]]
    wrong = [in_order_N.flip(0), exchanged_N]
    if h > 1:
        wrong += [in_order_N.roll(w), rearrange(in_order_N, "(h w) -> (w h)", h=h)]
    for rows_N, right in ((in_order_N, True), *((one, False) for one in wrong)):
        view = ViewTokens(grid, grid, rows_N, lambda pixels: pixels)
        with contextlib.nullcontext() if right else pytest.raises(NoDepthError, match="not those"):
            check_positions(call, [view])


@pytest.mark.parametrize(("grid", "proven"), [((257, 2), True), ((258, 2), False)], ids=str)
def test_bfloat16_positions_tell_so_many_rows(grid: Size, *, proven: bool) -> None:
    """The order is right in both: the second is refused for what it is."""
    call = TowerCall({POSITIONS: qwen_positions(grid, torch.bfloat16)}, (), ())
    view = ViewTokens(grid, grid, torch.arange(grid[0] * grid[1]), lambda pixels: pixels)
    message = "bfloat16 positions do not tell more than 257 rows or columns apart"
    with contextlib.nullcontext() if proven else pytest.raises(NoDepthError, match=message):
        check_positions(call, [view])


def test_unfinished_patches_belong_to_the_picture(make_head: MakeHead) -> None:
    """Pixels beyond the last whole patch: a map has them where its picture reaches them."""
    host = IDEFICS2.host()
    head = make_head(host, context="mean")
    mask_Bhw = torch.ones(2, 4, 4, dtype=torch.bool)
    mask_Bhw[1, :, 2:] = False
    with torch.no_grad(), attach(host, head) as plugin:
        depths = plugin(torch.randn(2, 3, 35, 33), patch_attention_mask=mask_Bhw)
    assert [tuple(x.shape) for x in depths] == [(1, 35, 33), (1, 35, 16)]


# --- masks whose sense their names tell, or do not ----------------------------------------------


class _PaddedTower(nn.Module):
    """A tower of torch's own layers, told of padding in torch's convention: True is ignored."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        mask_BN = None if key_padding_mask is None else key_padding_mask.flatten(1)
        tokens_BND = self.patch(x).flatten(2).transpose(1, 2)
        return cast("Tensor", self.encoder(tokens_BND, src_key_padding_mask=mask_BN))


@pytest.mark.parametrize(("padded_rows", "height"), [(2, 48), (0, 64)])
def test_torchs_padding_masks_say_what_to_leave_out(
    padded_rows: int, height: int, make_head: MakeHead
) -> None:
    torch.manual_seed(0)
    host = _PaddedTower().eval()
    mask_Bhw = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask_Bhw[:, 8 - padded_rows :] = True
    with torch.no_grad(), attach(host, make_head(host, context="mean")) as plugin:
        host(torch.randn(2, 3, 64, 64), key_padding_mask=mask_Bhw)
        assert plugin.depth.shape == (2, 1, height, 64)


_FIRST = torch.tensor([[True, False], [True, False]])[None]  # of a grid of 2 x 2, the left column
_CUT, _WHOLE = (16, 8), (16, 16)


@pytest.mark.parametrize(
    ("name", "mask", "expected"),
    [
        *((name, _FIRST, _CUT) for name in ("patch_attention_mask", "pixel_attention_mask")),
        *((name, _FIRST.long(), _CUT) for name in ("pixel_mask", "attention_mask")),
        *((name, ~_FIRST, _CUT) for name in ("src_key_padding_mask", "padding_mask")),
        ("key_padding_mask", torch.zeros(1, 4), _WHOLE),
        ("key_padding_mask", torch.full((1, 4), -torch.inf), "which leaves parts out: what is"),
        ("attention_mask", torch.zeros(1, 1, 4, 4), "which leaves parts out: what is added"),
        ("key_padding_mask", torch.ones(1, 2, 2, dtype=torch.bool), "padding alone"),
        ("attention_mask", torch.ones(1, 5).long(), _WHOLE),
        ("attention_mask", torch.tensor([[1, 1, 1, 1, 0]]), r"understands masks of \(1, 2, 2\)"),
        ("masks", _FIRST, "given masks of shape .* not known which patches that marks"),
        ("attn_mask", torch.zeros(4, 4), "given attn_mask .* not known which patches"),
        ("masks", torch.ones(1, 2, 2, dtype=torch.bool), _WHOLE),
        ("return_masks", False, _WHOLE),
    ],
)
def test_only_masks_of_a_known_sense_are_read(
    name: str, mask: Tensor | bool, expected: Size | str
) -> None:
    rule = PlainRule(0, False, (8, 8), ("pixel_values", name))
    call = TowerCall({name: mask}, (1, 3, 16, 16), (1, 32, 2, 2))
    if isinstance(expected, str):
        with pytest.raises(NoDepthError, match=expected):
            rule.resolve(call)
    else:
        assert [views.pixel_size for views in rule.resolve(call).views] == [expected]
