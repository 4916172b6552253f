"""The host table: every host that ``attach`` is tested on."""

from __future__ import annotations

from tests.tiny.case import HostCase
from tests.tiny.hf_towers import HF_TOWERS
from tests.tiny.more_vlms import MORE_VLMS
from tests.tiny.open_clip_timm import OPEN_CLIP_AND_TIMM
from tests.tiny.policies import POLICIES
from tests.tiny.stems import STEMS
from tests.tiny.vlms import VLMS

HOSTS: tuple[HostCase, ...] = (
    *OPEN_CLIP_AND_TIMM,
    *HF_TOWERS,
    *VLMS,
    *MORE_VLMS,
    *POLICIES,
    *STEMS,
)
BY_NAME = {case.name: case for case in HOSTS}
PRESENT = tuple(case for case in HOSTS if not case.absent)
