"""Dropout masks: the published Philox vectors, the exact bits, and their statistics."""

import math

import numpy as np
import oracle
import pytest

import flatstep as fs

# Known answers of Random123 1.14 (kat_vectors, philox4x32 10): counter, key, output.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)

# Below one Philox block, whole blocks, a vector tail, past the chunks that threads take.
SIZES = (0, 1, 3, 4, 5, 31, 64, 1003, 70_001)

# Seeds, steps and sites with bits in every word of key and counter.
KEYS = (
    {"seed": 0},
    {"seed": 1, "step": 1, "site": 1},
    {"seed": 0x123456789ABCDEF0, "step": 7, "site": 3},
    {"seed": 2**63 - 1, "step": 2**32 + 5, "site": 2**32 - 1},
    {"seed": 5, "step": 2**48 - 1, "site": 12},
)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_reference_generator(counter, key, answer):
    assert tuple(int(word) for word in oracle.philox(counter, key)) == answer


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_mask_bits(size, key):
    mask = fs.dropout_mask(size, 0.3, **key)
    assert mask.dtype == np.uint8 and mask.shape == (size,)
    assert mask.tobytes() == oracle.dropout_mask(size, 0.3, **key).tobytes()


@pytest.mark.parametrize("p", (0.0, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-12))
def test_mask_bits_of_each_probability(p):
    assert np.array_equal(fs.dropout_mask(5000, p, seed=9), oracle.dropout_mask(5000, p, seed=9))


@pytest.mark.parametrize("shape", ((3, 5), (2, 3, 7, 7), (1,), (4, 0)))
def test_shape_is_only_a_view_of_the_flat_index(shape):
    mask = fs.dropout_mask(shape, 0.4, seed=3, step=2, site=1)
    flat = fs.dropout_mask(math.prod(shape), 0.4, seed=3, step=2, site=1)
    assert mask.shape == shape and np.array_equal(mask.ravel(), flat)


def test_prefix():
    """Element i does not depend on how many follow it."""
    long = fs.dropout_mask(10_000, 0.25, seed=11, step=4, site=2)
    for size in (1, 2, 3, 4, 5, 63, 64, 65, 4096, 9999):
        assert np.array_equal(fs.dropout_mask(size, 0.25, seed=11, step=4, site=2), long[:size])


def test_mask_grows_with_the_probability():
    """One word decides for every p: what a small p drops, a large p drops too."""
    masks = [fs.dropout_mask(10_000, p, seed=1) for p in (0.1, 0.3, 0.6)]
    assert np.all(masks[0] >= masks[1]) and np.all(masks[1] >= masks[2])


@pytest.mark.parametrize("p", (0.1, 0.3, 0.5, 0.75))
@pytest.mark.parametrize("size", SIZES)
def test_kept_values_are_scaled(rng, size, p):
    x = rng.standard_normal(size).astype(np.float32)
    mask = oracle.dropout_mask(size, p, seed=2, step=3, site=4)
    before = x.tobytes()
    result = fs.dropout(x, p, seed=2, step=3, site=4)
    wanted = np.where(mask == 1, x * oracle.dropout_scale(p), np.float32(0))
    assert result.dtype == np.float32 and np.array_equal(result, wanted)
    assert x.tobytes() == before
    given = np.full(size, 7, np.float32)
    assert fs.dropout(x, p, seed=2, step=3, site=4, out=given) is given
    assert np.array_equal(given, wanted)
    fs.dropout(x, p, seed=2, step=3, site=4, out=x)
    assert np.array_equal(x, wanted)


def test_probability_zero_keeps_every_bit(rng):
    x = rng.standard_normal((7, 11)).astype(np.float32)
    assert fs.dropout(x, 0.0, seed=1).tobytes() == x.tobytes()
    assert fs.dropout_mask((7, 11), 0.0, seed=1).all()


@pytest.mark.parametrize("p", (0.05, 0.1, 0.5, 0.9))
def test_mean_and_variance(p):
    """Within five standard deviations of a binomial over 10^6 draws, and over each word of four
    and each thousand of draws."""
    size = 1_000_000
    mask = fs.dropout_mask(size, p, seed=123, step=45, site=6).astype(np.float64)
    deviation = math.sqrt(p * (1 - p))
    assert abs(mask.mean() - (1 - p)) <= 5 * deviation / math.sqrt(size)
    words = mask.reshape(-1, 4).mean(axis=0)
    assert np.all(np.abs(words - (1 - p)) <= 5 * deviation / math.sqrt(size / 4))
    blocks = mask.reshape(1000, 1000).mean(axis=1)
    # The variance of block means: deviation^2 / 1000, itself known to sqrt(2 / 999).
    ratio = blocks.var(ddof=1) / (deviation**2 / 1000)
    assert abs(ratio - 1) <= 5 * math.sqrt(2 / 999)


