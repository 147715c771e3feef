"""Results that are waited for at the first look; faults that the next wait raises; status slots."""

import gc
import threading
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from optim_case import normal

import flatstep as fs
from flatstep import _core

CLASSES = 7


@pytest.fixture(autouse=True)
def nothing_left_over():
    fs.synchronize()
    yield
    fs.synchronize()


def loss(rng, *wrong, rows=5, **options):
    """A call whose targets are out of range at these (row, value)."""
    targets = rng.integers(0, CLASSES, rows)
    for row, value in wrong:
        targets[row] = value
    logits = rng.standard_normal((rows, CLASSES)).astype(np.float32)
    return fs.cross_entropy(fs.to_device(logits), fs.to_device(targets), **options)


def message(row, value):
    return rf"^targets: row {row} holds {value}, expected a class from 0 to 6 or ignore_index -100"


# ---- lazy results -------------------------------------------------------------------------------


def test_numbers_are_plain_and_stay(rng):
    result = loss(rng)
    assert type(result.loss) is type(result.weight_sum) is float
    assert type(result.n_valid) is type(result.n_correct) is int
    before = result.loss, result.n_valid, result.n_correct, result.weight_sum
    for _ in range(3):
        loss(rng)
    assert (result.loss, result.n_valid, result.n_correct, result.weight_sum) == before


def test_results_are_frozen(rng):
    result = loss(rng, grad=True)
    for name in ("loss", "grad", "n_valid"):
        with pytest.raises(FrozenInstanceError):
            setattr(result, name, 0)
    info = fs.SGD(fs.to_device(normal(rng, 5))).step(fs.to_device(normal(rng, 5)))
    for name in ("grad_norm", "lr", "nonfinite"):
        with pytest.raises(FrozenInstanceError):
            setattr(info, name, 0)


def test_what_is_known_needs_no_wait(rng):
    """A fault shows where something is waited for, and not before."""
    result = loss(rng, (2, 99), grad=True, reduction="none")
    assert result.grad.shape == (5, CLASSES) and result.loss.shape == (5,)
    assert result.lse.shape == result.entropy.shape == (5,)
    assert "waited" in repr(result)
    with pytest.raises(IndexError, match=message(2, 99)):
        result.n_valid  # noqa: B018


# ---- faults -------------------------------------------------------------------------------------


def test_a_fault_is_raised_whenever_it_is_looked_at(rng):
    result = loss(rng, (2, 7), (3, -1))
    for name in ("loss", "n_valid", "loss", "n_correct", "weight_sum"):
        with pytest.raises(IndexError, match=message(2, 7)):
            getattr(result, name)
    fs.synchronize()


def waits(rng):
    array, params = fs.to_device(normal(rng, 5)), fs.to_device(normal(rng, 5))
    optimizer = fs.AdamW(params)
    fine = loss(rng)
    info = optimizer.step(array)
    partials = fs.accumulate(array, fs.to_device(normal(rng, 5)))
    return {
        "synchronize": fs.synchronize,
        "synchronize a device": lambda: fs.synchronize("cuda:0"),
        "numpy": array.numpy,
        "another result": lambda: fine.loss,
        "a step": lambda: info.grad_norm,
        "grad_norm": lambda: fs.grad_norm(array),
        "clip_grad_norm_": lambda: fs.clip_grad_norm_(array, 1.0),
        "partials": lambda: partials.norm,
        "step_count": lambda: optimizer.step_count,
        "state_dict": optimizer.state_dict,
    }


@pytest.mark.parametrize("name", waits(np.random.default_rng(0)))
def test_a_fault_that_nobody_looks_at(rng, name):
    """The next call that waits raises it, once, and the library goes on working."""
    wait = waits(rng)[name]
    loss(rng, (4, -5))
    loss(rng)
    with pytest.raises(IndexError, match=message(4, -5)):
        wait()
    wait()
    assert np.isfinite(loss(rng).loss)


def test_the_first_of_several(rng):
    for value in (11, 12, 13):
        loss(rng, (0, value))
    for value in (11, 12, 13):
        with pytest.raises(IndexError, match=message(0, value)):
            fs.synchronize()
    fs.synchronize()


def test_an_earlier_fault_comes_first(rng):
    """A result that is fine is still to be had afterwards."""
    loss(rng, (1, 50))
    fine = loss(rng)
    with pytest.raises(IndexError, match=message(1, 50)):
        fine.loss  # noqa: B018
    assert np.isfinite(fine.loss)


