"""The profile finds what was put in."""

from tfft import preprocess
from tfft.config import parse
from tfft.data import profile

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def text(i):
    return " ".join(WORDS[int(d)] for d in f"{i * 7919 % 1000003:06d}")


def test_profile(config, tmp_path):
    train = [(text(i), "red" if i % 2 else "blue") for i in range(60)]
    train += [(text(3).upper() + "!", "red"), (text(4), "red")]  # exact; the second contradicts
    train += [(text(5) + " s", "red")]  # near
    test = [(text(i), "blue") for i in range(200, 210)] + [
        (text(7), "red"),
        (text(8) + "!?", "red"),
    ]
    for name, rows in (("train", train), ("test", test)):
        lines = [f"{t},{y}" for t, y in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines, "a,b,c", ",red"]))
    parsed = parse(config, changes={"data": {"validation": None, "max_length": 8}})
    found = profile.profile(parsed, preprocess.load(parsed.model, parsed.data))
    assert found["classes"]["train"] == {"blue": 30, "red": 33}
    duplicates = found["duplicates"]["train"]
    assert (duplicates["exact"], duplicates["contradicting"]) == (2, 1)
    assert duplicates["near"] >= 1
    assert any({text(5), text(5) + " s"} == set(pair) for pair in duplicates["near_shown"])
    assert found["leaks"]["train and test"]["exact"] == 2
    assert found["bad_rows"]["train"]["count"] == 2
    assert "train.csv:65: 3 columns" in found["bad_rows"]["train"]["listed"][0]
    inputs = preprocess.load(parsed.model, parsed.data)
    longer = preprocess.TextInputs(inputs.spec, 500)
    uncut = [len(ids) for ids, _, _ in longer.encode([t for t, _ in test])]
    lengths = found["lengths"]["test"]
    assert (
        lengths["cut_rows"] == sum(n > 8 for n in uncut) > 0
        and 0 < lengths["lost_tokens_share"] < 1
    )
    shown = profile.text(found)
    for part in ("classes", "leaks between splits", "bad rows", "max_length 8 cuts"):
        assert part in shown
