"""A data set before it is trained on: classes, lengths, duplicates, leaks, bad rows."""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tfft.config import Config, Source
from tfft.data import dataset_builder
from tfft.data.sources import BadRow
from tfft.data.splits import Dataset
from tfft.preprocess import TextInputs

QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)
NEAR = 0.8  # Jaccard similarity of 4-letter shingles from which two texts are near duplicates
NEAR_ROWS = 50_000  # rows of a split that are searched for near duplicates
SHOWN = 5
_BANDS, _ROWS = 16, 4  # of MinHash: finds a pair of similarity 0.8 with probability 0.9998
_PRIME = (1 << 61) - 1


def profile(config: Config, inputs: TextInputs) -> dict[str, Any]:
    """All that is found; plain data.

    Bad rows are counted and listed whatever `on_bad_row` says: to find them is the point.
    """
    bad = _bad_rows(config, inputs)
    data = config.data.model_copy(update={"on_bad_row": "skip"})
    datasets = dataset_builder.build(data, inputs, dataset_builder.DatasetSettings.of(config))
    given = {"train": datasets.train, "validation": datasets.validation, "test": datasets.test}
    splits = {name: split for name, split in given.items() if split is not None}
    texts = {name: _texts(split) for name, split in splits.items()}
    return {
        "classes": class_counts(splits, datasets.labels),
        "lengths": {
            name: _lengths(split, inputs, config.data.max_length) for name, split in splits.items()
        },
        "duplicates": {name: _duplicates(texts[name], splits[name]) for name in splits},
        "leaks": _leaks(texts),
        "bad_rows": bad,
    }


