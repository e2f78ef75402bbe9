"""One-shot NER: reading corpora, windows, the two scores, and the whole command."""

import json
import random
import re
import shutil
import warnings

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support as sklearn_scores
from tokenizers import Tokenizer

import configs
import data
import finetune
import kgi
from configs import UserError
from tests.conftest import command


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "tiny"
    kgi.Trainer(
        configs.Train(
            data=str(dataset), out=str(out), layers=1, heads=2, dim=32, ffn=64, steps=2, batch_size=30, device="cpu"
        )
    ).run()
    return out


def test_read_iob(tmp_path):
    file = tmp_path / "x.txt"
    for separator, newline, end in ((" ", "\n", "\n"), ("\t", "\r\n", ""), ("\t", "\n", "\n\n\n")):
        rows = [f"Diabète{separator}B-ety", f"sucré{separator}I-ety", "", "", f".{separator}O"]
        file.write_bytes((newline + newline.join(rows) + end).encode())
        assert finetune.read_iob(file) == [(["Diabète", "sucré"], ["B-ety", "I-ety"]), (["."], ["O"])]


@pytest.mark.parametrize("content, said", [
    (b"a O\nb\n", "line 2: 1 columns instead of 2"),
    (b"a O\n\nb O O\n", "line 3: 3 columns instead of 2"),
    (b"a O\nb ety\n", "line 2: unknown label 'ety'"),
    (b"a O\nb B-\n", "line 2: unknown label 'B-'"),
    (b"a O\nb I-x\n", "line 2: 'I-x' does not follow B-x or I-x"),
    (b"a B-y\nb I-x\n", "line 2: 'I-x' does not follow"),
    (b"a O\n\nb I-x\n", "line 3: 'I-x' does not follow"),
    (b"a O\nb \xff O\n", "line 2: not UTF-8"),
    (b"\n\n", "no sentence in it"),
])  # fmt: skip
def test_broken_iob(tmp_path, content, said):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"x.txt.*{said}"):
        finetune.read_iob(tmp_path / "x.txt")


def test_odd_characters_are_tokens(tmp_path):
    (tmp_path / "x.txt").write_text("\u2028x O\n\u00a0 O\n\x85 B-y\n", encoding="utf-8")
    assert finetune.read_iob(tmp_path / "x.txt") == [(["\u2028x", "\u00a0", "\x85"], ["O", "O", "B-y"])]


def test_read_corpus(tmp_path, capsys):
    with pytest.raises(UserError, match="unknown corpus 'e4c'; it is one of e3c, ncbi-disease, iob"):
        finetune.read_corpus("e4c", tmp_path)
    with pytest.raises(UserError, match=r"holds no file train.txt; --corpus e3c needs train.txt and test.txt"):
        finetune.read_corpus("e3c", tmp_path)
    (tmp_path / "layer1").mkdir()
    (tmp_path / "layer1" / "train.txt").write_text("a B-x\n")
    (tmp_path / "layer1" / "test.txt").write_text("a B-y\n")
    assert finetune.read_corpus("e3c", tmp_path) == ([(["a"], ["B-x"])], [(["a"], ["B-y"])])
    assert "labels B-y never occur in training; their entities count as missed" in capsys.readouterr().out


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
    got = finetune.score(gold, pred)
    assert got["paper"] == pytest.approx(100 * np.mean(want, axis=0))
    all_o = [sklearn_scores(g, ["O"] * len(g), average="macro", zero_division=0)[2] for g in gold]
    assert got["all_o"] == pytest.approx(100 * np.mean(all_o))


def entities(sequences):
    """Strict decoding by hand: B-X starts, I-X of the same X goes on, any other I-X is nothing."""
    out = set()
    for s, tags in enumerate(sequences):
        start = None
        for i, tag in enumerate([*tags, "O"]):
            if start is not None and tag != f"I-{tags[start][2:]}":
                out.add((s, tags[start][2:], start, i))
                start = None
            if tag[:1] == "B":
                start = i
    return out


