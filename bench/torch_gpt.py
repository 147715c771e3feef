"""The GPT-2 of flatstep.GPT in PyTorch, with its weights, as one would write it there.

Pre-LN blocks, learned positions, tanh GELU, tied head, biases; attention is
F.scaled_dot_product_attention; dropout on the embedding sum, the attention weights, the attention
output and the feed-forward output.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """One layer; `head_count` heads of `width / head_count`."""

    def __init__(self, width, head_count, dropout):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.attn_proj = nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head_count, self.dropout = head_count, dropout

    def forward(self, x):
        dropout = self.dropout if self.training else 0.0
        batch, length, width = x.shape
        heads = (batch, length, self.head_count, width // self.head_count)
        qkv = self.c_attn(self.ln_1(x)).split(width, dim=-1)
        query, key, value = (part.view(heads).transpose(1, 2) for part in qkv)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        x = x + F.dropout(self.attn_proj(mixed), dropout, self.training)
        hidden = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + F.dropout(self.mlp_proj(hidden), dropout, self.training)


class TorchGPT(nn.Module):
    """The model of a flatstep.GPTConfig; forward(tokens, targets) is the mean cross-entropy."""

    def __init__(self, config):
        super().__init__()
        width = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, width)
        self.wpe = nn.Embedding(config.block_size, width)
        blocks = (Block(width, config.n_head, config.dropout) for _ in range(config.n_layer))
        self.h = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(width)
        self.dropout = config.dropout

    def logits(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        x = F.dropout(x, self.dropout, self.training)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def forward(self, tokens, targets):
        logits = self.logits(tokens)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def tensors(self):
        """[(Hugging Face name, parameter, whether it lies the other way round there)]."""
        renamed = {"attn_proj": "attn.c_proj", "c_attn": "attn.c_attn", "c_fc": "mlp.c_fc"}
        renamed["mlp_proj"] = "mlp.c_proj"
        linear = {
            f"{path}.weight"
            for path, module in self.named_modules()
            if isinstance(module, nn.Linear)
        }
        rows = []
        for name, parameter in self.named_parameters():
            parts = [renamed.get(part, part) for part in name.split(".")]
            rows.append(("transformer." + ".".join(parts), parameter, name in linear))
        return rows


def torch_twin(model):
    """A TorchGPT with a copy of the weights of a flatstep.GPT, in training mode."""
    twin = TorchGPT(model.config)
    with torch.no_grad():
        for name, parameter, transposed in twin.tensors():
            weight = torch.from_numpy(model[name])
            parameter.copy_(weight.T if transposed else weight)
    return twin.train()


def make_optimizer(twin, lr, betas, weight_decay):
    """The fused AdamW, without decay of vectors, as flatstep's layout has it."""
    matrices = [p for p in twin.parameters() if p.dim() > 1]
    vectors = [p for p in twin.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
