"""Fine-tune MobileNet on images of handwritten digits. Needs no download.

The images are scikit-learn's digits (8 x 8 pixels, UCI), written as PNG files into a folder for
each digit. PyPI has no ImageNet weights, so the network starts from random weights; to start from
pretrained weights, change `model.weights` only.

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

TEST = 0.2  # share of the images in the test split


def main() -> None:
    """Write the images, train, and serve three of them as bytes from a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart_image"))
    workdir = parser.parse_args().workdir
    data = workdir.with_name(f"{workdir.name}_data")
    if not (data / "test").is_dir():
        write_images(data)

    recipe = Path(__file__).parent.parent / "configs" / "image" / "digits_mobilenet_full.yaml"
    start = time.monotonic()
    exit_code = tfft(
        "tfft.cli.train",
        f"--config={recipe}",
        f"--workdir={workdir}",
        f"--set=data.train={data / 'train'}/",
        f"--set=data.test={data / 'test'}/",
    )
    if exit_code:
        sys.exit(exit_code)
    seconds = time.monotonic() - start
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    accuracy, baseline = metrics["test/accuracy"], metrics["test/baseline/tiny/accuracy"]
    low, high = metrics["test/accuracy/low"], metrics["test/accuracy/high"]
    print(
        f"\nMobileNet from random weights {accuracy:.3f} [{low:.3f}, {high:.3f}], "
        f"logistic regression on the pixels {baseline:.3f} (test accuracy; {seconds:.0f} s in all)"
    )
    serve_images(
        workdir / "export", [next((data / "test" / digit).glob("*.png")) for digit in "037"]
    )
    if accuracy < 0.9:
        sys.exit("the trained model does not know the digits")


def tfft(module: str, *flags: str) -> int:
    """Run a command module in a separate process and return its exit code."""
    return subprocess.run([sys.executable, "-m", module, *flags], check=False).returncode


def write_images(folder: Path) -> None:
    """Write train/DIGIT/*.png and test/DIGIT/*.png."""
    import tensorflow as tf
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")[..., None]
    splits = train_test_split(range(len(pixels)), test_size=TEST, random_state=0)
    shutil.rmtree(folder, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}")
    for name, indices in zip(("train", "test"), splits, strict=True):
        for index in indices:
            path = temporary / name / str(digits.target[index]) / f"{index:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tf.io.encode_png(pixels[index]).numpy())
    temporary.rename(folder)


SERVE = """
import base64, glob, json, sys
import tensorflow as tf
versions = [path.split("/") for path in glob.glob(sys.argv[1] + "/*/saved_model.pb")]
newest = max(versions, key=lambda parts: int(parts[-2]))
serve = tf.saved_model.load("/".join(newest[:-1])).signatures["serving_default"]
images = [base64.b64decode(row["image"]["b64"]) for row in json.load(sys.stdin)["instances"]]
answer = serve(image=tf.constant(images))
for label, probability in zip(answer["label"].numpy(), answer["probabilities"].numpy().max(axis=1)):
    print(f"  {label.decode()} ({probability:.3f})")
"""


def serve_images(export: Path, paths: list[Path]) -> None:
    """Send images to the export as a client of TF Serving does.

    The process that answers imports only TensorFlow.

    Args:
        export: folder of the export's versions.
        paths: images.
    """
    print(f"{', '.join(str(path) for path in paths)}, answered by {export} in a fresh process:")
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    request = json.dumps({"instances": [{"image": {"b64": image}} for image in encoded]})
    command = [sys.executable, "-I", "-c", SERVE, str(export)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if subprocess.run(command, input=request, text=True, env=environment, check=False).returncode:
        sys.exit("the exported model does not answer")


if __name__ == "__main__":
    main()
