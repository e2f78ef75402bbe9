"""Gold standards of linking in each of their forms, splits, what is wrong with them, and choices of languages."""

import json
import os
import random
import zlib
from collections import defaultdict
from pathlib import Path
from unicodedata import normalize
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pytest

from beyond import link as linking
from beyond import ranking
from beyond.dictionaries import gold_concepts, make_dictionary, parse_ids, read_ids
from beyond.gold import read_mentions, read_tasks
from configs import POOLINGS, UserError
from tests.conftest import ROOT, run_command

SHARED = ROOT.parent / "shared" / "data"
WORDS = (
    'grippe fièvre 𝛼-thalassémie 🩸 anémie <grave> d\' & un nodule naïve syndrome "x" de foie e\u0301te\u0301'.split()
)
BOLD = "𝛼🩸𝛼 "  # four characters of seven units in UTF-16


# ---------------------------------------------------------------- one corpus in each form


def invent(seed, ids):
    """{split: [(name, text of two lines, [(start, end, type, ids)])]}; ids: those that a mention may have."""
    rng, splits = random.Random(seed), {}
    for split in ("train", "test"):
        splits[split] = []
        for n in range(6):
            words = [[rng.choice(WORDS) for _ in range(rng.randint(3, 9))] for _ in range(2)]
            text, entities = "\n".join(" ".join(line) for line in words), []
            for _ in range(rng.randint(0, 6)):
                start = rng.choice([i for i in range(len(text)) if (" " + text)[i] in " \n"])
                line_end = (text + "\n").index("\n", start)
                ends = [i for i in range(start + 1, line_end + 1) if (text + " ")[i] in " \n"]
                entities.append((start, rng.choice(ends[:3]), rng.choice("XY"), rng.choice(ids)))
            splits[split].append((f"{split}{n}", text, entities))
    return splits


def blocks(documents):
    """PubTator, written as its users do."""
    for name, text, entities in documents:
        title, abstract = text.split("\n")
        lines = [f"{name}|t|{title}", f"{name}|a|{abstract}"]
        lines += [f"{name}\t{a}\t{b}\t{text[a:b]}\t{kind}\t{ids}" for a, b, kind, ids in entities]
        yield "\n".join(lines) + "\n\n"


def write_pubtator(folder, splits):
    for split, documents in splits.items():
        (folder / f"{split}.PubTator").write_text("".join(blocks(documents)), encoding="utf-8")


def bioc(documents, key):
    """BioC's collection: a passage a line, offsets in the document; ids under a key of infons."""
    for name, text, entities in documents:
        cut = text.index("\n") + 1
        annotations = [
            {"infons": {"type": kind, key: ids}, "text": text[a:b], "locations": [{"offset": a, "length": b - a}]}
            for a, b, kind, ids in entities
        ]
        first = {"offset": 0, "text": text[: cut - 1], "annotations": annotations[::2]}
        yield {"id": name, "passages": [first, {"offset": cut, "text": text[cut:], "annotations": annotations[1::2]}]}


def write_bioc_json(folder, splits, key="identifier"):
    for split, documents in splits.items():
        collection = {"source": "", "documents": [*bioc(documents, key)]}
        (folder / f"{split}.BioC.JSON").write_text(json.dumps(collection))


def write_bioc_xml(folder, splits):
    """With ids under the name of their source, in a file without a suffix, as QUAERO is handed out."""
    for split, documents in splits.items():
        parts = []
        for document in bioc(documents, "MESH"):
            parts.append(f"<document><id>{document['id']}</id>")
            for passage in document["passages"]:
                parts.append(f"<passage><offset>{passage['offset']}</offset><text>{escape(passage['text'])}</text>")
                for i, a in enumerate(passage["annotations"]):
                    infons = "".join(f'<infon key="{k}">{escape(x)}</infon>' for k, x in a["infons"].items())
                    place = "<location offset='{offset}' length='{length}'/>".format(**a["locations"][0])
                    parts.append(f'<annotation id="{i}">{infons}{place}<text>{escape(a["text"])}</text></annotation>')
                parts.append("</passage>")
            parts.append("</document>")
        head = '<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE collection SYSTEM "BioC.dtd"><collection><source/>'
        (folder / f"MEDLINE_{split}_bioc").write_text(head + "".join(parts) + "</collection>", encoding="utf-8")


