"""Derive stages from block numbers in names, for networks whose builders declare no stages."""

import re
from collections.abc import Sequence

from tfft.spec import Stage


def block_keys(names: Sequence[str], pattern: str) -> dict[str, str]:
    """Return the block key of each name: the first non-empty group of its match.

    A name without a match belongs to `stem` before the first block, to `top` after the last, and to
    the next block between two blocks.

    Args:
        names: layer names or variable paths, bottom to top; at least one must match.
        pattern: a regular expression whose groups capture the block key.
    """
    matches = [re.search(pattern, name) for name in names]
    keys = [next(group for group in match.groups() if group) if match else "" for match in matches]
    last = max(i for i, key in enumerate(keys) if key)
    first = next(i for i, key in enumerate(keys) if key)
    # Backwards, because a name between two blocks takes the key of the next one.
    for i in reversed(range(len(keys))):
        if not keys[i]:
            keys[i] = "top" if i > last else "stem" if i < first else keys[i + 1]
    return dict(zip(names, keys, strict=True))


def stages_by_block(paths: Sequence[str], pattern: str, bottom: str, top: str) -> tuple[Stage, ...]:
    """Group variables into stages `block_0`, `block_1`, ..., bottom to top, by their paths.

    Args:
        paths: variable paths, bottom to top.
        pattern: a regular expression that captures a variable's block, as in `block_keys`.
        bottom, top: names of the stages below and above the blocks. Where no path matches, all
            variables belong to `bottom`.
    """
    path_blocks = dict.fromkeys(paths, "stem")
    if any(re.search(pattern, path) for path in paths):
        path_blocks = block_keys(paths, pattern)
    keys = [key for key in dict.fromkeys(path_blocks.values()) if key not in ("stem", "top")]
    names = {"stem": bottom, "top": top, **{key: f"block_{i}" for i, key in enumerate(keys)}}
    groups: dict[str, list[str]] = {names[key]: [] for key in ("stem", *keys, "top")}
    for path in paths:
        groups[names[path_blocks[path]]].append(path)
    return tuple(
        Stage(name, f"(?:{'|'.join(map(re.escape, members))})$")
        for name, members in groups.items()
        if members
    )
