"""What a checkpoint knows of the four tasks (beyond.evaluate), its record and its map."""

import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import configs
import data
import kgi
import model as models
from beyond import embed as embedding
from beyond import evaluate, maps, ranking, retrieval, synonyms
from beyond import link as linking
from beyond.dictionaries import make_dictionary
from configs import UserError
from support import datasets, results, runs, tables, tokenizers
from support.layouts import IGNORE
from tests.conftest import build, run_command

SIZES = {"layers": 1, "heads": 2, "dim": 32, "ffn": 64, "device": "cpu"}


def pretrain(dataset, out, **settings):
    """A finished run, as kgi.train makes it."""
    run = kgi.set_up(configs.Train(data=str(dataset), out=str(out), **SIZES | settings))
    runs.resume(run)
    kgi.begin(run)
    kgi.training_loop(run)
    return run


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated") / "kgi-s3"
    return pretrain(dataset, out, batch_size=120, steps=30, lr=3e-3, warmup=0.2)


@pytest.fixture(scope="module")
def known(run, dataset):
    return evaluate.evaluate_tasks(models.load(run.out).eval(), dataset, 0, None)


def test_evaluation_agrees_with_validation(run, known):
    """Another path through the same held-out targets and masks."""
    valid = kgi.validate(run)
    assert known["mlm"]["en"]["loss"] == pytest.approx(valid["mlm_loss"], rel=1e-5)
    got = known["mlm"]["en"]["accuracy"], known["ep"]["tokens"], known["lp"]["accuracy"], known["tc"]["accuracy"]
    assert got == pytest.approx([100 * valid[f"{task}_accuracy"] for task in data.TASK_NAMES])


@torch.no_grad()
def test_evaluation_agrees_with_one_example_at_a_time(run, dataset, known):
    """Whole entities, the confusion of relations, macro F1 and the area under the curve, all by their definitions."""
    model, e = models.load(run.out).eval(), data.PretrainingDataset(dataset, "valid")
    confusion, whole, odds = np.zeros((6, 6), int), [], defaultdict(list)
    for row in e.rows[e.task[e.rows] != data.MLM]:
        batch = e.masked_batch(np.array([row]), np.array([kgi.VALID_EPOCH]), 0, 0.15)
        is_target = batch.labels != IGNORE
        hidden, labels = model.encoder(torch.from_numpy(batch.ids)[None])[0, is_target], batch.labels[is_target]
        if e.task[row] == data.EP:
            whole.append((model.mlm_head(hidden).argmax(-1).numpy() == labels).all())
        elif e.task[row] == data.LP:
            np.add.at(confusion, (labels, model.relation_head(hidden).argmax(-1).numpy()), 1)
        else:
            logits = model.triple_head(hidden)[0]
            odds[int(e.kind[row])].append((logits[1] - logits[0]).item())
    assert known["lp"]["confusion"] == confusion.tolist() and confusion.sum() > 50
    counted = [k for k in range(6) if confusion[k].sum() >= 20]
    f1 = [2 * confusion[k, k] / (confusion[k].sum() + confusion[:, k].sum()) for k in counted]
    assert known["lp"]["macro_f1"] == pytest.approx(100 * np.mean(f1)) and 1 < len(counted)
    assert known["lp"]["macro_f1_relations"] == len(counted) and "rel_accuracy" not in known["lp"]
    assert known["lp"]["relations"] == ["PAR", "CHD", "AQ", "QB", "RB", "RN"]
    assert known["ep"]["entities"] == pytest.approx(100 * np.mean(whole))
    true = np.array(odds[data.TRUE])[:, None]
    negatives = {"corrupted_entities": data.CORRUPTED_ENTITIES, "corrupted_relation": data.CORRUPTED_RELATION}
    for name, kind in negatives.items():
        false = np.array(odds[kind])
        auc = np.mean((true > false) + 0.5 * (true == false))
        assert known["tc"][name]["auc"] == pytest.approx(100 * auc, abs=0.05)
        assert known["tc"][name]["accuracy"] == pytest.approx(100 * np.mean(false <= 0))