def write_brat(folder, splits, line="#{n}\tAnnotatorNotes T{n}\t{ids}", between=" "):
    """A folder a split, ids in a line of their own for each entity, all before the entities, and a .conf file."""
    for split, documents in splits.items():
        place = folder / "corpus" / split / "MEDLINE"
        place.mkdir(parents=True)
        (place / "annotation.conf").write_text("[entities]\n")
        for name, text, entities in documents:
            (place / f"{name}.txt").write_text(text, encoding="utf-8")
            ids = [
                line.format(n=n, ids=ids.replace("|", between))
                for n, (*_, ids) in enumerate(entities, 1)
                if parse_ids(ids)
            ]
            lines = [f"T{n}\t{k} {a} {b}\t{text[a:b]}".replace("\n", " ") for n, (a, b, k, _) in enumerate(entities, 1)]
            (place / f"{name}.ann").write_text("\n".join(ids + lines), encoding="utf-8")


def write_brat_references(folder, splits):
    write_brat(folder, splits, "N{n}\tReference T{n} UMLS:{ids}\tname of it", "\n")


def xmi(text, entities, more=""):
    """A document of E3C: offsets in UTF-16 units, counted here by encoding."""

    def units(i):
        return len(text[:i].encode("utf-16-le")) // 2

    lines = [
        f'<custom:CLINENTITY xmi:id="{n}" sofa="12" begin="{units(a)}" end="{units(b)}" entityID="{ids}"/>'
        for n, (a, b, _, ids) in enumerate(entities)
    ]
    text = quoteattr(text, {"\n": "&#10;"})
    return (
        '<?xml version="1.0" encoding="UTF-8"?><xmi:XMI xmlns:cas="http:///uima/cas.ecore" xmi:version="2.0" '
        'xmlns:xmi="http://www.omg.org/XMI" xmlns:custom="http:///webanno/custom.ecore"><cas:NULL xmi:id="0"/>'
        + "".join(lines).replace(' entityID=""', "")
        + f'{more}<cas:Sofa xmi:id="12" sofaNum="1" sofaID="_InitialView" mimeType="text" sofaString={text}/></xmi:XMI>'
    )


def write_xmi(folder, splits):
    """As a clone of E3C: layers, and the list of training documents two folders above."""
    place = folder / "French" / "layer1"
    place.mkdir(parents=True)
    for name, text, entities in [document for documents in splits.values() for document in documents]:
        (place / f"{name}.xml").write_text(xmi(text, entities), encoding="utf-8")
    (folder / "French" / "layer2").mkdir()
    (folder / "French" / "layer2" / "other.xml").write_text(xmi("x", [(0, 1, "", "C0000001")]))
    train = ", ".join(f"'{name}'" for name, *_ in splits["train"])
    (folder / "documentation").mkdir()
    (folder / "documentation" / "train_test_split.txt").write_text(
        f"The documents\n\nENGLISH\n'EN1'\n\nFRENCH\n{train}\n"
    )


ONE, SEVERAL = ["C0000001", "C0000002", "C0000003", ""], ["C0000004|C0000002", "C0000001+C0000005"]
FORMS = {
    "bioc_json": (write_bioc_json, "", ONE + SEVERAL), "bioc_xml": (write_bioc_xml, "", ONE + SEVERAL),
    "brat": (write_brat, "corpus/*/MEDLINE", ONE + SEVERAL), "brat, a folder": (write_brat, "", ONE + SEVERAL),
    "brat, N lines": (write_brat_references, "", ONE), "xmi": (write_xmi, "French", ONE),
    "xmi, layer1": (write_xmi, "French/layer1", ONE),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(2))
def test_each_form_is_the_same_gold(form, seed, tmp_path):
    """That of PubTator, whose reader was there before: documents, words, ids, splits, and what is counted."""
    write_form, inside, ids = FORMS[form]
    splits = invent(seed, ids)
    for name, write in (("pubtator", write_pubtator), ("other", write_form)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, splits)
    want, want_issues = read_mentions(tmp_path / "pubtator")
    found, issues = read_mentions(os.path.join(tmp_path, "other", inside))
    if write_form is write_xmi:  # which has no types
        want = {split: [*dict.fromkeys(mentions)] for split, mentions in want.items()}
        found = {split: [*dict.fromkeys(mentions)] for split, mentions in found.items()}
    else:
        assert {split: +x for split, x in issues.items()} == {split: +x for split, x in want_issues.items()}
    assert {s: sorted(x) for s, x in found.items()} == {s: sorted(x) for s, x in want.items()}
    assert len(want["test"]) > 5 and len(want["train"]) > 5
    assert {m.parts for m in want["test"]} > {(("C0000001",),), (("C0000002",),)}


