"""Inspection: every number against a slower trusted one, and nothing in a tensor makes it raise."""

import html
import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from weightspace.checkpoint import open_checkpoint
from weightspace.errors import CheckpointError, ShapeError
from weightspace.inspection import Inspection, inspect, inspect_tensor
from weightspace.power_law import fit_power_law
from weightspace.reading import read
from weightspace.spectrum import compute_spectrum
from weightspace.tensor_statistics import summarize

DTYPES = [torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def with_singular_values(rows, columns, values, seed=0):
    left = torch.linalg.qr(randn(rows, rows, seed=seed)).Q[:, : len(values)]
    right = torch.linalg.qr(randn(columns, columns, seed=seed + 1)).Q[:, : len(values)]
    return left @ torch.diag(torch.as_tensor(values, dtype=torch.float64)) @ right.T


def small_tiles(monkeypatch, elements=64):
    """Make tiles so small that tensors of a test consist of many, in both directions."""
    monkeypatch.setattr("weightspace.tensor_statistics.TILE_ELEMENTS", elements)
    monkeypatch.setattr("weightspace.spectrum.TILE_ELEMENTS", elements)


# ---- spectra ---------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (40, 40), (100, 30), (30, 100)])
def test_singular_values_equal_those_of_scipy(shape, dtype):
    matrix = randn(*shape, dtype=dtype)
    row = inspect_tensor("w", matrix)
    expected = scipy.linalg.svdvals(matrix.double().numpy())
    np.testing.assert_allclose(row.singular_values, expected, rtol=1e-6)
    assert row.spectral_norm == pytest.approx(expected[0], rel=1e-12)
    assert row.stable_rank == pytest.approx((expected**2).sum() / expected[0] ** 2, rel=1e-9)
    assert row.condition == pytest.approx(expected[0] / expected[-1], rel=1e-6)
    assert row.rank == min(shape)
    assert not row.spectral_norm_is_estimate


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 1.0, 1e8, 1e200])
def test_wide_spectra_keep_their_small_values_at_every_scale(scale):
    planted = 10.0 ** -torch.arange(0, 12, dtype=torch.float64)
    matrix = with_singular_values(20, 30, planted) * scale
    row = inspect_tensor("w", matrix)
    np.testing.assert_allclose(np.array(row.singular_values[:12]) / scale, planted, rtol=1e-3)
    assert row.norm == pytest.approx(scale * math.sqrt(float((planted**2).sum())), rel=1e-12)
    assert row.spectral_norm == pytest.approx(scale, rel=1e-12)
    assert row.rank == 12
    assert row.condition == math.inf


@dtypes
@pytest.mark.parametrize("rank", [1, 3, 20])
def test_rank_of_planted_products(rank, dtype):
    matrix = (randn(20, rank) @ randn(rank, 50, seed=1)).to(dtype)
    assert inspect_tensor("w", matrix).rank == rank


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_half_precision_is_computed_in_float64(dtype):
    matrix = (randn(30, 20) * 100).to(dtype)
    row = inspect_tensor("w", matrix)
    expected = scipy.linalg.svdvals(matrix.double().numpy())
    np.testing.assert_allclose(row.singular_values, expected, rtol=1e-9)
    assert row.rank == 20
    assert row.norm == pytest.approx(float(np.linalg.norm(expected)), rel=1e-12)


def test_norms_do_not_overflow():
    assert inspect_tensor("w", torch.full((300, 300), 60000.0, dtype=torch.float16)).norm == 60000.0 * 300
    assert inspect_tensor("w", torch.full((4,), 1e38)).norm == pytest.approx(2e38, rel=1e-6)
    assert inspect_tensor("w", torch.full((4,), 1e300, dtype=torch.float64)).norm == pytest.approx(2e300)
    assert inspect_tensor("w", torch.full((4,), 1e-300, dtype=torch.float64)).norm == pytest.approx(2e-300)
    worst = inspect_tensor("w", torch.tensor([[1.7e308, -1.7e308]] * 2, dtype=torch.float64))
    assert (
        json.loads(Inspection("x", (worst,), inspect({}).totals).to_json())["tensors"][0]["min"] == -1.7e308
    )


