"""Profile the data of a config: targets, lengths or sizes, duplicates, leaks, bad rows.

Trains nothing. With --augmented, a sheet of training images is written, as the section
`augmentation` changes them.

Example:
    tfft profile --config=reviews.yaml --output=profile.json
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError
from tfft.utils.tensorflow_setup import load_tensorflow

common.define_config()
flags.DEFINE_string("output", None, "JSON file for the profile")
flags.DEFINE_string("augmented", None, "HTML file for a sheet of augmented training images")


def run() -> None:
    """Profile every split and print the result."""
    config = common.config()
    if common.FLAGS.augmented is not None and "image" not in config.reads:
        raise UserError(f"--augmented: needs a task on images. Received: task {config.task.name}")
    load_tensorflow()
    from tfft import preprocess
    from tfft.data import image_profile, profile
    from tfft.spec import ImageSpec

    towers = list(config.model.towers.values())  # the backbone of texts is first
    image_spec = spec = None
    if "image" in config.reads:
        # The backbone is not loaded, so the size of its images is not known.
        size = towers[-1].image_size or 224
        image_spec = ImageSpec((size, size))
    # A SavedModel of TF Hub brings its vocabulary along.
    if "text" in config.reads and towers[0].backbone.startswith("hub:"):
        from tfft import backbones

        spec = backbones.load(towers[0]).tokenizer
    inputs = preprocess.load(config.model, config.data, config.task, image_spec, spec)
    result: dict[str, Any] = {}
    if inputs.text is not None:
        result = profile.profile(config, inputs)
        print(profile.text(result))
    if inputs.image is not None:
        of_images = image_profile.profile(config, inputs)
        print("\nimages\n" if result else "", end="")
        print(profile.text(of_images, image_profile.text(of_images)))
        result = {**result, "images": of_images} if result else of_images
    if common.FLAGS.output is not None:
        text = json.dumps(result, indent=1, ensure_ascii=False)
        Path(common.FLAGS.output).write_text(text, encoding="utf-8")
    if common.FLAGS.augmented is not None:
        from tfft.report import write_augmentation_preview

        write_augmentation_preview(Path(common.FLAGS.augmented), config, inputs)
        print(f"\n{common.FLAGS.augmented}: training images after augmentation")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the command."""
    common.main(run, argv)


if __name__ == "__main__":
    main()
