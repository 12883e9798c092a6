"""Write tests/golden/timm: names and shapes of timm's tensors, and its outputs for an image.

The values are derived from the names (`seeded.tensor`), so no checkpoint is stored. Run it where
timm is installed:

    pip install timm==1.0.31
    python tests/reference/make_golden_timm.py
"""

import json
from pathlib import Path

import numpy as np
import timm
import torch
from seeded import tensor

OUT = Path(__file__).parent.parent / "golden" / "timm"
NAMES = (
    "cspresnet50",
    "darknet53",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_lite0",
    "mobilenetv3_small_050",
    "resnet18",
    "resnetv2_50",
)
CONFIG_KEYS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def write_case(name: str) -> None:
    """Write one architecture."""
    model = timm.create_model(name, pretrained=False).eval()
    state = {
        key: torch.tensor(tensor(key, tuple(value.shape)))
        if value.dtype.is_floating_point
        else value
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    pretrained = {
        key: model.pretrained_cfg[key] for key in CONFIG_KEYS if key in model.pretrained_cfg
    }
    config = {
        "architecture": name,
        "num_classes": 1000,
        "num_features": model.num_features,
        "pretrained_cfg": pretrained,
    }
    image = np.random.default_rng(5).integers(0, 256, (1, 65, 65, 3)).astype(np.float32)
    mean, deviation = np.array(pretrained["mean"]), np.array(pretrained["std"])
    pixels = ((image / 255 - mean) / deviation).astype(np.float32)
    with torch.no_grad():
        batch = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()
        features = model.forward_features(batch).numpy()
        logits = model(batch).numpy()
    shapes = {k: list(v.shape) for k, v in state.items() if v.dtype.is_floating_point}
    np.savez_compressed(
        OUT / f"{name}.npz",
        config=json.dumps(config),
        shapes=json.dumps(shapes),
        image=image.astype(np.uint8),
        pooled=features.mean(axis=(2, 3)),
        corner=features[:, :, -1, -1],
        logits=logits,
    )


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for case in NAMES:
        write_case(case)
