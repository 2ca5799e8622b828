"""`qvl report`."""

from __future__ import annotations

from pathlib import Path


def report(runs: list[str], *, out: Path | None = None) -> None:
    """Writes a self-contained page about a run, or about several side by side: sizes, tokens per picture, seconds of
    training, scores, curves, and answers to the same questions.

    Args:
        runs: folders of runs.
        out: file to write, for several runs (default: comparison.html beside the first run's folder).
    """
    from qvl.viz.compare import write_comparison
    from qvl.viz.report import write_report

    if len(runs) == 1:
        if out is not None:
            raise ValueError(f"--out is for several runs; the report of one is {Path(runs[0]) / 'report.html'}")
        print(f"Report: {write_report(runs[0])}")
    else:
        print(f"Report: {write_comparison(runs, out or Path(runs[0]).parent / 'comparison.html')}")
