"""Write tests/golden/entities.json: entities and metrics of tag sequences by seqeval.

Random sequences in IOB2 and BIOES, well-formed and malformed: gold tags of random entities, and
predictions that are the gold tags with some of them changed. tests/data/test_tags.py and
tests/evaluation/test_entity_metrics.py compare.

    pip install seqeval==1.2.2
    python tests/reference/make_golden_entities.py
"""

import json
import random
import warnings
from pathlib import Path

from seqeval.metrics import accuracy_score, classification_report
from seqeval.metrics.sequence_labeling import get_entities

OUT = Path(__file__).parent.parent / "golden" / "entities.json"
TYPES = ["PER", "art-work", "LOC", "ORG"]
ROWS = 20
PREFIXES = {"IOB2": "BI", "BIOES": "BIES"}


def well_formed(generator: random.Random, scheme: str, types: list[str]) -> list[str]:
    """Return the tags of up to 14 tokens."""
    length, tags = generator.randint(1, 14), []
    while len(tags) < length:
        if generator.random() < 0.5:
            tags.append("O")
            continue
        name, size = generator.choice(types), min(generator.randint(1, 4), length - len(tags))
        prefixes = ["B"] + ["I"] * (size - 1)
        if scheme == "BIOES":
            prefixes = ["S"] if size == 1 else ["B", *["I"] * (size - 2), "E"]
        tags += [f"{prefix}-{name}" for prefix in prefixes]
    return tags


def corrupted(
    generator: random.Random, tags: list[str], scheme: str, types: list[str], rate: float
) -> list[str]:
    """Return tags of which a share is replaced by random ones of the scheme."""
    every = ["O", *(f"{p}-{name}".rstrip("-") for p in PREFIXES[scheme] for name in types)]
    return [generator.choice(every) if generator.random() < rate else tag for tag in tags]


def case(name: str, scheme: str, gold: list[list[str]], predicted: list[list[str]]) -> dict:
    """Return a case with seqeval's values."""
    warnings.simplefilter("ignore")  # divisions by zero, which some cases are for
    report = classification_report(gold, predicted, output_dict=True)
    return {
        "name": name,
        "scheme": scheme,
        "gold": [" ".join(tags) for tags in gold],
        "predicted": [" ".join(tags) for tags in predicted],
        "gold_entities": [get_entities(tags) for tags in gold],
        "predicted_entities": [get_entities(tags) for tags in predicted],
        "accuracy": accuracy_score(gold, predicted),
        "report": {key: {k: float(v) for k, v in values.items()} for key, values in report.items()},
    }


def main() -> None:
    generator = random.Random(17)
    cases = []
    for scheme in PREFIXES:
        gold = [well_formed(generator, scheme, TYPES) for _ in range(ROWS)]
        predicted = [well_formed(generator, scheme, TYPES) for _ in range(ROWS)]
        predicted = [
            (p + ["O"] * len(g))[: len(g)] if row % 3 == 0 else g
            for row, (g, p) in enumerate(zip(gold, predicted, strict=True))
        ]
        cases.append(case("well-formed", scheme, gold, predicted))
        noisy = [corrupted(generator, tags, scheme, TYPES, 0.15) for tags in gold]
        cases.append(case("malformed predictions", scheme, gold, noisy))
        noisy_gold = [corrupted(generator, tags, scheme, TYPES, 0.6) for tags in gold]
        noisy = [corrupted(generator, tags, scheme, TYPES, 0.3) for tags in noisy_gold]
        cases.append(case("malformed gold", scheme, noisy_gold, noisy))
        # One type without a name: equal neighbours, where only the prefixes separate entities.
        one_type = [corrupted(generator, tags, scheme, [""], 1.0) for tags in gold]
        noisy = [corrupted(generator, tags, scheme, [""], 0.2) for tags in one_type]
        cases.append(case("one type", scheme, one_type, noisy))
        # A type only in the gold tags, and another only in the predictions.
        absent = [[t.replace("LOC", "PER") for t in tags] for tags in gold]
        extra = [[t.replace("ORG", "LOC") for t in tags] for tags in gold]
        cases.append(case("different types", scheme, absent, extra))
        # No entity on a side; seqeval raises an error where both sides have none.
        outside = [["O"] * len(tags) for tags in gold[:6]]
        cases.append(case("nothing predicted", scheme, gold[:6], outside))
        cases.append(case("no entities", scheme, outside, gold[:6]))
    OUT.write_text(json.dumps(cases, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