def class_counts(splits: dict[str, Dataset], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rows of each class in each split."""
    return {
        name: dict(zip(labels, map(int, split.counts(len(labels))), strict=True))
        for name, split in splits.items()
    }


def text(found: dict[str, Any], middle: Sequence[str] | None = None) -> str:
    """The profile for reading; `middle` stands in place of the lengths of texts."""
    lines = []
    names = list(found["classes"])
    width = max(len(label) for label in found["classes"]["train"]) + 2
    lines.append("classes".ljust(width) + "".join(name.rjust(12) for name in names))
    for label in found["classes"]["train"]:
        counts = (f"{found['classes'][name][label]:,}".rjust(12) for name in names)
        lines.append(label.ljust(width) + "".join(counts))
    lines += _length_lines(found["lengths"]) if middle is None else middle
    lines.append("\nduplicates within a split")
    for name, d in found["duplicates"].items():
        lines.append(
            f"  {name}: {d['exact']:,} exact ({d['contradicting']:,} under another label), "
            f"{d['near']:,} near"
        )
        lines += [f"    {a!r} ~ {b!r}" for a, b in d["near_shown"]]
    lines.append("\nleaks between splits")
    for pair, leak in found["leaks"].items():
        lines.append(f"  {pair}: {leak['exact']:,} exact, {leak['near']:,} near")
        lines += [f"    {shown!r}" for shown in leak["shown"]]
    lines.append("\nbad rows")
    for name, bad in found["bad_rows"].items():
        lines.append(f"  {name}: {bad['count']:,}")
        lines += [f"    {line}" for line in bad["listed"]]
    return "\n".join(lines)


def _length_lines(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["\ntokens a row, uncut (quantiles " + ", ".join(f"{q}%" for q in QUANTILES) + ")"]
    for name, lengths in found.items():
        shown = ", ".join(str(value) for value in lengths["quantiles"])
        lines.append(
            f"  {name}: {shown}; max_length {lengths['max_length']} cuts {lengths['cut_rows']:,} "
            f"rows ({lengths['cut_rows_share']:.1%}) and loses {lengths['lost_tokens_share']:.2%} "
            "of the tokens"
        )
    return lines


def _bad_rows(config: Config, inputs: TextInputs) -> dict[str, dict[str, Any]]:
    found = {}
    for key in ("train", "validation", "test"):
        source = getattr(config.data, key)
        if not isinstance(source, Source):
            continue
        listed, count = [], 0
        asked = dataset_builder.request(config.data, key, source, inputs, config.task.multi_label)
        for row in dataset_builder.read(asked, inputs):
            if isinstance(row, BadRow):
                count += row.count
                if len(listed) < 4 * SHOWN:
                    listed.append(f"{row.place}: {row.reason}")
        found[key] = {"count": count, "listed": listed}
    return found


def _texts(split: Dataset) -> list[str]:
    return ["\n".join(split.raw(at)) for at in range(len(split))]


def _lengths(split: Dataset, inputs: TextInputs, max_length: int) -> dict[str, Any]:
    lengths = np.zeros(len(split), np.int64)
    for start in range(0, len(split), 4096):
        rows = [split.raw(at) for at in range(start, min(start + 4096, len(split)))]
        lengths[start : start + len(rows)] = inputs.lengths(*zip(*rows, strict=True))
    over = np.maximum(lengths - max_length, 0)
    return {
        "quantiles": [int(v) for v in np.percentile(lengths, QUANTILES, method="nearest")],
        "max_length": max_length,
        "cut_rows": int((over > 0).sum()),
        "cut_rows_share": float((over > 0).mean()),
        "lost_tokens_share": float(over.sum() / lengths.sum()),
    }


def _duplicates(texts: Sequence[str], split: Dataset) -> dict[str, Any]:
    plain = [_plain(t) for t in texts]
    places = defaultdict(list)
    for at, value in enumerate(plain):
        places[value].append(at)
    groups = [group for group in places.values() if len(group) > 1]
    contradicting = sum(len({split.labels[i].tobytes() for i in g}) > 1 for g in groups)
    first = [group[0] for group in places.values()][:NEAR_ROWS]
    near = list(_near_pairs([plain[at] for at in first]))
    return {
        "exact": sum(len(group) - 1 for group in groups),
        "contradicting": contradicting,
        "near": len(near),
        "near_shown": [(texts[first[a]], texts[first[b]]) for a, b in near[:SHOWN]],
    }


def _leaks(texts: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Rows of the later split that stand, exactly or nearly, in the earlier one."""
    plain = {name: [_plain(t) for t in values] for name, values in texts.items()}
    names, found = list(texts), {}
    for at, left in enumerate(names):
        for right in names[at + 1 :]:
            held = set(plain[left])
            exact = [i for i, value in enumerate(plain[right]) if value in held]
            rest = list(dict.fromkeys(v for v in plain[right] if v not in held))[:NEAR_ROWS]
            old = list(held)[:NEAR_ROWS]
            pairs = _near_pairs([*old, *rest], across=len(old))
            near = {b for _, b in pairs}
            shown = [texts[right][i] for i in exact[:SHOWN]] or [
                rest[b - len(old)] for b in sorted(near)[:SHOWN]
            ]
            found[f"{left} and {right}"] = {
                "exact": len(exact),
                "near": len(near),
                "shown": shown,
            }
    return found


def _plain(value: str) -> str:
    """What makes two texts the same: their letters and digits, in order."""
    return " ".join(re.findall(r"\w+", value.lower())) or value


def _shingles(value: str) -> set[int]:
    return {zlib.crc32(value[i : i + 4].encode()) for i in range(max(1, len(value) - 3))}


def _near_pairs(texts: Sequence[str], across: int | None = None) -> Iterator[tuple[int, int]]:
    """Index pairs of similar texts, by MinHash (Broder 1997), each checked exactly.

    With `across` only pairs with one text before and one from that index on are given.
    """
    generator = np.random.default_rng(0)
    a, b = generator.integers(1, 1 << 31, (2, _BANDS * _ROWS, 1)).astype(np.uint64)
    shingles = [_shingles(text) for text in texts]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for at, own in enumerate(shingles):
        hashes = np.fromiter(own, np.uint64, len(own))[None, :]
        lowest = ((a * hashes + b) % np.uint64(_PRIME)).min(axis=1).reshape(_BANDS, _ROWS)
        for band in range(_BANDS):
            buckets[band, lowest[band].tobytes()].append(at)
    seen: Counter[tuple[int, int]] = Counter()
    for members in buckets.values():
        # A crowd shares a stock phrase; comparing its first rows says enough.
        for i, left in enumerate(members[:50]):
            for right in members[i + 1 : 50]:
                pair = (left, right)
                if seen[pair] or (across is not None and not left < across <= right):
                    continue
                seen[pair] += 1
                both = len(shingles[left] & shingles[right])
                if both >= NEAR * len(shingles[left] | shingles[right]):
                    yield pair
