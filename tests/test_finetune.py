"""One-shot token classification: windows, the two scores, a run of the command and its results folder."""

import itertools
import json
import math
import os
import random
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from seqeval.metrics.v1 import precision_recall_fscore_support as seqeval_scores
from seqeval.scheme import IOB2
from sklearn.metrics import precision_recall_fscore_support as sklearn_scores
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as algorithms

import configs
import finetune
import kgi
from configs import UserError
from support import corpora, results, runs, tables, tokenizers
from support.arrays import bootstrap
from support.files import folder_lock
from support.labels import Document, align_entities
from support.windows import OVERLAP, cut_words, make_windows
from tests.conftest import command, run_command


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    """A model after no step of training, as a run folder holds it."""
    out = tmp_path_factory.mktemp("run") / "tiny"
    out.mkdir()
    sizes = {"layers": 1, "heads": 2, "dim": 32, "ffn": 64}
    runs.export_checkpoint(kgi.set_up(configs.Train(data=str(dataset), out=str(out), steps=2, device="cpu", **sizes)))
    return out


def documents(sequences):
    """Sentences of (words, labels), or of labels alone, as Documents."""
    sequences = [x if isinstance(x, tuple) else (["x"] * len(x), x) for x in sequences]
    return [Document(str(i), *x) for i, x in enumerate(sequences)]


E3C, PLAIN = corpora.CORPORA["e3c"], corpora.CORPORA["meddocan"]


@pytest.mark.parametrize("gold, pred, want", [
    ("O O O O O", "O O O O O", (1, 1, 1)),
    ("O B O O O", "O O O O O", (0.4, 0.5, 0.4444)),
    ("O O O O O", "O O B O O", (0.5, 0.4, 0.4444)),
    ("O B I O O", "O B B O O", (0.5, 0.6667, 0.5556)),
])  # fmt: skip
def test_the_papers_metric_on_worked_examples(gold, pred, want):
    assert finetune.sequence_scores(gold.split(), pred.split()) == pytest.approx(want, abs=1e-4)


def random_tags(rng, n):
    """Valid IOB2."""
    out = []
    for _ in range(n):
        before = out[-1] if out else "O"
        out.append(rng.choice(["O", "O", "B-x", "B-y"] + ([f"I-{before[2:]}"] if before != "O" else [])))
    return out


@pytest.mark.parametrize("seed", range(20))
def test_the_papers_metric_is_scikit_learns(seed):
    rng = random.Random(seed)
    gold = [random_tags(rng, rng.randint(1, 12)) for _ in range(15)]
    pred = [random_tags(rng, len(g)) for g in gold]
    want = [sklearn_scores(g, p, average="macro", zero_division=0)[:3] for g, p in zip(gold, pred)]
    assert [finetune.sequence_scores(g, p) for g, p in zip(gold, pred)] == [pytest.approx(w) for w in want]
    got = finetune.score(documents(gold), pred, E3C)
    assert got["paper"] == pytest.approx(100 * np.mean(want, axis=0))
    plain = [[t.split("-")[-1] for t in x] for x in gold], [[t.split("-")[-1] for t in x] for x in pred]
    want = [sklearn_scores(g, p, average="macro", zero_division=0)[:3] for g, p in zip(*plain)]
    assert finetune.score(documents(gold), pred, PLAIN)["paper"] == pytest.approx(100 * np.mean(want, axis=0))
    all_o = [sklearn_scores(g, ["O"] * len(g), average="macro", zero_division=0)[2] for g in gold]
    assert got["constant_baseline"] == pytest.approx(100 * np.mean(all_o))


@pytest.mark.parametrize("seed", range(20))
def test_entity_scores_are_seqevals(seed):
    """Micro, macro and of each label, strict. Predictions need not be valid IOB2: a stray I-X is not an entity."""
    rng = random.Random(seed)
    gold = [random_tags(rng, rng.randint(1, 12)) for _ in range(15)]
    pred = [[t if rng.random() < 0.7 else rng.choice(["O", "B-x", "I-x", "I-y"]) for t in g] for g in gold]
    got = finetune.score(documents(gold), pred, E3C)
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    for average, name in (("micro", "entity"), ("macro", "macro")):
        want = seqeval_scores(gold, pred, average=average, **strict)[:3]
        assert got[name] == pytest.approx([100 * x for x in want])
    each = np.array(seqeval_scores(gold, pred, average=None, **strict))
    assert np.array(list(got["labels"].values())) == pytest.approx((each * [[100], [100], [100], [1]]).T)


