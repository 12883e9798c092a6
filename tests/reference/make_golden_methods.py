"""Writes tests/golden/methods: what the `peft` package makes of the golden files' tiny BERT.

For each method: the values of its variables (random, so that nothing is zero), the features, and
the gradients of a sum of them, under the paths that tfft's variables have. Bottleneck adapters,
which peft does not have, are put into the PyTorch model by forward hooks here.

    pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2
    python tests/reference/make_golden_methods.py
"""

from pathlib import Path

import numpy as np
import peft
import torch
import transformers as hf

ROOT = Path(__file__).parent.parent / "golden"
OUT = ROOT / "methods"
BERT = ROOT / "encoders" / "bert"
OURS = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/out",
    "intermediate.dense": "up",
    "output.dense": "down",
}
EVERY = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
LORA = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0, "target_modules": ["query", "value"]}
CASES = {
    "lora": peft.LoraConfig(**LORA),
    "lora_rank_stabilized": peft.LoraConfig(
        **{**LORA, "use_rslora": True, "target_modules": EVERY}
    ),
    "dora": peft.LoraConfig(**{**LORA, "use_dora": True}),
    "ia3": peft.IA3Config(
        target_modules=r".*(key|value|\d\.output\.dense)",
        feedforward_modules=r".*\d\.output\.dense",
    ),
}
LENGTH = 5  # of prefix and prompt


def inputs() -> dict[str, torch.Tensor]:
    values = np.load(BERT / "expected.npz")
    return {
        "input_ids": torch.tensor(values["token_ids"]).long(),
        "attention_mask": torch.tensor(values["padding_mask"]).long(),
        "token_type_ids": torch.tensor(values["segment_ids"]).long(),
    }


def model() -> hf.BertModel:
    return hf.BertModel.from_pretrained(BERT, attn_implementation="eager").eval()


def our_path(name: str) -> str:
    """`...encoder.layer.0.attention.self.query.lora_A...` -> `block_0/attention/query`."""
    block, rest = name.split("encoder.layer.")[1].split(".", 1)
    for theirs in sorted(OURS, key=len, reverse=True):
        if rest.startswith(theirs + "."):
            return f"block_{block}/{OURS[theirs]}"
    raise KeyError(name)


def entries(name: str, parameter: torch.nn.Parameter) -> dict[str, tuple]:
    """Our paths -> how each is made of a parameter (or of its gradient)."""
    if "prompt_encoder" in name:
        return (
            prefix_entries()
            if parameter.shape[1] > 16
            else {"embeddings/prompt/vectors": lambda v: v}
        )
    path = our_path(name)
    if ".lora_A." in name:
        return {f"{path}/lora/a": lambda v: v.T}
    if ".lora_B." in name:
        return {f"{path}/lora/b": lambda v: v.T}
    if ".lora_magnitude_vector." in name:
        return {f"{path}/lora/magnitude": lambda v: v}
    return {f"{path}/ia3/scale": lambda v: v.reshape(-1)}


def prefix_entries() -> dict[str, tuple]:
    """[P, layers * 2 * D], keys before values, -> [H, P, d] each."""

    def part(layer: int, which: int):
        def of(v: np.ndarray) -> np.ndarray:
            heads, size = 2, 8
            every = v.reshape(LENGTH, 2 * 2, heads, size)  # layers * 2
            return every[:, 2 * layer + which].transpose(1, 0, 2)

        return of

    return {
        f"block_{layer}/attention/prefix/{name}": part(layer, which)
        for layer in range(2)
        for which, name in enumerate(("key", "value"))
    }


def backward(features: torch.Tensor) -> dict[str, np.ndarray]:
    """The features, and random weights of their sum over real tokens, whose gradient is taken."""
    weights = np.random.default_rng(11).normal(size=tuple(features.shape)).astype(np.float32)
    weights *= np.load(BERT / "expected.npz")["padding_mask"][:, :, None]
    (features * torch.tensor(weights)).sum().backward()
    return {"sequence": features.detach().numpy(), "weights": weights}