def test_scores_of_many_relations_agree_with_counting():
    """With 39 classes, some of them rare or absent: all scores by their definitions, target by target."""
    rng = np.random.default_rng(0)
    rels = ["PAR", "CHD", "AQ", "QB", "RB", "RN", "RO"]
    names = rels + [f"{rels[4 + i % 3]}:name_{i}" for i in range(32)]
    gold = rng.choice(38, 2000, p=rng.permutation(np.arange(38.0)) / np.arange(38).sum())
    predicted = np.where(rng.random(2000) < 0.4, gold, rng.integers(0, 39, 2000))
    found = evaluate.score_links(gold, predicted, names)
    pairs = [(names[a], names[b]) for a, b in zip(gold, predicted)]
    n_targets = Counter(a for a, _ in pairs)
    most = max(n_targets, key=n_targets.get)
    rare = {name for name in names if n_targets[name] < 20}
    assert 2 < len(rare) < 15 and found["macro_f1_relations"] == 39 - len(rare) and found["relations"] == names
    for suffix, answers in (("", pairs), ("_majority", [(a, most) for a, _ in pairs])):
        f1 = []
        for name in {*names} - rare:
            n_right, n_predicted = answers.count((name, name)), sum(b == name for _, b in answers)
            f1.append(2 * n_right / (n_targets[name] + n_predicted))
        assert found[f"macro_f1{suffix}"] == pytest.approx(100 * sum(f1) / len(f1))
        assert found[f"accuracy{suffix}"] == pytest.approx(sum(a == b for a, b in answers) / 20)
    right_rel = sum(a.split(":")[0] == b.split(":")[0] for a, b in pairs)
    assert found["rel_accuracy"] == pytest.approx(right_rel / 20) and found["rel_accuracy"] > found["accuracy"]
    assert found["confusion"] == [[pairs.count((a, b)) for b in names] for a in names]


@pytest.mark.parametrize("names, n", [(["PAR", "CHD", "RO"], 20), (["PAR", "CHD", "RO:x"], 19)])
def test_scores_that_have_no_meaning_are_left_out(names, n):
    """Macro F1 where no relation has 20 targets, and the REL level where no two relations share a REL."""
    found = evaluate.score_links(np.zeros(n, int), np.full(n, 2), names)
    assert ("macro_f1" in found, "macro_f1_majority" in found) == (n == 20, n == 20)
    assert found["accuracy_majority"] == 100 and found["accuracy"] == 0 and "rel_accuracy" not in found


def test_tasks_without_held_out_examples_are_left_out(release, tmp_path):
    """Without documents there is no line of MLM, and nothing breaks."""
    folder = build(release, tmp_path / "en", e3c="none", ep_examples=0)
    torch.manual_seed(0)
    manifest = datasets.read_manifest(folder)
    model = models.KGIBert(models.Config(manifest["vocab_size"], 64, 32, 1, 2, 64, 0.0, 0)).eval()
    assert set(evaluate.evaluate_tasks(model, folder, 0, None)) == {"lp", "tc"}


def mean_reciprocal_rank(vectors, queries, names, concepts_of_query, concepts_of_name):
    """Of the first name with a concept of the query, itself left out, among all others: (MRR in per cent, queries)."""
    matrix, reciprocal = np.array([vectors[name] for name in names]), []
    for query in queries:
        is_other = np.array([name != query for name in names])
        is_right = np.array([not concepts_of_name[s].isdisjoint(concepts_of_query[query[1]]) for _, s in names])
        cosine = matrix @ vectors[query]
        if (is_right & is_other).any():
            best = cosine[is_right & is_other].max()
            n_nearer, n_equal = (cosine[is_other] > best).sum(), (cosine[is_other] == best).sum()
            reciprocal.append(1 / (1 + n_nearer + (n_equal - 1) / 2))
    return 100 * np.mean(reciprocal), len(reciprocal)


