"""A map of terms: a point for each, a colour for each semantic group, and some of their names."""

from itertools import islice

import numpy as np

from beyond.plot import MADE_BY, PICTURE, add_legend, as_drawn, blank_figure, distinct_colours
from configs import UserError
from support.files import check_output, made_folder, write_atomic


def draw_map(path, points, groups, strings, shares, title, signature):
    """Draws terms as points, a colour for each semantic group, some of them with their names.

    Args:
        path: the picture, a .png. points: (n, 2). groups: the name of the group of each term. strings: the terms.
        shares: (n,) of the neighbours of each term the share of its group: those with the highest get their names.
        signature: of the checkpoint, which is kept in the picture.
    """
    figure, groups = blank_figure((10, 11)), np.array(groups)
    names, size = np.unique(groups, return_counts=True)
    names = names[np.argsort(-size, kind="stable")]
    ax, colours, legend, taken = figure.subplots(), distinct_colours(len(names)), [], []
    for name, colour in zip(names, colours):  # the rare ones above
        x, y = points[groups == name].T
        ax.scatter(x, y, s=8, alpha=0.6, linewidths=0, color=colour)
        legend.append(f"{name} ({len(x):,})")
    ax.set(xlabel="t-SNE axis 1", ylabel="t-SNE axis 2", xticks=[], yticks=[])  # their units mean nothing
    ax.set_title(as_drawn(title), fontsize=10)
    add_legend(figure, legend, colours)
    figure.draw_without_rendering()  # labels need the final layout
    for name, colour in [*zip(names, colours)][::-1]:  # the rare ones first, as they have the least room
        rows = sorted(np.flatnonzero(groups == name), key=lambda i: (len(strings[i]) > 30, -shares[i]))[:50]
        fitting = (i for i in rows if label_term(ax, strings[i], points[i], colour, taken))
        list(islice(fitting, 3))
    made_by = {"Software": MADE_BY, "Source": signature}
    with made_folder(path.parent):
        write_atomic(path, lambda f: figure.savefig(f, format="png", metadata=made_by))


def label_term(ax, text, point, colour, taken):
    """Writes a term beside its point if there is room. taken: the boxes of other terms, which grows. Returns: if so."""
    for x, y, ha, va in ((0, 4, "center", "bottom"), (0, -4, "center", "top"), (5, 0, "left", "center"),
                         (-5, 0, "right", "center")):  # fmt: skip
        label = ax.annotate(
            as_drawn(text if len(text) <= 30 else text[:29] + "…"), point, (x, y), textcoords="offset points",
            fontsize=9, ha=ha, va=va, color=[0.6 * x for x in colour],
            bbox={"pad": 0.5, "color": "white", "alpha": 0.75, "linewidth": 0},
        )  # fmt: skip
        box = label.get_window_extent()
        if all(ax.bbox.contains(*x) for x in (box.min, box.max)) and not any(box.overlaps(x) for x in taken):
            ax.plot(*point, "o", markersize=4, color=colour, markeredgecolor="black", markeredgewidth=0.6, zorder=4)
            taken.append(box)
            return True
        label.remove()
    return False


def check_picture(path, signature):
    """Raises UserError if a picture that draw_map would replace is of another checkpoint."""
    check_output(path, PICTURE)
    if path.exists() and f"Source\0{signature}".encode() not in path.read_bytes():
        raise UserError(f"{path} is of another checkpoint, or of this one before more training; choose another --out")