def save(name: str, features: torch.Tensor, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Values, features, and gradients of a weighted sum of them."""
    arrays = backward(features)
    for theirs, parameter in parameters.items():
        for ours, of in entries(theirs, parameter).items():
            arrays[f"value|{ours}"] = np.ascontiguousarray(of(parameter.detach().numpy()))
            arrays[f"gradient|{ours}"] = np.ascontiguousarray(of(parameter.grad.numpy()))
    if name == "dora":
        arrays = {k.replace("/lora/", "/dora/"): v for k, v in arrays.items()}
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    print(name, len(parameters), "parameters")


def randomize(parameters: dict[str, torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(parameters.items()):
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 0.1
        start = 1.0 if "ia3" in name else (parameter.data if "magnitude" in name else 0.0)
        parameter.data = start + scale * noise


def of_peft(name: str, config: peft.PeftConfig) -> None:
    torch.manual_seed(0)
    made = peft.get_peft_model(model(), config).eval()
    parameters = {n: p for n, p in made.named_parameters() if p.requires_grad}
    randomize(parameters, 5)
    save(name, made(**inputs()).last_hidden_state, parameters)


def prefix() -> None:
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH)
    torch.manual_seed(0)
    made = peft.get_peft_model(model(), config).eval()
    parameters = {n: p for n, p in made.named_parameters() if p.requires_grad}
    randomize(parameters, 6)
    # peft's forward leaves segments out and lets the prefix take the first positions. A prefix has
    # no positions (Li & Liang 2021), so its keys and values go to the model past that forward.
    given = inputs()
    rows, tokens = given["input_ids"].shape
    given["position_ids"] = torch.arange(tokens)[None].expand(rows, -1)
    ones = torch.ones(rows, LENGTH, dtype=torch.long)
    given["attention_mask"] = torch.cat([ones, given["attention_mask"]], dim=1)
    features = made.base_model(**given, past_key_values=made.get_prompt(rows)).last_hidden_state
    save("prefix", features, parameters)


def prompt() -> None:
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH)
    torch.manual_seed(0)
    made = peft.get_peft_model(model(), config).eval()
    parameters = {n: p for n, p in made.named_parameters() if p.requires_grad}
    randomize(parameters, 7)
    given = inputs()
    given["token_type_ids"] = torch.zeros_like(given["token_type_ids"])
    features = made(**given).last_hidden_state[:, LENGTH:]
    save("prompt", features, parameters)


def adapter(name: str, places: list[str]) -> None:
    """Houlsby et al. 2019: y + up(gelu(down(y))) behind the sublayers' projections."""
    base = model()
    for parameter in base.parameters():
        parameter.requires_grad = False
    generator = torch.Generator().manual_seed(8)
    made: dict[str, dict[str, torch.nn.Parameter]] = {}
    for i, layer in enumerate(base.encoder.layer):
        for place in places:
            dense = layer.get_submodule(place)
            width = dense.out_features
            shapes = {"down": (width, 6), "down_bias": (6,), "up": (6, width), "up_bias": (width,)}
            own = {
                n: torch.nn.Parameter(0.3 * torch.randn(s, generator=generator))
                for n, s in shapes.items()
            }
            made[f"block_{i}/{OURS[place]}"] = own

            def hook(module, args, y, own=own):
                inner = torch.nn.functional.gelu(y @ own["down"] + own["down_bias"])
                return y + inner @ own["up"] + own["up_bias"]

            dense.register_forward_hook(hook)
    features = base(**inputs()).last_hidden_state
    arrays = backward(features)
    for path, own in made.items():
        for key, parameter in own.items():
            arrays[f"value|{path}/adapter/{key}"] = parameter.detach().numpy()
            arrays[f"gradient|{path}/adapter/{key}"] = parameter.grad.numpy()
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    print(name, len(made), "adapters")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name, config in CASES.items():
        of_peft(name, config)
    adapter("adapter_houlsby", ["attention.output.dense", "output.dense"])
    adapter("adapter_pfeiffer", ["output.dense"])
    prompt()
    prefix()


if __name__ == "__main__":
    main()