def test_held_out_synonyms_and_translations_agree_with_a_loop(release, tmp_path):
    """Queries are names of concepts of the validation part, whose seed and fraction are those of the build."""
    folder = build(release, tmp_path / "two", lang="en,fr", seed=3, valid_fraction=0.3)
    synonyms.build(synonyms.Build(str(folder), pairs=300))
    torch.manual_seed(0)
    encoder = models.Encoder(models.Config(datasets.read_manifest(folder)["vocab_size"], 64, 32, 1, 2, 64, 0.0, 0))
    encoder, tokenizer = encoder.eval(), tokenizers.load(folder)
    for weight in encoder.parameters():
        weight.data *= 20 if weight.dim() > 1 else 1
    found = evaluate.evaluate_synonyms(evaluate.Evaluate([""], terms=0), folder, encoder, tokenizer, None)
    assert [*found["synonyms"]] == ["en", "fr"] and [*found["translations"]] == ["fr"]
    concepts, held_out, vectors = {}, {}, {}
    for lang in ("en", "fr"):
        tables, concepts[lang] = datasets.read_dataset_tables(folder, lang), defaultdict(set)
        for i, (a, b) in enumerate(zip(tables.first_term, tables.first_term[1:])):
            for string in tables.terms.slice(a, b - a).to_pylist():
                concepts[lang][string].add(int(tables.cui[i]))
        cuis = np.array(tables.cui)
        held_out[lang] = set(cuis[data.in_validation(cuis, cuis, 3, 0.3)].tolist())
        x = embedding.embed_terms(encoder, tokenizer, [*concepts[lang]], ["mean"], None)["mean"].double()
        vectors |= {(lang, s): v for s, v in zip(concepts[lang], torch.nn.functional.normalize(x, dim=1).numpy())}
    trained = {*synonyms.read_pairs(folder)[0]["train"].cuis.tolist()}
    assert len(trained) > 100 and not trained & (held_out["en"] | held_out["fr"])
    for of, to in (("en", "en"), ("fr", "fr"), ("fr", "en")):
        is_synonyms = of == to
        names = [(to, s) for s in concepts[to]]
        held = [(of, s) for s, c in concepts[of].items() if c & held_out[of]]
        got = found["synonyms" if is_synonyms else "translations"][of]
        for queries, key in (([(of, s) for s in concepts[of]], "mean"), (held, "mean_held_out")):
            want = mean_reciprocal_rank(vectors, queries, names, concepts[of], concepts[to])
            assert (got[key]["mrr"], got[key]["queries"]) == (pytest.approx(want[0], abs=0.2), want[1])
        assert 5 < got["mean_held_out"]["queries"] < 0.6 * got["mean"]["queries"]


def test_scores_of_a_record_are_means_over_languages():
    """Each number of the tables under one key; of what was not measured there is none."""
    metrics = {"at_1": 10.0, "at_5": 20.0, "mrr": 30.0, "queries": 9}
    record = {
        "mlm": {"en": {"loss": 2.0, "accuracy": 50.0}, "fr": {"loss": 4.0, "accuracy": 50.0}},
        "lp": {"accuracy": 60.0, "macro_f1": 40.0, "accuracy_majority": 45.0, "confusion": [], "macro_f1_relations": 5},
        "tc": {"accuracy": 70.0, "corrupted_relation": {"accuracy": 71.0, "auc": 72.0}},
        "synonyms": {
            "en": {"mean": metrics, "cls": metrics | {"mrr": 5.0}, "terms": 9},
            "fr": {"mean": metrics | {"at_1": 30.0}, "cls": {}, "terms": 9},
        },
    }
    scores = evaluate.flat_scores(record)
    assert scores == {
        "mlm_loss": 3.0, "lp_accuracy": 60.0, "lp_macro_f1": 40.0, "lp_accuracy_majority": 45.0,
        "tc_accuracy": 70.0, "tc_auc_corrupted_relation": 72.0,
        "synonyms_at_1": 20.0, "synonyms_at_5": 20.0, "synonyms_mrr": 30.0,
        "synonyms_at_1_cls": 10.0, "synonyms_at_5_cls": 20.0, "synonyms_mrr_cls": 5.0,
    }  # fmt: skip


