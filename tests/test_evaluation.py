"""What a checkpoint knows (kgi.py --evaluate, --map), and results as the paper's tables (finetune.py --tables)."""

import json
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import configs
import data
import finetune
import kgi
import model as models
from configs import UserError
from tests.conftest import ROOT, build


@pytest.fixture(scope="module")
def trainer(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "kgi-s3"
    sizes = dict(layers=1, heads=2, dim=32, ffn=64, batch_size=120, steps=30, lr=3e-3, warmup=0.2, device="cpu")
    trainer = kgi.Trainer(configs.Train(data=str(dataset), out=str(out), **sizes))
    trainer.run()
    return trainer


@pytest.fixture(scope="module")
def known(trainer, dataset):
    return kgi.knowledge(models.load(trainer.out).eval(), dataset, 0, None)


def test_knowledge_is_what_validation_says(trainer, known):
    """Another path through the same held-out targets and masks."""
    valid = trainer.validate()
    assert known["mlm"]["en"]["loss"] == pytest.approx(valid["mlm_loss"], rel=1e-5)
    got = known["mlm"]["en"]["accuracy"], known["ep"]["tokens"], known["lp"]["accuracy"], known["tc"]["accuracy"]
    assert got == pytest.approx([100 * valid[f"{task}_accuracy"] for task in data.TASKS])


@torch.no_grad()
def test_knowledge_one_example_at_a_time(trainer, dataset, known):
    """Whole entities, the confusion of relations, macro F1 and the area under the curve, all by their definitions."""
    model, e = models.load(trainer.out).eval(), data.Examples(dataset, "valid")
    confusion, whole, odds = np.zeros((6, 6), int), [], defaultdict(list)
    for row in e.rows[e.task[e.rows] != data.MLM]:
        batch = e.batch(np.array([kgi.VALID_EPOCH]), np.array([row]), 0, 0.15)
        hidden = model.encoder(torch.from_numpy(batch.ids)[None], None)[0, batch.col]
        if e.task[row] == data.EP:
            whole.append((model.vocabulary(hidden).argmax(-1).numpy() == batch.label).all())
        elif e.task[row] == data.LP:
            np.add.at(confusion, (batch.label, model.link(hidden).argmax(-1).numpy()), 1)
        else:
            odds[int(e.kind[row])].append((model.triple(hidden)[0, 1] - model.triple(hidden)[0, 0]).item())
    assert known["lp"]["confusion"] == confusion.tolist() and confusion.sum() > 50
    f1 = [2 * confusion[k, k] / n for k in range(6) if (n := confusion[k].sum() + confusion[:, k].sum())]
    assert known["lp"]["macro_f1"] == pytest.approx(100 * np.mean(f1))
    assert known["ep"]["entities"] == pytest.approx(100 * np.mean(whole))
    true = np.array(odds[data.TRUE])[:, None]
    for kind, name in ((data.OTHER_PAIR, "other_pair"), (data.OTHER_RELATION, "other_relation")):
        false = np.array(odds[kind])
        auc = np.mean((true > false) + 0.5 * (true == false))
        assert known["tc"][name]["auc"] == pytest.approx(100 * auc, abs=0.05)
        assert known["tc"][name]["accuracy"] == pytest.approx(100 * np.mean(false <= 0))


def test_knowledge_of_some_tasks(release, tmp_path):
    """Without documents there is no line of MLM, and nothing breaks."""
    folder = build(release, tmp_path / "en", e3c="none", prediction=0)
    torch.manual_seed(0)
    manifest = data.read_manifest(folder)
    model = models.KGIBert(models.Config(manifest["vocab_size"], 64, 32, 1, 2, 64, 0.0, 0)).eval()
    assert set(kgi.knowledge(model, folder, 0, None)) == {"lp", "tc"}


@pytest.mark.parametrize("seed", range(12))
def test_nearest_synonym_by_hand(seed):
    """Ranks by sorting, term by term; a term may name several concepts, a concept may have a single term."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 40))
    pairs = sorted({(int(rng.integers(n)), int(rng.integers(1 + n // 2))) for _ in range(n)})
    vectors = torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))
    want = {}
    for term in range(n):
        mine = {c for t, c in pairs if t == term}
        others = {t for t, c in pairs if c in mine} - {term}
        if others:
            near = F.cosine_similarity(vectors[term][None], vectors).tolist()
            order = sorted((t for t in range(n) if t != term), key=lambda t: -near[t])
            want[term] = 1 + min(order.index(t) for t in others)
    term, concept = (torch.tensor(x) for x in zip(*pairs))
    queries, ranks = models.nearest_synonym(vectors, term, concept)
    assert dict(zip(queries.tolist(), ranks.tolist())) == want


def test_terms_that_are_equally_near():
    """An encoder for which all terms are one is not a good one: the rank is the mean of what it could be."""
    term, concept = torch.arange(8), torch.arange(8) // 2
    assert models.nearest_synonym(torch.ones(8, 3), term, concept)[1].tolist() == [4.0] * 8  # of 1 to 7
    assert kgi.synonyms(torch.ones(8, 3), term.numpy(), concept.numpy())["at_1"] == 0


def test_synonyms_are_summed_up():
    vectors = torch.eye(6)[[0, 0, 1, 2, 3, 4]] + 0.1 * torch.eye(6)  # terms 0 and 1 alike; 4 and 5 apart
    got = kgi.synonyms(vectors, np.array([0, 1, 4, 5]), np.array([7, 7, 8, 8]))
    assert got["at_1"] >= 50 and got["at_5"] == 100 and got["queries"] == 4 and 50 < got["mrr"] <= 100
    assert kgi.synonyms(vectors, np.array([0, 1]), np.array([7, 8])) == {}  # no concept has two terms


def test_some_terms(dataset, tmp_path):
    """All terms of the concepts that were drawn; the same concepts for every checkpoint; a homonym is one string."""
    graph, strings, term, concept = kgi.some_terms(dataset, "en", 0, 0)
    assert len(term) == len(graph.terms) and len(strings) == len({*graph.terms.to_pylist()}) == len({*strings})
    for t, c in list(zip(term, concept))[:200]:
        assert strings[t] in graph.terms[graph.first_term[c] : graph.first_term[c + 1]].to_pylist()
    few = kgi.some_terms(dataset, "en", 100, 0)
    assert 100 <= len(few[2]) < 120 and few[1] == kgi.some_terms(dataset, "en", 100, 0)[1]
    assert few[1] != kgi.some_terms(dataset, "en", 100, 1)[1]
    shutil.copytree(dataset, tmp_path / "en")
    with pytest.raises(UserError, match="tables/en: not the terms of .*build the data set again"):
        kgi.some_terms(tmp_path / "en", "en", 0, 0)
    shutil.copytree(dataset.parent / "tables", tmp_path / "tables")
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["counts"]["en"]["terms"] += 1  # the tables are of another release by now
    (tmp_path / "en" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="tables/en: not the terms of"):
        kgi.some_terms(tmp_path / "en", "en", 0, 0)


def test_the_commands(trainer, dataset, release, tmp_path, monkeypatch, capsys):
    """Our run, one with another tokenizer (synonyms alone), the map, and one table of all."""
    other = kgi.Trainer(
        configs.Train(
            data=str(build(release, tmp_path / "en", vocab_size=300)), out=str(tmp_path / "other"), steps=1,
            layers=1, heads=2, dim=32, ffn=64, device="cpu", warmup=1.0,
        )
    )  # fmt: skip
    other.run()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    kgi.main(["--evaluate", str(trainer.out), str(other.out), "--data", str(dataset), "--device", "cpu"])
    said = capsys.readouterr().out
    assert said.count("link prediction: accuracy") == 1 and said.count("not a model of the tokens of") == 1
    assert said.count("synonyms, en") == 6 and "gold \\ answer    PAR    CHD" in said
    path = Path("results/kgi-s3/knowledge-en.json")
    assert json.loads(path.read_text())["synonyms"]["en"]["mean"]["queries"] > 100
    finetune.main(["--tables"])
    table = Path("results/table-knowledge.md").read_text()
    assert "| kgi | " in table and table.count("| other | – | – |") == 1
    kgi.main(["--map", str(trainer.out), "--data", str(dataset), "--terms", "200"])
    assert Path("results/kgi-s3/map-en.png").read_bytes()[1:4] == b"PNG"
    for argv, said in (
        (["--evaluate"], "too few arguments"),
        (["--evaluate", "nowhere", "--data", str(dataset)], "nowhere"),
        (["--map", str(trainer.out), "--data", str(dataset), "--pooling", "max"], "pooling = 'max'"),
    ):
        with pytest.raises(UserError, match=said):
            kgi.main(argv)


# ---------------------------------------------------------------- tables


def write_scores(folder, checkpoint, corpus, language, f1s, untrained=False):
    folder.mkdir(parents=True)
    both = [{"paper": [90.0, 80.0, f1], "entity": [50.0, 40.0, f1 - 30], "floor": 31.5} for f1 in f1s]
    runs = [{"seed": seed} | scores for seed, scores in enumerate(both)]
    record = {"checkpoint": checkpoint, "corpus": corpus, "task": folder.name, "language": language, "runs": runs}
    (folder / "scores.json").write_text(json.dumps(record | {"settings": {"untrained": untrained}}))


def rows_of(path, block=0):
    """{model: cells} of a block of a table."""
    block = path.read_text().split("| model |")[1 + block]
    return {c[1].strip(): [x.strip() for x in c[2:-1]] for line in block.splitlines() if len(c := line.split("|")) > 3}


def test_tables(tmp_path, capsys):
    """Seeds of pre-training are one row; best and second are marked; what was not run is visibly missing."""
    write_scores(tmp_path / "a" / "meddocan", "runs/kgi-es-v1", "meddocan", "es", [80, 84])
    write_scores(tmp_path / "b" / "meddocan", "runs/kgi-multi-v1/", "meddocan", "es", [83])
    write_scores(tmp_path / "c" / "meddocan", "x/mine-s0", "meddocan", "es", [70])
    write_scores(tmp_path / "d" / "meddocan", "x/mine-s1", "meddocan", "es", [71])
    write_scores(tmp_path / "e3c-es", "runs/kgi-es-v1", "e3c", "es", [60])
    write_scores(tmp_path / "f" / "meddocan", "runs/tiny-ep-lp-s0", "meddocan", "es", [50])
    write_scores(tmp_path / "custom-x", "mine", "custom", "", [33])
    write_scores(
        tmp_path / "custom-y", "tiny-ep-lp-s0", "custom", "", [34]
    )  # of the grid, on a corpus of none of its parts
    shutil.copytree(tmp_path / "a", tmp_path / "z")  # counts once
    for i, content in enumerate(("{", "[]", "{}", '{"checkpoint": 1}', "\xff")):
        (tmp_path / f"bad{i}").mkdir()
        for name in ("scores.json", "knowledge-x.json"):
            (tmp_path / f"bad{i}" / name).write_text(content, encoding="latin-1")
    finetune.tables(tmp_path, with_paper=False)
    said = capsys.readouterr().out
    assert said.count("not a file of results, left out") == 10 and said.count("already, left out") == 2
    others = rows_of(tmp_path / "table-others.md")
    assert others["mine"] == ["90.00", "80.00", "33.00", "–", "–", "–"] and others["tiny-ep-lp"][5] == "34.00"
    table = rows_of(tmp_path / "table-4.md")
    assert table["KGI-BERT ES"][3:6] == ["90.00 ± 0.00", "80.00 ± 0.00", "<u>82.00 ± 2.83</u>"]
    assert table["KGI-BERT m"][5] == "**83.00**" and table["mine"][5] == "70.50 ± 0.71"
    assert table["KGI-BERT ES"][:3] == ["–"] * 3 and table["SAPBERT-XL"] == ["–"] * 9
    assert table["KGI-BERT ES"][8] == "60.00" and table["*always the same*"][5] == "31.50" and "tiny-ep-lp" not in table
    assert rows_of(tmp_path / "table-4.md", 1)["KGI-BERT ES"][5] == "<u>52.00 ± 2.83</u>"  # entities
    assert rows_of(tmp_path / "table-11.md")["KGI-BERT ES-v1"] == ["–", "<u>82.00 ± 2.83</u>", "60.00"]
    assert rows_of(tmp_path / "table-6.md", 2)["tiny-ep-lp"] == ["–", "50.00", "–"]
    assert rows_of(tmp_path / "table-2.md")["DrBERT-4GB"] == ["–"] * 12
    finetune.tables(tmp_path, with_paper=True)
    assert rows_of(tmp_path / "table-4.md")["KGI-BERT ES"][5] == "<u>82.00 ± 2.83</u> [92.17]"
    assert rows_of(tmp_path / "table-9.md")["KGI-BERT m-v2"] == [
        f"– [{x}]" for x in ("74.82", "72.14", "91.35", "93.59")
    ]


def scores_record(name, task="meddocan", seeds=(0,), **more):
    both = {"paper": [90.0, 80.0, 70.0], "entity": [50.0, 40.0, 45.0], "floor": 31.5}
    record = {"checkpoint": f"runs/{name}", "corpus": task, "task": task, "language": "es"}
    return record | {"settings": {"untrained": False}, "runs": [{"seed": i} | both for i in seeds]} | more


def knowledge_record(name, **more):
    synonyms = {"en": {"mean": {"at_1": 50.0, "at_5": 60.0, "mrr": 55.0}, "cls": {"mrr": 40.0}, "terms": 9}}
    record = {"checkpoint": name, "data": "en", "settings": {"terms": 9}, "mlm": {"en": {"loss": 2.0}}}
    record |= {"ep": {"tokens": 20.0}, "lp": {"accuracy": 30.0, "macro_f1": 10.0}, "synonyms": synonyms}
    return record | {"tc": {"accuracy": 50.0, "other_pair": {"auc": 51.0}, "other_relation": {"auc": 52.0}}} | more


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
def test_any_other_json_is_told_in_one_line(tmp_path, capsys, kind):
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
    finetune.tables(tmp_path)
    said = capsys.readouterr().out.splitlines()
    bad = [line.split(": ")[0] for line in said if ": not a file of results, left out (" in line]
    assert len(bad) == len({*bad}) and n > len(bad) > n / 3
    tables = "".join(p.read_text() for p in tmp_path.glob("*.md"))
    assert not re.search(r"\bnan\b|\binf\b|-5\.00", tables)


def test_numbers_of_results_are_numbers(tmp_path, capsys):
    """A string is no list of figures, and NaN no figure."""
    for i, text in enumerate(('"789"', '["70", 70, 70]', "[NaN, 70, 70]", "[70, 70, 700]", "[70, 70]")):
        (tmp_path / f"{i}").mkdir()
        good = json.dumps(scores_record(f"x{i}"))
        (tmp_path / f"{i}" / "scores.json").write_text(good.replace("[90.0, 80.0, 70.0]", text))
    assert not finetune.read_results(tmp_path)
    assert capsys.readouterr().out.count("left out") == 5


def test_results_of_other_settings_are_not_mixed(tmp_path, capsys):
    """Seeds of one checkpoint and task with other settings are no seeds more. Where the corpus lies is no setting."""
    of = {"checkpoint": "/x", "data": "/a", "lr": 2e-5, "data sha256": "1"}
    for folder, seeds, more in (("a", (0, 1), {}), ("b", (2,), {"lr": 2e-4}), ("c", (3,), {"data": "/b"})):
        (tmp_path / folder).mkdir()
        record = scores_record("x", seeds=seeds, signature=of | more)
        (tmp_path / folder / "scores.json").write_text(json.dumps(record))
    assert len(finetune.read_results(tmp_path)["es", "meddocan"]["x"]) == 3
    said = capsys.readouterr().out
    assert said == f"{tmp_path}/b/scores.json: of other settings (lr) than {tmp_path}/a/scores.json, left out\n"


def test_heads_that_were_not_trained_have_no_figures(tmp_path):
    """An encoder of MLM alone has a head of link prediction all the same: what it says is chance."""
    records = (("mlm", {"tasks": ["mlm"]}), ("all", {"tasks": ["mlm", "ep", "lp", "tc"]}), ("old", {}))
    for name, more in records:
        write = {"lp": {"accuracy": 35.0, "macro_f1": 10.0}} if name == "mlm" else {}
        (tmp_path / name).mkdir()
        (tmp_path / name / "knowledge-en.json").write_text(json.dumps(knowledge_record(name, **more, **write)))
    lines = "\n".join(finetune.knowledge_table(tmp_path)).splitlines()
    rows = {c[1].strip(): [x.strip() for x in c[2:-1]] for line in lines if len(c := line.split("|")) > 9}
    assert rows["mlm"] == ["2.00", *["–"] * 6, "50.00", "60.00", "55.00", "40.00", "–"]
    assert rows["all"][2] == rows["old"][2] == "30.00" and "–: not run, or a task that" in "".join(lines)


def test_the_papers_figures_are_whole():
    """Every row of every table has a figure for each corpus; a run stands in one row of a block; corpora are known."""
    layouts = json.loads((ROOT / "configs" / "tables.json").read_text())
    assert list(layouts) == ["2", "3", "4", "6", "9", "10", "11"]
    for layout in layouts.values():
        for part in layout["parts"]:
            assert all(finetune.CORPORA[c].language == part["language"] for c in part["corpora"])
            runs = [run for row in part["rows"] for run in row["runs"]]
            assert len(runs) == len({*runs})
            for row in part["rows"]:
                assert [len(x) for x in row["paper"]] == [len(part["columns"])] * len(part["corpora"])
                assert all(40 <= x <= 97 for figures in row["paper"] for x in figures)
    for table, other in (("2", "9"), ("3", "10"), ("4", "11")):  # the same F1 where a model is in both
        a, b = ({r["runs"][0]: dict(zip(p["corpora"], r["paper"])) for r in p["rows"]} for p in
                (layouts[table]["parts"][0], layouts[other]["parts"][0]))  # fmt: skip
        assert all(a[run][c][2] == b[run][c][0] for run in a.keys() & b.keys() for c in a[run]) and len(a) == 5


def test_the_language_of_a_result(tmp_path):
    for folder, want in (
        ("ner/fr/layer1", "fr"),
        ("clinical_entities/layer1/Spanish", "es"),
        ("es/fr/x", "fr"),
        ("x", ""),
    ):
        assert finetune.language_of("e3c", tmp_path / folder) == want
    assert finetune.language_of("meddocan", tmp_path / "fr") == "es"


def make(*args):
    p = subprocess.run(["make", "-n", *args], cwd=ROOT, capture_output=True, text=True)
    return p.returncode, p.stdout.replace("\\\n", ""), p.stderr


def test_the_grid_of_table_6():
    """Each subset of tasks and seed once, with its config; without LANG it says what is missing."""
    _, said, _ = make("ablation", "LANG=fr", "CONFIG=configs/drbert-fr.toml", "SEEDS=0 4", "CORPORA=e3c=x/y meddocan=z")
    runs = [line.split() for line in said.splitlines() if "kgi.py" in line and "--seed" in line]
    assert len(runs) == 10 and len({r[r.index("--out") + 1] for r in runs}) == 10
    assert (
        '"runs/drbert-fr-ep-lp-s4"' in {r[r.index("--out") + 1] for r in runs} and said.count("finetune.py runs/") == 10
    )
    code, said, _ = make("ablation")
    assert "kgi.py" not in said and "needs LANG=fr" in said