def test_the_first_form_of_a_folder_is_read(tmp_path):
    """BioRED has the same in three forms; PubTator is the first of them."""
    splits = invent(0, ONE)
    write_bioc_json(tmp_path, {split: [] for split in splits})
    with pytest.raises(UserError, match="no mention with an id in it, read as BioC in JSON"):
        read_mentions(tmp_path)
    write_pubtator(tmp_path, splits)
    assert len(read_mentions(tmp_path)[0]["test"]) > 5


def test_repeated_documents_of_bioc_count_once(tmp_path):
    splits = invent(1, ["C0000001"])
    write_bioc_json(tmp_path, splits)
    want = read_mentions(tmp_path)[0]["test"]
    write_bioc_json(tmp_path, {split: documents * 2 for split, documents in splits.items()})
    found, issues = read_mentions(tmp_path)
    assert found["test"] == want and issues["test"]["repeated documents: left out"] == 6


def read_one(tmp_path, **files):
    """The mentions of the test split of files in a folder, as (text, parts), and the issues counted."""
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_text(content, encoding="utf-8")
    mentions, issues = read_mentions(tmp_path)
    return [(m.text, m.parts) for m in mentions["test"]], dict(+issues["test"])


@pytest.mark.parametrize("note, parts", [
    ("C0024586", (("C0024586",),)), ("C0024586 C0018621", (("C0024586", "C0018621"),)),
    ("C0024586, C0018621", (("C0024586", "C0018621"),)), ("C0024586,C0018621", (("C0024586", "C0018621"),)),
    ("C0024586 + C0018621", (("C0024586",), ("C0018621",))), ("C0024586+C0018621", (("C0024586",), ("C0018621",))),
    ("C0024586; UMLS:C0018621 ", (("C0024586", "C0018621"),)), ("8500/3", (("8500/3",),)),
    ("unclear, ask Anne", ()), ("CUILESS", ()), ("", ()),
])  # fmt: skip
def test_notes_of_brat(note, parts, tmp_path):
    """A blank or a comma is between concepts of which any is right, a plus between those that are meant together."""
    entities = "T1\tDISO 4 10;0 3\trhume. des\nT2\tX 0 3\tdes\n"
    ann = f"#1\tAnnotatorNotes T1\t{note}\n{entities}#2\tAnnotatorNotes T2\tC0000001\n"
    found, issues = read_one(tmp_path, a__txt="des rhume.\n", a__ann=ann.replace("\n", "\r\n"))
    want = [("rhume. des", parts), ("des", (("C0000001",),))]
    nothing = {"notes without an id: not read": 1, "mentions without an id": 1} if not parts else {}
    assert found == (want if parts else want[1:])
    assert issues == {"documents of no stated split: taken as test": 1} | nothing


def test_references_of_brat(tmp_path):
    """Each entity may have several; an id is found with the name of its source and without it."""
    ann = (
        "T1\tX 0 1\ta\nN1\tReference T1 UMLS:C0000001\tflu\nN2\tReference T1 SNOMEDCT_US:6142004\n"
        "A1\tNegated T1\nE1\tX:T1\n*\tEquiv T1 T1\n#1\tAnnotatorNotes A1\tC0000009\n#2\tOther T1\tC0000008\n"
    )
    found, _ = read_one(tmp_path, a__txt="a", a__ann=ann)
    assert found == [("a", (("C0000001", "SNOMEDCT_US:6142004", "6142004"),))]


