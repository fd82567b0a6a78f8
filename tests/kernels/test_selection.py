"""Laws of `select_largest`: it agrees with a sort, on any row."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

import kernels
from kernels._backends import simd

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def expected(a, k):
    """By a stable sort: of equal entries the first; then in order of place."""
    places = a.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(1).values
    return a.gather(1, places), places.to(torch.int32)


@dtypes
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9), n=st.integers(1, 300), ties=st.booleans(), seed=st.integers(0, 99), data=st.data()
)
def test_selects_what_a_stable_sort_selects(dtype, rows, n, ties, seed, data):
    k = data.draw(st.integers(1, n))
    a = torch.randn(rows, n, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    a = a.round() if ties else a
    values, places = kernels.select_largest(a, k)
    wanted_values, wanted = expected(a, k)
    assert torch.equal(values, wanted_values)
    if simd.instruction_sets():
        assert torch.equal(places, wanted)


@dtypes
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_are_independent_of_threads_and_strides(dtype, threads, monkeypatch):
    monkeypatch.setattr(simd, "_ENTRIES_PER_THREAD", 1000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(500, 64, dtype=dtype).mT
        assert all(map(torch.equal, kernels.select_largest(a, 20), expected(a, 20)))
    finally:
        torch.set_num_threads(before)


@dtypes
def test_rows_with_nan_and_infinities(dtype):
    a = torch.randn(3, 50, dtype=dtype)
    a[0, 7], a[1, :48], a[2, 3] = torch.nan, -torch.inf, torch.inf
    values, places = kernels.select_largest(a, 5)
    assert 7 in places[0]  # NaN counts as the largest
    assert torch.isinf(values[1]).sum() == 3
    assert 3 in places[2]
    assert torch.equal(a.gather(1, places.long())[2], values[2])


@pytest.mark.parametrize(("shape", "k"), [((3, 4), 0), ((3, 4), 5), ((4,), 1), ((2, 3, 4), 1)])
def test_what_cannot_be_selected_is_refused(shape, k):
    with pytest.raises(ValueError, match="select_largest needs"):
        kernels.select_largest(torch.zeros(shape), k)


def test_no_rows():
    values, places = kernels.select_largest(torch.zeros(0, 4), 2)
    assert values.shape == places.shape == (0, 2)
