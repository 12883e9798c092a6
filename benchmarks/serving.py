"""Compare an export with the Hugging Face pipeline in PyTorch on raw texts.

Both use the same weights (`tfft export --format=huggingface` of the run) and texts, each in a
separate process with all cores: the newest export of the run in a session, as TF Serving runs it,
the same export called from Python, and the pipeline. Rounds alternate between them and the best
round of each counts. Latency: one text at a time; throughput: batches of 32.

    python benchmarks/serving.py --workdir=RUN --texts=FILE [--rounds=5]
        --torch=PYTHON_THAT_HAS_TORCH_AND_TRANSFORMERS

FILE holds one text per line.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

BATCH, SINGLES, BATCHES = 32, 100, 8

# Measures `answer(texts)`, which the code before it defines.
LOOP = """
import json, sys, time
texts = json.load(open(sys.argv[2], encoding="utf-8"))
singles, batches = int(sys.argv[3]), int(sys.argv[4])
for line in sys.stdin:
    answer(texts[:32]), answer(texts[:1])
    times = []
    for index in range(singles):
        start = time.perf_counter()
        answer([texts[index % len(texts)]])
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    for index in range(batches):
        answer([texts[(32 * index + i) % len(texts)] for i in range(32)])
    seconds = time.perf_counter() - start
    latency, rate = sorted(times)[len(times) // 2], 32 * batches / seconds
    print(json.dumps({"latency": latency, "rate": rate, "first": answer(texts[:8])}), flush=True)
"""
# A session, as TF Serving runs the export.
TFFT_SESSION = """
import sys
import tensorflow as tf, tensorflow_text
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    saved = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
signature = saved.signature_def["serving_default"]
input_name = signature.inputs["text"].name
serve = session.make_callable(signature.outputs["probabilities"].name, [input_name])
def answer(texts):
    return serve(texts).tolist()
"""
# A signature called from Python, with its overhead.
TFFT_PYTHON = """
import sys
import tensorflow as tf, tensorflow_text
model = tf.saved_model.load(sys.argv[1])
serve = model.signatures["serving_default"]
def answer(texts):
    return serve(text=tf.constant(texts))["probabilities"].numpy().tolist()
"""
PYTORCH_PIPELINE = """
import sys
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], top_k=None, device="cpu")
names = list(classify.model.config.label2id)
def answer(texts):
    rows = classify(texts, batch_size=32, truncation=True, max_length=MAX_LENGTH)
    return [[{d["label"]: d["score"] for d in row}[n] for n in names] for row in rows]
"""


def main() -> None:
    """Start the processes, measure in turn, and print the result."""
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
        except UserError as error:  # transformers has no equivalent of the head
            sys.exit(f"serving.py: {error}")
        (Path(folder) / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        pytorch_pipeline = PYTORCH_PIPELINE.replace("MAX_LENGTH", str(run.config.data.max_length))
        del run
        processes = {
            "tfft": start_process(sys.executable, TFFT_SESSION, export, folder),
            "in Python": start_process(sys.executable, TFFT_PYTHON, export, folder),
            "pytorch": start_process(flags.torch, pytorch_pipeline, checkpoint, folder),
        }
        rounds = [
            {name: measure_round(process) for name, process in processes.items()}
            for _ in range(flags.rounds)
        ]
        for process in processes.values():
            process.communicate()
    report(rounds)


def start_process(python: str, load: str, model: Path | None, folder: str) -> subprocess.Popen[str]:
    """Start a process that measures once for each line that it receives."""
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


def measure_round(process: subprocess.Popen[str]) -> dict[str, object]:
    """Measure one round and return its result."""
    process.stdin.write("go\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def report(rounds: list[dict[str, dict[str, object]]]) -> None:
    """Print the best round of each process and the largest difference of their answers."""
    first = rounds[0]
    pairs = zip(first["tfft"]["first"], first["pytorch"]["first"], strict=True)
    difference = max(
        abs(a - b)
        for tfft_row, pytorch_row in pairs
        for a, b in zip(tfft_row, pytorch_row, strict=True)
    )
    latency = {n: 1000 * min(r[n]["latency"] for r in rounds) for n in first}
    rate = {n: max(r[n]["rate"] for r in rounds) for n in first}
    for name in first:
        print(
            f"{name:<9} one text {latency[name]:6.2f} ms   batches of 32 {rate[name]:8.0f} a second"
        )
    print(
        f"tfft takes {latency['tfft'] / latency['pytorch']:.2f} of the time and answers "
        f"{rate['tfft'] / rate['pytorch']:.2f} times as many; probabilities {difference:.1e} apart"
    )


if __name__ == "__main__":
    main()
