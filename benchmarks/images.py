"""Compare images per second, of the input pipeline and of training, with Keras in one process.

The reference is `keras.utils.image_dataset_from_directory` and `fit`, with the same files,
MobileNetV2 from random weights, batch size and image size; all layers are trained, BatchNorm is in
training mode. Rounds alternate; the best round of each is printed.

    python benchmarks/images.py --data=FOLDER_OF_CLASSES [--size=96] [--steps=30] [--rounds=3]
"""

import argparse
import os
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH = 32


def main() -> None:
    """Measure and print the speeds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    with TemporaryDirectory() as folder:
        tfft_measures, keras_measures = tfft_rounds(flags, Path(folder)), keras_rounds(flags)
        best: dict[str, float] = {}
        for _ in range(flags.rounds):
            for name, measure in (*tfft_measures.items(), *keras_measures.items()):
                best[name] = max(best.get(name, 0.0), flags.steps * BATCH / measure())
    for name, speed in best.items():
        print(f"{name:<28}{speed:10,.0f} images/s")
    for part in ("input", "training"):
        ratio = best[f"tfft {part}"] / best[f"keras {part}"]
        print(f"{part}: tfft {ratio:.2f} times keras")
    ratio = best["tfft input, cached"] / best["keras input"]
    print(f"input, cached pixels: tfft {ratio:.2f} times keras")


def tfft_rounds(flags: argparse.Namespace, folder: Path) -> dict[str, Callable[[], float]]:
    """Return functions that measure `steps` batches in seconds: decoded, cached, trained."""
    import tensorflow as tf

    from tfft.config import parse
    from tfft.model import masks
    from tfft.training import setup
    from tfft.training.input_pipeline import InputPipeline

    pipelines = {}
    for cached in (False, True):
        config = parse(
            {
                "data": {
                    "train": {"source": "images", "path": flags.data},
                    "validation": None,
                    "cache_images": cached,
                    "cache_dir": str(folder),
                },
                "model": {
                    "backbone": "keras:MobileNetV2",
                    "weights": "none",
                    "image_size": flags.size,
                },
                "task": {"name": "image_classification"},
                "train": {"epochs": 100, "batch_size": BATCH, "batch_norm": "train"},
            }
        )
        with tf.distribute.get_strategy().scope():
            result, data, plan, schedule = setup.prepare(config, folder / "run")
        pipelines[cached] = (result, InputPipeline(result, data, plan), schedule)

    def read(cached: bool) -> float:
        iterator = pipelines[cached][1].after(0)
        next(iterator)
        start = time.perf_counter()
        for _ in islice(iterator, flags.steps):
            pass
        return time.perf_counter() - start

    result, pipeline, schedule = pipelines[False]
    masks.set_trainable(result.model, schedule.mask)
    train_function = result.model.make_train_function()

    def trained() -> float:
        iterator = pipeline.after(0)
        train_function(iterator, 1)
        start = time.perf_counter()
        for _ in range(flags.steps):
            train_function(iterator, 1)
        return time.perf_counter() - start

    return {
        "tfft input": lambda: read(False),
        "tfft input, cached": lambda: read(True),
        "tfft training": trained,
    }


def keras_rounds(flags: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Return functions that measure the same batches with Keras' own pipeline."""
    import keras

    size = (flags.size, flags.size)
    data = keras.utils.image_dataset_from_directory(
        flags.data, image_size=size, batch_size=BATCH, seed=0, verbose=False
    )
    classes = len(data.class_names)
    prefetched = data.repeat().prefetch(4)
    model = keras.Sequential(
        [
            keras.Input([*size, 3]),
            keras.layers.Rescaling(1 / 127.5, -1),
            keras.applications.MobileNetV2(
                weights=None, include_top=False, input_shape=(*size, 3), pooling="avg"
            ),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(classes),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(5e-5, global_clipnorm=1.0), loss, jit_compile=False)

    def read() -> float:
        iterator = iter(prefetched)
        next(iterator)
        start = time.perf_counter()
        for _ in islice(iterator, flags.steps):
            pass
        return time.perf_counter() - start

    model.fit(prefetched, steps_per_epoch=2, verbose=0)

    def trained() -> float:
        start = time.perf_counter()
        model.fit(prefetched, steps_per_epoch=flags.steps, verbose=0)
        return time.perf_counter() - start

    return {"keras input": read, "keras training": trained}


if __name__ == "__main__":
    main()
