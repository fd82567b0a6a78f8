"""Every traced module must compute what the module computes, and tracing what it runs as must give it again."""

import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.weightspace.architectures import ARCHITECTURES, ZOO
from weightspace.aten import AtenReader, Call
from weightspace.builder import NetworkBuilder
from weightspace.errors import ArchitectureError, CheckpointError, WeightspaceError
from weightspace.layers import Bilinear, BilinearMLP, GroupSort, Householder, Implicit, MaxMin
from weightspace.pt2_format import read_pt2
from weightspace.reading import read
from weightspace.tracing import trace


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        h = F.relu_(self.norm(self.stem(x)))
        h = h + self.inner(h)
        return self.head(F.adaptive_avg_pool2d(F.max_pool2d(h, 2), 1).flatten(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(13, 8)
        self.position = nn.Parameter(torch.randn(5, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 13, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens) + self.position[: tokens.shape[1]]))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(8, 6)
        self.norm = nn.RMSNorm(6)

    def forward(self, x):
        a, b = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(F.silu(a) * b) / 2 - 1


class HandWritten(nn.Module):
    """Parameters used as matrices, transposed, as factors; a buffer; sizes taken from the input."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 8))
        self.v = nn.Parameter(torch.randn(6, 8))
        self.b = nn.Parameter(torch.randn(6))
        self.gain = nn.Parameter(torch.randn(6, 1, 1))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]))

    def forward(self, x):
        h = x @ self.w.T + self.b
        g = torch.einsum("bi,oi->bo", x, self.v)
        cls = self.gain.expand(6, 2, 2).mean((1, 2)).expand(x.shape[0], -1)
        return torch.where(self.mask > 0, h * g, -g) + cls + torch.zeros(x.shape[0], 6)


class LastState(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Nonlinearities(nn.Module):
    def forward(self, x):
        parts = [
            f(x)
            for f in (torch.tanh, torch.sigmoid, F.gelu, F.silu, F.elu, F.selu, F.celu, F.softplus, torch.abs)
        ]
        parts += [F.leaky_relu(x, 0.1), F.hardtanh(x), F.relu6(x), F.hardswish(x), F.mish(x), torch.sin(x)]
        parts += [
            F.gelu(x, approximate="tanh"),
            F.softsign(x),
            F.logsigmoid(x),
            F.hardsigmoid(x),
            x**2,
            torch.exp(x),
        ]
        return torch.cat([*parts, F.softmax(x, -1), F.log_softmax(x, -1), torch.maximum(x, -x)], -1)


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)), (4,)),
    "nonlinearities": (Nonlinearities, (4,)),
    "residual": (Residual, (1, 8, 8)),
    "gated": (Gated, (3, 6)),
    "hand-written": (HandWritten, (8,)),
    "lstm": (LastState, (5, 3)),
    "bilinear": (lambda: Bilinear(4, 6, 3, bias=True), (4,)),
    "bilinear mlp": (lambda: BilinearMLP(4, 6, 3, layers=2, residual=True), (4,)),
    "norm-preserving": (
        lambda: nn.Sequential(nn.Linear(4, 12), MaxMin(), GroupSort(3), Householder(12, 4), nn.Linear(12, 2)),
        (4,),
    ),
    "implicit": (
        lambda: nn.Sequential(nn.Linear(4, 5), Implicit(5, 6, "LeakyReLU", 0.2), Implicit(6, 3, "Tanh", bias=False)),
        (4,),
    ),
    "conv 1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 3, padding="same", dilation=2), nn.PReLU(6), nn.GroupNorm(3, 6), nn.AvgPool1d(2),
            nn.ConvTranspose1d(6, 2, 3, stride=2, output_padding=1), nn.InstanceNorm1d(2), nn.Flatten(),
        ),
        (2, 8),
    ),
    "shuffles": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 6)), nn.Flatten(1), nn.LayerNorm(12), nn.ReflectionPad1d(1)),
        (12,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODULES)
def test_traced_network_computes_the_same(name, dtype, tmp_path):
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module = make().to(dtype).eval()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.3)
    network = trace(module, torch.randn(2, *shape, dtype=dtype))
    assert network.inputs[0].shape == (None, *shape)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for batch in (1, 5):
        x = torch.randn(batch, *shape, dtype=dtype)
        torch.testing.assert_close(network.to_module()(x), module(x), rtol=tolerance, atol=tolerance)
    assert set(network.state_dict()) >= set(module.state_dict())
    assert trace(network.to_module(), torch.randn(2, *shape, dtype=dtype)).hash == network.hash


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")
@pytest.mark.parametrize(
    "name", ["mlp", "residual", "gated", "bilinear", "norm-preserving", "implicit", "lstm"]
)
def test_exported_program_reads_as_the_traced_network(name, tmp_path):
    make, shape = MODULES[name]
    module = make().eval()
    example = torch.randn(2, *shape)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "m.pt2")
    network = read_pt2(tmp_path / "m.pt2")
    torch.testing.assert_close(network.to_module()(example), module(example), rtol=1e-6, atol=1e-6)
    assert network.hash == trace(module, example).hash


@pytest.mark.filterwarnings("ignore:The tensor attributes self.*recurrent")
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in ARCHITECTURES), *((name, torch.float32) for name in ZOO)],
)
def test_architectures_are_made_of_typed_operations(name, dtype, tmp_path):
    architecture = ARCHITECTURES[name]
    module = architecture.module(seed=1).to(dtype)
    inputs = architecture.inputs(dtype)
    network = trace(module, inputs)
    assert network.opaque == ()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    inputs = architecture.inputs(dtype, seed=2)
    torch.testing.assert_close(network.to_module()(*inputs), module(*inputs), rtol=tolerance, atol=tolerance)
    network.save(tmp_path / "network.safetensors")
    assert read(tmp_path / "network.safetensors").hash == network.hash
    if dtype == torch.float64 and name in ZOO:
        assert trace(network.to_module(), inputs).hash == network.hash


def test_warnings_of_a_module_do_not_change_its_description():
    class Remarking(nn.Module):
        def forward(self, x):
            warnings.warn("slow", stacklevel=1)
            return 2 * x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trace(Remarking(), torch.randn(3, 4)).inputs[0].shape == (None, 4)


def test_known_operations_are_typed_and_named():
    network = trace(Residual(), torch.randn(2, 1, 8, 8))
    kinds = [node.operation.kind for node in network.nodes]
    assert kinds == [
        "Input", "Conv", "BatchNorm", "ReLU", "Conv", "Add", "MaxPool", "AdaptiveAveragePool", "Flatten", "Linear"
    ]  # fmt: skip
    assert network.node("stem").operation.parameters == {"weight": "stem.weight", "bias": "stem.bias"}
    assert network.node("inner").operation.groups == 4
    assert {"norm.running_mean", "norm.running_var"} <= network.buffers


def test_tied_weights_are_one_parameter_with_an_alias():
    module = Tied().eval()
    network = trace(module, torch.zeros(2, 5, dtype=torch.int64))
    tokens = torch.randint(0, 13, (4, 5))
    torch.testing.assert_close(network.to_module()(tokens), module(tokens))
    assert dict(network.aliases) == {"head.weight": "embedding.weight"}
    assert set(network.state_dict()) == set(module.state_dict())
    again = network.to_module()
    assert again.state_dict()["head.weight"].data_ptr() == again.state_dict()["embedding.weight"].data_ptr()
    assert "Attention" in [node.operation.kind for node in network.nodes]


def test_unknown_operation_becomes_opaque_and_still_runs():
    class Cumulative(nn.Module):
        def forward(self, x):
            return torch.cumprod(x, 1).topk(2).values

    network = trace(Cumulative(), torch.randn(2, 5))
    assert [node.operation.attributes["name"] for node in network.opaque] == [
        "aten.cumprod.default",
        "aten.topk.default",
    ]
    x = torch.randn(3, 5)
    torch.testing.assert_close(network.to_module()(x), Cumulative()(x))


def test_trace_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
    module[0].eval()
    network = trace(module, torch.randn(2, 3))
    assert (module.training, module[0].training, module[1].training) == (True, False, True)
    assert [node.operation.kind for node in network.nodes] == ["Input", "Linear"]
    with torch.no_grad():
        module[0].weight.zero_()
    assert bool(network.parameters["0.weight"].any()), "the network owns copies"


def test_single_example_leaves_the_batch_open():
    assert trace(nn.Linear(3, 2), torch.randn(1, 3)).inputs[0].shape == (None, 3)


def test_unbatched_input():
    module = nn.Linear(3, 2)
    x = torch.randn(3)
    network = trace(module, x)
    assert network.inputs[0].shape == (3,)
    torch.testing.assert_close(network.to_module()(x), module(x))


def test_data_dependent_branch_is_refused_with_the_reason():
    with pytest.raises(ArchitectureError, match="Branches cannot be traced"):
        trace(Branches(), torch.randn(2, 3))


class Small(nn.Module):
    """A few parameters and buffers around a function given as an argument."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)
        self.w = nn.Parameter(torch.randn(4))
        self.register_buffer("count", torch.zeros(4))
        self.register_buffer("index", torch.tensor([-1, 0]))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def through_transpose(m, x):
    h = m.a(x)
    h.T.mul_(2)
    return h


def through_view(m, x):
    h = m.a(x)
    h.view_as(h).mul_(2)
    return h


def by_assignment(m, x):
    h = m.a(x).clone()
    h[:, 0] = 1.0
    return h


def by_slices(m, x):
    h = m.a(x).clone()
    h[:, 1:3] = m.w[:2]
    h[:, 0] += 1
    return h


def by_statistics(m, x):
    kernel = F.batch_norm(m.a.weight[None], None, None, m.w, training=True)
    return F.conv1d(x[:, None], kernel[0][:, None, :3], m.w, padding=1)


KEPT = {
    "single precision inside": lambda m, x: ((x @ m.w).float() / 3.7).exp().double() * 1000,
    "computed kernel": lambda m, x: F.conv1d(x[:, None], torch.tanh(m.a.weight)[:, None], m.w, padding=2),
    "computed transposed kernel": lambda m, x: F.conv_transpose1d(x[:, :, None], m.a.weight.exp()[..., None]),
    "standardized kernel": by_statistics,
    "computed group norm of images": lambda m, x: F.group_norm(x[..., None], 2, 1 + m.w, 1 - m.w),
    "computed batch norm of images": lambda m, x: F.batch_norm(
        x[..., None], m.count, 1 + m.count, 1 + m.w, m.w
    ),
    "assignment to slices": by_slices,
    "equation without a result": lambda m, x: torch.einsum("ij, kj", x, m.a.weight),
    "equation with dots": lambda m, x: torch.einsum("...i,oi->...o", x[:, None], m.a.weight),
    "roll and flip": lambda m, x: x.roll((1, -2), (1, 1)).flip(-1) + x.flip(0, 1),
    "take along": lambda m, x: torch.gather(m.a(x), 1, (x > 0).long()),
    "cumulative sum": lambda m, x: x.cumsum(-1) + (x > 0).cumsum(1),
    "largest with place": lambda m, x: torch.cat([t.float() for t in x.max(1, keepdim=True)], 1),
    "smallest": lambda m, x: x.min(1).values[:, None] + x.max() + torch.max(x, m.w),
    "repeated": lambda m, x: x.repeat(1, 2) + m.w.repeat(x.shape[0], 2) + m.w.repeat_interleave(2, 0),
    "repeated by the batch": lambda m, x: m.a.weight.repeat(2 * x.shape[0], 1),
    "range of the batch": lambda m, x: x + torch.arange(x.shape[0])[:, None],
    "differences": lambda m, x: x.diff(dim=1, prepend=x[:, :1]),
    "norm": lambda m, x: F.normalize(x, dim=-1) + x.norm(dim=0).sum(),
    "unshuffled pixels": lambda m, x: F.pixel_unshuffle(x.view(-1, 1, 2, 2), 2),
    "enlarged": lambda m, x: F.interpolate(x[:, None], size=7, mode="linear", align_corners=True),
    "smoothed": lambda m, x: F.interpolate(
        x.view(-1, 1, 2, 2), scale_factor=1.5, mode="bicubic", antialias=True
    ),
    "as another": lambda m, x: m.w[None].expand_as(x).reshape_as(x).multiply(x),
    "computed layer norm": lambda m, x: F.layer_norm(x, (4,), 1 + m.w, m.w),
    "computed rms norm": lambda m, x: F.rms_norm(x, (4,), 1 + m.w),
    "computed group norm": lambda m, x: F.group_norm(x, 2, 1 + m.w),
    "computed batch norm": lambda m, x: F.batch_norm(x, m.count, 1 + m.count, 1 + m.w),
    "write through transpose": through_transpose,
    "write through view": through_view,
    "assignment": by_assignment,
    "literal": lambda m, x: x * torch.tensor(2.0),
    "negative index": lambda m, x: x[:, m.index],
    "literal index": lambda m, x: x[:, torch.tensor([-1, 0])],
    "softmax in another dtype": lambda m, x: F.softmax(x, -1, dtype=torch.float64),
    "integer times float": lambda m, x: (x > 0).long() * 1.0 @ m.w,
    "integer plus 0-d": lambda m, x: (x > 0).long() + torch.tensor(1.5, dtype=torch.float64),
    "division by zero": lambda m, x: x / 0.0,
    "masked": lambda m, x: x.masked_fill(x > 0, -torch.inf),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_the_program_does_is_kept(name):
    torch.manual_seed(0)
    module = Small(KEPT[name]).eval()
    network = trace(module, torch.randn(3, 4))
    x = torch.randn(5, 4)
    expected = module(x.clone())
    torch.testing.assert_close(network.to_module()(x), expected, equal_nan=True)


class States(nn.Module):
    """Everything a recurrent layer hands back."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = recurrent

    def forward(self, x, *states):
        outputs, last = self.recurrent(x, states if len(states) > 1 else states[0] if states else None)
        return outputs, *(last if isinstance(last, tuple) else (last,))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.*recurrent")
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, "projected"])
def test_outputs_and_states_of_recurrent_layers(kind, bidirectional, given, dtype):
    torch.manual_seed(0)
    options = {"batch_first": True, "bidirectional": bidirectional, "num_layers": 2}
    recurrent = nn.LSTM(3, 4, proj_size=2, **options) if kind == "projected" else kind(3, 4, **options)
    module = States(recurrent).to(dtype).eval()
    x = torch.randn(3, 5, 3, dtype=dtype)
    states = [torch.randn_like(state) for state in module(x)[1:]] if given else []
    # Here axis 0 of a state counts layers, so only an input that starts with the batch leaves it open.
    network = trace(module, (x, *states))
    assert network.opaque == ()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for a, b in zip(network.to_module()(x, *states), module(x, *states), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    again = network.to_module()
    assert trace(again, (x, *states)).opaque == ()


def write_beside(m, x):
    h = m.a(x)
    F.dropout(h, 0.5, False).mul_(100.0)
    return m.b(F.relu(h))


REFUSED = {
    "write through an alias torch loses": (write_beside, "differs from the module's"),
    "write into a buffer": (lambda m, x: x + m.count.add_(1.0), "writes into 'count'"),
    "random numbers": (lambda m, x: x + torch.randn(4), "draws random numbers"),
    "a size as result": (lambda m, x: (x, x.shape[0]), "return tensors only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_described_is_refused(name):
    function, text = REFUSED[name]
    with pytest.raises(ArchitectureError, match=text):
        trace(Small(function).eval(), torch.randn(3, 4))


def test_wrong_arguments_are_refused():
    with pytest.raises(ArchitectureError, match=r"needs an nn.Module; got str"):
        trace("x", torch.zeros(1))
    with pytest.raises(ArchitectureError, match="needs a tensor"):
        trace(nn.Linear(2, 2), None)


def test_refusal_prints_nothing(capfd):
    with pytest.raises(ArchitectureError):
        trace(Branches(), torch.randn(2, 3))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_unbatched_convolution():
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.MaxPool1d(2))
    x = torch.randn(2, 9)
    torch.testing.assert_close(trace(module, x).to_module()(x), module(x))


# ---- .pt2 files that must not be trusted -----------------------------------------------------------------


def exported(tmp_path, change):
    """Export a small module and rewrite the archive member by member with `change(name, data)`."""
    import zipfile

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),)), buffer)
    path = tmp_path / "changed.pt2"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return path


def test_pickled_payload_is_refused(tmp_path):
    path = exported(tmp_path, lambda n, d: d.replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(CheckpointError, match=r"changed\.pt2: the payload of 'weight' is a pickle"):
        read_pt2(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda n, d: d[:-4] if n.endswith("weight_0") else d, "file damaged"),
        (lambda n, d: None if n.endswith("weight_0") else d, "is missing"),
        (lambda n, d: d[:100] if n.endswith("models/model.json") else d, "does not follow"),
        (lambda n, d: None if n.endswith("models/model.json") else d, "holds 0 models"),
        (
            lambda n, d: d.replace(b'"as_int": 2', b'"as_int": -2') if n.endswith("_config.json") else d,
            "negative",
        ),
        (lambda n, d: d.replace(b"aten.linear.default", b"aten.from_file.default"), "from_file"),
    ],
)
def test_damaged_archives_are_refused(tmp_path, change, text):
    with pytest.raises(WeightspaceError, match=rf"changed\.pt2: .*{text}"):
        read_pt2(exported(tmp_path, change))


def test_operators_on_files_are_not_run_on_constants_either(tmp_path):
    target = tmp_path / "created"
    call = {"filename": str(target), "shared": True, "size": 4}
    with pytest.raises(WeightspaceError, match="from_file"):
        AtenReader(NetworkBuilder()).read(Call("aten.from_file.default", call, "y", "y"))
    assert not target.exists()


def test_file_that_is_no_archive(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"not a zip")
    with pytest.raises(CheckpointError, match=r"a\.pt2: not a readable \.pt2 archive"):
        read_pt2(tmp_path / "a.pt2")
    with pytest.raises(CheckpointError, match="no such file"):
        read_pt2(tmp_path / "b.pt2")
