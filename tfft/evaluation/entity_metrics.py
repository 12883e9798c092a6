"""Metrics of entities: exact matches of spans, in numpy, equal to seqeval's default mode.

N rows, C types, T tokens and S spans in all. A prediction is correct if a gold span of its row has
the same type, start and end (Tjong Kim Sang & De Meulder 2003, "Introduction to the CoNLL-2003
Shared Task"). Counts are kept for each row, so that parts of the data merge in any order and a
bootstrap can resample rows; everything else is computed from sums of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from tfft.data.tags import Span
from tfft.evaluation import metrics
from tfft.utils.errors import nearest
from tfft.utils.ragged import Ragged


@dataclass(frozen=True)
class Entities:
    """The spans of all rows in columns.

    Attributes:
        row, type, start, end: row, type id, first token and one after the last token of each span,
            int64 [S]; no span twice.
        rows: number of rows, N.
        lengths: number of tokens of each row, int64 [N]; None if unknown.
        tags: IOB2 tag ids of all tokens, row after row, int64 [T]; None without lengths.
    """

    row: np.ndarray
    type: np.ndarray
    start: np.ndarray
    end: np.ndarray
    rows: int
    lengths: np.ndarray | None = None
    tags: np.ndarray | None = None


def from_tag_ids(rows: Ragged | Sequence[np.ndarray], types: int) -> Entities:
    """Return the entities of tag ids, as `data.tags.spans` finds them in the names of the tags.

    Args:
        rows: tag ids of each row's tokens, `Ragged` or N arrays of any length, in the order of
            `data.tags.names`: 0 is O; 2 t + 1 begins and 2 t + 2 continues type t.
        types: number of types, C.

    Raises:
        ValueError: an id is not one of 0 to 2 C.
    """
    ragged = rows if isinstance(rows, Ragged) else Ragged.from_rows(rows, np.int64)
    lengths, tags = ragged.lengths, ragged.values.astype(np.int64)
    row_of = np.repeat(np.arange(len(rows)), lengths)
    invalid = np.flatnonzero((tags < 0) | (tags > 2 * types))
    if len(invalid):
        raise ValueError(
            f"row {row_of[invalid[0]]}: no tag has this id; valid: 0 to {2 * types}, without "
            f"padding. Received: {tags[invalid[0]]}"
        )
    type_of = (tags - 1) // 2  # -1 for O
    # A token continues the span before it if it is an I of the type of the token before, in a row.
    continues = np.zeros(len(tags) + 1, bool)
    continues[1:-1] = (
        (tags[1:] > 0)
        & (tags[1:] % 2 == 0)
        & (type_of[1:] == type_of[:-1])
        & (row_of[1:] == row_of[:-1])
    )
    starts = np.flatnonzero((tags > 0) & ~continues[:-1])
    ends = np.flatnonzero((tags > 0) & ~continues[1:]) + 1
    row = row_of[starts]
    first = (np.cumsum(lengths) - lengths)[row]  # position of the row's first token
    return Entities(row, type_of[starts], starts - first, ends - first, len(rows), lengths, tags)


def from_spans(
    rows: Sequence[Sequence[Span]], types: Sequence[str], lengths: Sequence[int] | None = None
) -> Entities:
    """Return the entities of lists of spans; a span that is listed twice counts once.

    Args:
        rows: the spans of each row, N lists.
        types: names of the types by id, [C].
        lengths: number of tokens of each row, [N], for the token accuracy, which compares the IOB2
            tags of the spans; None without it. Spans may overlap only without lengths.

    Raises:
        ValueError: a type is unknown, a span is empty or out of range, or two overlap.
    """
    type_ids = {name: index for index, name in enumerate(types)}
    columns = []
    for row, spans in enumerate(rows):
        length = np.inf if lengths is None else lengths[row]
        last_end = 0
        for span in sorted(set(spans), key=lambda span: (span.start, span.end)):
            name, start, end = span
            if name not in type_ids:
                raise ValueError(f"row {row}: unknown type {name!r}{nearest(name, type_ids)}")
            if not 0 <= start < end <= length:
                raise ValueError(
                    f"row {row}: the span is empty or out of range. Received: {tuple(span)}"
                    + (f" in {length} tokens" if lengths is not None else "")
                )
            if lengths is not None and start < last_end:
                raise ValueError(f"row {row}: the span overlaps another. Received: {tuple(span)}")
            last_end = end
            columns.append((row, type_ids[name], start, end))
    row, type_id, start, end = np.array(columns, np.int64).reshape(-1, 4).T
    if lengths is None:
        return Entities(row, type_id, start, end, len(rows))
    sizes = np.asarray(lengths, np.int64)
    tags = np.zeros(sizes.sum(), np.int64)
    position = (np.cumsum(sizes) - sizes)[row] + start
    tags[_ranges(position, end - start)] = np.repeat(2 * type_id + 2, end - start)
    tags[position] = 2 * type_id + 1
    return Entities(row, type_id, start, end, len(rows), sizes, tags)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the concatenated ranges of `lengths` integers from `starts` on, both [S]."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


@dataclass(frozen=True)
class EntityCounts:
    """What the metrics need of each row.

    Attributes:
        types: names of the types by id, C of them.
        hits, predicted, gold: number of correct, predicted and gold spans by type, int32 [N, C].
        correct_tokens, tokens: number of tokens whose tag is correct, and of all, int64 [N]; 0
            where the lengths are unknown.
    """

    types: tuple[str, ...]
    hits: np.ndarray
    predicted: np.ndarray
    gold: np.ndarray
    correct_tokens: np.ndarray
    tokens: np.ndarray


def count(gold: Entities, predicted: Entities, types: Sequence[str]) -> EntityCounts:
    """Return the counts of each row.

    Args:
        gold, predicted: entities of the same rows.
        types: names of the types by id, [C].

    Raises:
        ValueError: the two differ in their rows or the number of tokens of one.
    """
    gold_keys, predicted_keys = _keys(gold, predicted, len(types))
    correct = np.isin(gold_keys, predicted_keys)
    correct_tokens, tokens = np.zeros((2, gold.rows), np.int64)
    if gold.tags is not None and predicted.tags is not None and gold.lengths is not None:
        row_of = np.repeat(np.arange(gold.rows), gold.lengths)
        equal = gold.tags == predicted.tags
        correct_tokens = np.bincount(row_of[equal], minlength=gold.rows)
        tokens = gold.lengths
    everything = slice(None)
    return EntityCounts(
        tuple(types),
        _by_row_and_type(gold, correct, len(types)),
        _by_row_and_type(predicted, everything, len(types)),
        _by_row_and_type(gold, everything, len(types)),
        correct_tokens,
        tokens,
    )


def concatenate(parts: Sequence[EntityCounts]) -> EntityCounts:
    """Return the counts of the rows of all parts, e.g. of batches or workers.

    Raises:
        ValueError: the parts differ in their types.
    """
    types = parts[0].types
    for part in parts:
        if part.types != types:
            raise ValueError(f"the parts differ in their types. Received: {types}, {part.types}")
    names = ("hits", "predicted", "gold", "correct_tokens", "tokens")
    return EntityCounts(types, *(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def _by_row_and_type(entities: Entities, selected: np.ndarray | slice, types: int) -> np.ndarray:
    """Return the number of selected entities of each row and type, int32 [N, C]."""
    cells = entities.row[selected] * types + entities.type[selected]
    counts = np.bincount(cells, minlength=entities.rows * types)
    return counts.reshape(entities.rows, types).astype(np.int32)


def _bounds(
    gold: Entities, predicted: Entities
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray], int]:
    """Return starts and ends of both in the concatenated rows, and the length of these.

    Raises:
        ValueError: see `count`.
    """
    if gold.rows != predicted.rows:
        raise ValueError(f"{predicted.rows} rows of predictions for {gold.rows} rows")
    if gold.lengths is not None and predicted.lengths is not None:
        different = np.flatnonzero(gold.lengths != predicted.lengths)
        if len(different):
            row = different[0]
            raise ValueError(
                f"row {row}: {predicted.lengths[row]} predicted tags for {gold.lengths[row]} tokens"
            )
    # The last end of each row, as its length may be unknown.
    sizes = np.zeros(gold.rows, np.int64)
    for entities in (gold, predicted):
        np.maximum.at(sizes, entities.row, entities.end)
    first = np.cumsum(sizes) - sizes
    gold_bounds, predicted_bounds = (
        (first[entities.row] + entities.start, first[entities.row] + entities.end)
        for entities in (gold, predicted)
    )
    return gold_bounds, predicted_bounds, int(sizes.sum())


def _keys(gold: Entities, predicted: Entities, types: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an integer for each span, equal for equal row, start, end and type, int64 [S]."""
    gold_bounds, predicted_bounds, _ = _bounds(gold, predicted)
    # Positions times the longest span times the types: 10^9 * 10^4 * 10^3 tokens fit in int64.
    sizes = [end - start for start, end in (gold_bounds, predicted_bounds)]
    base = 1 + max((int(size.max()) for size in sizes if len(size)), default=0)
    return (
        (gold_bounds[0] * base + sizes[0]) * types + gold.type,
        (predicted_bounds[0] * base + sizes[1]) * types + predicted.type,
    )


