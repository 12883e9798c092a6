"""Write tests/golden/optim.npz: PyTorch's AdamW and clipping, transformers' schedules.

Three stages (embeddings, block_0, head) have a kernel and a bias each. The learning rate halves
with each stage below the head. tests/training/test_optimizers.py feeds the same random gradients to
tfft's optimizer.

    pip install torch==2.13.0 transformers==5.24.0
    python tests/reference/make_golden_optim.py
"""

from pathlib import Path

import numpy as np
import torch
import transformers as hf

OUT = Path(__file__).parent.parent / "golden" / "optim.npz"
STEPS, WARMUP, PEAK, DECAY = 24, 5, 0.05, 0.1
STAGES = {"embeddings": 0.25, "block_0": 0.5, "head": 1.0}
SCHEDULES = {
    "linear": lambda o: hf.get_linear_schedule_with_warmup(o, WARMUP, STEPS),
    "cosine": lambda o: hf.get_cosine_schedule_with_warmup(o, WARMUP, STEPS),
    "constant": lambda o: hf.get_constant_schedule_with_warmup(o, WARMUP),
    "polynomial": lambda o: hf.get_polynomial_decay_schedule_with_warmup(
        o, WARMUP, STEPS, lr_end=0.0, power=2.0
    ),
}


def main() -> None:
    generator = np.random.default_rng(3)
    shapes = {}
    for stage in STAGES:
        shapes |= {f"{stage}/dense/kernel": (3, 2), f"{stage}/dense/bias": (2,)}
    initial = {p: generator.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    gradients = {
        p: generator.normal(size=(STEPS, *s)).astype(np.float32) for p, s in shapes.items()
    }
    arrays = {f"start|{p}": v for p, v in initial.items()}
    arrays |= {f"gradient|{p}": v for p, v in gradients.items()}
    for name, schedule in SCHEDULES.items():
        parameters = {p: torch.nn.Parameter(torch.tensor(v)) for p, v in initial.items()}
        groups = [
            {
                "params": [parameter],
                "lr": PEAK * STAGES[path.split("/")[0]],
                "weight_decay": DECAY if path.endswith("kernel") else 0.0,
            }
            for path, parameter in parameters.items()
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
        scheduler = schedule(optimizer)
        rates, values = [], {p: [] for p in initial}
        for step in range(STEPS):
            for path, parameter in parameters.items():
                parameter.grad = torch.tensor(gradients[path][step])
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            rates.append(scheduler.get_last_lr()[-1])
            optimizer.step()
            scheduler.step()
            for path, parameter in parameters.items():
                values[path].append(parameter.detach().numpy().copy())
        arrays[f"{name}|rates"] = np.array(rates, np.float64)
        arrays |= {f"{name}|{p}": np.stack(v) for p, v in values.items()}
    np.savez_compressed(OUT, **arrays)


if __name__ == "__main__":
    main()
