"""The evaluation corpora: each format as distributed, what labels cannot express, what check counts, contamination.

The corpora themselves are read where the environment variable NER names a folder that holds ncbi-disease/,
e3c/<language>/layer<n>/ and meddocan/.
"""

import gzip
import json
import os
import random
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from seqeval import scheme as seqeval
from seqeval.metrics.sequence_labeling import get_entities
from tokenizers import Tokenizer, normalizers

import data
import finetune
from beyond.check import Check, check, find_contamination
from beyond.tagged import Entity, TaggedText, write_brat
from configs import UserError
from support import corpora, formats, texts, tokenizers
from support.labels import Document, align_entities, decode_entities, strict_iob2, to_iob2
from support.scores import gold_entities, predicted_entities
from support.tables import print_corpora
from support.windows import count_split_entities, make_windows
from tests.conftest import build

NER = Path(os.environ.get("NER", "NER is not set"))
SPLITS = ("train", "dev", "test")


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def marked(text, entities):
    """'TYPE words' each -> (type, start, end, words) where the words first stand in the text."""
    for kind, words in (e.split(" ", 1) for e in entities):
        yield kind, text.index(words), text.index(words) + len(words), words


def brat(name, text, *entities):
    rows = (f"T{i}\t{k} {a} {b}\t{w}\n" for i, (k, a, b, w) in enumerate(marked(text, entities), 1))
    return {f"{name}.txt": text, f"{name}.ann": "".join(rows)}


def pubtator(pmid, title, abstract, *entities, end="\n"):
    rows = [f"{pmid}\t{a}\t{b}\t{w}\t{k}\tD01|D02" for k, a, b, w in marked(f"{title}\n{abstract}", entities)]
    return end.join([f"{pmid}|t|{title}", f"{pmid}|a|{abstract}", *rows, "", ""])


def bioc(pmid, title, abstract, *entities):
    passages = [{"offset": n, "text": t, "annotations": []} for n, t in ((0, title), (len(title) + 1, abstract))]
    for k, a, b, w in marked(f"{title}\n{abstract}", entities):
        where = {"locations": [{"offset": a, "length": b - a}]}
        passages[a > len(title)]["annotations"].append({"infons": {"type": k}, "text": w} | where)
    return json.dumps({"documents": [{"id": pmid, "passages": passages}]})


def bioc_xml(content):
    """A collection of BioC in JSON as XML."""
    names = {"passages": "passage", "sentences": "sentence", "annotations": "annotation", "locations": "location"}

    def element(name, node):
        e = ElementTree.Element(name)
        for key, value in node.items():
            if key == "infons":
                for k, x in value.items():
                    ElementTree.SubElement(e, "infon", key=k).text = x
            elif name == "location":
                e.set(key, str(value))
            elif isinstance(value, list):
                e.extend(element(names[key], x) for x in value)
            else:
                ElementTree.SubElement(e, key).text = str(value)
        return e

    root = ElementTree.Element("collection")
    root.extend(element("document", d) for d in json.loads(content)["documents"])
    return '<?xml version="1.0"?>\n<!DOCTYPE collection SYSTEM "BioC.dtd">\n' + ElementTree.tostring(root, "unicode")


def tagged(numbers, words="Sans fièvre .", cue="***"):
    """Sentences of CAS or ESSAI, each of three words and its number."""
    row = "{0}\t1\t{1}\tx\tPRP\t{4}\n{0}\t2\t{2}\tx\tNOM\t{4}\n{0}\t3\t{3}\tx\tSENT\t{4}\n{0}\t4\tn{0}\tx\tNOM\t{4}\n\n"
    return "".join(row.format(n, *words.split(), cue) for n in numbers)


def shown(documents):
    return [" ".join(f"{t}/{label}" for t, label in zip(d.tokens, d.labels)) for d in documents]


def in_brat(place, kind):
    parts = (brat(f"{place.format(p)}/d-1", f"Sans fièvre {p}.\n", f"{kind} fièvre") for p in SPLITS)
    return dict(item for files in parts for item in files.items())


def in_pubtator(names, kind, start="", end="\n"):
    return {f: start + pubtator(7, "Sans", f"fièvre {p}.", f"{kind} fièvre", end=end) for p, f in zip(SPLITS, names)}


def columns(part, kind, between="\t"):
    return f"Sans O\nfièvre B-{kind}\n{part} O\n. O\n\n".replace(" ", between)


