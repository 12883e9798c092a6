"""The command `tfft init`, run in the current folder, and data for it."""

import functools
import json
import shutil

import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from tests.conftest import WORDS
from tests.console import run_command
from tfft.config import load

COLORS = ("red", "green", "blue")


def texts(count, seed=0):
    """Return texts of different words, each with its colour."""
    generator = np.random.default_rng(seed)
    colors = generator.choice(COLORS, count)
    words = (" ".join(generator.choice(WORDS[3:], 6)) for _ in range(count))
    return [
        (f"{line} {color} {n}", str(color))
        for n, (line, color) in enumerate(zip(words, colors, strict=True))
    ]


def write_table(path, header, rows, separator=","):
    lines = [separator.join(header)] if header else []
    lines += [separator.join(f'"{c}"' if "," in c else c for c in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tagged_sentences(count):
    """Return sentences of seven tokens with their tags: colours of two tokens, and things."""
    return [
        (
            [*text.split()[:5], color, str(n)],
            [
                *("B-thing" if word in ("sky", "grass") else "O" for word in text.split()[:5]),
                "B-color",
                "I-color",
            ],
        )
        for n, (text, color) in enumerate(texts(count))
    ]


def write_conll(path, sentences, columns=""):
    """Write a file of CoNLL columns: tokens, further columns, and tags."""
    separator = f" {columns} " if columns else " "
    blocks = [
        "".join(f"{token}{separator}{tag}\n" for token, tag in zip(*sentence, strict=True))
        for sentence in sentences
    ]
    path.write_text("\n".join(blocks), encoding="utf-8")


def entities(tokens, tags):
    """Return a sentence as a text with the spans of its entities."""
    spans, end = [], -1
    for token, tag in zip(tokens, tags, strict=True):
        start, end = end + 1, end + 1 + len(token)
        if tag.startswith("B-"):
            spans.append({"start": start, "end": end, "label": tag[2:]})
        elif tag.startswith("I-"):
            spans[-1]["end"] = end
    return {"text": " ".join(tokens), "spans": spans}


def questions(count):
    """Return rows of questions, contexts and answers; the context of a third has none."""
    return [
        {
            "id": str(n),
            "title": "colours",
            "question": f"which color is {n}?",
            "context": f"the sky {text}",
            "answers": [{"text": color, "answer_start": 8 + text.rindex(color)}] if n % 3 else [],
        }
        for n, (text, color) in enumerate(texts(count))
    ]


def write_squad(path, rows):
    """Write rows of questions in SQuAD's nested form."""
    paragraphs = [{"context": row["context"], "qas": [row]} for row in rows]
    content = {"version": "v2.0", "data": [{"title": "colours", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(content), encoding="utf-8")


def answer_objects(rows):
    """Return rows whose answers are an object of lists, as in Hugging Face's data sets."""
    keys = ("text", "answer_start")
    return [{**row, "answers": {k: [a[k] for a in row["answers"]] for k in keys}} for row in rows]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def with_positions(checkpoint, folder, count):
    """Copy a BERT with more positions: a window has room for a question of 64 tokens."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": count}))
    tensors = load_file(folder / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("position_embeddings.weight"))
    tensors[name] = np.resize(tensors[name], (count, tensors[name].shape[1]))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@functools.cache
def png():
    """Return the bytes of a grey image."""
    return tf.io.encode_png(np.full((24, 24, 3), 90, np.uint8)).numpy()


def write_images(folder):
    for color in COLORS:
        (folder / color).mkdir(parents=True)
        for number in range(5):
            (folder / color / f"{number}.png").write_bytes(png())


def init(*arguments):
    """Run the command and return the config that it wrote, the text of it, and both outputs."""
    code, out, err = run_command("init", *arguments)
    assert code == 0, err
    output = out.partition(": ")[0]
    with open(output, encoding="utf-8") as file:
        text = file.read()
    assert all(len(line) <= 100 or line.lstrip()[0] != "#" for line in text.splitlines())
    assert len(text.splitlines()) <= 60  # one page
    assert f"tfft train --config={output}" in out
    return load(output), text, out, err


def refused(expected, *arguments):
    code, out, err = run_command("init", *arguments)
    assert code == 2 and not out, err
    assert len(err.splitlines()) == 1 and expected in err, err
