"""The command `tfft init`, run in the current folder, and data for it."""

import functools

import numpy as np
import tensorflow as tf

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
