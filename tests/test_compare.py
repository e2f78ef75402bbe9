"""beyond.compare: intervals and p-values against enumeration and plain loops; what is read, and what is refused."""

import itertools
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import finetune
from beyond import compare, ranking
from beyond.gold import LinkingTask, Mention
from configs import UserError
from support.corpora import CORPORA, read_corpus
from support.files import write_json
from support.results import write_predictions
from tests.conftest import command, run_command

# ---------------------------------------------------------------- statistics


def random_runs(rng, n_runs, n_documents, skill):
    """(runs, documents, 2) numerators and denominators of an F1."""
    gold = np.random.default_rng(0).integers(1, 9, n_documents)  # of all runs
    correct = rng.binomial(gold, skill, (n_runs, n_documents))
    return np.stack([2 * correct, gold + correct + rng.poisson(2, (n_runs, n_documents))], axis=2).astype(float)


def f1(pairs):
    """In per cent, of the documents' (numerator, denominator)."""
    return 100 * sum(a for a, _ in pairs) / max(sum(b for _, b in pairs), 1)


def loop_differences(first, other, swap):
    """The definition of swapped_differences as a loop: each run of one way with each of the other."""
    found = []
    for a, b in itertools.product(first.tolist(), other.tolist()):
        x = [b[d] if swap[d] else a[d] for d in range(len(a))]
        y = [a[d] if swap[d] else b[d] for d in range(len(a))]
        found.append(f1(y) - f1(x))
    return sum(found) / len(found)


@pytest.mark.parametrize("n_first, n_other", [(1, 1), (2, 2), (1, 3), (3, 2)])
@pytest.mark.parametrize("skills", [(0.4, 0.5), (0.3, 0.7)])
def test_the_p_value_is_that_of_all_swaps(n_first, n_other, skills):
    """Of seven documents all 128 swaps can be listed: 10,000 random ones come within five standard errors."""
    rng = np.random.default_rng(n_first)
    first, other = (random_runs(rng, n, 7, skill) for n, skill in zip((n_first, n_other), skills))
    swaps = [*itertools.product((0, 1), repeat=7)]
    listed = [loop_differences(first, other, swap) for swap in swaps]
    assert compare.swapped_differences(first, other, np.array(swaps, float)) == pytest.approx(listed)
    exact = sum(abs(x) >= abs(listed[0]) - 1e-9 for x in listed) / len(listed)
    *means, low, high, p = compare.compare_runs(first, other)
    assert means[1] - means[0] == pytest.approx(listed[0])
    assert p == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 10_000) ** 0.5 + 1e-4)


@pytest.mark.parametrize("n_first, n_other", [(1, 1), (2, 3)])
def test_the_interval_is_that_of_a_loop(n_first, n_other):
    """Documents are drawn once for all runs; the mean over the runs comes before the difference."""
    rng = np.random.default_rng(1)
    first, other = random_runs(rng, n_first, 30, 0.4), random_runs(rng, n_other, 30, 0.5)
    *_, low, high, _ = compare.compare_runs(first, other)
    differences = []
    for _ in range(2000):
        drawn = rng.integers(30, size=30).tolist()
        means = [np.mean([f1([run[d] for d in drawn]) for run in way.tolist()]) for way in (first, other)]
        differences.append(means[1] - means[0])
    assert [low, high] == pytest.approx(np.percentile(differences, [2.5, 97.5]).tolist(), abs=0.1 * (high - low))


def test_pairing_narrows_the_interval():
    """Two ways with much the same outputs differ surely, although each alone is uncertain."""
    rng = np.random.default_rng(2)
    first = random_runs(rng, 1, 40, 0.5)
    other = first + [2, 0] * (first[..., :1] + 2 <= first[..., 1:])  # one more is right wherever there is room
    *means, low, high, p = compare.compare_runs(first, other)
    alone = np.ptp(np.percentile([f1(first[0][rng.integers(40, size=40)].tolist()) for _ in range(500)], [2.5, 97.5]))
    assert 0 < low < means[1] - means[0] < high and high - low < alone and p == pytest.approx(1 / 10_001)


