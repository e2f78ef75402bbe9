"""Links of one's own text: which concepts are written for a mention, what is told of them, and their formats."""

import csv
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

import model as models
from beyond import embed as embedding
from beyond import link as linking
from beyond import nearest, retrieval
from beyond.dictionaries import make_dictionary
from beyond.linked import COLUMNS, LINKS, reference
from configs import UserError
from support import datasets, files, formats, tokenizers
from tests.conftest import FEW, build, random_checkpoint, run_command
from tests.small_releases import conso, types, write

MENTIONS = ["chronic infection", "Sepsis", "infection septique", "xyz", "liver", "lung tear"]


@pytest.fixture(scope="module")
def bilingual(release, tmp_path_factory):
    """A data set in English and French."""
    return build(release, tmp_path_factory.mktemp("bilingual") / "enfr", lang="en,fr", **FEW)


@pytest.fixture(scope="module")
def encoder(bilingual, tmp_path_factory):
    """A model initialised randomly, with the tokenizer of the data set."""
    return random_checkpoint(bilingual, tmp_path_factory.mktemp("linked") / "random")


def link_lines(folder, *argv):
    """The records that are written for MENTIONS."""
    (folder / "mentions.txt").write_text("".join(f"{mention}\n" for mention in MENTIONS), encoding="utf-8")
    run_command(linking, argv[0], folder / "mentions.txt", *argv[1:], "--device", "cpu", "--out", folder / "links")
    return [json.loads(line) for line in (folder / "links").read_text(encoding="utf-8").splitlines()]


def rows_of(release, name):
    lines = (release / "META" / f"{name}.RRF").read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines]


# ---------------------------------------------------------------- which concepts, against all pairs


@pytest.mark.parametrize("score", ["trigrams", "cosine", "sum"])
@pytest.mark.parametrize("lang, top, least, groups, tuis", [
    ("en", 5, -1, [], []), ("fr,en", 3, 0.2, ["DISO"], []), ("fr", 200, 0.3, ["ANAT", "PROC"], ["T047"]),
    ("en,fr", 300, 0.1, [], ["T047", "T037"]),
])  # fmt: skip
def test_links_are_those_of_all_pairs(bilingual, release, encoder, tmp_path, score, lang, top, least, groups, tuis):
    """Every name is compared. Concepts of other groups and types are left out before the cut, those below after it."""
    settings = ["--data", bilingual, "--lang", lang, "--top", top, "--min_similarity", least, "--score", score]
    settings += ["--groups", *groups] * bool(groups) + ["--types", *tuis, "--umls", release] * bool(tuis)
    records = link_lines(tmp_path, encoder, *settings)
    pairs = [*zip(*datasets.names_of_dataset(bilingual, lang))]
    types_of = defaultdict(set)
    for row in rows_of(release, "MRSTY"):
        types_of[row[0]].add(row[1])
    group_of, preferred = {}, {}
    for code in lang.split(","):
        tables = datasets.read_dataset_tables(bilingual, code)
        for c, cui in enumerate(tables.cui.tolist()):
            group_of[f"C{cui:07d}"] = tables.groups[tables.group[c]]
            preferred.setdefault(f"C{cui:07d}", tables.terms[tables.first_term[c]].as_py())
    kept = [(i, name) for i, name in pairs if not groups + tuis or group_of[i] in groups or types_of[i] & {*tuis}]
    assert 0 < len(kept) < len(pairs) or not groups + tuis
    strings = [name for _, name in kept]
    similarity = np.zeros((len(MENTIONS), len(strings)))
    if score != "cosine":
        similarity += (retrieval.trigram_vectors(MENTIONS) @ retrieval.trigram_vectors(strings).T).numpy()
    if score != "trigrams":
        opened = models.load(encoder, encoder_only=True).encoder.eval(), tokenizers.load(encoder)
        x, y = (embedding.embed_terms(*opened, texts, ["cls"], None)["cls"] for texts in (MENTIONS, strings))
        similarity += torch.cosine_similarity(x[:, None], y[None], dim=2).numpy()
    for row, record in zip(similarity, records):
        best = defaultdict(lambda: (-9, ""))
        for (i, name), value in zip(kept, row.tolist()):
            best[i] = max(best[i], (value, name), key=lambda pair: pair[0])
        ranked = sorted(-value for value, _ in best.values())
        links = record["concepts"]
        want = [-value for value in ranked[:top] if round(-value, 4) >= least]
        assert [link["similarity"] for link in links] == pytest.approx(want, abs=1e-4)
        for link in links:
            assert link["similarity"] == pytest.approx(best[link["id"]][0], abs=1e-4)
            assert link["similarity"] == pytest.approx(row[kept.index((link["id"], link["matched"]))], abs=1e-4)
            assert (link["name"], link["group"]) == (preferred[link["id"]], group_of[link["id"]])
        assert len({link["id"] for link in links}) == len(links)
        tied = sum(value <= ranked[0] + 1e-5 for value in ranked) - 1
        assert record["tied"] == (tied if links else 0)
    assert any(record["concepts"] for record in records)


