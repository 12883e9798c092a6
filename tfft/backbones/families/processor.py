"""preprocessor_config.json: how a checkpoint's authors showed it pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

from tfft.backbones.families.family import BOUNDS, ImageDefaults, bounded
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError

_FILE = "preprocessor_config.json"
# Numbers of PIL's resampling filters, as transformers writes them.
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_CROPPED_TO = 0.875  # ConvNextImageProcessor's `crop_pct` where none is given


def read(
    settings: Mapping[str, Any] | None, image_defaults: ImageDefaults, size: tuple[int, int]
) -> tuple[ImageSpec, dict[str, Any]]:
    """The pictures that a checkpoint reads, and the arguments of its `pixels.Pixels`.

    Args:
        settings: the file's content; None: there is none, the family's own habits count.
        eyes: these habits.
        size: of the pictures in config.json.

    Raises:
        UserError: the file asks for what tfft does not do.
    """
    if settings is None:
        crop_fraction = image_defaults.crop_fraction
        kind = "stretch" if crop_fraction is None else "crop"
        image_spec = ImageSpec(size, kind, image_defaults.interpolation, crop_fraction or 1.0)
        return image_spec, _scaling(1 / 255, image_defaults.mean, image_defaults.deviation)
    image_spec = _picture(settings, image_defaults, size)
    scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    scale = bounded(scale, f"{_FILE}: rescale_factor", (1e-6, 1e3))
    if settings.get("do_normalize", True):
        mean = _three(settings, "image_mean", image_defaults.mean)
        deviation = _three(settings, "image_std", image_defaults.deviation, least=1e-6)
    else:
        mean, deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return image_spec, _scaling(scale, mean, deviation)


def write(image_spec: ImageSpec, scaling: Mapping[str, Any]) -> dict[str, Any]:
    """The file's content for a model that is saved: what `read` reads, and transformers.

    Raises:
        UserError: no image processor of transformers does what `image_spec` says.
    """
    height, width = image_spec.size
    size: dict[str, int] = {"height": height, "width": width}
    found: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": size}
    if image_spec.resize == "pad":
        raise UserError("data.resize: pad has no form in transformers' image processors")
    if image_spec.resize == "crop":
        shortest = {"shortest_edge": round(min(image_spec.size) / image_spec.crop_fraction)}
        found = {"image_processor_type": "BitImageProcessor", "size": shortest}
    elif image_spec.crop_fraction < 1:
        whole = {key: round(value / image_spec.crop_fraction) for key, value in size.items()}
        found = {"image_processor_type": "DeiTImageProcessor", "size": whole}
    if found["size"] != size:
        found |= {"do_center_crop": True, "crop_size": size}
    filters = {name: number for number, name in _FILTERS.items()}
    return {
        **found,
        "do_resize": True,
        "resample": filters[image_spec.interpolation],
        "do_rescale": True,
        "rescale_factor": scaling["scale"],
        "do_normalize": True,
        "image_mean": list(scaling["mean"]),
        "image_std": list(scaling["deviation"]),
    }


def _picture(
    settings: Mapping[str, Any], image_defaults: ImageDefaults, size: tuple[int, int]
) -> ImageSpec:
    given = settings.get("size", list(size))
    number = settings.get("resample", None)
    interpolation = image_defaults.interpolation if number is None else None
    if type(number) is int:
        interpolation = _FILTERS.get(number)
    if interpolation is None:
        raise _refused("resample", number, "0, 2 or 3 (nearest, bilinear, bicubic)")
    if not settings.get("do_resize", True):
        raise _refused("do_resize", False, "true")
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    shortest = given.get("shortest_edge") if isinstance(given, Mapping) else None
    if isinstance(given, int) and ("ConvNext" in kind or "MobileNet" in kind):
        shortest = given
    if "crop_pct" in settings or "ConvNext" in kind:  # ConvNeXt's and ResNet's
        if not isinstance(shortest, int):
            raise _refused("size", given, "{shortest_edge: pixels}")
        shortest = pixels(shortest, f"{_FILE}: size")
        if shortest >= 384:
            return ImageSpec((shortest, shortest), "stretch", interpolation)
        share = settings.get("crop_pct") or _CROPPED_TO
        share = bounded(share, f"{_FILE}: crop_pct", (0.01, 1))
        return ImageSpec((shortest, shortest), "crop", interpolation, share)
    crop = settings.get("crop_size", given) if settings.get("do_center_crop", False) else None
    if isinstance(shortest, int):
        if crop is None:
            raise _refused("do_center_crop", False, "true, where the shortest edge is resized")
        height, width = _both(crop, "crop_size")
        shortest = pixels(shortest, f"{_FILE}: size")
        if min(height, width) > shortest:
            raise _refused("crop_size", crop, f"{shortest} pixels at most, the shortest edge")
        return ImageSpec((height, width), "crop", interpolation, min(height, width) / shortest)
    height, width = _both(given, "size")
    if crop is None:
        return ImageSpec((height, width), "stretch", interpolation)
    middle = _both(crop, "crop_size")
    if middle[0] * width != middle[1] * height or middle[0] > height:
        raise _refused("crop_size", crop, "of the shape of `size`, and no larger")
    return ImageSpec(middle, "stretch", interpolation, middle[0] / height)


def _both(value: Any, key: str) -> tuple[int, int]:
    """Height and width."""
    if isinstance(value, Mapping):
        found = value.get("shortest_edge", value.get("height"))
        value = [found, value.get("width", found)]
    elif isinstance(value, int):
        value = [value, value]
    if not (isinstance(value, list | tuple) and len(value) == 2):
        raise _refused(key, value, "a height and a width in pixels")
    return pixels(value[0], f"{_FILE}: {key}"), pixels(value[1], f"{_FILE}: {key}")


def pixels(value: Any, name: str) -> int:
    """Return a side of a picture in pixels, which a file names.

    Raises:
        UserError: it is none, or larger than pictures of models are.
    """
    return bounded(value, name, BOUNDS["image_size"], int)


def _three(
    settings: Mapping[str, Any], key: str, default: Sequence[float], least: float = -1e3
) -> tuple[float, ...]:
    value = settings.get(key, default)
    return three([value] * 3 if isinstance(value, int | float) else value, f"{_FILE}: {key}", least)


def three(value: Any, name: str, least: float = -1e3) -> tuple[float, ...]:
    """Return a number for each of three channels, which a file names.

    Args:
        least: the smallest that is allowed.

    Raises:
        UserError: they are others.
    """
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise UserError(f"{name} must be three numbers. Received: {value!r:.60}")
    return tuple(bounded(v, name, (least, 1e3)) for v in value)


def _scaling(scale: float, mean: Any, deviation: Any) -> dict[str, Any]:
    return {"scale": scale, "mean": list(mean), "deviation": list(deviation)}


def _refused(key: str, value: Any, wanted: str) -> UserError:
    return UserError(f"{_FILE}: {key} must be {wanted}. Received: {value!r:.60}")