@pytest.mark.parametrize("seed", range(20))
def test_entity_scores_are_strict(seed):
    """Predictions need not be valid IOB2: a stray I-X is not an entity."""
    rng = random.Random(seed)
    gold = [random_tags(rng, rng.randint(1, 12)) for _ in range(15)]
    pred = [[t if rng.random() < 0.7 else rng.choice(["O", "B-x", "I-x", "I-y"]) for t in g] for g in gold]
    a, b = entities(gold), entities(pred)
    p, r = len(a & b) / len(b), len(a & b) / len(a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert finetune.score(gold, pred)["entity"] == pytest.approx(
            [100 * p, 100 * r, 100 * 2 * p * r / (p + r) if p + r else 0]
        )


@pytest.mark.parametrize("max_len", [8, 11, 64])
def test_windows_hold_every_word(dataset, max_len):
    """Each word in a window, at its first token; windows no longer than allowed and all of each word in one."""
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    special = data.special_ids(tokenizer)
    rng = random.Random(0)
    vocabulary = [*"acute inflammation of the liver , kidney xqzkwv \u200b".split(" "), "zzzzzzzzzzzzzz"]
    sentences = [([rng.choice(vocabulary) for _ in range(rng.randint(1, 60))], None) for _ in range(40)]
    cut = finetune.windows(sentences, tokenizer, special, max_len)
    seen = [set() for _ in sentences]
    for sentence, first, ids, positions in cut:
        words = sentences[sentence][0]
        assert len(ids) <= max_len and ids[0] == special["cls"] and ids[-1] == special["sep"] and positions
        for k, p in enumerate(positions):
            seen[sentence].add(first + k)
            pieces = tokenizer.encode(words[first + k], add_special_tokens=False).ids[: max_len - 2] or [special["unk"]]
            assert ids[p : p + len(pieces)] == pieces
        assert len(positions) == len({*positions}) and first + len(positions) <= len(words)
    assert seen == [set(range(len(words))) for words, _ in sentences]
    whole = [i for i, (words, _) in enumerate(sentences) if sum(c[0] == i for c in cut) == 1]
    assert whole and (max_len == 64 or len(whole) < 40)


def test_predictions_come_from_the_middle_of_windows(dataset):
    """Every word gets one label, from the window in which it is farthest from an edge."""
    import torch

    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    special = data.special_ids(tokenizer)
    sentences = [(["liver"] * 23, ["O"] * 23), (["kidney"] * 3, ["O"] * 3)]
    cut = finetune.windows(sentences, tokenizer, special, 10)
    labels = [f"window {i}" for i in range(len(cut))]
    widths = [len(w[3]) for w in sorted(cut, key=lambda w: len(w[2]))]
    order = sorted(range(len(cut)), key=lambda i: len(cut[i][2]))

    def tagger(ids, mask, position):
        answer = torch.tensor([i for i, n in zip(order, widths) for _ in range(n)])
        return torch.nn.functional.one_hot(answer, len(cut))

    pred = finetune.predict(tagger, (sentences, cut), labels, 0, torch.device("cpu"), None)
    for s, (words, _) in enumerate(sentences):
        for k in range(len(words)):
            margin = {
                i: min(k - first, first + len(p) - 1 - k)
                for i, (at, first, _, p) in enumerate(cut)
                if at == s and first <= k < first + len(p)
            }
            assert margin[labels.index(pred[s][k])] == max(margin.values())


def test_the_command(release, checkpoint, tmp_path):
    """Seeds start each from the same checkpoint: run 2 of two is run 1 of a call that starts there."""
    base = [
        "finetune.py",
        checkpoint,
        "--corpus",
        "e3c",
        "--data",
        release / "ner" / "en",
        "--device",
        "cpu",
        "--lr",
        "1e-3",
    ]
    p = command(*base, "--runs", 2, "--out", tmp_path / "two")
    assert p.returncode == 0, p.stderr
    assert "mean of 2: paper P/R/F1" in p.stdout and "always says O" in p.stdout and "40 + 40 sentences" in p.stdout
    two = json.loads((tmp_path / "two" / "scores.json").read_text())["runs"]
    assert command(*base, "--seed", 1, "--out", tmp_path / "one").returncode == 0
    one = json.loads((tmp_path / "one" / "scores.json").read_text())["runs"]
    assert one == two[1:] and two[0] != two[1]
    assert command(*base, "--untrained", "--max_len", 12, "--out", tmp_path / "none").returncode == 0
    assert json.loads((tmp_path / "none" / "scores.json").read_text())["runs"][0] != two[0]


@pytest.mark.parametrize("argv, said", [
    (["MIXED", "--data", "NER", "--corpus", "e3c"], "the files are not of one checkpoint"),
    (["RUN"], "there is no such folder"),
    ([], "too few arguments"),
    (["RUN", "--data", "NER", "--corpus", "e3c", "--max_len", "2"], "max_len = 2"),
    (["RUN", "--data", "NER", "--corpus", "e3c", "--precision", "fp16"], "fine-tuning has no loss scaler"),
    (["RUN", "--data", "nowhere"], "--data 'nowhere': there is no such folder"),
    (["RUN", "--data", "HERE", "--corpus", "x"], "unknown corpus 'x'"),
    (["HERE", "--data", "NER", "--corpus", "e3c"], "a checkpoint folder?"),
])  # fmt: skip
def test_mistakes(release, checkpoint, tmp_path, argv, said):
    shutil.copytree(checkpoint, tmp_path / "mixed")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_tokens(["unheard-of"])  # one more than the weights have
    tokenizer.save(str(tmp_path / "mixed" / "tokenizer.json"))
    names = {"RUN": checkpoint, "HERE": tmp_path, "NER": release / "ner" / "en", "MIXED": tmp_path / "mixed"}
    argv = [str(names.get(a, a)) for a in argv]
    with pytest.raises(UserError, match=re.escape(said)):
        finetune.main(argv)


def test_a_mistake_is_one_line(tmp_path):
    p = command("finetune.py", tmp_path, "--data", "nowhere")
    assert (
        p.returncode != 0 and p.stderr.startswith("finetune.py: error: --data 'nowhere'") and p.stderr.count("\n") == 1
    )
