"""Faults: mutated, foreign and edited certificates, killed runs, weights at the edges of the number range."""

import copy
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

import certify
from certify import Ball, Box, checker
from certify.assurance.answers import answer
from certify.assurance.evidence import write_answers
from certify.assurance.requirements import read_requirements
from certify.certificate import Status
from certify.checking import check_text, network_arrays
from certify.evaluation import flat_function
from certify.exact import check_exactly
from certify.input_splitting import verify
from certify.properties import Polyhedron, Property
from certify.verdicts import VerdictStatus
from tests.certify.structures import Draw, model_of
from weightspace.errors import CheckpointError, NonFiniteError, WeightspaceError
from weightspace.operations import GELU, Conv, Flatten, LeakyReLU, Linear, MaxPool, ReLU, Scale

MUTATIONS = 1000


def small_network(seed, dtype=torch.float64, activation=None):
    d = Draw(seed, dtype)
    h = d.add(ReLU() if activation is None else activation, d.linear(d.input(2), 3))
    return d.builder.build([d.linear(d.add(LeakyReLU(negative_slope=0.25), d.linear(h, 2)), 2)])


def small_convolution():
    d = Draw(3)
    x = d.builder.input("x", (None, 1, 3, 3), torch.float64)
    places = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    weight, bias = d.parameter(d.rng.normal(size=(2, 1, 2, 2))), d.parameter([0.25, -0.5])
    h = d.add(ReLU(), d.add(Conv(weight=weight, bias=bias, **places), x))
    h = d.add(MaxPool(kernel=(2, 1), **places), h)
    return d.builder.build([d.linear(d.add(Flatten(), h), 2)])


def questions():
    """Yield (network, certificate text) of every kind that there is."""
    network, box, ball = small_network(1), Box([-0.4, 0.1], [0.5, 0.3]), Ball([0.2, -0.3], 0.25)
    for question in (
        {}, {"bounder": certify.ClosedForm()}, {"bounder": certify.NormProduct()}, {"output": (0, 1)},
        {"norm": "linf", "output": 1}, {"region": box}, {"region": ball},
        {"region": box, "norm": "linf", "output": (1, 0)}, {"region": ball, "bounder": certify.NormProduct()},
        {"region": Box([0.1, 0.2], [0.1, 0.9])},
    ):  # fmt: skip
        yield network, certify.lipschitz(network, **question).to_json()
    image = small_convolution()
    yield image, certify.lipschitz(image).to_json()
    yield image, certify.lipschitz(image, region=Box([-0.2] * 9, [0.3] * 9)).to_json()
    values = flat_function(network)(torch.tensor(list(box.lower), dtype=torch.float64)[None])[0]
    for row, end in (((1.0, 0.0), float(values[0]) - 0.5), ((-1.0, 1.0), float(values[1] - values[0]) - 0.4)):
        verdict = verify(network, Property(box, (Polyhedron([row, (0.0, 1.0)], [end, 50.0]),)), seconds=5)
        assert verdict.status is VerdictStatus.PROVED, verdict.reason
        yield network, verdict.certificate


