"""What attach refuses: heads that do not fit, and hosts with several towers or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach, find_towers
from clipdepth_plugin.adapters.identity import tower_hashes
from clipdepth_plugin.config import Provenance
from clipdepth_plugin.errors import (
    HeadMismatchError,
    HostError,
    TowerNotFoundError,
)
from tests.tiny.heads import with_config

MakeHost = Callable[[str], nn.Module]
MakeHead = Callable[..., DepthHead]
MakePixels = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, r"reads width 48, the tower has 32"),
        ({"semantic_levels": (5, 3, 2, 1)}, r"reads level 5, the tower has levels 0 to 4"),
    ],
    ids=["width", "level"],
)
def test_head_that_does_not_fit(
    changes: dict[str, Any], message: str, host: nn.Module, head: DepthHead
) -> None:
    with pytest.raises(HeadMismatchError, match=message):
        attach(host, with_config(head, **changes))
    assert not any(module._forward_hooks for module in host.modules())


@pytest.mark.parametrize(
    "odd", ["demo", None, 3, nn.Linear(2, 2)], ids=["name", "none", "int", "module"]
)
def test_what_is_no_head(odd: Any, host: nn.Module) -> None:
    with pytest.raises(HeadMismatchError, match=r"the head is .* load_head\('demo'\)"):
        attach(host, odd)


@pytest.mark.parametrize(
    "odd", [None, "openai/clip-vit-base-patch16", nn.Linear], ids=["none", "name", "class"]
)
def test_what_is_no_host(odd: Any, head: DepthHead) -> None:
    with pytest.raises(HostError, match=r"the host is .*expected the model itself"):
        attach(odd, head)


@pytest.mark.parametrize("odd", ["x", 3, lambda image: image], ids=["str", "int", "function"])
def test_what_is_no_processor(odd: Any, host: nn.Module, head: DepthHead) -> None:
    with pytest.raises(HostError, match=r"the processor is .*expected the host's image processor"):
        attach(host, head, processor=odd)
    assert not any(module._forward_hooks for module in host.modules())


def test_context_that_the_tower_does_not_have(make_host: MakeHost, make_head: MakeHead) -> None:
    host = make_host("paligemma")
    with pytest.raises(HeadMismatchError, match="'pooled' context, this tower has 'mean'"):
        attach(host, make_head(host, context="pooled"))
    attach(host, make_head(host, context="pooled", film=False)).detach()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_recorded_tower_weights(
    dtype: torch.dtype, host: nn.Module, head: DepthHead, caplog: pytest.LogCaptureFixture
) -> None:
    (tower,) = find_towers(host)
    provenance = Provenance(tower="the right one", tower_hashes=tower_hashes(tower))
    recorded = with_config(head, provenance=provenance)
    attach(host.to(dtype), recorded).detach()
    assert not caplog.records
    with torch.no_grad():
        next(tower.blocks[1].parameters())[0] += 1
    with pytest.raises(HeadMismatchError, match="trained on the right one; the weights of"):
        attach(host, recorded)
    attach(host.to("meta"), recorded).detach()
    assert "cannot check" in caplog.text


@pytest.mark.parametrize("loaded", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_tower_in_another_dtype(
    stored: torch.dtype,
    loaded: torch.dtype,
    host: nn.Module,
    head: DepthHead,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tower,) = find_towers(host)
    with torch.no_grad():
        next(tower.blocks[0].parameters()).flatten()[0] = 3e-6  # subnormal in float16
    recorded = with_config(head, provenance=Provenance(tower_hashes=tower_hashes(tower)))
    attach(host.to(stored).to(loaded), recorded).detach()
    assert not caplog.records


def test_a_tower_trained_further_is_another_one(
    host: nn.Module, head: DepthHead, caplog: pytest.LogCaptureFixture
) -> None:
    """Even by less than half precision could tell; an argument takes it all the same."""
    (tower,) = find_towers(host)
    origin = Provenance(tower="the first one", tower_hashes=tower_hashes(tower))
    recorded = with_config(head, provenance=origin)
    weight = next(tower.blocks[2].parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(torch.nextafter(weight, torch.zeros(())))
    assert torch.isclose(weight.bfloat16(), before.bfloat16(), rtol=0, atol=0).float().mean() > 0.99
    with pytest.raises(HeadMismatchError, match=r"other_tower=True \(--other-tower\) takes it"):
        attach(host, recorded)
    with attach(host, recorded, other_tower=True):
        assert "trained on the first one; the weights of" in caplog.text


class _Adapted(nn.Linear):
    """As PEFT's LoRA: the layer of before and two small ones."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(1, 1)
        del self.weight, self.bias
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.lora_B["default"](self.lora_A["default"](x))
        return cast("Tensor", self.base_layer(x)) + update


