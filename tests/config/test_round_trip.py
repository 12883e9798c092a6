"""A resolved config, as a run directory holds it, is read back unchanged."""

import random
import types
import typing
from pathlib import Path

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel

from tfft.config import (
    TASK_SECTIONS,
    Config,
    Duration,
    Interval,
    dump,
    load,
    parse,
    read,
    searches,
)
from tfft.config.durations import Minutes
from tfft.search.space import Space
from tfft.utils.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
# Strings that YAML may read as something else.
TEXTS = ["a", "1e5", "5.e-3", "1_0", "0x1f", "yes", "null", "~", "=", "<<", "2020-01-01", "1:30"]
TEXTS += ["", " ", " a ", "é", "日本", "\t", "a\nb", "\x07", "\x85", "a: b", "#", "- a", "'", '"']
TEXTS += ["%", "*a", "&a", "!a", "{", "[", "@", "`", "\\", "\u2028", "\ufeff", "|", "1e-3"]
TIMES = ["1 steps", "1234567 steps", "0.1 epochs", "0.00001 epochs", "33.3333333333333 %", "0%"]


def assert_reads_back(config, folder):
    path = folder / "config.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(path) == config


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_read_back(path, tmp_path):
    raw = read(path)
    if searches(raw):
        space = Space(raw, str(path))
        assert_reads_back(space.config(space.defaults), tmp_path)
    else:
        assert_reads_back(load(path), tmp_path)


@pytest.mark.parametrize("task", TASK_SECTIONS)
@pytest.mark.parametrize("header", [True, False])
def test_column_names_and_numbers_are_read_back(task, header, tmp_path):
    names = [*TASK_SECTIONS[task].columns, "label"]
    columns = {name: "abcd"[i] if header else i for i, name in enumerate(names)}
    backbone = {"backbone": "hf:x/y"}
    raw = {
        "data": {"train": "t.csv", **columns},
        "model": {"text": backbone, "image": backbone} if len(columns) == 4 else backbone,
        "task": {"name": task},
    }
    assert_reads_back(parse(raw), tmp_path)


def test_columns_of_the_task_must_agree():
    raw = {"model": {"backbone": "hf:x/y"}}
    with pytest.raises(UserError, match=r"all names or all numbers. Received: \[0, 'label'\]"):
        parse({**raw, "data": {"train": "t.csv", "text": 0}})
    with pytest.raises(UserError, match=r"all names or all numbers. Received: \['image', 1\]"):
        parse(
            {
                **raw,
                "data": {"train": "t.csv", "text": 0, "label": 1},
                "task": {"name": "image_classification"},
            }
        )
    with pytest.raises(UserError, match="text, text_pair and label must be different"):
        parse({**raw, "data": {"train": "t.csv", "text_pair": "label"}})


class Generated:
    """Random values of the types of the config."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def section(self, model):
        values = {}
        for name, field in model.model_fields.items():
            is_set = field.is_required() or self.random.random() < 0.12
            if is_set and name != "tune":
                values[name] = self.value(field.annotation, field.metadata)
        if special := self.SPECIAL.get(model.__name__):
            key, options = special
            values[key] = self.random.choice(options)
        if model is Config and "text" in values["model"]:  # two backbones need an image
            values["data"]["image"] = "image"
        return values

    BACKBONES = ("hf:a/b", "hub:./x", "keras:X", "kerashub:p", "timm:a/b")
    SPECIAL: typing.ClassVar = {
        "BackboneConfig": ("backbone", BACKBONES),
        "ModelConfig": ("backbone", BACKBONES),
        "Source": ("path", ["a.csv", "~x/a b.csv", "1e5", "*.csv", "é/日.tsv"]),
    }

    def value(self, kind, limits=()):
        choose = self.random.choice
        if kind is Minutes:
            return choose(["90 minutes", "0.1234567891 min", "1234567 minutes"])
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Annotated:
            return self.value(arguments[0], arguments[1:])
        if origin is typing.Literal:
            return choose(arguments)
        if origin in (typing.Union, types.UnionType):
            return self.value(choose(arguments), limits)
        if origin is list:
            minimum = max([m.min_length for m in limits if isinstance(m, MinLen)], default=0)
            return [self.value(arguments[0]) for _ in range(minimum + choose([0, 1, 2]))]
        if origin is tuple:
            return sorted(self.value(argument, limits) for argument in arguments)
        if origin is dict:
            return {self.value(arguments[0]): self.value(arguments[1]) for _ in range(2)}
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return self.section(kind)
        if kind is Interval:
            return choose([*TIMES, "0.7 minutes", "1234567 minutes"])
        if kind is Duration:
            return choose(TIMES)
        if kind in (int, float):
            return self.number(kind, limits)
        return {bool: choose([True, False]), str: choose(TEXTS), type(None): None}[kind]

    def number(self, kind, limits):
        low = max([m.ge for m in limits if isinstance(m, Ge)], default=0)
        low = max([low, *(m.gt for m in limits if isinstance(m, Gt))])
        high = min([m.le for m in limits if isinstance(m, Le)], default=1 << 31)
        high = min([high, *(m.lt for m in limits if isinstance(m, Lt))])
        if kind is int:
            return self.random.choice([low + 1, self.random.randrange(low, high)])
        small = low + (high - low) * 10 ** self.random.uniform(-12, -3)
        return self.random.choice([small, self.random.uniform(low, high)])


def test_generated_configs_are_read_back_or_refused(tmp_path):
    accepted = 0
    for seed in range(250):
        try:
            config = parse(Generated(seed).section(Config))
        except UserError as error:
            assert str(error).startswith("config: "), error
            continue
        accepted += 1
        assert_reads_back(config, tmp_path)
    assert accepted > 50
