"""Towers of vLLM's own layers, in the real engine: found, read right, and not touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipdepth_plugin import DepthHead, attach
from clipdepth_plugin.adapters.towers import choose_tower
from tests.vllm.engines import answers, engine, forget, host_of, picture, prompt, slope
from tests.vllm.models import DEPTH, MODELS, PATCH, WIDTH, Model


def head_for(host: nn.Module) -> DepthHead:
    """A head that reads every level."""
    torch.manual_seed(1)
    levels: dict[str, Any] = {"semantic_levels": (4, 3, 2, 1), "structural_levels": (2, 1, 0)}
    small: dict[str, Any] = {"channels": (8, 8, 8, 8), "film_hidden": 8}
    return DepthHead.for_host(host, "spaceclip", context="mean", **levels, **small).eval()


@pytest.mark.parametrize("model", MODELS, ids=lambda one: one.name)
def test_tower(model: Model, tmp_path: Path) -> None:
    """Found; outputs bit for bit the same; each level is the block's own, each token in its place.

    One engine for all of it, as each takes most of a minute to start.
    """
    with engine(model, tmp_path, mm_processor_cache_gb=0) as llm:
        host = host_of(llm)
        tower = choose_tower(host)
        assert (tower.path, tower.family) == (model.tower, model.family)
        assert (tower.depth, tower.width, tower.patch_size) == (DEPTH, WIDTH, (PATCH, PATCH))
        prompts = [
            prompt(model, picture(1, (64, 48)), picture(2, (32, 64))),
            prompt(model),
            prompt(model, picture(3, (48, 48))),
        ]
        before, state = answers(llm, prompts), set(host.state_dict())
        forwards = [name for name, one in host.named_modules() if "forward" in vars(one)]
        head = head_for(host)
        forget(llm)
        with attach(host, head) as plugin, plugin.capture() as seen:
            assert answers(llm, prompts) == before
            maps = [one for each in seen for one in each.depths]
        assert len(maps) == 3 or (len(maps) > 3 and model.tiles)
        assert all(bool(one.isfinite().all()) for one in maps)
        forget(llm)
        with _Outputs(tower) as outputs, attach(host, head) as plugin, plugin.capture() as seen:
            answers(llm, [prompts[2]])
            rows = _rows(seen[-1])
            for level in range(1, DEPTH + 1):
                for views, x_BND in rows[level]:
                    made = outputs[level - 1].reshape(-1, WIDTH)
                    found = (x_BND.reshape(-1, 1, WIDTH) == made[None]).all(-1).any(-1)
                    assert bool(found.all()), (level, views)
        assert set(host.state_dict()) == state
        own = [name for name, one in host.named_modules() if "forward" in vars(one)]
        assert own == forwards
        _check_places(llm, host, model, head)


def _rows(one: Any) -> dict[int, list[tuple[Any, Tensor]]]:
    return {
        level: [
            (views, batch.levels[level])
            for batch, views in zip(one.batches, one.views, strict=True)
        ]
        for level in range(DEPTH + 1)
    }


class _Outputs:
    """Each block's own output, by its class's forward."""

    def __init__(self, tower: Any) -> None:
        self._blocks = tower.blocks
        self._kind = type(tower.blocks[0])
        self._plain = self._kind.forward

    def __enter__(self) -> list[Tensor]:
        made: list[Tensor] = [torch.empty(0)] * len(self._blocks)
        plain, blocks = self._plain, self._blocks

        def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
            x = plain(block, *args, **kwargs)
            own = x[0] if isinstance(x, tuple) else x
            made[[one is block for one in blocks].index(True)] = own.clone()
            return x

        self._kind.forward = forward
        return made

    def __exit__(self, *_: object) -> None:
        self._kind.forward = self._plain


def _check_slope(tokens_hwC: Tensor) -> float:
    """Red grows with the row alone, green with the column alone; returns the blue, the same all."""
    red_hw, green_hw, blue_hw = tokens_hwC[..., :3].unbind(-1)
    for along_hw in (red_hw, green_hw.T):
        assert bool((along_hw.diff(dim=0) > 0.05).all())
        assert float((along_hw - along_hw.mean(dim=1, keepdim=True)).abs().max()) < 0.02
    assert float((blue_hw - blue_hw.mean()).abs().max()) < 0.02
    return float(blue_hw.mean())


def _check_places(llm: Any, host: nn.Module, model: Model, head: DepthHead) -> None:
    """The coordinate test: tokens are their patches' mean colours, in every level."""
    tower = choose_tower(host)
    for parameter in tower.module.parameters():
        nn.init.zeros_(parameter)
    weight: Any = next(iter(tower.patch_embed.parameters()))
    for channel in range(3):
        nn.init.constant_(weight.data[channel, channel], 1 / weight[0, 0].numel())
    for name in model.norms:
        setattr(tower.module, name, nn.Identity())
    forget(llm)
    with attach(host, head, other_tower=True) as plugin, plugin.capture() as seen:
        answers(llm, [prompt(model, slope((64, 48), 10), slope((48, 64), 200))])
        blues = []  # of each view in turn
        for one in seen:
            for batch in one.batches:
                for index in range(batch.batch):
                    levels = [x_BND[index] for x_BND in batch.levels.values()]
                    found = [_check_slope(x.unflatten(0, batch.grid)) for x in levels]
                    assert len(found) == DEPTH + 1
                    assert max(found) - min(found) < 0.02
                    blues.append(found[0])
        assert len(blues) == 2 or (len(blues) > 2 and model.tiles)
        assert blues == sorted(blues)
        assert blues[-1] - blues[0] > 0.5
