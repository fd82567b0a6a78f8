"""A training step of a TopK autoencoder against the libraries people use, at equal work.

    OMP_NUM_THREADS=1 python benchmarks/autoencoder_step.py

d = 256, 4096 latents, k = 32, batches of 2048, one thread; a step is the forward and backward pass, the gradient
projected onto the sphere of each decoder feature, Adam, and features rescaled to norm 1. dictionary-learning clips
gradients besides, so it is compared with our step that clips too. Then all train on the same batches from the same
weights at the same rate, and their fraction of variance unexplained on other samples is compared. A library that is not
installed (`pip install -e ".[benchmark]" -c constraints.txt`) is skipped by name. On a GPU: d = 2304, 65,536 latents,
k = 64, against sparsify's Triton kernels.
"""

import argparse
import importlib
import os
from collections.abc import Callable

import torch
from measure import interleaved, write
from torch import Tensor, nn

import kernels
from interp import SparseAutoencoder, TopK

RATE = 4e-4


class Plain(nn.Module):
    """The textbook: relu, topk, scatter, two matrix products."""

    def __init__(self, d: int, latents: int, k: int):
        super().__init__()
        self.k = k
        self.encoder = nn.Linear(d, latents)
        self.decoder_weight = nn.Parameter(torch.empty(latents, d))
        self.decoder_bias = nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x - self.decoder_bias).relu()
        values, places = h.topk(self.k, sorted=False)
        codes = torch.zeros_like(h).scatter_(1, places, values)
        return codes @ self.decoder_weight + self.decoder_bias


Step = Callable[[Tensor], None]
Error = Callable[[Tensor], Tensor]


def ours(start: SparseAutoencoder, clip: float | None) -> tuple[Step, Error]:
    model = SparseAutoencoder(**start.configuration(), device=start.decoder_weight.device)
    model.load_state_dict(start.state_dict())
    optimizer = model.make_optimizer(RATE)

    def step(x: Tensor) -> None:
        loss = model.loss(x)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        model.after_backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        model.after_step(optimizer)

    return step, lambda x: (model.eval()(x) - x).square().sum()


def plain(start: SparseAutoencoder, k: int) -> tuple[Step, Error]:
    latents, d = start.decoder_weight.shape
    model = Plain(d, latents, k).to(start.decoder_weight.device)
    with torch.no_grad():
        model.encoder.weight.copy_(start.encoder_weight)
        model.encoder.bias.zero_()
        model.decoder_weight.copy_(start.decoder_weight)
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        (model(x) - x).square().sum(1).mean().backward()
        with torch.no_grad():
            weight, gradient = model.decoder_weight, model.decoder_weight.grad
            assert gradient is not None
            gradient -= (gradient * weight).sum(1, keepdim=True) * weight
            optimizer.step()
            weight /= weight.norm(dim=1, keepdim=True)

    return step, lambda x: (model(x) - x).square().sum()


def dictionary_learning(start: SparseAutoencoder, k: int) -> tuple[Step, Error]:
    trainers = importlib.import_module("dictionary_learning.trainers.top_k")
    latents, d = start.decoder_weight.shape
    device = str(start.decoder_weight.device)
    trainer = trainers.TopKTrainer(
        steps=10**6, activation_dim=d, dict_size=latents, k=k, layer=0, lm_name="none", lr=RATE, warmup_steps=0,
        device=device,
    )  # fmt: skip
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(start.encoder_weight)
        trainer.ae.decoder.weight.copy_(start.decoder_weight.mT)
    taken = iter(range(1, 10**6))  # step 0 would set the bias to the geometric median: not part of a step
    return lambda x: trainer.update(next(taken), x), lambda x: (trainer.ae(x) - x).square().sum()


def sparsify(start: SparseAutoencoder, k: int) -> tuple[Step, Error]:
    library = importlib.import_module("sparsify")
    latents, d = start.decoder_weight.shape
    config = library.SparseCoderConfig(num_latents=latents, k=k)
    model = library.SparseCoder(d, config, device=start.decoder_weight.device)
    with torch.no_grad():
        model.encoder.weight.copy_(start.encoder_weight)
        model.encoder.bias.zero_()
        model.W_dec.copy_(start.decoder_weight)
        model.b_dec.zero_()
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        model(x).fvu.backward()
        model.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        model.set_decoder_norm_to_unit_norm()

    return step, lambda x: (model(x).sae_out - x).square().sum()