def by_type(counts: EntityCounts) -> dict[str, np.ndarray]:
    """Compute precision, recall, f1, support and the number of predictions of each type, each [C].

    A type that is neither present nor predicted has zeros; seqeval does not list it.
    """
    hits, predicted, gold = (x.sum(axis=0) for x in (counts.hits, counts.predicted, counts.gold))
    precision, recall, f1 = _scores(hits, predicted, gold)
    return {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "support": gold,
        "predicted": predicted,
    }


def averages(hits: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> dict[str, np.ndarray]:
    """Compute micro, macro and weighted averages of precision, recall and F1, each [...].

    `precision`, `recall` and `f1` are the micro averages. The macro mean is over the types that are
    present or predicted, the weighted mean over the gold spans. 0 / 0 counts as 0.

    Args:
        hits, predicted, gold: sums over rows of correct, predicted and gold spans, [..., C].
    """
    scores = dict(zip(_SCORES, _scores(hits, predicted, gold), strict=True))
    occurring, support = ((predicted + gold) > 0).sum(axis=-1), gold.sum(axis=-1)
    micro = _scores(hits.sum(axis=-1), predicted.sum(axis=-1), support)
    return {
        **dict(zip(_SCORES, micro, strict=True)),
        **{f"macro_{n}": metrics.ratio(x.sum(axis=-1), occurring) for n, x in scores.items()},
        **{
            f"weighted_{n}": metrics.ratio((x * gold).sum(axis=-1), support)
            for n, x in scores.items()
        },
    }


_SCORES = ("precision", "recall", "f1")
_HEADLINE = (*_SCORES, "macro_f1", "weighted_f1")


def _scores(
    hits: np.ndarray, predicted: np.ndarray, gold: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall and F1 of counts, all of one shape."""
    precision, recall = metrics.ratio(hits, predicted), metrics.ratio(hits, gold)
    # As seqeval rounds it; 2 hits / (predicted + gold) may differ in the last bit.
    return precision, recall, metrics.ratio(2 * precision * recall, precision + recall)


def headline(counts: EntityCounts) -> dict[str, float]:
    """Compute the headline metrics.

    Returns:
        Micro-averaged `precision`, `recall` and `f1`; `macro_f1`; `weighted_f1`; if the lengths are
        known, `token_accuracy`, the share of tokens with the gold tag.
    """
    sums = averages(*(x.sum(axis=0) for x in (counts.hits, counts.predicted, counts.gold)))
    values = {name: float(sums[name]) for name in _HEADLINE}
    if counts.tokens.any():
        values["token_accuracy"] = float(counts.correct_tokens.sum() / counts.tokens.sum())
    return values


def bootstrap(counts: EntityCounts, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Compute the headline metrics of `draws` bootstrap resamples of the rows, each [draws].

    Rows with equal counts are interchangeable, so a draw is a multinomial sample of the K different
    ones; many rows have no entity at all.
    """
    generator = np.random.default_rng(seed)
    types = len(counts.types)
    token_counts = np.stack([counts.correct_tokens, counts.tokens], axis=1)  # [N, 2]
    table = np.concatenate([counts.hits, counts.predicted, counts.gold, token_counts], axis=1)
    distinct, repeats = np.unique(table, axis=0, return_counts=True)  # [K, 3C + 2], [K]
    rows = len(table)
    parts: list[dict[str, np.ndarray]] = []
    for size in metrics.chunks(draws, max(distinct.shape)):
        weights = generator.multinomial(rows, repeats / rows, size=size).astype(np.float64)
        sums = weights @ distinct.astype(np.float64)  # [size, 3C + 2]
        hits, predicted, gold, tokens = np.split(sums, [types, 2 * types, 3 * types], axis=1)
        values = averages(hits, predicted, gold)
        part = {name: values[name] for name in _HEADLINE}
        if counts.tokens.any():
            part["token_accuracy"] = metrics.ratio(tokens[:, 0], tokens[:, 1])
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class EntityErrors:
    """How gold spans and predictions differ; the errors of several parts are summed by `total`.

    Each gold span is a hit, confused, a boundary error or missed, and each prediction a hit,
    confused, a boundary error or spurious: the first of these that applies. A span that overlaps
    only spans of another type with other boundaries is missed or spurious.

    Attributes:
        hits: spans with the same boundaries and type, int64 [C].
        confusion: spans with the same boundaries and another type, int64 [C, C]: gold type down,
            predicted type across.
        boundary_gold: gold spans that overlap a prediction of their type with other boundaries,
            int64 [C].
        boundary_predicted: predictions that overlap a gold span of their type, int64 [C].
        missed: other gold spans, int64 [C].
        spurious: other predictions, int64 [C].
    """

    hits: np.ndarray
    confusion: np.ndarray
    boundary_gold: np.ndarray
    boundary_predicted: np.ndarray
    missed: np.ndarray
    spurious: np.ndarray


def errors(gold: Entities, predicted: Entities, types: int) -> EntityErrors:
    """Count the errors by type.

    Args:
        gold, predicted: entities of the same rows. Where several spans of a row share their
            boundaries, the first prediction that is no hit is counted as the confused one.
        types: number of types, C.

    Raises:
        ValueError: see `count`.
    """
    gold_keys, predicted_keys = _keys(gold, predicted, types)
    gold_hit = np.isin(gold_keys, predicted_keys)
    predicted_hit = np.isin(predicted_keys, gold_keys)
    # Without the type: the boundaries.
    gold_places, predicted_places = gold_keys // types, predicted_keys // types
    places, first = np.unique(predicted_places[~predicted_hit], return_index=True)
    gold_confused = ~gold_hit & np.isin(gold_places, places)
    predicted_confused = ~predicted_hit & np.isin(predicted_places, gold_places[~gold_hit])
    other_types = predicted.type[~predicted_hit][first]
    confused_with = other_types[np.searchsorted(places, gold_places[gold_confused])]
    cells = gold.type[gold_confused] * types + confused_with
    confusion = np.bincount(cells, minlength=types * types).reshape(types, types)

    gold_bounds, predicted_bounds, length = _bounds(gold, predicted)
    # In ranges of their own, spans of different types do not overlap.
    shifted_gold = [x + gold.type * length for x in gold_bounds]
    shifted_predicted = [x + predicted.type * length for x in predicted_bounds]
    gold_open, predicted_open = ~(gold_hit | gold_confused), ~(predicted_hit | predicted_confused)
    gold_near = gold_open & _overlaps(shifted_gold, shifted_predicted)
    predicted_near = predicted_open & _overlaps(shifted_predicted, shifted_gold)
    return EntityErrors(
        np.bincount(gold.type[gold_hit], minlength=types),
        confusion,
        np.bincount(gold.type[gold_near], minlength=types),
        np.bincount(predicted.type[predicted_near], minlength=types),
        np.bincount(gold.type[gold_open & ~gold_near], minlength=types),
        np.bincount(predicted.type[predicted_open & ~predicted_near], minlength=types),
    )


def total(parts: Sequence[EntityErrors]) -> EntityErrors:
    """Return the sum of the errors of several parts of the rows."""
    names = [field.name for field in fields(EntityErrors)]
    return EntityErrors(*(np.sum([getattr(p, name) for p in parts], axis=0) for name in names))


def _overlaps(ranges: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """Return which ranges overlap one of the others, bool [S].

    Args:
        ranges: starts and ends, each [S].
        others: starts and ends, each [S'].
    """
    # Those that begin before the end, less those that end before the start.
    begun = np.searchsorted(np.sort(others[0]), ranges[1], side="left")
    ended = np.searchsorted(np.sort(others[1]), ranges[0], side="right")
    return begun > ended
