"""Pictures before they are trained on: classes, sizes, duplicates, leaks, broken files."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfft.config import Config
from tfft.data import dataset_builder
from tfft.data.images import Pictures
from tfft.data.profile import QUANTILES, SHOWN, class_counts
from tfft.data.splits import Dataset
from tfft.preprocess import ImageInputs

NEAR = 3  # of 64 bits of the difference hash may differ in near duplicates
_BANDS = 4  # two hashes that differ in 3 bits at most are equal in one of 4 parts at least
_CROWD = 50  # pictures with an equal part that are compared, at most


def profile(config: Config, inputs: ImageInputs) -> dict[str, Any]:
    """All that is found; plain data. Broken pictures are listed whatever `on_bad_row` says."""
    data = config.data.model_copy(update={"on_bad_row": "skip"})
    datasets = dataset_builder.build(data, inputs, dataset_builder.DatasetSettings.of(config))
    given = {"train": datasets.train, "validation": datasets.validation, "test": datasets.test}
    splits = {name: split for name, split in given.items() if split is not None}
    return {
        "classes": class_counts(splits, datasets.labels),
        "sizes": {name: _sizes(split) for name, split in splits.items()},
        "duplicates": {name: _duplicates(split) for name, split in splits.items()},
        "leaks": _leaks(splits),
        "bad_rows": {
            name: {"count": prepared.bad, "listed": prepared.bad_listed[: 4 * SHOWN]}
            for name, prepared in _by_source(splits).items()
        },
    }


def text(found: dict[str, Any]) -> list[str]:
    """The parts that a profile of pictures has in place of one of texts."""
    shown = ", ".join(f"{q}%" for q in QUANTILES)
    lines = [f"\nsizes in pixels, height x width (quantiles {shown} of the root of the area)"]
    for name, sizes in found["sizes"].items():
        lines.append(f"  {name}: {', '.join(sizes['quantiles'])}")
        if sizes["smaller"]:
            lines.append(
                f"    {sizes['smaller']:,} ({sizes['smaller_share']:.1%}) are smaller than the "
                f"model's {sizes['model']}, and are enlarged"
            )
    return lines


def _by_source(splits: dict[str, Dataset]) -> dict[str, Pictures]:
    """Each prepared set once, by the first split that is of it."""
    found: dict[int, tuple[str, Pictures]] = {}
    for name, split in splits.items():
        found.setdefault(id(split.prepared), (name, _set(split)))
    return dict(found.values())


def _set(split: Dataset) -> Pictures:
    if not isinstance(split.prepared, Pictures):
        raise TypeError(f"pictures are wanted. Received: {type(split.prepared).__name__}")
    return split.prepared


def _sizes(split: Dataset) -> dict[str, Any]:
    sizes, wanted = _set(split).sizes[split.rows], _set(split).size
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    at = np.percentile(np.arange(len(order)), QUANTILES, method="nearest").astype(int)
    smaller = int((sizes < np.array(wanted)).any(axis=1).sum())
    return {
        "quantiles": [f"{height} x {width}" for height, width in sizes[order[at]]],
        "model": f"{wanted[0]} x {wanted[1]}",
        "smaller": smaller,
        "smaller_share": smaller / len(split),
    }


def _keys(split: Dataset) -> list[bytes]:
    """What is equal for pictures that look the same: hash and tiny picture."""
    hashes, tiny = _set(split).hashes[split.rows], _set(split).tiny[split.rows]
    return [h.tobytes() + t.tobytes() for h, t in zip(hashes, tiny, strict=True)]


def _names(split: Dataset, at: Sequence[int]) -> list[str]:
    return [_set(split).name(int(split.rows[i])) for i in at]


def _duplicates(split: Dataset) -> dict[str, Any]:
    places = defaultdict(list)
    for at, key in enumerate(_keys(split)):
        places[key].append(at)
    groups = [group for group in places.values() if len(group) > 1]
    first = [group[0] for group in places.values()]
    near = list(near_pairs(_set(split).hashes[split.rows[first]]))
    contradicting = [g for g in groups if len({split.labels[i].tobytes() for i in g}) > 1]
    return {
        "exact": sum(len(group) - 1 for group in groups),
        "contradicting": len(contradicting),
        "near": len(near),
        "near_shown": [tuple(_names(split, [first[a], first[b]])) for a, b in near[:SHOWN]],
    }


def _leaks(splits: dict[str, Dataset]) -> dict[str, dict[str, Any]]:
    """Pictures of the later split that stand, exactly or nearly, in the earlier one."""
    names, found = list(splits), {}
    for at, left in enumerate(names):
        for right in names[at + 1 :]:
            one, other = splits[left], splits[right]
            held = set(_keys(one))
            exact = [i for i, key in enumerate(_keys(other)) if key in held]
            rest = np.setdiff1d(np.arange(len(other)), exact)
            hashes = np.concatenate(
                [_set(s).hashes[r] for s, r in ((one, one.rows), (other, other.rows[rest]))]
            )
            near = sorted({b - len(one) for _, b in near_pairs(hashes, across=len(one))})
            shown = exact[:SHOWN] or [int(rest[b]) for b in near[:SHOWN]]
            found[f"{left} and {right}"] = {
                "exact": len(exact),
                "near": len(near),
                "shown": _names(other, shown),
            }
    return found


def near_pairs(hashes: np.ndarray, across: int | None = None) -> Iterator[tuple[int, int]]:
    """Pairs of indices whose hashes, uint8 [N, 8], differ in `NEAR` bits at most.

    With `across` only pairs with one before and one from that index on are given.
    """
    parts = hashes.reshape(len(hashes), _BANDS, -1)
    seen: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        groups = defaultdict(list)
        for at in range(len(hashes)):
            groups[parts[at, band].tobytes()].append(at)
        for members in groups.values():
            for i, a in enumerate(members[:_CROWD]):
                for b in members[i + 1 : _CROWD]:
                    apart = across is not None and not a < across <= b
                    if (a, b) in seen or apart:
                        continue
                    if np.unpackbits(hashes[a] ^ hashes[b]).sum() <= NEAR:
                        seen.add((a, b))
                        yield a, b