def samples(count: int, d: int, latents: int, k: int, seed: int, device: str) -> Tensor:
    """Sparse combinations of planted features whose frequencies fall as a power of their rank, and noise."""
    generator = torch.Generator().manual_seed(0)
    features = nn.functional.normalize(torch.randn(latents, d, generator=generator))
    frequency = torch.arange(1, latents + 1.0).pow(-0.7)
    generator.manual_seed(seed)
    parts = []
    for _ in range(0, count, 2048):
        active = torch.multinomial(frequency.expand(2048, latents), k, generator=generator)
        codes = torch.zeros(2048, latents).scatter_(1, active, torch.rand(2048, k, generator=generator) + 0.5)
        parts.append(codes @ features + 0.02 * torch.randn(2048, d, generator=generator))
    return torch.cat(parts)[:count].to(device)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=120, help="of the training that compares FVU")
    steps = parser.parse_args().steps
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    d, latents, k, batch = (2304, 65536, 64, 4096) if gpu else (256, 4096, 32, 2048)
    if not gpu and os.environ.get("OMP_NUM_THREADS") != "1":
        print("set OMP_NUM_THREADS=1: threads on shared cores measure the neighbors")
    start = SparseAutoencoder(d, latents, TopK(k), device=device)
    makers: dict[str, Callable[[], tuple[Step, Error]]] = {
        "ours": lambda: ours(start, None),
        "ours, clipping": lambda: ours(start, 1.0),
        "plain PyTorch": lambda: plain(start, k),
        "dictionary-learning": lambda: dictionary_learning(start, k),
        "sparsify": lambda: sparsify(start, k),
    }
    made = {}
    for name, make in makers.items():
        try:
            made[name] = make()
        except (ImportError, RuntimeError) as error:  # torchvision of another build raises the second
            print(f"{name} is skipped: {error}")
    train, test = samples(16 * batch, d, latents, k, 1, device), samples(2048, d, latents, k, 2, device)
    wait = torch.cuda.synchronize if gpu else lambda: None
    x = train[:batch]
    runs = {name: lambda step=step: (step(x), wait()) for name, (step, _) in made.items()}
    seconds = interleaved(runs, repeats=15, warmups=3)
    rows = []
    errors = {}
    for name in made:
        step, error = makers[name]()
        for i in range(steps):
            step(train[i % 16 * batch :][:batch])
        with torch.no_grad():
            errors[name] = float(error(test) / (test - test.mean(0)).square().sum())
    for name in made:
        fair = "ours, clipping" if name == "dictionary-learning" else "ours"
        rows.append(
            {
                "device": device, "d": d, "latents": latents, "k": k, "batch": batch, "method": name,
                "milliseconds": 1e3 * seconds[name], "over ours": seconds[name] / seconds[fair],
                "fvu": errors[name], "samples": steps * batch,
            }
        )  # fmt: skip
    h = torch.randn(batch, latents, device=device)
    choices = {
        "select_largest": lambda: kernels.select_largest(h, k),
        "torch.topk": lambda: h.topk(k, sorted=False),
    }
    times = interleaved({name: lambda run=run: (run(), wait()) for name, run in choices.items()}, repeats=25)
    for name in choices:
        row = {"device": device, "latents": latents, "k": k, "batch": batch, "method": name}
        ratio = times[name] / times["select_largest"]
        rows.append({**row, "milliseconds": 1e3 * times[name], "over ours": ratio})
    packages = {"dictionary-learning": "dictionary-learning", "sparsify": "eai-sparsify"}
    write(
        "autoencoder_step" + ("_gpu" if gpu else ""),
        rows,
        "torch",
        *(packages[name] for name in made if name in packages),
    )


if __name__ == "__main__":
    main()
