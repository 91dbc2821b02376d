"""Learning curves of training runs as one picture: training loss, and held-out bits per byte of every source.

    python -m tools.plot_runs work/study/runs/high work/study/runs/low --output curves.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from megatron_ext.errors import UserError, exit_on_user_error


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    """Read each run's metrics.jsonl (of a run that is going on, too) and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--output", type=Path, required=True, help="picture: .png, .svg or .pdf")
    arguments = parser.parse_args(argv)
    plot({run.name: read_metrics(run) for run in arguments.runs}, arguments.output)
    print(f"{len(arguments.runs)} runs -> {arguments.output}")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The events of a run. Raises UserError when it has none."""
    path = run / "metrics.jsonl"
    if not path.exists():
        raise UserError(f"{path} does not exist; name the folder of a training run that has begun")
    # A line that is being written has no end yet.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
            if line.endswith("\n")]


def plot(runs: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """One panel for the training loss, one for the validation sources."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    training, validation = figure.subplots(1, 2)
    for name, events in runs.items():
        trained = [event for event in events if event["event"] == "train"]
        tokens_at = {0: 0} | {event["iteration"]: event["tokens"] for event in events if "tokens" in event}
        training.plot([event["tokens"] for event in trained], [event["loss"] for event in trained], label=name,
                      linewidth=1)
        validated = [event for event in events if event["event"] == "validation"]
        for source in dict.fromkeys(source for event in validated for source in event["sources"]):
            points = [(tokens_at[event["iteration"]], event["sources"][source]["bits_per_byte"])
                      for event in validated if source in event["sources"]]
            validation.plot(*zip(*points, strict=True), label=f"{name}: {source}", marker="o", markersize=3)
    for axes, title, unit in ((training, "training loss", "nats per token"), (validation, "held-out", "bits per byte")):
        axes.set(title=title, xlabel="tokens", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
