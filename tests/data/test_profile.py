"""The profile reports duplicates, leaks and bad rows that were put into a data set."""

from tfft import preprocess
from tfft.config import parse
from tfft.data import profile

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def text(i):
    return " ".join(WORDS[int(d)] for d in f"{i * 7919 % 1000003:06d}")


def test_profile_reports_duplicates_leaks_lengths_and_bad_rows(config, tmp_path):
    train = [(text(i), "red" if i % 2 else "blue") for i in range(60)]
    train += [
        (text(3).upper() + "!", "red"),
        (text(4), "red"),
    ]  # duplicates; the second has another label
    train += [(text(5) + " s", "red")]  # near duplicate
    test = [(text(i), "blue") for i in range(200, 210)] + [
        (text(7), "red"),
        (text(8) + "!?", "red"),
    ]
    for name, rows in (("train", train), ("test", test)):
        lines = [f"{t},{y}" for t, y in rows]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines, "a,b,c", ",red"]))
    parsed_config = parse(config, changes={"data": {"validation": None, "max_length": 8}})
    sections = (parsed_config.model, parsed_config.data, parsed_config.task)
    result = profile.profile(parsed_config, preprocess.load(*sections))
    assert result["targets"]["train"] == {"blue": 30, "red": 33}
    duplicates = result["duplicates"]["train"]
    assert (duplicates["exact"], duplicates["contradicting"]) == (2, 1)
    assert duplicates["near"] >= 1
    assert any({text(5), text(5) + " s"} == set(pair) for pair in duplicates["near_shown"])
    assert result["leaks"]["train and test"]["exact"] == 2
    assert result["bad_rows"]["train"]["count"] == 2
    assert "train.csv:65: 3 columns" in result["bad_rows"]["train"]["listed"][0]
    inputs = preprocess.load(*sections)
    untruncated = preprocess.TextInputs(inputs.spec, 500)
    lengths_of_rows = [len(ids) for ids, _, _ in untruncated.encode([t for t, _ in test])]
    lengths = result["lengths"]["test"]
    assert (
        lengths["cut_rows"] == sum(n > 8 for n in lengths_of_rows) > 0
        and 0 < lengths["lost_tokens_share"] < 1
    )
    report = profile.text(result)
    for part in ("targets", "leaks between splits", "bad rows", "max_length 8 cuts"):
        assert part in report
