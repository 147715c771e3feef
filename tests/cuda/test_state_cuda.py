"""State of optimizers on a CUDA device: to the host, back, and to the CPU's optimizers."""

import bfloat16
import cuda_case
import numpy as np
import pytest
from cuda_case import OPTIONS, Twins, variants
from optim_case import KINDS, MOMENTS, assert_same_bits, normal

import flatstep as fs


@pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))
@pytest.mark.parametrize(("kind", "format", "options"), variants(), ids=str)
def test_state_goes_between_devices(rng, kind, format, options, as_list):
    twins = Twins(rng, kind, format, as_list, **options)
    for _ in range(2):
        twins.step(twins.gradient())
    state = twins.there.optimizer.state_dict()
    for views in state["state"].values():
        assert all(type(array) is np.ndarray for array in views.values())
    twins.here.optimizer.load_state_dict(state)
    for case in (twins.here, twins.there):
        case.optimizer.lr = 0.5
    twins.there.optimizer.load_state_dict(state)
    assert twins.there.optimizer.lr == OPTIONS["lr"] and twins.there.optimizer.step_count == 2
    twins.here.optimizer.lr = OPTIONS["lr"]
    twins.step(twins.gradient())
    twins.assert_same()


def test_a_wrong_state_changes_nothing(rng):
    case = cuda_case.OptimizerCase("adamw", normal(rng, 300))
    case.step(normal(rng, 300))
    before = case.everything()
    wrong = case.optimizer.state_dict()
    wrong["state"]["params"]["exp_avg_sq"] = np.zeros(299, np.float32)
    with pytest.raises(ValueError, match=r"^state_dict: exp_avg_sq of 'params' has shape"):
        case.optimizer.load_state_dict(wrong)
    assert case.everything() == before


@pytest.mark.parametrize("kind", KINDS)
def test_moments(rng, kind):
    for format in ("full", "8bit"):
        twins = Twins(rng, kind, format)
        twins.step(twins.gradient())
        for name in MOMENTS[kind]:
            here = getattr(twins.here.optimizer, name)
            there = getattr(twins.there.optimizer, name)
            assert type(there) is (fs.DeviceArray if format == "full" else np.ndarray)
            assert_same_bits(cuda_case.fetch(there), here)


def test_masters_are_on_the_device(rng):
    case = cuda_case.OptimizerCase("adamw", normal(rng, 300).reshape(3, 100), "master")
    master = case.optimizer.master
    assert type(master) is fs.DeviceArray and master.shape == (3, 100)
    case.step(normal(rng, 300).reshape(3, 100))
    assert_same_bits(
        bfloat16.from_float32(master.numpy()), cuda_case.fetch(case.placed[0][1]), "rounded"
    )


def test_the_step_count_is_set(rng):
    twins = Twins(rng, "adamw")
    for case in (twins.here, twins.there):
        case.optimizer.load_state_dict(case.optimizer.state_dict() | {"step": 1000})
    assert twins.step(twins.gradient()).step == 1001
    twins.assert_same()
