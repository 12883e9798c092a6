"""Look at data and write a config for them, with a comment for each choice."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from tfft.config import parse, plain_yaml
from tfft.starter import choices, data_section, questions
from tfft.starter.facts import Facts, look
from tfft.starter.page import MAX_PATH, Entry, name, write
from tfft.starter.request import Request
from tfft.starter.roles import listed


@dataclass(frozen=True)
class Draft:
    """A written config.

    Attributes:
        text: the YAML.
        doubts: what could not be decided with confidence, one line each.
        summary: task, rows and columns in a line.
    """

    text: str
    doubts: tuple[str, ...]
    summary: str


def draft(request: Request) -> Draft:
    """Return a config for the data of a request.

    Raises:
        UserError: the data cannot be read, a role has no column, or there is one class alone.
    """
    data = look(request)
    sections = {
        "data": data_section.section(data),
        "model": _model_entries(data),
        "task": [Entry("name", data.task, _task_comment(data))],
        **_training_entries(data),
    }
    text = write(_title(data), sections)
    parse(plain_yaml.loads(text, request.output), where=request.output)
    doubts = [f"{e.key}: {e.doubt}" for entries in sections.values() for e in entries if e.doubt]
    inputs = listed(data.roles.columns[:-1])
    summary = f"{data.task} of {inputs} by {listed([data.roles.label])}, {data.rows}"
    return Draft(text, tuple(doubts), summary)


def _task_comment(data: Facts) -> str:
    if data.roles.targets == "tags":
        noun = "type of entities" if len(data.counts) == 1 else "types of entities"
        return data_section.counted(data, noun)
    if data.roles.targets == "answers" and (rows := data.counts.total()):
        extent = "" if data.head.complete else " among these rows"
        share = data.counts[questions.NO_ANSWER] / rows
        detail = f"{100 * share:.0f} % without an answer" if share else "each with an answer"
        return f"{rows:,} questions{extent}, {detail}"
    return _TASKS[data.roles.targets]


_TASKS = {
    "class": "one class a row; a _multilabel task has several",
    "labels": "several labels a row; _classification has exactly one",
    "numbers": "a number a row; _classification has classes",
    "answers": "a passage of the context answers a question, or none does",
}


def _title(data: Facts) -> list[str]:
    output = name(shlex.quote(data.request.output), MAX_PATH)
    return [
        f"Written by tfft init from {name(data.request.data, MAX_PATH)}: {data.rows}.",
        f"tfft show --config={output} prints all other keys with their values. Paths start from "
        "the folder in which tfft runs.",
    ]


def _model_entries(data: Facts) -> list[Entry]:
    backbone = data.request.backbone
    if backbone is not None:
        return [Entry("backbone", backbone, "from --backbone")]
    if not data.is_text:
        size = choices.image_size(data.head.image_size)
        comment = f"2 M parameters, runs on a CPU; {choices.LARGER_IMAGES} is larger and better"
        return [
            Entry("backbone", choices.IMAGES, comment),
            Entry("weights", "imagenet", "downloaded once by Keras; or a file"),
            Entry("image_size", size, "pixels, 96 to 224 for these weights; time grows with it"),
        ]
    backbone, comment = _BACKBONES[choices.language(data.texts)]
    return [Entry("backbone", backbone, comment)]


_BACKBONES = {
    "english": (
        choices.ENGLISH,
        "for English, by the letters; 23 M parameters, runs on a CPU. Larger: "
        f"{choices.LARGER_ENGLISH}; other languages: {choices.MULTILINGUAL}",
    ),
    "chinese": (
        choices.CHINESE,
        "the letters are Chinese; 102 M parameters, better on a GPU. For further languages: "
        f"{choices.MULTILINGUAL}",
    ),
    "other": (
        choices.MULTILINGUAL,
        "many letters are not those of English: reads 100 languages; 278 M parameters, better on a "
        f"GPU. For English alone: {choices.ENGLISH}",
    ),
}


def _training_entries(data: Facts) -> dict[str, Sequence[Entry]]:
    """Return the sections `method`, `optimizer` and `train`."""
    model = data.request.backbone or _model_entries(data)[0].value
    chosen = choices.training(data.head.total, model, data.is_text)
    sections: dict[str, Sequence[Entry]] = {"method": [Entry("name", chosen.method, chosen.reason)]}
    if chosen.optimizer:
        sections["optimizer"] = [Entry(k, v, _REASONS[k]) for k, v in chosen.optimizer.items()]
    sections["train"] = [Entry(k, v, _REASONS[k]) for k, v in chosen.train.items()]
    return sections


_REASONS = {
    "learning_rate": "by the size of the backbone; tfft lr-find plots the loss at others",
    "layer_decay": "lower layers take smaller steps, which helps with few rows; 1: the same",
    "epochs": "by the number of rows; more for few rows, fewer to save time",
    "batch_size": "rows of a step; auto: micro-batches that fit in the memory",
    "seed": "the same seed repeats the run",
}
