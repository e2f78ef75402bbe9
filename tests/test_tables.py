"""The paper's tables from result files, and what is not a result file."""

import json
import os
import re
import shutil

import pytest

import configs
from configs import UserError
from support import corpora, tables
from support.files import write_json
from support.results import differing_settings
from tests.conftest import ROOT


def write_scores(folder, checkpoint, corpus, language, f1s, untrained=False):
    folder.mkdir(parents=True)
    both = [{"paper": [90.0, 80.0, f1], "entity": [50.0, 40.0, f1 - 30], "constant_baseline": 31.5} for f1 in f1s]
    runs = [{"seed": seed} | scores for seed, scores in enumerate(both)]
    record = {"checkpoint": checkpoint, "corpus": corpus, "task": folder.name, "language": language, "runs": runs}
    (folder / "scores.json").write_text(json.dumps(record | {"settings": {"untrained": untrained}}))


def rows_of(path, block=0):
    """{model: cells} of a block of a table."""
    block = path.read_text().split("| model |")[1 + block]
    return {c[1].strip(): [x.strip() for x in c[2:-1]] for line in block.splitlines() if len(c := line.split("|")) > 3}


def test_the_layout_of_tables(tmp_path, capsys):
    """Seeds of pre-training are one row; best and second are marked; what was not run is visibly missing."""
    write_scores(tmp_path / "a" / "meddocan", "runs/kgi-es-v1", "meddocan", "es", [80, 84])
    write_scores(tmp_path / "b" / "meddocan", "runs/kgi-multi-v1/", "meddocan", "es", [83])
    write_scores(tmp_path / "c" / "meddocan", "x/mine-s0", "meddocan", "es", [70])
    write_scores(tmp_path / "d" / "meddocan", "x/mine-s1", "meddocan", "es", [71])
    write_scores(tmp_path / "e3c-es", "runs/kgi-es-v1", "e3c", "es", [60])
    write_scores(tmp_path / "f" / "meddocan", "runs/tiny-ep-lp-s0", "meddocan", "es", [50])
    write_scores(tmp_path / "custom-x", "mine", "custom", "", [33])
    write_scores(tmp_path / "custom-y", "tiny-ep-lp-s0", "custom", "", [34])  # of Table 6, on a corpus that is not
    shutil.copytree(tmp_path / "a", tmp_path / "z")  # counts once
    for i, content in enumerate(("{", "[]", "{}", '{"checkpoint": 1}', "\xff")):
        (tmp_path / f"bad{i}").mkdir()
        for name in ("scores.json", "knowledge-x.json"):
            (tmp_path / f"bad{i}" / name).write_text(content, encoding="latin-1")
    tables.write_tables(tmp_path, with_paper=False)
    shown = capsys.readouterr().out
    assert shown.count("not a file of results, left out") == 10 and shown.count("already, left out") == 2
    others = rows_of(tmp_path / "table-others.md")
    assert others["mine"] == ["90.00", "80.00", "33.00", "–", "–", "–"] and others["tiny-ep-lp"][5] == "34.00"
    table = rows_of(tmp_path / "table-4.md")
    assert table["KGI-BERT ES"][3:6] == ["90.00 ± 0.00", "80.00 ± 0.00", "<u>82.00 ± 2.83</u>"]
    assert table["KGI-BERT m"][5] == "**83.00**" and table["mine"][5] == "70.50 ± 0.71"
    assert table["KGI-BERT ES"][:3] == ["–"] * 3 and table["SAPBERT-XL"] == ["–"] * 9
    assert (
        table["KGI-BERT ES"][8] == "60.00" and table["*constant baseline*"][5] == "31.50" and "tiny-ep-lp" not in table
    )
    assert rows_of(tmp_path / "table-4.md", 1)["KGI-BERT ES"][5] == "<u>52.00 ± 2.83</u>"  # entities
    assert rows_of(tmp_path / "table-11.md")["KGI-BERT ES-v1"] == ["–", "<u>82.00 ± 2.83</u>", "60.00"]
    assert rows_of(tmp_path / "table-6.md", 2)["tiny-ep-lp"] == ["–", "50.00", "–"]
    assert sorted(p.name for p in tmp_path.glob("*.md")) == [f"table-{x}.md" for x in (11, 4, 6, "others")]  # no empty
    assert all(f"{tmp_path}/table-{x}.md: " in shown for x in (4, 6, 11, "others")) and "DrBERT" not in shown
    row = "KGI-BERT ES 90.00 ± 0.00 80.00 ± 0.00 82.00 ± 2.83 90.00 80.00 60.00"
    assert row.split() in [line.split() for line in shown.splitlines()]
    tables_shown = shown[shown.index("\n\n") :].replace(str(tmp_path), "")
    assert max(map(len, tables_shown.splitlines())) <= 120 and "SAPBERT" not in shown and "<u>" not in shown
    tables.write_tables(tmp_path, with_paper=True)
    assert rows_of(tmp_path / "table-4.md")["KGI-BERT ES"][5] == "<u>82.00 ± 2.83</u> [92.17]"
    figures = rows_of(tmp_path / "table-11.md")["KGI-BERT m-v2"]
    assert len(figures) == 3 and all(re.fullmatch(r"– \[\d\d\.\d\d\]", x) for x in figures[:2])
    assert "KGI-BERT m-v2" not in capsys.readouterr().out  # the paper's figures are no results


