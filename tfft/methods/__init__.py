"""Ways of fine-tuning: a method's name in the YAML -> its `Method`."""

from collections.abc import Mapping
from types import MappingProxyType

from tfft.methods import full, head, top
from tfft.spec import Method

METHODS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for method in (full.METHOD, head.METHOD, top.METHOD)}
)
