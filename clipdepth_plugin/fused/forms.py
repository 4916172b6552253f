"""How a decoder's inference form is made, and which decoders have one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clipdepth_plugin.decoders.decoder import Decoder
from clipdepth_plugin.errors import KernelError


@dataclass(frozen=True)
class Packing:
    """The dtype of a fused head's weights and maps, and ``triton`` as every op takes it."""

    dtype: torch.dtype
    triton: bool | None

    def pack(self, x: Tensor) -> nn.Parameter:
        """A weight in its final dtype and order: a parameter, so that it moves with its module."""
        order = torch.channels_last if x.ndim == 4 else torch.contiguous_format
        packed = x.detach().to(self.dtype, copy=True).contiguous(memory_format=order)
        return nn.Parameter(packed, requires_grad=False)


F = TypeVar("F", bound=type[nn.Module])

_FORMS: dict[type[Decoder], Callable[[Any, Packing], nn.Module]] = {}


def fused_form(decoder: type[Decoder]) -> Callable[[F], F]:
    """Registers the inference form, made of (decoder, packing), of one class of decoder.

    It is a module with copies of the decoder's weights that computes the same as
    ``Decoder.forward``, without gradients and auxiliary outputs.
    """

    def register(form: F) -> F:
        _FORMS[decoder] = form
        return form

    return register


def fuse(decoder: Decoder, packing: Packing) -> nn.Module:
    """The inference form of a decoder; a KernelError where its class has none."""
    form = _FORMS.get(type(decoder))
    if form is None:
        known = ", ".join(one.__name__ for one in _FORMS)
        raise KernelError(
            f"a {type(decoder).__name__} has no fused form, only {known} have: run the plain head, "
            "or register a form (clipdepth_plugin.fused.forms.fused_form)"
        )
    return form(decoder, packing)
