"""fs.DeviceArray in the memory of the CPU, and arrays on a CUDA device that is not to be had."""

import bfloat16
import numpy as np
import pytest

import flatstep as fs

DTYPES = ("float32", "float64", "float16", "int32", "int64", "uint8", "uint16")


class OnCuda:
    """A NumPy array that says it is on a CUDA device."""

    def __init__(self, array, index=0):
        self.array, self.index = array, index

    def __dlpack__(self, **arguments):
        raise AssertionError("refused before it is exported")

    def __dlpack_device__(self):
        return 2, self.index


def on_cpu(array):
    return fs.to_device(array, device="cpu")


@pytest.mark.parametrize("shape", ((), (0,), (1,), (7,), (2, 3), (3, 0, 2), (2, 1, 3, 2)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(rng, dtype, shape):
    values = rng.integers(0, 200, shape).astype(dtype)
    array = on_cpu(values)
    assert (array.shape, array.dtype, array.device) == (shape, dtype, "cpu")
    assert array.nbytes == values.nbytes
    copy = array.numpy()
    assert copy.dtype == values.dtype and copy.shape == shape
    assert np.array_equal(copy, values)


def test_bfloat16_keeps_its_bits(rng):
    bits = bfloat16.from_float32(rng.standard_normal((3, 5)))
    array = on_cpu(bfloat16.Bfloat16Array(bits))
    assert array.dtype == "bfloat16"
    assert array.numpy().tobytes() == bfloat16.to_float32(bits).tobytes()


def test_what_is_not_contiguous_is_copied_from_numpy(rng):
    values = rng.standard_normal((4, 6))[::2, ::-1]
    assert np.array_equal(on_cpu(values).numpy(), values)


def test_the_copy_is_one():
    values = np.arange(4.0)
    array = on_cpu(values)
    values[:] = 0
    first = array.numpy()
    first[:] = 7
    assert array.numpy().tolist() == [0, 1, 2, 3]


def test_zeros_and_empty():
    assert not fs.DeviceArray.zeros((3, 4), "int32", "cpu").numpy().any()
    assert fs.DeviceArray.zeros(5, np.float16, "cpu").numpy().tolist() == [0] * 5
    empty = fs.DeviceArray.empty((2, 3), device="cpu")
    assert (empty.shape, empty.dtype, empty.device) == ((2, 3), "float32", "cpu")


def test_a_reshaped_array_shares_the_memory():
    array = fs.DeviceArray.zeros((2, 3), device="cpu")
    view = array.reshape(3, 2)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    fs.accumulate(array, values, overwrite=True)
    assert view.numpy().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert array.reshape(6).shape == array.reshape((6,)).shape == (6,)
    with pytest.raises(ValueError, match=r"^shape: got one of 7 elements, expected 6"):
        array.reshape(7)


def test_exports_outlive_the_array():
    array = on_cpu(np.arange(1000.0))
    versioned, legacy = np.from_dlpack(array), array.__dlpack__()
    view = np.from_dlpack(array.reshape(10, 100))
    del array
    assert versioned.sum() == view.sum() == 499_500
    assert "dltensor" in repr(legacy) and "versioned" not in repr(legacy)


def test_dlpack_arguments():
    array = fs.DeviceArray.zeros(3, device="cpu")
    assert "dltensor_versioned" in repr(array.__dlpack__(max_version=(1, 0)))
    assert "versioned" not in repr(array.__dlpack__(max_version=(0, 8)))
    assert "dltensor" in repr(array.__dlpack__(dl_device=(1, 0), copy=False))
    for wrong in ({"copy": True}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            array.__dlpack__(**wrong)


def test_there_is_no_implicit_copy():
    with pytest.raises(TypeError, match=r"use \.numpy\(\)"):
        np.asarray(fs.DeviceArray.zeros(3, device="cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((-1, "float32", "cpu"), "shape: got"),
        (((2, 2.5), "float32", "cpu"), "shape: got float"),
        (((2**40, 2**40), "float32", "cpu"), "shape: got more elements"),
        (((2**61,), "float32", "cpu"), "shape: got more bytes"),
        ((3, "float31", "cpu"), "dtype: got float31"),
        ((3, np.complex64, "cpu"), "dtype: got complex64"),
        ((3, "float32", "gpu"), "device: got 'gpu', expected 'cpu', 'cuda' or 'cuda:N'"),
        ((3, "float32", "cuda:-1"), "device: got 'cuda:-1'"),
        ((3, "float32", None), "device: got None"),
    ),
)
def test_wrong_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        fs.DeviceArray(*arguments)
    assert str(caught.value).startswith(message), caught.value


@pytest.mark.parametrize("value", ([1, 2], 3.0, "text", None, np.zeros(2, np.complex64)))
def test_what_is_no_array_for_a_device(value):
    with pytest.raises((ValueError, TypeError), match=r"^array: "):
        fs.to_device(value, device="cpu")


def test_every_function_takes_it(rng):
    logits = rng.standard_normal((5, 7)).astype(np.float32)
    targets = rng.integers(0, 7, 5)
    wanted = fs.cross_entropy(logits, targets, grad=True)
    result = fs.cross_entropy(on_cpu(logits), on_cpu(targets), grad=True)
    assert result.loss == wanted.loss and type(result.grad) is fs.DeviceArray
    assert np.array_equal(result.grad.numpy(), wanted.grad)
    assert np.array_equal(result.lse.numpy(), wanted.lse)
    params, same = on_cpu(logits), logits.copy()
    fs.AdamW(params).step(result.grad)
    fs.AdamW(same).step(wanted.grad)
    assert np.array_equal(params.numpy(), same)


def test_waiting_for_the_cpu():
    fs.synchronize("cpu")
    with pytest.raises(ValueError, match=r"^device: got 'cpu:0'"):
        fs.synchronize("cpu:0")


# ---- without a CUDA device ----------------------------------------------------------------------


@pytest.mark.needs("no cuda")
def test_arrays_of_a_device_that_is_not_there(rng):
    logits, targets = OnCuda(np.zeros((2, 3), np.float32)), np.array([0, 1])
    reason = fs.info()["cuda"]["why_not"]
    with pytest.raises(ValueError) as caught:
        fs.cross_entropy(logits, targets)
    assert str(caught.value) == (
        f"logits: got an array on cuda:0, expected one on the CPU (cuda is not available, {reason})"
    )
    with pytest.raises(ValueError, match=r"^params\[1\]: got an array on cuda:2, expected one on"):
        fs.SGD([np.zeros(3, np.float32), OnCuda(np.zeros(3, np.float32), 2)])


@pytest.mark.needs("no cuda")
def test_the_other_arguments_are_to_be_where_the_first_is():
    logits = np.zeros((2, 3), np.float32)
    for name, array in (
        ("targets", np.array([0, 1])),
        ("token_weight", np.ones(2, np.float32)),
        ("grad", np.ones((2, 3), np.float32)),
    ):
        with pytest.raises(ValueError) as caught:
            fs.cross_entropy(logits, **{"targets": np.array([0, 1]), name: OnCuda(array)})
        assert str(caught.value) == (
            f"{name}: got an array on cuda:0, expected one on the CPU, like logits"
        )


@pytest.mark.needs("no cuda")
@pytest.mark.parametrize(
    "call",
    (
        lambda: fs.to_device(np.zeros(3)),
        lambda: fs.DeviceArray.zeros(3),
        lambda: fs.dropout_mask(3, 0.5, seed=1, device="cuda"),
        lambda: fs.synchronize("cuda:1"),
    ),
)
def test_memory_of_a_device_that_is_not_there(call):
    with pytest.raises(RuntimeError, match="cuda") as caught:
        call()
    assert fs.info()["cuda"]["why_not"] in str(caught.value)


@pytest.mark.needs("no cuda")
def test_a_learning_rate_on_another_device():
    optimizer = fs.SGD(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"^lr: got an array on cuda:0, expected one on the CPU"):
        optimizer.step(np.ones(3, np.float32), lr=OnCuda(np.zeros(1)))


def test_the_model_stays_on_the_cpu():
    model = fs.GPT(fs.GPTConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4))
    with pytest.raises(ValueError, match=r"^tokens: got an array on cuda:0, expected one on the"):
        model.loss(OnCuda(np.zeros((1, 4), np.int64)), np.zeros((1, 4), np.int64))