def test_scores_are_of_characters_against_all_that_is_marked():
    """What labels cannot express counts as missed: a nested entity, one within a word, one of two fragments."""
    text, issues = "acute hepatitis B of the liver", Counter()
    gold = [("D", ((0, 17),)), ("A", ((25, 30),)), ("D", ((6, 15),)), ("D", ((18, 20), (25, 30)))]
    document = align_entities("x", text, gold, None, issues)
    got = finetune.score([document], [document.labels], PLAIN)
    assert sum(issues.values()) == 3 and document.labels == ["B-D", "I-D", "I-D", "B-D", "I-D", "I-D"]
    assert got["entity"] == pytest.approx([50, 25, 100 / 3]) and got["labels"]["A"] == [0, 0, 0, 1]


@pytest.mark.parametrize("kind", ["Sign-", "-Sign", "-", "Sign or symptom", "B-"])
def test_a_perfect_tagger_gets_100_whatever_its_types_are_called(kind):
    text = "acute pain of the liver"
    document = align_entities("x", text, [(kind, ((0, 10),)), ("Sign", ((18, 23),))], None, Counter())
    got = finetune.score([document], [document.labels], E3C)
    assert got["entity"] == [100, 100, 100] and got["labels"][kind] == [100, 100, 100, 1]


def test_parts_of_speech_are_scored_by_token():
    gold, pred = [["NOM", "PUN", "NOM"], ["ADJ"]], [["NOM", "PUN", "ADJ"], ["ADJ"]]
    got = finetune.score(documents(gold), pred, corpora.CORPORA["cas-pos"], "NOM")
    flat = [sum(x, []) for x in (gold, pred)]
    assert got["entity"] == pytest.approx([75, 75, 75])
    assert got["macro"] == pytest.approx([100 * x for x in sklearn_scores(*flat, average="macro")[:3]])
    assert got["constant_baseline"] == pytest.approx(100 * 0.8 / 2 / 2)  # NOM 0.8, PUN 0; of the second sequence 0


def test_the_constant_baseline_is_scored_as_entities():
    """Of B-X each token is an entity; a lone I-X is none, nor is O."""
    gold = documents([["B-x", "B-x", "I-x"], ["B-x", "O"], ["B-y"]])
    pred = [["O"] * len(d.tokens) for d in gold]
    want = {"B-x": 100 * 2 * 2 / (6 + 4), "O": 0, "I-x": 0, "B-y": 100 * 2 * 1 / (6 + 4)}
    assert {k: finetune.score(gold, pred, E3C, k)["constant_baseline_entity"] for k in want} == pytest.approx(want)
    parts_of_speech = documents([["NOM", "PUN", "NOM", "ADJ"]])
    got = finetune.score(parts_of_speech, [["ADJ"] * 4], corpora.CORPORA["cas-pos"], "NOM")
    assert got["constant_baseline_entity"] == pytest.approx(50)


def test_the_confidence_interval_resamples_documents():
    """Sentences of one document are resampled together: with a single one the interval has no width."""
    gold = [["B-x", "O"], ["O", "O"], ["B-y", "B-x"]]
    pred = [["B-x", "O"], ["O", "O"], ["O", "B-x"]]
    sentences = documents(gold)
    low, high = finetune.score(sentences, pred, E3C)["interval"]["entity"]
    assert low < 80 < high
    for d in sentences:
        d.group = "one"
    assert finetune.score(sentences, pred, E3C)["interval"]["entity"] == pytest.approx([80, 80])
    sums = bootstrap([0, 1, 0], np.array([[1.0], [10.0], [2.0]]), 2000)[:, 0]
    assert {*sums} == {6, 13, 20} and np.mean(sums == 13) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("max_len", [8, 11, 64])
def test_windows_hold_every_word(dataset, max_len):
    """Each word in a window, at its first token; windows no longer than allowed and all of each word in one."""
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    special = tokenizers.special_ids(tokenizer)
    rng = random.Random(0)
    vocabulary = [*"acute inflammation of the liver , kidney xqzkwv \u200b".split(" "), "zzzzzzzzzzzzzz"]
    sentences = documents([([rng.choice(vocabulary) for _ in range(rng.randint(1, 60))], []) for _ in range(40)])
    windows = make_windows(sentences, tokenizer, special, max_len)
    seen = [set() for _ in sentences]
    for sentence, first, ids, positions in windows:
        words = sentences[sentence].tokens
        assert len(ids) <= max_len and ids[0] == special["cls"] and ids[-1] == special["sep"] and positions
        for k, p in enumerate(positions):
            seen[sentence].add(first + k)
            pieces = tokenizer.encode(words[first + k], add_special_tokens=False).ids[: max_len - 2] or [special["unk"]]
            assert ids[p : p + len(pieces)] == pieces
        assert len(positions) == len({*positions}) and first + len(positions) <= len(words)
    assert seen == [set(range(len(d.tokens))) for d in sentences]
    whole = [i for i in range(40) if sum(w.document == i for w in windows) == 1]
    assert whole and (max_len == 64 or len(whole) < 40)