def scores_record(name, task="meddocan", seeds=(0,), **more):
    both = {"paper": [90.0, 80.0, 70.0], "entity": [50.0, 40.0, 45.0], "constant_baseline": 31.5}
    record = {"checkpoint": f"runs/{name}", "corpus": task, "task": task, "language": "es"}
    return record | {"settings": {"untrained": False}, "runs": [{"seed": i} | both for i in seeds]} | more


def knowledge_record(name, **more):
    """A knowledge-*.json with a different figure for each key."""
    scores = {key: 11.0 + i for i, key in enumerate(tables.KNOWLEDGE.values()) if key != "synonyms_mrr_spelling"}
    scores |= {"lp_accuracy_majority": 9.5, "lp_macro_f1_majority": 9.25}
    return {"checkpoint": name, "data": "en", "settings": {"terms": 9}, "scores": scores} | more


def places(value, path=()):
    """The paths of all that is within a JSON value."""
    yield path
    if isinstance(value, (dict, list)):
        for k, x in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(x, (*path, k))


OTHERS = [
    "{}", "[]", "null", "true", "7", '"70"', '"abc"', "NaN", "-Infinity", "1e999", "1" + "0" * 400, '"\\ud800"',
    "[[1, 2, 3]]", '{"a": []}', "[NaN, 1, 2]", '["1", "2", "3"]', "-5", "[" * 100_000 + "]" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("kind", ["scores", "knowledge"])
def test_any_other_json_is_reported_in_one_line(tmp_path, capsys, kind):
    """Each value of a good file replaced by each other shape: the tables come, and no figure is made up."""
    make = scores_record if kind == "scores" else knowledge_record
    n = 0
    for path in places(make("x")):
        for other in OTHERS:
            name, record = f"file-{n:04}", make(f"x{n}")
            inner = record
            for k in path[:-1]:
                inner = inner[k]
            if path:
                inner[path[-1]] = "HERE"
            text = json.dumps(record if path else "HERE").replace('"HERE"', other)
            (tmp_path / name).mkdir()
            (tmp_path / name / ("scores.json" if kind == "scores" else "knowledge-en.json")).write_text(text)
            n += 1
    (tmp_path / "dir" / "scores.json").mkdir(parents=True)
    tables.write_tables(tmp_path, with_paper=False)
    shown = capsys.readouterr().out.splitlines()
    bad = [line.split(": ")[0] for line in shown if ": not a file of results, left out (" in line]
    assert len(bad) == len({*bad}) and n > len(bad) > n / 3
    written = "".join(p.read_text() for p in tmp_path.glob("*.md"))
    assert not re.search(r"\bnan\b|\binf\b|-5\.00", written)


def test_numbers_of_results_are_numbers(tmp_path, capsys):
    """A string is no list of figures, and NaN no figure."""
    for i, text in enumerate(('"789"', '["70", 70, 70]', "[NaN, 70, 70]", "[70, 70, 700]", "[70, 70]")):
        (tmp_path / f"{i}").mkdir()
        good = json.dumps(scores_record(f"x{i}"))
        (tmp_path / f"{i}" / "scores.json").write_text(good.replace("[90.0, 80.0, 70.0]", text))
    assert not tables.read_results(tmp_path)
    assert capsys.readouterr().out.count("left out") == 5


def test_only_files_are_read(tmp_path, capsys):
    """A pipe would wait for ever, and a device has no end."""
    for name in ("scores.json", "knowledge-x.json"):
        os.mkfifo(tmp_path / name)
        (tmp_path / "dir" / name).mkdir(parents=True)
        (tmp_path / "zero").mkdir(exist_ok=True)
        (tmp_path / "zero" / name).symlink_to("/dev/zero")
    tables.write_tables(tmp_path, with_paper=False)
    reason = "not a file of results, left out (ValueError: a folder, a pipe or a device)\n"
    assert capsys.readouterr().out.count(reason) == 6


@pytest.mark.parametrize("number", [2**53, -(2**53), 10**400, "1" + "0" * 5000])
def test_integers_are_of_fifteen_digits(tmp_path, capsys, number):
    """A seed and a number of terms: they would be a row, and a line, of any length."""
    scores, knowledge = scores_record("x", seeds=("HERE",)), knowledge_record("x", settings={"terms": "HERE"})
    for name, record in (("scores.json", scores), ("knowledge-en.json", knowledge)):
        (tmp_path / name).write_text(json.dumps(record).replace('"HERE"', str(number)))
    tables.write_tables(tmp_path, with_paper=False)
    assert capsys.readouterr().out.count("not a file of results, left out") == 2


def test_a_setting_that_is_not_a_number_is_no_other_setting(tmp_path, capsys):
    (tmp_path / "scores.json").write_text(json.dumps(scores_record("x", signature={"lr": float("nan")})))
    assert not tables.read_results(tmp_path)
    assert "left out (TypeError: 'NaN' is not a number)" in capsys.readouterr().out


def test_names_that_are_not_utf_8(tmp_path, capsys):
    """They are written and shown with replacement characters; older files hold half a surrogate pair instead."""
    for i, name in enumerate((os.fsdecode(b"caf\xe9"), "café", "a\U0001f600b")):
        record = scores_record(name, signature={"data": f"/{name}"})
        (tmp_path / f"{i}").mkdir()
        write_json(tmp_path / f"{i}" / "scores.json", record)
        text = (tmp_path / f"{i}" / "scores.json").read_text(encoding="utf-8")
        assert json.loads(text) == json.loads(json.dumps(record).replace("\\udce9", "\ufffd"))
        assert differing_settings(json.loads(text)["signature"], record["signature"]) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "scores.json").write_text(json.dumps(scores_record(os.fsdecode(b"b\xe9"))))
    assert "\\udce9" in (tmp_path / "old" / "scores.json").read_text()
    tables.write_tables(tmp_path, with_paper=False)
    assert {"caf\ufffd", "café", "a\U0001f600b", "b\ufffd"} <= rows_of(tmp_path / "table-4.md").keys()