@pytest.mark.parametrize("shape", [(37, 90), (90, 37), (64, 64)])
def test_streaming_changes_nothing(shape, monkeypatch):
    matrix = randn(*shape)
    matrix[3] = 0
    matrix[5] = matrix[7]
    whole = inspect_tensor("w", matrix)
    small_tiles(monkeypatch)
    pieces = inspect_tensor("w", matrix)
    np.testing.assert_allclose(pieces.singular_values[:-3], whole.singular_values[:-3], rtol=1e-6)
    for field in ("norm", "mean", "std", "min", "max", "zeros", "dead_units", "duplicate_units", "rank"):
        assert getattr(pieces, field) == pytest.approx(getattr(whole, field), rel=1e-9, abs=1e-15), field


@pytest.mark.parametrize("shape", [(60, 80), (80, 60)])
def test_norms_above_the_limit_are_estimates_from_below(shape, monkeypatch):
    small_tiles(monkeypatch, 512)
    matrix = randn(*shape, dtype=torch.float32)
    row = inspect_tensor("w", matrix, largest_spectrum=40)
    exact = float(scipy.linalg.svdvals(matrix.double().numpy())[0])
    assert row.spectral_norm_is_estimate
    assert exact * (1 - 1e-3) <= row.spectral_norm <= exact * (1 + 1e-6)
    assert row.singular_values is row.alpha is row.rank is row.condition is None
    assert "60 > 40" in row.note
    assert "~" in Inspection("x", (row,), inspect({}).totals).to_table()


def test_convolutions_are_unfolded_to_out_by_rest():
    kernel = randn(8, 3, 5, 2)
    expected = scipy.linalg.svdvals(kernel.reshape(8, 30).numpy())
    np.testing.assert_allclose(inspect_tensor("w", kernel).singular_values, expected, rtol=1e-6)
    strided = kernel.permute(1, 0, 3, 2)
    expected = scipy.linalg.svdvals(strided.reshape(3, 80).numpy())
    np.testing.assert_allclose(inspect_tensor("w", strided).singular_values, expected, rtol=1e-6)


@given(
    shape=st.lists(st.integers(0, 7), min_size=0, max_size=4),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    scale=st.sampled_from([1e-8, 1e-3, 1.0, 1e3, 1e8]),
    degenerate=st.sampled_from(["none", "zero", "constant", "rank 1", "one nan", "all inf"]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_any_tensor_has_a_row(shape, dtype, scale, degenerate, seed):
    tensor = randn(*shape, seed=seed) * scale
    if degenerate == "zero":
        tensor = tensor * 0
    elif degenerate == "constant":
        tensor = tensor * 0 + scale
    elif degenerate == "rank 1" and tensor.ndim > 1:
        tensor = tensor[:1].expand_as(tensor).clone()
    elif degenerate == "one nan" and tensor.numel():
        tensor.view(-1)[0] = math.nan
    elif degenerate == "all inf":
        tensor = tensor.abs() + math.inf
    tensor = tensor.to(dtype)
    result = inspect({"w": tensor})
    (row,) = result.rows
    assert row.shape == tuple(shape)
    assert result.totals.parameters == tensor.numel()
    json.loads(result.to_json(singular_values=True), parse_constant=pytest.fail)
    assert result.to_table()
    exact = tensor.double()
    if tensor.numel() and tensor.isfinite().all():
        assert row.norm == pytest.approx(float(exact.norm()), rel=1e-12)
        assert row.mean == pytest.approx(float(exact.mean()), rel=1e-9, abs=1e-12 * float(exact.abs().max()))
        assert row.std == pytest.approx(float(exact.std(correction=0)), rel=1e-6, abs=1e-12 * scale)
        assert (row.min, row.max) == (float(exact.min()), float(exact.max()))
        assert row.zeros == float((tensor == 0).double().mean())
        if tensor.ndim >= 2:
            expected = np.linalg.svd(exact.reshape(shape[0], -1).numpy(), compute_uv=False)
            np.testing.assert_allclose(row.singular_values, expected, rtol=1e-6, atol=1e-12 * float(row.norm))
            assert row.rank >= (expected > 1e-3 * expected.max()).sum() * (expected.max() > 0)
    else:
        assert row.singular_values is None
        assert row.note


def test_mean_and_spread_do_not_cancel():
    tensor = 1e6 + randn(100, 100) * 1e-3
    numbers = summarize(tensor)
    assert numbers.std == pytest.approx(float((tensor - 1e6).std(correction=0)), rel=1e-6)
    assert summarize(torch.full((1000,), 0.1)).std == 0


# ---- units -----------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("shape", [(12, 5), (12, 3, 2, 2), (12, 1)])
def test_dead_and_duplicate_units(shape, dtype):
    tensor = randn(*shape, dtype=dtype)
    tensor[[2, 9]] = 0
    tensor[2].view(-1)[0] = -0.0
    tensor[4] = tensor[7] = tensor[1]
    tensor[10] = tensor[0]
    tensor[11] = -tensor[0]
    row = inspect_tensor("w", tensor)
    assert (row.dead_units, row.duplicate_units) == (2, 3)
    assert row.zeros == pytest.approx(2 / 12)
    assert any("2 of 12 units are dead" in text for text in row.findings)
    assert any("3 of 12 units repeat" in text for text in row.findings)


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 3))
@settings(deadline=None, max_examples=80)
def test_duplicates_equal_those_of_numpy(seed, rows, columns):
    matrix = torch.randint(-1, 2, (rows, columns), generator=generator(seed)).to(torch.float32)
    nonzero = matrix[matrix.any(dim=1)]
    row = inspect_tensor("w", matrix)
    assert row.dead_units == rows - len(nonzero)
    assert row.duplicate_units == len(nonzero) - (
        len(np.unique(nonzero.numpy(), axis=0)) if len(nonzero) else 0
    )


