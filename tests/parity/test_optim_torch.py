"""mode="torch": every bit of torch.optim's fused CPU kernels, tails and threads included; and
mode="native" nearer to float64 than they are."""

import numpy as np
import oracle
import pytest
import torch

import flatstep as fs

ADAM = (
    {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1},
    {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-9, "weight_decay": 0.0},
    {"lr": 1e-2, "betas": (0.5, 0.9), "eps": 1e-4, "weight_decay": 0.1},
    {"lr": 1e-2, "betas": (0.3, 0.9), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": True},
    {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1, "maximize": True},
    {"lr": 3e-3, "betas": (0.9, 0.9), "weight_decay": 0.1, "amsgrad": True, "maximize": True},
)
SGD = (
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
)
VARIANTS = [(name, o) for name in ("AdamW", "Adam") for o in ADAM] + [("SGD", o) for o in SGD]
# Whole vectors of eight floats (four doubles), tails of every length, several chunks.
SIZES = (8, 9, 10, 11, 12, 13, 14, 15, 4096, 40_003)


pytestmark = pytest.mark.needs("fma")


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same_bits(ours, theirs, what):
    ours, theirs = np.asarray(ours).ravel(), np.asarray(theirs.detach()).ravel()
    integer = np.dtype(f"i{ours.itemsize}")
    different = ours.view(integer) != theirs.view(integer)
    assert not different.any(), (what, int(different.sum()), np.flatnonzero(different)[:5])


class Pair:
    """The same parameters under our optimizer and under PyTorch's."""

    def __init__(self, name, start, options, mode="torch"):
        self.ours = [p.clone() for p in start]
        self.theirs = [p.clone() for p in start]
        self.optimizer = getattr(fs, name)(self.ours, mode=mode, **options)
        self.reference = getattr(torch.optim, name)(self.theirs, fused=True, **options)

    def step(self, gradients):
        for p, g in zip(self.theirs, gradients, strict=True):
            p.grad = g.clone()
        self.reference.step()
        self.optimizer.step(gradients)

    def check(self, step):
        state = self.optimizer.state_dict()["state"]
        for number, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            assert_same_bits(ours, theirs, f"params[{number}], step {step}")
            for name, array in state[f"params[{number}]"].items():
                wanted = self.reference.state[theirs][name]
                assert_same_bits(array, wanted, f"{name}[{number}], step {step}")


def normal(generator, shape, dtype=torch.float32, scale=0.1):
    return torch.randn(shape, generator=generator, dtype=dtype) * scale


@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_every_bit_of_fifty_steps(name, options, dtype, threads):
    """A list of tensors, each with a tail of its own."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    pair = Pair(name, [normal(generator, size, dtype, 1.0) for size in SIZES], options)
    for step in range(50):
        pair.step([normal(generator, size, dtype) for size in SIZES])
        pair.check(step)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_zeros(name, options):
    """Parameters and gradients with zeros of both signs, as new biases and ReLU have them."""
    generator = torch.Generator().manual_seed(1)
    start = normal(generator, 1003)
    start[::3] = 0.0
    pair = Pair(name, [start], options)
    for step in range(10):
        g = normal(generator, 1003)
        g[::2] = 0.0
        g[::4] = -0.0
        pair.step([g])
        pair.check(step)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((37, 111), torch.float32), ((4096,), torch.float32), ((19, 3), torch.float64)],
    ids=str,
)
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_every_bit_after_a_thousand_steps(name, options, shape, dtype):
    generator = torch.Generator().manual_seed(2)
    pair = Pair(name, [normal(generator, shape, dtype, 1.0)], options)
    noise = [normal(generator, shape, dtype) for _ in range(50)]
    for step in range(1000):
        pair.step([noise[step % 50] * (1 + step % 7)])
    pair.check(1000)


@pytest.mark.parametrize(("name", "options"), [("AdamW", ADAM[1]), ("SGD", SGD[4])], ids=str)
def test_flat_buffer_of_tensors(name, options):
    """The tails are those of the layout's tensors; a scalar and an empty tensor are among them."""
    shapes = ((3, 5), (), (4099,), (0,), (8, 8))
    layout = fs.Layout([(f"t{i}", shape) for i, shape in enumerate(shapes)])
    generator = torch.Generator().manual_seed(3)
    flat = normal(generator, layout.size, scale=1.0)
    theirs = [view.clone() for view in layout.views(flat).values()]
    optimizer = getattr(fs, name)(flat, layout=layout, mode="torch", **options)
    reference = getattr(torch.optim, name)(theirs, fused=True, **options)
    for step in range(20):
        g = normal(generator, layout.size)
        for p, own in zip(theirs, layout.views(g).values(), strict=True):
            p.grad = own.clone()
        reference.step()
        optimizer.step(g)
        for view, wanted in zip(layout.views(flat).values(), theirs, strict=True):
            assert_same_bits(view, wanted, f"step {step}")


@pytest.mark.parametrize("name", ("AdamW", "Adam"))
def test_near_the_default_kernel(name):
    """Against the for-loop path, whose square root is not the IEEE one: a few ULP."""
    generator = torch.Generator().manual_seed(3)
    start = normal(generator, 1000, scale=1.0)
    ours, theirs = start.clone(), start.clone()
    optimizer = getattr(fs, name)(ours, mode="torch", **ADAM[1])
    reference = getattr(torch.optim, name)([theirs], foreach=False, fused=False, **ADAM[1])
    for _ in range(50):
        gradient = normal(generator, 1000)
        theirs.grad = gradient.clone()
        reference.step()
        optimizer.step(gradient)
    largest = np.maximum(np.abs(theirs.numpy()), np.abs(start.numpy()))
    assert np.all(np.abs(ours.numpy() - theirs.numpy()) <= 8 * np.spacing(largest))


def test_native_mode_is_ten_times_nearer_to_float64():
    """Error over displacement after 1000 steps: fl(1 - lr wd) is wrong in the same direction each
    time, one rounding of decay and update together is not."""
    options = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    generator = torch.Generator().manual_seed(4)
    size = 4096
    start = normal(generator, size, scale=1.0)
    pair = Pair("AdamW", [start], options, mode="native")
    exact, m, v = start.double().numpy().copy(), *np.zeros((2, size))
    drift = normal(generator, size, scale=0.05)
    for step in range(1, 1001):
        g = normal(generator, size) + drift
        pair.step([g])
        exact, m, v = oracle.adam(exact, g, m, v, step, decoupled=True, **options)
    displacement = np.linalg.norm(exact - start.double().numpy())
    native, theirs = (
        np.linalg.norm(p.double().numpy() - exact) / displacement
        for p in (pair.ours[0], pair.theirs[0])
    )
    print(f"error/displacement: native {native:.1e}, PyTorch {theirs:.1e}")
    assert 10 * native <= theirs


def test_list_of_tensors_updated_in_place():
    """A module's own parameters, several shapes, native mode: within float32 rounding."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    other = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    other.load_state_dict(module.state_dict())
    parameters = [p.detach() for p in module.parameters()]
    optimizer = fs.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    reference = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(20):
        x = torch.randn(8, 5)
        for model in (module, other):
            model.zero_grad(set_to_none=False)
            model(x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        reference.step()
        optimizer.step([p.grad for p in module.parameters()], max_norm=0.5)
    for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
