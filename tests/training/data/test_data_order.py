"""The order of an epoch: complete, seeded, and the same however it is split up."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from clipdepth_plugin.data import EpochPlan
from clipdepth_plugin.data.order import Draw, EpochOrder, repeats_of


def order(counts: list[int], repeats: list[float] | None = None, **options: Any) -> EpochOrder:
    plan = EpochPlan(**{"batch_size": 2, "seed": 0, "epoch": 0, **options})
    return EpochOrder(plan, counts, repeats)


def draws(batches: EpochOrder) -> list[Draw]:
    return list(itertools.chain.from_iterable(batches))


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 40),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
    seed=st.integers(0, 3),
)
def test_processes_see_the_batches_of_one(
    count: int, batch_size: int, world_size: int, drop_last: bool, seed: int
) -> None:
    common: dict[str, Any] = {"drop_last": drop_last, "seed": seed}
    whole = order([count], batch_size=batch_size * world_size, **common)
    parts = [
        list(order([count], batch_size=batch_size, rank=rank, world_size=world_size, **common))
        for rank in range(world_size)
    ]
    joined = [
        [draw for part in parts if i < len(part) for draw in part[i]] for i in range(len(whole))
    ]
    assert joined == list(whole)
    if drop_last:
        assert {len(part) for part in parts} == {count // (batch_size * world_size)}
    else:
        assert sorted(draw.index for draw in draws(whole)) == list(range(count))


@settings(deadline=None, max_examples=30)
@given(count=st.integers(0, 30), start=st.integers(0, 12), epoch=st.integers(0, 3))
def test_going_on_gives_the_rest(count: int, start: int, epoch: int) -> None:
    whole = order([count], epoch=epoch, drop_last=False)
    rest = order([count], epoch=epoch, drop_last=False, start_batch=start)
    assert list(rest) == list(whole)[start:]
    assert len(rest) == max(len(whole) - start, 0)


def test_seed_and_epoch_make_the_order() -> None:
    orders = [draws(order([50], seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert draws(order([50])) == orders[0]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert draws(order([5], shuffle=False, drop_last=False)) == [Draw(i, 0) for i in range(5)]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), sizes=st.lists(st.integers(1, 90), min_size=2, max_size=4))
def test_shares_are_of_an_epoch_as_long_as_the_sets(data: Any, sizes: list[int]) -> None:
    shares = [data.draw(st.floats(0.3, 3)) for _ in sizes]
    repeats = repeats_of(shares, sizes)
    seen = draws(order(sizes, repeats, drop_last=False))
    assert len(set(seen)) == len(seen)
    assert abs(len(seen) - sum(sizes)) <= len(sizes) / 2
    first = 0
    for size, share in zip(sizes, shares, strict=True):
        counts = Counter(draw.index for draw in seen if first <= draw.index < first + size)
        wanted = sum(sizes) * share / sum(shares)
        assert abs(counts.total() - wanted) <= 0.5 + 1e-6
        often = [counts[index] for index in range(first, first + size)]
        assert max(often) - min(often) <= 1
        first += size


def test_repeats() -> None:
    def seen(epoch: int) -> Counter[int]:
        batches = order([4, 6, 5], [1.0, 2.5, 0.4], epoch=epoch, drop_last=False)
        assert len(set(draws(batches))) == len(draws(batches)) == 4 + 15 + 2
        return Counter(draw.index for draw in draws(batches))

    first, second = seen(0), seen(1)
    assert [first[index] for index in range(4)] == [1] * 4
    assert Counter(first[index] for index in range(4, 10)) == {2: 3, 3: 3}
    assert sum(first[index] for index in range(10, 15)) == 2
    assert first != second  # others get the extra turn
