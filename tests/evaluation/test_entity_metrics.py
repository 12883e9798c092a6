"""Entity metrics against seqeval (golden file) and against plain loops."""

import json
import tracemalloc
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tfft.data import tags
from tfft.data.tags import Span
from tfft.evaluation import entity_metrics, metrics

CASES = json.loads((Path(__file__).parents[1] / "golden" / "entities.json").read_text("utf-8"))
TYPES = ("a", "b", "c")


def random_ids(generator, rows, types=3, length=12):
    """Return tag ids of rows of 0 to `length - 1` tokens, mostly malformed."""
    sizes = generator.integers(0, length, rows)
    return [generator.integers(0, 2 * types + 1, n) for n in sizes]


def corrupted(generator, rows, types=3, rate=0.3):
    other = [generator.integers(0, 2 * types + 1, len(row)) for row in rows]
    return [
        np.where(generator.random(len(r)) < rate, o, r) for r, o in zip(rows, other, strict=True)
    ]


def spans_of(rows, types=TYPES):
    names = tags.names(types)
    return [tags.spans([names[i] for i in row]) for row in rows]


@pytest.fixture
def case():
    """Gold and predicted tag ids of 400 rows; some have no token."""
    generator = np.random.default_rng(5)
    gold = random_ids(generator, 400)
    return gold, corrupted(generator, gold)


def count_ids(gold, predicted, types=TYPES):
    sides = [entity_metrics.from_tag_ids(rows, len(types)) for rows in (gold, predicted)]
    return entity_metrics.count(*sides, types)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['scheme']} {case['name']}")
def test_report_is_that_of_seqeval(case):
    rows = [[text.split() for text in case[side]] for side in ("gold", "predicted")]
    spans = [[tags.spans(row, case["scheme"]) for row in side] for side in rows]
    types = sorted({span.type for side in spans for row in side for span in row})
    counts = entity_metrics.count(*(entity_metrics.from_spans(s, types) for s in spans), types)
    # Equal to the last bit, so no approx.
    report = case["report"]
    table = entity_metrics.by_type(counts)
    assert set(report) - {"micro avg", "macro avg", "weighted avg"} == set(types)
    names = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    for index, name in enumerate(types):
        assert {k: table[n][index] for n, k in names.items()} == report[name]
    sums = [x.sum(axis=0) for x in (counts.hits, counts.predicted, counts.gold)]
    averages = entity_metrics.averages(*sums)
    for prefix in ("micro", "macro", "weighted"):
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            key = ours if prefix == "micro" else f"{prefix}_{ours}"
            assert averages[key] == report[f"{prefix} avg"][theirs], key
    headline = entity_metrics.headline(counts)
    assert headline["f1"] == report["micro avg"]["f1-score"]
    assert headline["macro_f1"] == report["macro avg"]["f1-score"]
    assert headline["weighted_f1"] == report["weighted avg"]["f1-score"]
    assert "token_accuracy" not in headline  # spans without lengths

    if case["scheme"] == "IOB2":
        ids = {tag: index for index, tag in enumerate(tags.names(types))}
        ids |= {"B": ids.get("B-_"), "I": ids.get("I-_")}
        gold, predicted = ([np.array([ids[t] for t in row]) for row in side] for side in rows)
        from_ids = count_ids(gold, predicted, types)
        for name in ("hits", "predicted", "gold"):
            np.testing.assert_array_equal(getattr(from_ids, name), getattr(counts, name))
        assert entity_metrics.headline(from_ids) == {
            **headline,
            "token_accuracy": case["accuracy"],
        }


def test_tag_ids_and_spans_give_the_same_entities(case):
    for rows in case:
        lengths = [len(row) for row in rows]
        from_ids = entity_metrics.from_tag_ids(rows, 3)
        from_spans = entity_metrics.from_spans(spans_of(rows), TYPES, lengths)
        for name in ("row", "type", "start", "end", "lengths"):
            np.testing.assert_array_equal(getattr(from_ids, name), getattr(from_spans, name))
        names = tags.names(TYPES)
        expected = [tag for row in rows for tag in tags.to_iob2([names[i] for i in row], "IOB2")]
        assert [names[i] for i in from_spans.tags] == expected