def test_closed_cases():
    rng = np.random.default_rng(3)
    first, other = random_runs(rng, 2, 50, 0.5), random_runs(rng, 2, 50, 0.6)
    mean = f1(first[0].tolist()) / 2 + f1(first[1].tolist()) / 2
    assert compare.compare_runs(first, first) == (pytest.approx(mean), pytest.approx(mean), 0, 0, 1)
    better = first.copy()
    better[..., 0] = first[..., 1]  # all is right
    assert compare.compare_runs(first, better)[4] == 1 / 10_001  # the least there is
    assert compare.compare_runs(first[:, :3], better[:, :3])[4] == pytest.approx(2 / 2**3, abs=0.02)
    assert compare.compare_runs(first[:, :1], better[:, :1])[4] == 1  # one document says nothing
    x, y, low, high, p = compare.compare_runs(first, other)
    assert compare.compare_runs(other, first) == pytest.approx((y, x, -high, -low, p), abs=1e-9)
    assert compare.compare_runs(first[::-1], other) == pytest.approx((x, y, low, high, p), abs=1e-9)
    assert compare.compare_runs(first[[0, 1, 0, 1]], other) == pytest.approx((x, y, low, high, p), abs=1e-9)
    nothing = np.zeros((1, 5, 2))
    assert compare.compare_runs(nothing, nothing) == (0, 0, 0, 0, 1)


# ---------------------------------------------------------------- results on disk


def write_columns(folder, n=40):
    """A corpus in columns of n sentences."""
    rng = np.random.default_rng(4)
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        tags = [[str(rng.choice(["O", "B-Disease", "B-Drug"])) for _ in range(rng.integers(3, 9))] for _ in range(n)]
        text = "\n".join("".join(f"w{i}\t{tag}\n" for i, tag in enumerate(x)) for x in tags)
        (folder / f"{split}.conll").write_text(text)
    return folder


def write_brat(folder, n=20):
    """A corpus of n documents, some with an entity in two parts, which labels cannot express."""
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for i in range(n):
            (folder / split / f"{i}.txt").write_text(f"left and right heart failure {i}\nno fever\n")
            pieces = "0 4;15 28" if i % 3 == 0 else "15 28"
            text = "left heart failure" if i % 3 == 0 else "heart failure"
            (folder / split / f"{i}.ann").write_text(f"T1\tDisease {pieces}\t{text}\n")
    return folder


def write_ner(out, corpus, seeds, errors, **signature):
    """A results folder as fine-tuning leaves it, of which a share of the predictions is wrong. Returns: its record."""
    documents, rng = read_corpus("custom", str(corpus))[0]["test"], np.random.default_rng([*map(ord, out.name)])
    record = {"checkpoint": out.name, "corpus": "custom", "task": "custom", "language": ""}
    record["settings"] = {"untrained": False}
    record["signature"] = {
        "checkpoint": f"/runs/{out.name}", "corpus": "custom", "data": str(corpus.resolve()), "labels": "", "lr": 2e-5,
        "checkpoint sha256": out.name, "data sha256": "d1",
    } | signature  # fmt: skip
    out.mkdir(parents=True)
    record["runs"] = []
    for seed in seeds:
        wrong = lambda label: str(rng.choice(["O", "B-Drug", "I-Drug"])) if rng.random() < errors else label  # noqa: E731
        predictions = [[wrong(label) for label in d.labels] for d in documents]
        write_predictions(out / f"predictions-{seed}.conll", documents, predictions)
        record["runs"].append({"seed": seed} | finetune.score(documents, predictions, CORPORA["custom"]))
    write_json(out / "scores.json", record)
    return record


