"""Our matrix product beside OpenBLAS's on the shapes of the training step.

    pip install scipy-openblas32
    cmake -S . -B build -DFLATSTEP_BUILD_BENCH=ON && cmake --build build
    python bench/gemm.py build/bench/bench_gemm [--rounds 5] [--blas LIBRARY] [--json]

The two run in turn, each in a process of its own with all cores; a figure is the median over the
rounds. OpenBLAS chooses its kernels by itself: settings that force them are removed.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess


def default_blas():
    import scipy_openblas32

    return pathlib.Path(scipy_openblas32.get_lib_dir(), scipy_openblas32.get_library(fullname=True))


def run(command):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    lines = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return {row["use"]: row for row in map(json.loads, lines.stdout.splitlines())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", help="the built bench_gemm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blas", help="a shared CBLAS library [that of scipy-openblas32]")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blas = str(arguments.blas or default_blas())
    rounds = [(run([arguments.program]), run([arguments.program, blas]))
              for _ in range(arguments.rounds)]  # fmt: skip
    table = []
    for use, shape in rounds[0][0].items():
        ours = statistics.median(ours[use]["gflops"] for ours, _ in rounds)
        theirs = statistics.median(theirs[use]["gflops"] for _, theirs in rounds)
        row = {"use": use, "m": shape["m"], "n": shape["n"], "k": shape["k"]}
        table.append(row | {"flatstep": ours, "openblas": theirs, "ratio": round(ours / theirs, 2)})
    if arguments.json:
        print(json.dumps(table, indent=1))
        return
    print(f"{'product':30} {'m':>6} {'n':>6} {'k':>6} {'flatstep':>9} {'OpenBLAS':>9}  ratio")
    for row in table:
        print(
            f"{row['use']:30} {row['m']:6} {row['n']:6} {row['k']:6} {row['flatstep']:9.0f} "
            f"{row['openblas']:9.0f} {row['ratio']:6.2f}"
        )
    print("GF/s, medians; a ratio above 1 is for flatstep")


if __name__ == "__main__":
    main()
