"""A new head's level norms begin with the scale and shift of the tokens it will see."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import nn

from clipdepth_plugin import DepthHead
from clipdepth_plugin.training.batches import FeatureBatch
from clipdepth_plugin.training.config import TrainConfig
from clipdepth_plugin.training.engine import train
from clipdepth_plugin.training.level_norms import init_level_norms
from clipdepth_plugin.training.session import Session, open_session
from tests.training.conftest import TinyRuns

FAST: dict[str, Any] = {"preset": "fast", "options": {"channels": [8, 8, 8], "film_hidden": 8}}
LOSS: dict[str, Any] = {"auxiliary": []}


def tokens(session: Session, norm: nn.Module, level: int) -> torch.Tensor:
    """(M, D): a level of all of an epoch's batches behind its norm."""
    batches = [one.features.levels[level] for one in session.train.batches(0)]
    with torch.no_grad():
        normed: torch.Tensor = norm(torch.cat(batches).flatten(0, 1))
    return normed


def head_of(session: Session) -> DepthHead:
    head = session.context.accelerator.unwrap_model(session.model).head
    assert isinstance(head, DepthHead)
    return head


def norms_of(session: Session) -> list[tuple[int, nn.LayerNorm]]:
    return [
        (level, norm)
        for level, same in head_of(session).decoder.level_norms().items()
        for norm in same
    ]


def test_each_channel_has_mean_0_and_deviation_1(tiny: TinyRuns) -> None:
    """Of all three batches, which are fewer than the 64 pictures that it takes by default."""
    session = open_session(tiny.config("run", head=FAST, loss=LOSS))
    norms = norms_of(session)
    assert len(norms) == 7
    for level, norm in norms:
        x_MD = tokens(session, norm, level)
        torch.testing.assert_close(x_MD.mean(0), torch.zeros(16), rtol=0, atol=1e-3)
        torch.testing.assert_close(x_MD.std(0, correction=0), torch.ones(16), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("pictures", "of"), [(2, 1), (3, 2), (4, 2)])
def test_so_many_pictures_are_read_in_whole_batches(tiny: TinyRuns, pictures: int, of: int) -> None:
    whole = open_session(tiny.config("whole", head=FAST, loss=LOSS))
    head = {**FAST, "norm_init_pictures": pictures}
    session = open_session(tiny.config("run", head=head, loss=LOSS))
    (level, norm), (_, other) = norms_of(session)[0], norms_of(whole)[0]
    assert not torch.equal(norm.weight, other.weight)
    x_MD = tokens(session, norm, level)
    seen_MD = x_MD[: of * x_MD.shape[0] // 3]
    torch.testing.assert_close(seen_MD.mean(0), torch.zeros(16), rtol=0, atol=1e-3)


def test_none_are_read_where_none_are_asked_for(tiny: TinyRuns) -> None:
    head = {**FAST, "norm_init_pictures": 0}
    session = open_session(tiny.config("run", head=head, loss=LOSS))
    for _, norm in norms_of(session):
        assert bool((norm.weight == 1).all())
        assert not bool(norm.bias.any())


def test_a_channel_that_never_varies_is_not_blown_up(tiny: TinyRuns) -> None:
    """Tokens that are all alike have no deviation at all."""

    class Alike:
        def __len__(self) -> int:
            return 1

        def batches(self, epoch: int, start: int = 0) -> Generator[FeatureBatch]:
            for batch in source.batches(epoch, start):
                for x_BND in batch.features.levels.values():
                    x_BND.copy_(torch.arange(16.0))
                yield batch

    session = open_session(tiny.config("run", head={**FAST, "norm_init_pictures": 0}, loss=LOSS))
    source = session.train
    init_level_norms(head_of(session), Alike(), 2, session.context.accelerator)
    with torch.no_grad():
        for _, norm in norms_of(session):
            assert bool((norm.weight <= 1e3).all())
            assert bool((norm(torch.arange(16.0)).abs() < 1e-2).all())


def test_a_saved_head_keeps_its_norms(tiny: TinyRuns) -> None:
    saved = train(tiny.config("saved", head=FAST, loss=LOSS, ema=None)).head
    session = open_session(tiny.config("on", head={"init": str(saved)}, loss=LOSS))
    head = head_of(session)
    weights = DepthHead.from_pretrained(saved).state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in head.state_dict().items())


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tiny: TinyRuns) -> None:
    config: TrainConfig = tiny.config("run", head=FAST, loss=LOSS)
    train(config)
    whole = tiny.losses("run")
    (tiny.folder / "run" / "checkpoints" / "step-00000006.safetensors").unlink()
    train(config, resume=True)
    assert tiny.losses("run") == whole