def test_lora_is_not_the_towers_weights(
    make_host: MakeHost, make_head: MakeHead, caplog: pytest.LogCaptureFixture
) -> None:
    host = make_host("hf_siglip_vision")
    (tower,) = find_towers(host)
    recorded = with_config(make_head(host), provenance=Provenance(tower_hashes=tower_hashes(tower)))
    attention: Any = tower.blocks[0].get_submodule("self_attn")
    attention.q_proj = _Adapted(attention.q_proj)
    attach(host, recorded).detach()
    assert "has LoRA weights that it had not when the head was trained" in caplog.text
    caplog.clear()
    (adapted,) = find_towers(host)
    trained_so = with_config(recorded, provenance=Provenance(tower_hashes=tower_hashes(adapted)))
    attach(host, trained_so).detach()
    assert not caplog.records
    base = attention.q_proj.base_layer
    attention.q_proj = base
    with pytest.raises(HeadMismatchError, match="the weights of"):
        attach(host, trained_so)  # its LoRA is gone
    attention.q_proj = _Adapted(base)
    with torch.no_grad():
        base.weight += 1
    with pytest.raises(HeadMismatchError, match="the weights of"):
        attach(host, recorded)


def test_hash_does_not_depend_on_names_or_order(host: nn.Module) -> None:
    (tower,) = find_towers(host)
    before = tower_hashes(tower)
    block = tower.blocks[0]
    block._modules = dict(reversed(block._modules.items()))
    assert tower_hashes(tower) == before


class TwoTowers(nn.Module):
    """As in OpenVLA: two towers in one backbone."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"featurizer": first, "fused_featurizer": second})


def test_several_towers(make_host: MakeHost, make_head: MakeHead, make_pixels: MakePixels) -> None:
    host = TwoTowers(make_host("timm"), make_host("timm_siglip"))
    with pytest.raises(TowerNotFoundError, match=r"2 vision towers; choose one with tower="):
        make_head(host)
    with pytest.raises(TowerNotFoundError, match=r"no vision tower at 'backbone.nosuch'.*Found: "):
        make_head(host, tower="backbone.nosuch")
    for path in ("backbone.fused_featurizer", "backbone.fused_featurizer.blocks"):
        head = make_head(host, tower=path)
        with attach(host, head, tower=path) as plugin:
            assert plugin.tower.path == "backbone.fused_featurizer"
            host.backbone["fused_featurizer"](make_pixels())
            assert plugin.depth.shape == (2, 1, 32, 32)


def test_same_head_twice_and_two_heads(
    host: nn.Module, head: DepthHead, make_head: MakeHead, make_pixels: MakePixels
) -> None:
    other = make_head(host, structural=False)
    with attach(host, head) as first:
        with pytest.raises(HeadMismatchError, match="attached to 'this tower' already"):
            attach(host, head)
        with attach(host, other) as second, torch.no_grad():
            host(make_pixels())
            assert not torch.allclose(first.depth, second.depth)
            expected = first.depth, second.depth
            first(make_pixels(seed=3))
            second(make_pixels(seed=4))
            assert torch.equal(first.depth, expected[0])  # each leaves the other's alone
            assert torch.equal(second.depth, expected[1])
        host(make_pixels(seed=2))
        assert first.depth.shape == (2, 1, 32, 32)
    with attach(host, head) as again:
        assert again.attached