def test_a_tokenizer_with_metaspace_puts_a_space_before_every_word():
    """Also before one that touches the word before it, as make_windows says."""
    tokenizer = Tokenizer(algorithms.Unigram([("<s>", 0), ("</s>", 0), ("<unk>", 0), ("\u2581x", -1), ("x", -1)], 2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    document = align_entities("x", "x-x x", [], None, Counter())
    ((_, _, ids, _),) = make_windows([document], tokenizer, tokenizers.special_ids(tokenizer), 20)
    assert [tokenizer.id_to_token(i) for i in ids[1:-1] if i != 2] == ["\u2581x"] * 3


def test_windows_end_at_lines(dataset):
    """Where a line end fits in, none overlap and each begins a line; a line too long is covered by overlaps."""
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    lines = ["liver " * n for n in (3, 4, 2, 5, 1, 30, 2)]
    document = align_entities("x", "\n".join(lines), [], None, Counter())
    per_word = len(tokenizer.encode("liver", add_special_tokens=False).ids)
    windows = make_windows([document], tokenizer, tokenizers.special_ids(tokenizer), 2 + 10 * per_word)
    spans = [(w.first_word, w.first_word + len(w.word_positions)) for w in windows]
    assert spans == [(0, 9), (9, 15), (15, 25), (20, 30), (25, 35), (30, 40), (35, 45), (45, 47)]


@pytest.mark.parametrize("room", [6, 20, 100, 254])
def test_long_lines_are_cut_evenly_and_lose_no_short_entity(room):
    """As few windows as can be, by trying all numbers; each run of words up to the overlap is whole in one of them."""
    rng, overlap = np.random.default_rng(room), min(OVERLAP, room // 2)
    for n_words in [*range(room + 1, 3 * room, 7), 10 * room]:
        even = [*cut_words(np.arange(n_words + 1), np.zeros(0, int), room)]
        fewest = next(n for n in range(1, n_words) if n * room - (n - 1) * overlap >= n_words)
        assert len(even) == fewest and max(b - a for a, b in even) - min(b - a for a, b in even) <= fewest
    for _ in range(30):
        offset = np.cumsum([0, *rng.integers(1, rng.choice([2, 5, room + 1]), 300)])
        breaks = np.flatnonzero(rng.random(300) < rng.choice([0, 0.01, 0.2]))
        windows = [*cut_words(offset, breaks, room)]
        assert windows[0][0] == 0 and windows[-1][1] == 300 and all(offset[b] - offset[a] <= room for a, b in windows)
        for (a, b), (c, d) in itertools.pairwise(windows):
            assert a < c <= b < d
        for first in range(300):
            end = int(np.searchsorted(offset, offset[first] + overlap, side="right")) - 1
            end = min([end, *breaks[breaks > first]])  # an entity is in one line
            assert end <= first or any(a <= first and end <= b for a, b in windows)


def test_predictions_come_from_the_middle_of_windows(dataset):
    """Every word gets one label and its probability, from the window in which it is farthest from an edge."""
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    special = tokenizers.special_ids(tokenizer)
    sentences = documents([(["liver"] * 23, ["O"] * 23), (["kidney"] * 3, ["O"] * 3)])
    windows = make_windows(sentences, tokenizer, special, 10)
    labels = ["O", *(f"window {i}" for i in range(1, len(windows)))]
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].ids))

    def classifier(batch):
        assert [*map(id, batch)] == [id(windows[i]) for i in order]
        window = torch.tensor([i for i in order for _ in windows[i].word_positions])
        return torch.nn.functional.one_hot(window, len(windows)) * (1.0 + window[:, None])  # the later, the surer

    classifier.labels, classifier.device = labels, torch.device("cpu")
    predictions, probabilities = __import__("beyond.tag").tag.predict_with_probabilities(classifier, sentences, windows)
    for s, document in enumerate(sentences):
        for k in range(len(document.tokens)):
            distance = {
                i: min(k - w.first_word, w.first_word + len(w.word_positions) - 1 - k)
                for i, w in enumerate(windows)
                if w.document == s and w.first_word <= k < w.first_word + len(w.word_positions)
            }
            chosen = labels.index(predictions[s][k])
            assert distance[chosen] == max(distance.values())
            logits = torch.eye(len(windows))[chosen] * (1.0 + chosen)
            softmax = logits.softmax(0)
            assert probabilities[s][k].tolist() == pytest.approx([softmax.max().item(), softmax[0].item()])


