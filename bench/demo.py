"""What `make demo` takes: seconds from the first line to the finished report, and the most memory on the way.

    python -m bench.demo --minutes 3                       a throw-away run
    python -m bench.demo --config recipes/tiny_qwen_vl.yaml
    python -m bench.demo --make                            in a fresh clone, environment included

Memory is that of the command and all it starts (ranks, data workers), once a second: the sum of their proportional set
sizes, so that a page which several of them share counts once. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from bench.record import record
from qvl.viz.run import FINAL, read_run

ROOT = Path(__file__).parent.parent
_MADE = "recipes/tiny.yaml"


def memory_bytes(command: psutil.Process) -> int:
    """Proportional set size of the process and its descendants; one that ends while it is asked counts nothing."""
    total = 0
    for process in (command, *command.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return total


def watch(command: list[str], cwd: Path) -> tuple[float, int]:
    """Seconds and most bytes of a command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    started = time.perf_counter()
    most = 0
    with subprocess.Popen(command, cwd=cwd) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            most = max(most, memory_bytes(process))
            time.sleep(1.0)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return time.perf_counter() - started, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--config", default=_MADE, help=f"recipe (default: {_MADE}, that of `make demo`)")
    parser.add_argument("--run", type=Path, help="keep the run here (default: thrown away)")
    parser.add_argument("--make", action="store_true", help="`make demo` in a fresh clone of this commit")
    args = parser.parse_args()
    if args.make and args.config != _MADE:
        parser.error(f"--make measures `make demo`, which trains {_MADE}: leave --config {args.config} or --make out")
    with tempfile.TemporaryDirectory() as scratch:
        run = (args.run or Path(scratch) / "run").resolve()
        cwd = ROOT
        command = [sys.executable, "-m", "qvl", "demo", "--config", args.config, "--minutes", f"{args.minutes:g}"]
        command += ["--run", str(run)]
        if args.make:
            cwd = Path(scratch) / "clone"
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(cwd)], check=True)
            command = ["make", "demo", f"MINUTES={args.minutes:g}", f"RUN={run}"]
        seconds, most = watch(command, cwd)
        tasks = read_run(run).evals[FINAL]["tasks"]
    scores = {name: round(task["metrics"][task["headline"]]["value"], 3) for name, task in tasks.items()}
    case = f"{'make demo' if args.make else args.config}, {args.minutes:g} minutes"
    taken = {"minutes_in_all": round(seconds / 60, 1), "peak_gb": round(most / 1e9, 2)}
    print(record("demo", {"case": case, **taken, **scores}))


if __name__ == "__main__":
    main()
