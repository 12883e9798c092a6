"""Profile the data of a config: classes, lengths or sizes, duplicates, leaks, bad rows.

Trains nothing. With --augmented a sheet of training pictures, as the section `augmentation` changes
them, is written.
"""

import json
from pathlib import Path

from absl import flags

from tfft.cli import common
from tfft.utils.errors import UserError

common.define_config()
flags.DEFINE_string("output", None, "JSON file for the profile")
flags.DEFINE_string("augmented", None, "HTML file for a sheet of changed training pictures")


def verb() -> None:
    """Read every split, print the profile."""
    config = common.config()
    images = config.task.modality == "image"
    if common.FLAGS.augmented is not None and not images:
        raise UserError(f"--augmented: is for pictures; task is {config.task.name}")
    common.load_tensorflow()
    from tfft import preprocess
    from tfft.data import image_profile, profile
    from tfft.spec import ImageSpec

    size = config.model.image_size or 224
    image_spec = ImageSpec((size, size)) if images else None
    spec = None
    if not images and config.model.backbone.startswith("hub:"):
        from tfft import backbones

        spec = backbones.load(config.model).tokenizer
    inputs = preprocess.load(config.model, config.data, image_spec, spec)
    if isinstance(inputs, preprocess.ImageInputs):
        found = image_profile.profile(config, inputs)
        print(profile.text(found, image_profile.text(found)))
    else:
        found = profile.profile(config, inputs)
        print(profile.text(found))
    if common.FLAGS.output is not None:
        text = json.dumps(found, indent=1, ensure_ascii=False)
        Path(common.FLAGS.output).write_text(text, encoding="utf-8")
    if common.FLAGS.augmented is not None and isinstance(inputs, preprocess.ImageInputs):
        from tfft.report import write_sheet

        write_sheet(Path(common.FLAGS.augmented), config, inputs)
        print(f"\n{common.FLAGS.augmented}: pictures as they are trained on")


def main(argv: list[str] | None = None) -> None:
    """The binary."""
    common.main(verb, argv)


if __name__ == "__main__":
    main()
