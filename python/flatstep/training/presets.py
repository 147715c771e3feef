"""Known-good shapes with the options that go with them: `flatstep train --preset NAME`."""

_GPT2 = {
    "vocab": "bpe", "block_size": 1024, "batch_size": 12, "grad_accum": 40, "steps": 600_000,
    "lr": 6e-4, "min_lr": 6e-5, "warmup": 2000, "weight_decay": 0.1, "beta2": 0.95,
    "eval_every": 1000, "save_every": 1000,
}  # fmt: skip

# {name: (what it is, {field of TrainConfig: value})}
PRESETS = {
    "tiny": (
        "2 layers of width 64, some seconds: does it work at all",
        {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 32, "steps": 500},
    ),
    "char-cpu": (
        "characters on a laptop, 4 layers of width 128, 2000 steps (nanoGPT's recipe for a CPU)",
        {
            "vocab": "char", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64,
            "batch_size": 12, "steps": 2000, "lr": 1e-3, "min_lr": 1e-4, "warmup": 100,
            "beta2": 0.99, "dropout": 0.0,
        },
    ),
    "char": (
        "characters, 6 layers of width 384 with dropout, 5000 steps (nanoGPT's recipe for a GPU)",
        {
            "vocab": "char", "n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256,
            "batch_size": 64, "steps": 5000, "lr": 1e-3, "min_lr": 1e-4, "warmup": 100,
            "beta2": 0.99, "dropout": 0.2,
        },
    ),
    "gpt2": (
        "GPT-2 124M with batches of half a million tokens",
        {"n_layer": 12, "n_head": 12, "n_embd": 768} | _GPT2,
    ),
    "gpt2-medium": (
        "GPT-2 350M with batches of half a million tokens",
        {"n_layer": 24, "n_head": 16, "n_embd": 1024} | _GPT2 | {"lr": 3e-4, "min_lr": 3e-5},
    ),
    "finetune": (
        "for --init-from: a small constant rate, one window at a time, 32 to a step",
        {
            "schedule": "constant", "lr": 3e-5, "batch_size": 1, "grad_accum": 32, "steps": 200,
            "eval_every": 20, "save_every": 100,
        },
    ),
}  # fmt: skip
