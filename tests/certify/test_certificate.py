"""The certificate as a file and as something to look at."""

import dataclasses
import json

import pytest

import certify
from certify.certificate import Status
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


def test_it_can_be_read_by_people(build, he):
    for certificate in certificates(build, he):
        for text in (str(certificate), certificate._repr_html_()):
            assert str(certificate.status) in text
            assert "upper bound" in text
            assert "sampled lower bound" in text
            if certificate.upper_bound is not None:
                assert f"{certificate.upper_bound:.8g}" in text
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