DECOYS = {"README.txt": "Sans\tB-X\n", ".DS_Store": b"\0\xff", "background-set_1.1/background/b.txt": "Sans fièvre."}
BIORED = [f"{p.title()}.PubTator" for p in SPLITS]
GENIA = (("train", "task"), ("test", "eval"))
SET = "{0}-set_1.1/{0}/"
QUAERO = in_brat("corpus/{}/MEDLINE", "DISO") | in_brat("corpus/{}/EMEA", "ANAT")
LAYOUTS = {  # corpus and variant: (label, files)
    "quaero-medline": ("DISO", QUAERO | {f"corpus/test/MEDLINE/{f}": "T1\tX 0 99\tx" for f in ("d-1.ann~", "a.conf")}),
    "quaero-emea": ("ANAT", QUAERO),
    "ncbi-disease": ("Disease", in_pubtator(
        [f"NCBI{p}set_corpus.txt" for p in ("train", "develop", "test")], "CompositeMention", "\n")),
    "ncbi-disease tsv": ("Disease", {f"{p[:5]}{'el' * (p == 'dev')}.tsv": columns(p, "Disease") for p in SPLITS}),
    "biored": ("Gene", in_pubtator(BIORED, "Gene", end="\r\n") | {"Test.BioC.JSON": "{}"}),
    "biored json": ("Gene", {f"{p.title()}.BioC.JSON": bioc(7, "Sans", f"fièvre {p}.", "Gene fièvre") for p in SPLITS}),
    "biored xml": ("Gene", {
        f"{p.title()}.BioC.XML": bioc_xml(bioc(7, "Sans", f"fièvre {p}.", "Gene fièvre")) for p in SPLITS}),
    "jnlpba": ("DNA", {f"Genia4ER{q}1.iob2": columns(p, "Wrong") for p, q in GENIA}
        | {f"Genia4ER{q}2.iob2": "###MEDLINE:1\n\n" + columns(p, "DNA") for p, q in GENIA}
        | {"sampletest2.iob2": "a\tB-Wrong\n", "Genia4ERtask2.raw": "Sans"}),
    "jnlpba 1": ("DNA", {f"Genia4ER{q}1.iob2": columns(p, "DNA") for p, q in GENIA}),
    "pharmaconer": ("UNCLEAR", in_brat(SET + "subtrack1", "UNCLEAR")
        | {f"{SET.format(p)}subtrack2/x.tsv": "d-1\t42\n" for p in SPLITS}),
    "meddocan": ("PAIS", in_brat("{}/brat", "PAIS") | {f"{p}/xml/d-1.xml": "<MEDDOCAN/>" for p in SPLITS}),
    "e3c": ("ety", {f"{p}.txt": columns(p, "ety", " ") for p in ("train", "test")}),
    "custom": ("x", {f"{p}.conll": columns(p, "x", " ") for p in SPLITS}),
    "custom brat": ("x", in_brat("{}", "x")),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_official_layouts(tmp_path, name):
    """Each corpus is read from what its distributor hands out: each part once, and nothing that lies beside it."""
    (kind, files), corpus = LAYOUTS[name], name.split()[0]
    parts, issues = corpora.read_corpus(corpus, write(tmp_path, DECOYS | files))
    want = {p: [f"Sans/O fièvre/B-{kind} {p}/O ./O"] for p in SPLITS if p != "dev" or corpus not in ("jnlpba", "e3c")}
    assert {p: shown(d) for p, d in parts.items()} == want
    assert not any(sum(c.values()) for c in issues.values())


@pytest.mark.parametrize("names", [
    "train.txt devel.txt test.txt", "train.conll valid.conll test.conll", "training.tsv validation.tsv testing.tsv",
    "train.txt val.txt test.txt", "train.txt eval.txt test.txt", "eng.train eng.testa eng.testb",
    "Train.txt Dev.txt Test.txt",
    "train.txt testa.txt testb.txt", "train.txt development.txt tests.txt", "TRAIN.bio DEV.bio TEST.bio",
])  # fmt: skip
def test_names_of_splits(tmp_path, names):
    """Below the folder as well; folders of brat are found by the same names."""
    names = names.split()
    want = {p: [f"Sans/O fièvre/B-x {p}/O ./O"] for p in SPLITS}
    write(tmp_path / "a", {name: columns(p, "x", " ") for p, name in zip(SPLITS, names)} | {"README": "x"})
    write(tmp_path / "b", {f"below/{name}": columns(p, "x", " ") for p, name in zip(SPLITS, names)})
    if not names[0].startswith("eng"):
        brats = [in_brat(Path(name).stem + ".{}", "x") for name in names]
        brats = [{k.replace(f".{p}/", "/"): v for k, v in b.items() if f".{p}/" in k} for p, b in zip(SPLITS, brats)]
        write(tmp_path / "c", dict(item for files in brats for item in files.items()))
    for folder in tmp_path.iterdir():
        assert {p: shown(d) for p, d in corpora.read_corpus("custom", folder)[0].items()} == want


def test_a_file_like_a_dev_split_that_is_not_read_is_counted(tmp_path):
    for name in ("train.tsv", "validation_set.tsv", "test.tsv"):
        (tmp_path / name).write_text("a\tO\n")
    splits, issues = corpora.read_corpus("custom", tmp_path)
    assert [*splits] == ["train", "test"] and issues["train"]["files that look like a dev split: not read"] == 1


def test_cas_sg(tmp_path):
    """DEFT's training part, and its test part in halves; ten of thirteen types, the others counted."""
    entities = "sosy Douleur", "date lundi"
    files = [brat(f"DEFT-cas-cliniques/f-{i}", f"Douleur {i} depuis lundi", *entities) for i in range(12)]
    files = dict(item for f in files for item in f.items())
    rows = [f"f-{i}.txt\t1\t2\t{'train' if i < 8 else 'test'} 2021" for i in range(12)]
    write(tmp_path, DECOYS | files | {"distribution-corpus.txt": "\n".join(rows), "evaluations/ref.txt": "x"})
    parts, issues = corpora.read_corpus("cas-sg", tmp_path)
    assert {p: len(d) for p, d in parts.items()} == {"train": 8, "dev": 2, "test": 2}
    names = {p: {d.name for d in documents} for p, documents in parts.items()}
    assert names["train"] == {f"f-{i}" for i in range(8)} and len(set.union(*names.values())) == 12
    assert all(s.startswith("Douleur/B-DISO") and "lundi/O" in s for d in parts.values() for s in shown(d))
    assert issues["train"]["entities of type date: left out"] == 12


@pytest.mark.parametrize("corpus, name", [("cas-pos", "CAS"), ("essai-pos", "ESSAI")])
def test_cas_and_essai(tmp_path, corpus, name):
    """Sentences of both files count once, also with cues, and are in one part of three only; every token has a tag."""
    files = {f"{name}_neg.txt": tagged(range(1, 31)), f"{name}_spec.txt": tagged(range(11, 41), cue="_\tB_cue_spec")}
    parts, issues = corpora.read_corpus(corpus, write(tmp_path, files | {"Other_neg.txt": "x"}))
    sentences = [s for d in parts.values() for s in shown(d)]
    assert sorted(sentences) == sorted(f"Sans/PRP fièvre/NOM ./SENT n{n}/NOM" for n in range(1, 41))
    assert {p: len(d) for p, d in parts.items()} == {"train": 28, "dev": 6, "test": 6}
    assert not sum(issues["train"].values())
    assert corpora.read_corpus(corpus, tmp_path)[0] == parts


@pytest.mark.parametrize("n, train, rest", [(3790, {2652, 2653}, {568, 569}), (7247, {5072}, {1087, 1088})])
def test_seventy_fifteen_fifteen(n, train, rest):
    """The random parts of CAS and ESSAI are as large as section 2 says; the test part of CAS has 569 sentences."""
    sizes = [len(part) for part in corpora.random_splits([*range(n)], 0.7, 0.15)]
    assert sizes[0] in train and sizes[1] in rest and sizes[2] in (rest if n > 4000 else {569})


def test_second_file_with_other_words(tmp_path):
    """A number that has other words in the second file is another sentence, kept if new, and counted."""
    spec = tagged([1]) + tagged([2], "Avec toux .") + tagged([2]).replace("\n2", "\n3").replace("2\t1", "3\t1", 1)
    write(tmp_path, {"CAS_neg.txt": tagged([1, 2, 3]), "CAS_spec.txt": spec})
    documents = formats.read_cas(tmp_path, "CAS", issues := Counter())
    assert len({d.name for d in documents}) == 4 and [d.tokens[-1] for d in documents] == ["n1", "n2", "n3", "n2"]
    assert issues["numbers with other words in the second file: kept if new"] == 2


@pytest.mark.parametrize("row, want", [
    ("100 000 @card@ NUM ***", "100 000/NUM"), ("1 000 000 @card@ NUM ***", "1 000 000/NUM"),
    ("100 000 @card@ NUM _ B_scope_neg", "100 000/NUM"), ("100 000 @card@ ***", "100 000/NUM"),
    ("12 @card@ NUM ***", "12/NUM"), ("12 @card@ @card@ ***", "12/NUM"),
    ("12 12 @card@ ***", "12/NUM"),
    ("pas pas ADV I_xcope_inc_ v", "pas/ADV"), ("pas pas ADV", "pas/ADV"), ("pas pas VER:con ***", "pas/VER:con"),
    ("mot mot FAG ***", "mot/FAG"),
])  # fmt: skip
def test_rows_of_cas(tmp_path, row, want):
    """The tag is found where TABs within numbers moved it; @card@ is none; cues are not read; no row is lost."""
    write(tmp_path, {"x.txt": f"1 1 {row}\r\n1 2\n".replace(" ", "\t")})
    words, tags = formats.read_tagged(tmp_path / "x.txt", issues := Counter())[1]
    assert [f"{w}/{t}" for w, t in zip(words, tags)] == [want]
    assert issues["lines of fewer than five columns: left out"] == 1
    assert issues["words joined again from several columns"] == (" " in want)


@pytest.mark.parametrize("rows", ["1 2 1", "1 . 1"])
def test_sentence_numbers_that_come_again(tmp_path, rows):
    rows = "".join(f"{n}\t1\tmot\tmot\tNOM\t***\n" if n != "." else "\n" for n in rows.split())
    sentences = formats.read_tagged(write(tmp_path, {"x.txt": rows}) / "x.txt", issues := Counter())
    assert len(sentences[1][0]) == 2 and sum(issues.values()) == 1


BOM = "\ufeff"
NESTED = "T1\tPROC 3 39\tablation d' un nodule de la thyroïde\nT2\tDISO 18 24\tnodule\nT3\tANAT 31 39\tthyroïde"


@pytest.mark.parametrize("text, ann, want, lost", [
    (BOM + "Le foie", "T1\tANAT 4 8\tfoie\n", "Le/O foie/B-ANAT", ""),
    (BOM + "foie", "T1\tANAT 0 5\t" + BOM + "foie", "foie/B-ANAT", "inside a word"),
    ("Le foie\r\nva", "T1\tANAT 3 7\tfoie\r\nT2\tX 9 11\tva\r\n", "Le/O foie/B-ANAT va/B-X", ""),
    ("Le foie", "\n\nT1\tANAT 3 7\tfoie", "Le/O foie/B-ANAT", ""),
    ("Le foie", "", "Le/O foie/O", ""),
    ("Le foie", "#1\tNotes T1\tC01\nA1\tNeg T9\nR1\tr Arg1:T1 Arg2:T2\nE1\tx:T1\n*\tEquiv T1", "Le/O foie/O", ""),
    ("a b c d", "T7\tX 4 7\tc d\nT1\tY 0 1\ta\n", "a/B-Y b/O c/B-X d/I-X", ""),
    ("a b c d", "T1\tX 4 5;0 1\tc a\n", "a/B-X b/I-X c/I-X d/O", "several fragments"),
    ("a b c d", "T1\tX 2 3\tb\nT2\tY 4 5;0 1\tc a\n", "a/B-Y b/I-Y c/I-Y d/O", "within or across, several fragments"),
    ("L' ablation d' un nodule de la thyroïde", NESTED, "L/O '/O ablation/B-PROC d/I-PROC '/I-PROC un/I-PROC "
        "nodule/I-PROC de/I-PROC la/I-PROC thyroïde/I-PROC", "within or across, within or across"),
    ("a b", "T2\tY 0 3\ta b\nT1\tX 0 3\ta b\n", "a/B-Y b/I-Y", "within or across"),
    ("a b c", "T1\tY 2 5\tb c\nT2\tX 0 3\ta b\n", "a/B-X b/I-X c/O", "within or across"),
    ("Gène", "T1\tX 0 2\tGè\nT2\tY 2 4\tne", "Gène/B-X", "inside a word, within the word"),
    ("ab cd", "T1\tX 0 1\ta\nT2\tY 1 5\tb cd", "ab/B-X cd/B-Y", "inside a word, inside a word"),
    ("a\nb", "T1\tX 0 3\ta b", "a/B-X b/I-X", ""),
    ("x ab ab x", "T1\tX 3 5\tab\nT2\tY 4 6\tab\n", "x/O ab/B-X ab/B-Y x/O", "moved, moved"),
    ("a \u0082 b_c\u00ad\u00a0" + BOM + "d", "", "a/O b/O _/O c/O d/O", ""),
    ("𝔸 foie", "T1\tANAT 2 6\tfoie", "𝔸/O foie/B-ANAT", ""),
])  # fmt: skip
def test_brat(tmp_path, text, ann, want, lost):
    """Offsets count code points of the file as it is; what labels cannot express follows the rule, and is counted."""
    write(tmp_path, {"d.txt": text, "d.ann": ann})
    (document,) = formats.read_brat(tmp_path, None, issues := Counter())
    assert shown([document]) == [want] and document.text == text
    assert all(text[a:b] == t and t for t, (a, b) in zip(document.tokens, document.spans))
    assert len(document.gold) == len(re.findall(r"^T", ann, re.M))
    assert sum(issues.values()) == (lost.count(",") + 1 if lost else 0)
    assert all(any(what in k for k in issues if issues[k]) for what in lost.split(", ") if what)


@pytest.mark.parametrize("by", [-3, -2, -1, 1, 2, 3])
def test_offsets_beside_their_words(tmp_path, by):
    """An entity is looked for within three characters of its offsets, and counted if found."""
    text = "mg de drogue1 cada 8 h"
    write(tmp_path, {"d.txt": text, "d.ann": f"T1\tX {6 + by} {13 + by}\tdrogue1\n"})
    (document,) = formats.read_brat(tmp_path, None, issues := Counter())
    assert document.gold == [("X", ((6, 13),))] and +issues == {"entities beside their offsets: moved": 1}


def test_an_entity_marked_twice_counts_once(tmp_path, capsys):
    """QUAERO repeats a mention for a second concept: type and span are what counts, also after types are mapped."""
    files = in_brat("{}", "X")
    ann = files["test/d-1.ann"] + "T2\tX 5 11\tfièvre\nT3\tY 5 11\tfièvre\nT4\tX 5 11;0 4\tfièvre Sans\n"
    ann += "T5\tX 0 4;5 11\tSans fièvre\n"
    rows = checked(capsys, "custom", write(tmp_path, files | {"test/d-1.ann": ann}))
    assert rows["entities"] == [1, 1, 3] and rows["X"] == [1, 1, 2] and rows["Y"] == [0, 0, 1]
    assert rows["entities marked twice: counted once"] == [0, 0, 2]
    (document,) = corpora.read_corpus("custom", tmp_path)[0]["test"]
    assert len(document.gold) == len(gold_entities(document, False)) == 3
    twice = pubtator(7, "Sans", "fièvre", "DiseaseClass fièvre", "Modifier fièvre")
    (document,) = formats.read_split(write(tmp_path, {"x": twice}) / "x", corpora.NCBI, issues := Counter())
    assert document.gold == [("Disease", ((5, 11),))] and +issues == {"entities marked twice: counted once": 1}


@pytest.mark.parametrize("ann, gold", [
    ("X 2 8\t foie \n", ((3, 7),)), ("X 2 7\tfoie\n", ((3, 7),)), ("X 7 11;2 7\t du  foie\n", ((3, 11),)),
    ("X 3 7;7 9\tfoie\n", ((3, 7),)), ("X 12 16;3 8\trat foie\n", ((3, 7), (12, 15))),
])  # fmt: skip
def test_blanks_are_no_part_of_an_entity(tmp_path, ann, gold):
    """A mention of QUAERO begins with a blank: no label could say it, so nothing could hit it."""
    write(tmp_path, {"d.txt": "Le foie  du rat ", "d.ann": "T1\t" + ann})
    (document,) = formats.read_brat(tmp_path, None, issues := Counter())
    assert document.gold == [("X", gold)]
    several = {"entities of several fragments: one stretch, where labelled": 1} if len(gold) > 1 else {}
    assert +issues == {"entities with blanks at an end: trimmed": 1} | several
    assert several or predicted_entities(document, document.labels, False) == {*document.gold}


ORGANS = "the liver\npain\tof the rat"


@pytest.mark.parametrize("fragments, words, gold", [
    ("4 9;10 14", "liver pain", ((4, 14),)), ("10 14;4 9", "pain liver", ((4, 14),)),
    ("4 9;10 14;15 17", "liver pain of", ((4, 17),)), ("4 9;6 14", "liver ver pain", ((4, 14),)),
    ("4 7;7 9", "liv er", ((4, 9),)), ("4 14;6 8", "liver pain ve", ((4, 14),)),
    ("4 10;9 14", "liver  pain", ((4, 14),)),
    ("4 9;15 17;10 14;22 25", "liver of pain rat", ((4, 17), (22, 25))), ("4 9;15 17", "liver of", ((4, 9), (15, 17))),
])  # fmt: skip
def test_fragments_with_blanks_between_them_are_one_span(tmp_path, fragments, words, gold):
    """Brat has a fragment a line: a tagger that predicts all labels hits an entity over a line end, as any other."""
    write(tmp_path, {"d.txt": ORGANS, "d.ann": f"T1\tOrgan {fragments}\t{words}\nT2\tX 0 3\tthe\n"})
    (document,) = formats.read_brat(tmp_path, None, issues := Counter())
    assert document.gold == [("Organ", gold), ("X", ((0, 3),))]
    several = {"entities of several fragments: one stretch, where labelled": 1} if len(gold) > 1 else {}
    assert +issues == several
    scores = finetune.score([document], [document.labels], corpora.CORPORA["custom"])
    assert scores["entity"] == ([100, 100, 100] if not several else [50, 50, 50])


def test_our_own_brat_is_read_back(tmp_path):
    """Over a line end, a TAB and any other line end that brat knows."""
    text, entities = "", []
    for i, end in enumerate("\n \t \r\n \v \f \x1c \x85 \u2028".split(" ")):
        start, text = len(text), f"{text}liver {end} pain{i}"
        entities.append(Entity(start, len(text), "Organ", 0.5))
        text += " of\n"
    write_brat(tmp_path, TaggedText("d", text, [], [], [], entities))
    assert ";" in (tmp_path / "d.ann").read_text()
    (document,) = formats.read_brat(tmp_path, None, issues := Counter())
    assert document.gold == [("Organ", ((e.start, e.end),)) for e in entities] and not +issues
    assert {*document.gold} == predicted_entities(document, document.labels, False)


def test_pubtators_blanks_are_counted(tmp_path):
    write(tmp_path, {"x": "1|t|A b\n1|a|c\n1\t0\t2\tA \tX\n"})
    (document,) = formats.read_split(tmp_path / "x", None, issues := Counter())
    assert document.gold == [("X", ((0, 1),))] and +issues == {"entities with blanks at an end: trimmed": 1}


def test_entities_of_several_fragments_are_counted_though_not_labelled(tmp_path):
    write(tmp_path, {"d.txt": "a b c d", "d.ann": "T1\tX 0 7\ta b c d\nT2\tX 0 1;4 5\ta c\nT3\tX 2 3;6 7\tb d\n"})
    formats.read_brat(tmp_path, None, issues := Counter())
    assert issues["entities of several fragments: one stretch, where labelled"] == 2


def test_offsets_past_the_end_are_moved_to_the_words_or_refused(tmp_path):
    """A slice of Python ends at the text's end: the words alone do not say that the offsets are right."""
    write(tmp_path, {"d.txt": "a foie", "d.ann": "T1\tX 0 1;4 8\ta foie\n"})
    with pytest.raises(UserError, match="d.ann, row 1: 0 1;4 8 is .*6 characters"):
        formats.read_brat(tmp_path, None, Counter())
    write(tmp_path, {"d.ann": "T1\tX 4 8\tfoie\n"})
    (document,) = formats.read_brat(tmp_path, None, issues := Counter())
    assert document.gold == [("X", ((2, 6),))] and +issues == {"entities beside their offsets: moved": 1}


@pytest.mark.parametrize("below", ["", "preprocessed_data", "preprocessed_data/clinical_entities/layer1"])
def test_a_clone_of_e3c(tmp_path, below):
    """Its root says which folders to choose from; the one language that is there is taken, and known."""
    layer = "preprocessed_data/clinical_entities/layer{}/{}/{}.txt"
    french = {layer.format(1, "French", p): columns(p, "ety", " ") for p in ("train", "test")}
    french |= {layer.format(2, "French", "text"): "a O\n", "data_collection/French/layer1/x.json": "{}"}
    parts, _ = corpora.read_corpus("e3c", write(tmp_path, french) / below)
    assert [*parts] == ["train", "test"] and corpora.language_of("e3c", tmp_path / below) == "fr"
    write(tmp_path, {name.replace("French", "Basque"): text for name, text in french.items()})
    with pytest.raises(UserError, match=r"holds 2 folders .* --data: \S+/layer1/Basque, \S+/layer1/French$"):
        corpora.read_corpus("e3c", tmp_path / below)
    assert corpora.read_corpus("e3c", tmp_path / Path(layer.format(1, "Basque", "x")).parent)[0] == parts


def test_the_language_of_a_corpus_is_its_folders(tmp_path):
    for folder, want in (
        ("ner/fr/layer1", "fr"),
        ("clinical_entities/layer1/Spanish", "es"),
        ("es/fr/x", "fr"),
        ("x", ""),
    ):
        assert corpora.language_of("e3c", tmp_path / folder) == want
    assert corpora.language_of("meddocan", tmp_path / "fr") == "es"


def test_list_explains_the_counts_of_table_5(capsys):
    print_corpora()
    *_, note, following = capsys.readouterr().out.splitlines()
    assert "QUAERO-MEDLINE, for example, has 833, 832 and 833 titles and 10 types" in note
    assert following == "next:  python -m beyond.check --corpus CORPUS --data FOLDER"


def test_hidden_files_are_not_read(tmp_path):
    """macOS leaves ._x beside each x of an archive."""
    write(tmp_path, brat("d", "Le foie", "ANAT foie") | {"._d.ann": b"\0\5\x16\xff", "._d.txt": b"\0\xff"})
    assert shown(formats.read_brat(tmp_path, None, Counter())) == ["Le/O foie/B-ANAT"]
    assert corpora.read_texts(tmp_path) == ["Le foie"]


@pytest.mark.parametrize("content, want", [
    (pubtator(1, "Fever .", "Mild fever", "X Mild fever"), ["Fever/O ./O Mild/B-X fever/I-X"]),
    ("\n" + pubtator(1, " Fever ", "is", "X Fever", end="\r\n").rstrip(), ["Fever/B-X is/O"]),
    (pubtator(1, "A", "b", "X b") + pubtator(2, "C", "d", "Y C") + pubtator(1, "A", "b", "X A"),
        ["A/O b/B-X", "C/B-Y d/O"]),
    (pubtator(1, "A", "b", "X b").rstrip() + "\n1\tAssociation\t12|3\tD01\tNovel\n1\tBind\t1\t2\tNo", ["A/O b/B-X"]),
    ("1|t|A|t|b c\n1|a|\n1\t4\t5\tb  \tX\tD01| D02 \n", ["A/O |/O t/O |/O b/B-X c/O"]),
    (pubtator(1, "xY1z", "w", "X xY", "Y 1z"), ["xY1z/B-X w/O"]),
    (pubtator("PMC1", "A", "b", "X b") + pubtator("doc-2.é", "C", "d", "Y C"), ["A/O b/B-X", "C/B-Y d/O"]),
])  # fmt: skip
def test_pubtator(tmp_path, content, want):
    """One separator between title and abstract, `|` in identifiers, relations skipped, a repeated PMID read once."""
    write(tmp_path, {"x.txt": content})
    assert shown(formats.read_split(tmp_path / "x.txt", None, issues := Counter())) == want
    assert issues["repeated documents: left out"] == content.count("1|t|A\n") // 2
    assert issues["entities within the word of another: not labelled"] == ("xY1z" in content)


def test_bioc_is_pubtator(tmp_path):
    of = "Foie et rein ", "d'un rat ß, 12 mois", "X et", "Y rein", "Z un rat", "X 12 m", "Y ois"
    write(tmp_path, {"a": pubtator(7, *of), "b.JSON": bioc(7, *of)})
    (one,), (other,) = (formats.read_split(tmp_path / name, None, Counter()) for name in ("a", "b.JSON"))
    assert one.name == other.name and one == other and len(one.gold) == 5


@pytest.mark.parametrize("place", ["document", "passages", "sentences", "all"])
@pytest.mark.parametrize("in_sentences", [False, True, "twice"])
def test_bioc_of_any_level(tmp_path, place, in_sentences):
    """Annotations of documents, passages or sentences; the text in passages, in their sentences, or in both."""
    of = "Foie et rein. Mal", "d'un rat ß. Le 12 mois", "X et", "Y rein", "Z un rat", "X 12 m", "Y Mal"
    write(tmp_path, {"a.txt": pubtator(7, *of), "b.json": bioc(7, *of)})
    collection = json.loads((tmp_path / "b.json").read_text())
    (document,) = collection["documents"]
    annotations = [a for passage in document["passages"] for a in passage.pop("annotations")]
    for passage in document["passages"]:
        cut, text = passage["text"].index(".") + 2, passage["text"]
        starts = [(0, text[: cut - 1]), (cut, text[cut:])]
        passage["sentences"] = [{"offset": passage["offset"] + n, "text": t} for n, t in starts] if in_sentences else []
        if in_sentences is True:
            del passage["text"]
    sentences = [x for passage in document["passages"] for x in passage["sentences"]]
    places = {"document": [document], "passages": document["passages"], "sentences": sentences or [document]}
    places["all"] = [document, *document["passages"], *sentences]
    for i, a in enumerate(annotations):
        places[place][i % len(places[place])].setdefault("annotations", []).append(a)
    write(tmp_path, {"b.json": json.dumps(collection), "c.xml": bioc_xml(json.dumps(collection))})
    one, other, xml = (formats.read_split(tmp_path / f, None, Counter())[0] for f in ("a.txt", "b.json", "c.xml"))
    assert other.tokens == one.tokens and other.labels == one.labels and {*other.gold} == {*one.gold} and xml == other
    found, in_xml, want = (corpora.read_texts(tmp_path / f)[0].split() for f in ("b.json", "c.xml", "a.txt"))
    assert found == in_xml
    assert found == want if not in_sentences else "".join(found) == "".join(want)


def test_half_a_surrogate_pair_in_bioc(tmp_path):
    """JSON can hold it, but no file in UTF-8: types become labels, which are written; no offset moves."""
    content = bioc("d-\ud800", "A\ud800 foie", "b", "Organ foie").replace('"Organ"', r'"Or\udcffgan"')
    (document,) = formats.read_split(write(tmp_path, {"x.json": content}) / "x.json", None, Counter())
    assert document.gold == [("Or\ufffdgan", ((3, 7),))] and document.name == "d-\ufffd"
    "".join([document.text, *document.tokens, *document.labels]).encode()


@pytest.mark.parametrize("content, want", [
    ("\na B-x\nb I-x\n\n\nc O", "a/B-x b/I-x . c/O"),
    ("\r\na\tB-x\r\nb\tI-x\r\n\r\nc\tO\r\n", "a/B-x b/I-x . c/O"),
    ("-DOCSTART- -X- O O\n\na NN I I-x\nb NN I I-x\nc NN I B-x\nd NN I I-y\n", "a/B-x b/I-x c/B-x d/B-y"),
    ("-DOCSTART-\na\tO\n###MEDLINE:1\n\nb\tI-x\n###MEDLINE:1\nc\tI-x\n", "a/O . b/B-x . c/B-x"),
    ("a I-x\nb I-y\nc B-y\nd I-y\ne O\nf I-y\n\ng I-y\n", "a/B-x b/B-y c/B-y d/I-y e/O f/B-y . g/B-y"),
    ("\u2028x O\n\u00a0 O\nB-y B-y\n", "\u2028x/O \u00a0/O B-y/B-y"),
    (BOM + "a O\n", "a/O"),
])  # fmt: skip
def test_columns(tmp_path, content, want):
    write(tmp_path, {"x.txt": content})
    assert " . ".join(shown(formats.read_conll(tmp_path / "x.txt", None, Counter()))) == want


def test_documents_of_columns(tmp_path):
    """Abstracts are numbered, since their identifiers repeat; without marks a sentence is of no known document."""
    write(tmp_path, {"x": "###MEDLINE:1\n\na\tO\n\nb\tO\n\n###MEDLINE:1\n\nc\tO\n", "y": "a\tO\n\nb\tO\n"})
    one, two, three = formats.read_conll(tmp_path / "x", None, Counter())
    assert one.group == two.group != three.group and one.group and len({one.name, two.name, three.name}) == 3
    assert [d.group for d in formats.read_conll(tmp_path / "y", None, Counter())] == ["", ""]


LATIN = "fièvre O\n".encode("latin-1")
BRAT, PUBTATOR = in_brat("{}", "x"), in_pubtator(BIORED, "x")
SHORT = "1|t|A\n1|a|b\n"
ERRORS = [  # (corpus, files to which these are added, {name: [(content, message)]})
    ("custom", {"test.txt": "a O"}, "train.txt", [
        ("a O\nb\n", "row 2: 1 columns instead of 2"), ("a O\n\nb O O\n", "row 3: 3 columns instead of 2"),
        ("a O\n\tO\n", "row 2: an empty token"), (" O\n", "row 1: an empty token"),
    ("a O\n B-x\n", "row 2: an empty token"),
        ("a O\nb ety\n", "row 2: unknown label 'ety'"), ("a O\nb B-\n", "row 2: unknown label 'B-'"),
        ("a S-x\n\nb B-x\nc L-x\n", "row 4: label 'L-x' is of BILOU, and there are labels of BIOES; use one scheme"),
        ("a O\nb B-x\v\n", r"row 2: the label or type 'B-x\\x0b' holds a TAB, a line break or"),
        (b"a O\n" + LATIN, "row 2: not UTF-8"), ("\n\n", "no sentence in it")]),
    ("custom", {"test.txt": "a O"}, "train.txt.gz", [
        (b"\x1f\x8b\x08\x00damaged", "cannot be read"), (gzip.compress(b"a O", mtime=0)[:-9], "cannot be read"),
        (gzip.compress(b"a O\nb\n", mtime=0), "row 2: 1 columns")]),
    ("custom", BRAT, "test/d-1.ann", [
        ("\nT1\tx 0 4\tfoie\n", "row 2: 0 4 is 'Sans'.*not 'foie'"), ("T1\tx 90 94\tfoie\n", "row 1"),
        ("T1\tx 9 15\tfièvre\n", "row 1"), ("T1\tx 1 7\tfièvre\n", "row 1"),
        ("T1\tx 4 0\tSans\n", "row 1"), ("\nT1\tx 0 4;9 7\tSans\n", "row 2: 0 4;9 7 is"),
        ("\nT1\tx 12 20\ttest.\n", r"row 2: 12 20 is.*\(the text has 18 characters\)"),
        ("T1\tx 0 4;12 22\tSans test.\n", "row 1: 0 4;12 22 is"),
        ("T1 x 0 4 Sans\n", "row 1: not 'T"), ("T1\tx ² 4\tSans\n", "row 1: not 'T"),
        (f"T1\tx 0 {'4' * 5000}\tSans\n", "row 1: not 'T"), (f"T1\tx 0 {10**12}\tSans\n", "row 1: 0 1000"),
    (LATIN, "row 1: not UTF-8")]),
    ("custom", BRAT, "test/d-1.txt", [(b"\n" + LATIN, "row 2: not UTF-8")]),
    ("biored", PUBTATOR, "Dev.PubTator", [
        (SHORT + "1\t0\t1\tb\tX\t1", "row 3: 0 1"), (SHORT + "1\t0\t1", "row 3"),
        (SHORT.encode() + LATIN, "row 3: not UTF"), (SHORT + "2\t0\t1\tA\tX\t1", "row 3"),
        (SHORT + "1\t\t1\tA\tX\t1", "row 3"), (SHORT + "1\t0\t²\tA\tX\t1", "row 3: neither"),
        (SHORT + f"1\t0\t{'1' * 5000}\tA\tX\t1", "row 3: neither"),
    (SHORT + f"1\t0\t{10**12}\tA\tX\t1", "row 3: 0 1000")]),
    ("biored", {}, "Train.BioC.JSON", [
        ("[}", "not a coll"), ('{"documents": [{"id": 1}]}', "not a coll"),
        (bioc(9, "A", "b", "X b").replace('"b"', '"c"', 1), "document 9"),
        (bioc(9, "A", "b", "X b").replace('"length": 1', '"length": 8'), "document 9"),
        *((bioc(9, "A", "b").replace('"offset": 2', f'"offset": {n}'), message) for n, message in (
            (10**12, "document 9: no passage can begin at 1000"), (-1, "document 9: no passage can begin at -1"),
            ("1" * 5000, "not a coll"), ("NaN", "document 9"))),
        ('{"documents": ' + "[" * 10**5, "not a coll"), ('{"documents": [' + '{"x":' * 10**5, "not a coll"),
        *((bioc(9, "A", "b", "X b").replace(*change), message) for *change, message in (
            ('"length": 1', '"length": "1"', "not a coll"), ('"X"', "null", "9: the annotation 'b' has no type"),
            ('{"type": "X"}', "[]", "not a coll"), ('"offset": 2', '"offset": "2"', "not a collection")))]),
    ("biored", {}, "Train.BioC.XML", [
        (bioc_xml(bioc(9, "A", "b", "X b")).replace(*change), message) for *change, message in (
            ("</id>", "", "not a collection of BioC: mismatched tag"), ("<passage>", "</x>", "not a coll"),
            ('length="1"', 'length="9"', "document 9: "), ('length="1"', "", "not a coll"),
            ("<offset>2</offset>", "<offset>x</offset>", "not a coll"), ("<offset>2</offset>", "", "9: no passage"),
            ("collection>", "html>", "XML that is not BioC"),
            ('SYSTEM "BioC.dtd"', '[<!ENTITY a "b">]', "defines entities of XML"),
            ('<infon key="type">X</infon>', "", "document 9: the annotation 'b' has no type"))]),
    ("custom", {"test.txt": "a O"}, "train.json", [
        (bioc(9, "A", "b", f"{kind} b"), "document 9: the label or type '.*' holds a TAB, a line break or half a surr")
        for kind in ("X\t", "X\nY", "X\u2028")]),
    ("cas-pos", {"CAS_spec.txt": ""}, "CAS_neg.txt", [
        ("1\t1\ta\ta\tNOM\n1\t2\tb\tb\tzzz\n", "row 2"), (LATIN, "row 1: not UTF-8"),
        *((f"{n}\t1\ta\ta\tNOM\n", "row 1|split is empty") for n in ("", "²", "1" * 5000))]),
    ("cas-sg", {}, "distribution-corpus.txt", [("a.txt\t1\t2\ttrain 2021\nb.txt", "row 2")]),
]  # fmt: skip


@pytest.mark.parametrize("corpus, files, name, content, message", [(*e[:3], *case) for e in ERRORS for case in e[3]])
def test_errors_name_file_and_row(tmp_path, corpus, files, name, content, message):
    """What is broken is a UserError that names the file, and its row or document."""
    with pytest.raises(UserError, match=f"{name}.*{message}"):
        corpora.read_corpus(corpus, write(tmp_path, files | {name: content}))


@pytest.mark.parametrize("content, message", [
    ('<?xml version="1.0"?>\n<!DOCTYPE collection SYSTEM "BioC.dtd">\n<collection><source/>',
        "not a collection of BioC: no element found"),
    ('<?xml version="1.0"?>\n<MEDDOCAN>\n<TEXT>', "--corpus meddocan reads the brat"),
    ('<xmi:XMI xmlns:cas="x">', "--corpus e3c reads train.txt"), ("<html><body>", "XML that is not BioC; convert it"),
    ("Le foie est normal.\n", "neither columns .* nor PubTator.* begins with 'Le foie est normal.'"),
    ("Sans,O\nfoie,B-x\n", "begins with 'Sans,O'"), ("Sans ety\n", "begins with 'Sans ety'"),
    ('{"tokens": ["a"]}\n', "neither columns"), ("# text = a\n1\ta\tO\n", "neither columns"),
    (b"\xff\xfe<\0", "neither col"),
])  # fmt: skip
def test_an_unknown_form_is_not_read_as_columns(tmp_path, content, message):
    for name in ("train.xml", "train.txt"):
        files = write(tmp_path / name, {"test.txt": "a O\n", name: content})
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            corpora.read_corpus("custom", files)


@pytest.mark.parametrize("content", [
    "a O\n", "a\tX\tO\n", "\n \na NN I-x\n", "-DOCSTART- -X- O O\n\na N N O\n",
    "###MEDLINE:1\n\na\tO\n", BOM + "a\tB-x y\n",
    "<\tO\n", "< B-x\n", "\r\n\u2028a O\r\n", "1 O\n", '{"a": O\n',
])  # fmt: skip
def test_what_has_columns(tmp_path, content):
    """The last column of the first row is a label, whatever the first one is, or the row begins a document."""
    (document,) = formats.read_split(write(tmp_path, {"x.txt": content}) / "x.txt", None, Counter())
    assert len(document.tokens) == 1


@pytest.mark.parametrize("corpus, files, message", [
    ("e4c", {"x": ""}, "unknown corpus 'e4c'.*meddocan"),
    ("custom", {"train.txt": "a O", "train.tsv": "a\tO"}, "holds 2 of train"),
    ("custom", {f"{p}.txt": "a O" for p in (*SPLITS, "valid")}, r"holds 2 of dev \(dev.txt, valid.txt\); leave one"),
    ("custom", {f"{p}.txt": "a O" for p in ("train", "dev", "testa", "testb")}, "holds 2 of dev"),
    ("custom", in_brat("{}", "x") | {"test.txt": "a O"}, "holds 2 of test"),
    ("custom", in_brat("{}", "x") | in_brat("{}/brat", "x"), "holds 2 of train"),
    ("ncbi-disease", {f"{p}.tsv": "a\tO" for p in (*SPLITS, "devel")}, "holds 2 of dev"),
    ("custom", {"train.txt": "a O"}, "no test split"),
    ("custom", BRAT | {"test/e.ann": ""}, "e.txt not found"),
    ("custom", BRAT | {"test/d-1.txt": " \n", "test/d-1.ann": ""}, "the test split is empty"),
    ("cas-pos", {"CAS_neg.txt": ""}, "CAS_spec.txt not found"),
    ("cas-sg", {"DEFT-cas-cliniques/a.txt": ""}, "distribution-corpus.txt not found"),
    ("cas-sg", {"distribution-corpus.txt": "a.txt\t1\t2\ttrain 2021\n"}, "the train split is empty"),
    ("e3c", {f"{lang}/{p}.txt": "a O" for lang in ("French", "Italian") for p in SPLITS},
        "holds 2 folders of E3C; choose the one of a language as --data: .*/French, .*/Italian"),
    *((c, {"README": ""}, "no train split|not found") for c in corpora.CORPORA),
])  # fmt: skip
def test_missing_splits(tmp_path, corpus, files, message):
    with pytest.raises(UserError, match=message):
        check(Check(corpus, str(write(tmp_path, files))))
    with pytest.raises(UserError, match="unknown corpus|no such folder"):
        corpora.read_corpus(corpus, tmp_path / "none")


# ---------------------------------------------------------------- the word rule, and forms of Unicode


def tokens_of(text):
    return align_entities("", text, [], None, Counter()).tokens


@pytest.mark.parametrize("text, want", [
    ("हिन्दी क्षेत्र", "हिन्दी क्षेत्र"), ("ความเจ็บปวด", "ความเจ็บปวด"), ("مُحَمَّدٌ، x", "مُحَمَّدٌ ، x"),
    ("می\u200cخواهم", "می\u200cخواهم"),
    ("श्\u200dय क्\u200d", "श्\u200dय क्\u200d"), ("co\u00adoperate", "co\u00adoperate"),
    ("a\u2060\u200bb", "a\u2060\u200bb"),
    ("c\u00ad, \u00add\u200f", "c , d"), ("a\ufeffb x_y", "a b x _ y"), ("a\u0301_\u0301b", "a\u0301 _\u0301 b"),
    ("=\u0338<\u0338", "=\u0338 <\u0338"), ("\u2764\ufe0f\u200d\u2764", "\u2764\ufe0f \u2764"), (" \u0301 ", "\u0301"),
    ("C\u20e3 37,5\u00b0", "C\u20e3 37 , 5 \u00b0"), ("\U0001d157\U0001d165", "\U0001d157\U0001d165"),
    ("a\U000e0001b", "a\U000e0001b"),
])  # fmt: skip
def test_marks_and_format_characters_go_with_their_letter(text, want):
    assert tokens_of(text) == want.split(" ")


def test_words_are_the_same_composed_and_decomposed():
    """Characters that Unicode decomposes: alone, within a word, before a mark; and the old rule for all other text."""
    characters = [c for c in map(chr, range(0x30000)) if unicodedata.normalize("NFD", c) != c][::7]
    assert len(characters) > 1500
    for c in [*characters, *"éńἀᾧ≠가\u0344"]:
        text = f"a{c}b {c} _{c} {c}\u0323"
        nfc, nfd = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
        assert [unicodedata.normalize("NFC", t) for t in tokens_of(nfd)] == tokens_of(nfc), c
    plain = "".join(c for c in map(chr, range(0x3000)) if unicodedata.category(c) not in ("Mn", "Mc", "Me", "Cf"))
    old = [t for t in re.findall(r"[^\W_]+|[^\s\ufeff]", plain) if unicodedata.category(t[0])[0] != "C"]
    assert tokens_of(plain) == old


NFC_TEXT = "Fièvre après l'opération du nævus à Škofja, 37 °C ; hyperthyroïdie sévère."
NFC_ENTITIES = [("X", "Fièvre"), ("Y", "hyperthyroïdie sévère"), ("X", "Škofja")]


def in_form(form):
    """The text in a form of Unicode, and (type, start, end) of its entities there."""
    text = unicodedata.normalize(form, NFC_TEXT)
    marked = [(kind, unicodedata.normalize(form, words)) for kind, words in NFC_ENTITIES]
    return text, [(kind, text.index(words), text.index(words) + len(words)) for kind, words in marked]


def test_a_decomposed_corpus_has_the_scores_of_a_composed_one(tmp_path):
    """The same labels and scores, offsets as the text has them, and windows of the same tokens for any tokenizer."""
    tokenizer = tokenizers.train_wordpiece([[NFC_TEXT]], 200, True, [])
    tokenizer.normalizer = normalizers.Sequence([])  # as many have none
    documents, ids = [], []
    for form in ("NFC", "NFD"):
        text, entities = in_form(form)
        rows = [
            f"T{i}\t{kind} {a} {b}\t{unicodedata.normalize('NFC', text[a:b])}\n"
            for i, (kind, a, b) in enumerate(entities)
        ]
        write(tmp_path / form, {"d.txt": text, "d.ann": "".join(rows)})
        documents += formats.read_brat(tmp_path / form, None, issues := Counter())
        assert not +issues and documents[-1].gold == [(kind, ((a, b),)) for kind, a, b in entities]
        ids += [w.ids for w in make_windows(documents[-1:], tokenizer, tokenizers.special_ids(tokenizer), 128)]
    nfc, nfd = documents
    assert len(nfd.text) > len(nfc.text) and nfd.labels == nfc.labels and nfc.labels.count("O") < len(nfc.labels)
    assert ids[0] == ids[1] and tokenizers.special_ids(tokenizer)["unk"] not in ids[0]
    predicted = nfc.labels[:-3] + ["O"] * 3
    scores = [finetune.score([d], [predicted], corpora.CORPORA["custom"]) for d in documents]
    assert scores[0] == scores[1] and 0 < scores[0]["entity"][2] < 100


@pytest.mark.parametrize("text_form, words_form", [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("form", ["pubtator", "bioc"])
def test_words_of_entities_are_compared_in_one_form(tmp_path, form, text_form, words_form):
    text, entities = in_form(text_form)
    rows = [(kind, a, b, unicodedata.normalize(words_form, text[a:b])) for kind, a, b in entities]
    if form == "pubtator":
        lines = "".join(f"1\t{a}\t{b}\t{words}\t{kind}\n" for kind, a, b, words in rows)
        write(tmp_path, {"x": f"1|t|{text}\n1|a|\n{lines}"})
    else:
        annotations = [
            {"infons": {"type": kind}, "text": words, "locations": [{"offset": a, "length": b - a}]}
            for kind, a, b, words in rows
        ]
        passages = [{"offset": 0, "text": text, "annotations": annotations}]
        write(tmp_path, {"x.json": json.dumps({"documents": [{"id": 1, "passages": passages}]})})
    (document,) = formats.read_split(next(tmp_path.iterdir()), None, Counter())
    assert document.gold == [(kind, ((a, b),)) for kind, a, b in entities]


def test_an_overlap_is_found_in_any_form():
    nfc, nfd = (unicodedata.normalize(form, f"{NFC_TEXT} {NFC_TEXT[::-1]} हिन्दी क्षेत्र") for form in ("NFC", "NFD"))
    assert nfc != nfd and [found.tolist() for found in texts.find_overlaps([nfd], [nfc, "x"])] == [[0]]
    assert (texts.ngram_hashes(nfc) == texts.ngram_hashes(nfd)).all()


# ---------------------------------------------------------------- the flattening rule


def flat(text, entities):
    """Spans of tokens, kept (start, end, type) and labels, by the rule's own words: longest, first, first in file."""
    spans = [m.span() for m in re.finditer(r"[^\W_]+|[^\s\ufeff]", text)]
    hulls = [(min(min(f) for f in where), max(max(f) for f in where), kind) for kind, where in entities]
    kept, labels = [], ["O"] * len(spans)
    for a, b, kind in sorted(hulls, key=lambda h: (h[0] - h[1], h[0])):
        if all(b <= c or d <= a for c, d, _ in kept):
            kept.append((a, b, kind))
    for a, b, kind in sorted(kept):
        prefix = "B-"
        for i, (c, d) in enumerate(spans):
            if c < b and a < d and labels[i] == "O":
                labels[i], prefix = prefix + kind, "I-"
    return spans, kept, labels


@pytest.mark.parametrize("seed", range(60))
def test_random_entities_in_random_text(tmp_path, seed):
    """Labels are those of a brute-force flattening; what is not labelled is counted; where entities end at words
    labels give back their characters. Even seeds: at words; every third: without overlap; else nested, in pieces."""
    rng = random.Random(seed)
    text = BOM * rng.randint(0, 1) + "".join(rng.choices("aébZ12  .,-_\n\u00a0", k=rng.randint(5, 150)))
    words = [m.span() for m in re.finditer(r"[^\W_]+|[^\s\ufeff]", text)] or pytest.skip("no word")
    entities, end = [], 0
    for _ in range(rng.randint(0, 25)):
        pieces = []
        for i in rng.choices(range(len(words)), k=rng.choice([1, 1, 1, 2, 3])):
            a, b = words[i][0], words[min(i + rng.choice([0, 0, 1, 3]), len(words) - 1)][1]
            if seed % 2:
                a, b = rng.randint(max(a - 1, 0), b - 1), min(b + rng.randint(0, 1), len(text))
            pieces += [(a, b)] * bool(text[a:b].strip())
        if pieces and (seed % 3 or min(pieces)[0] >= end):
            entities.append((rng.choice("XYZ"), tuple(pieces)))
            end = max(b for _, b in pieces)
    rows = []
    for kind, where in entities:
        surface = " ".join(text[a:b] for a, b in where).replace("\n", " ")
        rows.append(f"T1\t{kind} {';'.join(f'{a} {b}' for a, b in where)}\t{surface}")
    write(tmp_path, {"d.txt": text, "d.ann": "\n".join(rows)})
    (d,) = formats.read_brat(tmp_path, {"X": "x", "Y": "y"}, issues := Counter())
    ours = []
    for kind, where in entities:
        pieces = [(b - len(text[a:b].lstrip()), a + len(text[a:b].rstrip())) for a, b in where]
        covered = [any(a <= i < b for a, b in pieces) for i in range(len(text))]
        shown = "".join("x" if inside else " " if c.isspace() else "." for c, inside in zip(text, covered))
        pieces = tuple(m.span() for m in re.finditer(r"x(?:[x ]*x)?", shown))
        if kind != "Z" and (kind.lower(), pieces) not in ours:
            ours.append((kind.lower(), pieces))
    spans, kept, labels = flat(text, ours)
    assert (d.spans, d.labels, d.gold) == (spans, labels, ours)
    assert d.tokens == [text[a:b] for a, b in spans]
    assert all(t[0] != "I" or before[1:] == t[1:] for before, t in zip(["O", *labels], labels))
    lost = sum(n for what, n in issues.items() if re.search("not labelled|left out|counted once", what))
    assert sum(t[0] == "B" for t in labels) + lost == len(entities)
    assert issues["entities of several fragments: one stretch, where labelled"] == sum(
        len(where) > 1 for _, where in ours
    )
    if seed % 2 == 0:
        assert predicted_entities(d, d.labels, False) == {(kind, ((a, b),)) for a, b, kind in kept}


@pytest.mark.parametrize("max_len", [8, 16, 30])
def test_split_entities_are_those_that_no_window_holds_whole(dataset, max_len):
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    rng, documents = random.Random(max_len), []
    for i in range(30):
        text = "".join(rng.choice(["acute ", "liver ", "pain ", "kidney\n", "x"]) for _ in range(60))
        entities = [("X", ((m.start(), m.end() + 12),)) for m in re.finditer(r"kidney|pain", text)]
        documents.append(align_entities(f"{i}", text, entities, None, Counter()))
    cut = make_windows(documents, tokenizer, tokenizers.special_ids(tokenizer), max_len)
    want = 0
    for i, d in enumerate(documents):
        within = [range(first, first + len(at)) for j, first, _, at in cut if j == i]
        starts = [m.span() for m in re.finditer("BI*", "".join(t[0] for t in d.labels))]
        want += sum(not any(a in w and b - 1 in w for w in within) for a, b in starts)
    assert count_split_entities(documents, cut) == want and want


# ---------------------------------------------------------------- --check, contamination


def checked(capsys, corpus, folder, dataset=""):
    """Rows of `beyond.check` as {what: [a number per split]}."""
    check(Check(corpus, str(folder), str(dataset)))
    rows = (re.fullmatch(r"(.+?)((?: +\d[\d,.]*)+)", line) for line in capsys.readouterr().out.splitlines()[2:])
    return {r[1].strip(): [float(x.replace(",", "")) for x in r[2].split()] for r in rows if r}


def test_check_counts_what_labels_cannot_express(tmp_path, capsys):
    files = in_brat("{}", "X") | {"test/e.txt": "L' ablation d' un nodule de la thyroïde", "test/e.ann": NESTED}
    rows = checked(capsys, "custom", write(tmp_path, files | {"test/f.txt": "", "test/f.ann": ""}))
    assert rows["documents"] == [1, 1, 2] and rows["tokens"] == [4, 4, 14]
    assert rows["entities"] == [1, 1, 4] and rows["entities that are labelled"] == [1, 1, 2]
    assert rows["X"] == [1, 1, 1] and rows["ANAT"] == [0, 0, 1]
    assert rows["entities within or across a longer one: not labelled"] == [0, 0, 2]
    assert rows["documents without a word: left out"] == [0, 0, 1]
    assert rows["best precision that labels can have (%)"] == [100] * 3
    assert rows["best recall that labels can have (%)"] == [100, 100, 50]


def eights(text):
    words = re.findall(r"[^\W_]+", text.casefold())
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


@pytest.mark.parametrize("seed", range(20))
def test_an_overlap_is_half_of_the_shorter_texts_ngrams(seed):
    """Compared with sets of eight-word tuples; case and punctuation do not count, nor texts of fewer than five."""
    rng = random.Random(seed)

    def some(n):
        return [rng.choice("Foie FOIE rein d'un ß 37,5 x_y Straße".split()) + rng.choice(" .-\n") for _ in range(n)]

    ours, others = [some(rng.randint(0, 60)) for _ in range(12)], [some(rng.randint(0, 30)) for _ in range(4)]
    for _ in range(20):
        t = rng.choice(ours)[rng.randint(0, 30) :]
        others.append(some(rng.randint(0, 25)) + [w.swapcase() for w in t[: rng.randint(5, 30)]] + some(3))
    ours, others = (["".join(words) for words in side] for side in (ours, others))
    our_ngrams, other_ngrams = ([eights(text) for text in side] for side in (ours, others))
    want = [[j for j, b in enumerate(other_ngrams) if 2 * len(a & b) >= min(len(a), len(b)) >= 5] for a in our_ngrams]
    assert [found.tolist() for found in texts.find_overlaps(ours, others)] == want
    assert [len(texts.ngram_hashes(text)) for text in ours] == [len(eights(text)) for text in ours]
    assert [found.tolist() for found in texts.find_overlaps(ours[:1], [])] == [[]]


@pytest.mark.parametrize("files", [
    {"d.txt": "Sans\nfièvre .", "d.ann": "T1\tX 0 4\tSans", "annotation.conf": "X", "d.ann~": "X"},
    {"d.txt": "Sans\tfièvre .", "d.ann": "T1\tX 0 4\tSans"},
    {"d.txt": BOM + "Sans fièvre ."},
    {"Train.PubTator": pubtator(1, "Sans", "fièvre .", "X Sans") + "1\tBind\t1\t2\tNo\n"},
    {"x.txt": "\n" + pubtator(1, "Sans", "fièvre .", "X Sans", end="\r\n")},
    {"Train.BioC.JSON": bioc("1", "Sans", "fièvre .", "X Sans")},
    {"x.tsv": "\nSans\tO\nfièvre\tB-X\n.\tO\n\n"},
    {"x.txt": "Sans O\nfièvre B-X\n\n. O"},
    {"x.txt": "Sans O\r\nfièvre B-X\r\n\r\n. O\r\n"},
    {"x.conll": "Sans NN B-X\nfièvre NN O\n. NN O\n"},
    {"x.txt": "Sans I-X\nfièvre O\n. O\n"},
    {"x.txt": "Sans S-X\nfièvre O\n. O\n"},
    {"x.txt": "-DOCSTART-\n\nSans O\nfièvre O\n. O\n"},
    {"x.iob2": "###MEDLINE:12\n\nSans\tO\nfièvre\tB-X\n.\tO\n"},
    {"x.txt": "Sans S-X\nfièvre E-X\n. O\n"},
    {"x.txt": pubtator("PMC1", "Sans", "fièvre .", "X Sans")},
    {"eng.testa": "Sans O\nfièvre B-X\n. O\n"},
    {"x.txt": "Sans\rfièvre\r.\r"}, {"x.tsv": "Sans\tO\rfièvre\tB-X\r.\tO\r\r"},
    {"CAS_neg.txt": "1\t1\tSans\tsans\tPRP\t***\n1\t2\tfièvre\tx\tNOM\tB_cue\t_\n1\t3\t.\t.\tSENT\t***\n"},
])  # fmt: skip
def test_words_of_a_corpus_without_its_tags(tmp_path, files):
    found = [text.split() for text in corpora.read_texts(write(tmp_path, files))]
    assert ["Sans", "fièvre", "."] in found and {w for words in found for w in words} == {"Sans", "fièvre", "."}


@pytest.mark.parametrize("name", [*LAYOUTS, "cas-sg"])
def test_exclude_takes_whole_folders_of_corpora(tmp_path, name):
    """What lies beside the splits of an official layout does not stop a build, and every split is read."""
    files = LAYOUTS[name][1] if name in LAYOUTS else brat("DEFT-cas-cliniques/f-1", "Sans fièvre train.")
    files = {name: text for name, text in files.items() if name != "Test.BioC.JSON" or text != "{}"}
    table = {"distribution-corpus.txt": "f-1.txt\t1\t2\ttrain 2021\n"} if name == "cas-sg" else {}
    found = {" ".join(re.findall(r"\w+", text)) for text in corpora.read_texts(write(tmp_path, DECOYS | files | table))}
    splits = SPLITS if name != "cas-sg" and name.split()[0] not in ("jnlpba", "e3c") else ["train"]
    assert {f"Sans fièvre {split}" for split in splits} <= found


@pytest.mark.parametrize("files", [
    {"x.tsv": "Sans\tO\nfièvre\tS-X\n.\tO\n"}, {"x.txt": pubtator(1, "Sans", "fièvre .") + "1\tCID\tD1\tD2\n"},
    {"x.json": '{"documents": [{"passages": [{"text": "Sans"}, {"text": "fièvre ."}]}]}'},
])  # fmt: skip
def test_exclude_does_not_parse_annotations(tmp_path, files):
    """Other schemes of tags, relations of other corpora, and BioC without annotations."""
    assert "Sans fièvre ." in corpora.read_texts(write(tmp_path, files))


def test_exclude_must_name_a_corpus(tmp_path):
    for name, content, message in (
        ("x.pdf", b"a", "exclude: .* is not, and does not hold"), ("x.txt", b"a\n\xff", "x.txt, row 2: not UTF-8"),
        ("x.json", b"{}", "exclude: .*x.json: not a collection of BioC"),
        ("y.json", b'{"documents": ' + b"[" * 10**5, "exclude: .*y.json: not a collection of BioC"),
        ("z.json", b'{"documents": [[]]}', "exclude: .*z.json: not a collection of BioC"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            corpora.read_texts(write(tmp_path / name, {name: content}))


def words(seed, n):
    return random.Random(seed).choices("acute pain of the left kidney with fever and no cough since may".split(), k=n)


def test_contamination(dataset):
    """Which sequences overlap with the documents of a data set, and which are long enough to tell."""
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    ids = [tokenizer.encode(" ".join(words(i, 60)), add_special_tokens=False).ids for i in range(5)]
    offsets = np.cumsum([0, *map(len, ids)])
    examples = SimpleNamespace(ids=np.concatenate(ids), offsets=offsets, rows=np.arange(1, 5))  # not document 0
    test = [words(0, 60), words(1, 60)[10:30], words(2, 60)[:11], words(9, 40), [], words(1, 60)[40:]]
    splits = {"train": [], "test": [Document("", t, ["O"] * len(t)) for t in test]}
    splits |= {f"test {i}": [document] for i, document in enumerate(splits["test"])}
    overlapping, comparable = find_contamination(splits, examples, tokenizer)
    assert [*overlapping.values()] == [0, 2, 0, 1, 0, 0, 0, 1]
    assert [*comparable.values()] == [0, 4, 1, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("form", ["brat", "pubtator", "columns"])
def test_exclude_leaves_out_what_check_finds(release, tmp_path, capsys, form):
    """check --dataset counts the test sequences that overlap with documents; EXCLUDE builds without these documents."""
    sequences = {"train": [" ".join(words(98, 30))], "test": [" ".join(words(i, 100)[30:60]) for i in (3, 5, 99)]}
    for part, of in sequences.items():
        if form == "brat":
            files = {f"{part}/{i}.{end}": t * (end == "txt") for i, t in enumerate(of) for end in ("txt", "ann")}
        elif form == "pubtator":
            files = {f"{part}.txt": "".join(pubtator(i, *t.split(" ", 1)) for i, t in enumerate(of))}
        else:
            files = {f"{part}.txt": "\n\n".join(t.replace(" ", " O\n") + " O" for t in of)}
        write(tmp_path / "corpus", files)
    write(tmp_path, {"texts.txt": "\n".join(" ".join(words(i, 100)) for i in range(12))})
    few = {"e3c": "none", "text": str(tmp_path / "texts.txt"), "ep_examples": 0, "lp_paths": 0, "tc_examples": 0}
    for exclude, known, n in (("", 2, 12), (str(tmp_path / "corpus"), 0, 10)):
        out = build(release, tmp_path / f"set-{n}", exclude=exclude, **few)
        assert sum(len(data.PretrainingDataset(out, part, ["mlm"])) for part in ("train", "valid")) == n
        rows = checked(capsys, "custom", tmp_path / "corpus", out)
        assert rows["of 12 words or more"] == [1, 3]
        assert rows[f"of these, overlapping with training documents of {out.name}"] == [0, known]


# ---------------------------------------------------------------- the corpora themselves

SHARED = {  # corpus and folder: (documents or sentences, tokens, entities) of each part
    "ncbi-disease": ((5424, 135701, 5134), (923, 23969, 787), (940, 24497, 960)),
    "e3c/en/layer1": ((669, 12657, 437), (851, 16702, 516)),
    "e3c/fr/layer1": ((504, 13238, 569), (605, 16018, 695)),
    "e3c/es/layer1": ((455, 11750, 509), (679, 17065, 800)),
    "e3c/en/layer2": ((2873, 59006, 2140),),
    "e3c/fr/layer2": ((2389, 58523, 2033),),
    "e3c/es/layer2": ((2347, 57875, 2625),),
    "meddocan": ((500, 267344, 11333), (250, 140925, 5801), (250, 134342, 5661)),
}  # fmt: skip
MEDDOCAN = """TERRITORIO 1875 987 956 ID_ASEGURAMIENTO 391 194 198 FECHAS 1231 724 611 HOSPITAL 255 140 130
    EDAD_SUJETO_ASISTENCIA 1035 521 518 FAMILIARES_SUJETO_ASISTENCIA 243 92 81 NOMBRE_SUJETO_ASISTENCIA 1009 503 502
    INSTITUCION 98 72 67 NOMBRE_PERSONAL_SANITARIO 1000 497 501 ID_CONTACTO_ASISTENCIAL 77 32 39
    SEXO_SUJETO_ASISTENCIA 925 455 461 NUMERO_TELEFONO 58 25 26 CALLE 862 434 413 PROFESION 24 4 9 PAIS 713 347 363
    NUMERO_FAX 15 6 7 ID_SUJETO_ASISTENCIA 567 292 283 OTROS_SUJETO_ASISTENCIA 9 6 7 CENTRO_SALUD 6 2 6
    ID_TITULACION_PERSONAL_SANITARIO 471 226 234 CORREO_ELECTRONICO 469 241 249 ID_EMPLEO_PERSONAL_SANITARIO 0 1 0"""


@cache
def shared(name):
    """Parts of a corpus in shared/, read once, and what was issues."""
    if not NER.is_dir():
        pytest.skip("NER names no folder of corpora")
    if name.endswith("layer2"):
        return {"text": formats.read_conll(NER / name / "text.txt", None, Counter())}, {}
    return corpora.read_corpus(name.split("/")[0], NER / name)


def counts(documents):
    b = sum(t[0] == "B" for d in documents for t in d.labels)
    return len(documents), sum(len(d.tokens) for d in documents), b


@pytest.mark.parametrize("name", SHARED)
def test_real_corpora(name):
    """Sentences or documents, tokens and entities as published; valid IOB2, whole tokens, every name once."""
    parts = shared(name)[0]
    assert tuple(map(counts, parts.values())) == SHARED[name]
    types = {t[2:] for d in parts.values() for x in d for t in x.labels} - {""}
    assert len(types) == 22 if name == "meddocan" else types == {"Disease" if name == "ncbi-disease" else "ety"}
    for d in (d for documents in parts.values() for d in documents):
        assert all(t[0] != "I" or before[1:] == t[1:] for before, t in zip(["O", *d.labels], d.labels))
        assert not any(re.search(r"^$|[\s\ufeff\x00-\x1f\x7f-\x9f]", t) for t in d.tokens) and d.tokens
    assert all(len({d.name for d in documents}) == len(documents) for documents in parts.values())


def test_real_meddocan():
    """Mentions by type; labels give back all characters but of 12 mentions; how late mentions begin (section 4)."""
    parts, issues = shared("meddocan")
    table = re.findall(r"(\w+) (\d+) (\d+) (\d+)", MEDDOCAN)
    kinds = [Counter(kind for d in documents for kind, _ in d.gold) for documents in parts.values()]
    assert kinds == [{row[0]: int(row[i]) for row in table if row[i] != "0"} for i in (1, 2, 3)]
    assert [sum(d.text[0] == BOM for d in documents) for documents in parts.values()] == [15, 7, 10]
    lost = [
        e + (d.text,) for ds in parts.values() for d in ds for e in {*d.gold} - predicted_entities(d, d.labels, False)
    ]
    assert len(lost) == 12 == sum(sum(c.values()) for c in issues.values())
    assert all(any(t[i - 1 : i + 1].isalnum() for i in (a, b)) for _, ((a, b),), t in lost)
    sizes = sorted(len(d.tokens) for d in parts["test"])
    assert (sizes[125], sizes[-1]) == (496, 1293)
    begin = [i for d in parts["test"] for i, t in enumerate(d.labels) if t[0] == "B"]
    late = [round(100 * sum(i >= n for i in begin) / len(begin), 1) for n in (256, 340, 510)]
    assert late == [25.7, 20.9, 11.3]


@pytest.mark.parametrize("kinds", [["x", "y"], ["Sign-", "Sign", "-Sign", "-", "a b", "S-x", "O"]])
def test_entities_are_those_of_a_brute_force(kinds):
    """Of any labels, and of ordinary types those of seqeval too, which takes hyphens at the ends of a type away."""
    rng = random.Random(0)
    for _ in range(300):
        labels = rng.choices(["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")], k=rng.randint(0, 9))
        found, n = decode_entities(labels), len(labels)
        assert found == [
            (a, b, labels[a][2:]) for a in range(n) for b in range(a + 1, n + 1)
            if labels[a][:2] == "B-" and {*labels[a + 1 : b]} <= {"I-" + labels[a][2:]}
            and labels[b : b + 1] != ["I-" + labels[a][2:]]
        ]  # fmt: skip
        if len(kinds) == 2:
            assert found == [(e.start, e.end, e.tag) for e in seqeval.Entities([labels], seqeval.IOB2).entities[0]]


def in_scheme(scheme, n, entities):
    """The tags of n tokens in a scheme, after its definition. entities: (start, end, type), sorted."""
    tags, before = ["O"] * n, (0, 0, "")
    for start, end, kind in entities:
        first, middle, last, single = {"BIOES": "BIES", "BILOU": "BILU", "IOB2": "BIIB", "IOB1": "IIII"}[scheme]
        if scheme == "IOB1" and before[1:] == (start, kind):
            first = single = "B"
        prefixes = first + middle * (end - start - 2) + last if end - start > 1 else single
        tags[start:end] = [f"{prefix}-{kind}" for prefix in prefixes]
        before = start, end, kind
    return tags


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES", "BILOU"])
def test_tags_of_every_scheme_are_read_as_iob2(tmp_path, scheme):
    """In columns of your own: the entities that were encoded, types with hyphens too. What is converted is counted."""
    rng, of_file, n_others, n_repaired = random.Random(1), [], 0, 0
    for _ in range(200):
        ends = sorted(rng.sample(range(13), rng.randint(2, 9)))
        entities = [(a, b, rng.choice(["x", "S-x", "E-"])) for a, b in zip(ends, ends[1:]) if rng.random() < 0.6]
        tags = in_scheme(scheme, ends[-1], entities)
        if rng.random() < 0.2:  # the last tag of a sentence alone continues nothing
            entities, tags = [*entities, (len(tags) + 1, len(tags) + 2, "x")], [*tags, "O", "I-x"]
            n_repaired += scheme != "IOB1"
        of_file.append((entities, tags))
        n_others += sum(tag[0] in "ESLU" for tag in tags)
        n_repaired += scheme == "IOB1" and sum(tags[a][0] == "I" for a, _, _ in entities)
    (tmp_path / "x.txt").write_text("\n\n".join("\n".join(f"w\t{tag}" for tag in tags) for _, tags in of_file))
    documents = formats.read_conll(tmp_path / "x.txt", None, issues := Counter())
    for (entities, tags), document in zip(of_file, documents, strict=True):
        assert document.labels == in_scheme("IOB2", len(tags), entities)
    assert {k: v for k, v in issues.items() if v} == {k: v for k, v in {
        f"tags of {scheme}: converted to IOB2": n_others, "I- tags that begin an entity: read as B-": n_repaired,
    }.items() if v}  # fmt: skip


@pytest.mark.parametrize("last, single", ["ES", "LU"])
def test_labels_in_any_order_are_read_as_conlleval_does(last, single):
    """As get_entities of seqeval has it, whatever labels follow each other; it knows E and S alone."""
    rng = random.Random(2)
    for _ in range(1000):
        labels = rng.choices(["O", *(f"{prefix}-{kind}" for prefix in "BI" + last + single for kind in "xy")], k=9)
        known = [label.replace(last + "-", "E-").replace(single + "-", "S-") for label in labels]
        want = [(start, end + 1, kind) for kind, start, end in get_entities(known)]
        assert decode_entities(to_iob2(labels)) == want


def test_strict_iob2_keeps_entities_and_nothing_else():
    labels = ["O", "I-A", "B-A", "I-A", "I-B", "B-B", "B-B", "I-A"]
    assert strict_iob2(labels) == ["O", "O", "B-A", "I-A", "O", "B-B", "B-B", "O"]
    assert decode_entities(strict_iob2(labels)) == decode_entities(labels)
