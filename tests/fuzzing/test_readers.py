"""Every reader on changed files: a value or one error that names the file (`law.py`); forgeries are not accepted.

The targets are those of `targets.py`; here Hypothesis draws the changes, so that the same ones come at every run, and
what it finds is made small. `python -m tests.fuzzing.run` looks further, by coverage.
"""

import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.fuzzing import mutations, targets

SLOW = {"huggingface": 4, "certificate": 20, "verdict": 20, "checked_network": 20, "onnx": 40}
FEW = 25
JSON = sorted(name for name, frame in mutations.FRAMES.items() if frame == "json" and name not in SLOW)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["nan", "0x1.8p+1", "../../evil", "float32", "a.safetensors", "weightspace.network"])
)  # fmt: skip
NAMES = st.sampled_from(
    [
        "format",
        "version",
        "nodes",
        "outputs",
        "name",
        "kind",
        "inputs",
        "shape",
        "dtype",
        "attributes",
        "parameters",
        "weight_map",
        "lower",
        "upper",
        "center",
        "radius",
        "shards",
        "groups",
        "axes",
        "model_type",
        "lora_alpha",
        "alpha_pattern",
        "proofs",
        "claim",
        "model",
        "weights",
        "config",
        "graph_module",
    ]
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4)
)
EXPRESSIONS = st.recursive(
    st.sampled_from(["X_0", "Y_0", "Y_1", "1.5", "-2e3", "1e999", "x", "()", "١"]),
    lambda inner: st.builds(
        lambda head, rest: f"({' '.join([head, *rest])})",
        st.sampled_from(["assert", "and", "or", "<=", ">=", "+", "-", "*", "declare-const", "<", ""]),
        st.lists(inner, max_size=4),
    ),
)


def held(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[*HealthCheck],
    )


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_valid_files_obey_the_law(name):
    for data in targets.seeds_of(name):
        targets.run(name, data)


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_changed_files_obey_the_law(name):
    files = targets.seeds_of(name)

    @held(SLOW.get(name, FEW))
    @given(st.integers(0, len(files) - 1), st.integers(1, 4), st.randoms(use_true_random=False))
    def hold(place, changes, rng):
        data = files[place]
        for _ in range(changes):
            data = mutations.mutate(mutations.FRAMES[name], data, rng)
        targets.run(name, data)

    hold()


@pytest.mark.parametrize("name", JSON)
def test_any_json_obeys_the_law(name):
    @held(20)
    @given(VALUES)
    def hold(value):
        targets.run(name, json.dumps(value).encode())

    hold()


@held(60)
@given(st.lists(EXPRESSIONS, max_size=6))
def test_any_expressions_obey_the_law(expressions):
    declared = "".join(f"(declare-const {name} Real)" for name in ("X_0", "Y_0", "Y_1"))
    targets.run("vnnlib", (declared + "\n".join(expressions)).encode())


@held(40)
@given(VALUES, st.booleans())
def test_any_requirements_obey_the_law(value, flow):
    text = json.dumps(
        {"requirements": [value], "model": "m", "title": value} if flow else value
    )  # JSON is YAML
    targets.run("yaml", text.encode())
    targets.run("toml", f"requirements = [{text}]".replace("null", "1").replace(":", "=").encode())
