"""Earlier names of config keys, values and commands; their errors show the new names."""

from collections.abc import Mapping

KEYS: Mapping[str, str] = {
    "evaluate.views": "evaluate.test_time_augmentation",
    "export.weights": "export.weight_dtype",
    "optimizer.end": "optimizer.end_factor",
    "train.cache": "train.cache_features",
    "train.cache_type": "train.cache_dtype",
    "train.jit": "train.jit_compile",
}
# Renamed values, by the key that holds them.
VALUES: Mapping[str, Mapping[str, str]] = {
    "evaluate.test_time_augmentation": {"one": "none"},
    "task.name": {"image_tagging": "image_multilabel", "text_tagging": "text_multilabel"},
}
COMMANDS: Mapping[str, str] = {"data": "profile"}


def hint(names: Mapping[str, str], name: object) -> str:
    """Return `"; renamed to NEW"` for an earlier name, else an empty string."""
    return f"; renamed to {names[name]}" if isinstance(name, str) and name in names else ""