def test_results_of_other_settings_are_not_mixed(tmp_path, capsys):
    """Seeds of one checkpoint and task with other settings are no seeds more. Where the corpus lies is no setting."""
    of = {"checkpoint": "/x", "data": "/a", "lr": 2e-5, "data sha256": "1"}
    for folder, seeds, more in (("a", (0, 1), {}), ("b", (2,), {"lr": 2e-4}), ("c", (3,), {"data": "/b"})):
        (tmp_path / folder).mkdir()
        record = scores_record("x", seeds=seeds, signature=of | more)
        (tmp_path / folder / "scores.json").write_text(json.dumps(record))
    assert len(tables.read_results(tmp_path)["es", "meddocan"]["x"]) == 3
    shown = capsys.readouterr().out
    assert shown == f"{tmp_path}/b/scores.json: of other settings (lr) than {tmp_path}/a/scores.json, left out\n"


def test_heads_that_were_not_trained_have_no_figures(tmp_path, capsys):
    """An encoder of MLM alone has a head of link prediction all the same: what it predicts is chance."""
    for name, more in (("mlm", {"tasks": ["mlm"]}), ("all", {"tasks": ["mlm", "ep", "lp", "tc"]}), ("other", {})):
        (tmp_path / name).mkdir()
        record = knowledge_record(name, **more)
        if name == "mlm":
            record["scores"]["lp_accuracy"] = 99.0
        (tmp_path / name / "knowledge-en.json").write_text(json.dumps(record))
    tables.write_tables(tmp_path, with_paper=False)
    lines = (tmp_path / "table-knowledge.md").read_text().splitlines()
    rows = {c[1].strip(): [x.strip() for x in c[2:-1]] for line in lines if len(c := line.split("|")) > 9}
    assert rows["mlm"] == ["11.00", *["–"] * 7, *(f"{19 + i}.00" for i in range(4)), "–", "24.00", "25.00"]
    assert rows["all"] == rows["other"] == [*(f"{11 + i}.00" for i in range(12)), "–", "24.00", "25.00"]
    assert rows["*majority baseline*"] == ["", "", "9.50", "", "9.25", *[""] * 10]
    assert "–: not run, or a task that" in "".join(lines)
    assert capsys.readouterr().out.count("majority baseline") == 1  # beside the accuracies, not below them again