def test_evaluate_map_and_tables(run, dataset, release, tmp_path, monkeypatch, capsys):
    """A run, one with another tokenizer (synonyms alone) whose name is not UTF-8, its map, and one table of all."""
    other_data = build(release, tmp_path / "en", vocab_size=300)
    other = pretrain(other_data, tmp_path / "other", steps=1, warmup=1.0).out
    other = other.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    (other / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    monkeypatch.chdir(tmp_path)
    sys.stdout.reconfigure(errors="replace")  # as the programs do
    embed, asked = embedding.embed, []
    monkeypatch.setattr(embedding, "embed", lambda *args: asked.append((args[4], args[5])) or embed(*args))
    capsys.readouterr()
    run_command(evaluate, run.out, other, "--data", dataset, "--device", "cpu")
    assert asked == [(configs.POOLINGS, 62), (configs.POOLINGS, 7)]  # its own limit
    shown = capsys.readouterr().out
    assert shown.count("link prediction: accuracy") == 1 and shown.count("not a model of the tokens and") == 1
    assert shown.count("synonyms, en") == 12 and "gold \\ predicted    PAR    CHD" in shown
    record = json.loads(Path("results/kgi-s3/knowledge-en.json").read_text())
    assert record["synonyms"]["en"]["mean"]["queries"] > 100
    assert {*tables.KNOWLEDGE.values()} - record["scores"].keys() == {"lp_rel_accuracy"}  # these relations are RELs
    for _ in range(2):
        tables.write_tables("results", False)
    table = Path("results/table-knowledge.md").read_text()
    assert "| kgi | " in table and table.count("| caf\ufffd | – | –") == 1
    majority = [record["lp"][f"{key}_majority"] for key in ("accuracy", "macro_f1")]
    assert "| *majority baseline* |  |  | {:.2f} |  | {:.2f} |  |".format(*majority) in table
    drawn, draw_map = [], maps.draw_map
    monkeypatch.setattr(maps, "draw_map", lambda *args: drawn.append(args) or draw_map(*args))
    run_command(evaluate, "map", run.out, "--data", dataset, "--terms", 200)
    ((_, points, groups, strings, _, title, _),) = drawn
    x = datasets.read_dataset_tables(dataset, "en")
    full = {"ANAT": "Anatomy", "CONC": "Concepts & Ideas", "DISO": "Disorders", "PROC": "Procedures"}
    preferred = x.terms.take(x.first_term[:-1]).to_pylist()
    known = {(term, full[x.groups[g]]) for term, g in zip(preferred, x.group)}
    assert len(points) == len({*zip(strings, groups)}) > 20 and {*zip(strings, groups)} <= known
    assert all(x in title for x in ("t-SNE of discriminant axes", " other terms", "nearest neighbours: ", "kgi-s3"))
    (other / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    run_command(evaluate, "map", other, "--data", other_data, "--terms", 200)
    assert asked[2:] == [(["cls"], 62), (["mean"], 7)]
    assert Path("results", other.name, "map-en.png").read_bytes()[1:4] == b"PNG"
    for name in ("knowledge-en.json", "map-en.png"):  # the same command may replace it, but no file of a user
        Path(f"results/kgi-s3/{name}").write_text('{"name": "mine"}')
        with pytest.raises(UserError, match=f"{name} is not an output of this command"):
            run_command(evaluate, "map" if "map" in name else "evaluate", run.out, "--data", dataset)
    Path("results/table-knowledge.md").write_text("mine")
    shutil.copy("results/table-knowledge.md", "results/table-6.md")
    with pytest.raises(UserError, match="table-knowledge.md is not an output of this command"):
        tables.write_tables("results", False)
    assert Path("results/table-6.md").read_text() == "mine"


@pytest.mark.parametrize("argv, message", [
    (["evaluate"], "the following arguments are required: CHECKPOINT"),
    (["evaluate", "nowhere", "--data", "DATA"], "nowhere"),
    (["evaluate", "a/x", "b/x", "--data", "DATA"], "two of x, x are the same"),
    (["map", "RUN", "--data", "DATA", "--pooling", "max"], "pooling = 'max'"),
])  # fmt: skip
def test_mistakes(run, dataset, argv, message):
    names = {"RUN": run.out, "DATA": dataset}
    with pytest.raises(UserError, match=message):
        run_command(evaluate, *(names.get(a, a) for a in argv))


def test_a_mistake_in_the_last_checkpoint_is_found_first(run, dataset, capsys):
    with pytest.raises(UserError, match="nope"):
        run_command(evaluate, "evaluate", run.out, "nope", "--data", dataset, "--device", "cpu")
    assert " on " not in capsys.readouterr().out  # of no checkpoint has the evaluation begun


def test_a_head_of_other_relations_is_not_measured(run, dataset, tmp_path, monkeypatch, capsys):
    """A data set with fewer relations may have the tokenizer of a run, if it was built with it."""
    monkeypatch.chdir(tmp_path)
    other = copied(run, tmp_path / "finer")
    config = json.loads((other / "config.json").read_text())
    names = ["PAR", "CHD", "AQ", "QB", "RB", "RO"]
    (other / "config.json").write_text(json.dumps(config | {"relation_classes": names}))
    run_command(evaluate, other, "--data", dataset, "--terms", 100, "--device", "cpu")
    shown = capsys.readouterr().out
    assert f"not a model of the tokens and relations of {dataset}: synonyms alone" in shown
    assert "synonyms, en" in shown and "link prediction" not in shown


def copied(run, place):
    """A run folder without what only a resumed run needs."""
    return shutil.copytree(run.out, place, ignore=shutil.ignore_patterns("checkpoint*"))


def test_a_run_knows_its_data_set(run, dataset, tmp_path, monkeypatch, capsys):
    """Also among several that have its tokenizer; of a run that does not say, it is as for other checkpoints."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(dataset, tmp_path / "datasets" / name)
    monkeypatch.setattr(
        evaluate, "evaluate_checkpoint", lambda s, checkpoint, folder, *_: {"synonyms": {}, "translations": {}}
    )
    run_command(evaluate, run.out, "--device", "cpu")
    shown = capsys.readouterr().out
    assert f"{run.out} on {dataset}\n" in shown
    following = f"python finetune.py tables --results results\n       python -m beyond.evaluate map {run.out}\n"
    assert shown.endswith(f"next:  {following}")
    seen = []
    monkeypatch.setattr(linking, "names_of_dataset", lambda folder, lang: seen.append(folder) or 1 / 0)
    monkeypatch.setattr(models, "load", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(retrieval, "find_data", lambda folder, *_: seen.append(Path(folder)) or Path(folder))
    for program, *argv in ((linking, run.out), (evaluate, "map", run.out)):
        with pytest.raises(ZeroDivisionError):
            run_command(program, *argv, "--device", "cpu")
    assert seen == [dataset] * 3
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    older = copied(run, tmp_path / "older")
    (older / "kgi.json").unlink()
    with pytest.raises(UserError, match="several data sets found; choose one with --data: datasets/a, datasets/b"):
        run_command(evaluate, older, "--device", "cpu")


def test_checkpoints_of_one_name_do_not_share_results(run, dataset, tmp_path, monkeypatch):
    """Neither those of evaluate nor pictures: found out before anything is computed. A link keeps its own name."""
    monkeypatch.chdir(tmp_path)
    run_command(evaluate, run.out, "--terms", 200, "--device", "cpu")
    run_command(evaluate, "map", run.out, "--terms", 200, "--device", "cpu")
    path, picture = tmp_path / "results/kgi-s3/knowledge-en.json", tmp_path / "results/kgi-s3/map-en.png"
    before = path.read_bytes(), picture.read_bytes()
    other = copied(run, tmp_path / "other" / "kgi-s3")
    changed = models.load(other)
    changed.mlm_bias.data += 1
    changed.save(other)
    monkeypatch.setattr(evaluate, "evaluate_tasks", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(embedding, "embed_terms", lambda *_: pytest.fail("computed"))
    for argv, message in (
        (
            ["evaluate", other, "--terms", 200],
            f"holds results of checkpoint {run.out}, now {other}; choose another --out",
        ),
        (["evaluate", run.out, "--terms", 300], "holds results of terms 200, now 300; choose another --out"),
        (["map", other, "--terms", 200], "map-en.png is of another checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            run_command(evaluate, *argv, "--device", "cpu")
    assert (path.read_bytes(), picture.read_bytes()) == before
    for content in ("[]", "{", json.dumps({"scores": {}})):
        path.write_text(content)
        with pytest.raises(UserError, match="is not an output of this command|without a record of all"):
            run_command(evaluate, run.out, "--terms", 200, "--device", "cpu")
        assert path.read_text() == content
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    path.write_bytes(before[0])
    run_command(evaluate, run.out, "--terms", 200, "--device", "cpu")  # again the same
    (tmp_path / "latest").symlink_to(other)
    run_command(evaluate, "map", "latest/", "--terms", 200, "--device", "cpu")
    assert (tmp_path / "results/latest/map-en.png").is_file() and path.read_bytes() == before[0]
    assert ranking.results_file(linking.Link("latest", corpus=".")).parts[:2] == ("results", "latest")


def test_results_of_linking_are_of_one_checkpoint(run, tmp_path):
    names, zero = make_dictionary(["C1", "C2"], ["a", "b"]), np.zeros(1, int)
    of_task, again, other = (
        ranking.results_signature(
            linking.Link("x", corpus=c), SimpleNamespace(queries=["b"], dictionary=names, gold=[gold])
        )
        for c, gold in (("c", [zero]), (os.path.abspath("c") + "/", [zero]), ("c", [zero + 1]))
    )
    assert again == of_task != other  # one folder, however it is named; other ids are other results
    signature = of_task | runs.signature_of(run.out)
    (tmp_path / "linking.json").write_text(json.dumps({"checkpoint": "x", "signature": signature}))
    results.check_results_file(tmp_path / "linking.json", signature)
    with pytest.raises(UserError, match="holds results of checkpoint sha256 .*, now 0; choose another --out"):
        results.check_results_file(tmp_path / "linking.json", signature | {"checkpoint sha256": "0"})