def test_the_command(release, checkpoint, tmp_path):
    """Seeds start each from the same checkpoint: run 2 of two is run 1 of a call that starts there."""
    corpus = ["--corpus", "e3c", "--data", release / "ner" / "en"]
    base = ["finetune.py", checkpoint, *corpus, "--device", "cpu", "--lr", "1e-3"]
    p = command(*base, "--runs", 2, "--out", tmp_path / "two")
    assert p.returncode == 0, p.stderr
    assert "2 seeds, in per cent" in p.stdout and "40 + 40 sequences" in p.stdout
    assert f"next:  python -m beyond.tag {tmp_path / 'two'} < notes.txt" in p.stdout
    two = json.loads((tmp_path / "two" / "scores.json").read_text())["runs"]
    run_command(finetune, *base[1:], "--seed", 1, "--out", tmp_path / "one")
    one = json.loads((tmp_path / "one" / "scores.json").read_text())["runs"]
    assert one == two[1:] and two[0] != two[1]
    assert {len(p.read_text().split("\n\n")) for p in (tmp_path / "two").glob("predictions-[01].conll")} == {41}
    run_command(finetune, *base[1:], "--untrained", "--max_len", 12, "--out", tmp_path / "none")
    assert json.loads((tmp_path / "none" / "scores.json").read_text())["runs"][0] != two[0]


CORPUS = {"train.txt": "foie B-x\nva B-x\n\nmal B-x\n", "test.txt": "foie B-x\nva O\n"}


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_corpus(folder, **more):
    folder.mkdir(parents=True)
    for name, text in (CORPUS | more).items():
        (folder / name).write_text(text)
    return folder


def test_seeds_are_added_and_other_settings_refused(checkpoint, tmp_path, monkeypatch, capsys):
    """A folder holds results of one checkpoint, corpus and set of settings. What is in it stays until its successor is
    whole, and files of others stay."""
    monkeypatch.chdir(tmp_path)
    data, out = write_corpus(tmp_path / "A" / "fr"), tmp_path / "results" / "tiny" / "custom-fr"

    def tune(*more, data=data, run=checkpoint):
        run_command(finetune, run, "--data", data, "--device", "cpu", *more)
        return capsys.readouterr().out

    shown = tune("--runs", 2)
    assert "the F1 of always B-x" in shown and "holds seeds" not in shown
    assert [line.split()[-1] for line in shown.splitlines() if "95 % interval" in line or "[" in line][1:3] == [
        "33.33",
        "66.67",
    ]
    (out / "predictions-mine.conll").write_text("mine")
    (out / "predictions-7.conll").write_text("mine too")
    two = json.loads((out / "scores.json").read_text())["runs"]
    shown = tune("--seed", 1, "--runs", 2)
    assert f"{out.relative_to(tmp_path)} holds seeds 0, 1 of the same settings" in shown
    assert "seeds 1 are replaced, each when its new result is whole" in shown and "3 seeds, in " in shown
    record = json.loads((out / "scores.json").read_text())
    assert [r["seed"] for r in record["runs"]] == [0, 1, 2] and record["runs"][:2] == two
    tune("--max_len", 64)  # what 0 means with this checkpoint
    before = tree(out)
    assert before["predictions-mine.conll"] == b"mine" and before["predictions-7.conll"] == b"mine too"
    assert len(tables.read_results("results")["", "custom-fr"]["tiny"]) == 3
    capsys.readouterr()

    other = tmp_path / "other" / "tiny"
    shutil.copytree(checkpoint, other)
    for argv, where, wrong in (
        (["--lr", "1e-3"], {}, "lr 2e-05, now 0.001"),
        (["--max_len", "12", "--batch_size", "2"], {}, "max_len 64, now 12, batch_size 4, now 2"),
        ([], {"run": other}, f"checkpoint {checkpoint}, now {other}"),
        ([], {"data": write_corpus(tmp_path / "B" / "fr")}, f"data {data}, now {tmp_path / 'B' / 'fr'}"),
    ):
        with pytest.raises(UserError) as e:
            tune(*argv, **where)
        assert str(e.value) == f"results/tiny/custom-fr holds results of {wrong}; choose another --out"
    (data / "test.txt").write_text("foie O\n")
    with pytest.raises(UserError, match="results of data sha256 [0-9a-f]{64}, now"):
        tune()
    (data / "test.txt").write_text(CORPUS["test.txt"])
    settings = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(settings | {"note": "changed"}))
    try:
        with pytest.raises(UserError, match="results of checkpoint sha256"):
            tune()
    finally:
        (checkpoint / "config.json").write_text(json.dumps(settings))
    for content, why in (
        ("{", "is not a file of results"), ("[]", "is not a file of results"), ('{"runs": 3}', "is not a file"),
        (json.dumps(record | {"runs": [{"seed": 0}]}), "is not a file of results"),
        (json.dumps(record | {"runs": [two[0] | {"dev": 3}]}), "is not a file of results"),
        (json.dumps(record | {"runs": [two[0] | {"paper": [math.nan] * 3}]}), "is not a file of results"),
        (json.dumps(record | {"runs": [two[0] | {"dev": {"entity": [0, 0, 10**400]}}]}), "is not a file of results"),
        (json.dumps(record | {"runs": [two[0] | {"macro": [10**400] * 3}]}), "is not a file of results"),
        (json.dumps(record | {"runs": [two[0] | {"seed": 10**400}]}), "is not a file of results"),
        (json.dumps({k: v for k, v in record.items() if k != "signature"}), "without a record of all their settings"),
    ):  # fmt: skip
        (out / "scores.json").write_text(content)
        with pytest.raises(UserError, match=f"{why}.*choose another --out"):
            tune()
        assert tree(out) == before | {"scores.json": content.encode()}
    (out / "scores.json").unlink()
    os.mkfifo(out / "scores.json")
    with pytest.raises(UserError, match="is not a file of results and is not overwritten; choose another --out"):
        tune()


