"""The compiled part: the eigensolver for many small matrices, built once per instruction set.

The results are plain C libraries, without Python in them; `kernels/_backends/simd.py` loads the one the processor can
run. They are optional: on a machine without a compiler, or with another processor, torch solves instead.
"""

from pathlib import Path

from setuptools import Extension, setup

LANES = "kernels/_backends/lanes"
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
INSTRUCTION_SETS = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
}

setup(
    ext_modules=[
        Extension(
            f"kernels._backends._simd_{name}",
            sources=[f"{LANES}/float32.c", f"{LANES}/float64.c"],
            depends=[path.as_posix() for path in Path(LANES).glob("*.h")],
            extra_compile_args=[*FLAGS, *flags],
            libraries=["m", "pthread"],
            optional=True,
        )
        for name, flags in INSTRUCTION_SETS.items()
    ]
)
