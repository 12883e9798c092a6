"""YAML and overrides in, a `Config` or all of its mistakes at once out."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from tfft.config import methods, plain_yaml, renamed, sections
from tfft.config.augmentation import AugmentationConfig
from tfft.config.base import Section
from tfft.config.data import DataConfig, Source
from tfft.config.regularization import RegularizationConfig
from tfft.config.tune import TuneConfig
from tfft.utils.errors import UserError, nearest
from tfft.utils.reading import read_text

DEEPEST = 50  # sections within sections
LONGEST = 1000  # characters of an error


class Config(Section):
    """One run: every section of the YAML, resolved."""

    data: DataConfig
    model: sections.ModelConfig
    task: sections.TaskConfig = sections.TaskConfig()
    method: methods.MethodConfig = methods.FullMethod()
    mask: list[sections.MaskRule] = Field(default_factory=list)
    optimizer: sections.OptimizerConfig = sections.OptimizerConfig()
    train: sections.TrainConfig = sections.TrainConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    distribute: sections.DistributeConfig = sections.DistributeConfig()
    evaluate: sections.EvaluateConfig = sections.EvaluateConfig()
    export: sections.ExportConfig = sections.ExportConfig()
    tune: TuneConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _metric_of_the_task(cls, value: Any) -> Any:
        """Where no metric is given it is the first that the task has."""
        task = value.get("task") if isinstance(value, dict) else None
        train = (value.get("train") or {}) if isinstance(value, dict) else None
        name = task.get("name") if isinstance(task, dict) else None
        known = isinstance(name, str) and name in sections.METRICS
        if not known or not isinstance(train, dict) or "metric" in train:
            return value
        return {**value, "train": {**train, "metric": sections.METRICS[name][0]}}

    @model_validator(mode="after")
    def _fits_the_task(self) -> "Config":
        """The metric is one that the task has; what is of one class a row is not given for tags."""
        name, metrics = self.task.name, sections.METRICS[self.task.name]
        if self.train.metric not in metrics:
            raise ValueError(
                f"train.metric: {name} has {', '.join(metrics)}. Received: {self.train.metric}"
            )
        regular = self.regularization
        if self.task.multi_label and (
            regular.r_drop is not None or regular.distillation is not None
        ):
            raise ValueError(f"regularization: r_drop and distillation do not go with {name}")
        return self

    @model_validator(mode="after")
    def _columns_agree(self) -> "Config":
        """The columns that the task reads; of others the resolved config holds the defaults."""
        data = self.data
        names = ("image",) if self.task.modality == "image" else ("text", "text_pair")
        columns = [c for n in (*names, "label") if (c := getattr(data, n)) is not None]
        if len({type(c) for c in columns}) > 1:
            raise ValueError(f"data: columns must be all names or all numbers. Received: {columns}")
        if len(set(columns)) < len(columns):
            raise ValueError(
                f"data: {', '.join(names)} and label must be different. Received: {columns}"
            )
        return self

    @model_validator(mode="after")
    def _of_one_modality(self) -> "Config":
        """What is for pictures is not given for texts, and the other way round."""
        task, data = self.task, self.data
        if self.augmentation.mixes and self.regularization.distillation is not None:
            raise ValueError("augmentation: mixup and cutmix do not go with distillation")
        if task.modality == "text":
            if self.evaluate.test_time_augmentation != "none":
                raise ValueError(
                    f"evaluate.test_time_augmentation: is for pictures; task is {task.name}"
                )
            if self.augmentation.any:
                raise ValueError(f"augmentation: is for pictures; task is {task.name}")
            sources = [s for s in (data.train, data.validation, data.test) if isinstance(s, Source)]
            for source in sources:
                if source.source in ("images", "npz"):
                    raise ValueError(
                        f"data: source {source.source} is for pictures; task is {task.name} "
                        "(task: {name: image_classification} classifies pictures)"
                    )
        elif data.text_pair is not None:
            raise ValueError(f"data.text_pair: is for texts; task is {task.name}")
        return self


def load(
    path: str | Path, overrides: Iterable[str] = (), changes: Mapping[str, Any] | None = None
) -> Config:
    """Read a YAML file, apply `a.b=c` overrides and nested changes, validate everything.

    Raises:
        UserError: with one line for each mistake.
    """
    return parse(read(path, overrides, changes), where=str(path))


def read(
    path: str | Path, overrides: Iterable[str] = (), changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of a YAML file with overrides and changes, not validated.

    Raises:
        UserError: there is no such file, or it is no YAML.
    """
    path = Path(path)
    if not path.is_file():
        siblings = path.parent.iterdir() if path.parent.is_dir() else ()
        hint = nearest(path.name, (p.name for p in siblings if p.suffix in {".yaml", ".yml"}))
        raise UserError(f"{path}: no such config file{hint}")
    text = read_text(path, plain_yaml.LARGEST)
    return changed(plain_yaml.loads(text, str(path)), overrides, changes, str(path))