def test_rows_of_nan_are_neither_dead_nor_duplicate():
    row = inspect_tensor("w", torch.tensor([[math.nan, 1.0], [math.nan, 1.0], [0.0, 0.0], [2.0, math.inf]]))
    assert (row.nan, row.inf, row.dead_units, row.duplicate_units) == (2, 1, 1, 0)
    assert (row.min, row.max) == (0.0, 2.0)
    assert row.norm == pytest.approx(math.sqrt(6))
    assert row.mean == pytest.approx(0.8)
    assert row.spectral_norm is row.singular_values is None
    assert "not finite" in row.note
    assert row.findings[0] == "w: 2 NaN and 1 infinite entries of 8"


@pytest.mark.parametrize("seed", range(3))
def test_statistics_over_the_finite_entries(seed, monkeypatch):
    small_tiles(monkeypatch)
    tensor = randn(50, 20, seed=seed)
    tensor[randn(50, 20, seed=seed + 10) > 1] = math.nan
    tensor[randn(50, 20, seed=seed + 20) > 1.5] = -math.inf
    tensor[10:20] = math.nan
    finite = tensor[tensor.isfinite()]
    numbers = summarize(tensor)
    assert numbers.nan == int(tensor.isnan().sum())
    assert numbers.inf == int(tensor.isinf().sum())
    assert numbers.mean == pytest.approx(float(finite.mean()), rel=1e-9)
    assert numbers.std == pytest.approx(float(finite.std(correction=0)), rel=1e-9)
    assert numbers.norm == pytest.approx(float(finite.norm()), rel=1e-9)


# ---- power laws ------------------------------------------------------------------------------------------


def pareto(alpha, count, seed, x_min=1.0):
    return x_min * torch.rand(count, generator=generator(seed), dtype=torch.float64) ** (-1 / (alpha - 1))


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0, 4.5])
def test_a_planted_exponent_is_recovered(alpha):
    fits = [fit_power_law(pareto(alpha, 2000, seed, x_min=0.3)) for seed in range(8)]
    # Choosing x_min by its distance costs tail and adds spread: three standard errors each, two for the mean.
    assert all(abs(fit.alpha - alpha) < 3 * fit.standard_error for fit in fits)
    error = math.sqrt(sum(fit.standard_error**2 for fit in fits)) / len(fits)
    assert abs(sum(fit.alpha for fit in fits) / len(fits) - alpha) < 2 * error
    assert all(fit.standard_error == pytest.approx((fit.alpha - 1) / math.sqrt(fit.tail)) for fit in fits)


def test_x_min_finds_where_the_tail_begins():
    bulk = torch.rand(3000, generator=generator(0), dtype=torch.float64)
    fit = fit_power_law(torch.cat([bulk, pareto(2.5, 2000, 1)]))
    assert 0.9 < fit.x_min < 1.5
    assert abs(fit.alpha - 2.5) < 3 * fit.standard_error


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_the_fit_is_the_best_of_a_slow_direct_search(seed, ties):
    values = pareto(2.2, 60, seed) + torch.rand(60, generator=generator(seed + 9), dtype=torch.float64)
    if ties:
        values = (values * 4).round() / 4
    data = sorted(values.tolist())
    found = {}
    for x_min in sorted(set(data))[:-1]:
        tail = [x for x in data if x >= x_min]
        alpha = 1 + len(tail) / sum(math.log(x / x_min) for x in tail)
        found[x_min] = (
            alpha,
            max(abs(1 - (x / x_min) ** (1 - alpha) - sum(y < x for y in tail) / len(tail)) for x in tail),
        )
    fit = fit_power_law(values)
    assert fit.distance == pytest.approx(min(distance for _, distance in found.values()), abs=1e-12)
    assert fit.alpha == pytest.approx(found[fit.x_min][0], rel=1e-10)
    assert fit.distance == pytest.approx(found[fit.x_min][1], abs=1e-12)
    assert fit.tail == sum(x >= fit.x_min for x in data)


