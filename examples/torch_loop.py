"""A plain PyTorch loop in which the loss, the clipping and the optimizer are flatstep's."""

from pathlib import Path

import torch

from flatstep.torch import AdamW, clip_grad_norm_, cross_entropy

CONTEXT = 8
torch.manual_seed(1)
text = torch.tensor(list(Path(__file__).read_bytes()))
model = torch.nn.Sequential(
    torch.nn.Embedding(256, 32),
    torch.nn.Flatten(),
    torch.nn.Linear(CONTEXT * 32, 128),
    torch.nn.GELU(),
    torch.nn.Linear(128, 256),
)
optimizer = AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)

for step in range(100):
    ends = torch.randint(CONTEXT, len(text), (64,))
    contexts = text[ends[:, None] + torch.arange(-CONTEXT, 0)]
    loss = cross_entropy(model(contexts), text[ends], label_smoothing=0.01)
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step % 20 == 0 or step == 99:
        print(f"step {step:3d}  loss {loss.item():.4f}  gradient norm {norm.item():.3f}")
