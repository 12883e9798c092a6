"""Write tests/golden/vision: tiny random image checkpoints, the outputs of transformers, and two
images preprocessed by its image processors.

Run it where PyTorch and Pillow are installed, but not torchvision, so that the processors use
Pillow:

    pip install torch==2.13.0 transformers==5.24.0 pillow
    python tests/reference/make_golden_vision.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from PIL import Image

OUT = Path(__file__).parent.parent / "golden" / "vision"
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}
SWIN = {
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "image_size": 32,
    "patch_size": 2,
}
CONVNEXT = {"num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 2], "image_size": 32}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1]}
LABELS = {0: "zero", 1: "one", 2: "two"}
# name -> (classifier, settings of its config, height and width of the images)
CASES = {
    "vit": (hf.ViTForImageClassification, VIT, (16, 16)),
    "vit_variant": (
        hf.ViTForImageClassification,
        {**VIT, "qkv_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3},
        (16, 16),
    ),
    "vit_larger": (hf.ViTForImageClassification, VIT, (24, 24)),
    "deit": (hf.DeiTForImageClassification, VIT, (16, 16)),
    "deit_teacher": (hf.DeiTForImageClassificationWithTeacher, VIT, (16, 16)),
    "dinov2": (hf.Dinov2ForImageClassification, {**VIT, "layerscale_value": 0.7}, (16, 16)),
    "dinov2_smaller": (hf.Dinov2ForImageClassification, VIT, (12, 12)),
    "dinov2_gated": (hf.Dinov2ForImageClassification, {**VIT, "use_swiglu_ffn": True}, (16, 16)),
    "swin": (hf.SwinForImageClassification, SWIN, (32, 32)),
    "swin_padded": (
        hf.SwinForImageClassification,
        {**SWIN, "image_size": 42, "depths": [2, 1, 2], "num_heads": [2, 2, 2], "window_size": 3},
        (42, 42),
    ),
    "swin_variant": (
        hf.SwinForImageClassification,
        {**SWIN, "qkv_bias": False, "use_absolute_embeddings": True, "mlp_ratio": 2.0},
        (32, 32),
    ),
    "convnext": (
        hf.ConvNextForImageClassification,
        {**CONVNEXT, "layer_scale_init_value": 0.5},
        (32, 32),
    ),
    "convnext_variant": (
        hf.ConvNextForImageClassification,
        {**CONVNEXT, "layer_scale_init_value": 0.0, "layer_norm_eps": 1e-3, "hidden_act": "relu"},
        (36, 36),
    ),
    "resnet": (hf.ResNetForImageClassification, RESNET, (32, 32)),
    "resnet_basic": (
        hf.ResNetForImageClassification,
        {**RESNET, "layer_type": "basic", "downsample_in_first_stage": True},
        (36, 36),
    ),
    "resnet_early": (
        hf.ResNetForImageClassification,
        {**RESNET, "downsample_in_bottleneck": True},
        (33, 33),
    ),
    "mobilenet_v2": (
        hf.MobileNetV2ForImageClassification,
        {"depth_multiplier": 0.1, "min_depth": 4, "depth_divisible_by": 4, "image_size": 32},
        (32, 32),
    ),
    "mobilenet_v2_variant": (
        hf.MobileNetV2ForImageClassification,
        {
            "depth_multiplier": 0.1,
            "min_depth": 4,
            "depth_divisible_by": 4,
            "tf_padding": False,
            "output_stride": 8,
            "first_layer_is_expansion": False,
            "finegrained_output": False,
            "image_size": 32,
        },
        (36, 36),
    ),
}
# name -> (image processor, its settings)
PROCESSORS = {
    "vit": ("ViTImageProcessor", {"size": {"height": 24, "width": 24}}),
    "deit": ("DeiTImageProcessor", {"size": {"height": 32, "width": 32}, "crop_size": 28}),
    "bit": ("BitImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": 28}),
    "convnext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}),
    "convnext_large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "mobilenet_v2": (
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}},
    ),
}


def write_case(name: str) -> None:
    """Write one checkpoint and its outputs."""
    model_class, settings, size = CASES[name]
    config = model_class.config_class(**settings, id2label=LABELS)
    torch.manual_seed(sorted(CASES).index(name))
    model = model_class(config).eval()
    with torch.no_grad():  # move norms and biases away from their initial ones and zeros
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for key, buffer in model.named_buffers():
            if "running" in key:
                buffer.add_(torch.rand_like(buffer) * 0.5)
    generator = np.random.default_rng(7)
    image = generator.integers(0, 256, [2, *size, 3]).astype(np.float32)
    pixels = torch.tensor((image / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).contiguous()
    options = {"interpolate_pos_encoding": True} if name == "vit_larger" else {}
    with torch.no_grad():
        logits = model(pixels, **options).logits
        base = getattr(model, model.base_model_prefix)
        outputs = base(pixels, **options)
    expected = {"logits": logits.numpy()}
    last_hidden = outputs.last_hidden_state.numpy()
    expected["last"] = last_hidden if last_hidden.ndim == 3 else last_hidden.transpose(0, 2, 3, 1)
    if model_class.config_class.model_type in ("swin", "convnext", "resnet", "mobilenet_v2"):
        expected["pooled"] = outputs.pooler_output.numpy().reshape(2, -1)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    np.savez_compressed(folder / "expected.npz", image=image, **expected)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    size = {"height": size[0], "width": size[1]}
    text = json.dumps({"image_processor_type": "ViTImageProcessor", "size": size, **half})
    (folder / "preprocessor_config.json").write_text(text)


def write_processors() -> None:
    """Write a wide and a high image as PNG, and the outputs of the processors for them."""
    generator = np.random.default_rng(3)
    folder = OUT / "processors"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    small = generator.integers(0, 256, [6, 9, 3]).astype(np.uint8)
    images = {
        "wide": Image.fromarray(small).resize((90, 61), Image.Resampling.BICUBIC),
        "high": Image.fromarray(small).resize((50, 77), Image.Resampling.BICUBIC),
    }
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    for name, (processor_class, settings) in PROCESSORS.items():
        processor = getattr(hf, processor_class)(**settings)
        processor.save_pretrained(folder / name)
        values = {
            key: np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0)
            for key, image in images.items()
        }
        # Every eighth pixel of the large one keeps the file small.
        step = 8 if name == "convnext_large" else 1
        values = {key: value[::step, ::step].astype(np.float32) for key, value in values.items()}
        np.savez_compressed(folder / name / "expected.npz", **values)


if __name__ == "__main__":
    for case in CASES:
        write_case(case)
    write_processors()
    versions = {"torch": torch.__version__, "transformers": hf.__version__}
    (OUT / "versions.json").write_text(json.dumps(versions))
