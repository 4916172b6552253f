"""What one thread, asyncio task and forward of a tower has seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from clipdepth_plugin.adapters.named_pictures import NamesSeen
from clipdepth_plugin.adapters.passes import NOT_FIRED, TowerPass
from clipdepth_plugin.adapters.prompts import Conversation

NO_PASS = (
    "no tower pass in this thread (and asyncio task) since attach: run the host on a picture "
    "first. It may be that the prompt had no picture, that the pass ran in another thread, or "
    f"that {NOT_FIRED}"
)


@dataclass
class Slot:
    """What one thread (and asyncio task) sees.

    Attributes:
        last: The last tower pass; where there is none, ``why_none``.
        captures: Lists that collect every pass.
        in_host: Numbers of the modules around the tower whose forwards run now, outermost first.
        prompt: Token ids of the host's last forward, where it has such.
        conversation: Which caches do not hold the last picture.
        passes_inside: Passes that have begun inside a forward of the host.
        claimed: Whether a forward of the host has taken ``last`` for its own. Some hosts run
            their tower inside that forward, others (``generate`` of late) just before it.
        in_wrapper: Whether a module runs that holds the tower and takes no prompt; ``before`` is
            ``last`` when it began, ``made_inside``: whether ``last`` was made in one.
        names: Which batches of pictures by name a policy was run on.
    """

    last: TowerPass | None = None
    why_none: str = NO_PASS
    captures: list[list[TowerPass]] = field(default_factory=list)
    in_host: tuple[int, ...] = ()
    prompt: Tensor | None = None
    conversation: Conversation = field(default_factory=Conversation)
    passes_inside: int = 0
    claimed: bool = False
    in_wrapper: bool = False
    before: TowerPass | None = None
    made_inside: bool = False
    names: NamesSeen = field(default_factory=NamesSeen)


@dataclass
class Forward:
    """The tower's forward that runs in one thread: no other task can run before it ends.

    ``arguments`` (what the layout rule reads) and ``picture`` (the pictures' shape before padding)
    are the next pass's; ``leave``: whether to leave the tower once ``running``, the pass, is
    complete; ``leave_with_pixels``: as soon as it has its pixels.
    """

    running: TowerPass | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    picture: tuple[int, ...] | None = None
    leave: bool = False
    leave_with_pixels: bool = False
