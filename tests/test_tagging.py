"""Tagging text: the tagger that fine-tuning keeps, its score, which is the reported one, inputs and outputs."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
import torch

import finetune
import model as models
from beyond import pages, plot, tag, tagged
from beyond.tag import Tag
from beyond.tagged import Entity, TaggedText, read_texts
from configs import UserError
from support import checkpoints, corpora, files, formats, taggers, tokenizers
from support.labels import align_entities
from support.scores import precision_recall_f1
from support.tensors import read_safetensors, write_safetensors
from support.windows import Window, make_windows, words_with_spaces
from tests.conftest import ROOT, run_command

DISEASES, FINDINGS = ["hepatitis", "measles", "viral hepatitis"], ["fever", "pain", "acute pain"]
BREAKS = "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
OTHERS = ["the", "patient", "had", "of", "liver", "no", "(", ")", ",", "37.5", "\U0001f600"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For models as small as these, threads that wait for each other take longer than the work."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def write_brat_document(folder, name, rng):
    """Lines of words, of which one is longer than any window; some entities are nested, some are not marked."""
    text, entities = "\ufeff" * rng.randrange(2), []
    for n_words in (5, 3, 60, 7):
        for _ in range(n_words):
            kind, words = rng.choice([("", OTHERS), ("", OTHERS), ("Disease", DISEASES), ("Finding", FINDINGS)])
            word = rng.choice(words)
            if kind and rng.random() < 0.9:
                entities.append((kind, len(text), len(text) + len(word), word))
            if " " in word and rng.random() < 0.5:
                start = len(text) + word.index(" ") + 1
                entities.append(("Finding", start, len(text) + len(word), word.split()[1]))
            text += word + rng.choice([" ", " ", "", ", "])
        text += rng.choice(["\n", "\r\n"])
    (folder / f"{name}.txt").write_bytes(text.encode())
    lines = [f"T{i}\t{kind} {a} {b}\t{word}\n" for i, (kind, a, b, word) in enumerate(entities, 1)]
    (folder / f"{name}.ann").write_bytes("".join(lines).encode())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Brat: 20 documents to train on, 8 of each other split."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for split, n in (("train", 20), ("dev", 8), ("test", 8)):
        (folder / split).mkdir()
        for i in range(n):
            write_brat_document(folder / split, f"{split}-{i}", rng)
    return folder


def make_tokenizer():
    return tokenizers.train_wordpiece([[" ".join(DISEASES + FINDINGS + OTHERS)]], 200, True, [])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random encoder of one layer and 32 positions."""
    out, tokenizer = tmp_path_factory.mktemp("checkpoint") / "tiny", make_tokenizer()
    torch.manual_seed(0)
    size = {"vocab_size": tokenizers.vocab_size(tokenizer), "max_positions": 32}
    c = models.Config(**size, dim=32, layers=1, heads=2, ffn=64)
    models.KGIBert(c).save(out)
    tokenizers.save(tokenizer.to_str().encode(), out, c.max_positions, c.type_vocab_size)
    return out


@pytest.fixture(scope="module")
def results(checkpoint, corpus, tmp_path_factory):
    """The results folder of two seeds, with windows of 24 tokens."""
    out = tmp_path_factory.mktemp("results") / "custom"
    more = ["--device", "cpu", "--lr", "8e-3", "--epochs", 2, "--runs", 2, "--max_len", 24]
    run_command(finetune, checkpoint, "--data", corpus, "--out", out, *more)
    return out


