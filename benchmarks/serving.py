"""Raw texts answered: an export beside the Hugging Face pipeline in PyTorch, in one run.

The same weights (`tfft export --format=huggingface` of the run), the same texts, each in a process
of its own with all cores: the run's newest export in a session, as TF Serving runs it, the same as
Python calls it, the pipeline. Rounds go from one to the next and the best of each counts. Latency:
one text at a time; throughput: batches of 32.

    python benchmarks/serving.py --workdir=RUN --texts=FILE [--rounds=5]
        --torch=PYTHON_THAT_HAS_TORCH_AND_TRANSFORMERS

FILE holds a text a line.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

BATCH, SINGLES, BATCHES = 32, 100, 8

# What both do, between the two that load a model as `answer(texts)`.
LOOP = """
import json, sys, time
texts = json.load(open(sys.argv[2], encoding="utf-8"))
singles, batches = int(sys.argv[3]), int(sys.argv[4])
for line in sys.stdin:
    answer(texts[:32]), answer(texts[:1])
    times = []
    for at in range(singles):
        began = time.perf_counter()
        answer([texts[at % len(texts)]])
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    for at in range(batches):
        answer([texts[(32 * at + i) % len(texts)] for i in range(32)])
    spent = time.perf_counter() - began
    first = answer(texts[:8])
    told = {"latency": sorted(times)[len(times) // 2], "rate": 32 * batches / spent, "first": first}
    print(json.dumps(told), flush=True)
"""
# As TF Serving runs it: a session.
OURS = """
import sys
import tensorflow as tf, tensorflow_text
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    saved = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
signature = saved.signature_def["serving_default"]
given = signature.inputs["text"].name
serve = session.make_callable(signature.outputs["probabilities"].name, [given])
def answer(texts):
    return serve(texts).tolist()
"""
# As Python calls it, with what TensorFlow needs for that.
PYTHON = """
import sys
import tensorflow as tf, tensorflow_text
model = tf.saved_model.load(sys.argv[1])
serve = model.signatures["serving_default"]
def answer(texts):
    return serve(text=tf.constant(texts))["probabilities"].numpy().tolist()
"""
THEIRS = """
import sys
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], top_k=None, device="cpu")
names = list(classify.model.config.label2id)
def answer(texts):
    found = classify(texts, batch_size=32, truncation=True, max_length=MAX_LENGTH)
    return [[{d["label"]: d["score"] for d in row}[n] for n in names] for row in found]
"""


def main() -> None:
    """Start both, ask in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--torch", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    texts = [t for t in Path(flags.texts).read_text(encoding="utf-8").splitlines() if t.strip()]

    import tfft
    from tfft.export import latest
    from tfft.utils.errors import UserError

    run = tfft.load(flags.workdir)
    export = latest(run.workdir / "export")
    with TemporaryDirectory() as folder:
        try:
            checkpoint = run.export_huggingface(Path(folder) / "checkpoint")
        except UserError as error:  # a head that transformers has no form for
            sys.exit(f"serving.py: {error}")
        (Path(folder) / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        theirs = THEIRS.replace("MAX_LENGTH", str(run.config.data.max_length))
        del run
        processes = {
            "tfft": started(sys.executable, OURS, export, folder),
            "in Python": started(sys.executable, PYTHON, export, folder),
            "pytorch": started(flags.torch, theirs, checkpoint, folder),
        }
        rounds = [
            {name: asked(process) for name, process in processes.items()}
            for _ in range(flags.rounds)
        ]
        for process in processes.values():
            process.communicate()
    report(rounds)


def started(python: str, load: str, model: Path | None, folder: str) -> subprocess.Popen[str]:
    """A process that measures once for each line that it gets."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    arguments = [str(model), f"{folder}/texts.json", str(SINGLES), str(BATCHES)]
    return subprocess.Popen(
        [python, "-c", load + LOOP, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**environment, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
    )


def asked(process: subprocess.Popen[str]) -> dict[str, object]:
    """One round."""
    process.stdin.write("go\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def report(rounds: list[dict[str, dict[str, object]]]) -> None:
    """The best round of each, and how far the answers are apart."""
    first = rounds[0]
    pairs = zip(first["tfft"]["first"], first["pytorch"]["first"], strict=True)
    apart = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    latency = {n: 1000 * min(r[n]["latency"] for r in rounds) for n in first}
    rate = {n: max(r[n]["rate"] for r in rounds) for n in first}
    for name in first:
        print(
            f"{name:<9} one text {latency[name]:6.2f} ms   batches of 32 {rate[name]:8.0f} a second"
        )
    print(
        f"tfft takes {latency['tfft'] / latency['pytorch']:.2f} of the time and answers "
        f"{rate['tfft'] / rate['pytorch']:.2f} times as many; probabilities {apart:.1e} apart"
    )


if __name__ == "__main__":
    main()