def test_counts_of_each_row(case):
    gold, predicted = case
    counts = count_ids(gold, predicted)
    pairs = list(zip(spans_of(gold), spans_of(predicted), strict=True))
    assert counts.hits.shape == (400, 3)
    for row, (true, guess) in enumerate(pairs):
        for index, name in enumerate(TYPES):
            true_set = {s for s in true if s.type == name}
            guess_set = {s for s in guess if s.type == name}
            assert counts.hits[row, index] == len(true_set & guess_set)
            assert counts.predicted[row, index] == len(guess_set)
            assert counts.gold[row, index] == len(true_set)
        assert counts.tokens[row] == len(gold[row])
        assert counts.correct_tokens[row] == (gold[row] == predicted[row]).sum()


def test_parts_merge_in_any_order(case):
    gold, predicted = case
    counts, headline = count_ids(gold, predicted), entity_metrics.headline(count_ids(*case))
    parts = [count_ids(gold[i : i + 64], predicted[i : i + 64]) for i in range(0, 400, 64)]
    merged = entity_metrics.concatenate(parts)
    for field in fields(counts):
        np.testing.assert_array_equal(getattr(merged, field.name), getattr(counts, field.name))
    assert entity_metrics.headline(entity_metrics.concatenate(parts[::-1])) == headline
    with pytest.raises(ValueError, match="differ in their types"):
        entity_metrics.concatenate([parts[0], count_ids(gold, predicted, ("x", "y", "z"))])


def test_duplicate_and_nested_spans():
    gold = [[Span("a", 0, 2), Span("a", 0, 2), Span("b", 0, 2), Span("a", 1, 2)]]
    predicted = [[Span("b", 0, 2), Span("b", 0, 2)]]
    sides = [entity_metrics.from_spans(rows, TYPES) for rows in (gold, predicted)]
    counts = entity_metrics.count(*sides, TYPES)
    assert counts.gold.tolist() == [[2, 1, 0]]
    assert counts.hits.tolist() == counts.predicted.tolist() == [[0, 1, 0]]
    # A span beside a hit with its boundaries is missed, or spurious, but not confused with it.
    errors = entity_metrics.errors(*sides, 3)
    assert errors.hits.tolist() == [0, 1, 0] and errors.missed.tolist() == [2, 0, 0]
    errors = entity_metrics.errors(*sides[::-1], 3)
    assert errors.spurious.tolist() == [2, 0, 0] and not errors.confusion.any()


def test_no_entities_and_no_tokens():
    for rows in ([], [[], []], [[0, 0], []]):
        arrays = [np.array(row, np.int64) for row in rows]
        counts = count_ids(arrays, arrays)
        headline = entity_metrics.headline(counts)
        assert headline.pop("token_accuracy", 1.0) == 1.0
        assert set(headline.values()) == {0.0}
        sides = [entity_metrics.from_tag_ids(arrays, 3)] * 2
        assert not any(np.any(x) for x in vars(entity_metrics.errors(*sides, 3)).values())


def plain_errors(gold_rows, predicted_rows):
    """Count the errors span by span."""
    counts = {"confusion": np.zeros((3, 3), int)}
    for name in ("hits", "boundary_gold", "boundary_predicted", "missed", "spurious"):
        counts[name] = np.zeros(3, int)

    def overlaps(span, others):
        return any(
            o.type == span.type and o.start < span.end and span.start < o.end for o in others
        )

    for gold, predicted in zip(gold_rows, predicted_rows, strict=True):
        by_place = {(p.start, p.end): p for p in predicted}
        for span in gold:
            partner = by_place.pop((span.start, span.end), None)
            index = TYPES.index(span.type)
            if partner == span:
                counts["hits"][index] += 1
            elif partner is not None:
                counts["confusion"][index, TYPES.index(partner.type)] += 1
            else:
                counts["boundary_gold" if overlaps(span, predicted) else "missed"][index] += 1
        for span in by_place.values():
            name = "boundary_predicted" if overlaps(span, gold) else "spurious"
            counts[name][TYPES.index(span.type)] += 1
    return counts