@pytest.mark.parametrize("seed", range(8))
def test_enough_names_are_taken_for_the_nearest_concepts(seed):
    """Where many names are near that name few concepts, or one name names many, and where all are equally near."""
    rng = np.random.default_rng(seed)
    pairs = [("C0", f"n{i}") for i in range(60)] + [(f"C{i}", "shared") for i in range(1, 30)]
    pairs += [(f"C{i}", f"m{j}") for i, j in rng.integers(1, 40, (50, 2)).tolist()]
    dictionary = make_dictionary(*zip(*pairs))
    similarity = rng.integers(0, 1 + 10 * (seed % 3), (5, len(dictionary.names))).astype(np.float32)
    similarity[:, [dictionary.names.index(f"n{i}") for i in range(60)]] += 5 * (seed % 2)
    for row, (links, tied) in zip(similarity, nearest.nearest_concepts(dictionary, 5, lambda x: similarity[x], 4)):
        of_name = dict(zip(dictionary.names, row.tolist()))
        best = [max(of_name[name] for i, name in pairs if i == c) for c in dictionary.ids]
        order = sorted(range(len(best)), key=lambda c: (-best[c], c))
        assert [(c, x) for c, _, x in links] == [(c, best[c]) for c in order[:4]]
        assert tied == best.count(max(best)) - 1


def test_vectors_that_are_not_finite_name_no_concept():
    dictionary, nan = make_dictionary(["A", "B"], ["a", "b"]), np.full((1, 2), np.nan, np.float32)
    assert nearest.nearest_concepts(dictionary, 1, lambda _: nan, 5) == [([], 0)]
    nan[0, 1] = 0.5
    assert nearest.nearest_concepts(dictionary, 1, lambda _: nan, 5) == [([(1, 1, 0.5)], 0)]


def test_kept_vectors_serve_every_choice_of_concepts(bilingual, encoder, tmp_path, monkeypatch):
    """One file for all groups. Without it only the names of the chosen concepts are embedded; links are the same."""
    embed, n_texts = embedding.embed, []
    monkeypatch.setattr(embedding, "embed", lambda *args: n_texts.append(len(args[3])) or embed(*args))
    argv = [encoder, "--data", bilingual, "--lang", "en"]
    kept = ["--keep_vectors", tmp_path / "kept"]
    everything = link_lines(tmp_path, *argv, *kept)
    n_all = n_texts[-1]
    n_texts.clear()
    chosen = link_lines(tmp_path, *argv, *kept, "--groups", "DISO")
    assert n_texts == [len(MENTIONS)] and len([*(tmp_path / "kept").iterdir()]) == 1
    assert [*map(str, chosen)] != [*map(str, everything)]
    alone = link_lines(tmp_path, *argv, "--groups", "DISO")
    assert n_texts[1] == len(MENTIONS) and 0 < n_texts[2] < n_all
    for a, b in zip(chosen, alone):
        assert [x["similarity"] for x in a["concepts"]] == pytest.approx([x["similarity"] for x in b["concepts"]])


