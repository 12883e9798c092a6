"""Profile images before training: targets, sizes, duplicates, leaks, broken files."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfft.config import Config
from tfft.data import dataset_builder
from tfft.data.images import PreparedImages
from tfft.data.profile import NUM_EXAMPLES, QUANTILES
from tfft.data.splits import Dataset
from tfft.preprocess import Inputs

MAX_DIFFERENT_BITS = 3  # of the 64 bits of two difference hashes of near duplicates
_BANDS = 4  # hashes that differ in at most 3 bits agree in at least one of 4 parts
_MAX_GROUP = 50  # images with an equal part that are compared: bounds the quadratic search


def profile(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Return the profile of a config's images as plain data.

    Broken images are listed whatever `on_bad_row` is: to find them is the purpose.
    """
    data = config.data.model_copy(update={"on_bad_row": "skip"})
    datasets = dataset_builder.build(data, inputs, dataset_builder.DatasetSettings.of(config))
    named = {"train": datasets.train, "validation": datasets.validation, "test": datasets.test}
    splits = {name: split for name, split in named.items() if split is not None}
    return {
        "targets": {name: split.summary(datasets.labels) for name, split in splits.items()},
        "sizes": {name: _sizes(split) for name, split in splits.items()},
        "duplicates": {name: _duplicates(split) for name, split in splits.items()},
        "leaks": _leaks(splits),
        "bad_rows": {
            name: {"count": prepared.bad, "listed": prepared.bad_listed[: 4 * NUM_EXAMPLES]}
            for name, prepared in _by_source(splits).items()
        },
    }


def text(result: dict[str, Any]) -> list[str]:
    """Return the lines that replace those of text lengths in a profile of images."""
    quantiles = ", ".join(f"{q}%" for q in QUANTILES)
    lines = [f"\nsizes in pixels, height x width (quantiles {quantiles} of the root of the area)"]
    for name, sizes in result["sizes"].items():
        lines.append(f"  {name}: {', '.join(sizes['quantiles'])}")
        if sizes["smaller"]:
            lines.append(
                f"    {sizes['smaller']:,} ({sizes['smaller_share']:.1%}) are smaller than the "
                f"model's {sizes['model']}, and are enlarged"
            )
    return lines


def _by_source(splits: dict[str, Dataset]) -> dict[str, PreparedImages]:
    """Return each prepared set once, under the name of the first split that uses it."""
    first_splits: dict[int, tuple[str, PreparedImages]] = {}
    for name, split in splits.items():
        first_splits.setdefault(id(split.prepared), (name, _images(split)))
    return dict(first_splits.values())


def _images(split: Dataset) -> PreparedImages:
    if not isinstance(split.prepared, PreparedImages):
        raise TypeError(f"`split` must hold images. Received: {type(split.prepared).__name__}")
    return split.prepared


def _sizes(split: Dataset) -> dict[str, Any]:
    sizes, model_size = _images(split).sizes[split.rows], _images(split).size
    order = np.argsort(sizes.prod(axis=1), kind="stable")
    # Sizes that occur, not interpolated ones.
    rows = np.percentile(np.arange(len(order)), QUANTILES, method="nearest").astype(int)
    num_smaller = int((sizes < np.array(model_size)).any(axis=1).sum())
    return {
        "quantiles": [f"{height} x {width}" for height, width in sizes[order[rows]]],
        "model": f"{model_size[0]} x {model_size[1]}",
        "smaller": num_smaller,
        "smaller_share": num_smaller / len(split),
    }


def _duplicate_keys(split: Dataset) -> list[bytes]:
    """Return keys that are equal for images that look the same: hash and thumbnail."""
    hashes, thumbnails = _images(split).hashes[split.rows], _images(split).tiny[split.rows]
    return [h.tobytes() + t.tobytes() for h, t in zip(hashes, thumbnails, strict=True)]


def _names(split: Dataset, positions: Sequence[int]) -> list[str]:
    return [_images(split).name(int(split.rows[i])) for i in positions]


def _duplicates(split: Dataset) -> dict[str, Any]:
    positions_of = defaultdict(list)
    for position, key in enumerate(_duplicate_keys(split)):
        positions_of[key].append(position)
    groups = [group for group in positions_of.values() if len(group) > 1]
    # One image for each group: exact duplicates are not near duplicates too.
    representatives = [group[0] for group in positions_of.values()]
    near_duplicates = list(near_pairs(_images(split).hashes[split.rows[representatives]]))
    contradicting = [g for g in groups if len({split.targets[i].tobytes() for i in g}) > 1]
    return {
        "exact": sum(len(group) - 1 for group in groups),
        "contradicting": len(contradicting),
        "near": len(near_duplicates),
        "near_shown": [
            tuple(_names(split, [representatives[a], representatives[b]]))
            for a, b in near_duplicates[:NUM_EXAMPLES]
        ],
    }


def _leaks(splits: dict[str, Dataset]) -> dict[str, dict[str, Any]]:
    """Return the images of the later split that are also, exactly or nearly, in the earlier one."""
    names, leaks = list(splits), {}
    for index, earlier_name in enumerate(names):
        for later_name in names[index + 1 :]:
            earlier, later = splits[earlier_name], splits[later_name]
            earlier_keys = set(_duplicate_keys(earlier))
            exact = [i for i, key in enumerate(_duplicate_keys(later)) if key in earlier_keys]
            # Exact leaks are not counted as near ones too.
            rest = np.setdiff1d(np.arange(len(later)), exact)
            # Near duplicates between the two splits, not within one of them.
            hashes = np.concatenate(
                [
                    _images(s).hashes[r]
                    for s, r in ((earlier, earlier.rows), (later, later.rows[rest]))
                ]
            )
            near = sorted({b - len(earlier) for _, b in near_pairs(hashes, across=len(earlier))})
            examples = exact[:NUM_EXAMPLES] or [int(rest[b]) for b in near[:NUM_EXAMPLES]]
            leaks[f"{earlier_name} and {later_name}"] = {
                "exact": len(exact),
                "near": len(near),
                "shown": _names(later, examples),
            }
    return leaks


def near_pairs(hashes: np.ndarray, across: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield pairs of indices whose hashes differ in at most `MAX_DIFFERENT_BITS` bits.

    Args:
        hashes: uint8 [N, 8].
        across: yield only pairs with one index below it and the other at or above it.
    """
    parts = hashes.reshape(len(hashes), _BANDS, -1)  # [N, bands, bytes]
    yielded: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        groups = defaultdict(list)
        for index in range(len(hashes)):
            groups[parts[index, band].tobytes()].append(index)
        for members in groups.values():
            for i, a in enumerate(members[:_MAX_GROUP]):
                for b in members[i + 1 : _MAX_GROUP]:
                    same_side = across is not None and not a < across <= b
                    if (a, b) in yielded or same_side:
                        continue
                    if np.unpackbits(hashes[a] ^ hashes[b]).sum() <= MAX_DIFFERENT_BITS:
                        yielded.add((a, b))
                        yield a, b
