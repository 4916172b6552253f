"""Which pictures count as independent: points of a picture don't, nor do neighbours in a clip.

Axes: P pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GROUPS, BLOCKS, FEWEST = 12, 8, 4
"""Most groups of pictures; blocks that few sequences are cut into; fewer sequences are few."""


def grouped(names: Sequence[str], *, independent: bool) -> tuple[Tensor, str]:
    """(P,) numbers of groups of pictures that count as independent, and what these are.

    Each picture, where they were chosen one by one; else the folders of the names, which are
    sequences; of few sequences, blocks of consecutive pictures. At most ``GROUPS``, of neighbours.
    """
    folders = [name.rpartition("/")[0] for name in names]
    sequences = list(dict.fromkeys(folders))
    if independent:
        groups, kind = list(range(len(names))), "pictures"
    elif len(sequences) >= FEWEST:
        groups, kind = [sequences.index(one) for one in folders], "sequences"
    else:
        groups, kind = [], "blocks of consecutive pictures"
        blocks = -(-BLOCKS // max(len(sequences), 1))
        for folder in sequences:
            size, first = folders.count(folder), max(groups, default=-1) + 1
            groups += [first + place * min(blocks, size) // size for place in range(size)]
    count = max(groups, default=0) + 1
    if count > GROUPS:
        groups, kind = [group * GROUPS // count for group in groups], f"groups of {kind}"
    return torch.tensor(groups), kind
