"""PyTorch's tensors on a CUDA device: results on the current stream, and in a graph."""

import numpy as np
import pytest
import torch

import flatstep as fs

ROWS, CLASSES = 64, 1000
CYCLES = 50_000_000  # some hundredths of a second, in which a call on a wrong stream would be over


@pytest.fixture
def arrays(rng):
    logits = rng.standard_normal((ROWS, CLASSES)).astype(np.float32) * 3
    return logits, rng.integers(0, CLASSES, ROWS)


def on_cuda(array):
    return torch.from_numpy(array).cuda()


def test_loss_and_gradient(arrays):
    logits, targets = map(on_cuda, arrays)
    result = fs.cross_entropy(logits, targets, grad=True, label_smoothing=0.1)
    assert result.grad.device == result.lse.device == logits.device
    wide = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(wide, targets, label_smoothing=0.1)
    wanted.backward()
    assert result.loss == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(result.grad.double(), wide.grad, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(result.lse.double(), wide.detach().logsumexp(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_linear_loss_and_gradients(rng, dtype):
    hidden = on_cuda(rng.standard_normal((ROWS, 128)).astype(np.float32)).to(dtype)
    weight = on_cuda(rng.standard_normal((CLASSES, 128)).astype(np.float32) * 0.1).to(dtype)
    targets = on_cuda(rng.integers(0, CLASSES, ROWS))
    result = fs.linear_cross_entropy(hidden, weight, targets, reduction="sum")
    assert result.grad_hidden.dtype == dtype and result.grad_weight.dtype == torch.float32
    wide = [array.double().requires_grad_() for array in (hidden, weight)]
    wanted = torch.nn.functional.cross_entropy(wide[0] @ wide[1].T, targets, reduction="sum")
    wanted.backward()
    assert result.loss == pytest.approx(wanted.item(), rel=1e-4)
    for own, array in zip((result.grad_hidden, result.grad_weight), wide, strict=True):
        error = (own.double() - array.grad).abs().max() / array.grad.abs().max()
        assert error < {torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]


@pytest.mark.parametrize("targets_of", ("torch", "flatstep"))
def test_a_side_stream(arrays, targets_of):
    """The logits are only there once the stream has slept."""
    values, indices = arrays
    there, targets = on_cuda(values), on_cuda(indices)
    wanted = fs.cross_entropy(there, targets, grad=True)
    if targets_of == "flatstep":
        targets = fs.to_device(indices)
    logits = torch.zeros_like(there)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        logits.copy_(there)
        result = fs.cross_entropy(logits, targets, grad=True)
        assert not stream.query()  # the call has not waited
        gradient = result.grad.clone()
    assert result.loss == wanted.loss and stream.query()
    assert torch.equal(gradient, wanted.grad)


@pytest.mark.parametrize("state", ("full", "8bit"))
def test_steps_on_a_side_stream(rng, state):
    start, gradient = rng.standard_normal((2, 100_000)).astype(np.float32)
    twin = start.copy()
    own = fs.AdamW(twin, state=state).step(gradient, max_norm=1.0)
    params, there = on_cuda(start), on_cuda(gradient)
    # The first launch of a kernel waits for the device, which has to load it.
    fs.AdamW(params.clone(), state=state).step(there, max_norm=1.0)
    optimizer = fs.AdamW(params, state=state)
    assert optimizer.exp_avg.device == params.device if state == "full" else True
    grads = torch.zeros_like(there)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        grads.copy_(there)
        info = optimizer.step(grads, max_norm=1.0)
        assert not stream.query()
    assert info.grad_norm == own.grad_norm and info.step == 1
    assert params.cpu().numpy().tobytes() == twin.tobytes()


def test_bad_targets_on_a_side_stream(arrays):
    logits, targets = map(on_cuda, arrays)
    targets[7] = CLASSES
    with torch.cuda.stream(torch.cuda.Stream()):
        fs.cross_entropy(logits, targets)
    with pytest.raises(IndexError, match=r"^targets: row 7 holds 1000"):
        fs.synchronize()
    targets[7] = 0
    assert np.isfinite(fs.cross_entropy(logits, targets).loss)


def test_norms_and_dropout(rng):
    array = rng.standard_normal(50_001).astype(np.float32)
    there = on_cuda(array)
    assert fs.grad_norm(there) == fs.grad_norm(array)
    dropped = fs.dropout(there, 0.3, seed=5)
    assert dropped.cpu().numpy().tobytes() == fs.dropout(array, 0.3, seed=5).tobytes()
    mask = torch.from_dlpack(fs.dropout_mask(50_001, 0.3, seed=5, device="cuda"))
    assert torch.equal(mask != 0, dropped != 0)


def test_device_arrays_are_shared(rng):
    values = rng.standard_normal((3, 4)).astype(np.float32)
    array = fs.to_device(values)
    tensor = torch.from_dlpack(array)
    tensor += 1
    torch.cuda.synchronize()
    assert np.array_equal(array.numpy(), values + 1)


def test_gradients_are_refused_with_a_name(arrays):
    logits, targets = map(on_cuda, arrays)
    with pytest.raises(ValueError, match=r"^logits: .*detach"):
        fs.cross_entropy(logits.requires_grad_(), targets)
    with pytest.raises(ValueError, match=r"^targets: got an array on the CPU, expected one on"):
        fs.cross_entropy(logits.detach(), targets.cpu())


# ---- graphs -------------------------------------------------------------------------------------


class Training:
    """The logits are the parameters: each step takes the gradient of their loss."""

    def __init__(self, arrays):
        self.params, self.targets = map(on_cuda, arrays)
        self.grads = torch.empty_like(self.params)
        self.lr = torch.zeros((), dtype=torch.float64, device="cuda")
        self.optimizer = fs.AdamW(self.params, weight_decay=0.1)

    def step(self):
        result = fs.cross_entropy(self.params, self.targets, grad=self.grads, reduction="sum")
        return result, self.optimizer.step(self.grads, lr=self.lr, max_norm=1.0, zero_grad=True)


def test_a_graph_does_what_the_calls_do(arrays):
    """The same bits, launch by launch, with a learning rate that changes."""
    eager, captured = Training(arrays), Training(arrays)
    with torch.cuda.stream(torch.cuda.Stream()):  # a step with lr 0, and all memory is there
        for training in (eager, captured):
            training.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result, info = captured.step()
    losses = []
    for step in range(5):
        eager.lr.fill_(0.1 / (step + 1))
        captured.lr.fill_(0.1 / (step + 1))
        own_result, own_info = eager.step()
        graph.replay()
        assert torch.equal(eager.params, captured.params)
        assert result.loss == own_result.loss and result.n_valid == ROWS
        assert info.grad_norm == own_info.grad_norm and info.lr == own_info.lr == 0.1 / (step + 1)
        assert info.step == own_info.step == step + 2
        losses.append(result.loss)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert captured.optimizer.step_count == 6


def test_a_fault_in_a_graph(arrays):
    training = Training(arrays)
    with torch.cuda.stream(torch.cuda.Stream()):
        training.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result, _ = training.step()
    graph.replay()
    assert np.isfinite(result.loss)
    training.targets[3] = -7
    graph.replay()
    with pytest.raises(IndexError, match=r"^targets: row 3 holds -7"):
        result.loss  # noqa: B018
    training.targets[3] = 7
    graph.replay()
    assert np.isfinite(result.loss)
