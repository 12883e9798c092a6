"""Read and write preprocessor_config.json, the image preprocessing of a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfft.backbones.families.family import BOUNDS, ImageDefaults, bounded
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError

_FILE = "preprocessor_config.json"
# PIL's numbers of resampling filters, which transformers writes.
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_DEFAULT_CROP = 0.875  # ConvNextImageProcessor's default `crop_pct`


def read(
    settings: Mapping[str, Any] | None, image_defaults: ImageDefaults, size: tuple[int, int]
) -> tuple[ImageSpec, dict[str, Any]]:
    """Return the image spec of a checkpoint and the arguments of its `pixels.Pixels`.

    Args:
        settings: the file's content; None: there is no file, and `image_defaults` apply.
        image_defaults: the family's defaults for missing values.
        size: height and width in config.json.

    Raises:
        UserError: The file is malformed, or requires preprocessing that tfft does not support.
    """
    if settings is None:
        crop_fraction = image_defaults.crop_fraction
        resize = "stretch" if crop_fraction is None else "crop"
        image_spec = ImageSpec(size, resize, image_defaults.interpolation, crop_fraction or 1.0)
        return image_spec, _scaling(1 / 255, image_defaults.mean, image_defaults.deviation)
    image_spec = _image_spec(settings, image_defaults, size)
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    scale = bounded(scale, f"{_FILE}: rescale_factor", (1e-6, 1e3))
    if settings.get("do_normalize", True):
        mean = _channel_values(settings, "image_mean", image_defaults.mean)
        deviation = _channel_values(settings, "image_std", image_defaults.deviation, least=1e-6)
    else:
        mean, deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return image_spec, _scaling(scale, mean, deviation)


def write(image_spec: ImageSpec, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Return the file's content for a saved model, for `read` and transformers.

    Args:
        image_spec: the images that the model reads.
        scaling: arguments of its `pixels.Pixels`.

    Raises:
        UserError: No image processor of transformers supports `image_spec`.
    """
    height, width = image_spec.size
    size: dict[str, int] = {"height": height, "width": width}
    processor: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": size}
    if image_spec.resize == "pad":
        raise UserError("data.resize: pad has no form in transformers' image processors")
    # BitImageProcessor resizes the shorter side and crops; DeiT's resizes both sides and crops.
    if image_spec.resize == "crop":
        shortest = {"shortest_edge": round(min(image_spec.size) / image_spec.crop_fraction)}
        processor = {"image_processor_type": "BitImageProcessor", "size": shortest}
    elif image_spec.crop_fraction < 1:
        resized = {key: round(value / image_spec.crop_fraction) for key, value in size.items()}
        processor = {"image_processor_type": "DeiTImageProcessor", "size": resized}
    if processor["size"] != size:
        processor |= {"do_center_crop": True, "crop_size": size}
    filters = {name: number for number, name in _FILTERS.items()}
    return {
        **processor,
        "do_resize": True,
        "resample": filters[image_spec.interpolation],
        "do_rescale": True,
        "rescale_factor": scaling["scale"],
        "do_normalize": True,
        "image_mean": list(scaling["mean"]),
        "image_std": list(scaling["deviation"]),
    }


