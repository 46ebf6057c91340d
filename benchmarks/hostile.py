"""Mutated inputs of every kind, many thousands: each must be accepted or refused in one line.

    python benchmarks/hostile.py --cases 10000

Every kind of tests/hostile/registry.py runs in its own process, so that a crash or a hang in a library is counted too.
Writes docs/evaluation/hostile.md with the counts; failures are printed and end the script with exit code 1. `--kinds`
runs some kinds and writes nothing.
"""

import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
from hostile.kind import LIMIT, check  # noqa: E402  # the tests' generators
from hostile.registry import KINDS  # noqa: E402

HEAD = """| kind | cases | accepted | refused | slowest case, s | peak memory, MiB |
| --- | ---: | ---: | ---: | ---: | ---: |"""


@dataclass(frozen=True)
class Arguments:
    """Draws cases of every kind and counts what becomes of them."""

    cases: int = 10_000
    """Cases of all kinds together; each kind gets at least its number in continuous integration."""
    seed: int = 1
    """Seed of the cases."""
    kinds: tuple[str, ...] = ()
    """Names or beginnings of names of kinds; empty: all."""
    alone: str = ""
    """Kind that this process runs itself, for the processes that the script starts."""
    out: Path = ROOT / "docs" / "evaluation" / "hostile.md"
    """File of the counts."""


def run_alone(name: str, cases: int, seed: int) -> str:
    """The row of a kind, run in this process."""
    counts = check(KINDS[name], cases, seed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    total = counts.accepted + counts.refused
    return f"| {name} | {total} | {counts.accepted} | {counts.refused} | {counts.slowest:.2f} | {peak:.0f} |"


def run_child(name: str, cases: int, seed: int) -> str:
    """The row of a kind, run in a process that may crash or hang; raises `RuntimeError` with its last lines."""
    command = [sys.executable, __file__, "--alone", name, "--cases", str(cases), "--seed", str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=cases * 2 + 10 * LIMIT)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{name}: a case hangs") from error
    if done.returncode:
        raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout.splitlines()[-1]


def main(arguments: Arguments) -> int:
    if arguments.alone:
        print(run_alone(arguments.alone, arguments.cases, arguments.seed))
        return 0
    names = [name for name in KINDS if not arguments.kinds or name.startswith(arguments.kinds)]
    rows: list[str] = []
    failures = 0
    print(HEAD)
    for name in names:
        cases = max(KINDS[name].cases, -(-arguments.cases * KINDS[name].cases // _all_cases(names)))
        try:
            rows.append(run_child(name, cases, arguments.seed))
            print(rows[-1], flush=True)
        except RuntimeError as error:
            failures += 1
            print(error, file=sys.stderr)
    if not failures and not arguments.kinds:
        arguments.out.write_text(_report(rows, arguments))
    return 1 if failures else 0


def _all_cases(names: list[str]) -> int:
    return sum(KINDS[name].cases for name in names)


def _report(rows: list[str], arguments: Arguments) -> str:
    total = sum(int(re.split(r" *\| *", row)[2]) for row in rows)
    return (
        f"# Mutated input\n\n"
        f"`python benchmarks/hostile.py --cases {arguments.cases} --seed {arguments.seed}` draws files and values of\n"
        f"{len(rows)} kinds from the strategies in `tests/hostile/` and hands them to the package. Each of the\n"
        f"{total} cases was accepted or refused with one line; none ended in another exception, took longer than\n"
        f"{LIMIT:g} s, left an unfinished file or ended the process.\n\n{HEAD}\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
