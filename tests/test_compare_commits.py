"""The comparison of two commits, without running any: records, renamed names, configs of cases."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tfft.config import parse, schema


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("compare_commits")


KERNEL = np.array([[1.0, 2.0], [np.nan, 0.0]], np.float32)
VALUES = {"metrics/test/accuracy": 0.5, "metrics/test/log_loss": float("nan")}
COSTS = {"traces": 2, "syncs per 100 steps": 400, "peak MiB": 500, "seconds": 9.0}


@pytest.fixture
def compare(script):
    def compare(arrays=None, values=None, costs=None, **options):
        old = script.Record({"kernel": KERNEL, "bias": np.zeros(2)}, VALUES, COSTS)
        changed = [{**a, **(b or {})} for a, b in ((old.arrays, arrays), (VALUES, values))]
        return script.compare(old, script.Record(*changed, {**COSTS, **(costs or {})}), **options)

    return compare


def test_identical(compare):
    assert compare({"kernel": KERNEL.copy()}, {"metrics/test/log_loss": float("nan")}) == []


def test_differing_arrays_have_their_largest_difference(compare):
    other = KERNEL.copy()
    other[0, 1] += 0.25
    assert compare({"kernel": other}) == [
        "kernel: max abs difference 0.25, 1 of 4 elements",
    ]
    assert compare({"kernel": KERNEL.astype(np.float64)}) == [
        "kernel: float32[2, 2] -> float64[2, 2]"
    ]
    assert compare({"bias": np.zeros(3)}) == ["bias: float64[2] -> float64[3]"]
    assert compare({"bias": -np.zeros(2)}) == [
        "bias: differs in the sign of a zero or the bits of a NaN"
    ]


def test_differing_strings_and_values(script, compare):
    old, new = (script.Record({"label": np.array([b"red", last])}) for last in (b"blue", b"sky"))
    assert script.compare(old, new) == ["label: b'blue' -> b'sky' at 1"]
    assert compare(values={"metrics/test/accuracy": 0.6}) == ["metrics/test/accuracy: 0.5 -> 0.6"]


def test_names_on_one_side(script, compare):
    assert compare({"head/bias": np.zeros(1)}) == ["head/bias: only in new"]
    old = script.Record({"head/bias": np.zeros(1)})
    assert script.compare(old, script.Record()) == ["head/bias: only in old"]
    new = script.Record({"classifier/bias": np.zeros(1)})
    assert script.compare(old, new, names=((r"^head/", "classifier/"),)) == []


def test_costs_may_fall_and_memory_may_rise_a_little(compare):
    assert compare(costs={"traces": 1, "peak MiB": 549, "seconds": 99.0}) == []
    assert compare(costs={"traces": 3}) == ["traces: 2 -> 3"]
    assert compare(costs={"peak MiB": 551}) == ["peak MiB: 500 -> 551"]
    assert compare(costs={"syncs per 100 steps": None}) == []


def test_a_failure_is_never_identical(script):
    failed = script.Record(values={"error": "exit code 1"})
    both = ["fails in old: exit code 1", "fails in new: exit code 1"]
    assert script.compare(failed, failed) == both


def test_resumed_exactly(script):
    arrays = {"undisturbed/kernel": KERNEL, "resumed/kernel": KERNEL.copy()}
    assert script.resumes_exactly(script.Record(arrays))
    assert not script.resumes_exactly(script.Record({**arrays, "resumed/kernel": KERNEL + 1}))
    assert script.resumes_exactly(script.Record({"resumed/kernel": KERNEL})) is None


def test_configs_are_valid_in_this_version(script):
    for case in script.cases.CASES.values():
        config = script.cases.config(case, Path("inputs"), Path("run") if case.teacher else None)
        assert parse(script.cases.translate(config, schema())).data.train is not None


def test_configs_are_translated_where_a_key_is_unknown(script):
    section = {"properties": {"name": {"enum": ["text_multilabel"]}, "cache_features": {}}}
    later = {"properties": {"task": {"$ref": "#/$defs/A"}, "train": {"anyOf": [section]}}}
    later["$defs"] = {"A": section}
    config = {"task": {"name": "text_tagging"}, "train": {"cache": True}}
    expected = {"task": {"name": "text_multilabel"}, "train": {"cache_features": True}}
    assert script.cases.translate(config, later) == expected
    assert script.cases.translate(config, schema()) in (config, expected)
