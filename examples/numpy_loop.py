"""A training loop of your own over flat buffers: the loss, the gradient and the step."""

import numpy as np

import flatstep as fs

text = np.fromfile(__file__, np.uint8).astype(np.int64)
model = fs.GPT(fs.GPTConfig(vocab_size=256, block_size=32, n_layer=2, n_head=2, n_embd=64), seed=1)
optimizer = fs.AdamW(model.params, layout=model.layout, weight_decay=0.1)
schedule = fs.schedule.warmup_cosine(3e-3, warmup=10, total=100)
rng = np.random.default_rng(1)

for step in range(100):
    starts = rng.integers(0, len(text) - 33, size=16)
    windows = np.stack([text[start : start + 33] for start in starts])
    loss = model.forward_backward(windows[:, :-1], windows[:, 1:], step=step)
    info = optimizer.step(model.grads, lr=schedule(step), max_norm=1.0)
    if step % 20 == 0 or step == 99:
        print(f"step {step:3d}  loss {loss:.4f}  gradient norm {info.grad_norm:.3f}")

prompt = np.frombuffer(b"import ", np.uint8).astype(np.int64)
print(bytes(model.generate(prompt, 40, temperature=0.5).astype(np.uint8)).decode(errors="replace"))