def test_a_run_that_fails_leaves_the_results_as_they_were(checkpoint, tmp_path, monkeypatch):
    argv = [checkpoint, "--data", write_corpus(tmp_path / "A"), "--device", "cpu", "--out", tmp_path / "r"]
    run_command(finetune, *argv)
    before = tree(tmp_path / "r")

    def fail(*_):
        raise UserError("the loss is nan")

    monkeypatch.setattr(finetune, "finetune_one_seed", fail)
    with pytest.raises(UserError, match="nan"):
        run_command(finetune, *argv)
    assert tree(tmp_path / "r") == before


def test_what_fine_tuning_replaces(checkpoint, tmp_path):
    """The tagger and predictions of an earlier run, whole or interrupted; nothing else, the checkpoint least of all."""
    out, argv = tmp_path / "r", [checkpoint, "--data", write_corpus(tmp_path / "A"), "--device", "cpu"]
    run_command(finetune, *argv, "--out", out)
    shutil.copytree(out, tmp_path / "whole")
    (out / "scores.json").unlink()

    def check(folder=checkpoint):
        results.check_results(configs.Finetune(str(folder), runs=3), out)

    check()
    shutil.rmtree(out / "model")
    check()
    for what, message in (
        (checkpoint, "r/model holds 1_Pooling, which this command did not write; move it away, or"),
        (tmp_path / "A", "r/model holds .*, which this command did not write"),
        (tmp_path / "whole" / "model", "r/model holds README.md, which this command did not write"),
    ):
        shutil.copytree(what, out / "model")
        (out / "model" / "README.md").touch() if what.name == "model" else (out / "model" / "README.md").unlink(True)
        with pytest.raises(UserError, match=message):
            check()
        shutil.rmtree(out / "model")
    shutil.copytree(tmp_path / "whole" / "model", out / "model")
    for folder in (out / "model", out / "model" / "1"):  # a tagger that is fine-tuned again
        with pytest.raises(UserError, match="r/model (is|holds) the input"):
            check(folder)
    (out / "predictions-2.conll").write_text("a\tB-x\n")
    with pytest.raises(UserError, match="predictions-2.conll is not an output of this command"):
        check()
    with pytest.raises(UserError, match="predictions-2.conll is not an output of this command"):
        run_command(finetune, *argv, "--out", out, "--runs", 3)
    assert (out / "predictions-2.conll").read_text() == "a\tB-x\n"