@given(st.integers(0, 1000), st.sampled_from([1e-30, 1e-8, 3.0, 1e8, 1e30]))
@settings(deadline=None, max_examples=30)
def test_scaling_scales_x_min_only(seed, scale):
    values = pareto(2.5, 80, seed)
    plain, scaled = fit_power_law(values), fit_power_law(values * scale)
    assert scaled.alpha == pytest.approx(plain.alpha, rel=1e-9)
    assert scaled.distance == pytest.approx(plain.distance, abs=1e-9)
    assert scaled.x_min == pytest.approx(plain.x_min * scale, rel=1e-12)


def test_no_fit_without_two_different_values():
    for values in ([], [1.0], [2.0] * 30, [0.0, -1.0, math.nan, math.inf, 3.0]):
        assert fit_power_law(torch.tensor(values)) is None


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_alpha_of_a_matrix_with_a_planted_spectrum(scale):
    eigenvalues = pareto(3.0, 200, 0).sort(descending=True).values
    row = inspect_tensor("w", with_singular_values(200, 240, eigenvalues.sqrt()) * scale)
    fit = fit_power_law(eigenvalues)
    assert row.alpha == pytest.approx(fit.alpha, rel=1e-6)
    assert row.alpha_ks == pytest.approx(fit.distance, abs=1e-6)
    assert row.alpha_tail == fit.tail
    assert row.alpha_xmin == pytest.approx(fit.x_min * scale**2, rel=1e-6)
    assert row.note == ""


def test_alpha_says_when_it_is_none_or_unreliable():
    assert "needs 20" in inspect_tensor("w", randn(19, 40)).note
    few = inspect_tensor("w", randn(30, 40))
    assert few.alpha is not None
    assert "unreliable" in few.note
    assert inspect_tensor("w", torch.eye(60)).alpha is None
    assert "equal" in inspect_tensor("w", torch.eye(60)).note
    orthogonal = torch.linalg.qr(randn(60, 60)).Q
    assert inspect_tensor("w", orthogonal).alpha is None or inspect_tensor("w", orthogonal).alpha > 1e6


def test_alpha_outside_its_range_is_a_finding():
    def exponent(alpha):
        values = pareto(alpha, 300, 0).sort(descending=True).values.sqrt()
        return inspect_tensor("w", with_singular_values(300, 300, values)).findings

    assert any("below 2" in text for text in exponent(1.3))
    assert not any("alpha" in text for text in exponent(3.0))
    assert any("above 6" in text for text in exponent(12.0))


# ---- findings and output ---------------------------------------------------------------------------------


def test_degenerate_layers_are_findings():
    state = {
        "zero": torch.zeros(4, 5),
        "constant": torch.full((4, 5), 2.0),
        "low": randn(30, 2) @ randn(2, 30, seed=1),
        "dominated": randn(30, 1) @ randn(1, 30, seed=1) + 1e-3 * randn(30, 30),
        "fine": randn(4, 5),
        "one": torch.tensor(1.0),
        "running_mean": torch.zeros(4),
        "gain": torch.ones(5),
    }
    findings = inspect(state).findings
    assert [text.partition(":")[0] for text in findings] == [
        "zero", "constant", "low", "dominated", "running_mean",
    ]  # fmt: skip
    assert "low: rank 2 of 30" in findings
    assert "zero: all zero" in findings


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(6).reshape(2, 3), torch.tensor([[True, False]]), torch.zeros(0, 3), torch.zeros(3, 0),
     torch.ones(2, 2, dtype=torch.complex64), torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta"),
     torch.ones(3).to(torch.uint16)],
)  # fmt: skip
def test_what_has_no_spectrum_says_so(tensor):
    row = inspect_tensor("w", tensor)
    assert row.note
    assert row.norm is row.singular_values is row.alpha is None
    assert row.findings == ()