def test_nothing_is_written_at_a_fault(rng):
    stored = rng.standard_normal((3, 4)).astype(np.float32)
    logits, targets = fs.to_device(stored), fs.to_device(np.array([0, 9, 1]))
    result = fs.cross_entropy(logits, targets, grad=logits)
    with pytest.raises(IndexError):
        result.loss  # noqa: B018
    assert logits.numpy().tobytes() == stored.tobytes()


@pytest.mark.parametrize("accumulate", (False, True))
def test_a_linear_fault_leaves_zeros(rng, accumulate):
    hidden, weight, bias = (
        fs.to_device(rng.standard_normal(shape).astype(np.float32))
        for shape in ((6, 4), (5, 4), (5,))
    )
    given = {
        "grad_weight": fs.to_device(np.ones((5, 4), np.float32)),
        "grad_bias": fs.to_device(np.ones(5, np.float32)),
    }
    targets = fs.to_device(np.array([0, 1, 2, 3, 4, 5]))
    result = fs.linear_cross_entropy(
        hidden, weight, targets, bias=bias, accumulate=accumulate, **given
    )
    with pytest.raises(IndexError, match=r"^targets: row 5 holds 5"):
        result.loss  # noqa: B018
    assert not result.grad_hidden.numpy().any()
    for array in (result.grad_weight, result.grad_bias):
        assert (array.numpy() == (1 if accumulate else 0)).all()


@pytest.mark.parametrize(
    ("name", "index", "value", "text"),
    (
        ("token_weight", 3, np.nan, r"^token_weight: row 3 holds nan, expected a finite number"),
        (
            "class_weight",
            2,
            -1.5,
            r"^class_weight: element 2 holds -1\.5, expected a finite num",
        ),
        ("class_weight", 6, np.inf, r"^class_weight: element 6 holds inf"),
    ),
)
def test_weights_at_fault(rng, name, index, value, text):
    weight = np.ones(5 if name == "token_weight" else CLASSES, np.float32)
    weight[index] = value
    result = loss(rng, **{name: fs.to_device(weight)})
    with pytest.raises(ValueError, match=text):
        result.loss  # noqa: B018


def test_weights_with_a_negative_sum(rng):
    result = loss(rng, token_weight=fs.to_device(np.full(5, -1, np.float32)))
    with pytest.raises(ValueError, match=r"^token_weight: got weights that sum to -5"):
        result.loss  # noqa: B018


# ---- slots --------------------------------------------------------------------------------------


def test_slots_are_used_again(rng):
    loss(rng)
    fs.synchronize()
    gc.collect()
    made, free, watched = _core.status_counts()
    assert watched == 0
    params, grads = fs.to_device(normal(rng, 5)), fs.to_device(normal(rng, 5))
    optimizer = fs.SGD(params)
    kept = [loss(rng) for _ in range(20)]
    for step in range(500):
        result, info = loss(rng), optimizer.step(grads)
        if step % 3 == 0:
            assert np.isfinite(result.loss) and info.step == step + 1
    assert len({result.loss for result in kept}) == 20
    del result, info, kept
    fs.synchronize()
    assert _core.status_counts() == (made, free, 0)


def test_a_result_that_is_read_gives_its_slot_back(rng):
    results = [loss(rng) for _ in range(30)]
    _, before, watched = _core.status_counts()
    assert watched == 30
    for result in results:
        assert np.isfinite(result.loss)
    _, after, watched = _core.status_counts()
    assert after == before + 30 and watched == 0


def test_results_that_nobody_reads_are_bounded(rng):
    logits = fs.DeviceArray.zeros((1, 2))
    targets, wrong = fs.to_device(np.array([0])), fs.to_device(np.array([5]))
    for _ in range(3000):
        fs.cross_entropy(logits, targets)
    assert _core.status_counts()[2] <= 1024
    fs.cross_entropy(logits, wrong)
    with pytest.raises(IndexError, match=r"^targets: row 0 holds 5"):
        for _ in range(1025):
            fs.cross_entropy(logits, targets)
    assert fs.cross_entropy(logits, targets).loss == pytest.approx(np.log(2))


def test_threads(rng):
    """Each with losses of its own, one of them with faults of its own."""
    logits = fs.to_device(rng.standard_normal((6, CLASSES)).astype(np.float32))
    values, errors = {}, []

    def work(number):
        targets = fs.to_device(np.full(6, number))
        for _ in range(40):
            try:
                values.setdefault(number, set()).add(fs.cross_entropy(logits, targets).loss)
            except IndexError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    threads.append(threading.Thread(target=work, args=(CLASSES,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(values[number]) == 1 for number in range(4)) and CLASSES not in values
    assert len({next(iter(values[number])) for number in range(4)}) == 4
    assert len(errors) >= 40 and all("holds 7" in error for error in errors)
