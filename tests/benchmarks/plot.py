"""The plot of each contender's figures against the number of gates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, ScalarFormatter

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.report import MEASURES

#: Colours that can be told apart on white and on black, and with red-green colour blindness.
STYLES = {
    "ours_classic": ("#2b83ba", "o", "-"),
    "ours_end": ("#2b83ba", "s", "--"),
    "ours_start_end": ("#2b83ba", "D", ":"),
    "ours_no_xcom": ("#2b83ba", "v", "-."),
    "http_sensor": ("#e66101", "o", "-"),
    "http_event_trigger": ("#b2559b", "s", "--"),
}
GREY = "#808080"
#: The lower ends of logarithmic axes. Smaller figures are drawn there.
FLOORS = {"triggerer_cpu_per_minute": 0.1, "triggerer_memory": 1.0}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw an SVG without a background, which can be read on light and dark pages."""
    plt.rcParams.update(
        {
            "svg.hashsalt": "benchmark",  # the same figures make the same file
            "svg.fonttype": "none",
            "font.size": 9,
            "text.color": GREY,
            "axes.edgecolor": GREY,
            "axes.labelcolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
        }
    )
    names = [name for name in MEASURES if name != "seconds_to_all_waiting"]
    gates = sorted({row["gates"] for row in result["measured"]})
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for axis, field in zip(axes.flat, names, strict=True):
        for contender in CONTENDERS:
            rows = [row for row in result["measured"] if row["dag"] == contender.dag]
            colour, marker, line = STYLES[contender.dag]
            axis.plot(
                [row["gates"] for row in rows],
                [max(row[field], FLOORS.get(field, row[field])) for row in rows],
                color=colour,
                marker=marker,
                markersize=4,
                linestyle=line,
                label=contender.name,
            )
        axis.set_title(MEASURES[field][0], fontsize=10)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator(gates))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(ScalarFormatter())
        if field == "worker_starts_per_gate":
            axis.set_ylim(-0.1, 2.2)
            axis.set_yticks([0, 1, 2])
        else:
            axis.set_yscale("log", nonpositive="clip")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(color=GREY, alpha=0.25, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.patch.set_alpha(0)
    for axis in axes[-1]:
        axis.set_xlabel("gates")
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