def leaves(value, path=()):
    """Paths of all numbers of a certificate, spelled as they are."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            yield from leaves(item, (*path, place))
    elif isinstance(value, str) and value.lstrip("-").startswith(("0x", "inf", "nan")):
        yield path


def at(data, path):
    for part in path:
        data = data[part]
    return data


def mutate(data, rng, others):
    """Change a certificate as a forger would: its numbers, its lists, or what it is about."""
    kind, numbers = rng.integers(8), [*leaves(data)]
    path = numbers[rng.integers(len(numbers))]
    holder, last = at(data, path[:-1]), path[-1]
    number = float.fromhex(holder[last])
    if kind == 0:
        factors = [
            1 - 10.0 ** rng.uniform(-16, -1),
            1 + 10.0 ** rng.uniform(-16, 0),
            0.0,
            -1.0,
            1e300,
            5e-324,
            math.nan,
        ]
        holder[last] = float(number * rng.choice(factors)).hex()
    elif kind == 1:
        holder[last] = float(np.nextafter(number, rng.choice([-np.inf, np.inf]))).hex()
    elif kind == 2:
        holder[last] = at(data, numbers[rng.integers(len(numbers))])
    elif kind == 3 and "proofs" in data and data["proofs"]:  # a smaller bound with all that must fit it
        factor = 1 - 10.0 ** rng.uniform(-16, -1)
        power = 2 if data["norm"] == "l2" else 1
        for proof in data["proofs"]:
            proof["rho"] = (float.fromhex(proof["rho"]) * factor**power).hex()
        data["upper_bound"] = (float.fromhex(data["upper_bound"]) * factor).hex()
        data["sampled_lower_bound"] = data["optimum_lower_bound"] = None
    elif kind == 4:
        lists = [path[:-1] for path in numbers if isinstance(path[-1], int)]
        some = at(data, lists[rng.integers(len(lists))]) if lists else []
        if some and rng.random() < 0.5:
            some.append(some.pop(0))
        elif some:
            some.pop() if rng.random() < 0.5 else some.append(some[0])
    elif kind == 5:  # a region moved, widened or of another certificate, often with a bound that stays
        region = data["region"]
        if region is not None and rng.random() < 0.7:
            for name in region.keys() & {"lower", "upper", "center"}:
                shift = 10.0 ** rng.uniform(-6, 0) * rng.normal(size=len(region[name]))
                region[name] = [(float.fromhex(x) + s).hex() for x, s in zip(region[name], shift)]
        else:
            data["region"] = others[rng.integers(len(others))]["region"]
    elif kind == 6:
        other = others[rng.integers(len(others))]
        name = [*(data.keys() & other.keys() - {"digest"})]
        name = sorted(name)[rng.integers(len(name))]
        data[name] = copy.deepcopy(other[name])
    elif data.get("splits"):
        place = rng.integers(len(data["splits"]))
        choice = rng.integers(4)
        if choice == 0:
            data["splits"][place] = int(rng.integers(-1, 4))
        elif choice == 1:
            del data["splits"][place]
        elif choice == 2:
            data["splits"] = [-1]
        else:
            one = data["unsafe"][0]
            one["bounds"][0] = (float.fromhex(one["bounds"][0]) + abs(rng.normal())).hex()
    else:
        name, values = [
            ("norm", ("l2", "linf")), ("output", (None, 0, 1, [0, 1], [1, 0])),
            ("kind", ("multipliers", "norm product")), ("cuts", ([], [1], [2], [1, 2])), ("relaxations", (None, [])),
            ("proofs", ([],)), ("version", (2, 4)),
        ][rng.integers(7)]  # fmt: skip
        data[name] = values[rng.integers(len(values))]
    if "claim" in data and "norm" in data:
        output, region = data["output"], data["region"]
        output = tuple(output) if isinstance(output, list) else output
        data["claim"] = checker.claim(data["norm"], output, region, data["arithmetic"])
    data["digest"] = checker.digest(data)


def attained(network, fields, rng):
    """Return a lower bound of the Lipschitz constant a certificate is about: the largest norm of a Jacobian found."""
    size, region = math.prod(network.inputs[0].shape[1:]), fields["region"]
    points = rng.normal(size=(64, size)) * 3
    moving = np.ones(size, dtype=bool)
    if region is not None and "radius" in region:
        points *= region["radius"] * rng.random((64, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
        points += region["center"]
        moving[:] = region["radius"] > 0
    elif region is not None:
        lower, upper = np.array(region["lower"]), np.array(region["upper"])
        points, moving = lower + (upper - lower) * rng.random((64, size)), upper > lower
    x = torch.tensor(points, requires_grad=True)
    outputs = flat_function(network)(x).sum(0)
    rows = torch.stack([torch.autograd.grad(one, x, retain_graph=True)[0] for one in outputs]).numpy()
    rows = checker.select_rows(rows, fields["output"]).transpose(1, 0, 2)
    rows = rows[:, :, moving]
    if fields["norm"] == "l2":
        return np.linalg.norm(rows, 2, axis=(1, 2)).max() if moving.any() else 0.0
    return np.abs(rows).sum(axis=2).max(initial=0.0)


def exact_output(model, point):
    """Return the output of a chain of linear steps and ReLU or LeakyReLU in rational arithmetic."""
    values = [Fraction(float(x)) for x in point]
    for step in model.steps[1:]:
        if step.rule == "linear":
            sums = (sum(Fraction(float(w)) * v for w, v in zip(row, values)) for row in step.matrix)
            values = [total + Fraction(float(b)) for total, b in zip(sums, step.bias)]
        else:
            slope = Fraction(float(step.attributes.get("negative_slope", 0.0)))
            values = [v if v > 0 else slope * v for v in values]
    return values


def unsafe_point(network, fields):
    """Return a point of a dense grid whose output is unsafe in rational arithmetic, else None."""
    ends = zip(fields["region"]["lower"], fields["region"]["upper"], strict=True)
    grid = np.stack(np.meshgrid(*(np.linspace(*end, 41) for end in ends)), axis=-1).reshape(-1, 2)
    outputs, model = flat_function(network)(torch.tensor(grid)).numpy(), model_of(network)
    for one in fields["unsafe"]:
        excess = (outputs @ np.array(one["matrix"]).T - one["bounds"]).max(axis=1)
        for place in np.flatnonzero(excess <= 1e-9)[:3]:
            y = exact_output(model, grid[place])
            if all(
                sum(Fraction(a) * v for a, v in zip(row, y)) <= Fraction(b)
                for row, b in zip(one["matrix"], one["bounds"])
            ):
                return grid[place]
    return None


def test_no_mutation_is_accepted_that_the_truth_refutes():
    rng, known = np.random.default_rng(0), [*questions()]
    tables = [json.loads(text) for _, text in known]
    accepted = {checker.FORMAT: 0, checker.PROPERTY_FORMAT: 0}
    for turn in range(MUTATIONS):
        network, data = known[turn % len(known)][0], copy.deepcopy(tables[turn % len(known)])
        for _ in range(rng.integers(1, 4)):
            if not [*leaves(data)]:
                break
            try:
                mutate(data, rng, tables)
            except (TypeError, KeyError, AttributeError, IndexError):
                break  # an earlier change left nothing that this one could change
        data["digest"] = checker.digest(data)
        text = json.dumps(data)
        if text == json.dumps(tables[turn % len(known)]):
            continue
        try:
            if not check_text(text, network):
                continue
        except CheckpointError:
            continue
        fields = checker.parse_certificate(text)
        accepted[fields["format"]] += 1
        if fields["format"] == checker.PROPERTY_FORMAT:
            assert unsafe_point(network, fields) is None, text
            continue
        check_exactly(fields, *network_arrays(network))  # raises where it refutes
        assert fields["upper_bound"] >= attained(network, fields, rng) * (1 - 1e-9), text
    assert MUTATIONS / 2 > accepted[checker.FORMAT] > 50  # the law says something, and most were refused
    assert accepted[checker.PROPERTY_FORMAT] > 5


def test_what_does_not_belong_together_is_refused_with_the_reason():
    network, other, box = small_network(1), small_network(2), Box([-0.4, 0.1], [0.5, 0.3])
    wall = (Polyhedron([(1.0, 0.0)], [-1e3]),)
    texts = [
        certify.lipschitz(network).to_json(), certify.lipschitz(network, region=box).to_json(),
        certify.lipschitz(network, region=Ball([0.0, 0.0], 0.1)).to_json(),
        verify(network, Property(box, wall)).certificate,
    ]  # fmt: skip
    for text in texts:
        assert check_text(text, network)
        assert "another network" in check_text(text, other).reason
        data = json.loads(text)
        for version in (1, 2, 4, True, "3", None):
            with pytest.raises(CheckpointError, match="its version is"):
                check_text(json.dumps(data | {"version": version}), network)
        assert "edited" in check_text(json.dumps(data | {"method": "by hand"}), network).reason
        twice = (
            text.rstrip()[:-1] + ', "method": "by hand"}'
        )  # a key that stands twice counts as the last one
        assert "edited" in check_text(twice, network).reason
        wider = data | {"region": {"lower": [(-3.0).hex()] * 2, "upper": [(3.0).hex()] * 2}}
        if data["region"] is not None and "upper" in data["region"] and "norm" in data:
            wider["digest"] = checker.digest(wider)
            assert "inequality" in check_text(json.dumps(wider), network).reason
        for number in ("0x1p+2000", "0x1.0p+2000", "1e3", "0x1.0P+0"):
            field = "seconds" if "seconds" in data else "region"
            broken = {field: number if field == "seconds" else {"lower": [number] * 2, "upper": [number] * 2}}
            with pytest.raises(CheckpointError, match=f"field '{field}'"):
                check_text(json.dumps(data | broken), network)


EXTREME = [math.nan, math.inf, 5e-324, 1e-42, 1e30, 1e300]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", EXTREME)
def test_extreme_weights_end_in_a_clear_error_or_a_valid_certificate(build, he, value, dtype):
    rng = np.random.default_rng(0)
    for everywhere in (False, True):
        matrices = he([2, 4, 2], 1)
        if everywhere:
            matrices[1][:] = value
        else:
            matrices[0][1, 1] = value
        network = build(matrices, biases=[np.ones(4), np.zeros(2)], dtype=dtype)
        for question in (
            {},
            {"region": Box([-1, 0], [1, 0.5])},
            {"region": Ball([0.5, 0.5], 0.1)},
            {"norm": "linf"},
        ):
            try:
                found = certify.lipschitz(network, **question)
            except NonFiniteError:
                found = None
            finite = all(bool(tensor.isfinite().all()) for tensor in network.parameters.values())
            assert (found is not None) == finite
            if found is None:
                continue
            if found.upper_bound is None:
                assert found.status is Status.FAILED
                continue
            assert certify.check(found, network)
            fields = checker.parse_certificate(found.to_json())
            assert found.upper_bound >= attained(network, fields, rng) * (1 - 1e-6)


def test_products_that_underflow_are_not_believed():
    """5 2^-1074 / 2 is rounded to 2 2^-1074: no relative error of the product covers that."""
    d = Draw(0)
    h = d.add(Linear(weight=d.parameter([[5 * 2.0**-1074]])), d.input(1))
    for factor in (0.5, 2.0**299, 2.0**299, 2.0**299):
        h = d.add(Scale(factor=factor), h)
    network = d.builder.build([h])
    found, truth = certify.lipschitz(network), 2.5 * 2.0 ** (897 - 1074)
    assert found.upper_bound is None or found.upper_bound >= truth


def test_tiny_coefficients_count_over_a_huge_ball():
    """The squares of 1e-163 vanish in a norm; over a ball of radius 2^299 the neuron still bends."""
    d = Draw(0)
    inner = Linear(weight=d.parameter([[1e-163]]), bias=d.parameter([1e-74]))
    network = d.builder.build([d.add(ReLU(), d.add(inner, d.input(1)))])
    bounds = checker.Bounds(model_of(network), checker.balls(np.zeros((1, 1)), [2.0**299]))
    assert bounds.low[1][0, 0] <= -1e-163 * 2.0**299 + 1e-74


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slopes_far_out_are_those_of_the_asymptotes(sign):
    d = Draw(0)
    step = model_of(d.builder.build([d.add(GELU(approximate="tanh"), d.input(1))])).steps[1]
    for size in (15.0, 1e3, 1e85, 2.0**299):
        ends = np.sort([sign * size, sign * size * 1.5])
        low, high = checker.slopes_over(step, ends[:1], ends[1:])
        assert low[0] <= (sign > 0) <= high[0]
        assert high[0] - low[0] < 1e-11


KILLED = """
import os, resource, signal, sys
from weightspace import result
path, how = sys.argv[1:]
if how == "killed":
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # when all is written, before it has its name
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    result.write_text(path, "x" * 100_000)
except result.OutputError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize("how", ["killed", "full"])
def test_a_write_that_does_not_end_leaves_no_certificate(tmp_path, how):
    path = tmp_path / "certificate.json"
    for before in (None, "what was there"):
        if before is not None:
            path.write_text(before)
        given = [sys.executable, "-c", KILLED, str(path), how]
        ended = subprocess.run(
            given,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert ended.returncode == (-signal.SIGKILL if how == "killed" else 2), ended.stderr
        assert how == "killed" or str(path) in ended.stdout
        assert (path.read_text() if path.exists() else None) == before


def test_the_chord_of_relu_covers_its_own_rounding():
    """Where the lower end nearly vanishes, high - chord high loses all digits."""
    rng = np.random.default_rng(0)
    low, high = -(10.0 ** rng.uniform(-18, -12, size=(1, 4000))), 1 + rng.random((1, 4000))
    lines = checker.lines_over(checker.RELU, low, high)
    for slope, above, *ends in zip(lines.high[0], lines.above[0], low[0], high[0], strict=True):
        for y in map(Fraction, (*map(float, ends), 0.0)):
            assert max(y, Fraction(0)) <= Fraction(float(slope)) * y + Fraction(float(above))


def test_a_changed_verdict_is_refused_by_the_checker_alone(tmp_path, capsys):
    network, box = small_network(1), Box([-0.4, 0.1], [0.5, 0.3])
    property = Property(box, (Polyhedron([(1.0, 0.0)], [-1e3]),))
    data = json.loads(write_answers(answer(network, [property])))
    network.save_npz(tmp_path / "network.npz")

    def run_checker(**fields):
        (tmp_path / "verdict.json").write_text(json.dumps(data | fields))
        status = checker.main([str(tmp_path / "verdict.json"), str(tmp_path / "network.npz")])
        return status, capsys.readouterr().out

    assert run_checker()[0] == 0
    wider = {**data["properties"][0], "region": {"lower": [(-9.0).hex()] * 2, "upper": [(9.0).hex()] * 2}}
    status, text = run_checker(properties=[wider])
    assert (status, "edited" in text) == (1, True)
    status, text = run_checker(properties=[wider], digest=checker.digest(data | {"properties": [wider]}))
    assert (status, "another region" in text) == (1, True)


@pytest.mark.parametrize(
    "demand",
    [
        f'kind = "lipschitz"\nmax = 1{"0" * 400}',
        'kind = "property"\nregion = {lower = [0], upper = [1]}\n'
        f"unsafe = [{{matrix = [[1{'0' * 400}]], bounds = [0]}}]",
        'kind = "property"\nvnnlib = "a\\u0000b"',
    ],
)
def test_numbers_and_names_that_are_none_end_in_one_clear_error(tmp_path, demand):
    path = tmp_path / "requirements.toml"
    path.write_text(f'model = "n.npz"\n[[requirements]]\nid = "R1"\ntext = "none"\n{demand}\n')
    with pytest.raises(WeightspaceError, match=r"requirement 1 .R1.: (max|unsafe|vnnlib)"):
        read_requirements(path)


def test_a_few_lines_that_stand_for_billions_of_entries_are_refused_at_once(tmp_path):
    path, names = tmp_path / "requirements.yaml", "abcdefghijklm"
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{new}: &{new} [{', '.join(['*' + old] * 10)}]" for old, new in itertools.pairwise(names)]
    path.write_text("\n".join([*lines, f"title: *{names[-1]}", "requirements: []"]))
    with pytest.raises(WeightspaceError, match=r"title is .* not text"):
        read_requirements(path)
