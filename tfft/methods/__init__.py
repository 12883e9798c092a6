"""Fine-tuning methods: `METHODS` maps the name in the YAML to its `Method`."""

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

_MODULES = (full, head, top, mask, gradual, lp_ft, lora, dora, qlora)
_MODULES += (adapter, prefix, prompt, ia3, bitfit, norm)
METHODS: Mapping[str, Method] = MappingProxyType({m.METHOD.name: m.METHOD for m in _MODULES})
