"""The kinds of targets: `TaskSection.targets` -> the kind, from the section `data`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tfft.config import DataConfig
from tfft.data.answer_targets import ANSWERS
from tfft.data.tag_targets import TAGS
from tfft.data.targets import CLASS, LabelTargets, NumberTargets, Targets

KINDS: Mapping[str, Callable[[DataConfig], Targets]] = MappingProxyType(
    {
        "class": lambda config: CLASS,
        "labels": lambda config: LabelTargets(config.label_separator),
        "numbers": lambda config: NumberTargets(len(config.label_columns)),
        "tags": lambda config: TAGS,
        "answers": lambda config: ANSWERS,
    }
)
