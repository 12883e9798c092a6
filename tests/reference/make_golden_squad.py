"""Write tests/golden/squad.json: SQuAD's scores, transformers' answers and targets.

The scores are those of the official scripts, which the repository `evaluate` has as
`compute_score.py`; the answers are those of `utils_qa.py`, the targets those of `run_qa.py`, which
are examples of the repository `transformers`. The arguments are the folders of these files:

    python tests/reference/make_golden_squad.py evaluate/metrics \
        transformers/examples/pytorch/question-answering
"""

import ast
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

OUT = Path(__file__).parent.parent / "golden" / "squad.json"

# predicted, true answers; chosen for the rules of the normalisation
ANSWERS = [
    ("the Red Barn", ["red barn"]),
    ("Red barn.", ["a red-barn", "barn", "the old barn"]),
    ("red", ["red barn of the farmer", "the farmer's red"]),
    ("a", ["the"]),
    ("", ["the"]),
    ("!?", ["barn"]),
    ("an apple a day", ["apple day", "day apple"]),
    ("barn barn red", ["barn red red"]),
    ("10:30 a.m.", ["1030 am", "10.30 p.m."]),
    ("Ünder  the\tÜBER\nbridge", ["under über bridge", "über bridge"]),
    ("theatre", ["the atre"]),
    ("红色的谷仓", ["红色的 谷仓", "红色的谷仓。"]),
    ("‘quoted’", ["quoted"]),
    ("the the", ["the", "an"]),
    ("x y z", ["z y x w", "x", "x y"]),
    ("anthem", ["an them"]),
]
# Only version 2.0: questions without an answer.
UNANSWERABLE = [("", []), ("barn", []), ("the", []), ("", ["!"]), ("red", ["!", "red"]), ("x", [])]

CONTEXTS = [
    "Zoë saw a red barn on the 小山 hill and the old cow in it .",
    "Nine engines left the station at noon , but only three of them came back : why ?",
    "Rain .",
    "The café opens late — very late , 一般 after ten — and it closes at four in the morning .",
]
QUESTIONS = ["What did she see ?", "How many engines came back ?", "Snow ?", "When does it open ?"]
# (row, first word, end of words) of the answers; the last of row 1 ends in the last word.
SPANS = [(0, 3, 5), (0, 0, 1), (0, 14, 15), (1, 11, 14), (1, 16, 17), (2, 0, 2), (2, 1, 2)]
SPANS += [(3, 4, 8), (3, 9, 10), (3, 0, 3), (3, 6, 17), (3, 20, 21), (0, 0, 0), (1, 4, 12)]
LENGTH, STRIDE = 20, 4  # tokens: of a window, shared by two windows
SETTINGS = [
    {},
    {"n_best_size": 3},
    {"n_best_size": 1},
    {"max_answer_length": 2, "n_best_size": 5},
    {"version_2_with_negative": True},
    {"version_2_with_negative": True, "n_best_size": 3, "null_score_diff_threshold": -4.0},
    {"version_2_with_negative": True, "n_best_size": 1},
    {"version_2_with_negative": True, "max_answer_length": 3, "null_score_diff_threshold": 5.5},
]


