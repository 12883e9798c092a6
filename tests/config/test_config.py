"""The config: all mistakes at once, each with its key, the received value and the nearest name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml

from tfft.config import (
    Config,
    dump,
    load,
    parse,
    plain_yaml,
    read,
    renamed,
    schema,
    searches,
)
from tfft.search.space import Space
from tfft.utils.errors import UserError

ROOT = Path(__file__).parents[2]
GOOD = {"data": {"train": "a.csv"}, "model": {"backbone": "hf:x/y"}}
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_loads_and_has_a_header(path):
    raw = read(path)
    if searches(raw):
        space = Space(raw, str(path))
        space.config(space.defaults)
    else:
        load(path)
    head = path.read_text(encoding="utf-8").split("\ndata:")[0]
    for part in ("Hardware and time:", "Expect:", "measured"):
        assert part in head, f"the header lacks {part!r}"


BOTH = {
    "data": {"train": "a.csv", "image": "picture"},
    "model": {"text": {"backbone": "hf:x/y"}, "image": {"backbone": "keras:X"}},
}


def test_text_and_image_have_a_backbone_each():
    config = parse(BOTH, changes={"data": {"text_pair": "b"}})
    assert config.columns == ("text", "text_pair", "image") and config.reads == ("text", "image")
    assert {name: tower.backbone for name, tower in config.model.towers.items()} == {
        "text": "hf:x/y",
        "image": "keras:X",
    }
    assert parse(yaml.safe_load(dump(config))) == config
    jsonschema.validate(BOTH, schema())
    single = parse(GOOD)
    assert single.reads == ("text",) and single.model.towers == {"": single.model}
    images = parse({**GOOD, "task": {"name": "image_classification"}, "data": {"train": "a/"}})
    assert images.reads == ("image",) and images.data.image == "image"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"train": "a.csv"}}, "text_classification reads texts alone; set data.image"),
        ({"model": GOOD["model"]}, "model: must hold `text` and `image` with a backbone each"),
        ({"model": {"text": GOOD["model"]}}, "model.image: required and not given"),
        ({"model": {**BOTH["model"], "head": "checkpoint"}}, "model.head: unknown key; valid: te"),
        (
            {"model": {**BOTH["model"], "image": {"backbone": "keras:X", "dropout": 0.1}}},
            "model.image: `dropout` is for hf: backbones only",
        ),
        (
            {"model": {**BOTH["model"], "surgery": {"drop": ["block_0"]}}},
            "model: `surgery.drop` must hold blocks of a backbone, such as text/block_0. Received",
        ),
        (
            {"model": {**BOTH["model"], "surgery": {"drop": ["image/block_0"]}}},
            "model: `surgery.drop` is for hf: backbones only. Received: 'image/block_0'",
        ),
        ({"task": {"name": "image_classification"}}, "image_classification reads images alone"),
        ({"task": {"name": "token_classification"}}, "data.image: is for text_classification"),
        ({"task": {"name": "question_answering"}}, "data.image: is for text_classification"),
        ({"task": {"pooling": "mean"}}, "task.pooling: must be auto with two backbones"),
        ({"augmentation": {"mixup": 0.2}}, "augmentation: mixup and cutmix mix images, not the"),
        ({"data": {"train": "a/", "image": "p"}}, "data: source images is for images alone"),
        ({"data": {"train": "a.csv", "image": "text"}}, "text, image and label must be different"),
    ],
)
def test_mistake_with_two_backbones_is_one_line(changes, expected):
    with pytest.raises(UserError) as error:
        parse({**BOTH, **changes})
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_there_are_recipes():
    assert len(RECIPES) >= 4


def test_a_dumped_config_is_read_back():
    config = parse(GOOD, ["optimizer.learning_rate=5e-5", "method={name: top, stages: 2}"])
    assert parse(yaml.safe_load(dump(config))) == config
    assert config.optimizer.learning_rate == 5e-5
    assert config.method.stages == 2


def test_all_errors_at_once(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "data: {train: {source: tvs, path: x}, txt: q}\nmodel: {backbone: 'hff:x'}\n"
        "optimizer: {nam: x, weight_decay: -1}\ntrian: {}\n"
    )
    with pytest.raises(UserError) as error:
        load(path)
    lines = str(error.value).split("\n")
    assert len(lines) == 6
    assert all(line.startswith(f"{path}: ") for line in lines)
    text = str(error.value)
    assert "data.train.source: must be one of" in text and "Received: 'tvs'" in text
    assert "did you mean 'tsv'?" in text
    assert "data.txt: unknown key; did you mean 'text'?" in text
    assert "optimizer.weight_decay" in text and "Received: -1" in text
    assert "trian: unknown key; did you mean 'train'?" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": {"name": "hed"}}, "method.name: unknown method. Received: 'hed'; did you"),
        ({"method": {"name": "top"}}, "method.stages: required"),
        (
            {"method": {"name": "qlora", "bits": 3}},
            "method.bits: must be one of 4, 8. Received: 3",
        ),
        (
            {"train": {"cache_features": "of"}},
            "train.cache_features: must be true or false, or auto. Received: 'of'",
        ),
        (
            {"train": {"micro_batch": "autoo"}},
            "train.micro_batch: must be an integer, or auto. Received: 'autoo'; did you mean",
        ),
        ({"method": {"name": "top", "stagse": 2}}, "method.stagse: unknown key; did you mean"),
        ({"train": {"epochs": "three"}}, "train.epochs"),
        ({"train": {"checkpoint": {"every": 5}}}, "train.checkpoint.every: must be a number with"),
        ({"train": {"metric": "acuracy"}}, "train.metric: must be one of accuracy"),
        ({"mask": [{"match": "x", "trainabel": True}]}, "mask.0.trainabel: unknown key; did you"),
        ({"data": {"validation": {"fracton": 0.1}}}, "data.validation.fracton: unknown key; did"),
        ({"data": {"text": 0}}, "columns must be all names or all numbers"),
        ({"data": {"train": "data.bin"}}, "cannot tell the format"),
        (
            {"task": {"loss": "focal", "label_smoothing": 0.1}},
            ": task: `label_smoothing` is for loss",
        ),
        (
            {"task": {"zzz": 1}},
            "task.zzz: unknown key; valid: name, pooling, dropout, loss, focal_gamma, ",
        ),
        ({"task": None}, "task: must hold keys. Received: None"),
        (
            {"task": {"name": "text_multilabel"}, "train": {"metric": "accuracy"}},
            "must be one of mean_average_precision",
        ),
        (
            {"augmentation": {"flip": "both"}},
            ": augmentation: is for image_classification, image_multilabel",
        ),
        ({"distribute": {"devices": ["GPU:0"]}}, "`devices` must be one device"),
        (
            {"distribute": {"strategy": "mirrored", "devices": ["GPU:0", "GPU:0"]}},
            "distribute: `devices` must be different devices",
        ),
        (
            {"distribute": {"strategy": "tpu", "precision": "mixed_float16"}},
            "must be float32 or mixed_bfloat16 on a TPU",
        ),
        ({"distribute": {"tpu": "x"}}, "`tpu` is for strategy: tpu only"),
        ({"train": {"checkpoint": {"every": "0 minutes"}}}, "must be more than 0 minutes"),
        ({"train": {"checkpoint": {"every": "5 mins"}}}, "or '10 minutes'. Received: '5 mins'"),
        ({"train": {"validate_every": "5 minutes"}}, "train.validate_every: must be a number"),
        ({"train": {"profile": [20, 10]}}, "train.profile: must be two steps in order"),
        ({"train": {"micro_batch": "all"}}, "train.micro_batch"),
        ({"train": {"batch_size": "large"}}, "train.batch_size"),
    ],
)
def test_a_mistake_gives_an_actionable_line(changes, expected):
    with pytest.raises(UserError, match=r".") as error:
        parse(GOOD, changes=changes)
    assert expected in str(error.value)


def test_auto_batch_and_minutes():
    train = parse(GOOD, changes={"train": {"batch_size": "auto"}}).train
    assert (train.batch_size, train.micro_batch) == (32, "auto")
    checkpoint = {"checkpoint": {"every": "2.5 minutes"}}
    config = parse(GOOD, changes={"train": checkpoint})
    assert config.train.checkpoint.every.seconds == 150
    assert parse(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: [", "not valid YAML"),
        ("data: {}\ndata: {}", "is here twice"),
        ("- a", "must hold sections"),
        ("? [a]\n: b", "not a plain value"),
        ("!!python/object/apply:os.system [echo]", "not valid YAML"),
        ('data: !!int "abc"', r"c.yaml:1:7: not valid YAML: 'abc' is not a valid int"),
        ('data: !!float ""', "'' is not a valid float"),
        ('data: !!bool "x"', "'x' is not a valid bool"),
        ('data: !!timestamp "x"', "could not determine a constructor for the tag"),
        ("data: !!binary aGk=", "could not determine a constructor for the tag"),
        ("data: " + "9" * 5000, "'9{80}' is not a valid int"),
        ("&a [*a]", "an alias contains itself"),
        ("data: &a {b: {c: *a}}", "an alias contains itself"),
        ('data: "\\ud800"', "a text holds a lone surrogate"),
        ("[" * 500, "nested too deep"),
        ("[" * 100 + "]" * 100, "must hold sections"),
        ("data: " + "{a: " * 100 + "1" + "}" * 100, "config: nested more than 50 deep"),
        ("#" * (16 << 20) + "\n", "has 16,777,217 bytes; at most 16,777,216 are read"),
        ("data: 0x" + "f" * 5000, "Received: an integer of thousands of digits"),
        ("data: \x01", "special characters are not allowed"),
        ('data: {train: a.csv}\n"a\\nb": 1', r"c.yaml: 'a\\nb': unknown key"),
    ],
)
def test_yaml_mistakes(tmp_path, text, expected):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=expected):
        load(path)


def test_aliases_that_multiply_are_refused_before_their_expansion(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    merged = ["m0: &m0 {k: x}"]
    merged += [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 9)]
    for text in ("\n".join(lines), "\n".join(merged)):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError, match="more than 1,048,576 values, those of aliases incl"):
            load(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("base: &b {epochs: 2}\ntrain: *b\nx: [*b, *b]")
    assert read(tmp_path / "c.yaml")["train"] == {"epochs": 2}


def test_a_value_may_be_longer_than_a_mebibyte(tmp_path):
    (tmp_path / "c.yaml").write_text(f"data: {{label: '{'x' * (1 << 20)}'}}")
    assert len(read(tmp_path / "c.yaml")["data"]["label"]) == 1 << 20


def test_dates_and_similar_texts_stay_texts():
    labels = plain_yaml.loads("[2020-01-01, 2020-99-99, =, 5e-5]", "x")
    assert labels == ["2020-01-01", "2020-99-99", "=", 5e-5]
    for text in ("1e5", "2020-01-01", "\x85 a", "=", "yes"):
        assert plain_yaml.loads(plain_yaml.dumps([text]), "x") == [text]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"data": {"max_length": 1e20}}, "data.max_length: unable to parse"),
        ({"train": {"epochs": 10**5000}}, "train: `epochs` must be an integer below"),
        ({"train": {"epochs": 1 << 40}}, "train: `epochs` must be an integer below"),
        ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate: input should"),
        ({"optimizer": {"options": {"rho": float("nan")}}}, "options"),
        ({"optimizer": {"options": {"amount": 1 << 70}}}, "options"),
        ({"data": {"train": "\ud800"}}, "config: a text holds a lone surrogate"),
        ({"\ud800": 1}, "unable to parse raw data as a unicode string"),
        ({"data": {"label": "\ud800"}}, "data: `label` holds a lone surrogate"),
        ({"task": {"class_weights": {"\udfff": 1.0}}}, "`class_weights` holds a lone surrogate"),
        ({"optimizer": {"warmup": "9" * 400 + " steps"}}, "must be below 1,000,000,000,000"),
        (
            {"train": {"checkpoint": {"every": "9" * 400 + " min"}}},
            "more than 0 minutes, and below",
        ),
        ({"data": {"text": "x" * 10_000, "max_length": "y" * 10_000}}, "data.max_length"),
    ],
)
def test_values_that_no_library_accepts_are_refused(change, expected):
    with pytest.raises(UserError) as error:
        parse(GOOD, changes=change)
    assert expected in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(("old", "new"), renamed.KEYS.items())
def test_the_error_for_an_earlier_key_shows_the_new_name(old, new):
    section, key = old.split(".")
    with pytest.raises(UserError) as error:
        parse(GOOD, changes={section: {key: "x"}})
    assert str(error.value).endswith(f"{old}: unknown key; renamed to {new}")
    new_section, new_key = new.split(".")
    assert new_key in Config.model_fields[new_section].annotation.model_fields


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [(path, *names) for path, values in renamed.VALUES.items() for names in values.items()],
)
def test_the_error_for_an_earlier_value_shows_the_new_one(path, old, new):
    section, key = path.split(".")
    with pytest.raises(UserError, match=rf"{path}: .*'{old}'; renamed to {new}$"):
        parse(GOOD, changes={section: {key: old}})
    if path == "task.name":
        assert parse(GOOD, changes={section: {key: new}}).task.name == new
    else:
        field = Config.model_fields[section].annotation.model_fields[key]
        assert new in get_args(field.annotation)


def test_an_earlier_class_is_answered_with_the_new_one():
    import tfft

    with pytest.raises(AttributeError, match="'Adapters'; renamed to SharedBackbone"):
        tfft.Adapters  # noqa: B018


def test_a_mapping_from_python_may_hold_paths():
    assert parse(GOOD, changes={"data": {"train": Path("rows.csv")}}).data.train.path == "rows.csv"
    raw = {**GOOD, "data": {"train": {"source": "csv", "path": Path("a.txt")}}}
    assert parse(raw).data.train.path == "a.txt"


def test_mappings_that_contain_themselves_are_refused():
    cyclic = {"data": {}}
    cyclic["data"]["data"] = cyclic
    for arguments in ((cyclic,), (GOOD, [], cyclic), (GOOD, [".".join("a" * 2000) + "=1"])):
        with pytest.raises(UserError, match=r"nested more than 50 deep|--set: must be"):
            parse(*arguments)


def test_the_error_for_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "trec.yaml").touch()
    with pytest.raises(UserError, match=r"did you mean 'trec.yaml'"):
        load(tmp_path / "terc.yaml")


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3"])
def test_a_malformed_override_is_refused(override):
    with pytest.raises(UserError, match="--set"):
        parse(GOOD, [override])


def test_schema_covers_every_section():
    properties = json.loads(json.dumps(schema()))["properties"]
    assert set(GOOD) < set(properties)
    assert "learning_rate" in json.dumps(schema())


def test_the_schema_accepts_recipes_and_search_spaces():
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    for path in RECIPES:
        validator.validate(read(path))
    rate = {"search": "loguniform", "min": 1e-5, "max": 1e-3}
    methods = {"search": "choice", "values": [{"name": "full"}, {"name": "lora", "rank": rate}]}
    assert validator.is_valid({**GOOD, "optimizer": {"learning_rate": rate}, "method": methods})
    assert validator.is_valid({**GOOD, "tune": {"space": {"optimizer.learning_rate": rate}}})
    assert validator.is_valid({**GOOD, "train": {"batch_size": "auto"}})
    for task in ({}, {"dropout": 0.0}, {"loss": {"search": "choice", "values": ["focal", "mse"]}}):
        assert validator.is_valid({**GOOD, "task": task})
    assert not validator.is_valid({**GOOD, "task": {"name": "text_multilabel", "loss": "mse"}})
    assert not validator.is_valid({**GOOD, "train": {"batch_size": "many"}})
    assert not validator.is_valid(
        {**GOOD, "optimizer": {"learning_rate": {**rate, "search": "log"}}}
    )
    assert not validator.is_valid({**GOOD, "optimizer": {"learning_rat": 1e-3}})
    assert not validator.is_valid({**GOOD, "tune": {"trials": rate}})


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["train", "--config={}"], ["schema"], ["nonsense"]],
)
def test_help_and_typos_load_no_tensorflow(tmp_path, arguments):
    """Check sys.modules instead of a time."""
    path = tmp_path / "typo.yaml"
    path.write_text("data: {train: a.csv}\nmodle: {}\n")
    code = (
        "import sys, tfft.cli.__main__ as m\n"
        f"sys.argv = ['tfft', *{[a.format(path) for a in arguments]!r}]\n"
        "try: m.main()\n"
        "except SystemExit as e: code = e.code\n"
        "names = {'tensorflow', 'keras', 'transformers', 'numpy', 'matplotlib'}\n"
        "heavy = names & set(sys.modules)\n"
        "print('CODE', code, 'HEAVY', sorted(heavy))\n"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = 2 if arguments[-1] in ("nonsense", "--config={}") else 0
    assert f"CODE {expected} HEAVY []" in process.stdout, process.stdout + process.stderr
    assert "Traceback" not in process.stderr