def read_json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def write_text(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ---------------------------------------------------------------- the promise


def test_tagging_the_test_split_gives_the_reported_score(results, corpus, tmp_path):
    """Bit for bit, of JSON Lines and of brat, although windows overlap and gold has what labels cannot express."""
    run_command(tag, results / "model", corpus / "test", "--out", tmp_path / "found.jsonl", "--device", "cpu")
    brat = ["--format", "brat", "--out", tmp_path / "brat"]
    run_command(tag, results / "model", corpus / "test", *brat, "--device", "cpu")
    record = json.loads((results / "scores.json").read_text())
    run = record["runs"][record["tagger"]["seed"]]
    gold = corpora.read_corpus("custom", corpus)[0]["test"]
    found = {row["id"]: row for row in read_json_lines(tmp_path / "found.jsonl")}
    assert list(found) == [d.name for d in gold] and all(found[d.name]["text"] == d.text for d in gold)
    from_json = {key: {(e["type"], ((e["start"], e["end"]),)) for e in row["entities"]} for key, row in found.items()}
    from_brat = {d.name: {*d.gold} for d in formats.read_brat(tmp_path / "brat", None, Counter())}
    for entities in (from_json, from_brat):
        n_correct = sum(len(entities[d.name] & {*d.gold}) for d in gold)
        n_found, n_gold = sum(map(len, entities.values())), sum(len({*d.gold}) for d in gold)
        scores = precision_recall_f1(n_correct, n_found, n_gold)
        assert [100 * float(x) for x in scores] == run["entity"]
        assert 0 < n_correct < n_found and n_correct < n_gold  # or the comparison says little
    for row in found.values():
        assert all(row["text"][e["start"] : e["end"]] == e["text"] and 0 < e["score"] <= 1 for e in row["entities"])


def test_a_document_gets_the_entities_of_its_chunk_or_alone(results, corpus, tmp_path, monkeypatch):
    """Lines, JSON Lines and standard chunks of other sizes give the same entities, in the order of the input."""
    lines = [*(corpus / "test" / "test-0.txt").read_text(encoding="utf-8-sig").splitlines(), "", "  fever ", "no"]
    write_text(tmp_path / "lines.txt", "\ufeff" + "\r\n".join(lines))
    rows = [json.dumps({"id": f"n{i}", "text": line}) for i, line in enumerate(lines)]
    write_text(tmp_path / "rows.jsonl", "\n\n".join(rows) + "\n")
    outputs = []
    for source, size in (("lines.txt", 1024), ("rows.jsonl", 1024), ("lines.txt", 3)):
        monkeypatch.setattr(tag, "CHUNK_DOCUMENTS", size)
        out = tmp_path / "out.jsonl"
        run_command(tag, results / "model", tmp_path / source, "--out", out, "--device", "cpu")
        outputs.append(read_json_lines(out))
        assert [row["text"] for row in outputs[-1]] == lines
    assert [row["id"] for row in outputs[0]] == [*range(1, len(lines) + 1)]
    assert [row["id"] for row in outputs[1]] == [f"n{i}" for i in range(len(lines))]
    entities = [[row["entities"] for row in rows] for rows in outputs]
    assert entities[0] == entities[1] == entities[2] and any(entities[0]) and entities[0][-3] == []
    fever = {"start": 2, "end": 7, "type": "Finding", "text": "fever"}
    assert [e | {"score": 0} for e in entities[0][-2]] == [fever | {"score": 0}]


def test_a_score_is_the_mean_probability_of_the_words(results):
    """Of each word's own label, from the window that labels it; a part of speech is of one word."""
    spans, labels = [(0, 2), (3, 5), (5, 6), (7, 9)], ["B-x", "I-x", "O", "B-y"]
    found = tag.scored_entities(spans, labels, [0.5, 1.0, 0.9, 0.25], pos=False)
    assert found == [(0, 5, "x", 0.75), (7, 9, "y", 0.25)]
    found = tag.scored_entities(spans, ["NN", "O", "NN", "VB"], [0.5, 1.0, 0.9, 0.25], pos=True)
    assert [e.type for e in found] == ["NN", "O", "NN", "VB"] and found[1] == (3, 5, "O", 1.0)


def test_words_are_read_as_in_training(results, checkpoint, tmp_path, monkeypatch):
    """A corpus without text has a space before each word; so has what its tagger reads."""
    data = tmp_path / "conll"
    data.mkdir()
    for name in ("train.txt", "test.txt"):
        write_text(data / name, "fever B-x\n( O\n\npain O\n")
    run_command(finetune, checkpoint, "--data", data, "--out", tmp_path / "r", "--device", "cpu")
    seen = []

    def spy(documents, *rest):
        seen.extend(w for d in documents for w in words_with_spaces(d))
        return make_windows(documents, *rest)

    monkeypatch.setattr(tag, "make_windows", spy)
    source = write_text(tmp_path / "x.txt", "fever(pain)")
    for folder, want in ((tmp_path / "r", " fever, (, pain, )"), (results, " fever,(,pain,)")):
        seen.clear()
        run_command(tag, folder / "model", source, "--out", tmp_path / "out", "--device", "cpu")
        assert ",".join(seen) == want


# ---------------------------------------------------------------- the tagger


def test_the_best_seed_on_the_dev_split_is_kept(checkpoint, tmp_path, monkeypatch):
    """Also of seeds that are added later. A tie goes to the lowest seed, as does a corpus without a dev split."""
    dev_f1, data = {}, tmp_path / "data"
    data.mkdir()
    for split in ("train", "test", "dev"):
        write_text(data / f"{split}.txt", "fever B-x\nof O\n\npain O\n")
    seeds_run, one_seed = [], finetune.finetune_one_seed
    monkeypatch.setattr(finetune, "finetune_one_seed", lambda s, n, *x: seeds_run.append(n) or one_seed(s, n, *x))
    monkeypatch.setattr(finetune, "entity_score", lambda *_: [0.0, 0.0, dev_f1[seeds_run[-1]]])

    def tune(first, n, **dev):
        dev_f1.update({int(k[1:]): v for k, v in dev.items()})
        run_command(
            finetune,
            checkpoint,
            "--data",
            data,
            "--out",
            tmp_path / "r",
            "--seed",
            first,
            "--runs",
            n,
            "--device",
            "cpu",
        )
        record = json.loads((tmp_path / "r" / "scores.json").read_text())
        kept = taggers.read_tagger_details(tmp_path / "r" / "model")["seed"]
        assert record["tagger"]["seed"] == kept
        assert [r["dev"]["entity"][2] for r in record["runs"]] == [dev_f1[r["seed"]] for r in record["runs"]]
        return kept, record["tagger"]["chosen"]

    assert tune(2, 3, s2=50.0, s3=70.0, s4=60.0) == (3, "the best on the dev split: entity F1 70.00")
    assert tune(5, 1, s5=70.0)[0] == 3 and tune(1, 1, s1=70.0)[0] == 1
    assert tune(1, 1, s1=10.0)[0] == 1  # a seed that is run again, replaced whatever it scores
    assert tune(6, 1, s6=20.0)[0] == 6
    (data / "dev.txt").unlink()
    dev_f1.clear()
    out = ["--out", tmp_path / "first", "--device", "cpu"]
    for seed in (4, 5, 3):
        run_command(finetune, checkpoint, "--data", data, "--seed", seed, *out)
        assert taggers.read_tagger_details(tmp_path / "first" / "model")["seed"] == min(seed, 4)
    (tmp_path / "first" / "scores.json").unlink()  # what is left beside it may be of other settings
    run_command(finetune, checkpoint, "--data", data, "--seed", 9, *out)
    record = json.loads((tmp_path / "first" / "scores.json").read_text())
    assert record["tagger"] == {"seed": 9, "chosen": "the lowest seed, as the corpus has no dev split"}
    assert "dev" not in record["runs"][0]


NAMES = {
    "bert": ("BertForTokenClassification", "bert.encoder.layer.0.attention.self.query.weight"),
    "distilbert": ("DistilBertForTokenClassification", "distilbert.transformer.layer.0.attention.q_lin.weight"),
    "roberta": ("RobertaForTokenClassification", "roberta.encoder.layer.0.attention.self.query.weight"),
    "camembert": ("CamembertForTokenClassification", "roberta.encoder.layer.0.attention.self.query.weight"),
    "xlm-roberta": ("XLMRobertaForTokenClassification", "roberta.encoder.layer.0.attention.self.query.weight"),
}


@pytest.mark.parametrize("family", NAMES)
def test_the_folder_is_a_token_classifier_of_the_family(family, tmp_path):
    """Its class, labels and tensors have the names that other libraries know, and it computes what it did."""
    tokenizer, labels = make_tokenizer(), ["O", "B-x", "I-x"]
    size = {"dim": 16, "layers": 1, "heads": 2, "ffn": 32, "max_positions": 40}
    types = {"type_vocab_size": {"bert": 2, "distilbert": 0}.get(family, 1)}
    c = models.Config(vocab_size=tokenizers.vocab_size(tokenizer), family=family, **size, **types)
    classifier = finetune.TokenClassifier(models.Encoder(c), labels, 0, torch.device("cpu"), None).eval()
    torch.nn.init.normal_(classifier.classifier.bias)
    details = {"max_len": 16, "has_text": True, "pos": False, "precision": "bf16"}
    taggers.save_tagger(tmp_path / "model", classifier, tokenizer, details)
    d = json.loads((tmp_path / "model" / "config.json").read_text())
    assert d["architectures"] == [NAMES[family][0]] and d["num_labels"] == 3
    assert d["id2label"] == {"0": "O", "1": "B-x", "2": "I-x"} and d["label2id"] == {"O": 0, "B-x": 1, "I-x": 2}
    tensors = read_safetensors(tmp_path / "model" / "model.safetensors")
    prefix = NAMES[family][1].split(".")[0] + "."
    assert NAMES[family][1] in tensors and tensors["classifier.weight"].shape == (3, 16)
    assert {name for name in tensors if not name.startswith(prefix)} == {"classifier.weight", "classifier.bias"}
    tagger = tag.load_tagger(Tag(model=str(tmp_path / "model"), device="cpu"))
    windows = [Window(0, 0, [*range(first, first + 12)], [*range(12)]) for first in (5, 17)]
    assert tagger.classifier.labels == labels and tagger.max_len == 16 and tagger.classifier.dtype == torch.bfloat16
    for dtype in (None, torch.bfloat16):
        classifier.dtype = tagger.classifier.dtype = dtype
        with torch.no_grad():
            assert torch.equal(classifier(windows), tagger.classifier(windows))
    del d["kgi_tagger"]  # as a folder of another library is
    (tmp_path / "model" / "config.json").write_text(json.dumps(d))
    assert tag.load_tagger(Tag(model=str(tmp_path / "model"), device="cpu")).max_len == 40


LABELS = {  # of a tagger of two types: its own, and those that others might have in their place
    "ours": "O B-x I-x B-S-y I-S-y", "IOB1": "O B-x I-x B-S-y I-S-y", "BIOES": "O S-x E-x B-S-y I-S-y",
    "BILOU": "O U-x L-x I-S-y B-S-y",
}  # fmt: skip


def read_by_hand(scheme, labels):
    """The IOB2 label of each word, and which of the tagger's labels it stands for."""
    out, before = [], "O"
    for label in labels:
        goes_on = before != "O" and before[0] not in "ESLU" and label[2:] == before[2:] and label[0] in "IEL"
        if scheme == "ours" and label[0] == "I" and not goes_on:
            label = "O"
        out.append((label if label == "O" else ("I" if goes_on else "B") + label[1:], label))
        before = label
    return out


@pytest.mark.parametrize("scheme", LABELS)
def test_labels_of_every_scheme_and_their_probabilities(scheme, tmp_path, capsys):
    """Columns have IOB2 and the probability of the printed label, entities and their scores follow from them, and of a
    tagger of others is said how its labels were read."""
    tokenizer, labels = make_tokenizer(), LABELS[scheme].split()
    torch.manual_seed(1)
    size = {"vocab_size": tokenizers.vocab_size(tokenizer), "max_positions": 64}
    encoder = models.Encoder(models.Config(**size, dim=16, layers=1, heads=2, ffn=32))
    classifier = finetune.TokenClassifier(encoder, labels, 0, torch.device("cpu"), None)
    torch.nn.init.normal_(classifier.classifier.weight)
    details = {"max_len": 64, "has_text": True, "pos": False, "precision": "fp32"}
    taggers.save_tagger(tmp_path / "model", classifier, tokenizer, details)
    if scheme != "ours":
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        del config["kgi_tagger"]
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    rng = random.Random(0)
    lines = [" ".join(rng.choices(["fever", "pain", "the", "of", "liver"], k=20)) for _ in range(10)]
    source = write_text(tmp_path / "x.txt", "\n".join(lines))
    for form in ("conll", "jsonl"):
        out = ["--format", form, "--out", tmp_path / form, "--html", tmp_path / "x.html", "--device", "cpu"]
        run_command(tag, tmp_path / "model", source, *out)
    said, stray = capsys.readouterr().err.splitlines()[0], Counter()
    blocks = (tmp_path / "conll").read_text().split("-DOCSTART-\n\n")[1:]
    for line, block, record in zip(lines, blocks, read_json_lines(tmp_path / "jsonl"), strict=True):
        text = [align_entities("", line, [], None, Counter())]
        window = make_windows(text, tokenizer, tokenizers.special_ids(tokenizer), 64)
        with torch.no_grad():
            softmax = classifier.eval()(window).softmax(-1)
        want = read_by_hand(scheme, [labels[i] for i in softmax.argmax(-1).tolist()])
        chosen = [p[labels.index(theirs)].item() for (_, theirs), p in zip(want, softmax)]
        rows = [row.split("\t") for row in block.strip().split("\n")]
        assert [row[4] for row in rows] == [printed for printed, _ in want]
        assert [float(row[3]) for row in rows] == pytest.approx(chosen, abs=6e-5)
        stray.update(theirs[:2] for printed, theirs in want if printed[0] == "B")
        begin = [i for i, (label, _) in enumerate(want) if label[0] == "B"]
        spans = [(i, next((j for j in range(i + 1, 20) if want[j][0][0] != "I"), 20)) for i in begin]
        assert [(e["type"], e["text"], e["score"]) for e in record["entities"]] == [
            (want[a][0][2:], " ".join(line.split()[a:b]), pytest.approx(sum(chosen[a:b]) / (b - a), abs=1e-4))
            for a, b in spans
        ]
    total = stray.total()
    how = "".join(f"; {stray[p]} of {total} entities begin with {p}" for p in ("E-", "I-", "L-") if stray[p])
    assert total > 50 and (scheme == "ours" or how)
    assert said.startswith("10 documents, " if scheme == "ours" else "the labels were read as ")
    if scheme != "ours":
        iob = "IOB1" if stray["I-"] > total / 2 else "IOB2"
        assert said == f"the labels were read as {iob if scheme == 'IOB1' else scheme}{how}"


@pytest.mark.parametrize("scheme, beginnings, said", [
    ("", {"I-": 9, "B-": 1}, "IOB1; 9 of 10 entities begin with I-"), ("", {"B-": 5}, "IOB2"),
    ("", {"B-": 1200, "I-": 1}, "IOB2; 1 of 1,201 entities begin with I-"), ("", {}, "IOB1 or IOB2"),
    ("BIOES", {"S-": 2, "B-": 1}, "BIOES"), ("BILOU", {"U-": 1, "L-": 1}, "BILOU; 1 of 2 entities begin with L-"),
])  # fmt: skip
def test_how_labels_were_read_is_said(scheme, beginnings, said, capsys):
    tag.print_scheme(scheme, Counter(beginnings))
    assert capsys.readouterr().err == f"the labels were read as {said}\n"


@pytest.mark.parametrize("changes, message", [
    ({"architectures": 3}, "architectures in its config.json is not a list of names"),
    ({"architectures": True}, "architectures in its config.json is not a list of names"),
    ({"architectures": "BertForTokenClassification"}, "architectures in its config.json is not a list of names"),
    ({"architectures": [["x"]]}, "architectures in its config.json is not a list of names"),
    ({"architectures": ["BertModel"]}, "is not a tagger: its config.json says BertModel; finetune.py"),
    ({"labels": "O B-\ud800"}, r"id2label in its config.json: the label or type 'B-\ud800' holds a TAB, a line"),
    ({"labels": "O,B-a\tb"}, r"the label or type 'B-a\tb' holds a TAB"),
    ({"labels": "O,B-a\nb"}, r"the label or type 'B-a\nb' holds a TAB"),
    ({"labels": "O,B-a\nb", "kgi_tagger": {"pos": True}}, r"the label or type 'B-a\nb' holds a TAB"),
    ({"labels": "O B-"}, "unknown label 'B-'; expected O, B-<type>"),
    ({"labels": "O B-x S-x U-x"}, "label 'U-x' is of BILOU, and there are labels of BIOES; use one scheme"),
    ({"labels": "O B-x S-x", "kgi_tagger": {"pos": False}}, "its labels are of BIOES, but a tagger of finetune.py has"),
    ({"kgi_tagger": {"max_len": [[[0] * 99]]}}, "kgi_tagger in its config.json has max_len = [[[0, 0, "),
])  # fmt: skip
def test_folders_that_cannot_be_read_as_a_tagger(results, tmp_path, changes, message):
    shutil.copytree(results / "model", tmp_path / "model")
    path, names = tmp_path / "model" / "config.json", changes.pop("labels", None)
    config = json.loads(path.read_text())
    del config["kgi_tagger"]
    if names:
        names = names.split("," if "," in names else None)
        changes["id2label"] = {str(i): name for i, name in enumerate(names)}
        weights = read_safetensors(tmp_path / "model" / "model.safetensors")
        weights |= {f"classifier.{x}": weights[f"classifier.{x}"][: len(names)] for x in ("weight", "bias")}
        with open(tmp_path / "model" / "model.safetensors", "wb") as f:
            write_safetensors(f, weights)
    path.write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=re.escape(message)) as e:
        taggers.read_tagger(tmp_path / "model", models.load_config(tmp_path / "model"))
    assert len(str(e.value)) < 400 and "\n" not in str(e.value)


