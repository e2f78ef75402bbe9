"""Reports of a run: its curves, its model card, and metrics.jsonl with damaged lines."""

import json
import os
import sys

import numpy as np
import pytest

import data
import kgi
from configs import UserError
from support import files, reports
from tests.training import call, set_up, train

pytestmark = pytest.mark.usefixtures("known_machine")


@pytest.fixture(scope="module")
def baseline(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("reports") / "one"
    train(dataset, out)
    return out


def test_plot_draws_the_curves_of_runs(baseline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call("plot", baseline, baseline, "--out", "two.png")
    call("plot", baseline, "--out", "two.png")  # again
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
            call("plot", *argv)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="needs matplotlib: pip install -r requirements-plot.txt"):
        call("plot", baseline)


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
    picture = reports.draw_curves([run], tmp_path / "x.svg", data.TASKS)
    assert f"<!-- {shown} -->" in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_pictures_of_matplotlib_are_recognised(tmp_path, suffix):
    reports.blank_figure((1, 1)).savefig(tmp_path / f"x.{suffix}")
    files.check_output(tmp_path / f"x.{suffix}", reports.PICTURE)


def test_a_map_on_a_full_disk_leaves_no_folder(tmp_path, full_disk):
    path = tmp_path / "x.png" / "kgi-fr" / "map-en.png"
    with full_disk(100), pytest.raises(UserError, match="x.png/kgi-fr/map-en.png: cannot be written: File too large"):
        reports.draw_map(path, np.zeros((3, 2)), (1.0, 2.0), ["a", "b", "b"], "")
    assert not list(tmp_path.iterdir())


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
    kgi.export_checkpoint(run)
    assert "held out, at step 6" in (out / "README.md").read_text()
    capsys.readouterr()
    call("plot", out, "--out", tmp_path / "x.png")
    assert f"{out / 'metrics.jsonl'}: {len(DAMAGE)} damaged lines are left out\n" in capsys.readouterr().out
    kgi.resume(run)
    assert capsys.readouterr().out == f"{out / 'metrics.jsonl'}: {len(DAMAGE)} damaged lines are dropped\n"
    assert (out / "metrics.jsonl").read_bytes() == whole
    (out / "metrics.jsonl").unlink()
    kgi.resume(run)
    assert "metrics.jsonl is missing: what it held up to step 6 is lost" in capsys.readouterr().out


@pytest.mark.parametrize("tasks, text, graph", [(["mlm"], True, False), (["ep", "lp"], False, True)])
def test_the_model_card_holds_what_is_true(dataset, tmp_path, tasks, text, graph):
    run = set_up(dataset, tmp_path, tasks=tasks)
    kgi.export_checkpoint(run)
    card = (tmp_path / "README.md").read_text()
    assert "clinical text" not in card and ("on documents" in card, "fill-mask" in card) == (text, text)
    assert all((x in card) == graph for x in ("knowledge graph", "- umls", "| CUIs |", "for the UMLS"))
    in_weights = card.split("weights of the tasks")[1]
    for task in data.TASKS:
        assert (f"{task.title} examples" in card) == (f"{task.name.upper()} " in in_weights) == (task.name in tasks)