def test_independence():
    """Masks that differ in one of seed, step, site, or in a shift of the index, do not correlate:
    five standard deviations of a correlation over 50,000 draws."""
    size, base = 50_000, {"seed": 8, "step": 100, "site": 3}
    keys = [base]
    for name, value in base.items():
        keys += [{**base, name: value + change} for change in (1, 2, 2**20)]
    keys += [{**base, "seed": base["seed"] + 2**32}, {**base, "step": base["step"] + 2**32}]
    masks = np.stack([fs.dropout_mask(size, 0.3, **key) for key in keys]).astype(np.float64)
    shifted = [np.roll(masks[0], shift) for shift in (1, 2, 3, 4, 5, 64, 4096)]
    correlation = np.corrcoef(np.concatenate([masks, shifted]))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() <= 5 / math.sqrt(size)


def pattern_excess(masks, p):
    """Chi-square of how often each combination of kept and dropped occurs across masks [n, size],
    in standard deviations above what independent draws give."""
    codes = (1 << np.arange(len(masks))) @ masks.astype(np.int64)
    counts = np.bincount(codes, minlength=1 << len(masks))
    kept = np.array([bin(code).count("1") for code in range(len(counts))])
    expected = masks.shape[1] * (1 - p) ** kept * p ** (len(masks) - kept)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(counts) - 1
    return (chi_square - freedom) / math.sqrt(2 * freedom)


def attention_masks(p, step=3, site=1, seed=17):
    """Of a layer with 4 heads, [heads, batch * length * length]."""
    mask = fs.dropout_mask((24, 4, 64, 64), p, seed=seed, step=step, site=site)
    return mask.transpose(1, 0, 2, 3).reshape(4, -1)


@pytest.mark.parametrize("p", (0.1, 0.5))
def test_heads_layers_and_steps_drop_independently(p):
    """All 16 combinations across 4 heads, layers, steps and seeds occur as often as they should.
    The same figure finds heads that share a mask, or a tenth of one."""
    heads = attention_masks(p)
    flat = [attention_masks(p, site=1 + 3 * layer).ravel() for layer in range(4)]
    groups = {
        "heads": heads,
        "layers": np.stack(flat),
        "steps": np.stack([attention_masks(p, step=step).ravel() for step in range(4)]),
        "seeds": np.stack([attention_masks(p, seed=seed).ravel() for seed in range(4)]),
        "sites of a layer": np.stack(
            [fs.dropout_mask(393_216, p, seed=17, step=3, site=site) for site in range(4)]
        ),
        "rows": heads[0].reshape(24, 64, 64).transpose(1, 0, 2).reshape(4, -1),
    }
    for name, masks in groups.items():
        assert pattern_excess(masks, p) < 5, name
        alike = masks.copy()
        alike[1] = alike[0]
        assert pattern_excess(alike, p) > 100
        alike[1] = np.where(np.arange(masks.shape[1]) % 10 == 0, masks[0], masks[1])
        assert pattern_excess(alike, p) > 10


@pytest.mark.parametrize("p", (0.1, 0.5))
def test_each_head_drops_its_share(p):
    """Mean and variance of every head's rows: within five standard deviations of a binomial."""
    heads = attention_masks(p).astype(np.float64)
    size, deviation = heads.shape[1], math.sqrt(p * (1 - p))
    assert np.all(np.abs(heads.mean(axis=1) - (1 - p)) <= 5 * deviation / math.sqrt(size))
    rows = heads.reshape(4, -1, 64).mean(axis=2)
    ratio = rows.var(axis=1, ddof=1) / (deviation**2 / 64)
    # Of a variance estimate: sqrt(2 / n), and the kurtosis of a binomial of 64.
    kurtosis = (1 - 6 * p * (1 - p)) / (64 * p * (1 - p))
    bound = 5 * math.sqrt((2 + kurtosis) / rows.shape[1])
    assert np.all(np.abs(ratio - 1) <= bound)


def test_same_bits_for_any_thread_count(threads, rng):
    mask = fs.dropout_mask(300_001, 0.1, seed=4, step=9, site=1)
    assert np.array_equal(mask, oracle.dropout_mask(300_001, 0.1, seed=4, step=9, site=1))


@pytest.mark.parametrize("p", (1.0, 1.5, -0.1, math.nan, math.inf))
def test_probability_out_of_range(p):
    x = np.ones(8, np.float32)
    out = np.full(8, 5, np.float32)
    with pytest.raises(ValueError, match=r"\bp\b"):
        fs.dropout(x, p, seed=0, out=out)
    with pytest.raises(ValueError, match=r"\bp\b"):
        fs.dropout_mask(8, p, seed=0)
    assert np.all(out == 5)
