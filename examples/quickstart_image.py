"""Which digit is it? Fine-tuning on pictures with no download at all.

The pictures are scikit-learn's handwritten digits (8 x 8 pixels, UCI), written as PNG files into a
folder for each digit. There are no ImageNet weights on PyPI, so the network begins at random: the
road is that of a pretrained one, and `model.weights` is the one line to change.

    python examples/quickstart_image.py [--workdir=runs/quickstart_image]
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

TEST = 0.2  # share of the pictures that is held out


def main() -> None:
    """Write the pictures, train, serve three of them as bytes from a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart_image"))
    workdir = parser.parse_args().workdir
    data = workdir.with_name(f"{workdir.name}_data")
    if not (data / "test").is_dir():
        write_pictures(data)

    recipe = Path(__file__).parent.parent / "configs" / "image" / "digits_mobilenet_full.yaml"
    began = time.monotonic()
    done = tfft(
        "tfft.cli.train",
        f"--config={recipe}",
        f"--workdir={workdir}",
        f"--set=data.train={data / 'train'}/",
        f"--set=data.test={data / 'test'}/",
    )
    if done:
        sys.exit(done)
    seconds = time.monotonic() - began
    figures = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    ours, theirs = figures["test/accuracy"], figures["test/baseline/tiny/accuracy"]
    low, high = figures["test/accuracy/low"], figures["test/accuracy/high"]
    print(
        f"\nMobileNet from random weights {ours:.3f} [{low:.3f}, {high:.3f}], logistic regression "
        f"on the pixels {theirs:.3f} (test accuracy; {seconds:.0f} s in all)"
    )
    served(workdir / "export", [next((data / "test" / digit).glob("*.png")) for digit in "037"])
    if ours < 0.9:
        sys.exit("the trained model does not know the digits")


def tfft(module: str, *flags: str) -> int:
    """Run a verb in a process of its own; its exit code."""
    return subprocess.run([sys.executable, "-m", module, *flags], check=False).returncode


def write_pictures(folder: Path) -> None:
    """train/DIGIT/*.png and test/DIGIT/*.png."""
    import tensorflow as tf
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")[..., None]
    split = train_test_split(range(len(pixels)), test_size=TEST, random_state=0)
    shutil.rmtree(folder, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}")
    for name, chosen in zip(("train", "test"), split, strict=True):
        for at in chosen:
            path = temporary / name / str(digits.target[at]) / f"{at:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tf.io.encode_png(pixels[at]).numpy())
    temporary.rename(folder)


SERVE = """
import base64, glob, json, sys
import tensorflow as tf
found = [path.split("/") for path in glob.glob(sys.argv[1] + "/*/saved_model.pb")]
newest = max(found, key=lambda parts: int(parts[-2]))
serve = tf.saved_model.load("/".join(newest[:-1])).signatures["serving_default"]
images = [base64.b64decode(one["image"]["b64"]) for one in json.load(sys.stdin)["instances"]]
answer = serve(image=tf.constant(images))
for label, share in zip(answer["label"].numpy(), answer["probabilities"].numpy().max(axis=1)):
    print(f"  {label.decode()} ({share:.3f})")
"""


def served(export: Path, paths: list[Path]) -> None:
    """Ask the export for some pictures, as a client of TF Serving sends them, in a process that
    has TensorFlow alone."""
    print(f"{', '.join(str(path) for path in paths)}, answered by {export} in a fresh process:")
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    request = json.dumps({"instances": [{"image": {"b64": one}} for one in encoded]})
    command = [sys.executable, "-I", "-c", SERVE, str(export)]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if subprocess.run(command, input=request, text=True, env=quiet, check=False).returncode:
        sys.exit("the exported model does not answer")


if __name__ == "__main__":
    main()