def test_fine_tuning_on_a_full_disk_leaves_nothing(checkpoint, tmp_path, full_disk):
    argv = [checkpoint, "--data", write_corpus(tmp_path / "A"), "--device", "cpu", "--out", tmp_path / "r" / "s"]
    with full_disk(5000), pytest.raises(UserError, match="r/s/model/[a-z.]*: cannot be written: File too large"):
        run_command(finetune, *argv)
    assert not (tmp_path / "r").exists()


def test_one_process_writes_into_a_folder(checkpoint, tmp_path):
    argv = [checkpoint, "--data", write_corpus(tmp_path / "A"), "--device", "cpu", "--out", tmp_path / "r"]
    with folder_lock(tmp_path / "r", "in use"):
        p = command("finetune.py", *argv)
    assert p.returncode == 1 and "another process writes results into it" in p.stderr and p.stderr.count("\n") == 1
    assert not tree(tmp_path / "r")
    run_command(finetune, *argv)


@pytest.mark.parametrize("argv, message", [
    (["MIXED", "--data", "NER", "--corpus", "e3c"], "the files are not of one checkpoint"),
    (["RUN"], "no folder of the corpus given; give --data, which must hold train.*"),
    ([], "the following arguments are required: CHECKPOINT"),
    (["RUN", "--data", "NER", "--corpus", "e3c", "--max_len", "2"], "max_len = 2"),
    (["RUN", "--data", "NER", "--corpus", "e3c", "--precision", "fp16"], "fine-tuning has no loss scaler"),
    (["RUN", "--data", "nowhere"], "--data 'nowhere': there is no such folder"),
    (["RUN", "--data", "HERE", "--corpus", "x"], "unknown corpus 'x'"),
    (["HERE", "--data", "NER", "--corpus", "e3c"], "a checkpoint folder?"),
])  # fmt: skip
def test_mistakes(release, checkpoint, tmp_path, argv, message):
    shutil.copytree(checkpoint, tmp_path / "mixed")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_tokens(["unheard-of"])  # one more than the weights have
    tokenizer.save(str(tmp_path / "mixed" / "tokenizer.json"))
    names = {"RUN": checkpoint, "HERE": tmp_path, "NER": release / "ner" / "en", "MIXED": tmp_path / "mixed"}
    with pytest.raises(UserError, match=re.escape(message)):
        run_command(finetune, *(names.get(a, a) for a in argv))


def test_a_mistake_is_one_line(tmp_path):
    p = command("finetune.py", tmp_path, "--data", "nowhere")
    assert (
        p.returncode != 0 and p.stderr.startswith("finetune.py: error: --data 'nowhere'") and p.stderr.count("\n") == 1
    )


def test_a_tagger_that_finds_nothing_says_why(checkpoint, tmp_path, capsys):
    """The settings that a run remembers are its defaults; those that are given are not replaced."""
    run = shutil.copytree(checkpoint, tmp_path / "run")
    data = write_corpus(tmp_path / "A", **{"train.txt": "foie B-x\n" + "va O\n" * 30})
    argv = [run, "--data", data, "--device", "cpu", "--seed", 4, "--out"]
    run_command(finetune, *argv, tmp_path / "one")
    shown = capsys.readouterr().out
    assert re.search("warning: seed 4 predicted (O|B-x) alone, for every word", shown)
    assert "the learning rate 2e-05 suits encoders of dim 768, and this one has 32." in shown
    assert "next:  python -m beyond.tag" in shown and "finetune.py tables" not in shown  # --out is no part of results/
    said = json.loads((run / "kgi.json").read_text())
    (run / "kgi.json").write_text(json.dumps(said | {"finetune": {"lr": 5e-2, "epochs": 20, "max_len": 32}}))
    run_command(finetune, *argv, tmp_path / "two", "--epochs", 40)
    shown = capsys.readouterr().out
    assert f"lr = 0.05, max_len = 32: from [finetune] of the config of {run}\n" in shown and "warning" not in shown
    settings = json.loads((tmp_path / "two" / "scores.json").read_text())["settings"]
    assert (settings["lr"], settings["epochs"], settings["max_len"]) == (0.05, 40, 32)


def test_a_link_to_a_checkpoint_keeps_its_own_name(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best").symlink_to(checkpoint)
    for given in ("best", "best/", "./x/../best"):
        s = configs.Finetune(given, data="A")
        assert str(results.describe_results(s, corpora.CORPORA["custom"])[0]) == "results/best/custom-A"