def test_a_tagger_is_replaced_as_a_whole(results, checkpoint, corpus, monkeypatch):
    """A run that dies while it writes leaves the earlier tagger and its scores."""
    before = {p.name: p.read_bytes() for p in (results / "model").iterdir()}
    scores = (results / "scores.json").read_bytes()
    write_config = files.write_json

    def die(path, content):
        raise KeyboardInterrupt if path.name == "config.json" else write_config(path, content)

    monkeypatch.setattr(checkpoints, "write_json", die)
    monkeypatch.setattr(finetune, "entity_score", lambda *_: [100.0, 100.0, 100.0])
    more = ["--device", "cpu", "--lr", "8e-3", "--epochs", 2, "--seed", 7, "--max_len", 24]
    with pytest.raises(KeyboardInterrupt):
        run_command(finetune, checkpoint, "--data", corpus, "--out", results, *more)
    assert {p.name: p.read_bytes() for p in (results / "model").iterdir()} == before
    assert (results / "scores.json").read_bytes() == scores


# ---------------------------------------------------------------- what is written

TEXT = "a <b> & acute\n  pain\tx"
TAGGED = [
    TaggedText("d/1", TEXT, [(8, 13), (16, 20), (21, 22)], ["B-p", "I-p", "O"], [0.9, 0.7, 1.0],
                       [Entity(8, 20, "p", 0.8)]),
    TaggedText(2, "", [], [], [], []),
    TaggedText(3, "<script>", [(1, 7)], ["B-q <r"], [0.5], [Entity(0, 8, "q <r", 0.5)]),
]  # fmt: skip


