"""Fuzz readers by coverage: python -m tests.fuzzing.run NAME.. [--seconds 60] [--runs N] [--corpus FOLDER].

Needs atheris (Linux). Without a name the targets are listed; several, or `all`, run one after the other in processes
of their own. An input that breaks the law ends its run with a traceback and exit status 1, and is written to
`--findings FOLDER`; with `--go-on` the run continues and writes one input for every place in the code where the law
was broken. With `--replay FILE` the law is held on that one file, without atheris.
"""

import argparse
import faulthandler
import os
import sys
import traceback
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

PACKAGES = ["weightspace", "certify", "interp"]
READERS = [
    "weightspace.archives", "weightspace.aten", "weightspace.aten_rules", "weightspace.builder",
    "weightspace.checkpoint", "weightspace.huggingface", "weightspace.inspection", "weightspace.network",
    "weightspace.onnx_folding", "weightspace.onnx_format", "weightspace.onnx_graph",
    "weightspace.onnx_reader", "weightspace.onnx_rules", "weightspace.operations", "weightspace.pt2_format",
    "weightspace.reading", "weightspace.state_dicts", "weightspace.symmetry_spec", "weightspace.zoo.storage",
    "weightspace.zoo.standardization", "certify.assurance", "certify.certificate", "certify.checker",
    "certify.checking", "certify.region_files", "certify.regions", "interp.adapters",
    "interp.autoencoders.formats", "interp.autoencoders.sources",
]  # fmt: skip  # of which the coverage counts


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing.run", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="how long each; 60")
    parser.add_argument("--runs", type=int, default=-1, help="at most so many inputs each")
    parser.add_argument("--seed", type=int, default=0, help="of the random choices; 0 draws one")
    parser.add_argument("--corpus", type=Path, help="a folder of inputs that is read and added to")
    parser.add_argument(
        "--findings", type=Path, default=Path(), help="where inputs that break the law are written"
    )
    parser.add_argument("--go-on", action="store_true", help="do not end at the first of them")
    parser.add_argument("--replay", type=Path, help="hold the law on this file alone")
    chosen = parser.parse_args(arguments)
    if not chosen.names or chosen.replay:
        from tests.fuzzing import targets

        if chosen.replay:
            targets.run(chosen.names[0], chosen.replay.read_bytes())
        else:
            sys.stdout.write("\n".join(targets.TARGETS) + "\n")
        return 0
    import atheris
    import torch  # not instrumented

    torch.set_num_threads(1)
    with atheris.instrument_imports(include=READERS):
        from tests.fuzzing import targets

        names = [*targets.TARGETS] if chosen.names == ["all"] else chosen.names
        for name in names:  # what is imported late is instrumented too, and counts for no input
            targets.TARGETS[name](targets.seeds_of(name)[0])
    return max(_in_a_process_of_its_own(name, chosen) for name in names)


def _in_a_process_of_its_own(name: str, chosen: argparse.Namespace) -> int:
    child = os.fork()
    if child == 0:
        _fuzz(name, chosen)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fuzz(name: str, chosen: argparse.Namespace) -> None:
    import atheris

    from tests.fuzzing import mutations, targets

    def change(data: bytes, largest: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.4:
            return atheris.Mutate(data, largest)
        return mutations.mutate(mutations.FRAMES[name], data, rng)[:largest]

    with TemporaryDirectory() as folder:
        corpus = (chosen.corpus or Path(folder)) / name
        corpus.mkdir(parents=True, exist_ok=True)
        chosen.findings.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(targets.seeds_of(name)):
            (corpus / f"seed-{number}").write_bytes(data)
        settings = [
            f"-max_total_time={chosen.seconds}", f"-runs={chosen.runs}", f"-seed={chosen.seed}", "-timeout=0",
            "-rss_limit_mb=4096", "-max_len=200000", f"-artifact_prefix={chosen.findings}/", "-print_final_stats=1",
            "-len_control=0", "-verbosity=0",
        ]  # fmt: skip
        sys.stderr.write(f"== {name}\n")
        hold = Findings(name, chosen.findings, chosen.go_on).hold
        atheris.Setup([sys.argv[0], *settings, str(corpus)], hold, custom_mutator=change)
        atheris.Fuzz()


class Findings:
    """Inputs that break the law, one for every place in the code."""

    def __init__(self, name: str, folder: Path, go_on: bool):
        self.name, self.folder, self.go_on = name, folder, go_on
        self.places: set[str] = set()

    def hold(self, data: bytes) -> None:
        from tests.fuzzing import law, targets

        # What hangs outside of Python meets no signal handler; libFuzzer's own alarm is the one that `limits` takes.
        faulthandler.dump_traceback_later(2 * law.SECONDS, exit=True, file=sys.__stderr__)
        try:
            targets.run(self.name, data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in PACKAGES)]
            last = (ours or frames)[-1]
            place = f"{type(error).__name__}-{Path(last.filename).stem}-{last.lineno}"
            if place not in self.places:
                self.places.add(place)
                (self.folder / f"{self.name}-{place}").write_bytes(data)
                traceback.print_exc()
            if not self.go_on:
                sys.stderr.flush()
                os._exit(1)  # libFuzzer would call it a crash of its own
        finally:
            faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