def parse(
    raw: Mapping[str, Any],
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
    where: str = "config",
) -> Config:
    """Validate a nested mapping; `where` names it in the errors.

    Raises:
        UserError: with one line for each mistake.
    """
    raw = changed(raw, overrides, changes, where)
    if spaces := searches(raw):
        lines = [f"{'.'.join(path)}: is a search space, which tfft tune runs" for path in spaces]
        raise UserError("\n".join(f"{where}: {line}" for line in lines))
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = _explained(error.errors(), raw)
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None
    except UnicodeEncodeError:  # pydantic's, over a message that quotes the text
        raise UserError(f"{where}: a text holds a lone surrogate") from None


def changed(
    raw: Any,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
    where: str = "config",
) -> dict[str, Any]:
    """A copy of a nested mapping with nested changes and `a.b=c` overrides.

    Raises:
        UserError: it is no mapping, or an override is malformed.
    """
    if not isinstance(raw, Mapping):
        sections_ = "must hold sections (data: ..., model: ...)"
        raise UserError(f"{where}: {sections_}. Received: {_short(raw)}")
    copy = _merge(_copy(raw), _copy(changes or {}))
    for override in overrides:
        _override(copy, override)
    return copy


def searches(raw: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """The search spaces that stand in place of values, by path; the section `tune` has its own."""
    if isinstance(raw, list):
        inner = [searches(value, (*path, str(at))) for at, value in enumerate(raw)]
    elif not isinstance(raw, Mapping):
        return {}
    elif "search" in raw:
        return {path: raw}
    else:
        inner = [searches(v, (*path, str(k))) for k, v in raw.items() if path or k != "tune"]
    return {k: v for found in inner for k, v in found.items()}


def section(model: type[Section], raw: Any, where: str) -> Any:
    """Validate one section, or what stands in place of a value.

    Raises:
        UserError: with one line for each mistake.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [line.removeprefix("config: ") for line in _explained(error.errors(), raw, model)]
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


def dump(config: Config) -> str:
    """The resolved config as YAML, every default written out; `parse` reads it back."""
    return plain_yaml.dumps(config.model_dump(mode="json"))


def schema() -> dict[str, Any]:
    """JSON Schema of the YAML, for editors: a search space may stand in place of any value."""
    found = Config.model_json_schema()
    for name, part in found["$defs"].items():
        if name not in ("TuneConfig", "Halving", "Search"):
            _or_searched(part)
    tune = found["properties"].pop("tune")
    _or_searched(found)
    found["properties"]["tune"] = tune
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _or_searched(part: dict[str, Any]) -> None:
    """Let each property be what it was, or a search space."""
    for key, value in part.get("properties", {}).items():
        if "const" in value:  # the name by which a section is known
            continue
        told = {k: value.pop(k) for k in ("title", "description", "default") if k in value}
        part["properties"][key] = {"anyOf": [value, {"$ref": "#/$defs/Search"}], **told}


def _copy(value: Any, depth: int = 0) -> Any:
    """A copy of nested values.

    Raises:
        UserError: they are nested deeper than any config, as what contains itself is.
    """
    if depth > DEEPEST:
        raise UserError(f"config: nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        return {k: _copy(v, depth + 1) for k, v in value.items()}
    if isinstance(value, PurePath):  # in a mapping from Python; YAML has none
        return str(value)
    return [_copy(v, depth + 1) for v in value] if isinstance(value, list) else value


def _merge(raw: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested changes over nested values; a mapping over a mapping is merged key by key."""
    for key, value in changes.items():
        inner = raw.get(key)
        both = isinstance(inner, dict) and isinstance(value, Mapping)
        raw[key] = _merge(inner, value) if both else _copy(value)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > DEEPEST:
        raise UserError(f"--set: must be section.key=value. Received: {_short(override)}")
    at = raw
    for depth, key in enumerate(keys[:-1]):
        inner = at.setdefault(key, {})
        if inner is None:
            inner = at[key] = {}
        if not isinstance(inner, dict):
            raise UserError(
                f"--set {override}: {'.'.join(keys[: depth + 1])} holds {inner!r}, not keys"
            )
        at = inner
    at[keys[-1]] = plain_yaml.loads(text, f"--set {path}")


# pydantic's name of a mistake -> what was wanted.
_KINDS = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_type": "an integer",
}


