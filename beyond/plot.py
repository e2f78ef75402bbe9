"""Curves of runs: loss and accuracy over the steps, as one picture.

    python -m beyond.plot runs/kgi-fr runs/kgi-es

It needs matplotlib, which is an extra (requirements-plot.txt).
"""

from configs import UserError, argument, setting  # isort: split

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beyond.synonyms import Alignment
from data import TASKS
from support.files import check_output_file, name_of, write_atomic
from support.programs import run_command
from support.reports import read_metrics
from support.texts import replace_surrogates

MADE_BY = "KGI, a program for UMLS-KGI-BERT"  # in each picture
PICTURE = f"(?s).*{MADE_BY}".encode()  # how ours are recognised; see check_output


@dataclass
class Plot:
    """Draw loss and accuracy over the steps of one or several runs, as one picture."""

    runs: list[str] = argument("RUN", "run folders", many=True)
    out: str = setting("", "the picture (.png, .pdf or .svg); default curves.png, of one run in its folder")


def plot(s):
    """Draws the curves of runs."""
    print(draw_curves([Path(run) for run in s.runs], s.out))


def draw_curves(runs, out):
    """Draws loss and accuracy of each task over the steps, of one or several runs, as one picture.

    Args: runs: run folders. out: the picture, "" for the default. Returns: the path of the picture.
    """
    records_of = {}
    for run in runs:
        path = run / "metrics.jsonl"
        if not path.is_file():
            raise UserError(f"{path} not found; is {run} a run folder?")
        records, n_damaged = read_metrics(path)
        if n_damaged:
            print(f"{path}: {n_damaged:,} damaged lines are left out")
        if not any("valid" in r for r in records):
            raise UserError(f"{path}: no validation in it yet")
        records_of[run] = records
    found = {key for records in records_of.values() for r in records for key in (*r, *r.get("valid", ()))}
    tasks = [task for task in (*TASKS, Alignment) if f"{task.name}_loss" in found]
    figure, colours = blank_figure((16, 8)), distinct_colours(len(records_of))
    axes = figure.subplots(2, len(tasks), sharex=True, squeeze=False)
    for (i, j), ax in np.ndenumerate(axes):
        key, unit = f"{tasks[j].name}_{('loss', 'accuracy')[i]}", (1, 100)[i]
        for records, colour in zip(records_of.values(), colours):
            train = [(r["step"], unit * r[key]) for r in records if key in r]
            valid = [(r["step"], unit * r["valid"][key]) for r in records if key in r.get("valid", ())]
            if train:
                ax.plot(*zip(*train), color=colour, alpha=0.4)
            if valid:
                ax.plot(*zip(*valid), color=colour, marker="o")
        ax.grid(alpha=0.4)
        ax.tick_params(labelbottom=True)
        ax.set(**{"xlabel": "step"} if i else {"title": tasks[j].title})
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("accuracy (%)")
    add_legend(figure, names_of_runs(records_of), colours, "held out (pale: training)")
    out = Path(out or (runs[0] / "curves.png" if len(runs) == 1 else "curves.png"))
    kind = out.suffix[1:].lower()
    if kind not in ("png", "pdf", "svg"):
        raise UserError(f"--out {out}: must end in .png, .pdf or .svg")
    check_output_file(out, PICTURE)
    made_by = {"Software" if kind == "png" else "Creator": MADE_BY}
    write_atomic(out, lambda f: figure.savefig(f, format=kind, metadata=made_by))
    return out


def names_of_runs(runs):
    """The name of each run folder, or its path where two have the same name."""
    names = [name_of(run) for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs)]


# ---------------------------------------------------------------- pictures


def blank_figure(size):
    """A figure of matplotlib, which is an extra, as fine as print needs it. size: in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("drawing needs matplotlib: pip install -r requirements-plot.txt") from None
    return Figure(size, dpi=200, layout="constrained")


def distinct_colours(n):
    """n different colours: the ten of matplotlib, then the same ones darker and darker."""
    from matplotlib.colors import to_rgb

    return [tuple(0.6 ** (i // 10) * x for x in to_rgb(f"C{i % 10}")) for i in range(n)]


def add_legend(figure, names, colours, title=""):
    """Adds a legend below the axes: a dot of each colour with its name."""
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], color=colour, marker="o", linestyle="") for colour in colours]
    figure.legend(dots, [*map(as_drawn, names)], loc="outside lower center", title=title, ncols=4)


def as_drawn(name):
    """The name of a file as matplotlib shows it: Unicode, $ is no formula, and _ at its beginning hides no label."""
    return (" " * name.startswith("_") + replace_surrogates(name)).replace("$", r"\$")


COMMANDS = {"plot": (plot, Plot)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="plot")
