"""Load a `Config` from YAML and overrides, or report all of its mistakes at once."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from tfft.config import methods, plain_yaml, renamed, sections, tasks
from tfft.config.augmentation import AugmentationConfig
from tfft.config.base import Section
from tfft.config.data import DataConfig, Source
from tfft.config.regularization import RegularizationConfig
from tfft.config.tune import TuneConfig
from tfft.utils.errors import UserError, nearest
from tfft.utils.reading import read_text

MAX_DEPTH = 50  # of nested sections
MAX_LINE = 1000  # characters of an error line
DEFAULT_TASK = next(iter(tasks.TASK_SECTIONS))
_MEMBERS = (DEFAULT_TASK, *sections.MODEL_KINDS)  # names of union members that no key holds


class Config(Section):
    """The config of one run, with all sections resolved."""

    data: DataConfig
    model: sections.ModelSection
    task: tasks.TaskConfig = tasks.TextClassification()
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
    def _task_defaults(cls, value: Any) -> Any:
        """Set `task.name`, `train.metric` and `data.image` to their defaults, if not set."""
        # Before validation a value may have any type.
        if not isinstance(value, dict):
            return value
        task, train = value.get("task", {}), value.get("train") or {}
        if isinstance(task, dict):
            task = {"name": DEFAULT_TASK, **task}
            value = {**value, "task": task}
            section = tasks.TASK_SECTIONS.get(str(task["name"]))
            if section is not None and isinstance(train, dict):
                value["train"] = {"metric": next(iter(section.metrics)), **train}
            data, is_image = value.get("data"), section and section.columns == ("image",)
            if is_image and isinstance(data, dict) and data.get("image") is None:
                value["data"] = {**data, "image": "image"}
        return value

    @model_validator(mode="after")
    def _check_metric(self) -> "Config":
        if (metric := self.train.metric) not in self.task.metrics:
            raise ValueError(
                f"train.metric: must be one of {', '.join(self.task.metrics)} for "
                f"{self.task.name}. Received: {_short(metric)}"
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a row has besides the targets, as in the section `data`."""
        return self.task.columns_in(self.data)

    @property
    def reads(self) -> tuple[str, ...]:
        """Kinds of input of a row: `text`, `image` or both."""
        is_image = [column == "image" for column in self.columns]
        return ("text",) * (not all(is_image)) + ("image",) * any(is_image)

    @property
    def supports(self) -> frozenset[str]:
        """Those of `tasks.OPTIONAL_KEYS` that may be set."""
        return self.task.supports | (tasks.IMAGE_KEYS if "image" in self.reads else frozenset())

    @model_validator(mode="after")
    def _check_supported(self) -> "Config":
        """Check that each optional key is set only if the task supports it."""
        for path in tasks.OPTIONAL_KEYS:
            name, *keys = path.split(".")
            part, default = getattr(self, name), type(self).model_fields[name].default
            for key in keys:
                default = type(part).model_fields[key].default
                part = getattr(part, key)
            if part != default and path not in self.supports:
                supporting = [n for n, s in tasks.TASK_SECTIONS.items() if path in s.supports]
                images = " and data.image" if path in tasks.IMAGE_KEYS else ""
                raise ValueError(
                    f"{path}: is for {', '.join(supporting)}{images}; task is {self.task.name}"
                )
        return self

    @model_validator(mode="after")
    def _check_backbones(self) -> "Config":
        """Check that there is one backbone, or one for the text and one for the image of a row."""
        named, both = tuple(self.model.towers) != ("",), len(self.reads) == 2
        if both and not named:
            raise ValueError(
                "model: must hold `text` and `image` with a backbone each, because rows have a "
                "text and an image (data.image)"
            )
        if named and not both:
            fix = "set data.image" if "text" in self.task.columns else "name one backbone"
            raise ValueError(
                f"model: `text` and `image` are for rows with a text and an image, and "
                f"{self.task.name} reads {self.reads[0]}s alone; {fix}"
            )
        pooling = getattr(self.task, "pooling", "auto")
        if both and pooling != "auto":
            raise ValueError(
                "task.pooling: must be auto with two backbones, each of which is read as its "
                f"checkpoint says. Received: {pooling!r}"
            )
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> "Config":
        """Check that the targets are not both mixed and replaced by a teacher's."""
        if self.augmentation.mixes and "text" in self.reads:
            raise ValueError("augmentation: mixup and cutmix mix images, not the texts beside them")
        if self.augmentation.mixes and self.regularization.distillation is not None:
            raise ValueError("augmentation: mixup and cutmix cannot be combined with distillation")
        return self

    @model_validator(mode="after")
    def _check_columns(self) -> "Config":
        """Check the columns that the task reads; the others may hold their defaults."""
        if isinstance(self.data.label, list) and self.task.targets != "numbers":
            raise ValueError(
                f"data.label: must be one column for {self.task.name}. Received: {self.data.label}"
            )
        columns = [getattr(self.data, name) for name in self.columns]
        columns += self.data.label_columns
        if len({type(c) for c in columns}) > 1:
            raise ValueError(f"data: columns must be all names or all numbers. Received: {columns}")
        if len(set(columns)) < len(columns):
            raise ValueError(
                f"data: {', '.join(self.columns)} and label must be different. Received: {columns}"
            )
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> "Config":
        """Check that the sources hold the columns that the task reads."""
        data, task = self.data, self.task
        sources = [s for s in (data.train, data.validation, data.test) if isinstance(s, Source)]
        for source in sources:
            if source.source in ("images", "npz") and self.reads != ("image",):
                raise ValueError(
                    f"data: source {source.source} is for images alone; task is {task.name} "
                    "(task: {name: image_classification} classifies images)"
                )
            if source.source == "squad" and task.targets != "answers":
                raise ValueError(
                    f"data: source squad (.json) is for question_answering; task is {task.name} "
                    "(name a file with one object a line .jsonl)"
                )
        return self