def test_json_is_strict_and_complete():
    state = {"w": torch.tensor([[1.0, 1.0], [1.0, 1.0]]), "bad": torch.tensor([math.nan, math.inf])}
    result = inspect(state)
    data = json.loads(result.to_json(), parse_constant=pytest.fail)
    assert data["totals"] == {"tensors": 2, "parameters": 6, "bytes": 24}
    assert data["tensors"][0]["condition"] == "inf"
    assert "singular_values" not in data["tensors"][0]
    assert data["findings"] == list(result.findings)
    data = json.loads(result.to_json(singular_values=True))
    assert data["tensors"][0]["singular_values"] == pytest.approx([2.0, 0.0], abs=1e-7)
    assert data["tensors"][1]["singular_values"] is None


def test_table_is_aligned_and_names_cannot_move_the_cursor():
    evil = "a\x1b[2J\r\nb\u202e<script>"
    result = inspect({evil: randn(3, 4), "long name of a tensor": torch.zeros(2)})
    lines = result.to_table().splitlines()
    assert "\x1b" not in result.to_table()
    assert lines[1].startswith("a\\x1b[2J\\r\\nb\\u202e<script>")
    assert lines[0].index("shape") == lines[1].index("3x4") == lines[2].index("2  ")
    assert lines[4] == "2 tensors, 14 parameters, 104 bytes"
    assert "<script>" not in result._repr_html_()
    assert html.escape("<script>") in result._repr_html_()
    assert str(result) == result.to_table()


def test_tied_weights_count_once():
    weight = torch.nn.Parameter(randn(5, 4, dtype=torch.float32))
    module = torch.nn.ModuleDict(
        {"a": torch.nn.Linear(4, 5, bias=False), "b": torch.nn.Linear(4, 5, bias=False)}
    )
    module["a"].weight = module["b"].weight = weight
    result = inspect(module)
    assert [row.name for row in result.rows] == ["a.weight", "b.weight"]
    assert "a.weight" in result.rows[1].note
    assert result.totals.parameters == 20
    assert result.rows[0].norm == result.rows[1].norm


# ---- sources ---------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_rows(tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 2), torch.nn.BatchNorm2d(3), torch.nn.Flatten())
    state = module.state_dict()
    save_file(state, tmp_path / "x.safetensors")
    torch.save(state, tmp_path / "x.pt")

    class Described:
        parameters = state

    sources = [module, state, tmp_path / "x.safetensors", str(tmp_path / "x.pt"), Described(),
               open_checkpoint(tmp_path / "x.safetensors")]  # fmt: skip
    expected = {row.name: row for row in inspect(module).rows}
    assert set(expected) == set(state)
    for source in sources:
        assert {row.name: row for row in inspect(source, progress=True).rows} == expected
    assert inspect(tmp_path / "x.pt").source == str(tmp_path / "x.pt")


def test_pickled_tensors_that_are_not_dense_are_listed_and_no_weights(tmp_path):
    wide = torch.ones(1, 1).expand(2100, 2100)
    torch.save({"a": torch.eye(3).to_sparse(), "b": torch.ones(3, 3), "c": wide}, tmp_path / "a.pt")
    rows = inspect(tmp_path / "a.pt", largest_spectrum=10).rows
    assert [(row.name, row.shape) for row in rows] == [("a", (3, 3)), ("b", (3, 3)), ("c", (2100, 2100))]
    assert rows[0].note == "not a dense tensor: shape only"
    assert rows[1].norm == pytest.approx(3)
    assert rows[2].norm == pytest.approx(2100)
    for name, reason in (("a", "not dense"), ("c", "repeats 4 bytes")):
        with pytest.raises(CheckpointError, match=f"a.pt: tensor '{name}' .*{reason}"):
            open_checkpoint(tmp_path / "a.pt").tensor(name)
    with pytest.raises(CheckpointError, match="not dense"):
        read(tmp_path / "a.pt")


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ShapeError, match="source is a int"):
        inspect(3)
    with pytest.raises(ShapeError, match="'epoch' is a int"):
        inspect({"w": torch.ones(2), "epoch": 3})
    with pytest.raises(CheckpointError, match="no such file"):
        inspect(tmp_path / "none.safetensors")


def test_empty_and_zero_spectra():
    assert compute_spectrum(torch.zeros(3, 4)).rank == 0
    assert compute_spectrum(torch.zeros(0, 4)).spectral_norm == 0
    assert inspect({}).totals.tensors == 0
    assert "0 tensors" in inspect({}).to_table()
