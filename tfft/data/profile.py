"""Profile a text data set before training: targets, lengths, duplicates, leaks, bad rows."""

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
from tfft.preprocess import Inputs, TextInputs

QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)
MIN_SIMILARITY = 0.8  # least Jaccard similarity of 4-letter shingles of near duplicates
MAX_NEAR_ROWS = 50_000  # rows of a split that are searched for near duplicates
NUM_EXAMPLES = 5  # near duplicates and leaks that are listed
# MinHash: 16 bands of 4 hashes find a pair of similarity 0.8 with probability 0.9998.
_BANDS, _HASHES_PER_BAND = 16, 4
# A Mersenne prime above all CRC-32 values, for hashes (a x + b) mod p.
_PRIME = (1 << 61) - 1


def profile(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Return the profile of a config's texts as plain data.

    Bad rows are counted and listed whatever `on_bad_row` is: to find them is the purpose.
    """
    bad = _bad_rows(config, inputs)
    data = config.data.model_copy(update={"on_bad_row": "skip"})
    datasets = dataset_builder.build(data, inputs, dataset_builder.DatasetSettings.of(config))
    named = {"train": datasets.train, "validation": datasets.validation, "test": datasets.test}
    splits = {name: split for name, split in named.items() if split is not None}
    texts = {name: _texts(split) for name, split in splits.items()}
    return {
        "targets": {name: split.summary(datasets.labels) for name, split in splits.items()},
        "lengths": {
            name: _lengths(split, inputs.text, config.data.max_length)
            for name, split in splits.items()
        },
        "duplicates": {name: _duplicates(texts[name], splits[name]) for name in splits},
        "leaks": _leaks(texts),
        "bad_rows": bad,
    }


def text(result: dict[str, Any], middle: Sequence[str] | None = None) -> str:
    """Format a profile for reading.

    Args:
        result: what `profile` returned.
        middle: lines in place of those on the lengths of texts.
    """
    lines = []
    targets = result["targets"]
    width = max(len(label) for label in ("targets", *targets["train"])) + 2
    lines.append("targets".ljust(width) + "".join(name.rjust(12) for name in targets))
    for label in targets["train"]:
        cells = (_number(summary[label]).rjust(12) for summary in targets.values())
        lines.append(label.ljust(width) + "".join(cells))
    lines += _length_lines(result["lengths"]) if middle is None else middle
    lines.append("\nduplicates within a split")
    for name, d in result["duplicates"].items():
        lines.append(
            f"  {name}: {d['exact']:,} exact ({d['contradicting']:,} under another label), "
            f"{d['near']:,} near"
        )
        lines += [f"    {a!r} ~ {b!r}" for a, b in d["near_shown"]]
    lines.append("\nleaks between splits")
    for pair, leak in result["leaks"].items():
        lines.append(f"  {pair}: {leak['exact']:,} exact, {leak['near']:,} near")
        lines += [f"    {example!r}" for example in leak["shown"]]
    lines.append("\nbad rows")
    for name, bad in result["bad_rows"].items():
        lines.append(f"  {name}: {bad['count']:,}")
        lines += [f"    {line}" for line in bad["listed"]]
    return "\n".join(lines)


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"


def _length_lines(lengths_of: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "\ntokens per row, untruncated (quantiles " + ", ".join(f"{q}%" for q in QUANTILES) + ")"
    ]
    for name, lengths in lengths_of.items():
        values = ", ".join(str(value) for value in lengths["quantiles"])
        cut = f"cuts {lengths['cut_rows']:,} rows ({lengths['cut_rows_share']:.1%})"
        if "windows" in lengths:
            windows = f"{lengths['windows']:,} windows of {lengths['max_length']}"
            effect = f"{windows}; their largest number {cut}"
        else:
            lost = f"loses {lengths['lost_tokens_share']:.2%} of the tokens"
            effect = f"max_length {lengths['max_length']} {cut} and {lost}"
        lines.append(f"  {name}: {values}; {effect}")
    return lines


def _bad_rows(config: Config, inputs: Inputs) -> dict[str, dict[str, Any]]:
    result = {}
    for key in ("train", "validation", "test"):
        source = getattr(config.data, key)
        if not isinstance(source, Source):
            continue
        listed, count = [], 0
        request = dataset_builder.build_request(
            config.data, key, source, inputs, config.task.targets
        )
        for row in dataset_builder.read_rows(request, inputs):
            if isinstance(row, BadRow):
                count += row.count
                if len(listed) < 4 * NUM_EXAMPLES:
                    listed.append(f"{row.place}: {row.reason}")
        result[key] = {"count": count, "listed": listed}
    return result


def _texts(split: Dataset) -> list[str]:
    return ["\n".join(split.texts(position)) for position in range(len(split))]


def _lengths(split: Dataset, inputs: TextInputs, max_length: int) -> dict[str, Any]:
    lengths, is_cut = np.zeros(len(split), np.int64), np.zeros(len(split), bool)
    # In chunks, which bounds the memory of the tokenizer's encodings.
    for start in range(0, len(split), 4096):
        rows = [split.texts(position) for position in range(start, min(start + 4096, len(split)))]
        columns, part = list(zip(*rows, strict=True)), slice(start, start + len(rows))
        lengths[part] = inputs.lengths(*columns)
        if inputs.windows is not None:
            is_cut[part] = [windows[-1].truncated for windows in inputs.windows_of(*columns)]
    excess = np.maximum(lengths - max_length, 0)
    effect: dict[str, int | float] = {"windows": len(split.examples)}
    if inputs.windows is None:
        is_cut = excess > 0
        effect = {"lost_tokens_share": float(excess.sum() / lengths.sum())}
    return {
        "quantiles": [int(v) for v in np.percentile(lengths, QUANTILES, method="nearest")],
        "max_length": max_length,
        "cut_rows": int(is_cut.sum()),
        "cut_rows_share": float(is_cut.mean()),
        **effect,
    }


def _duplicates(texts: Sequence[str], split: Dataset) -> dict[str, Any]:
    normalized = [_normalize(t) for t in texts]
    positions_of = defaultdict(list)
    for position, value in enumerate(normalized):
        positions_of[value].append(position)
    groups = [group for group in positions_of.values() if len(group) > 1]
    contradicting = sum(len({split.targets[i].tobytes() for i in g}) > 1 for g in groups)
    representatives = [group[0] for group in positions_of.values()][:MAX_NEAR_ROWS]
    near_duplicates = list(_near_pairs([normalized[position] for position in representatives]))
    return {
        "exact": sum(len(group) - 1 for group in groups),
        "contradicting": contradicting,
        "near": len(near_duplicates),
        "near_shown": [
            (texts[representatives[a]], texts[representatives[b]])
            for a, b in near_duplicates[:NUM_EXAMPLES]
        ],
    }


def _leaks(texts: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """Return the rows of the later split that are also, exactly or nearly, in the earlier one."""
    normalized = {name: [_normalize(t) for t in values] for name, values in texts.items()}
    names, leaks = list(texts), {}
    for index, earlier in enumerate(names):
        for later in names[index + 1 :]:
            # Exact leaks first; near ones are searched among the other rows.
            earlier_texts = set(normalized[earlier])
            exact = [i for i, value in enumerate(normalized[later]) if value in earlier_texts]
            remaining = list(dict.fromkeys(v for v in normalized[later] if v not in earlier_texts))[
                :MAX_NEAR_ROWS
            ]
            candidates = list(earlier_texts)[:MAX_NEAR_ROWS]
            pairs = _near_pairs([*candidates, *remaining], across=len(candidates))
            near_duplicates = {b for _, b in pairs}
            examples = [texts[later][i] for i in exact[:NUM_EXAMPLES]] or [
                remaining[b - len(candidates)] for b in sorted(near_duplicates)[:NUM_EXAMPLES]
            ]
            leaks[f"{earlier} and {later}"] = {
                "exact": len(exact),
                "near": len(near_duplicates),
                "shown": examples,
            }
    return leaks


def _normalize(value: str) -> str:
    """Return the letters and digits of a text, lower-cased: equal for duplicates."""
    # A text of punctuation alone is compared as it is.
    return " ".join(re.findall(r"\w+", value.lower())) or value


def _shingles(value: str) -> set[int]:
    # CRC-32, because `hash` of a str differs between processes.
    return {zlib.crc32(value[i : i + 4].encode()) for i in range(max(1, len(value) - 3))}


def _near_pairs(texts: Sequence[str], across: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield index pairs of similar texts, found by MinHash (Broder 1997), each verified exactly.

    Args:
        texts: normalized texts.
        across: yield only pairs with one index below it and the other at or above it.
    """
    generator = np.random.default_rng(0)
    # Below 2^31, so that a * hash + b fits in uint64.
    a, b = generator.integers(1, 1 << 31, (2, _BANDS * _HASHES_PER_BAND, 1)).astype(np.uint64)
    shingles = [_shingles(text) for text in texts]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, shingle_set in enumerate(shingles):
        hashes = np.fromiter(shingle_set, np.uint64, len(shingle_set))[None, :]
        # [bands, hashes of a band]: the least value of each hash function over all shingles.
        minima = (
            ((a * hashes + b) % np.uint64(_PRIME)).min(axis=1).reshape(_BANDS, _HASHES_PER_BAND)
        )
        for band in range(_BANDS):
            buckets[band, minima[band].tobytes()].append(index)
    yielded: Counter[tuple[int, int]] = Counter()
    for members in buckets.values():
        # Large buckets come from a common phrase. Comparing 50 rows bounds the quadratic search.
        for i, first in enumerate(members[:50]):
            for second in members[i + 1 : 50]:
                pair = (first, second)
                if yielded[pair] or (across is not None and not first < across <= second):
                    continue
                yielded[pair] += 1
                shared = len(shingles[first] & shingles[second])
                if shared >= MIN_SIMILARITY * len(shingles[first] | shingles[second]):
                    yield pair
