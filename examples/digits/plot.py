"""The picture: accuracy by round, against what training on the pooled data reaches.

Decides how the plot looks. It draws into a file alone, so it needs no screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def save(path: Path, accuracies: Sequence[float], pooled: float) -> None:
    """Writes a PNG; ``accuracies`` holds one number for each round, the first one's first."""
    # Not before there is something to draw. Not pyplot: this draws with Agg, whatever the machine has.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    rounds = range(1, len(accuracies) + 1)
    axes.plot(rounds, accuracies, marker="o", markersize=4, label=f"federated: {accuracies[-1]:.3f}")
    axes.axhline(pooled, color="black", linestyle="--", linewidth=1, label=f"pooled data: {pooled:.3f}")
    axes.set_title("Handwritten digits: accuracy on held-out images", loc="left")
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy")
    axes.set_ylim(top=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