def test_ids_of_bioc(tmp_path):
    """An identifier counts alone; sources may be written in any case; other infons are no ids."""
    cases = [
        ({"identifier": "D1|D2", "MESH": "D9"}, (("D1", "D2"),)), ({"MeSH": "D1"}, (("D1",),)),
        ({"CUI": "C1", "MESH": "D1", "note": "D7"}, (("C1", "D1"),)), ({"NCBI Gene": "12"}, (("12",),)),
        ({"identifier": "-", "MESH": "D3"}, ()), ({"identifier": "MESH:D1+OMIM:2"}, (("D1",), ("OMIM:2",))),
        ({"type": "D1"}, ()), ({}, ()),
    ]  # fmt: skip
    places = [[{"offset": i, "length": 1}, {"offset": i, "length": 1}] for i in range(len(cases))]
    annotations = [{"infons": x, "text": "ab"[0] * 3, "locations": p} for (x, _), p in zip(cases, places)]
    for a in annotations:
        a["text"] = "a a"
    passage = {"offset": 0, "text": "a" * len(cases), "annotations": annotations}
    found, issues = read_one(tmp_path, test__json=json.dumps({"documents": [{"id": 1, "passages": [passage]}]}))
    assert [parts for _, parts in found] == [parts for _, parts in cases if parts]
    assert {text for text, _ in found} == {"a a"} and issues == {"mentions without an id": 3}


def test_what_e3c_has_besides_cuis(tmp_path):
    """Counted apart: CUILESS, a malformed CUI, and none; offsets beside characters beyond the BMP."""
    text = f"{BOLD}grippe {BOLD}fie\u0300vre"
    a, b = text.index("grippe"), text.index("fi")
    ids = ["C0000001", "CUILESS", "C036572", "C0042963x", "", "C0000001"]
    entities = [(a, a + 6, "", i) for i in ids] + [(0, b + 7, "", "C0000002"), (b, b + 7, "", "C0000003")]
    found, issues = read_one(tmp_path, FR1__xml=xmi(text, entities))
    whole = normalize("NFC", text)
    assert found == [("grippe", (("C0000001",),)), (whole, (("C0000002",),)), (whole[-6:], (("C0000003",),))]
    assert issues == {
        "mentions that are CUILESS": 1, "mentions with a malformed CUI": 2, "mentions without an id": 1,
        "rows given twice: counted once": 1, "documents of no stated split: taken as test": 1,
    }  # fmt: skip


# ---------------------------------------------------------------- what is wrong


ONE_ANN = "T1\tX 0 1\ta\n"
GOOD = xmi("flu", [(0, 3, "", "C0000001")])
BIOC = json.dumps({"documents": [{"id": "7", "passages": [{"offset": 0, "text": "flu", "annotations": [
    {"infons": {"identifier": "D1"}, "text": "flu", "locations": [{"offset": 0, "length": 3}]}]}]}]})  # fmt: skip

BIOC_XML = (
    "<collection><document><id>1</id><passage><offset>0</offset><text>flu</text><annotation><infon>D1</infon>"
    '<location offset="0" length="3"/><text>flu</text></annotation></passage></document></collection>'
)