def test_trigrams_need_no_model(bilingual, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_config", None)
    records = link_lines(tmp_path, tmp_path / "none", "--data", bilingual, "--score", "trigrams")
    assert records[3]["concepts"][0]["similarity"] == 0 and records[3]["tied"] > 100  # xyz is near to nothing


def test_codes_are_those_of_the_release(tmp_path):
    """Sources by their exact names, suppressed rows and NOCODE left out. Retold for each concept that is written."""
    rows = [("C0000001", "flu", "SNOMEDCT_US", "2", "N"), ("C0000001", "x", "SNOMEDCT_US", "10", "N"),
        ("C0000001", "y", "SNOMEDCT_VET", "3", "N"), ("C0000001", "z", "HPO", "HP:1", "N"),
        ("C0000001", "w", "HPO", "HP:2", "O"), ("C0000002", "fever", "HPO", "NOCODE", "N"),
        ("C0000002", "f", "SNOMEDCT_VET", "9", "N")]  # fmt: skip
    mrconso = [conso(c, x, sab=sab, suppress=s).replace("|PT|X|", f"|PT|{code}|") for c, x, sab, code, s in rows]
    release = write(tmp_path / "release", mrconso, [], types(("C0000001", "T047|B|x")))
    names = tmp_path / "names.tsv"
    names.write_text("C0000001\tinfluenza\nC0000001\tflu\nC0000002\tfever\n")
    (tmp_path / "in.jsonl").write_text('{"text": "flu"}\n{"text": "fever"}\n')
    argv = [tmp_path, tmp_path / "in.jsonl", "--dictionary", names, "--score", "trigrams", "--umls", release]
    argv += ["--top", 1, "--out", tmp_path / "out"]
    run_command(linking, *argv, "--codes", "HPO", "SNOMEDCT_US")
    flu, fever = map(json.loads, (tmp_path / "out").read_text().splitlines())
    codes = {"HPO": ["HP:1"], "SNOMEDCT_US": ["10", "2"]}
    assert flu["concepts"] == [
        {"id": "C0000001", "name": "influenza", "matched": "flu", "group": None, "similarity": 1.0, "codes": codes}
    ]
    assert fever["concepts"][0]["codes"] == {} and (flu["tied"], fever["tied"]) == (0, 0)
    run_command(linking, *argv[:-1], tmp_path / "tsv", "--codes", "HPO", "SNOMEDCT_US", "--format", "tsv")
    assert (tmp_path / "tsv").read_text().splitlines()[1].split("\t")[-1] == "HPO:HP:1 SNOMEDCT_US:10 SNOMEDCT_US:2"
    names.write_text("D1\tflu\n")
    with pytest.raises(UserError, match="--codes: no id of the dictionary, such as D1, has a code in .*release"):
        run_command(linking, *argv, "--codes", "HPO")
    with pytest.raises(UserError, match="no concept of the dictionary, such as D1, is of --types T047 in .*release"):
        run_command(linking, *argv, "--types", "T047")
    with pytest.raises(UserError, match="release: MRSTY.RRF has no concept of type T048"):
        run_command(linking, *argv, "--types", "T047", "T048")


# ---------------------------------------------------------------- formats

NAMES = 'C0000001\tinfluenza\nC0000001\tflu\nOMIM:2\tfever "high"\nD 3\tpain\nC0000004\tcold\nC0000005\tcold\n'
TEXTS = {
    "a/1": "\U0001f600 The flu, and\r\nfever\tor pain.\r\n", "e": "", 7: "\ufeffle\u0301ger cold\n\n\u2028flu  pain",
    "n": "nothing here",
}  # fmt: skip
WORDS = {"flu": "X", "fever\tor pain": "Y 1", "cold": "X", "pain": "Z", "le\u0301ger": "X", "flu  pain": "X"}


def tagged_records(is_nested):
    """Records as beyond.tag writes them; with entities in one another, or without."""
    for key, text in TEXTS.items():
        found = [(m.span(), kind) for words, kind in WORDS.items() for m in re.finditer(re.escape(words), text)]
        found = sorted(found, key=lambda item: (item[0][0], -item[0][1]))
        if not is_nested:
            found = [x for x in found if not any(y != x and y[0][0] <= x[0][0] <= x[0][1] <= y[0][1] for y in found)]
        entities = [{"start": a, "end": b, "type": kind, "text": text[a:b], "score": 0.5} for (a, b), kind in found]
        yield {"id": key, "text": text, "entities": entities}


@pytest.fixture
def link_format(tmp_path):
    """A function that links tagged records by trigrams, in a format: (the records, the path of its output)."""

    def run(form, is_nested=False, out="out"):
        records = [*tagged_records(is_nested)]
        (tmp_path / "my names.v1.tsv").write_text(NAMES)
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        argv = ["--dictionary", tmp_path / "my names.v1.tsv", "--score", "trigrams", "--min_similarity", 0.2]
        run_command(linking, tmp_path, tmp_path / "in.jsonl", *argv, "--format", form, "--out", tmp_path / out)
        return records, tmp_path / out

    return run


def nearest_of(link_format):
    """{(document, start, end): the link that is nearest, or None}, from JSON Lines."""
    _, path = link_format("jsonl", True, out="links.jsonl")
    records = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
    return {(r["id"], e["start"], e["end"]): (e["concepts"] or [None])[0] for r in records for e in r["entities"]}


@pytest.mark.parametrize("is_nested", [False, True])
def test_brat_is_read_back(link_format, is_nested):
    """Texts and entities by our reader. A reference for each entity that has a concept, to the nearest one alone."""
    records, out = link_format("brat", is_nested)
    documents = {}
    for folder in (out, out / "a"):
        documents |= {d.name: d for d in formats.read_brat(folder, None, Counter())}
    assert len(documents) == len(records)
    nearest_link, references = nearest_of(link_format), {}
    for record in records:
        document = documents[str(record["id"]).split("/")[-1]]
        assert document.text == record["text"]
        want = [(e["type"].replace(" ", "_"), e["start"], e["end"]) for e in record["entities"]]
        assert [(kind, spans[0][0], spans[-1][1]) for kind, spans in document.gold] == want
        lines = (out / f"{record['id']}.ann").read_text(encoding="utf-8").split("\n")
        fields = [line.split("\t") for line in lines if line.startswith("N")]
        for number, target, name in fields:
            what, entity, ref = target.split(" ")
            assert what == "Reference" and number[1:] == entity[1:]
            e = record["entities"][int(entity[1:]) - 1]
            references[record["id"], e["start"], e["end"]] = (ref, name)
    prefixed = {"C0000001": "UMLS:C0000001", "OMIM:2": "OMIM:2", "D 3": "my_names:D_3", "C0000004": "UMLS:C0000004"}
    want = {key: link and (prefixed[link["id"]], link["name"]) for key, link in nearest_link.items()}
    keys = {(r["id"], e["start"], e["end"]) for r in records for e in r["entities"]}
    assert references == {key: x for key, x in want.items() if x and key in keys} and None in want.values()
    assert "#2\tAnnotatorNotes T2\tscore 0.5, similarity 1.0, 1 more equally near\n" in (out / "7.ann").read_text()


def test_columns_are_read_back(link_format):
    """Our reader takes the last column as the label. The concept is the nearest one of the entity of each word."""
    records, out = link_format("conll")
    nearest_link, issues = nearest_of(link_format), Counter()
    documents = formats.read_conll(out, None, issues)
    assert not +issues and [d.group for d in documents] == ["1", "3", "4"]  # the second has no word
    with_words = [record for record in records if record["text"]]
    blocks = out.read_text(encoding="utf-8").split("-DOCSTART-\n\n")[1:]
    assert len(blocks) == len(records) and blocks[1] == ""
    for record, document, block in zip(with_words, documents, filter(None, blocks)):
        rows = [line.split("\t") for line in block.strip("\n").split("\n")]
        assert [row[0] for row in rows] == document.tokens and [row[5] for row in rows] == document.labels
        for word, a, b, score, concept, label in rows:
            assert record["text"][int(a) : int(b)] == word
            inside = [e for e in record["entities"] if e["start"] <= int(a) and int(b) <= e["end"]]
            if not inside:
                assert (score, concept, label) == ("_", "_", "O")
                continue
            (e,) = inside
            link = nearest_link[record["id"], e["start"], e["end"]]
            prefix = "B-" if int(a) == e["start"] else "I-"
            assert (score, label) == ("0.5000", prefix + e["type"])
            assert concept == (link["id"].replace(" ", "_") if link else "_")


def test_tables_are_read_back(link_format):
    """A row for each mention and concept, in order, and one for a mention without a concept."""
    records, out = link_format("tsv", True)
    _, lines = link_format("jsonl", True, out="links.jsonl")
    with open(out, encoding="utf-8", newline="") as f:
        rows = [*csv.DictReader(f, dialect="excel-tab")]
    want = []
    for record in map(json.loads, lines.read_text(encoding="utf-8").split("\n")[:-1]):
        for e in record["entities"]:
            place = [record["id"], e["start"], e["end"], " ".join(e["text"].split()), e["type"]]
            for rank, x in enumerate(e["concepts"], 1):
                want.append([*place, rank, x["id"], x["name"], x["matched"], "", x["similarity"], e["tied"], ""])
            want += [[*place] + [""] * 8] * (not e["concepts"])
    assert [[row[c] for c in COLUMNS] for row in rows] == [[*map(str, row)] for row in want]
    assert any(row["id"] == "" for row in rows) and any(row["name"] == 'fever "high"' for row in rows)


def test_tables_of_lines(tmp_path):
    """Mentions of lines have the number of the line as their document, and no place."""
    (tmp_path / "names.tsv").write_text(NAMES)
    (tmp_path / "in.txt").write_text("flu\n\ncold\n")
    argv = [tmp_path, tmp_path / "in.txt", "--dictionary", tmp_path / "names.tsv", "--score", "trigrams"]
    run_command(linking, *argv, "--format", "tsv", "--top", 1, "--out", tmp_path / "out")
    assert [line.split("\t") for line in (tmp_path / "out").read_text().splitlines()[1:]] == [
        ["1", "", "", "flu", "", "1", "C0000001", "influenza", "flu", "", "1.0", "0", ""],
        ["2"] + [""] * 12,
        ["3", "", "", "cold", "", "1", "C0000004", "cold", "cold", "", "1.0", "1", ""],
    ]


@pytest.mark.parametrize("form", ["jsonl", "tsv", "conll"])
def test_linking_again_replaces_what_linking_wrote(link_format, form):
    first = link_format(form)[1].read_bytes()
    assert link_format(form)[1].read_bytes() == first


def test_tables_and_columns_of_others_are_not_replaced(tmp_path):
    for content in ("document\tstart\tend\n", "-DOCSTART-\n\nflu\tB-X\n", "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\n"):
        (tmp_path / "x").write_text(content)
        with pytest.raises(UserError, match="x is not an output of this command"):
            files.check_output(tmp_path / "x", LINKS)


@pytest.mark.parametrize("concept, want", [
    ("C0024586", "UMLS:C0024586"), ("D000001", "v:D000001"), ("OMIM:1", "OMIM:1"), ("D1|OMIM:2", "v:D1|OMIM:2"),
    ("C12", "v:C12"), ("a b", "v:a_b"), (":x", "v::x"), ("HP:0001250", "HP:0001250"), ("12:3", "v:12:3"),
])  # fmt: skip
def test_references_have_a_vocabulary_and_an_id(concept, want):
    assert reference(concept, "v") == want


# ---------------------------------------------------------------- mistakes

GOOD = {"start": 0, "end": 3, "type": "X", "text": "flu"}


@pytest.mark.parametrize("form, record, message", [
    ("brat", {}, 'row 2: no entities with their places in a text, which brat needs; give --format tsv'),
    ("conll", "flu", "row 1: no entities with their places in a text, which conll needs; give --format tsv"),
    ("jsonl", {"entities": None}, 'row 2: "entities" is not a list of objects with a field "text"'),
    ("tsv", {"entities": [["flu"]]}, 'row 2: "entities" is not a list of objects with a field "text"'),
    ("tsv", [], 'row 2: not a JSON object with a field "text"'),
    ("tsv", {"label": [[0, 3, "X"]]}, "row 2: this is Doccano's form; give the JSON Lines of beyond.tag"),
    ("jsonl", "1|t|flu\n1|a|\n", "in: this is PubTator; give the JSON Lines of beyond.tag, or score a"),
    ("brat", {"entities": [{"text": "flu"}]}, 'entity 1: no "start" and "end" within its text of 9 characters'),
    ("brat", {"entities": [GOOD | {"start": "0"}]}, 'entity 1: no "start" and "end" within its text of 9'),
    ("conll", {"entities": [GOOD | {"end": 3.0}]}, 'entity 1: no "start" and "end" within its text of 9'),
    ("conll", {"entities": [GOOD | {"start": False}]}, 'entity 1: no "start" and "end" within its text of 9'),
    ("brat", {"entities": [GOOD, GOOD | {"end": 10}]}, 'entity 2: no "start" and "end" within its text of 9'),
    ("brat", {"entities": [GOOD | {"start": -9}]}, 'entity 1: no "start" and "end" within its text of 9'),
    ("brat", {"entities": [GOOD | {"start": 3}]}, 'entity 1: no "start" and "end" within its text of 9'),
    ("brat", {"entities": [GOOD | {"end": 10**400}]}, 'entity 1: no "start" and "end" within its text of 9'),
    ("conll", {"entities": [GOOD | {"text": "flue"}]}, "entity 1: 0 3 is 'flu' in the text, not 'flue'"),
    ("brat", {"entities": [GOOD | {"start": 3, "end": 4, "text": " "}]}, "entity 1: 3 4 is ' ' in the text, not ' '"),
    ("brat", {"entities": [GOOD | {"type": None}]}, 'entity 1: no "type"'),
    ("brat", {"entities": [GOOD | {"type": "\n"}]}, 'entity 1: no "type"'),
    ("conll", {"entities": [GOOD | {"type": "a\tb"}]}, "the label or type 'a\\tb' holds a TAB"),
    ("brat", {"entities": [GOOD | {"score": "high"}]}, 'entity 1: its "score" is no number'),
    ("brat", {"entities": [GOOD | {"score": float("nan")}]}, 'entity 1: its "score" is no number'),
    ("conll", {"entities": [GOOD, GOOD | {"type": "Y"}]}, "row 2: entity 2, 'flu', has no word of its own"),
    ("conll", {"entities": [GOOD, {"start": 0, "end": 9, "type": "X", "text": "flu fever"}]},
     "row 2: entity 1, 'flu', has no word of its own, which columns need; give --format brat or tsv"),
    ("conll", {"entities": [GOOD | {"end": 1, "text": "f"}, GOOD | {"start": 1, "text": "lu"}]}, "entity 2, 'lu', has"),
    ("brat", {"id": ["x"], "entities": []}, 'row 2: its "id" is neither text nor a whole number'),
    ("brat", {"id": "../x", "entities": []}, "the id '../x' cannot be the name of a file, which brat needs"),
    ("brat", {"id": 1, "entities": []}, "two documents have the id '1'; brat needs a file for each"),
])  # fmt: skip
def test_what_is_wrong_with_records(tmp_path, monkeypatch, form, record, message):
    """One line, before anything is looked up, and nothing is written."""
    first = json.dumps({"id": "1", "text": "", "entities": []}) + "\n"
    record = record if type(record) is not dict else {"id": 2, "text": "flu fever"} | record
    (tmp_path / "in").write_text(record if type(record) is str else first + json.dumps(record))
    (tmp_path / "names.tsv").write_text(NAMES)
    monkeypatch.setattr(linking, "nearest_concepts", None)
    argv = ["--dictionary", tmp_path / "names.tsv", "--format", form, "--out", tmp_path / "out"]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        run_command(linking, tmp_path, tmp_path / "in", *argv, "--score", "trigrams")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_half_a_surrogate_pair_ends_no_format(tmp_path):
    r"""JSON can hold \ud800 in a text, a type and an id; the files cannot."""
    entity = {"start": 1, "end": 5, "type": "X\ud801", "text": "\ud800flu", "score": None}
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "d\ud802", "text": " \ud800flu ", "entities": [entity]}))
    (tmp_path / "names.tsv").write_text(NAMES)
    argv = [tmp_path, tmp_path / "in.jsonl", "--dictionary", tmp_path / "names.tsv", "--score", "trigrams"]
    for form in ("jsonl", "tsv", "brat", "conll"):
        run_command(linking, *argv, "--format", form, "--out", tmp_path / form)
    (document,) = formats.read_brat(tmp_path / "brat", None, Counter())
    assert (document.text, document.gold) == (" \ufffdflu ", [("X\ufffd", ((1, 5),))])
    assert "\ufffd\t1\t2\t_\tC0000001\tB-X\ufffd\n" in (tmp_path / "conll").read_text(encoding="utf-8")