def write_tagged(tmp_path, **settings):
    return tag.write_tagged(iter(TAGGED), Tag(**{"model": ""} | settings), ["O", "B-p", "I-p", "B-q <r", "B-none"])


def test_brat_has_a_fragment_a_line(tmp_path):
    write_tagged(tmp_path, format="brat", out=str(tmp_path / "out"))
    assert (tmp_path / "out" / "d" / "1.txt").read_bytes() == TEXT.encode()
    ann = (tmp_path / "out" / "d" / "1.ann").read_text()
    assert ann == "T1\tp 8 13;16 20\tacute pain\n#1\tAnnotatorNotes T1\tscore 0.8\n"
    assert [(tmp_path / "out" / f"2.{x}").read_bytes() for x in ("txt", "ann")] == [b"", b""]
    documents = formats.read_brat(tmp_path / "out", None, Counter())
    assert [d.gold for d in documents] == [[], [("q_<r", ((0, 8),))]]


@pytest.mark.parametrize("settings", [{}, {"format": "conll"}, {"format": "conll", "html": "p.html"}])
def test_tagging_again_replaces_what_tagging_wrote(tmp_path, settings, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        write_tagged(tmp_path, **settings, out="out")
        tag.check_outputs(Tag(model="model", **settings, out="out"))
    for name in {"out", settings.get("html", "out")}:
        (tmp_path / name).write_text('{"id": 1, "text": "x", "entities": [{"id": 1, "label": "y"}]}\n')
        with pytest.raises(UserError, match=f"{name} is not an output of this command"):
            tag.check_outputs(Tag(model="model", **settings, out="out"))
        (tmp_path / name).unlink()


def test_brat_is_written_as_a_whole_or_not_at_all(tmp_path, full_disk):
    """Not while texts are tagged, nor when the disk is full, nor when there is a file meanwhile."""
    out = tmp_path / "a" / "out"

    def documents():
        yield from TAGGED
        assert not out.exists()

    with full_disk(10), pytest.raises(UserError, match="a/out: cannot be written: File too large"):
        write_tagged(tmp_path, format="brat", out=str(out))
    assert not list(tmp_path.iterdir())
    tag.write_tagged(documents(), Tag(model="", format="brat", out=str(out)), ["O"])
    assert {p.name for p in out.rglob("*.*")} == {f"{i}.{x}" for i in (1, 2, 3) for x in ("txt", "ann")}
    with pytest.raises(UserError, match="a/out is not an empty folder"):
        write_tagged(tmp_path, format="brat", out=str(out))


def test_columns_are_read_back(tmp_path):
    """Every document begins with -DOCSTART-, one without a word as well."""
    write_tagged(tmp_path, format="conll", out=str(tmp_path / "out"))
    assert (tmp_path / "out").read_text().split("\n")[2] == "acute\t8\t13\t0.9000\tB-p"
    documents = formats.read_conll(tmp_path / "out", None, Counter())
    assert [(d.tokens, d.labels, d.group) for d in documents] == [
        (["acute", "pain", "x"], ["B-p", "I-p", "O"], "1"), (["script"], ["B-q <r"], "3")
    ]  # fmt: skip


# Astral and combining characters, line ends of all kinds, TABs, text that looks like PubTator, and ids of any kind.
HOSTILE = {
    "d/1": TEXT, 2: "", "": "\n", "a b|c%7C\t": "no line end",
    "emoji": "\U0001f600 fever\r\n\U0001f468\u200d\u2695 pain\r\n",
    "marks": "fie\u0300vre aigue\u0308\n\n\u0e01\u0e33", "old": "fever\rof\rliver", "first": "\nfever\n",
    "odd": "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g", "1|t|x": "1|t|fever\n1|a|pain\n1\t0\t5\tfever\tX",
    "bom": "\ufefffever \ufeff", "blanks": "  fever  \n  pain ", "é\u2003日": 'quote "fever" \\ back',
}  # fmt: skip


def tagged_words(key, text):
    """Every stretch without blanks is an entity, and so is all of the text from its first word to its last."""
    spans = [m.span() for m in re.finditer(r"\S+", text)]
    spans += [(spans[0][0], spans[-1][1])] if spans else []
    entities = [Entity(a, b, f"K {i % 2}", round(i / 99, 4)) for i, (a, b) in enumerate(spans)]
    return TaggedText(key, text, spans[:-1], [], [], entities)


def read_doccano(f):
    return {d["id"]: (d["text"], [tuple(label) for label in d["label"]]) for d in map(json.loads, f)}


def read_labelstudio(f):
    found = {}
    for task in json.load(f):
        (prediction,) = task["predictions"]
        assert len({r["id"] for r in prediction["result"]}) == len(prediction["result"])
        assert all(
            (r["from_name"], r["to_name"], r["type"]) == ("label", "text", "labels") for r in prediction["result"]
        )
        values, words = [r["value"] for r in prediction["result"]], task["data"]["text"]
        assert all(words[v["start"] : v["end"]] == v["text"] for v in values)
        scores = [r["score"] for r in prediction["result"]]
        assert prediction.get("score") == (round(sum(scores) / len(scores), 4) if scores else None)
        found[task["data"]["id"]] = (words, [(v["start"], v["end"], *v["labels"]) for v in values])
    return found


@pytest.mark.parametrize("form, read", [("doccano", read_doccano), ("labelstudio", read_labelstudio)])
def test_forms_of_annotation_tools_are_read_back(tmp_path, form, read):
    """Offsets are those of the text as it is."""
    documents = [tagged_words(*item) for item in HOSTILE.items()]
    tag.write_tagged(iter(documents), Tag("", format=form, out=str(tmp_path / "out")), ["O"])
    with open(tmp_path / "out", encoding="utf-8") as f:
        found = read(f)
    assert found == {d.id: (d.text, [(e.start, e.end, e.type) for e in d.entities]) for d in documents}


def test_pubtator_is_read_back(tmp_path):
    """By our own reader, which compares words and offsets, and by lines of any kind of line end."""
    documents = [tagged_words(*item) for item in HOSTILE.items()]
    tag.write_tagged(iter(documents), Tag("", format="pubtator", out=str(tmp_path / "out")), ["O"])
    content = (tmp_path / "out").read_text(encoding="utf-8")
    assert content.splitlines() == content.split("\n")[:-1]
    texts, entities, n_repeats = formats.parse_pubtator(tmp_path / "out")
    assert not n_repeats.total() and len(texts) == len(documents)
    for document, (key, text) in zip(documents, texts.items()):
        assert unquote(key) == (str(document.id) or "%")
        # The line end between title and abstract is there in a text without one too.
        assert len(text) == len(document.text) + (not re.search("[\r\n]", document.text))
        assert all(a == b or (a in "\n " and b in BREAKS) for a, b in zip(text, document.text))
        want = [(e.start, e.end, e.type, "") for e in document.entities]
        assert entities[key] == want


def test_annotations_of_people_are_not_replaced(tmp_path):
    """A file of Doccano or PubTator may be theirs. Tasks of Label Studio are replaced, its export is not."""
    ours = [{"data": {"id": 1, "text": ""}, "predictions": [{"model_version": "beyond.tag", "result": []}]}]
    export = [{"id": 1, "annotations": [], "data": {"id": 1, "text": ""}, "predictions": []}]
    for form, content, is_ours in (
        ("doccano", '{"id": 1, "text": "a", "label": []}\n', False), ("pubtator", "1|t|a\n1|a|b\n", False),
        ("labelstudio", "".join(tagged.format_documents([], "labelstudio")), True),
        ("labelstudio", "[\n" + json.dumps(ours)[1:], True), ("labelstudio", json.dumps(export), False),
    ):  # fmt: skip
        write_text(tmp_path / "out", content)
        if is_ours:
            tag.check_outputs(Tag(model="model", format=form, out=str(tmp_path / "out")))
        else:
            with pytest.raises(UserError, match="out is not an output of this command"):
                tag.check_outputs(Tag(model="model", format=form, out=str(tmp_path / "out")))


class Page(HTMLParser):
    """Entries of the legend, marks with their words, and the text of documents, as a browser reads them."""

    def __init__(self, path):
        super().__init__()
        self.open, self.legend, self.marks, self.scripts, self.note, self.text = [], [], [], [], "", ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "input"):
            self.open.append((tag, attributes))
        if tag == "label" and attributes["class"] != "score":
            self.legend.append({"class": attributes["class"], "text": ""})
        elif tag == "input" and attributes["type"] == "checkbox":
            self.legend[-1] |= attributes
        elif tag == "input":
            self.slider = attributes
        elif tag == "mark":
            self.marks.append(attributes | {"words": "", "type": ""})

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        tags, attributes = [tag for tag, _ in self.open], self.open[-1][1] if self.open else {}
        if "script" in tags:
            self.scripts.append(text)
        elif tags[-1:] == ["label"] and attributes["class"] != "score":
            self.legend[-1]["text"] += text
        elif attributes.get("class") == "note":
            self.note += text
        elif "mark" in tags:
            self.marks[-1]["type" if tags[-1] == "small" else "words"] += text
        if "p" in tags and tags[-1] != "small":
            self.text += text