@pytest.mark.parametrize("files, message", [
    ({"x.xml": GOOD[:-5]}, "x.xml: not UIMA's XMI: "),
    ({"x.xml": GOOD.replace("CLINENTITY", "CLIN ENTITY")}, "x.xml: not"),
    ({"x.xml": GOOD.replace("<xmi:XMI", '<!DOCTYPE x [<!ENTITY a "aaaa">]><xmi:XMI', 1)}, "x.xml: it defines entities"),
    ({"x.xml": GOOD.replace('end="3"', 'end="4"')}, "x.xml: an entity from 0 to 4, which is no place in its text"),
    ({"x.xml": GOOD.replace('begin="0"', 'begin="-1"')}, "x.xml: an entity from -1 to 3, which"),
    ({"x.xml": GOOD.replace('begin="0"', 'begin="3"')}, "x.xml: an entity from 3 to 3, which"),
    ({"x.xml": GOOD.replace(' begin="0"', "")}, "x.xml: an entity from None to 3, which"),
    ({"x.xml": GOOD.replace('begin="0"', f'begin="{"9" * 5000}"')}, "x.xml: an entity from 9999"),
    ({"x.xml": GOOD.replace("flu", "🩸𝛼").replace('end="3"', 'end="1"')}, "x.xml: an entity from 0 to 1, which"),
    ({"x.xml": GOOD.replace("cas:Sofa", "cas:Other")}, "x.xml: it has 0 texts .cas:Sofa with a sofaString. instead of"),
    ({"x.xml": GOOD.replace("sofaString", "other")}, "x.xml: it has 1 texts .cas:Sofa with a sofaString. instead"),
    ({"x.xml": xmi("flu", [], '<cas:Sofa sofaString="b"/>')}, "x.xml: it has 2 texts"),
    ({"x.xml": GOOD, "train_test_split.txt": "'EN1', 'EN2'"}, "train_test_split.txt: it names no document of .*'x'"),
    ({"x.xml": GOOD, "documentation/train_test_split.txt": ""}, "train_test_split.txt: it names no document of"),
    ({"x.xml": GOOD, "train_test_split.txt": b"\xff"}, "train_test_split.txt, row 1: not UTF-8"),
    ({"a/x.xml": GOOD, "b/y.xml": GOOD}, "two folders of the test split: .*a and .*b; name one"),
    ({"test/M/a.ann": ONE_ANN, "test/E/a.ann": ONE_ANN}, "two folders of the test split: .*/E and .*/M; name one"),
    ({"a.ann": ONE_ANN}, "a.txt not found, the text of a.ann"),
    ({"a.ann": ONE_ANN, "a.txt": "b"}, "a.ann, row 1: 0 1 is 'b'"),
    ({"a.ann": "T1\tX 0 9\tab\n", "a.txt": "ab"}, "a.ann, row 1: 0 9 is 'ab' in the text .the text has 2 characters."),
    ({"a.ann": ONE_ANN + "\n#1\tAnnotatorNotes T2\tC0000001\n", "a.txt": "a"}, "a.ann, row 3: an id of T2, which"),
    ({"a.ann": "N1\tReference T2 UMLS:C0000001\n", "a.txt": "a"}, "a.ann, row 1: an id of T2, which is no entity"),
    ({"a.ann": ONE_ANN + ONE_ANN, "a.txt": "a"}, "a.ann, row 2: T1 comes again; each entity needs an id of its own"),
    ({"a.ann": ONE_ANN + "N1\tReference T1 C0000001\n", "a.txt": "a"}, "a.ann, row 2: not 'N<n> TAB Ref"),
    ({"a.ann": ONE_ANN, "a.txt": "a"}, "no mention with an id in it, read as brat with ids"),
    ({"test.json": BIOC.replace('"length": 3', '"length": 4')}, "'flu' at ..0, 4.,. is not within the text of 3 char"),
    ({"test.json": BIOC.replace('"flu", "loc', '"lu", "loc')}, "test.json, document 7: .* is 'flu', not 'lu'"),
    ({"test.xml": BIOC_XML}, "no mention with an id in it, read as BioC in XML"),
    ({"a.ann": ONE_ANN + "#1\tAnnotatorNotes T2\tin words\n", "a.txt": "a"}, "no mention with an id in it"),
    ({"test.json": BIOC.replace('"documents"', '"documents": 1, "x"')}, "test.json: not a collection of BioC"),
    ({"test.json": BIOC[:-9]}, "test.json: not a collection of BioC"),
    ({"all.json": BIOC}, "all.json: its name must say its"),
    ({"Test.json": BIOC, "test.json": BIOC}, "two files of the test split: Test.json and test.json"),
    ({"test.xml": "<collection><document>"}, "test.xml: not a collection of BioC"),
    ({"notes.txt": "Nothing.", "x.json": "{}", "y.xml": "<html/>", ".x.ann": ""}, "no gold standard in it .PubTator, "),
    ({"x/.y/a.ann": ONE_ANN}, "no gold standard in it"),
    ({"a.ann": "T1\tX 0 1\n", "a.txt": "a"}, "a.ann, row 1: not 'T<n> TAB"),
])  # fmt: skip
def test_what_is_wrong_with_gold_standards(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as e:
        read_mentions(tmp_path)
    assert "\n" not in str(e.value)


def test_patterns_of_folders(tmp_path):
    write_brat(tmp_path, splits := invent(0, ONE))
    (tmp_path / "corpus" / "test" / "EMEA").mkdir()
    for suffix, content in (("txt", "a"), ("ann", ONE_ANN)):
        (tmp_path / "corpus" / "test" / "EMEA" / f"a.{suffix}").write_text(content)
    with pytest.raises(UserError, match="two folders of the test split"):
        read_mentions(tmp_path / "corpus")
    found, _ = read_mentions(f"{tmp_path}/corpus/*/MEDLINE")
    assert {m.document for m in found["train"]} <= {name for name, *_ in splits["train"]} and found["test"]
    one, issues = read_mentions(f"{tmp_path}/corpus/train/MEDLINE")  # a single folder: nothing says which split it is
    assert one["test"] == found["train"] and not one["train"]
    assert issues["test"]["documents of no stated split: taken as test"] == 6
    for nothing in ("none", "*/MEDLINE", "corpus/*/x"):
        with pytest.raises(UserError, match="no such folder; name one with a gold standard"):
            read_mentions(f"{tmp_path}/{nothing}")


def test_all_splits_together(tmp_path):
    """Without figures of unseen mentions, and without the training mentions as names."""
    write_pubtator(tmp_path, invent(0, ONE))
    dictionary = make_dictionary(ONE[:3], ["a", "b", "c"])

    def task_of(**settings):
        return read_tasks(linking.Link("", corpus=str(tmp_path), **settings), [dictionary])[0]

    train, test, both = (task_of(split=split) for split in ("train", "test", "all"))
    assert both.mentions == train.mentions + test.mentions and both.issues == train.issues + test.issues
    assert both.unseen is None and test.unseen.any()
    with pytest.raises(UserError, match="train_mentions with --split all"):
        task_of(split="all", train_mentions=True)


# ---------------------------------------------------------------- choices of languages


NAMES = {
    "fr": [("C0000001", "grippe"), ("C0000001", "virus"), ("C0000002", "fièvre"), ("C0000005", "cirrhose")],
    "en": [("C0000001", "flu"), ("C0000002", "virus"), ("C0000003", "liver"), ("C0000004", "grippe")],
}


@pytest.fixture
def choices(tmp_path, monkeypatch):
    """A function that links an invented corpus with --lang: (what is kept, the lists of names that were embedded).

    Vectors are small whole numbers: sums of them are exact, and many names are equally near.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    write_pubtator(tmp_path / "corpus", invent(3, ONE + SEVERAL))
    embedded = []

    def embed(s, mentions, names, poolings):
        def vectors(texts):
            seeds = [np.random.default_rng(zlib.crc32(text.encode())) for text in texts]
            return np.stack([rng.integers(-2, 3, 4) for rng in seeds]).astype(np.float32)

        embedded.append(names)
        return dict.fromkeys(poolings, vectors(mentions)), np.repeat(vectors(names)[:, None], len(poolings), 1)

    def names_of_dataset(folder, lang):
        return tuple(zip(*[pair for code in (lang or "fr,en").split(",") for pair in NAMES[code]]))

    monkeypatch.setattr(ranking, "embed_mentions_and_names", embed)
    monkeypatch.setattr(linking, "names_of_dataset", names_of_dataset)
    monkeypatch.setattr(linking, "data_of", lambda s, checkpoint: "dataset")

    def link(*argv, out="results"):
        embedded.clear()
        run_command(linking, ROOT / "tests" / "checkpoints" / "bert", "--corpus", "corpus", "--out", out, *argv)
        (path,) = Path(out, "bert").iterdir()
        return path.name, json.loads(path.read_text()), list(embedded)

    return link


@pytest.mark.parametrize("argv", [[], ["--train_mentions"], ["--split", "all", "--pooling", "mean"]], ids=range(3))
def test_choices_of_languages_are_scored_as_alone(choices, argv, monkeypatch, capsys):
    """Each as in a run of its own, over the same mentions; names are embedded once, all of them together."""
    ranks = defaultdict(list)
    record = ranking.linking_record
    monkeypatch.setattr(ranking, "linking_record", lambda task, x: ranks[len(ranks) == 0].append(x) or record(task, x))
    alone = {}
    for lang in ("fr", "en", "fr,en"):
        name, found, embedded = choices("--lang", lang, *argv, out=lang)
        alone[lang] = found["scores"], found["names"], found["concepts"], found["issues"]
    ranks_alone = [x for found in ranks.values() for x in found]
    ranks.clear()
    monkeypatch.setattr("beyond.dictionaries.MAX_SIMILARITIES", 20)  # blocks of a few mentions
    capsys.readouterr()
    name, found, (names,) = choices("--lang", "fr", "en", "fr,en", *argv, out="together")
    more = "-all" if "all" in argv else ""
    assert name == f"linking-corpus{more}-names-fr-en-fr,en{'-train_mentions' * (argv == ['--train_mentions'])}.json"
    together = {lang: (x["scores"], x["names"], x["concepts"], x["issues"]) for lang, x in found["choices"].items()}
    assert together == alone and len(alone["fr"][0]["all"]["methods"]) == (4 if more else 6)
    assert len({*names}) == len(names) >= 6  # virus and grippe are names in both
    ranks_together = [x for found in ranks.values() for x in found]
    assert len(ranks_together) == len(ranks_alone) == 3
    for a, b in zip(ranks_alone, ranks_together):
        assert {k: x.tolist() for k, x in a.items()} == {k: x.tolist() for k, x in b.items()}
    shown = capsys.readouterr().out
    assert "names in fr\n" in shown and "names in fr,en\n" in shown
    assert shown.count("    exact match, names in en ") == len(found["choices"]["en"]["scores"])
    sizes = {lang: x["scores"]["reachable"]["mentions"] for lang, x in found["choices"].items()}
    assert all(f"    exact match, names in {lang} ({n}) " in shown for lang, n in sizes.items())
    assert len({*sizes.values()}) == 3 and "dictionary       " in shown


def test_a_single_choice_is_kept_as_ever(choices):
    name, found, _ = choices("--lang", "fr,en")
    assert name == "linking-corpus.json" and "choices" not in found and found["signature"]["lang"] == "fr,en"
    assert [*found["scores"]["all"]["methods"]][2::2] == [*POOLINGS]


def test_text_has_one_choice_of_languages(tmp_path):
    with pytest.raises(UserError, match="--lang fr en: several choices are for a --corpus; give one, such as fr,en"):
        run_command(linking, "x", "--lang", "fr", "en")
    with pytest.raises(UserError, match="--dictionary and a data set"):
        run_command(linking, "x", "--corpus", tmp_path, "--lang", "fr", "en", "--dictionary", "names.tsv")


# ---------------------------------------------------------------- real corpora


@pytest.fixture(scope="module")
def open_umls():
    """A function of codes of languages: the index of concepts with a name in one of them; suppressed ones count."""
    if not (SHARED / "open-umls" / "META" / "MRCONSO.RRF").is_file():
        pytest.skip("no shared data")
    rows = (SHARED / "open-umls" / "META" / "MRCONSO.RRF").read_text(encoding="utf-8").split("\n")
    pairs = [line.split("|", 2)[:2] for line in rows if line]

    def index_of(*lats):
        return {cui: [i] for i, cui in enumerate(sorted({cui for cui, lat in pairs if lat in lats}))}

    return index_of


@pytest.mark.parametrize("language, code, n, n_cuis, reachable, by_english", [
    ("English", "ENG", 1024, 965, 531, 531), ("French", "FRE", 1327, 1085, 468, 575),
    ("Spanish", "SPA", 1345, 1254, 481, 540),
])  # fmt: skip
def test_e3c(open_umls, tmp_path, language, code, n, n_cuis, reachable, by_english):
    """The figures of its README; the training documents are those of the list beside it."""
    ids = read_ids(SHARED / "linking" / "e3c-ids.tsv")
    (tmp_path / "train_test_split.txt").symlink_to(SHARED / "e3c" / "train_test_split.txt")
    (tmp_path / language).symlink_to(SHARED / "linking" / "e3c" / language)
    splits, issues = read_mentions(tmp_path / language)
    mentions = splits["train"] + splits["test"]
    without = sum(n for x in issues.values() for issue, n in x.items() if issue.startswith("mentions "))
    assert (len(mentions), len(mentions) + without, splits["dev"]) == (n_cuis, n, [])
    for lats, want in (((code,), reachable), (("ENG",), by_english), ((code, "ENG"), by_english)):
        index = open_umls(*lats)
        assert sum(gold_concepts(mention, ids, index) is not None for mention in mentions) == want
    assert len({m.document for m in splits["train"]}) in (35, 36)
    assert {m.document for m in splits["train"]}.isdisjoint(m.document for m in splits["test"])


def test_ncbi_disease():
    """The figures of its README for the test split, which has no composites."""
    if not (place := SHARED / "linking" / "ncbi-disease").is_dir():
        pytest.skip("no shared data")
    splits, issues = read_mentions(place)
    ids = read_ids(SHARED / "linking" / "ids.tsv")
    index = {concept: [0] for found in ids.values() for concept in found}
    assert sum(gold_concepts(mention, ids, index) is not None for mention in splits["test"]) == 816
    assert sum(len(mention.parts) > 1 for mention in splits["dev"]) == 10
    assert len(splits["dev"]) + issues["dev"]["mentions without an id"] == 787
