"""Blocks found in names: stages of networks whose builders declare none."""

import re
from collections.abc import Sequence

from tfft.spec import Stage


def numbered(names: Sequence[str], pattern: str) -> dict[str, str]:
    """The block of each name: what a pattern's groups find in it.

    Names without one are of the stem, of the top, or, between two blocks, of the next one.
    """
    found = [re.search(pattern, name) for name in names]
    keys = [next(g for g in match.groups() if g) if match else "" for match in found]
    last = max(i for i, key in enumerate(keys) if key)
    first = next(i for i, key in enumerate(keys) if key)
    for i in reversed(range(len(keys))):
        if not keys[i]:
            keys[i] = "top" if i > last else "stem" if i < first else keys[i + 1]
    return dict(zip(names, keys, strict=True))


def stages(paths: Sequence[str], pattern: str, bottom: str, top: str) -> tuple[Stage, ...]:
    """Stages of variables by the blocks in their paths, bottom to top: `block_0`, `block_1`, ...

    Args:
        pattern: finds a variable's block, as in `numbered`.
        bottom, top: names of the stages below and above the blocks; `bottom` is that of all
            variables where there are no blocks.
    """
    by_block = dict.fromkeys(paths, "stem")
    if any(re.search(pattern, path) for path in paths):
        by_block = numbered(paths, pattern)
    keys = [key for key in dict.fromkeys(by_block.values()) if key not in ("stem", "top")]
    names = {"stem": bottom, "top": top, **{key: f"block_{i}" for i, key in enumerate(keys)}}
    groups: dict[str, list[str]] = {names[key]: [] for key in ("stem", *keys, "top")}
    for path in paths:
        groups[names[by_block[path]]].append(path)
    return tuple(
        Stage(name, f"(?:{'|'.join(map(re.escape, own))})$") for name, own in groups.items() if own
    )
