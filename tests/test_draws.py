"Draws that belong to a key: the same whatever stands beside it, uniform, independent between streams."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlnotes.draws import keys, pick, uniform

MANY = keys(0, 0, range(30_000))


def test_a_known_value():
    "Worked out with Python's own integers: the mixing function of splitmix64, wrapped to 64 bits."
    mask, gamma = (1 << 64) - 1, 0x9E3779B97F4A7C15
    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)
    for key in (0, 1, -5, 2**63 - 1, -2**63):
        for stream in (0, 7, 1000):
            start = mix(((key & mask) + mix(((stream + 1) * gamma) & mask)) & mask)
            want = [(mix((start + i * gamma) & mask) >> 40) / 2**24 for i in (1, 2, 3)]
            assert uniform(torch.tensor([key]), 3, stream=stream)[0].tolist() == want


@given(st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=6), st.integers(0, 2000), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_a_row_alone_is_the_row_in_a_batch(ks, stream, n):
    k = torch.tensor(ks)
    u = uniform(k, n, stream=stream)
    assert all(uniform(k[i:i + 1], n, stream=stream)[0].equal(u[i]) for i in range(len(ks))) and 0 <= u.min() and u.max() < 1
    assert uniform(k, n + 3, stream=stream)[:, :n].equal(u), "more numbers begin with the same"


def test_uniform_and_independent():
    u = uniform(MANY, 5)
    assert (u.mean(0) - .5).abs().max() < .01 and (u.var(0) - 1 / 12).abs().max() < .002
    both = torch.cat([u, uniform(MANY, 5, stream=1), uniform(keys(1, 0, range(30_000)), 5), uniform(keys(0, 1, range(30_000)), 5)], 1)
    assert torch.corrcoef(both.T).fill_diagonal_(0).abs().max() < .03
    assert np.abs(np.histogram(u[:, 0].numpy(), 20, (0, 1))[0] / 1500 - 1).max() < .12


def test_pick_is_fair_and_inside():
    sizes = torch.tensor([1, 2, 3, 7]).repeat(7500)
    p = pick(MANY, sizes)
    assert (p >= 0).all() and (p < sizes).all() and (p[sizes == 1] == 0).all()
    assert (torch.bincount(p[sizes == 7]) / 7500 - 1 / 7).abs().max() < .015
    assert pick(MANY[:9], 4).equal(pick(MANY[:9], [4] * 9))


def test_keys():
    assert keys(0, 0, ["a", "b"]).equal(keys(0, [0, 0], ["a", "b"])) and len(set(MANY.tolist())) == 30_000
    assert keys(0, 1, ["a"]) != keys(0, 0, ["a"]) and keys(1, 0, ["a"]) != keys(0, 0, ["a"])
    with pytest.raises(ValueError, match="1 epochs for 2 names"): keys(0, [0], ["a", "b"])
