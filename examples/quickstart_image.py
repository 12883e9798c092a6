"""Train MobileNet to read handwritten digits, in about three minutes. Needs no download.

The images are scikit-learn's digits (8 x 8 pixels, UCI), written as PNG files into a folder for
each digit. PyPI has no ImageNet weights, so the network starts from random weights; to start from
pretrained weights, change `model.weights` only.

It times the model on this machine, writes a YAML file with as many epochs as fit in the time, and
trains that. A second start finds the finished run and only serves it.

    python examples/quickstart_image.py [--workdir=runs/quickstart_image]
"""

import argparse
import base64
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

TEST = 0.2  # share of the images in the test split
VALIDATION = 0.1  # share of the other images that are held out
EPOCHS, MIN_EPOCHS = 12, 6  # on a fast machine, on the slowest one
SECONDS = 140  # of training steps; with the rest of the training about three minutes
RECIPE = """\
# Which digit is on an image? MobileNet, trained from random weights.
# Written by examples/quickstart_image.py for this machine, where a training step takes
# {milliseconds:.1f} ms per image: {epochs} of at most {all_epochs} epochs.
#
# Change it and train again:
#   tfft train --config={path} --workdir={workdir}_2
data:
  train: {{source: images, path: {train}}}
  validation: {{fraction: {validation}}}
  test: {{source: images, path: {test}}}
model: {{backbone: "keras:MobileNet", weights: none, image_size: 32}}
task: {{name: image_classification, dropout: 0.0}}
method: {{name: full}}
optimizer: {{name: adamw, learning_rate: 3.0e-3, schedule: cosine, warmup: 10%, weight_decay: 0.05}}
train: {{epochs: {epochs}, batch_size: 32, seed: 0, batch_norm: train, batch_norm_momentum: 0.9}}
"""


def main() -> None:
    """Write the images and a recipe, train, and serve three images from a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart_image"))
    workdir = parser.parse_args().workdir
    data, recipe = [workdir.with_name(f"{workdir.name}{suffix}") for suffix in ("_data", ".yaml")]
    if workdir.exists() and not recipe.is_file():
        sys.exit(f"{workdir} exists without {recipe}; delete it to start over")
    # In a process of its own, which gives the memory and the device back.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        if not (data / "test").is_dir():
            pool.submit(write_images, data).result()
        if not recipe.is_file():
            print("timing MobileNet on this machine", flush=True)
            pool.submit(write_recipe, recipe, data, workdir).result()
    print(recipe.read_text(encoding="utf-8").split("\ndata:")[0], flush=True)

    if exit_code := tfft("tfft.cli.train", f"--config={recipe}", f"--workdir={workdir}"):
        sys.exit(exit_code)
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    accuracy, baseline = metrics["test/accuracy"], metrics["test/baseline/tiny/accuracy"]
    low, high = metrics["test/accuracy/low"], metrics["test/accuracy/high"]
    print(
        f"\nMobileNet from random weights {accuracy:.3f} [{low:.3f}, {high:.3f}], "
        f"logistic regression on the pixels {baseline:.3f} (test accuracy)",
        flush=True,
    )
    serve_images(
        workdir / "export", [next((data / "test" / digit).glob("*.png")) for digit in "037"]
    )
    if accuracy < 0.9:
        sys.exit("the trained model does not know the digits")


def write_recipe(path: Path, data: Path, workdir: Path) -> None:
    """Write the recipe whose training takes about SECONDS on this machine.

    Args:
        path: YAML file to write.
        data: folder of the images.
        workdir: run directory that the recipe's comments name.
    """
    start_tensorflow()
    from tfft.config import parse, plain_yaml
    from tfft.training import advice

    values = {
        "path": path,
        "workdir": workdir,
        "train": json.dumps(str(data / "train"), ensure_ascii=False),
        "test": json.dumps(str(data / "test"), ensure_ascii=False),
        "validation": VALIDATION,
        "all_epochs": EPOCHS,
    }
    timed = RECIPE.format(**values, milliseconds=0, epochs=EPOCHS)
    seconds_per_image = advice.seconds_per_training_row(parse(plain_yaml.loads(timed, str(path))))
    images = sum(1 for _ in (data / "train").glob("*/*.png"))
    text = RECIPE.format(
        **values,
        milliseconds=1000 * seconds_per_image,
        epochs=epochs_in_time(seconds_per_image, images),
    )
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def start_tensorflow() -> None:
    """Load TensorFlow as the commands do, without its log lines."""
    from tfft.utils.tensorflow_setup import load_tensorflow

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    load_tensorflow()


def epochs_in_time(seconds_per_image: float, images: int) -> int:
    """Return how many epochs can be trained in SECONDS.

    Args:
        seconds_per_image: of a training step. The validation after each epoch costs a third of it
            per image, as it has no backward pass.
        images: number of images in the folder, of which a share is held out.
    """
    epoch = images * seconds_per_image * (1 - VALIDATION + VALIDATION / 3)
    return max(MIN_EPOCHS, min(EPOCHS, int(SECONDS / epoch)))


def tfft(module: str, *flags: str) -> int:
    """Run a command module in a separate process and return its exit code."""
    return subprocess.run([sys.executable, "-m", module, *flags], check=False).returncode


def write_images(folder: Path) -> None:
    """Write train/DIGIT/*.png and test/DIGIT/*.png."""
    start_tensorflow()
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
    names = ", ".join(str(path) for path in paths)
    print(f"{names}, answered by {export} in a fresh process:", flush=True)
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    request = json.dumps({"instances": [{"image": {"b64": image}} for image in encoded]})
    command = [sys.executable, "-I", "-c", SERVE, str(export)]
    # TensorFlow logs to standard error as it starts, which is of interest after a failure only.
    served = subprocess.run(command, input=request, text=True, stderr=subprocess.PIPE, check=False)
    if served.returncode:
        sys.exit(f"{served.stderr}\nthe exported model does not answer")


if __name__ == "__main__":
    main()
