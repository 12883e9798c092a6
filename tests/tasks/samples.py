"""Small data sets of each task, for tests that run over the table of tasks."""

import csv
import json

from tests.conftest import GOLDEN, write_csv
from tests.tasks.test_image_runs import write_folder
from tests.tasks.test_multilabel_runs import write_table


def text_data(tiny, folder):
    return {"train": str(write_csv(folder / "t.csv", 60)), "max_length": 12}, f"hf:{tiny}"


def text_pair_data(tiny, folder):
    with open(write_csv(folder / "t.csv", 60), newline="") as file:
        rows = list(csv.DictReader(file))
    with open(folder / "pairs.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "other", "label"])
        table.writerows([[r["text"], r["text"][::-1], r["label"]] for r in rows])
    data = {"train": str(folder / "pairs.csv"), "text_pair": "other", "max_length": 16}
    return data, f"hf:{tiny}"


def multilabel_text_data(tiny, folder):
    with open(folder / "tags.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        table.writerows(
            [[f"the {a} {b} sky", f"{a}|{b}"] for a in ("red", "blue") for b in "xyz"] * 8
        )
    return {"train": str(folder / "tags.csv"), "max_length": 12}, f"hf:{tiny}"


def image_data(tiny, folder):
    write_folder(folder / "images", 8, 0)
    data = {"train": {"source": "images", "path": str(folder / "images")}}
    return data, f"hf:{GOLDEN / 'vision' / 'vit'}"


def multilabel_image_data(tiny, folder):
    return {"train": write_table(folder / "images", 40, 0)}, f"hf:{GOLDEN / 'vision' / 'vit'}"


def text_image_data(tiny, folder):
    """Write rows with a text and an image, whose colours both tell the label."""
    write_folder(folder / "images", 14, 0)
    with open(write_csv(folder / "t.csv", 42), newline="") as file:
        rows = list(csv.DictReader(file))
    with open(folder / "both.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["picture", "text", "label"])
        for index, row in enumerate(rows):
            table.writerow([f"images/{row['label']}/{index % 14}.png", row["text"], row["label"]])
    data = {"train": str(folder / "both.csv"), "image": "picture", "max_length": 12}
    return data, {"text": f"hf:{tiny}", "image": f"hf:{GOLDEN / 'vision' / 'vit'}"}


def text_image_numbers(tiny, folder):
    """Write rows with a text and an image, and a number for the colour."""
    data, backbones = text_image_data(tiny, folder)
    path = folder / "both.csv"
    numbers = {"red": "1.5", "green": "-2", "blue": "30"}
    header, *lines = path.read_text().splitlines()
    rows = [line.rpartition(",") for line in lines]
    path.write_text("\n".join([header, *(f"{a},{numbers[label]}" for a, _, label in rows)]))
    return data, backbones


def model_section(backbone, **keys):
    """Return the section `model` of a sample, with some keys for each backbone."""
    if isinstance(backbone, str):
        return {"backbone": backbone, **keys}
    return {name: model_section(part, **keys) for name, part in backbone.items()}


def regression_data(tiny, folder):
    """Write rows whose number grows with the red in them."""
    with open(folder / "numbers.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for index in range(60):
            bits = [(index >> bit) & 1 for bit in range(4)]
            words = " ".join("red" if bit else "blue" for bit in bits)
            # Many different numbers, mostly the share of red.
            table.writerow([f"the {words} sky", 100.5 + 10 * sum(bits) + 2 * bits[0] + bits[1]])
    return {"train": str(folder / "numbers.csv"), "max_length": 12}, f"hf:{tiny}"


def tagged_data(tiny, folder):
    """Write sentences whose colours are entities, of one or two words."""
    lines = []
    for index in range(60):
        first, second = "red" if index % 2 else "blue", "blue" if index % 3 else "red"
        for word in ("the", first, *((second,) if index % 4 == 0 else ()), "sky", "x", second):
            is_second = word == second and lines and lines[-1].endswith("B-colour")
            tag = "O" if word in ("the", "sky", "x") else "I-colour" if is_second else "B-colour"
            lines.append(f"{word}\t{'B-shade' if lines and lines[-1][:1] == 'x' else tag}")
        lines.append("")
    (folder / "sentences.conll").write_text("\n".join(lines))
    return {"train": str(folder / "sentences.conll"), "max_length": 12}, f"hf:{tiny}"


def question_data(tiny, folder):
    """Write contexts longer than a window, with and without an answer: the word after `is`."""
    paragraphs = []
    for index in range(30):
        colour = "red" if index % 2 else "blue"
        context = f"the sky is {colour} x " + "x y z " * (index % 5)
        answer = {"text": colour, "answer_start": context.index(colour)}
        questions = [
            {"id": f"{index}a", "question": "the sky", "answers": [answer], "is_impossible": False},
            {"id": f"{index}b", "question": "z z", "answers": [], "is_impossible": True},
        ]
        paragraphs.append({"context": context, "qas": questions})
    path = folder / "questions.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}]}))
    return {"train": str(path), "max_length": 16}, f"hf:{tiny}", {"max_question_length": 4}


# Task -> writes its data into a folder; (checkpoint of texts, folder) -> section `data`, backbone
# or backbones (`model_section`), and what the section `task` needs.
SAMPLES = {
    "text_classification": text_data,
    "text_multilabel": multilabel_text_data,
    "image_classification": image_data,
    "image_multilabel": multilabel_image_data,
    "text_regression": regression_data,
    "token_classification": tagged_data,
    "question_answering": question_data,
}
