"""Why a network was not certified for a limit: what is proven, what the relaxation could prove, what is attained."""

from __future__ import annotations

from certify.certificate import Certificate, Status, shown_above, shown_below


def describe_gap(certificate: Certificate, limit: float) -> str | None:
    """Return in one line why `limit` was not certified; None where it was.

    The attained stretching is that of two inputs, the dual bound is what the best multipliers of the relaxation
    could reach; both are computed in floating point, whereas the upper bound is proven.
    """
    upper, dual, attained = (
        certificate.upper_bound,
        certificate.optimum_lower_bound,
        certificate.sampled_lower_bound,
    )
    if certificate.status is Status.CERTIFIED and upper is not None and upper <= limit:
        return None
    numbers = (
        f"limit {limit:g}, upper bound {shown_above(upper, 6)}, dual bound of the relaxation {shown_below(dual, 6)}, "
        f"attained {shown_below(attained, 6)}"
    )
    if attained is not None and attained > limit:
        reason = "the network itself stretches by more than the limit, so that no method can certify it"
    elif upper is None:
        reason = str(certificate.status)
    elif certificate.status is not Status.CERTIFIED:
        reason = f"the bound does not count: {certificate.status}"
    elif dual is not None and dual > limit:
        reason = (
            "no multipliers of this relaxation reach the limit; a smaller region or single outputs may, the true "
            "constant is still open"
        )
    elif dual is None:
        reason = "nothing rules the limit out; --method lipsdp gives tighter bounds and a dual bound"
    else:
        reason = (
            "the search stopped between its dual bound and its upper bound; a smaller tolerance may reach it"
        )
    return f"{numbers}: {reason}"