def _image_spec(
    settings: Mapping[str, Any], image_defaults: ImageDefaults, size: tuple[int, int]
) -> ImageSpec:
    size_setting = settings.get("size", list(size))
    resample = settings.get("resample", None)
    interpolation = image_defaults.interpolation if resample is None else None
    if type(resample) is int:
        interpolation = _FILTERS.get(resample)
    if interpolation is None:
        raise _refused("resample", resample, "0, 2 or 3 (nearest, bilinear, bicubic)")
    if not settings.get("do_resize", True):
        raise _refused("do_resize", False, "true")
    processor_type = str(
        settings.get("image_processor_type") or settings.get("feature_extractor_type") or ""
    )
    shortest = size_setting.get("shortest_edge") if isinstance(size_setting, Mapping) else None
    # As a plain number, `size` is the shortest edge for these processors, both sides for others.
    if isinstance(size_setting, int) and (
        "ConvNext" in processor_type or "MobileNet" in processor_type
    ):
        shortest = size_setting
    if "crop_pct" in settings or "ConvNext" in processor_type:  # processors of ConvNeXt and ResNet
        if not isinstance(shortest, int):
            raise _refused("size", size_setting, "{shortest_edge: pixels}")
        shortest = check_side(shortest, f"{_FILE}: size")
        # As ConvNextImageProcessor: from 384 pixels, images are stretched and not cropped.
        if shortest >= 384:
            return ImageSpec((shortest, shortest), "stretch", interpolation)
        crop_fraction = settings.get("crop_pct") or _DEFAULT_CROP
        crop_fraction = bounded(crop_fraction, f"{_FILE}: crop_pct", (0.01, 1))
        return ImageSpec((shortest, shortest), "crop", interpolation, crop_fraction)
    crop = (
        settings.get("crop_size", size_setting) if settings.get("do_center_crop", False) else None
    )
    if isinstance(shortest, int):
        # Without a crop, images would keep their aspect ratios, which do not stack to a batch.
        if crop is None:
            raise _refused("do_center_crop", False, "true, where the shortest edge is resized")
        height, width = _height_and_width(crop, "crop_size")
        shortest = check_side(shortest, f"{_FILE}: size")
        if min(height, width) > shortest:
            raise _refused("crop_size", crop, f"{shortest} pixels at most, the shortest edge")
        return ImageSpec((height, width), "crop", interpolation, min(height, width) / shortest)
    height, width = _height_and_width(size_setting, "size")
    if crop is None:
        return ImageSpec((height, width), "stretch", interpolation)
    crop_size = _height_and_width(crop, "crop_size")
    # An ImageSpec has one crop fraction for both sides.
    if crop_size[0] * width != crop_size[1] * height or crop_size[0] > height:
        raise _refused("crop_size", crop, "of the shape of `size`, and no larger")
    return ImageSpec(crop_size, "stretch", interpolation, crop_size[0] / height)


def _height_and_width(value: Any, key: str) -> tuple[int, int]:
    """Return height and width from a setting: one number, two, or an object."""
    if isinstance(value, Mapping):
        height = value.get("shortest_edge", value.get("height"))
        value = [height, value.get("width", height)]
    elif isinstance(value, int):
        value = [value, value]
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise _refused(key, value, "a height and a width in pixels")
    return check_side(value[0], f"{_FILE}: {key}"), check_side(value[1], f"{_FILE}: {key}")


def check_side(value: Any, name: str) -> int:
    """Check the side of an image from a file, in pixels, and return it.

    Args:
        value: the value in the file.
        name: the file and the key, for errors.

    Raises:
        UserError: It is not a whole number, or out of bounds.
    """
    return bounded(value, name, BOUNDS["image_size"], int)


def _channel_values(
    settings: Mapping[str, Any], key: str, default: Sequence[float], least: float = -1e3
) -> tuple[float, ...]:
    value = settings.get(key, default)
    return check_triple(
        [value] * 3 if isinstance(value, int | float) else value, f"{_FILE}: {key}", least
    )


def check_triple(value: Any, name: str, least: float = -1e3) -> tuple[float, ...]:
    """Check three numbers from a file, one per channel, and return them.

    Args:
        value: the value in the file.
        name: the file and the key, for errors.
        least: smallest allowed number.

    Raises:
        UserError: They are not three numbers, or one is out of bounds.
    """
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise UserError(f"{name} must be three numbers. Received: {value!r:.60}")
    return tuple(bounded(v, name, (least, 1e3)) for v in value)


def _scaling(scale: float, mean: Any, deviation: Any) -> dict[str, Any]:
    return {"scale": scale, "mean": list(mean), "deviation": list(deviation)}


def _refused(key: str, value: Any, requirement: str) -> UserError:
    return UserError(f"{_FILE}: {key} must be {requirement}. Received: {value!r:.60}")