def test_the_best_of_a_column_is_bold_and_the_second_underlined(tmp_path):
    """Of the loss the least is the best; a run of several seeds counts by its mean."""
    for name, loss, accuracy in (("a-s0", 1.0, 10.0), ("a-s1", 2.0, 30.0), ("b", 3.0, 25.0), ("c", 0.5, 5.0)):
        (tmp_path / name).mkdir()
        record = knowledge_record(name) | {"scores": {"mlm_loss": loss, "lp_accuracy": accuracy}}
        (tmp_path / name / "knowledge-en.json").write_text(json.dumps(record))
    tables.write_tables(tmp_path, with_paper=False)
    lines = (tmp_path / "table-knowledge.md").read_text().splitlines()
    rows = {c[1].strip(): c for line in lines if len(c := line.split("|")) > 9}
    assert [rows[name][2].strip() for name in "abc"] == ["<u>1.50 ± 0.71</u>", "3.00", "**0.50**"]
    assert [rows[name][4].strip() for name in "abc"] == ["<u>20.00 ± 14.14</u>", "**25.00**", "5.00"]
    assert "*majority baseline*" not in rows  # files of earlier versions do not have it


def test_the_papers_figures_are_whole():
    """Every row of every table has a figure for each corpus; a run stands in one row of a block; corpora are known."""
    layouts = json.loads((ROOT / "configs" / "tables.json").read_text())
    assert list(layouts) == ["2", "3", "4", "6", "9", "10", "11"]
    for layout in layouts.values():
        for part in layout["parts"]:
            assert all(corpora.CORPORA[c].language == part["language"] for c in part["corpora"])
            runs = [run for row in part["rows"] for run in row["runs"]]
            assert len(runs) == len({*runs})
            for row in part["rows"]:
                assert [len(x) for x in row["paper"]] == [len(part["columns"])] * len(part["corpora"])
                assert all(40 <= x <= 97 for figures in row["paper"] for x in figures)
    for table, other in (("2", "9"), ("3", "10"), ("4", "11")):  # the same F1 where a model is in both
        a, b = ({r["runs"][0]: dict(zip(p["corpora"], r["paper"])) for r in p["rows"]} for p in
                (layouts[table]["parts"][0], layouts[other]["parts"][0]))  # fmt: skip
        assert all(a[run][c][2] == b[run][c][0] for run in a.keys() & b.keys() for c in a[run]) and len(a) == 5


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder; --results names"):
        tables.write_tables(tmp_path / "nowhere", with_paper=False)
    assert not (tmp_path / "nowhere").exists()


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
    tables.print_scores([seed_scores(40, A=1200), seed_scores(50, A=1200, **{long: 0})], "O", "documents", pos=False)
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
    tables.print_scores([seed_scores(0, A=1) | {"seed": 3}], "NOM", "sentences", pos=True)
    shown = capsys.readouterr().out
    assert "seed 3, in per cent" in shown and "tokens  " in shown and "±" not in shown


@pytest.mark.parametrize("lr, dim, reason", [
    (2e-5, 128, "the learning rate 2e-05 suits encoders of dim 768, and this one has 128.\n  Try --lr 5e-4 or more"),
    (2e-5, 768, "1 pass at a learning rate of 2e-05 teaches too little here.\n  Try a higher --lr or more --epochs"),
    (5e-4, 128, "1 pass at a learning rate of 0.0005 teaches"),
    (5e-3, 128, "a learning rate of 0.005 is too high for this corpus.\n  Try --lr 5e-4, with another --out"),
])  # fmt: skip
def test_a_tagger_of_one_label_says_why(capsys, lr, dim, reason):
    scores = {0: seed_scores(0, A=1), 1: seed_scores(40, A=1), 2: seed_scores(0, A=1)}
    tables.print_advice({0: {"O"}, 1: {"O", "B-A"}, 2: {"O"}}, scores, configs.Finetune("x", lr=lr), dim)
    shown = capsys.readouterr().out
    assert "warning: seeds 0, 2 predicted O alone, for every word." in shown and reason in shown
    tables.print_advice({1: {"O", "B-A"}}, scores, configs.Finetune("x"), dim)
    assert capsys.readouterr().out == ""


def test_a_tagger_that_finds_no_entity_gets_the_same_advice(capsys):
    """Also beside a seed that predicts one label; not where the test split holds no entity."""
    scores = {0: seed_scores(0, A=1), 1: seed_scores(0, A=0), 2: seed_scores(0, A=1)}
    tables.print_advice({0: {"O", "B-A"}, 1: {"O", "B-A"}}, scores, configs.Finetune("x"), 768)
    shown = capsys.readouterr().out
    assert shown.startswith(
        "\nwarning: seed 0 found none of the entities of the test split.\n  The likely reason: 1 pass"
    )
    tables.print_advice({0: {"O", "B-A"}, 1: {"O", "B-A"}, 2: {"O"}}, scores, configs.Finetune("x"), 768)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        "warning: seed 2 predicted O alone, for every word.",
        "warning: seed 0 found none of the entities of the test split.",
    ]
    tables.print_advice({1: {"O", "B-A"}}, scores, configs.Finetune("x"), 768)
    assert capsys.readouterr().out == ""