def test_errors_equal_those_of_a_plain_loop(case):
    gold, predicted = case
    sides = [entity_metrics.from_tag_ids(rows, 3) for rows in case]
    errors = entity_metrics.errors(*sides, 3)
    expected = plain_errors(spans_of(gold), spans_of(predicted))
    for name, values in expected.items():
        assert values.sum() > 20, name
        np.testing.assert_array_equal(getattr(errors, name), values, name)
    assert not np.trace(errors.confusion)
    # Each span is counted once.
    counts = count_ids(gold, predicted)
    of_gold = errors.hits + errors.confusion.sum(1) + errors.boundary_gold + errors.missed
    np.testing.assert_array_equal(of_gold, counts.gold.sum(0))
    of_predicted = errors.hits + errors.confusion.sum(0) + errors.boundary_predicted
    np.testing.assert_array_equal(of_predicted + errors.spurious, counts.predicted.sum(0))
    parts = [
        entity_metrics.errors(*(entity_metrics.from_tag_ids(r[i::2], 3) for r in case), 3)
        for i in range(2)
    ]
    for name, values in vars(entity_metrics.total(parts)).items():
        np.testing.assert_array_equal(values, getattr(errors, name))


def test_bootstrap_equals_resampling_rows(case):
    """Draws of the different rows have the distribution of resampled rows."""
    counts = count_ids(*case)
    generator = np.random.default_rng(1)
    from_rows = []
    for _ in range(1000):
        rows = generator.integers(0, 400, 400)
        arrays = (getattr(counts, f.name)[rows] for f in fields(counts)[1:])
        from_rows.append(
            entity_metrics.headline(entity_metrics.EntityCounts(counts.types, *arrays))
        )
    samples = entity_metrics.bootstrap(counts, 2000, 2)
    headline = entity_metrics.headline(counts)
    assert set(samples) == set(headline)
    for name, values in samples.items():
        expected = np.array([row[name] for row in from_rows])
        assert values.shape == (2000,)
        assert values.mean() == pytest.approx(expected.mean(), abs=0.002)
        assert values.std() == pytest.approx(expected.std(), rel=0.1)
        low, high = metrics.interval(values, 0.95)
        assert low < headline[name] < high
        np.testing.assert_array_equal(values, entity_metrics.bootstrap(counts, 2000, 2)[name])


def test_macro_f1_of_a_draw_is_over_the_types_it_holds():
    """A type in a single row is in a share 1 - 1/e of the draws; its F1 is 1, as that of others."""
    gold = [np.array([1])] + [np.array([3])] * 99
    samples = entity_metrics.bootstrap(count_ids(gold, gold), 500, 0)
    assert set(samples["macro_f1"]) == {1.0}


def test_bootstrap_memory_is_bounded_with_many_rows():
    """All weights of 1,000 draws of 20,000 rows would take 160 MB."""
    generator = np.random.default_rng(0)
    gold = random_ids(generator, 20_000, length=30)
    counts = count_ids(gold, corrupted(generator, gold))
    tracemalloc.start()
    samples = entity_metrics.bootstrap(counts, 1000, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20
    assert samples["f1"].mean() == pytest.approx(entity_metrics.headline(counts)["f1"], abs=0.002)


def test_malformed_input_is_refused():
    with pytest.raises(ValueError, match=r"row 1: no tag .* valid: 0 to 6, .* Received: -100"):
        entity_metrics.from_tag_ids([np.array([0]), np.array([6, -100])], 3)
    with pytest.raises(ValueError, match="Received: 7"):
        entity_metrics.from_tag_ids([np.array([7])], 3)
    with pytest.raises(ValueError, match="row 0: unknown type 'per'; did you mean 'person'"):
        entity_metrics.from_spans([[Span("per", 0, 1)]], ["person", "x"])
    for start, end in ((-1, 1), (1, 1), (2, 4)):
        with pytest.raises(ValueError, match=r"row 0: .* out of range. Received: .* in 3 tokens"):
            entity_metrics.from_spans([[Span("a", start, end)]], TYPES, [3])
    with pytest.raises(ValueError, match=r"row 1: the span overlaps .* Received: \('b', 1, 3\)"):
        entity_metrics.from_spans([[], [Span("a", 0, 2), Span("b", 1, 3)]], TYPES, [0, 3])
    with pytest.raises(ValueError, match="1 rows of predictions for 2 rows"):
        count_ids([np.array([0])] * 2, [np.array([0])])
    with pytest.raises(ValueError, match="row 1: 2 predicted tags for 1 tokens"):
        count_ids([np.array([0])] * 2, [np.array([0]), np.array([0, 0])])