def test_the_page_is_one_file(tmp_path, monkeypatch):
    """It needs no other. Its only script is ours, whatever documents, types and the model's folder are called."""
    where = {"out": str(tmp_path / "x"), "html": str(tmp_path / "p.html"), "model": "runs/<b>/kgi\udce9/model"}
    write_tagged(tmp_path, **where)
    content = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=|url\(|@import", content) and content.count("<script") == 1
    assert "flex-wrap: wrap" in content and "nowrap" not in content  # twenty types are several lines
    page = Page(tmp_path / "p.html")
    assert page.scripts == [pages.SCRIPT] and page.text == "".join(document.text for document in TAGGED)
    hidden = {"type": "checkbox", "checked": None, "hidden": None}  # until the script runs
    assert page.legend == [  # a type that never occurs: not
        {"class": f"t{i}", "value": f"t{i}", "text": text} | hidden for i, text in enumerate(["p 1", "q <r 1"])
    ]
    assert page.marks == [
        {"class": "t0", "data-score": "0.8", "title": "p, score 0.8", "words": "acute\n  pain", "type": "p"},
        {"class": "t1", "data-score": "0.5", "title": "q <r, score 0.5", "words": "<script>", "type": "q <r"},
    ]
    assert (page.slider["min"], page.slider["max"], page.slider["value"]) == ("0", "1", "0")
    assert page.note == "3 documents, 2 entities, tagged by <b>/kgi\ufffd"
    monkeypatch.setattr(tag, "PAGE_CHARACTERS", 10)
    write_tagged(tmp_path, **where | {"model": "other/tagger"})
    assert Page(tmp_path / "p.html").note == "the first 1 of 3 documents, 2 entities, tagged by tagger"
    (tmp_path / "latest").symlink_to(tmp_path)
    assert pages.tagger_name(tmp_path / "latest") == plot.names_of_runs([tmp_path / "latest"])[0] == "latest"


def test_a_long_document_and_one_without_words(results, tmp_path):
    source = write_text(tmp_path / "x.txt", "fever of , " * 4000 + "\n\n \u200b \n")
    run_command(tag, results / "model", source, "--format", "conll", "--out", tmp_path / "out", "--device", "cpu")
    (document,) = formats.read_conll(tmp_path / "out", None, Counter())
    assert document.tokens == "fever of ,".split() * 4000 and document.labels.count("B-Finding") > 3000
    assert (tmp_path / "out").read_text().count("-DOCSTART-") == 3


# ---------------------------------------------------------------- the command, and mistakes


def test_a_closed_pipe_ends_the_command_quietly(results, tmp_path):
    source, env = write_text(tmp_path / "x.txt", "fever of liver\n" * 1500), os.environ | {"OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "beyond.tag", str(results / "model")]
    with open(source, "rb") as f, subprocess.Popen(argv, cwd=ROOT, env=env, stdin=f, stdout=-1, stderr=-1) as p:
        first = json.loads(p.stdout.readline())
        p.stdout.close()
        assert p.stderr.read() == b"" and p.wait() == 1
    assert first["id"] == 1 and first["text"] == "fever of liver"


def test_lines_go_to_standard_output_and_the_count_to_standard_error(results, tmp_path, capsysbinary):
    source = write_text(tmp_path / "x.txt", "fever\nof\n" * 1000)
    run_command(tag, results / "model", source, "--device", "cpu")
    out, err = capsysbinary.readouterr()
    rows = [json.loads(line) for line in out.decode().split("\n")[:-1]]
    n_entities = sum(len(row["entities"]) for row in rows)
    assert len(rows) == 2000 and n_entities >= 1000
    assert re.fullmatch(rf"2,000 documents, {n_entities:,} entities, [\d.,]+ documents/s\n", err.decode())


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_page_alone_leaves_a_terminal_in_peace(results, tmp_path, capsysbinary, monkeypatch, is_terminal):
    """What is redirected has the lines all the same. The results folder stands for the tagger in it."""
    source, page = write_text(tmp_path / "x.txt", "fever\n"), tmp_path / "page.html"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    run_command(tag, results, source, "--html", page, "--device", "cpu")
    out, err = capsysbinary.readouterr()
    assert (out == b"") == is_terminal and err.endswith(f"wrote {page}\n".encode()) and b"fever" in page.read_bytes()
    run_command(tag, results, source, "--html", page, "--out", tmp_path / "o.jsonl", "--device", "cpu")
    out, err = capsysbinary.readouterr()
    last = f"next:  python -m beyond.link CHECKPOINT {tmp_path / 'o.jsonl'} --out links.jsonl\n"
    assert out == b"" and err.decode().endswith(f"wrote {tmp_path / 'o.jsonl'}\nwrote {page}\n{last}")


@pytest.mark.parametrize("argv, message", [
    (["MODEL", "HERE/latin.txt"], "latin.txt, row 3: byte 0xe9 is not UTF-8"),
    (["MODEL", "HERE/latin"], "a.txt, row 2: not UTF-8; convert the file"),
    (["MODEL", "HERE/rows.jsonl"], 'rows.jsonl, row 2: not a JSON object with a field "text"'),
    (["MODEL", "HERE/list.jsonl"], 'list.jsonl, row 1: its "id" is neither text nor a whole number'),
    (["MODEL", "HERE/empty.txt"], "empty.txt is empty; give a document a line"),
    (["MODEL", "HERE/nowhere.txt"], "nowhere.txt: neither a file nor a folder with .txt files"),
    (["MODEL", "HERE/none"], "none holds no .txt file"),
    (["PLAIN", "HERE/good.txt"], "is not a tagger: its config.json has no id2label; finetune.py CHECKPOINT --corpus"),
    (["HERE/masked", "HERE/good.txt"], "is not a tagger: its config.json says DistilBertForMaskedLM; finetune.py"),
    (["HERE/headless", "HERE/good.txt"], "is not a tagger: its weights have no classifier; finetune.py"),
    (["HERE/foreign", "HERE/good.txt"], "id2label in its config.json: unknown label 'LABEL_1'; expected O, B-<type>"),
    (["HERE/none", "HERE/good.txt"], "config.json not found; is"),
    (["MODEL", "HERE/good.txt", "--format", "brat"], "give a new folder for them with --out"),
    (["MODEL", "HERE/good.txt", "--format", "brat", "--out", "HERE/latin"], "latin is not an empty folder"),
    (["MODEL", "HERE/up.jsonl", "--format", "brat", "--out", "HERE/o"], "'../up' cannot be the name of a file"),
    (["MODEL", "HERE/twice.jsonl", "--format", "brat", "--out", "HERE/o"], "two documents have the id 'a'"),
    (["MODEL", "HERE/good.txt", "--out", "HERE/good.txt"], "good.txt is the input, which would be replaced"),
    (["MODEL", "HERE/good.txt", "--out", "HERE/x", "--html", "HERE/x"], "choose two names"),
    (["MODEL", "HERE/latin", "--out", "HERE/latin/a.txt"], "a.txt is in the input"),
    (["MODEL", "HERE/latin", "--html", "HERE/latin/a.txt"], "a.txt is in the input"),
    (["MODEL", "HERE/good.txt", "--html", "MODEL/config.json"], "config.json is in the input"),
    (["MODEL", "HERE/good.txt", "--out", "HERE/rows.jsonl"], "rows.jsonl is not an output of this command; move it"),
    (["MODEL", "HERE/good.txt", "--html", "HERE/latin.txt"], "latin.txt is not an output of this command; move it"),
    (["MODEL", "HERE/good.txt", "--format", "brat", "--out", "."], ". cannot be replaced as a whole; name a"),
    (["MODEL", "/dev/zero"], "/dev/zero is a device, not a file"),
    (["MODEL", "HERE/good.txt", "--out", "HERE/none"], "none is a folder"),
    (["MODEL", "HERE/good.txt", "--html", "HERE/a/b.html"], "a is not a folder"),
    ([], "the following arguments are required: MODEL"),
])  # fmt: skip
def test_mistakes(results, checkpoint, tmp_path, argv, message):
    """One message with the file and the row; what was there stays, and no output is left half written."""
    for name, text in {
        "good.txt": "fever\n", "latin.txt": b"a\n\nfi\xe9vre\n", "empty.txt": "", "rows.jsonl": '{"text": "a"}\n[1]\n',
        "list.jsonl": '{"id": [], "text": ""}', "up.jsonl": '{"id": "../up", "text": ""}',
        "twice.jsonl": '{"id": "a", "text": ""}\n' * 2,
    }.items():  # fmt: skip
        write_text(tmp_path / name, text)
    for name in ("none", "latin"):
        (tmp_path / name).mkdir()
    write_text(tmp_path / "latin" / "a.txt", b"a\nfi\xe9vre")
    config = json.loads((results / "model" / "config.json").read_text())
    del config["kgi_tagger"]
    labels = {"id2label": {"0": "O", "1": "LABEL_1", "2": "B-x", "3": "I-x", "4": "B-y"}}
    tensors = read_safetensors(results / "model" / "model.safetensors")
    headless = {name: t for name, t in tensors.items() if not name.startswith("classifier")}
    for name, changes, weights in (
        ("masked", {"architectures": ["DistilBertForMaskedLM"]}, tensors), ("headless", {}, headless),
        ("foreign", labels, tensors),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config | changes))
        with open(tmp_path / name / "model.safetensors", "wb") as f:
            write_safetensors(f, weights)
    out = [] if "--out" in argv or not argv else ["--out", tmp_path / "left.jsonl"] * ("brat" not in argv)
    places = {"MODEL": results / "model", "PLAIN": checkpoint}
    with pytest.raises(UserError, match=re.escape(message)):
        places |= {"MODEL/config.json": results / "model" / "config.json"}
        run_command(tag, *(places.get(a, a.replace("HERE", str(tmp_path))) for a in argv), *out)
    assert not [*tmp_path.rglob("left.jsonl*")] and (tmp_path / "good.txt").read_text() == "fever\n"
    assert not (tmp_path / "up.txt").exists() and not (tmp_path / "o").exists()


def test_half_a_surrogate_pair_moves_no_offset(tmp_path):
    source = write_text(tmp_path / "x.jsonl", r'{"id": "\ud800", "text": " a\ud800b\ud83d\ude00 "}')
    assert [*read_texts(str(source))] == [("\ufffd", " a\ufffdb\U0001f600 ")]
