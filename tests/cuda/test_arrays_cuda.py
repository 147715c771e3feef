"""Arrays in the memory of a CUDA device: there and back, places, streams."""

import sys
import types

import bfloat16
import cuda_case
import numpy as np
import pytest

import flatstep as fs

DTYPES = ("float32", "float64", "float16", "int32", "int64", "uint8", "uint16")


@pytest.mark.parametrize("shape", ((), (0,), (7,), (2, 3), (3, 0, 2), (3, 1, 50, 4)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(rng, dtype, shape):
    values = rng.integers(0, 200, shape).astype(dtype)
    array = fs.to_device(values)
    assert (array.shape, array.dtype, array.device) == (shape, dtype, "cuda:0")
    copy = array.numpy()
    assert copy.dtype == values.dtype and copy.shape == shape and np.array_equal(copy, values)
    assert not fs.DeviceArray.zeros(shape, dtype).numpy().any()


def test_bfloat16_keeps_its_bits():
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    bits = bits[~np.isnan(bfloat16.to_float32(bits))]
    array = fs.to_device(bfloat16.Bfloat16Array(bits))
    assert array.dtype == "bfloat16" and np.array_equal(cuda_case.fetch(array), bits)


def test_export(rng):
    array = fs.to_device(rng.standard_normal(6))
    assert array.__dlpack_device__() == (2, 0)
    assert "dltensor_versioned" in repr(array.__dlpack__(max_version=(1, 1), stream=1))
    for stream in (None, 1, 2, -1):
        assert "versioned" not in repr(array.__dlpack__(stream=stream))
    with pytest.raises(BufferError, match=r"^stream: got 0, expected 1"):
        array.__dlpack__(stream=0)
    for wrong in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError):
            array.__dlpack__(**wrong)


def test_memory_is_given_back():
    """Far more than any device has, but never more than 64 MB at once."""
    for _ in range(5000):
        fs.DeviceArray(2**24)


def test_a_device_that_is_not_there():
    for call in (fs.DeviceArray.zeros, fs.to_device):
        with pytest.raises(RuntimeError, match=r"device"):
            call(np.zeros(3) if call is fs.to_device else 3, device="cuda:99")


def test_what_is_on_a_device_already(rng):
    with pytest.raises(
        ValueError, match=r"^array: got an array on cuda:0, expected one on the CPU"
    ):
        fs.to_device(fs.DeviceArray.zeros(3))


# ---- places -------------------------------------------------------------------------------------


def loss_arguments():
    rng = np.random.default_rng(3)
    return {
        "logits": rng.standard_normal((6, 9)).astype(np.float32),
        "targets": rng.integers(0, 9, 6),
        "class_weight": rng.random(9).astype(np.float32),
        "token_weight": rng.random(6).astype(np.float32),
        "grad_output": rng.random(6).astype(np.float32),
        "grad": rng.standard_normal((6, 9)).astype(np.float32),
    }


def linear_arguments():
    rng = np.random.default_rng(3)

    def single(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "hidden": single(6, 4),
        "weight": single(9, 4),
        "targets": rng.integers(0, 9, 6),
        "bias": single(9),
        "class_weight": rng.random(9).astype(np.float32),
        "token_weight": single(6),
        "grad_output": single(6),
        "grad_hidden": single(6, 4),
        "grad_weight": single(9, 4),
        "grad_bias": single(9),
    }


CALLS = {
    fs.cross_entropy: (loss_arguments, {"reduction": "none"}),
    fs.linear_cross_entropy: (linear_arguments, {"reduction": "none"}),
}


def assert_refused(call, given, name, message):
    before = {key: cuda_case.fetch(array).tobytes() for key, array in given.items()}
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == f"{name}: {message}"
    assert {key: cuda_case.fetch(array).tobytes() for key, array in given.items()} == before


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_one_argument_elsewhere(call):
    make, options = CALLS[call]
    first = next(iter(make()))
    for name in list(make())[1:]:
        given = {
            key: array if key == name else fs.to_device(array) for key, array in make().items()
        }
        assert_refused(
            lambda given=given: call(**given, **options),
            given,
            name,
            f"got an array on the CPU, expected one on cuda:0, like {first}",
        )
        given = {
            key: fs.to_device(array) if key == name else array for key, array in make().items()
        }
        assert_refused(
            lambda given=given: call(**given, **options),
            given,
            name,
            f"got an array on cuda:0, expected one on the CPU, like {first}",
        )


def test_lists_in_two_places():
    here, there = np.ones(5, np.float32), fs.to_device(np.ones(5, np.float32))
    given = {"here": here, "there": there}

    def refused(call, name, message):
        assert_refused(call, given, name, message)

    on_cuda = "got an array on cuda:0, expected one on the CPU, like"
    on_cpu = "got an array on the CPU, expected one on cuda:0, like"
    refused(lambda: fs.SGD([here, there]), "params[1]", f"{on_cuda} params[0]")
    refused(lambda: fs.AdamW([there, there.reshape(5), here]), "params[2]", f"{on_cpu} params[0]")
    refused(lambda: fs.SGD(there).step(here), "grads", f"{on_cpu} params")
    refused(lambda: fs.SGD(here).step(there), "grads", f"{on_cuda} params")
    refused(lambda: fs.grad_norm([there, here]), "grads[1]", f"{on_cpu} grads[0]")
    refused(lambda: fs.clip_grad_norm_([here, there], 1), "grads[1]", f"{on_cuda} grads[0]")
    refused(lambda: fs.accumulate(there, here), "src", f"{on_cpu} totals")
    refused(lambda: fs.dropout(there, 0.5, seed=1, out=here), "out", f"{on_cpu} x")
    half = np.zeros(5, np.uint16)
    refused(
        lambda: fs.AdamW(there, bf16_copy=bfloat16.Bfloat16Array(half)),
        "bf16_copy",
        f"{on_cpu} params",
    )
    refused(
        lambda: fs.SGD(here).step(here, lr=fs.to_device(np.ones(()))), "lr", f"{on_cuda} params"
    )


def test_targets_must_be_contiguous_there(rng):
    logits, targets = fs.to_device(np.zeros((3, 2, 5), np.float32)), np.zeros((3, 2), np.int64)
    with pytest.raises(ValueError, match=r"^targets: got an array that is not contiguous"):
        fs.cross_entropy(logits, cuda_case.Rows(targets, 1, 1))


# ---- streams ------------------------------------------------------------------------------------

# The default stream of a thread: a stream of its own that needs not be made.
PER_THREAD = 2


class Stranger:
    """An array of another library; notes on which streams it was asked for."""

    def __init__(self, array):
        self.array, self.streams, self.device = array, [], self

    def __dlpack__(self, *, stream=None, max_version=None):
        self.streams.append(stream)
        return self.array.__dlpack__(stream=-1, max_version=max_version)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __enter__(self):  # as a device of CuPy's
        return self

    def __exit__(self, *_):
        return None


class Old(Stranger):
    """Of a library older than DLPack 1."""

    def __dlpack__(self, *, stream=None):
        return super().__dlpack__(stream=stream)


@pytest.fixture
def cupy(monkeypatch):
    """Stands in for CuPy, whose current stream is that of the thread."""
    module = types.ModuleType("cupy")
    module.ndarray = type("ndarray", (Stranger,), {"__module__": "cupy"})
    module.empty = lambda shape, dtype: module.ndarray(fs.DeviceArray(shape, dtype))
    stream = types.SimpleNamespace(ptr=PER_THREAD)
    module.cuda = types.SimpleNamespace(get_current_stream=lambda index: stream)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.mark.parametrize("kind", (Stranger, Old))
def test_unknown_libraries_are_asked_for_the_legacy_stream(rng, kind):
    logits = rng.standard_normal((4, 6)).astype(np.float32)
    targets = rng.integers(0, 6, 4)
    given = kind(fs.to_device(logits)), kind(fs.to_device(targets))
    result = fs.cross_entropy(*given, grad=True)
    assert {stream for array in given for stream in array.streams} == {1}
    assert type(result.grad) is type(result.lse) is fs.DeviceArray
    wanted = cuda_case.run(logits, targets, "float32")[1]
    assert np.array_equal(result.grad.numpy(), wanted)


def test_all_come_to_the_stream_of_the_first(rng, cupy):
    logits = rng.standard_normal((4, 6)).astype(np.float32)
    targets = rng.integers(0, 6, 4)
    given = cupy.ndarray(fs.to_device(logits)), Stranger(fs.to_device(targets))
    weight = fs.to_device(np.ones(6, np.float32))
    result = fs.cross_entropy(*given, class_weight=weight, grad=True)
    assert {stream for array in given for stream in array.streams} == {PER_THREAD}
    assert type(result.grad) is type(result.lse) is cupy.ndarray
    assert result.grad.array.dtype == "float32" and result.lse.array.shape == (4,)
    assert result.loss == fs.cross_entropy(fs.to_device(logits), fs.to_device(targets)).loss


def test_steps_run_where_the_parameters_work(rng, cupy):
    start, gradient = rng.standard_normal((2, 50)).astype(np.float32)
    params, grads = cupy.ndarray(fs.to_device(start)), Stranger(fs.to_device(gradient))
    optimizer = fs.AdamW(params, state="8bit")
    info = optimizer.step(grads)
    assert grads.streams == [PER_THREAD] and set(params.streams) == {PER_THREAD}
    assert info.step == optimizer.step_count == 1
    twin = start.copy()
    other = fs.AdamW(twin, state="8bit")
    other.step(gradient)
    assert np.array_equal(params.array.numpy(), twin)
    assert other.state_dict()["state"]["params"]["exp_avg"].tobytes() == (
        optimizer.state_dict()["state"]["params"]["exp_avg"].tobytes()
    )
    optimizer.load_state_dict(other.state_dict())