@pytest.mark.parametrize("argv, message", [
    (["--groups", "DISO"], "--groups: .*names.tsv does not say them; give a data set, or --types and --umls"),
    (["--types", "T047"], "--types are read from a release; give it with --umls"),
    (["--codes", "HPO"], "--codes are read from a release; give it with --umls"),
    (["--top", "0"], "top = 0 must be between 1 and"), (["--min_similarity", "3"], "min_similarity = 3.0 must be betw"),
    (["--min_similarity", "nan"], "min_similarity"), (["--score", "bm25"], "score = 'bm25' is not one of"),
    (["--format", "xml"], "format = 'xml' is not one of"), (["--format", "brat"], "give a new folder for them with"),
    (["--format", "brat", "--out", "HERE"], "holds the input"), (["--codes", "X", "--umls", "HERE/no"], "MRCONSO"),
    (["--out", "HERE/in.txt"], "is the input"),
    (["--umls", "HERE", "--codes", "X", "--out", "HERE/x"], "x is in the input"),
    (["--umls", "HERE", "--codes", "X", "--format", "conll"], "--codes: conll has no place for them; give --format js"),
    (["--umls", "HERE"], "--umls .* is for --codes, --types or a --corpus"),
    (["--score", "trigrams", "--pooling", "mean"], "--pooling is for vectors, and --score trigrams has none"),
    (["--score", "trigrams", "--keep_vectors", "HERE/v"], "--keep_vectors is for vectors"),
])  # fmt: skip
def test_what_is_wrong_with_settings(tmp_path, argv, message):
    (tmp_path / "names.tsv").write_text(NAMES)
    (tmp_path / "in.txt").write_text("flu\n")
    argv = [x.replace("HERE", str(tmp_path)) for x in argv]
    with pytest.raises(UserError, match=message):
        run_command(linking, tmp_path, tmp_path / "in.txt", "--dictionary", tmp_path / "names.tsv", *argv)


@pytest.mark.parametrize("argv", [
    ["--top", "3"], ["--min_similarity", "0"], ["--score", "sum"], ["--groups", "DISO"], ["--types", "T047"],
    ["--codes", "HPO"], ["--format", "tsv"],
])  # fmt: skip
def test_a_corpus_is_scored_and_not_written(tmp_path, argv):
    with pytest.raises(UserError, match=f"{argv[0]} is for mentions of one's own, and those of a --corpus are scored"):
        run_command(linking, tmp_path, "--corpus", tmp_path, *argv)


def test_a_group_without_a_concept(bilingual, encoder, tmp_path):
    with pytest.raises(UserError, match="--groups: no concept of the data set is of group diso; it has ANAT .*DISO"):
        link_lines(tmp_path, encoder, "--data", bilingual, "--groups", "ANAT", "diso")