def write_links(path, ranks, documents, **signature):
    """A file of beyond.link with the ranks of {choice: {method: ranks}}. Returns: its record."""
    mentions = [Mention(d, "x", "x", (("C1",),)) for d in documents]
    dictionary = SimpleNamespace(ids=["C1"], term=np.zeros(1, int))
    found = {}
    for choice, of_method in ranks.items():
        first = next(iter(of_method.values()), [])
        gold = [[np.zeros(1, int)] if rank < np.inf else None for rank in first]
        task = LinkingTask(mentions, dictionary, ["x"], np.zeros(len(mentions), int), gold, None, Counter())
        found[choice] = ranking.linking_record(task, {k: np.array(x, float) for k, x in of_method.items()})
    record = {"checkpoint": path.parent.name, "settings": {"corpus": "x"}, "signature": {
        "checkpoint": str(path.parent), "corpus": "/gold", "split": "test", "lang": " ".join(ranks), "pooling": "",
        "dictionary sha256": "d1", "checkpoint sha256": path.parent.name,
    } | signature}  # fmt: skip
    record |= found[""] if [*ranks] == [""] else {"choices": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def rows_of(shown):
    """[(name, first, other, difference, low, high, p), ...] of a printed comparison."""
    number = r"\s*\[?([+-]?\d+\.\d+)[,\]]?"
    found = re.findall(rf"^  (\S.*?){number * 6}$", shown, re.M)
    return [(name, *map(float, values)) for name, *values in found]


@pytest.mark.parametrize("form", [write_columns, write_brat])
def test_ner_is_compared_with_the_scores_of_the_results(form, tmp_path, capsys, monkeypatch):
    """Means are those of scores.json; intervals and p-values those of the sequences, scored one by one."""
    monkeypatch.chdir(tmp_path)
    corpus = form(tmp_path / "corpus")
    ways = {"a0": (range(2), 0.5), "a1": (range(2), 0.55), "b0": (range(2), 0.2), "b1": ([7], 0.3)}
    records = {name: write_ner(tmp_path / name, corpus, *x) for name, x in ways.items()}
    run_command(compare, "a0", "a1", "vs", "b0", "b1/scores.json")
    shown = capsys.readouterr().out
    unit = "40 sentences" if form is write_columns else "20 documents"
    assert f"NER, custom in {corpus}: {unit}\n  1: a0 a1 (4 runs)\n  2: b0 b1/scores.json (3 runs)\n" in shown
    assert "note" not in shown
    rows = rows_of(shown)
    assert [row[0] for row in rows] == ["strict entity F1", "paper's F1"]
    documents = read_corpus("custom", str(corpus))[0]["test"]
    for (_, first, other, difference, low, high, p), kind in zip(rows, ("entity", "paper")):
        means = [
            np.mean([run[kind][2] for name in ("x0", "x1") for run in records[name.replace("x", way)]["runs"]])
            for way in "ab"
        ]
        assert [first, other, difference] == pytest.approx([*means, means[1] - means[0]], abs=0.0051)
        assert low < difference < high and 0.0001 <= p <= 1
    if form is write_brat:
        assert any(len(spans) > 1 for d in documents for _, spans in d.gold)
    folder = shutil.move(corpus, tmp_path / "moved")
    with pytest.raises(UserError, match="there is no such folder"):
        run_command(compare, "a0", "vs", "b0")
    run_command(compare, "a0", "a1", "vs", "b0", "b1", "--data", folder)
    assert rows_of(capsys.readouterr().out) == rows


def test_sentences_of_a_document_are_drawn_together(tmp_path, capsys):
    """In a form of the hub that says the document of each sentence."""
    rng = np.random.default_rng(5)
    for split in ("train", "test"):
        rows = [{"document_id": f"{split}{i // 4}", "tokens": ["a", "b", "c"],
                 "ner_tags": [str(rng.choice(["O", "B-Drug"])) for _ in range(3)]} for i in range(24)]  # fmt: skip
        (tmp_path / "corpus").mkdir(exist_ok=True)
        (tmp_path / "corpus" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, errors in (("a", 0.9), ("b", 0.1)):
        write_ner(tmp_path / name, tmp_path / "corpus", [0], errors)
    run_command(compare, tmp_path / "a", "vs", tmp_path / "b")
    shown = capsys.readouterr().out
    assert ": 6 documents\n" in shown
    assert rows_of(shown)[1][6] == pytest.approx(2 / 2**6, abs=0.01)  # six documents, b better in each


def test_links_are_compared_by_choice_and_method(tmp_path, capsys):
    """Accuracies and MRR over all mentions, of the choices of languages; null is a miss."""
    rng, documents = np.random.default_rng(6), [f"d{i // 3}" for i in range(60)]
    miss = np.arange(60) % 10 == 0
    ranks = {name: {choice: {method: np.where(miss, np.inf, rng.choice([1, 2, 2.5, 7], 60)).tolist()
                             for method in ("exact match", "trigrams", "cls", "mean + trigrams")}
                    for choice in ("fr", "fr,en")} for name in ("a0", "a1", "b0")}  # fmt: skip
    for x in ranks.values():
        x["fr"]["trigrams"] = ranks["a0"]["fr"]["trigrams"]
    records = {name: write_links(tmp_path / name / "links.json", x, documents) for name, x in ranks.items()}
    paths = {name: tmp_path / name / "links.json" for name in ranks}
    run_command(compare, paths["a0"], paths["a1"], "vs", paths["b0"])
    shown = capsys.readouterr().out
    assert "linking, /gold, test: 60 mentions in 20 documents\n" in shown
    rows = {row[0]: row[1:] for row in rows_of(shown)}
    assert len(rows) == 2 * 3 * 3 and not any("exact" in name for name in rows)
    for name, row in rows.items():
        method, choice, score = re.fullmatch("(.+), names in (.+): (.+)", name).groups()
        key = {"accuracy at 1": "at_1", "accuracy at 5": "at_5", "MRR": "mrr"}[score]
        kept = {k: r["choices"][choice]["scores"]["all"]["methods"][method][key] for k, r in records.items()}
        means = [(kept["a0"] + kept["a1"]) / 2, kept["b0"]]
        assert row[:3] == pytest.approx((*means, means[1] - means[0]), abs=0.0051)
        assert row[3] <= row[2] <= row[4]
    assert rows["trigrams, names in fr: accuracy at 1"][2:] == (0, 0, 0, 1)
    single = {name: {"": x["fr"]} for name, x in ranks.items()}
    del single["b0"][""]["cls"]
    for name, x in single.items():
        write_links(paths[name], x, documents)
    run_command(compare, paths["a0"], "vs", paths["a1"], "vs", paths["b0"])
    shown = capsys.readouterr().out
    assert "note" not in shown and "2 - 1" in shown and "3 - 1" in shown
    assert [row[0] for row in rows_of(shown)][:4] == [f"trigrams: {x}" for x in ("accuracy at 1", "accuracy at 5",
        "MRR")] + ["mean + trigrams: accuracy at 1"]  # fmt: skip


def test_each_way_is_compared_at_its_own_pooling(tmp_path, capsys, monkeypatch):
    """Where each has one. Its name comes from the links: the setting may be empty, as a checkpoint's files name one."""
    monkeypatch.chdir(tmp_path)
    rng, documents, kept = np.random.default_rng(8), [f"d{i // 3}" for i in range(30)], {}
    spelling = rng.choice([1, 2, 7], 30).tolist()
    poolings = {"a": ["cls"], "b": ["mean"], "c": ["mean"], "both": ["cls", "mean"]}
    for name, of_file in poolings.items():
        methods = [x for pooling in of_file for x in (pooling, f"{pooling} + trigrams")]
        ranks = {"trigrams": spelling} | {x: rng.choice([1, 2, 7], 30).tolist() for x in methods}
        record = write_links(tmp_path / f"{name}.json", {"": ranks}, documents, pooling="mean" if name == "b" else "")
        kept[name] = record["scores"]["all"]["methods"]

    def compared(*names):
        """{row: its scores} of a comparison, and the text before it."""
        run_command(compare, *names)
        head, _, shown = capsys.readouterr().out.partition("\n\n")
        assert "pooling is not" not in head
        return {row[0]: row[1:4] for row in rows_of(shown)}, head

    rows, head = compared("a.json", "vs", "b.json", "c.json")
    assert "  1: a.json (1 run, vectors at cls)\n  2: b.json c.json (2 runs, vectors at mean)" in head
    assert [*rows] == [f"{x}: {y}" for x in ("trigrams", "vectors", "vectors + trigrams")
                       for y in ("accuracy at 1", "accuracy at 5", "MRR")]  # fmt: skip
    for added in ("", " + trigrams"):
        of_ways = [kept["a"][f"cls{added}"]["mrr"], np.mean([kept[x][f"mean{added}"]["mrr"] for x in "bc"])]
        assert rows[f"vectors{added}: MRR"] == pytest.approx((*of_ways, of_ways[1] - of_ways[0]), abs=0.0051)
    rows, head = compared("b.json", "vs", "c.json")
    assert "mean: MRR" in rows and not any("vectors" in row for row in rows) and head.count("vectors at mean") == 2
    rows, head = compared("a.json", "vs", "both.json")
    assert "cls + trigrams: MRR" in rows and not any("vectors" in row or "mean" in row for row in rows)
    assert "(1 run, vectors at cls)" in head and "(1 run, vectors at cls and mean)" in head
    line = "there is no score of vectors that all of these results have; give beyond.link one --pooling"
    assert refused("a.json", "vs", "b.json", "vs", "both.json") == line


def test_no_difference_is_minus_zero(tmp_path, capsys):
    for name, rank in (("a", 80_000), ("b", 90_000)):
        write_links(tmp_path / f"{name}.json", {"": {"cls": [1, rank, rank]}}, ["x", "y", "z"])
    run_command(compare, tmp_path / "a.json", "vs", tmp_path / "b.json")
    shown = capsys.readouterr().out
    assert "cls: MRR 33.33 33.33 +0.00 [+0.00, +0.00]" in " ".join(shown.split()) and "-0.00" not in shown


def test_it_runs_as_a_program(tmp_path):
    for name in "ab":
        write_links(tmp_path / name / "links.json", {"": {"cls": [1, 2, 1]}}, ["x", "y", "y"])
    found = command("-m", "beyond.compare", tmp_path / "a/links.json", "vs", tmp_path / "b/links.json")
    assert (found.returncode, found.stderr) == (0, "")
    assert rows_of(found.stdout)[0] == ("cls: accuracy at 1", 66.67, 66.67, 0, 0, 0, 1)
    found = command("-m", "beyond.compare", tmp_path / "a/links.json")
    line = (
        "python -m beyond.compare: error: give two ways or more, with 'vs' between them: RESULTS ... vs RESULTS ...\n"
    )
    assert (found.returncode, found.stdout, found.stderr) == (1, "", line)


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with results of NER (a, b) and of linking (a.json, b.json), of which tests spoil b."""
    monkeypatch.chdir(tmp_path)
    corpus = write_columns(tmp_path / "corpus", 4)
    for name in "ab":
        write_ner(tmp_path / name, corpus, [0], 0.3)
        write_links(tmp_path / f"{name}.json", {"": {"cls": [1, 2, 1]}}, ["x", "y", "y"])
    return tmp_path


def refused(*argv):
    """The one line with which a comparison ends."""
    with pytest.raises(UserError) as e:
        run_command(compare, *argv)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("argv, message", [
    (["a"], "give two ways or more"),
    (["a", "b"], "give two ways or more"),
    (["a", "vs"], "give two ways or more"),
    (["vs", "a"], "give two ways or more"),
    (["a", "vs", "vs", "b"], "give two ways or more"),
    (["vs"], "give two ways or more"),
    (["a", "a", "vs", "b"], "a is given twice; a pattern such as mlm* may take in results of another way"),
    (["a", "vs", "b", "a/"], "a/ is given twice, also as a; a pattern"),
    (["a", "vs", "none"], "none not found; give results folders of finetune.py, or linking-*.json of beyond.link"),
    (["a", "vs", "corpus"], "corpus/scores.json not found; give results folders"),
    (["a", "vs", "b.json"], "a and b.json cannot be compared: one is of NER, the other of linking"),
    (["a", "vs", "a/predictions-0.conll"], "a/predictions-0.conll is no file of results, or a damaged one (Expecting"),
    (["a", "vs", "/dev/zero"], "/dev/zero is no file of results, or a damaged one (a folder, a pipe or a device)"),
], ids=range(13))  # fmt: skip
def test_mistaken_arguments(argv, message, place):
    assert message in refused(*argv)


@pytest.mark.parametrize("spell", [
    lambda path: path.resolve(),
    lambda path: path / "scores.json" if path.is_dir() else f"../{path.resolve().parent.name}/{path}",
    lambda path: os.symlink(path.resolve(), "link") or "link",
    lambda path: os.link(path / "scores.json" if path.is_dir() else path, "same.json") or "same.json",
], ids=("absolute", "another spelling", "symbolic link", "hard link"))  # fmt: skip
@pytest.mark.parametrize("path", [Path("a"), Path("a.json")])
def test_a_result_by_two_paths(path, spell, place):
    other = spell(path)
    assert f"{other} is given twice, also as {path}; a pattern" in refused(path, "vs", other)
    assert "is given twice" in refused(path, other, "vs", path.with_stem("b"))


def change(record, *keys, value):
    """A copy of a record in which the value at the end of some keys is another one; it is deleted if None."""
    record = json.loads(json.dumps(record))
    *path, last = keys
    inner = record
    for key in path:
        inner = inner[key]
    inner[last] = value
    if value is None:
        del inner[last]
    return record


@pytest.mark.parametrize("keys, value, message", [
    (["signature"], None, "b/scores.json: no signature in it; it is damaged or of an earlier version, so score again"),
    (["signature", "data sha256"], None, "no data sha256 in signature"),
    (["signature", "corpus"], "e3c", "a and b cannot be compared, as they differ in corpus (custom, e3c)"),
    (["signature", "labels"], "tags", "as they differ in labels (none, tags)"),
    (["signature", "data sha256"], "d2", "as they differ in the documents or labels of the training or"),
    (["signature", "labels"], 7, "labels in signature is 7"),
    (["runs"], [], "b holds no seed yet"),
    (["runs"], {}, "runs is no list"),
    (["runs", 0, "seed"], -1, "seed in runs is -1"),
    (["runs", 0, "seed"], 5, "b/predictions-5.conll not found; copy the whole results folder, or run finetune.py"),
    (["runs", 0, "entity"], [1, 2], "entity in runs is no list of 3"),
    (["runs", 0, "entity"], [1.0, 2.0, 3.0], "predictions-0.conll does not give the scores of scores.json; has "),
], ids=range(12))  # fmt: skip
def test_spoilt_scores(keys, value, message, place):
    path = place / "b" / "scores.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()), *keys, value=value)))
    assert message in refused("a", "vs", "b")


@pytest.mark.parametrize("names, key, words", [
    (["a/scores.json", "b/scores.json"], "data sha256", "the documents or labels of the training or test split"),
    (["a.json", "b.json"], "dictionary sha256", "the mentions or the names of the dictionary"),
])  # fmt: skip
def test_digests_are_said_in_words(names, key, words, place):
    record = change(json.loads((place / names[1]).read_text()), "signature", key, value="0123456789abcdef" * 4)
    (place / names[1]).write_text(json.dumps(change(record, "signature", "train_mentions", value=False)))
    line = refused(names[0], "vs", names[1])
    words = f"train_mentions (none, False), {words}"
    assert line == f"{names[0]} and {names[1]} cannot be compared, as they differ in {words}"


@pytest.mark.parametrize("keys, value, message", [
    (["ranks"], None, "b.json: no ranks in it; it is damaged or of an earlier version, so score again"),
    (["document_of_mention"], None, "no document_of_mention in it"),
    (["signature", "dictionary sha256"], "d2", "as they differ in the mentions or the names of the dictionary"),
    (["ranks", "cls"], [1, 2], "b.json: its lists of ranks and documents are not of the same mentions; score again"),
    (["ranks", "cls"], [1, 2, 0.5], "ranks is 0.5, which is no rank"),
    (["ranks", "cls"], [1, 2, True], "is True, which is no rank"),
    (["ranks", "cls"], [1, 2, "x"], "is 'x', which is no rank"),
    (["ranks", "cls"], [1, 2, [1]], "is [1], which is no rank"),
    (["ranks", "cls"], 3, "cls in ranks is no list"),
    (["ranks"], [], "ranks is no object"),
    (["ranks"], {}, "there is no score of vectors that all of these results have"),
    (["ranks"], {"trigrams": [1, 2, 1]}, "there is no score of vectors that all of these results have"),
    (["document_of_mention"], [0, 0, 1], "its lists of ranks and documents are not of the same mentions"),
    (["document_of_mention"], [0, 1, "x"], "document_of_mention is 'x'"),
    (["choices"], {}, "there is no score of vectors that all of these results have"),
    (["choices"], {"fr": {}}, "no document_of_mention in fr in choices"),
    (["signature"], [], "signature is no object"),
], ids=range(17))  # fmt: skip
def test_spoilt_links(keys, value, message, place):
    path = place / "b.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()), *keys, value=value)))
    assert message in refused("a.json", "vs", "b.json")


def test_no_mentions(place):
    for name in "ab":
        path = place / f"{name}.json"
        record = change(json.loads(path.read_text()), "ranks", value={"cls": []})
        path.write_text(json.dumps(record | {"document_of_mention": []}))
    assert "there is no score of vectors that all of these results have" in refused("a.json", "vs", "b.json")


@pytest.mark.parametrize("content, message", [
    (b"", "(Expecting value: line 1 column 1 (char 0))"),
    (b"# Title\n", "(Expecting value: line 1 column 1 (char 0))"),
    (b"{", "(Expecting property name"),
    (b'{"checkpoint": "ru', "(Unterminated string"),
    (b"[]", "(it is no object)"),
    (b'{"x": NaN}', "('NaN' is not a number)"),
    (b'{"signature": "\xff"}', "(row 1: not UTF-8; convert the file)"),
    (b"[" * 100_000, "(maximum recursion depth exceeded"),
    (b"9" * 5000, "(Exceeds the limit"),
    (b"{}", ""),
    (b'{"checkpoint": "x", "data": "d", "signature": {"data sha256": "d"}, "scores": {}}', ""),  # of beyond.evaluate
], ids=range(11))  # fmt: skip
def test_other_files(content, message, place):
    """A file that is no result has no age: it is not to be scored again."""
    (place / "b.json").write_bytes(content)
    line = refused("a.json", "vs", "b.json")
    kind = "is no file of results, or a damaged one " if message else "holds neither scores of NER nor links"
    assert line.startswith(f"b.json {kind}{message}") and "earlier" not in line
    assert line.endswith("; give results folders of finetune.py, or linking-*.json of beyond.link")


@pytest.mark.parametrize("spoil, row", [
    (lambda rows: [], 1),
    (lambda rows: rows[:3], 4),
    (lambda rows: [*rows, "w\tO\tO"], None),
    (lambda rows: ["", *rows], 1),
    (lambda rows: ["w0", *rows[1:]], 1),
    (lambda rows: [rows[0], rows[1].replace("w1", "w2"), *rows[2:]], 2),
    (lambda rows: [row.rpartition("\t")[0] for row in rows], 1),
], ids=range(7))  # fmt: skip
def test_spoilt_predictions(spoil, row, place):
    path = place / "b" / "predictions-0.conll"
    rows = path.read_text().split("\n")[:-1]
    path.write_text("".join(x + "\n" for x in spoil(rows)))
    line = f"b/predictions-0.conll, row {row or len(rows) + 1} does not fit the test split of {place / 'corpus'}; give"
    assert line in refused("a", "vs", "b")


def test_another_corpus(place):
    other = write_brat(place / "other")
    line = f"a/predictions-0.conll, row 1 does not fit the test split of {other}; give the corpus as it was scored"
    assert f"{line} (--data), or run finetune.py again" == refused("a", "vs", "b", "--data", other)
    line = "--data is for the corpus of NER, and results of linking need none; leave it out"
    assert refused("a.json", "vs", "b.json", "--data", other) == line


def test_a_corpus_that_has_changed(place):
    path = place / "corpus" / "test.conll"
    path.write_text(path.read_text().replace("w0", "W0", 1))
    assert "a/predictions-0.conll, row 1 does not fit the test split" in refused("a", "vs", "b")
    (place / "corpus" / "test.conll").unlink()
    assert "holds no test split" in refused("a", "vs", "b")