def _explained(
    errors: Sequence[Mapping[str, Any]], raw: Any, root: type[BaseModel] = Config
) -> list[str]:
    """A line for each mistake; of a key that may be a number or a word pydantic makes two."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for item in errors:
        groups.setdefault(tuple(_real_path(item["loc"], raw)), []).append(item)
    lines = []
    for items in groups.values():
        # What is no finite number is none of the other types of a union either.
        items = [item for item in items if item["type"] == "finite_number"] or items
        kinds = [_KINDS[item["type"]] for item in items if item["type"] in _KINDS]
        words = [item for item in items if item["type"] == "literal_error"]
        if len(items) == 2 and kinds and words:
            line = _explain(words[0], raw, root)
            lines.append(line.replace("must be one of ", f"must be {kinds[0]}, or "))
        else:
            lines += [_explain(item, raw, root) for item in items]
    lines = [line if len(line) <= LONGEST else f"{line[:LONGEST]}..." for line in lines]
    return list(dict.fromkeys(lines))


def _explain(item: Mapping[str, Any], raw: Any, root: type[BaseModel]) -> str:
    """One pydantic error as `path: what must hold; received ...; nearest valid name`."""
    loc = list(_real_path(item["loc"], raw))
    path = ".".join(str(k) if str(k).isprintable() else repr(k) for k in loc) or "config"
    kind, message = item["type"], item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if kind == "extra_forbidden":
        new_name = renamed.hint(renamed.KEYS, path)
        return f"{path}: unknown key{new_name or nearest(loc[-1], _keys_beside(loc, raw, root))}"
    if kind == "missing":
        return f"{path}: required and not given"
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'|(?<![\w'])(\d+)(?![\w'])", message)
        options = [text or number for text, number in options]
        suggestion = nearest(item["input"], options)
        new_name = renamed.hint(renamed.VALUES.get(path, {}), item["input"])
        return (
            f"{path}: must be one of {', '.join(options)}; received {_short(item['input'])}"
            f"{new_name or (suggestion if 'mean' in suggestion else '')}"
        )
    if kind == "union_tag_invalid":
        options = re.findall(r"'([^']*)'", item["ctx"]["expected_tags"])
        value = item["input"].get("name") if isinstance(item["input"], dict) else item["input"]
        return f"{path}.name: unknown {path}; received {_short(value)}{nearest(value, options)}"
    if kind == "union_tag_not_found":
        return f"{path}.name: required and not given"
    if isinstance(item["input"], dict):  # a rule over several keys: the message says which
        return f"{path}: {message}"
    return f"{path}: {message}; received {_short(item['input'])}"


def _short(value: Any) -> str:
    """The repr of what was received, cut where it is long."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "an integer of thousands of digits"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxdict = _REPR.maxlist = 10


def _real_path(loc: tuple[Any, ...], raw: Any) -> Iterable[Any]:
    """Drop the parts of pydantic's location that name union members, not keys."""
    at = raw
    for depth, part in enumerate(loc):
        last = depth == len(loc) - 1
        in_list = isinstance(at, list) and isinstance(part, int) and part < len(at)
        if in_list or (isinstance(at, Mapping) and part in at):
            at = at[part]
            yield part
        elif last and isinstance(at, Mapping):
            yield part


def _keys_beside(loc: list[Any], raw: Any, root: type[BaseModel]) -> list[str]:
    """The valid keys of the section in which the last part of `loc` stands."""
    models: list[type[BaseModel]] = [root]
    at = raw
    for part in loc[:-1]:
        at = at[part]
        if isinstance(part, int):
            continue
        models = [
            member
            for model in models
            if part in model.model_fields
            for member in _members(model.model_fields[part].annotation)
        ]
    name = at.get("name") if isinstance(at, Mapping) else None
    named = [m for m in models if name in get_args(_annotation(m, "name"))]
    return [key for model in named or models for key in model.model_fields]


def _annotation(model: type[BaseModel], field: str) -> Any:
    return model.model_fields[field].annotation if field in model.model_fields else None


def _members(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [member for arg in get_args(annotation) for member in _members(arg)]
