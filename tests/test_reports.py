"""Reports of a run: its curves, its model card, and metrics.jsonl with damaged lines."""

import json
import os
import sys

import pytest

import configs
import data
import kgi
from configs import UserError
from support import reports
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
    assert capsys.readouterr().out == "two.png\n" and (tmp_path / "two.png").read_bytes()[1:4] == b"PNG"
    for argv, message in (
        ([], "required: RUN"),
        (["nowhere"], "nowhere/metrics.jsonl not found; is nowhere a run folder"),
        (["--in"], "unknown setting 'in'"),
        ([baseline, "--out", "two.gif"], "--out two.gif: must end in .png, .pdf or .svg"),
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
    card = (out / "README.md").read_text()
    assert "held out, at step 6" in card and "| entity prediction, of tokens | " in card
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


def test_the_next_command_can_be_pasted(capsys):
    reports.print_next(("python kgi.py evaluate {}", "runs/a b"), ("python kgi.py plot {} {}", "x", "it's"))
    want = "next:  python kgi.py evaluate 'runs/a b'\n       python kgi.py plot x 'it'\"'\"'s'\n"
    assert capsys.readouterr().out == want


def seed_scores(f1, **labels):
    """The scores of a seed whose figures all follow from one."""
    scores = [f1 - 20.0, f1 + 20.0, f1]
    return {
        "paper": scores, "entity": [x / 2 for x in scores], "macro": [x / 4 for x in scores],
        "interval": {"paper": [f1 - 3, f1 + 3], "entity": [f1 - 6, f1 + 6]},
        "constant_baseline": 31.5, "constant_baseline_entity": 0.0,
        "labels": {kind: [*scores, n] for kind, n in labels.items()},
    }  # fmt: skip


def test_the_scores_of_all_seeds_are_one_table(capsys):
    """Mean and deviation over the seeds, by hand; a type that one seed alone predicts; no line over 120 columns."""
    long = "a_type_whose_name_is_longer_than_any_column_of_a_table"
    reports.print_scores([seed_scores(40, A=1200), seed_scores(50, A=1200, **{long: 0})], "O", "documents", pos=False)
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:30].strip(): line[30:].split() for line in lines if line}
    dev = ["±", "7.07"]  # of 40 and 50
    of_paper = ["25.00", *dev, "65.00", *dev, "45.00", *dev]
    assert rows["paper, mean over sequences"] == [*of_paper, "[42.00,", "48.00]", "31.50"]
    assert rows["entities, strict"] == "12.50 ± 3.54 32.50 ± 3.54 22.50 ± 3.54 [39.00, 51.00] 0.00".split()
    assert rows["mean over types"] == "6.25 ± 1.77 16.25 ± 1.77 11.25 ± 1.77".split()
    assert rows["A"] == [*of_paper, "1,200"] and rows[f"  {long}"[:29].strip() + "…"] == "30.00 70.00 50.00 0".split()
    assert rows["2 seeds, in per cent"] == "P R F1 95 % interval constant".split()
    assert "documents resampled, mean of those of the seeds" in lines[-2] and lines[-1].endswith("always O")
    right = {len(line) for line in lines if line.endswith(("31.50", " 0.00", "1,200", "gold", "constant"))}
    assert right == {111}  # aligned
    assert max(map(len, lines)) <= 120
    reports.print_scores([seed_scores(0, A=1) | {"seed": 3}], "NOM", "sentences", pos=True)
    shown = capsys.readouterr().out
    assert "seed 3, in per cent" in shown and "tokens  " in shown and "±" not in shown


@pytest.mark.parametrize("lr, dim, reason", [
    (2e-5, 128, "the learning rate 2e-05 suits encoders of dim 768, and this one has 128.\n  Try --lr 5e-4 or more"),
    (2e-5, 768, "1 pass at a learning rate of 2e-05 teaches too little here.\n  Try a higher --lr or more --epochs"),
    (5e-3, 128, "1 pass at a learning rate of 0.005 teaches"),
])  # fmt: skip
def test_a_tagger_of_one_label_says_why(capsys, lr, dim, reason):
    reports.print_single_label({0: "O", 2: "O"}, configs.Finetune("x", lr=lr), dim)
    shown = capsys.readouterr().out
    assert "warning: seeds 0, 2 predicted O alone, for every word." in shown and reason in shown
    reports.print_single_label({}, configs.Finetune("x"), dim)
    assert capsys.readouterr().out == ""


def test_accuracies_of_an_evaluation_are_in_per_cent(capsys):
    found = {"at_1": 12.3, "at_5": 23.4, "mrr": 34.5, "queries": 9}
    record = {
        "mlm": {"fr": {"loss": 2.0, "accuracy": 45.6}}, "ep": {"tokens": 65.1, "entities": 40.2},
        "lp": {"accuracy": 56.7, "macro_f1": 51.2, "confusion": [[3, 1], [0, 4]]},
        "tc": {"accuracy": 67.8, "corrupted_relation": {"accuracy": 78.9, "auc": 89.1}}, "sa": {"accuracy": 91.2},
        "synonyms": {"fr": {"terms": 99, "mean": found}}, "translations": {"fr": {"cls": found}},
    }  # fmt: skip
    reports.print_evaluation(record, data.TASKS, data.RELATIONS)
    shown = capsys.readouterr().out
    assert "entity prediction: 65.1 % of the tokens, 40.2 % of the entities" in shown
    for number in ("45.6", "56.7", "51.2", "50.0", "67.8", "78.9", "89.1", "91.2", "12.3", "23.4", "34.5"):
        assert f"{number} %" in shown, number
