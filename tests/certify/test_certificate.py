"""The certificate as a file and as something to look at."""

import dataclasses
import json
import math
import pickle

import pytest

import certify
from certify.bounders.proving import require_faithful
from certify.certificate import Status, shown_above, shown_below
from weightspace.errors import CheckpointError


def certificates(build, he):
    network = build(he([3, 4, 2]))
    yield certify.lipschitz(network)
    yield certify.lipschitz(network, norm="linf")
    yield certify.lipschitz(network, bounder=certify.NormProduct(), output=(0, 1))
    yield dataclasses.replace(
        certify.lipschitz(network), upper_bound=None, status=Status.FAILED, seconds=5e-324
    )


def test_json_round_trip_is_bit_exact(build, he):
    for certificate in certificates(build, he):
        text = certificate.to_json()
        again = certify.Certificate.from_json(text)
        assert again == certificate
        assert again.to_json() == text
        data = json.loads(text)
        assert "floating-point inference is not covered" in data["claim"]


def test_it_travels_between_processes(build, he):
    for certificate in certificates(build, he):
        assert pickle.loads(pickle.dumps(certificate)) == certificate


def test_what_is_written_must_be_what_was_proven(build, he):
    network, other = build(he([3, 4, 2])), build(he([3, 4, 2], seed=1))
    found = certify.lipschitz(network)
    require_faithful(found, network)
    with pytest.raises(AssertionError, match="hash"):
        require_faithful(found, other)
    for changes in ({"sampled_lower_bound": 2 * found.upper_bound}, {"upper_bound": None}):
        with pytest.raises(AssertionError, match="below a lower one"):
            require_faithful(dataclasses.replace(found, **changes), network)
    with pytest.raises(AssertionError, match="differs"):  # numbers that a file cannot hold
        require_faithful(dataclasses.replace(found, seconds=math.nan), network)


def test_it_can_be_read_by_people(build, he):
    for certificate in certificates(build, he):
        for text in (str(certificate), certificate._repr_html_()):
            assert str(certificate.status) in text
            assert "upper bound" in text
            assert "sampled lower bound" in text
            if certificate.upper_bound is not None:
                assert shown_above(certificate.upper_bound) in text
        escaped = dataclasses.replace(certificate, method="<script>")._repr_html_()
        assert "<script>" not in escaped


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"format": "weightspace.certificate", "version": 99}', "\x00"]
)
def test_broken_files_are_refused_in_one_line(text):
    with pytest.raises(CheckpointError) as caught:
        certify.Certificate.from_json(text)
    assert "\n" not in str(caught.value)
    assert "certificate" in str(caught.value)


def test_printed_bounds_are_on_the_safe_side():
    assert shown_above(1.00000000001) == "1.0000001"
    assert shown_below(1.99999999999) == "1.9999999"
    assert shown_above(5.0) == shown_below(5.0) == "5"
    assert shown_above(None) == "none"
