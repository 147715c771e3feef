"""The GPT-2 language model, forward and backward, in float64 NumPy.

x = drop(wte[token] + wpe[position]); per layer x += drop(c_proj(attention(ln_1(x)))) and
x += drop(c_proj(gelu_tanh(c_fc(ln_2(x))))); logits = ln_f(x) @ wte^T.
Every backward function stands below its forward function and returns gradients in input order.
"""

import math

import numpy as np
import oracle_loss

GELU_SLOPE = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715


def layer_norm(x, weight, bias):
    mean = x.mean(axis=-1, keepdims=True)
    inverse_deviation = 1.0 / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    normalized = (x - mean) * inverse_deviation
    return normalized * weight + bias, (normalized, inverse_deviation)


def layer_norm_backward(upstream, weight, saved):
    normalized, inverse_deviation = saved
    axes = tuple(range(upstream.ndim - 1))
    inner = upstream * weight
    centred = inner - inner.mean(axis=-1, keepdims=True)
    projected = normalized * (inner * normalized).mean(axis=-1, keepdims=True)
    grad_weight = (upstream * normalized).sum(axis=axes)
    return (centred - projected) * inverse_deviation, grad_weight, upstream.sum(axis=axes)


def linear_backward(upstream, x, weight):
    """of y = x @ weight + bias with weight [in, out]."""
    rows = upstream.reshape(-1, upstream.shape[-1])
    return upstream @ weight.T, x.reshape(-1, x.shape[-1]).T @ rows, rows.sum(axis=0)


def gelu(x):
    return 0.5 * x * (1.0 + np.tanh(GELU_SLOPE * (x + GELU_CUBIC * x**3)))


def gelu_backward(upstream, x):
    wave = np.tanh(GELU_SLOPE * (x + GELU_CUBIC * x**3))
    slope = GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * x**2)
    return upstream * (0.5 * (1.0 + wave) + 0.5 * x * (1.0 - wave**2) * slope)


def split_heads(x, heads):
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(x):
    batch, heads, length, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)


def attention(qkv, heads, keep):
    query, key, value = (split_heads(part, heads) for part in np.split(qkv, 3, axis=-1))
    length = qkv.shape[1]
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return merge_heads((weights * keep) @ value), (query, key, value, weights)


def attention_backward(upstream, heads, keep, saved):
    query, key, value, weights = saved
    upstream = split_heads(upstream, heads)
    grad_value = (weights * keep).swapaxes(-1, -2) @ upstream
    grad_weights = upstream @ value.swapaxes(-1, -2) * keep
    inner = (grad_weights * weights).sum(axis=-1, keepdims=True)
    grad_scores = weights * (grad_weights - inner) / math.sqrt(query.shape[-1])
    grad_query, grad_key = grad_scores @ key, grad_scores.swapaxes(-1, -2) @ query
    return np.concatenate([merge_heads(g) for g in (grad_query, grad_key, grad_value)], axis=-1)


class GPT:
    """params: {Hugging Face name: array}. keep(site, shape): what a dropout multiplies with."""

    def __init__(self, params, n_layer, n_head, keep=None):
        self.params = {name: np.asarray(array, np.float64) for name, array in params.items()}
        self.n_layer, self.n_head = n_layer, n_head
        self.keep = keep or (lambda site, shape: 1.0)

    def linear(self, name, x):
        return x @ self.params[name + ".weight"] + self.params[name + ".bias"]

    def normalize(self, name, x):
        return layer_norm(x, self.params[name + ".weight"], self.params[name + ".bias"])

    def forward(self, tokens):
        tokens = np.asarray(tokens)
        self.tokens, self.saved = tokens, []
        batch, length = tokens.shape
        embedding = self.params["transformer.wte.weight"]
        x = embedding[tokens] + self.params["transformer.wpe.weight"][:length]
        shape = x.shape
        x = x * self.keep(0, shape)
        for layer in range(self.n_layer):
            name = f"transformer.h.{layer}"
            saved = {"normal1": self.normalize(name + ".ln_1", x)}
            qkv = self.linear(name + ".attn.c_attn", saved["normal1"][0])
            keep = self.keep(1 + 3 * layer, (batch, self.n_head, length, length))
            saved["attention"] = (*attention(qkv, self.n_head, keep), keep)
            projected = self.linear(name + ".attn.c_proj", saved["attention"][0])
            saved["keep_attention"] = self.keep(2 + 3 * layer, shape)
            x = x + projected * saved["keep_attention"]
            saved["normal2"] = self.normalize(name + ".ln_2", x)
            saved["hidden"] = self.linear(name + ".mlp.c_fc", saved["normal2"][0])
            saved["active"] = gelu(saved["hidden"])
            saved["keep_mlp"] = self.keep(3 + 3 * layer, shape)
            x = x + self.linear(name + ".mlp.c_proj", saved["active"]) * saved["keep_mlp"]
            self.saved.append(saved)
        self.final = self.normalize("transformer.ln_f", x)
        return self.final[0] @ embedding.T

    def forward_backward(self, tokens, targets, *, label_smoothing=0.0, loss_divisor=None):
        """-> loss, {name: gradient}; mean over the targets that are not -100, or sum/divisor."""
        result = oracle_loss.cross_entropy(
            self.forward(tokens), targets, label_smoothing=label_smoothing, divisor=loss_divisor
        )
        return result.loss, self.backward(result.grad)

    def backward(self, upstream):
        self.grads = {}
        embedding = self.params["transformer.wte.weight"]
        rows = upstream.reshape(-1, upstream.shape[-1])
        grad_embedding = rows.T @ self.final[0].reshape(-1, embedding.shape[1])
        x = self.normalize_backward("transformer.ln_f", upstream @ embedding, self.final)
        for layer in reversed(range(self.n_layer)):
            x = self.layer_backward(f"transformer.h.{layer}", x, self.saved[layer])
        x = x * self.keep(0, x.shape)
        np.add.at(grad_embedding, self.tokens.reshape(-1), x.reshape(-1, x.shape[-1]))
        self.grads["transformer.wte.weight"] = grad_embedding
        positions = np.zeros_like(self.params["transformer.wpe.weight"])
        positions[: x.shape[1]] = x.sum(axis=0)
        self.grads["transformer.wpe.weight"] = positions
        return self.grads

    def layer_backward(self, name, x, saved):
        inner = self.project_backward(name + ".mlp.c_proj", x * saved["keep_mlp"], saved["active"])
        inner = gelu_backward(inner, saved["hidden"])
        inner = self.project_backward(name + ".mlp.c_fc", inner, saved["normal2"][0])
        x = x + self.normalize_backward(name + ".ln_2", inner, saved["normal2"])
        mixed, intermediate, keep = saved["attention"]
        inner = self.project_backward(name + ".attn.c_proj", x * saved["keep_attention"], mixed)
        inner = attention_backward(inner, self.n_head, keep, intermediate)
        inner = self.project_backward(name + ".attn.c_attn", inner, saved["normal1"][0])
        return x + self.normalize_backward(name + ".ln_1", inner, saved["normal1"])

    def project_backward(self, name, upstream, x):
        grads = linear_backward(upstream, x, self.params[name + ".weight"])
        self.grads[name + ".weight"], self.grads[name + ".bias"] = grads[1:]
        return grads[0]

    def normalize_backward(self, name, upstream, saved):
        grads = layer_norm_backward(upstream, self.params[name + ".weight"], saved[1])
        self.grads[name + ".weight"], self.grads[name + ".bias"] = grads[1:]
        return grads[0]