def load(path):
    """Import a file as a module."""
    spec = importlib.util.spec_from_file_location(path.parent.name + "_" + path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scores(folder):
    """Return the scores of the two official scripts."""
    old, new = (load(folder / name / "compute_score.py") for name in ("squad", "squad_v2"))
    rows = []
    for predicted, answers in ANSWERS:
        best = old.metric_max_over_ground_truths
        values = [best(f, predicted, answers) for f in (old.exact_match_score, old.f1_score)]
        rows.append({"predicted": predicted, "answers": answers, "scores": values})
    questions = [
        {"id": str(i), "answers": [{"text": t} for t in a]} for i, (_, a) in enumerate(ANSWERS)
    ]
    predictions = {str(i): p for i, (p, _) in enumerate(ANSWERS)}
    means = old.compute_score([{"paragraphs": [{"qas": questions}]}], predictions)
    return {"v1": {"rows": rows, "means": means}, "v2": [scores_v2(new, c) for c in margins()]}


def margins():
    """Yield null margins of the rows: distinct, with equal ones, and all above 0."""
    generator = np.random.default_rng(5)
    total = len(ANSWERS) + len(UNANSWERABLE)
    distinct = (generator.permutation(total) - total // 2) / 4
    yield distinct.tolist()
    yield np.round(distinct / 2).tolist()
    yield (distinct + 100.0).tolist()


def scores_v2(script, na_probs):
    """Return the scores of version 2.0 for null margins, with thresholds."""
    rows = ANSWERS + UNANSWERABLE
    questions = [{"id": str(i), "answers": {"text": a}} for i, (_, a) in enumerate(rows)]
    dataset = [{"paragraphs": [{"qas": questions}]}]
    predictions = {str(i): p for i, (p, _) in enumerate(rows)}
    na_probs = {str(i): p for i, p in enumerate(na_probs)}
    has_answer = script.make_qid_to_has_ans(dataset)
    exact, f1 = script.get_raw_scores(dataset, predictions)
    evaluations = []
    for threshold in (1.0, -1.5):
        arguments = (na_probs, has_answer, threshold)
        thresholded = [script.apply_no_ans_threshold(s, *arguments) for s in (exact, f1)]
        evaluation = script.make_eval_dict(*thresholded)
        for prefix, state in (("HasAns", True), ("NoAns", False)):
            ids = [k for k, v in has_answer.items() if v is state]
            script.merge_eval(evaluation, script.make_eval_dict(*thresholded, ids), prefix)
        script.find_all_best_thresh(evaluation, predictions, exact, f1, na_probs, has_answer)
        evaluations.append({"threshold": threshold, "means": evaluation})
    return {
        "rows": [{"predicted": p, "answers": a} for p, a in rows],
        "margins": list(na_probs.values()),
        "scores": [list(exact.values()), list(f1.values())],
        "evaluations": evaluations,
    }


def words(text):
    """Return the offsets of the words of a text."""
    offsets, start = [], 0
    for word in text.split():
        start = text.index(word, start)
        offsets.append((start, start + len(word)))
        start += len(word)
    return offsets


class Windows(dict):
    """Windows of words, as the tokenizers of transformers return them: padded to one length."""

    def __init__(self, questions, contexts):
        super().__init__(input_ids=[], offset_mapping=[], overflow_to_sample_mapping=[])
        self.sequences = []
        for row, (question, context) in enumerate(zip(questions, contexts, strict=True)):
            query, tokens = words(question), words(context)
            room = LENGTH - len(query) - 3
            for start in range(0, max(1, len(tokens) - STRIDE), room - STRIDE):
                part = tokens[start : start + room]
                padding = LENGTH - len(query) - len(part) - 3
                sequence = [None, *[0] * len(query), None, *[1] * len(part), None]
                self.sequences.append(sequence + [None] * padding)
                special = (0, 0)
                offsets = [special, *query, special, *part, special, *[special] * padding]
                self["offset_mapping"].append(offsets)
                self["input_ids"].append([101] + [5] * (LENGTH - 1))
                self["overflow_to_sample_mapping"].append(row)

    def sequence_ids(self, window):
        return self.sequences[window]


def tokenizer(questions, contexts, **_):
    return Windows(questions, contexts)


tokenizer.cls_token_id = 101


def targets(path, answers):
    """Return the start and end positions that `prepare_train_features` gives to each answer."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    (function,) = [f for f in functions if f.name == "prepare_train_features"]
    names = {
        "question_column_name": "question",
        "context_column_name": "context",
        "answer_column_name": "answers",
        "pad_on_right": True,
        "max_seq_length": LENGTH,
        "data_args": SimpleNamespace(doc_stride=STRIDE, pad_to_max_length=True),
        "tokenizer": tokenizer,
    }
    exec(compile(ast.Module([function], []), str(path), "exec"), names)
    results = []
    for row, text, start in answers:
        answer = {"text": [text], "answer_start": [start]} if text else {"answer_start": []}
        columns = {"question": [QUESTIONS[row]], "context": [CONTEXTS[row]], "answers": [answer]}
        features = names["prepare_train_features"](columns)
        results.append([features["start_positions"], features["end_positions"]])
    return results


class Examples(list):
    """Rows, with columns by name as in Hugging Face datasets."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def postprocessed(module, windows, logits, settings):
    """Return the answers, n best answers and null margins of each row."""
    rows = windows["overflow_to_sample_mapping"]
    features = []
    for index, row in enumerate(rows):
        sequence, offsets = windows.sequence_ids(index), windows["offset_mapping"][index]
        context_only = [o if s == 1 else None for o, s in zip(offsets, sequence, strict=True)]
        features.append({"example_id": str(row), "offset_mapping": context_only})
    examples = Examples({"id": str(i), "context": c} for i, c in enumerate(CONTEXTS))
    with tempfile.TemporaryDirectory() as folder:
        answers = module.postprocess_qa_predictions(
            examples, features, logits, output_dir=folder, **settings
        )
        n_best = json.loads((Path(folder) / "nbest_predictions.json").read_text())
        null_odds = Path(folder) / "null_odds.json"
        odds = json.loads(null_odds.read_text()) if null_odds.exists() else {}
    keys = ("text", "start_logit", "end_logit", "probability")
    compact = [[[entry[k] for k in keys] for entry in n_best[i]] for i in n_best]
    for entries in compact:
        for entry in entries:
            entry[3] = float(f"{entry[3]:.7g}")
    return {
        "settings": settings,
        "answers": list(answers.values()),
        "n_best": compact,
        "margins": list(odds.values()),
    }


def main() -> None:
    metrics_folder, examples_folder = map(Path, sys.argv[1:])
    windows = Windows(QUESTIONS, CONTEXTS)
    count = len(windows["input_ids"])
    # Multiples of 1/8 are exact in float32: many sums are equal, but no two logits of a window.
    generator = np.random.default_rng(7)
    logits = [
        np.stack([generator.permutation(96)[:LENGTH] / 8 - 6 for _ in range(count)]).astype("f4")
        for _ in range(2)
    ]
    answers = []
    for row, first, end in SPANS:
        offsets = words(CONTEXTS[row])
        start = offsets[first][0]
        text = CONTEXTS[row][start : offsets[end - 1][1]] if end > first else ""
        answers.append((row, text, start))
    module = load(examples_folder / "utils_qa.py")
    golden = {
        "scores": scores(metrics_folder),
        "windows": {
            "contexts": CONTEXTS,
            "rows": windows["overflow_to_sample_mapping"],
            "offsets": windows["offset_mapping"],
            "is_context": [[int(s == 1) for s in sequence] for sequence in windows.sequences],
            "logits": [array.tolist() for array in logits],
        },
        "answers": [postprocessed(module, windows, logits, s) for s in SETTINGS],
        "spans": answers,
        "targets": targets(examples_folder / "run_qa.py", answers),
    }
    OUT.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
