"""Ways of fine-tuning: a method's name in the YAML -> its `Method`."""

from collections.abc import Mapping
from types import MappingProxyType

from tfft.methods import (
    adapter,
    bitfit,
    dora,
    full,
    gradual,
    head,
    ia3,
    lora,
    lp_ft,
    mask,
    norm,
    prefix,
    prompt,
    qlora,
    top,
)
from tfft.spec import Method

_ROOMS = (full, head, top, mask, gradual, lp_ft, lora, dora, qlora)
_ROOMS += (adapter, prefix, prompt, ia3, bitfit, norm)
METHODS: Mapping[str, Method] = MappingProxyType({room.METHOD.name: room.METHOD for room in _ROOMS})
