"""The table of fastest solvers says what was measured, and nothing about what was not."""

import json

import torch

import kernels
from kernels._backends import cuda_table


def row(n, batch, *, result="vectors", dtype="float32", **seconds):
    return {"gpu": "GPU", "dtype": dtype, "result": result, "n": n, "batch": batch, "seconds": seconds}


def choose(table, n, batch, *, vectors=True, dtype="float32"):
    rules = table.get("GPU", {}).get(dtype, [])
    return cuda_table.match_rule(rules, n, batch=batch, vectors=vectors)


def test_the_fastest_at_large_batches_from_where_it_wins():
    table = cuda_table.derive_rules(
        [
            row(4, 1, torch=1.0, jacobi_cuda=2.0),
            row(4, 64, torch=1.0, jacobi_cuda=0.5),
            row(4, 1024, torch=9.0, jacobi_cuda=1.0, cusolver=5.0),
            row(8, 1, torch=1.0, jacobi_cuda=2.0),
            row(8, 64, torch=1.0, jacobi_cuda=0.5),
            row(8, 1024, torch=9.0, jacobi_cuda=1.0),
            row(64, 64, torch=1.0, jacobi_cuda=0.9, cusolver=0.2),
            row(64, 1024, torch=1.0, cusolver=0.99),
        ]
    )
    assert choose(table, 4, 1) is None
    assert choose(table, 4, 64) == choose(table, 6, 10**6) == choose(table, 8, 1024) == "jacobi_cuda"
    assert choose(table, 9, 1024) is None  # beyond the sizes measured
    assert choose(table, 64, 1024) is None  # not faster by the margin
    assert choose(table, 4, 64, vectors=False) is None
    assert choose(table, 4, 64, dtype="float64") is None
    assert json.loads(json.dumps(table)) == table


def test_a_range_does_not_bridge_a_size_where_another_wins():
    table = cuda_table.derive_rules(
        [
            row(4, 64, torch=1.0, jacobi_cuda=0.5),
            row(8, 64, torch=1.0, jacobi_cuda=2.0),
            row(16, 64, torch=1.0, jacobi_cuda=0.5),
        ]
    )
    assert [choose(table, n, 64) for n in (4, 5, 8, 12, 16)] == [
        "jacobi_cuda",
        None,
        None,
        None,
        "jacobi_cuda",
    ]


def test_where_torch_fails_another_wins():
    table = cuda_table.derive_rules(
        [row(4, 64, torch=1.0, cusolver=0.5), row(4, 10**6, cusolver=3.0), row(8, 64)]
    )
    assert choose(table, 4, 10**6) == "cusolver"
    assert choose(table, 8, 64) is None


def test_nothing_is_claimed_of_a_gpu_that_nobody_measured():
    assert cuda_table.find_fastest("no such GPU", torch.float32, 8, batch=1000, vectors=True) is None


def test_the_shipped_table_names_backends():
    for dtypes in json.loads(cuda_table.PATH.read_text()).values():
        for dtype, rules in dtypes.items():
            assert hasattr(torch, dtype)
            for rule in rules:
                assert rule["backend"] in {"jacobi_cuda", "householder_cuda", "cusolver"}
                assert rule["smallest_n"] <= rule["largest_n"]


def test_without_a_gpu_no_cuda_backend_is_offered():
    if not torch.cuda.is_available():
        assert not {"jacobi_cuda", "householder_cuda", "cusolver"} & set(kernels.available_backends())
