"""Reports of a run: its curves, its model card, and metrics.jsonl with damaged lines."""

import json
import os
import re
import shlex
import struct
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import data
from beyond import evaluate, maps, plot, tag
from configs import UserError, command_line
from support import builds, files, reports, runs
from tests import demo_report
from tests.conftest import ROOT, run_command
from tests.training import set_up, train

pytestmark = pytest.mark.usefixtures("known_machine")


@pytest.fixture(scope="module")
def baseline(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports") / "one"
    train(dataset, out)
    return out


def test_plot_draws_the_curves_of_runs(baseline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_command(plot, baseline, baseline, "--out", "two.png")
    run_command(plot, baseline, "--out", "two.png")  # again
    assert capsys.readouterr().out == "two.png\n" * 2 and (tmp_path / "two.png").read_bytes()[1:4] == b"PNG"
    (tmp_path / "mine.png").write_text("a scan")
    for argv, message in (
        ([], "required: RUN"),
        (["nowhere"], "nowhere/metrics.jsonl not found; is nowhere a run folder"),
        (["--in"], "unknown setting 'in'"),
        ([baseline, "--out", "two.gif"], "--out two.gif: must end in .png, .pdf or .svg"),
        ([baseline, "--out", "mine.png"], "mine.png is not an output of this command"),
    ):
        with pytest.raises(UserError, match=message):
            run_command(plot, *argv)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="needs matplotlib: pip install -r requirements-plot.txt"):
        run_command(plot, baseline)


@pytest.mark.parametrize("name, shown", [
    (b"caf\xe9", "caf\ufffd"), (b"_x", " _x"), (b"a $b$", "a $b$"), (b"x$\\frac$", "x$\\frac$"),
    ("caf\u00e9".encode(), "caf\u00e9"),
])  # fmt: skip
def test_any_name_of_a_run_is_drawn(tmp_path, name, shown):
    """One that is not UTF-8, one that matplotlib would take for a formula, and one that it would leave out."""
    run = tmp_path / os.fsdecode(name)
    run.mkdir()
    lines = [{"step": k, "mlm_loss": 1.0, "valid": {"mlm_loss": 1.0, "mlm_accuracy": 0.5}} for k in range(3)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    picture = plot.draw_curves([run], tmp_path / "x.svg")
    assert f"<!-- {shown} -->" in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_pictures_of_matplotlib_are_recognised(tmp_path, suffix):
    """Ours may be replaced, a picture that a user drew with matplotlib may not."""
    lines = [{"step": k, "mlm_loss": 1.0, "valid": {"mlm_loss": 1.0, "mlm_accuracy": 0.5}} for k in range(2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for _ in range(2):
        plot.draw_curves([tmp_path], tmp_path / f"x.{suffix}")
    plot.blank_figure((1, 1)).savefig(tmp_path / f"mine.{suffix}")
    with pytest.raises(UserError, match="is not an output of this command"):
        files.check_output(tmp_path / f"mine.{suffix}", plot.PICTURE)


def test_a_map_on_a_full_disk_leaves_no_folder(tmp_path, full_disk):
    path = tmp_path / "x.png" / "kgi-fr" / "map-en.png"
    with full_disk(100), pytest.raises(UserError, match="x.png/kgi-fr/map-en.png: cannot be written: File too large"):
        maps.draw_map(path, np.zeros((3, 2)), ["a", "b", "b"], ["x", "y", "z"], np.zeros(3), "", "")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in a list."""
    drawn, blank_figure = [], plot.blank_figure
    for module in (plot, maps):
        monkeypatch.setattr(module, "blank_figure", lambda size: drawn.append(blank_figure(size)) or drawn[-1])
    return drawn


def check_resolution(path, figure):
    """200 dots an inch, as the file says (in dots a metre) and as it has them."""
    content = path.read_bytes()
    at = content.index(b"pHYs") + 4
    assert struct.unpack(">II", content[16:24]) == tuple(200 * figure.get_size_inches())
    assert struct.unpack(">II", content[at : at + 8]) == (7874, 7874)


def legend_of(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()], [line.get_color() for line in legend.legend_handles]


def test_curves_for_print(tmp_path, figures):
    """Twelve runs, which lack a task in turn; two of them have one name."""
    runs = [tmp_path / f"run-{k}" for k in range(11)] + [tmp_path / "old" / "run-0"]
    values = {"mlm_loss": 3.0, "mlm_accuracy": 0.125, "lp_loss": 1.0, "lp_accuracy": 0.5}
    for k, run in enumerate(runs):
        run.mkdir(parents=True)
        found = {key: x for key, x in values.items() if key[:2] != ("ml", "lp", "")[k % 3]}
        lines = [{"step": step, **found, "valid": found} for step in (0, 9)]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "x").mkdir()
    check_resolution(plot.draw_curves(runs, tmp_path / "x" / "y.png"), *figures)
    losses, accuracies = np.reshape(figures[0].axes, (2, 2))
    assert [ax.get_title() for ax in losses] == ["masked language modelling", "link prediction"]
    assert not any(ax.get_title() for ax in accuracies) and accuracies[0].get_ylabel() == "accuracy (%)"
    for ax in figures[0].axes:
        assert any(line.get_visible() for line in ax.get_xgridlines())
        assert any(label.get_text() and label.get_visible() for label in ax.get_xticklabels())  # step numbers
    for row, factor in ((losses, 1), (accuracies, 100)):
        for ax, name in zip(row, ("mlm", "lp")):
            want = factor * values[f"{name}_{'loss' if factor == 1 else 'accuracy'}"]
            assert {y for line in ax.lines for y in line.get_ydata()} == {want} and len(ax.lines) == 16
    names, colours = legend_of(figures[0])
    assert names == [str(runs[0]), *(f"run-{k}" for k in range(1, 11)), str(runs[11])] and len({*colours}) == 12


@pytest.mark.parametrize("n_groups", [2, 15])
def test_a_map_for_print(tmp_path, figures, n_groups):
    """A colour and a name for each group, and names of terms that lie among their own, without overlap."""
    rng = np.random.default_rng(0)
    names = [f"Group & number {k}" for k in range(n_groups)]
    size = [300, 1, *range(10, 8 + n_groups)]
    centres = 40 * np.stack([np.arange(n_groups) % 4, np.arange(n_groups) // 4], axis=1)
    points = np.concatenate([centre + 3 * rng.normal(size=(n, 2)) for centre, n in zip(centres, size)])
    groups = [name for name, n in zip(names, size) for _ in range(n)]
    strings = [f"{group[-2:]} $_{'long ' * (8 * (i % 2))}{i}" for i, group in enumerate(groups)]
    shares = np.arange(len(strings)) % 100.0
    path = tmp_path / "new" / "map.png"
    maps.draw_map(path, points, groups, strings, shares, "$ title", "")
    check_resolution(path, *figures)
    (ax,), (legend, colours) = figures[0].axes, legend_of(figures[0])
    order = sorted(range(n_groups), key=lambda k: -size[k])
    assert legend == [f"{names[k]} ({size[k]:,})" for k in order]
    assert len({*colours}) == n_groups
    assert [tuple(dots.get_facecolor()[0][:3]) for dots in ax.collections] == colours
    assert [len(dots.get_offsets()) for dots in ax.collections] == [size[k] for k in order]
    found = [(text.get_text().replace("\\", ""), text) for text in ax.texts]
    labelled = [strings.index(text) if text in strings else -1 for text, _ in found]
    of_group = [groups[i] for i in labelled]
    assert -1 not in labelled and all(of_group.count(name) == min(3, n) for name, n in zip(names, size))
    boxes = [text.get_window_extent() for _, text in found]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(tuple(text.xy) == tuple(points[i]) for i, (_, text) in zip(labelled, found))
    of_largest = [shares[i] for i in labelled if groups[i] == names[0]]
    assert min(of_largest) > 80  # of the names that are short enough, those among their own


def test_long_terms_are_cut(tmp_path, figures):
    maps.draw_map(tmp_path / "m.png", np.zeros((1, 2)), ["A"], ["x" * 31], np.zeros(1), "", "")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["x" * 29 + "…"]


def test_the_demo_draws_what_it_names():
    """The last commands of `make demo` write the three files that its report names."""
    recipe = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0].replace("\\\n", " ")
    s = {}
    for program, module, name in (
        ("-m beyond.plot", plot, "plot"), ("-m beyond.evaluate map", evaluate, "map"),
        ("-m beyond.tag", tag, "tag"),
    ):  # fmt: skip
        argv = shlex.split(re.search(f"{program} (.*)", recipe)[1])
        s[name] = command_line.parse([name, *argv], module.__doc__, module.COMMANDS)[1]
    plotted, mapped = Path(s["plot"].runs[0], "curves.png"), Path(s["map"].out, "kgi-fr", "map-fr.png")
    assert [plotted, mapped, Path(s["tag"].html)] == [Path("demo", path) for path in demo_report.PICTURES.values()]


DAMAGE = [b"\xff\xfe", b'{"step": "two", "loss": 1.0}', b"[1, 2]", b'{"step": 4, "lo', b"null", b'{"step": -1}',
          b'{"step": 5, "valid": 7}', b'{"step": 5, "valid": {"mlm_loss": "x"}}',
          b'{"step": 5, "mlm_loss": 1e308}', b'{"step": 5, "mlm_loss": -1e308}', b'{"step": 1%s}' % (b"0" * 5000),
          b'{"step": 5, "mlm_loss": 1%s}' % (b"0" * 400),
          b'{"step": 5, "valid": %s1%s}' % (b"[" * 9999, b"]" * 9999)]  # fmt: skip


def test_damaged_lines_of_metrics_are_dropped(dataset, tmp_path, capsys):
    """When a run resumes, in the model card and in the plot: in one line of output, and the rest is kept as it is."""
    out = tmp_path / "run"
    train(dataset, out)
    whole = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(b"\n".join([*DAMAGE, whole]))  # of a NaN a curve has a gap
    run = set_up(dataset, out)
    runs.export_checkpoint(run)
    card = (out / "README.md").read_text()
    assert "held out, at step 6" in card and "| entity prediction, of tokens | " in card
    capsys.readouterr()
    run_command(plot, out, "--out", tmp_path / "x.png")
    assert f"{out / 'metrics.jsonl'}: {len(DAMAGE)} damaged lines are left out\n" in capsys.readouterr().out
    runs.resume(run)
    assert capsys.readouterr().out == f"{out / 'metrics.jsonl'}: {len(DAMAGE)} damaged lines are dropped\n"
    assert (out / "metrics.jsonl").read_bytes() == whole
    (out / "metrics.jsonl").unlink()
    runs.resume(run)
    assert "metrics.jsonl is missing: what it held up to step 6 is lost" in capsys.readouterr().out


@pytest.mark.parametrize("tasks, text, graph", [(["mlm"], True, False), (["ep", "lp"], False, True)])
def test_the_model_card_holds_what_is_true(dataset, tmp_path, tasks, text, graph):
    run = set_up(dataset, tmp_path, tasks=tasks)
    runs.export_checkpoint(run)
    card = (tmp_path / "README.md").read_text()
    assert "clinical text" not in card and ("on documents" in card, "fill-mask" in card) == (text, text)
    assert all((x in card) == graph for x in ("knowledge graph", "- umls", "| CUIs |", "for the UMLS"))
    in_weights = card.split("weights of the tasks")[1]
    for task in data.TASKS:
        assert (f"{task.title} examples" in card) == (f"{task.name.upper()} " in in_weights) == (task.name in tasks)


RELA = ["PAR", "CHD", "AQ", "QB", "RB", "RN", "RO", "RB:has_part", "RN:part_of", "RO:has_modifying_part", "SY"]


def shares_of(relations, drawn, sampled):
    """The shares of a graph of two groups, {(group of h, relation, group of t): triples}, and of a sample for EP."""

    def cells(found):
        return np.array([[found.get((a, k, b), 0) for k in range(len(relations))] for a in (0, 1) for b in (0, 1)])

    graph = SimpleNamespace(groups=["ANAT", "DISO"], counts=cells(drawn), count=lambda *x: cells(Counter(zip(*x))))
    graph.joins_groups = np.array([False, True, True, False])
    graph.relations, graph.synonymy = relations, len(relations) - 1
    one = np.zeros((len(sampled), 1), int)
    sample = SimpleNamespace(kind=one[:, 0], relations=one, triples=lambda: map(np.array, zip(*sampled)))
    return builds.compare_shares(graph, {data.EP: sample}, data.TASKS)


def test_of_many_relations_those_with_triples_are_shown(capsys):
    """In columns that stay aligned. The paper's seven are all shown."""
    shares = shares_of(RELA, {(0, 0, 0): 3, (0, 9, 1): 1, (1, 1, 0): 9_999_996}, [(1, 7, 1), (0, 0, 0)])
    of_few = {"RB:has_part": [0.0, 0.5], "RO:has_modifying_part": [0.0, 0.0]}  # of 1 triple in 10 million
    assert shares["relations"] == {"PAR": [0.0, 0.5], "CHD": [1.0, 0.0]} | of_few
    seven = shares_of(RELA[:6] + ["SY"], {(0, 0, 0): 1}, [(0, 0, 0)])
    assert [*seven["relations"].items()] == [("PAR", [1.0, 1.0])] + [(r, [0.0, 0.0]) for r in (*RELA[1:6], "SY")]
    counts = {"train": {"ep": 2}, "terms": 3, "cuis": 2, "relations": 9, "megabytes": 0.1, "sources": None}
    counts = {"en": counts | {"distribution": shares}, "fr": counts | {"distribution": seven, "megabytes": 0.2}}
    manifest = {"counts": counts}
    manifest |= {"settings": {}, "malformed_rows_left_out": {}, "nci_rows_left_out": {}}
    reports.print_dataset_tables(manifest, data.TASKS)
    first, en, fr = capsys.readouterr().out.split("(%)\n")
    assert ["total", "4", "4", "0.3"] in map(str.split, first.splitlines())  # not 0.30000000000000004
    for table, width in ((en, 25), (fr, 16)):
        lines = table.split("  largest")[0].splitlines()
        assert {len(line) for line in lines} == {width + 2 * 11} and not any(line[width - 1].strip() for line in lines)
    assert ["RO:has_modifying_part", "0.00", "0.00"] in map(str.split, en.splitlines()) and "  SY    " in fr


def test_answers_name_finer_relations():
    task = SimpleNamespace(name="lp", head="relation_head")
    assert reports.describe_answer(task, [9, 0, 7], 0, None, RELA) == "RO:has_modifying_part PAR RB:has_part"


def test_the_next_command_can_be_pasted(capsys):
    reports.print_next(("python -m beyond.evaluate {}", "runs/a b"), ("python -m beyond.plot {} {}", "x", "it's"))
    want = "next:  python -m beyond.evaluate 'runs/a b'\n       python -m beyond.plot x 'it'\"'\"'s'\n"
    assert capsys.readouterr().out == want


def test_accuracies_of_an_evaluation_are_in_per_cent(capsys, monkeypatch):
    found = {"at_1": 12.3, "at_5": 23.4, "mrr": 34.5, "queries": 9}
    record = {
        "mlm": {"fr": {"loss": 2.0, "accuracy": 45.6}}, "ep": {"tokens": 65.1, "entities": 40.2},
        "lp": {
            "accuracy": 56.7, "accuracy_majority": 50.0, "macro_f1": 51.2, "macro_f1_majority": 33.3,
            "macro_f1_relations": 2, "relations": ["PAR", "CHD"], "confusion": [[3, 1], [0, 4]],
        },
        "tc": {"accuracy": 67.8, "corrupted_relation": {"accuracy": 78.9, "auc": 89.1}}, "new": {"accuracy": 91.2},
        "synonyms": {"fr": {"terms": 99, "mean": found}}, "translations": {"fr": {"cls": found}},
    }  # fmt: skip
    monkeypatch.setattr(evaluate, "TASKS", [*data.TASKS, SimpleNamespace(name="new", title="another task")])
    evaluate.print_evaluation(record)
    shown = capsys.readouterr().out
    assert "entity prediction: 65.1 % of the tokens, 40.2 % of the entities" in shown
    matrix = "    gold \\ predicted    PAR    CHD\n    PAR                   3      1\n"
    assert "REL level" not in shown and matrix in shown
    for number in ("45.6", "56.7", "51.2", "50.0", "33.3", "67.8", "78.9", "89.1", "91.2", "12.3", "23.4", "34.5"):
        assert f"{number} %" in shown, number


def test_many_relations_have_a_row_each(capsys):
    """Recall, precision and targets of each relation with targets; a confusion matrix would be 39 columns wide."""
    confusion = np.zeros((10, 10), int)
    confusion[[0, 0, 8, 9, 1], [0, 2, 8, 8, 0]] = 1500, 500, 3, 1, 0
    found = {"relations": RELA[:10], "confusion": confusion.tolist(), "macro_f1_relations": 0}
    evaluate.print_links("LP", found | {"accuracy": 75.0, "accuracy_majority": 99.8, "rel_accuracy": 75.1})
    assert capsys.readouterr().out.splitlines() == [
        "  LP: accuracy 75.0 % (majority baseline 99.8 %), at the REL level 75.1 %",
        "                           recall  precision  targets",
        "    PAR                    75.0 %    100.0 %    2,000",
        "    RN:part_of            100.0 %     75.0 %        3",
        "    RO:has_modifying_part   0.0 %          -        1",
    ]


def test_seven_relations_have_a_matrix(capsys):
    """As RO beside the paper's six classes has, without finer names."""
    found = {"relations": RELA[:7], "confusion": np.eye(7, dtype=int).tolist(), "macro_f1_relations": 0}
    evaluate.print_links("LP", found | {"accuracy": 100.0, "accuracy_majority": 14.3})
    assert capsys.readouterr().out.splitlines()[1].split()[3:] == RELA[:7]