def load(
    path: str | Path, overrides: Iterable[str] = (), changes: Mapping[str, Any] | None = None
) -> Config:
    """Read a YAML file, apply changes and overrides, and validate the result.

    Args:
        path: the YAML file.
        overrides: texts such as `train.epochs=2`, applied after `changes`.
        changes: nested values that replace those of the file, key by key.

    Raises:
        UserError: the config has mistakes; one line for each.
    """
    return parse(read(path, overrides, changes), where=str(path))


def read(
    path: str | Path, overrides: Iterable[str] = (), changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of a YAML file with changes and overrides, not validated.

    Args:
        path: the YAML file.
        overrides: see `load`.
        changes: see `load`.

    Raises:
        UserError: the file does not exist or is not valid YAML, or an override is malformed.
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
    """Apply changes and overrides to a nested mapping and validate it.

    Args:
        raw: the content of a config.
        overrides: see `load`.
        changes: see `load`.
        where: names the config in error messages, such as the path of the file.

    Raises:
        UserError: the config has mistakes; one line for each.
    """
    raw = changed(raw, overrides, changes, where)
    if spaces := searches(raw):
        lines = [f"{'.'.join(path)}: is a search space, which needs tfft tune" for path in spaces]
        raise UserError("\n".join(f"{where}: {line}" for line in lines))
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = _error_lines(error.errors(), raw)
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None
    except UnicodeEncodeError:  # pydantic raises it for a message that quotes the text
        raise UserError(f"{where}: a text holds a lone surrogate") from None


def changed(
    raw: Any,
    overrides: Iterable[str] = (),
    changes: Mapping[str, Any] | None = None,
    where: str = "config",
) -> dict[str, Any]:
    """Return a copy of a nested mapping with changes and overrides applied.

    Args:
        raw: the content of a config.
        overrides: see `load`.
        changes: see `load`.
        where: names the config in error messages.

    Raises:
        UserError: `raw` is not a mapping, or an override is malformed.
    """
    if not isinstance(raw, Mapping):
        requirement = "must hold sections (data: ..., model: ...)"
        raise UserError(f"{where}: {requirement}. Received: {_short(raw)}")
    copy = _merge(_copy(raw), _copy(changes or {}))
    for override in overrides:
        _override(copy, override)
    return copy


def searches(raw: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Return the search spaces in a config by path; those in section `tune` do not count.

    Args:
        raw: the content of a config, or a part of it.
        path: keys that lead to the part.
    """
    if isinstance(raw, list):
        inner = [searches(value, (*path, str(index))) for index, value in enumerate(raw)]
    elif not isinstance(raw, Mapping):
        return {}
    elif "search" in raw:
        return {path: raw}
    else:
        inner = [searches(v, (*path, str(k))) for k, v in raw.items() if path or k != "tune"]
    return {key: space for spaces in inner for key, space in spaces.items()}


def section(model: type[Section], raw: Any, where: str) -> Any:
    """Validate a single section, or a search space.

    Args:
        model: the class of the section.
        raw: its content.
        where: names it in error messages.

    Raises:
        UserError: the section has mistakes; one line for each.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = _error_lines(error.errors(), raw, model)
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


def dump(config: Config) -> str:
    """Return the resolved config as YAML, defaults included; `load` reads it back."""
    return plain_yaml.dumps(config.model_dump(mode="json"))


def _copy(value: Any, depth: int = 0) -> Any:
    """Return a copy of nested values.

    Raises:
        UserError: they are nested too deep, or contain themselves.
    """
    if depth > MAX_DEPTH:
        raise UserError(f"config: nested more than {MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        return {k: _copy(v, depth + 1) for k, v in value.items()}
    if isinstance(value, PurePath):  # a mapping from Python may hold paths
        return str(value)
    return [_copy(v, depth + 1) for v in value] if isinstance(value, list) else value


def _merge(raw: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Write nested changes into `raw`; where both hold a mapping, merge key by key."""
    for key, value in changes.items():
        inner = raw.get(key)
        both = isinstance(inner, dict) and isinstance(value, Mapping)
        raw[key] = _merge(inner, value) if both else _copy(value)
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Write the value of an override `a.b=c` into `raw`."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > MAX_DEPTH:
        raise UserError(f"--set: must be section.key=value. Received: {_short(override)}")
    parent = raw
    # Create the sections on the way to the key.
    for depth, key in enumerate(keys[:-1]):
        inner = parent.setdefault(key, {})
        # A section without content is null in YAML.
        if inner is None:
            inner = parent[key] = {}
        if not isinstance(inner, dict):
            raise UserError(
                f"--set {override}: {'.'.join(keys[: depth + 1])} holds {inner!r}, not keys"
            )
        parent = inner
    parent[keys[-1]] = plain_yaml.loads(text, f"--set {path}")


# pydantic's type of an error -> the expected kind of value.
_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_type": "an integer",
}


def _error_lines(
    errors: Sequence[Mapping[str, Any]], raw: Any, root: type[BaseModel] = Config
) -> list[str]:
    """Return a line for each mistake.

    pydantic reports an error for each member of a union, such as `int | Literal["auto"]`; those of
    one key become one line.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for item in errors:
        groups.setdefault(tuple(_key_path(item["loc"], raw)), []).append(item)
    lines = []
    for items in groups.values():
        # A number that is not finite fails for the other members of the union too.
        items = [item for item in items if item["type"] == "finite_number"] or items
        kinds = [_EXPECTED[item["type"]] for item in items if item["type"] in _EXPECTED]
        literals = [item for item in items if item["type"] == "literal_error"]
        # The field is a union such as `int | Literal["auto"]`: one line names both.
        if len(items) == 2 and kinds and literals:
            line = _error_line(literals[0], raw, root)
            lines.append(line.replace("must be one of ", f"must be {kinds[0]}, or "))
        else:
            lines += [_error_line(item, raw, root) for item in items]
    lines = [line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..." for line in lines]
    return list(dict.fromkeys(lines))


def _error_line(item: Mapping[str, Any], raw: Any, root: type[BaseModel]) -> str:
    """Return a pydantic error as `path: what must hold. Received: value; nearest valid name`."""
    loc = list(_key_path(item["loc"], raw))
    path = ".".join(str(k) if str(k).isprintable() else repr(k) for k in loc)
    kind, message = item["type"], item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if kind == "extra_forbidden":
        new_name = renamed.hint(renamed.KEYS, path)
        return f"{path}: unknown key{new_name or nearest(loc[-1], _valid_keys(loc, raw, root))}"
    if kind == "missing":
        return f"{path}: required and not given"
    if kind == "literal_error":
        # pydantic gives the options as text: quoted strings, or numbers.
        options = re.findall(r"'([^']*)'|(?<![\w'])(\d+)(?![\w'])", message)
        options = [text or number for text, number in options]
        suggestion = nearest(item["input"], options)
        new_name = renamed.hint(renamed.VALUES.get(path, {}), item["input"])
        return (
            f"{path}: must be one of {', '.join(options)}. Received: {_short(item['input'])}"
            f"{new_name or (suggestion if 'mean' in suggestion else '')}"
        )
    if kind == "union_tag_invalid":
        options = re.findall(r"'([^']*)'", item["ctx"]["expected_tags"])
        value = item["input"].get("name") if isinstance(item["input"], dict) else item["input"]
        new_name = renamed.hint(renamed.VALUES.get(f"{path}.name", {}), value)
        suggestion = new_name or nearest(value, options)
        return f"{path}.name: unknown {path}. Received: {_short(value)}{suggestion}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{path}: must hold keys. Received: {_short(item['input'])}"
    if kind == "union_tag_not_found":
        return f"{path}.name: required and not given"
    where = f"{path}: " if path else ""  # a rule over several sections names its keys itself
    if isinstance(item["input"], dict):  # a rule over several keys, which the message names
        return f"{where}{message}"
    return f"{where}{message}. Received: {_short(item['input'])}"


def _short(value: Any) -> str:
    """Return the repr of a value for an error message, cut if it is long."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "an integer of thousands of digits"


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 200
_REPR.maxdict = _REPR.maxlist = 10


def _key_path(loc: tuple[Any, ...], raw: Any) -> Iterable[Any]:
    """Return the keys and indices of pydantic's location, without the names of union members."""
    value = raw
    for depth, part in enumerate(loc):
        last = depth == len(loc) - 1
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, Mapping) and part in value):
            value = value[part]
            yield part
        # A required key that is missing; not the name of the member that `name` selects.
        elif last and isinstance(value, Mapping) and part not in (value.get("name"), *_MEMBERS):
            yield part


def _valid_keys(loc: list[Any], raw: Any, root: type[BaseModel]) -> list[str]:
    """Return the valid keys of the section that holds the last key of `loc`."""
    models: list[type[BaseModel]] = [root]
    value = raw
    for part in loc[:-1]:
        value = value[part]
        if isinstance(part, int):
            continue
        models = [
            member
            for model in models
            if part in model.model_fields
            for member in _members(model.model_fields[part].annotation)
        ]
    # In a section with several classes, such as `method`, `name` selects the class.
    name = value.get("name") if isinstance(value, Mapping) else None
    selected = [m for m in models if name in get_args(_annotation(m, "name"))]
    # In others, such as `model`, the keys do: the key is unknown to the class that was selected.
    selected = selected or [m for m in models if loc[-1] not in m.model_fields]
    return list(dict.fromkeys(key for model in selected or models for key in model.model_fields))


def _annotation(model: type[BaseModel], field: str) -> Any:
    return model.model_fields[field].annotation if field in model.model_fields else None


def _members(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections within an annotation, such as those of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [member for arg in get_args(annotation) for member in _members(arg)]
