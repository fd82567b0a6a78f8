"""What the CUDA eigensolvers must obey, whoever runs them: `launcher` is an emulation, or None for a real device."""

import torch

LIMIT = 10.0  # of the LAPACK test ratios; LAPACK itself passes at 60
worst = {}  # the largest ratio seen per law, type and size: what a report wants to know


def random_matrices(batch, n, dtype, seed=0):
    return torch.randn(batch, n, n, dtype=dtype, generator=torch.Generator().manual_seed(seed + n))


def from_spectrum(values, seed=0):
    n = len(values)
    q, _ = torch.linalg.qr(
        torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    )
    a = (q * torch.as_tensor(values, dtype=torch.float64)) @ q.mT
    return (a + a.mT) / 2


def hard_matrices(n, dtype):
    """LAPACK's types and what broke first versions, (m, n, n)."""
    generator = torch.Generator().manual_seed(n)
    info = torch.finfo(dtype)
    index = torch.arange(n, dtype=torch.float64)
    dense = torch.randn(n, n, dtype=torch.float64, generator=generator)
    dense = dense + dense.mT
    ones, identity = torch.ones(n, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    signs = torch.randint(-1, 2, (n,), generator=generator).double()
    graded = torch.diag(10.0 ** -(index * 12 / n))
    line = torch.linspace(-1, 1, n, dtype=torch.float64)
    off = torch.ones(max(n - 1, 0), dtype=torch.float64)
    tridiagonal = torch.diag(off, 1) + torch.diag(off, -1)
    wilkinson = torch.diag((index - (n - 1) / 2).abs()) + tridiagonal
    glued = wilkinson.clone()
    glued[n // 2, max(n // 2 - 1, 0)] = glued[max(n // 2 - 1, 0), n // 2] = 1e-8
    factor = torch.randn(n, max(n // 2, 1), dtype=torch.float64, generator=generator)
    adjacency = torch.triu((torch.rand(n, n, generator=generator) < 0.3).double(), 1)
    cycle = identity.roll(1, 0)
    pairs = torch.eye(n, dtype=torch.float64)
    for i in range(0, n - 1, 2):
        pairs[i + 1, i + 1] += 1e-9
        pairs[i, i + 1] = pairs[i + 1, i] = 1e-9
    vanishing = (
        identity.clone()
    )  # a coupling whose square vanishes, between equal entries: 0 / 0 without a threshold
    vanishing[: max(n - 2, 0), : max(n - 2, 0)] = dense[: max(n - 2, 0), : max(n - 2, 0)]
    if n > 1:
        vanishing[n - 1, n - 2] = vanishing[n - 2, n - 1] = info.tiny**0.7
    band = torch.triu(torch.tril(dense, n // 4 + 1), -(n // 4 + 1))
    half = n // 2
    matrices = [
        torch.zeros(n, n, dtype=torch.float64),
        identity,
        torch.diag(line.flip(0)),
        ones,
        -ones,
        torch.outer(signs, signs),
        dense,
        band,
        wilkinson,
        glued,
        1 / (index[:, None] + index + 1),
        graded @ dense @ graded,
        (graded @ dense @ graded).flip(0, 1),
        from_spectrum(line),
        from_spectrum(info.eps ** (index / max(n - 1, 1))),
        from_spectrum([1.0] * (n - 1) + [1e-6]),
        from_spectrum([1.0] * half + [-1.0] * (n - half)),
        from_spectrum([1.0] * half + [0.0] * (n - half)),
        from_spectrum([3.0, -2.0, *[0.0] * n][:n]),
        factor @ factor.mT,
        -factor @ factor.mT,
        identity + 10 * info.eps * dense,
        adjacency + adjacency.mT,
        cycle + cycle.mT,
        identity.flip(0),
        pairs,
        vanishing,
        dense * 1e30,
        dense * 1e-30,
        dense * 1e-40,
        dense * info.max**0.5,
        dense * info.tiny**0.5,
        dense / dense.abs().max() * (info.max / (4 * n)),
    ]
    return torch.stack([(a + a.mT) / 2 for a in matrices]).to(dtype)


def _divided(a):
    """In float64, lower triangle mirrored, divided by max|a|; and what of the result cannot be written down."""
    info = torch.finfo(a.dtype)
    x = torch.tril(a.double()) + torch.tril(a.double(), -1).mT
    largest = x.abs().amax((-2, -1)).clamp(min=1e-320)
    # 1 / largest may overflow where the quotient does not.
    return x / largest[:, None, None], largest, info.smallest_normal * info.eps / largest


def _note(law, a, ratio):
    key = law, str(a.dtype), a.shape[-1]
    worst[key] = max(worst.get(key, 0.0), ratio.max().item())
    assert ratio.max() <= LIMIT, f"{law} {ratio.max():.1f} in matrix {ratio.argmax()}"


def assert_ratios(a, values, vectors):
    """Residual and orthogonality of LAPACK's `ddrvst`."""
    n, eps = a.shape[-1], torch.finfo(a.dtype).eps
    x, largest, floor = _divided(a)
    w, v = values.double() / largest[:, None], vectors.double()
    norm = x.abs().sum(-2).amax(-1)
    residual = (x - (v * w[:, None, :]) @ v.mT).abs().sum(-2).amax(-1)
    _note("residual", a, residual / (n * (norm * eps + floor) + 1e-300))
    basis = (torch.eye(n, dtype=torch.float64) - v.mT @ v).abs().sum(-2).amax(-1)
    _note("orthogonality", a, basis / (n * eps))
    assert (values.diff(dim=-1) >= 0).all()


def assert_projection(a, projection):
    """P = P', P >= 0, P - A >= 0 and <P, P - A> = 0 characterize the nearest positive semidefinite matrix (Moreau)."""
    n, eps = a.shape[-1], torch.finfo(a.dtype).eps
    assert torch.equal(projection, projection.mT)
    x, largest, floor = _divided(a)
    p = projection.double() / largest[:, None, None]
    unit = n * (x.abs().sum(-2).amax(-1) * eps + floor) + 1e-300
    _note("positive", a, (-torch.linalg.eigvalsh(p)[:, 0]).clamp(min=0) / unit)
    _note("majorant", a, (-torch.linalg.eigvalsh(p - x)[:, 0]).clamp(min=0) / unit)
    _note("complementary", a, (p * (p - x)).sum((-2, -1)).abs() / (unit * (1 + x.abs().sum(-2).amax(-1))))


def assert_independent(solver, n, dtype, launcher=None, device="cpu"):
    """Each matrix has the same bits anywhere in any batch; a bad one is NaN, and nothing else is."""
    a = random_matrices(11, n, dtype).to(device)
    values, vectors, _ = solver.eigh(a, launcher)
    projection, _ = solver.project_psd(a, launcher)
    for rows in ([10, 3, 7, 0, 5], [4]):
        some_values, some_vectors, _ = solver.eigh(a[rows], launcher)
        assert torch.equal(some_values, values[rows])
        assert torch.equal(some_vectors, vectors[rows])
        assert torch.equal(solver.project_psd(a[rows], launcher)[0], projection[rows])
    company = a.clone()
    company[0] = torch.nan
    company[1] = 1e25
    company[2] = torch.eye(n, dtype=dtype, device=device)  # done at once: its lanes wait for the others
    company[3, -1, 0] = -torch.inf
    company[4] = 0
    company[6, n // 2, n // 2] = torch.nan
    good = [5, 7, 8, 9, 10]
    new_values, new_vectors, info = solver.eigh(company, launcher)
    assert info.tolist() == [-1, 0, 0, -1, 0, 0, -1, 0, 0, 0, 0]
    assert torch.equal(new_values[good], values[good])
    assert torch.equal(new_vectors[good], vectors[good])
    new_projection, _ = solver.project_psd(company, launcher)
    assert torch.equal(new_projection[good], projection[good])
    new_values_alone, info_alone = solver.eigvalsh(company, launcher)
    assert torch.equal(info_alone, info)
    bad = [0, 3, 6]
    for result in (new_values, new_vectors, new_projection, new_values_alone):
        assert result[bad].isnan().all()
        assert not result[[i for i in range(11) if i not in bad]].isnan().any()
    # What is (nearly) done at once waits for its neighbors: not even the sign of a zero may tell how long.
    nearly = torch.diag(torch.arange(1, n + 1).to(a)) + torch.finfo(dtype).eps / 100 * a[5]
    for early in (company[2], nearly):
        company[8] = early
        waiting, lone = solver.eigh(company, launcher)[1][8], solver.eigh(early[None], launcher)[1][0]
        assert torch.equal(waiting, lone)
        assert torch.equal(waiting.signbit(), lone.signbit())


def assert_layout_free(solver, n, dtype, launcher=None, device="cpu"):
    """Any strides, the strict upper triangle not read, the input unchanged, the outputs contiguous."""
    plain = random_matrices(5, n, dtype).to(device)
    results = [*solver.eigh(plain, launcher), *solver.project_psd(plain, launcher)]
    garbage = plain + torch.triu(torch.full((n, n), torch.nan, dtype=dtype, device=device), 1)
    wide = torch.full((5, 2, n + 3, 2 * n + 1), torch.nan, dtype=dtype, device=device)
    wide[:, 1, 1 : n + 1, 1::2] = garbage
    layouts = {
        "garbage above": garbage,
        "view": wide[:, 1, 1 : n + 1, 1::2],
        "columns first": garbage.mT.contiguous().mT,
        "batch last": garbage.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    }
    for name, a in layouts.items():
        before = a.clone()
        others = [*solver.eigh(a, launcher), *solver.project_psd(a, launcher)]
        for one, other in zip(results, others):
            assert torch.equal(one, other), name
            assert other.is_contiguous()
        assert torch.equal(a.nan_to_num(7.0), before.nan_to_num(7.0)), name
    negated = torch._neg_view(-plain)
    assert torch.equal(solver.eigh(negated, launcher)[1], results[1])
    repeated = plain[:1].expand(5, n, n)
    assert torch.equal(solver.eigh(repeated, launcher)[1], results[1][:1].expand(5, n, n))
