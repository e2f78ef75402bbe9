"""Corpora in the forms of the hub: each layout, the same documents as from the owner's files, and clear refusals.

Real sets are read where ../shared/data/hf-datasets lies beside the original files, ../shared/data/ner. The environment
variable NER may name another place of these.
"""

import json
import os
import random
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from beyond.check import Check, check
from configs import Finetune, UserError
from support import corpora, hub
from support.labels import decode_entities
from support.results import describe_results, differing_settings, result_signature
from support.windows import Window

NER = Path(os.environ.get("NER", Path(__file__).parents[2] / "shared" / "data" / "ner"))
HUB = NER.parent / "hf-datasets"
NAMES = {"train": "train", "dev": "validation", "test": "test"}  # the hub's
LABELS = ["O", "B-Disease", "I-Disease"]
SENTENCES = {  # of each split: words, and the numbers of their labels
    "train": [("Sans fièvre jaune .", [0, 1, 2, 0]), ("Rien .", [0, 0]), ("Grippe fièvre", [1, 1])],
    "dev": [("Toux .", [1, 0])],
    "test": [("Le foie est sain .", [0, 0, 0, 0, 0]), ("Fièvre jaune", [1, 2])],
}


def rows_of(part, tags="ner_tags", tokens="tokens", label=int):
    """The rows of a split. label: of the number of a label."""
    return [{"id": str(i), tokens: words.split(), tags: [*map(label, numbers)]} for i, (words, numbers)
            in enumerate(SENTENCES[part])]  # fmt: skip


def feature(spelling, names=LABELS):
    """The feature of a column of labels, as one version of `datasets` or another writes it."""
    inner = {"names": names, "_type": "ClassLabel"}
    return [inner] if spelling == "list" else {"feature": inner, "_type": spelling}


def table(rows, features=None):
    """An Arrow table with the metadata of `datasets`."""
    out = pa.Table.from_pylist(rows)
    info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if features else None
    return out.replace_schema_metadata(info)


def write_parquet(path, rows, features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows, features), path)


def write_saved(folder, rows, features, n_files=1, info=True):
    """A split as save_to_disk writes it: Arrow streams, and two files of JSON."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{n_files:05}.arrow" for i in range(n_files)]
    whole = table(rows)
    for i, name in enumerate(names):
        part = whole.take([row for row in range(whole.num_rows) if row * n_files // whole.num_rows == i])
        with pa.OSFile(str(folder / name), "wb") as f, pa.ipc.new_stream(f, part.schema) as stream:
            stream.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    if info:
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_layout(folder, layout, features=None, rows=rows_of):
    """The invented set in a layout."""
    features = features or {"ner_tags": feature("Sequence")}
    folder.mkdir(exist_ok=True)
    for part, name in NAMES.items():
        if layout == "shards":
            for i, row in enumerate(rows(part)):
                file = f"{name}-{i:05}-of-{len(rows(part)):05}" + "-0a1b2c3d4e5f6789" * (part == "dev")
                write_parquet(folder / "data" / f"{file}.parquet", [row], features)
        elif layout == "converted":
            write_parquet(folder / "default" / name / "0000.parquet", rows(part), features)
        elif layout == "config shards":
            write_parquet(folder / "set" / f"{name}-00000-of-00001.parquet", rows(part), features)
        elif layout == "files":
            write_parquet(folder / f"{name}.parquet", rows(part), features)
        elif layout == "saved":
            write_saved(folder / name, rows(part), features, 1 + (part == "train"))
            (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*NAMES.values()]}))
        elif layout == "lines":
            write_lines(folder / f"{name}.jsonl", rows(part, label=LABELS.__getitem__))
        elif layout == "json lines":
            write_lines(folder / f"{name}.json", rows(part, label=LABELS.__getitem__))
        elif layout == "json list":
            (folder / f"{name}.json").write_text(json.dumps(rows(part, label=LABELS.__getitem__), indent=1))
        else:
            write_parquet(folder / f"{name}.parquet", rows(part, label=LABELS.__getitem__))
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    return folder


def shown(splits):
    return {split: [[*zip(d.tokens, d.labels)] for d in documents] for split, documents in splits.items()}


WANT = {part: [[*zip(words.split(), (LABELS[i] for i in numbers))] for words, numbers in sentences]
        for part, sentences in SENTENCES.items()}  # fmt: skip
LAYOUTS = "shards", "converted", "config shards", "files", "saved", "lines", "json lines", "json list", "strings"


# ---------------------------------------------------------------- layouts and spellings


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    splits, issues = corpora.read_corpus("custom", write_layout(tmp_path / "set", layout))
    assert shown(splits) == WANT and [*splits] == [*SENTENCES]
    assert not +sum(issues.values(), Counter())
    texts = corpora.read_texts(tmp_path / "set")
    assert {words for sentences in SENTENCES.values() for words, _ in sentences} <= {*texts}


@pytest.mark.parametrize("spelling", ["Sequence", "List", "LargeList", "list"])
@pytest.mark.parametrize("tokens, tags", [
    ("tokens", "ner_tags"), ("words", "tags"), ("tokens", "labels"), ("words", "pos_tags"), ("tokens", "disease_tags")
])  # fmt: skip
def test_columns_and_features(tmp_path, spelling, tokens, tags):
    def rows(part, **options):
        return rows_of(part, tags, tokens)

    for layout in "files", "saved":
        folder = write_layout(tmp_path / layout, layout, {tags: feature(spelling)}, rows)
        assert shown(corpora.read_corpus("custom", folder)[0]) == WANT
        assert shown(corpora.read_corpus("custom", folder, tags)[0]) == WANT


@pytest.mark.parametrize("name", corpora.CORPORA)
def test_every_corpus_accepts_its_form_of_the_hub(tmp_path, name):
    """With its types: those that it has not are left out, counted. Parts of speech lose a B- before each."""
    corpus = corpora.CORPORA[name]
    theirs = next(iter(corpus.types or ["Disease"]))
    names = [label.replace("Disease", theirs) for label in LABELS] if not corpus.pos else ["B-NOM", "B-PRP:det", "SENT"]
    ours = [label.replace("Disease", (corpus.types or {theirs: theirs})[theirs]) for label in LABELS]
    ours = ["NOM", "PRP:det", "SENT"] if corpus.pos else ours
    folder = write_layout(tmp_path / "fr", "shards", {"ner_tags": feature("List", names)})
    splits, _ = corpora.read_corpus(name, folder)
    want = {part: [[ours[i] for i in numbers] for _, numbers in sentences] for part, sentences in SENTENCES.items()}
    assert {part: [d.labels for d in documents] for part, documents in splits.items()} == want
    if corpus.types:
        names = ["O", f"B-{theirs}", "I-Other"]
        folder = write_layout(tmp_path / "en", "saved", {"ner_tags": feature("List", names)})
        splits, issues = corpora.read_corpus(name, folder)
        assert {label for d in splits["train"] for label in d.labels} == {"O", ours[1]}
        assert issues["train"]["entities of type Other: left out"] == 1


def test_the_owners_form_comes_first(tmp_path):
    folder = write_layout(tmp_path / "set", "files")
    for part in "train", "dev", "test":
        (folder / f"{part}.tsv").write_text(f"{part}\tO\n")
    for name in "ncbi-disease", "custom":
        assert shown(corpora.read_corpus(name, folder)[0])["test"] == [[("test", "O")]]
    for text in ("neg", "spec"):
        (folder / f"CAS_{text}.txt").write_text("".join(f"{i}\t1\tx\tx\tNOM\n\n" for i in range(20)))
    assert corpora.read_corpus("cas-pos", folder)[0]["test"][0].tokens == ["x"]


def test_documents_of_sentences(tmp_path):
    """A document_id that repeats says which sentences belong together; a number of the sentence does not."""
    rows = [{"document_id": f"d{i // 2}", "tokens": ["a", "b"], "tags": ["O", "O"]} for i in range(4)]
    for part in "train", "test":
        write_lines(tmp_path / f"{part}.jsonl", rows)
    assert [d.group for d in corpora.read_corpus("custom", tmp_path)[0]["test"]] == ["d0", "d0", "d1", "d1"]
    for ids in [*"01234567"], ["NULL"] * 8:  # of each sentence another, and one for all
        write_lines(tmp_path / "train.jsonl", [row | {"document_id": i} for i, row in zip(ids[:4], rows)])
        write_lines(tmp_path / "test.jsonl", [row | {"document_id": i} for i, row in zip(ids[4:], rows)])
        assert {d.group for d in corpora.read_corpus("custom", tmp_path)[0]["test"]} == {""}


def test_tags_of_negation(tmp_path):
    for part in "train", "test":
        write_lines(tmp_path / f"{part}.jsonl", [ROW | {"ner_tags": ["B_scope_neg", "I_scope_neg"]}])
    assert corpora.read_corpus("custom", tmp_path)[0]["test"][0].labels == ["B-scope_neg", "I-scope_neg"]


def test_blank_tokens_and_empty_sentences_are_counted(tmp_path):
    rows = [{"tokens": ["a", " ", "b"], "tags": ["B-x", "I-x", "I-x"]}, {"tokens": [], "tags": []}]
    for part in "train", "test":
        write_lines(tmp_path / f"{part}.jsonl", rows)
    splits, issues = corpora.read_corpus("custom", tmp_path)
    assert shown(splits)["test"] == [[("a", "B-x"), ("b", "I-x")]]
    assert issues["test"]["tokens of blanks alone: left out"] == 1
    assert issues["test"]["documents without a word: left out"] == 1


# ---------------------------------------------------------------- documents of the knowledge-base schema


def kb(text, *entities, cuts=(), name="d-1"):
    """A row of the schema, its text in passages that end at `cuts`, which are characters of no passage."""
    bounds = [-1, *cuts, len(text)]
    spans = [(a + 1, b) for a, b in zip(bounds, bounds[1:])]
    passages = [{"id": "p", "type": "x", "text": [text[a:b]], "offsets": [[a, b]]} for a, b in spans]
    marked = [{"id": "e", "type": kind, "text": [text[a:b] for a, b in spans], "offsets": [*map(list, spans)],
               "normalized": []} for kind, *spans in entities]  # fmt: skip
    return {"id": "0", "document_id": name, "passages": passages, "entities": marked}


KB_TEXT = "Foie et rein d'un rat ß\nLe 12 mois, fièvre 😀 jaune."
KB_ENTITIES = [("X", (0, 4)), ("Y", (0, 4), (8, 12)), ("Z", (13, 21)), ("X", (36, 42), (45, 50)), ("Y", (27, 34))]


def test_the_knowledge_base_schema_is_brat(tmp_path):
    """The same documents: text, character offsets, fragments, overlaps, and characters outside the first plane."""
    brat = "".join(
        f"T{i}\t{kind} {';'.join(f'{a} {b}' for a, b in spans)}\t{' '.join(KB_TEXT[a:b] for a, b in spans)}\n"
        for i, (kind, *spans) in enumerate(KB_ENTITIES)
    )
    for part in "train", "test":
        (tmp_path / "brat" / part).mkdir(parents=True)
        (tmp_path / "brat" / part / "d-1.txt").write_text(KB_TEXT)
        (tmp_path / "brat" / part / "d-1.ann").write_text(brat)
        write_parquet(tmp_path / "kb" / f"{part}.parquet", [kb(KB_TEXT, *KB_ENTITIES, cuts=[23])])
        write_lines(tmp_path / "lines" / f"{part}.jsonl", [kb(KB_TEXT, *KB_ENTITIES)])
    (want, issues), *others = (corpora.read_corpus("custom", tmp_path / form) for form in ("brat", "kb", "lines"))
    assert len(want["test"][0].gold) == 5 and want["test"][0].breaks
    assert all(found == (want, issues) for found in others)
    assert corpora.read_texts(tmp_path / "kb") == [KB_TEXT] * 2


# ---------------------------------------------------------------- PharmaCoNER's columns, and the authors' own form


@pytest.mark.parametrize("between", ["\t", " "])
@pytest.mark.parametrize("name", ["{}.conll", "{}-set_1.1.conll", "pharmaconer/{}.conll"])
def test_four_columns_of_pharmaconer(tmp_path, name, between):
    rows = "El S01 0_2 O\nibuprofeno S01 3_13 B-NORMALIZABLES\n\n. S01 13_14 O\n\nSin S02 0_3 O\n"
    for part in "train", "dev", "test":
        (tmp_path / name.format(part)).parent.mkdir(exist_ok=True)
        (tmp_path / name.format(part)).write_text(rows.replace(" ", between))
    documents = corpora.read_corpus("pharmaconer", tmp_path)[0]["test"]
    assert [d.tokens for d in documents] == [["El", "ibuprofeno"], ["."], ["Sin"]]
    assert [d.group for d in documents] == ["S01", "S01", "S02"]
    assert documents[0].labels == ["O", "B-NORMALIZABLES"]


def test_the_authors_own_form(tmp_path):
    """{document: {text, tag}} with types of words, none for no entity; equal neighbours are one entity."""
    content = {"d1": {"text": "Sans fièvre\njaune .", "tag": ["none", "DISO", "DISO", "none"]},
               "d2": {"text": ["Foie", "mal"], "tag": "ANAT DISO"}}  # fmt: skip
    for part in "train", "dev", "test":
        (tmp_path / f"{part}.json").write_text(json.dumps(content, indent=2))
    splits, _ = corpora.read_corpus("quaero-medline", tmp_path)
    assert [d.tokens for d in splits["dev"]] == [["Sans", "fièvre", "jaune", "."], ["Foie", "mal"]]
    assert [d.labels for d in splits["dev"]] == [["O", "B-DISO", "I-DISO", "O"], ["B-ANAT", "B-DISO"]]
    assert corpora.read_corpus("cas-pos", tmp_path)[0]["test"][1].labels == ["ANAT", "DISO"]


# ---------------------------------------------------------------- what is refused


ROW = {"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}
NUMBERS = {"tokens": ["a", "b"], "ner_tags": [0, 1]}
NAMED = {"ner_tags": feature("List", ["O", "B-x"])}
PASSAGE = {"id": "p", "type": "x", "text": ["Le foie"], "offsets": [[0, 7]]}
ENTITY = {"id": "e", "type": "X", "text": ["foie"], "offsets": [[3, 7]]}
DOCUMENT = {"id": "0", "document_id": "d", "passages": [PASSAGE], "entities": [ENTITY]}
BAD_ROWS = [  # (the second row, features, message)
    ({"tokens": ["a"], "ner_tags": ["O", "O"]}, None, "train.parquet, row 2: 1 tokens and 2 ner_tags"),
    ({"tokens": None, "ner_tags": ["O"]}, None, "row 2: tokens is not a list of strings: None"),
    ({"tokens": ["a", None], "ner_tags": ["O", "O"]}, None, "row 2: tokens is not a list of strings"),
    ({"tokens": ["a"], "ner_tags": None}, None, "row 2, ner_tags: not a list of strings or of whole numbers: None"),
    ({"tokens": ["a"], "ner_tags": [None]}, None, "row 2, ner_tags: not a list"),
    ({"tokens": ["a"], "ner_tags": ["ety"]}, None, "row 2: unknown label 'ety'"),
    ({"tokens": ["a\tb"], "ner_tags": ["O"]}, None, "row 2: the token 'a.tb' holds a TAB"),
    ({"tokens": ["a"], "ner_tags": ["B-x\n"]}, None, "row 2: the label or type"),
    (NUMBERS, None, "row 1, ner_tags: numbers without names"),
    (NUMBERS, {"ner_tags": {"feature": {"names": [1]}}}, "row 1, ner_tags: numbers without names"),
    (NUMBERS, {"ner_tags": {"feature": [[["O"]]]}}, "row 1, ner_tags: numbers without names"),
    (NUMBERS, [], "row 1, ner_tags: numbers without names"),
    ({"tokens": ["a"], "ner_tags": [2]}, NAMED, "row 2, ner_tags: no label has number 2; the metadata names 0 to 1"),
    ({"tokens": ["a"], "ner_tags": [-1]}, NAMED, "row 2, ner_tags: no label has number -1"),
    ({"tokens": [["a"]], "ner_tags": [["O"]]}, None, "row 1: tokens is not a list of strings"),
    ({"tokens": ["a"], "ner_tags": [0.5]}, None, "row 1, ner_tags: not a list"),
    ({"tokens": ["a"], "ner_tags": [True]}, None, "row 1, ner_tags: not a list"),
    ({"tokens": "a b", "ner_tags": "O O"}, None, "row 1: tokens is not a list of strings: a b"),
    (ROW | {"pos_tags": ["X", "Y"], "ner_tags": ["O", "O"]}, None,
        "train.parquet has tags in ner_tags, pos_tags; choose one with --labels COLUMN"),
    ({"tokens": ["a"], "x": ["O"]}, None, "neither tokens and tags nor passages .*; its columns are tokens, x"),
    ({"text": "a", "label": 1}, None, "neither tokens and tags .*; its columns are text, label"),
    (DOCUMENT | {"passages": []}, None, "row 2: no passage, so its entities have no text"),
    (DOCUMENT | {"passages": None}, None, "row 2: passages are not a list of texts and offsets"),
    (DOCUMENT | {"entities": None}, None, "row 2: entities are not a list of type, text and offsets"),
    (DOCUMENT | {"passages": [PASSAGE | {"text": ["a", "b"]}]}, None, "row 2: passages are not a list"),
    (DOCUMENT | {"passages": [PASSAGE | {"offsets": [[0, 7, 9]]}]}, None, "row 2: passages are not a list"),
    (DOCUMENT | {"passages": [PASSAGE | {"offsets": [[-1, 7]]}]}, None, "row 2: no passage can begin at -1"),
    (DOCUMENT | {"passages": [PASSAGE | {"offsets": [[10**9, 7]]}]}, None, "row 2: no passage can begin at 1000000000"),
    (DOCUMENT | {"passages": [PASSAGE, PASSAGE | {"offsets": [[3, 10]]}]}, None,
        "row 2: no passage can begin at 3, after 7 characters"),
    (DOCUMENT | {"entities": [ENTITY | {"offsets": [[3, 9]]}]}, None, "row 2: X at 3-9 is not within .* of 7 char"),
    (DOCUMENT | {"entities": [ENTITY | {"offsets": [[7, 3]]}]}, None, "row 2: X at 7-3 is not within"),
    (DOCUMENT | {"entities": [ENTITY | {"offsets": [[2, 6]]}]}, None, "row 2: X at '2-6' is ' foi' in .*, not 'foi"),
    (DOCUMENT | {"entities": [ENTITY | {"offsets": []}]}, None, "row 2: X at '' is '' in the text"),
    (DOCUMENT | {"entities": [ENTITY | {"type": None}]}, None, "row 2: the type None is"),
    (DOCUMENT | {"entities": [ENTITY | {"type": "B-protein"}]}, None, "row 2: the type 'B-protein' is the tag of"),
    (DOCUMENT | {"entities": [ENTITY | {"type": "7"}]}, None, "row 2: the type '7' is the tag of a token"),
    (DOCUMENT | {"entities": [ENTITY | {"type": "a\tb"}]}, None, "row 2: the label or type"),
    (DOCUMENT | {"passages": ["a"], "entities": ["b"]}, None, "row 1: passages are not a list"),
]  # fmt: skip


def good_row(bad):
    """A first row of the same columns and types as a bad one, as far as a column of Arrow can hold both."""
    good = DOCUMENT if "passages" in bad else ROW
    kinds = [type(x) for value in bad.values() for x in (value if type(value) is list else [value])]
    if "passages" not in bad and (int in kinds or bad.get("ner_tags") == [2]):
        return NUMBERS
    return good if good.keys() == bad.keys() else bad


@pytest.mark.parametrize("bad, features, message", BAD_ROWS)
def test_bad_rows(tmp_path, bad, features, message):
    first = bad if "row 1" in message or "row" not in message else good_row(bad)
    write_parquet(tmp_path / "train.parquet", [first, bad], features)
    write_parquet(tmp_path / "test.parquet", [DOCUMENT if "passages" in bad else ROW])
    with pytest.raises(UserError, match=message) as e:
        corpora.read_corpus("custom", tmp_path)
    assert "\n" not in str(e.value)


def broken_files():
    """(name of the file of train, its content, message) of files that are damaged, or of another kind."""
    parquet, stream = pa.BufferOutputStream(), pa.BufferOutputStream()
    pq.write_table(table([ROW] * 9), parquet)
    with pa.ipc.new_stream(stream, table([ROW]).schema) as writer:
        writer.write_table(table([ROW] * 9))
    parquet, stream = parquet.getvalue().to_pybytes(), stream.getvalue().to_pybytes()
    line = json.dumps(ROW)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    return [
        ("train.parquet", parquet[:-9], "train.parquet: cannot be read .*; copy or download it again"),
        ("train.parquet", parquet[: len(parquet) // 2], "train.parquet: cannot be read"),
        ("train.parquet", b"", "train.parquet: cannot be read"),
        ("train.parquet", b"PAR1PAR1", "train.parquet: cannot be read"),
        ("train.parquet", parquet[:-8] + b"\xff\xff\xff\x7fPAR1", "train.parquet: cannot be read"),
        ("train.parquet", pointer, "is a pointer of Git LFS"),
        ("train.arrow", stream[: len(stream) // 2], "train.arrow: cannot be read"),
        ("train.arrow", parquet, "train.arrow: cannot be read"),
        ("train.jsonl", line[:-5], "train.jsonl, row 1: not JSON"),
        ("train.jsonl", f"{line}\n\n[" + "[" * 10**5, "train.jsonl, row 3: not JSON"),
        ("train.jsonl", f"{line}\n3\n", "train.jsonl, row 2: not an object of JSON: '3'"),
        ("train.jsonl", "", "train.jsonl has neither"),
        ("train.jsonl", line.encode() + b"\n\xff\n", "train.jsonl, row 2: not UTF-8"),
        ("train.jsonl", f'{line}\n{{"tokens": ["a"]}}\n', "row 2, ner_tags: not a list .* None"),
        ("train.jsonl", line.replace("B-x", r"B-\ud800"), "row 1: the label or type"),
        ("train.json", f"[{line}, 3]", "train.json, row 2: not an object of JSON: '3'"),
        ("train.json", '{"d": {"text": "a b", "tag": "X"}}', "train.json, row 1: 2 tokens and 1 tag"),
        ("train.json", '{"d": {"text": 3, "tag": 4}}', "train.json, row 1: tokens is not a list"),
        ("train-00000-of-00002.parquet", parquet, "holds 1 of the 2 files of train; copy all of them"),
        ("train.parquet/x", b"", "holds no train split"),
        ("validation/state.json", "{}", "not the state.json of save_to_disk"),
        ("train/state.json", '{"_data_files": [{"filename": "../../x.arrow"}]}', "a file elsewhere"),
        ("train/state.json", '{"_data_files": [{"filename": 3}]}', "not the state.json of save_to_disk"),
        ("train/state.json", '{"_data_files": [{"filename": "x.arrow"}]}', "x.arrow: cannot be read"),
        ("train/state.json", "[]", "state.json"),
        ("train/data-00000-of-00001.arrow", b"", "train has Arrow files, but no state.json of save_to_disk; copy all"),
    ]  # fmt: skip


@pytest.mark.parametrize("name, content, message", broken_files())
def test_broken_files(tmp_path, name, content, message):
    write_lines(tmp_path / "test.jsonl", [ROW])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content if type(content) is bytes else content.encode())
    with pytest.raises(UserError, match=message) as e:
        corpora.read_corpus("custom", tmp_path)
    assert "\n" not in str(e.value)


def test_damaged_bytes_never_end_in_a_traceback(tmp_path):
    """Files cut anywhere and bytes changed anywhere: documents, or one line."""
    write_layout(tmp_path / "a", "files"), write_layout(tmp_path / "b", "saved"), write_layout(tmp_path / "c", "lines")
    saved = next((tmp_path / "b" / "train").glob("*.arrow"))
    files = tmp_path / "a" / "train.parquet", saved, tmp_path / "c" / "train.jsonl"
    rng, n_refused = random.Random(0), 0
    for i in range(240):
        path = files[i % 3]
        content = bytearray(path.read_bytes())
        if i % 2:
            content = content[: rng.randrange(len(content))]
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / f"x{path.suffix}").write_bytes(content)
        try:
            hub.read_files([tmp_path / f"x{path.suffix}"], None, False, "", Counter())
        except UserError as e:
            assert "\n" not in str(e)
            n_refused += 1
    assert n_refused > 120


def test_a_table_that_grows_is_refused(tmp_path, monkeypatch):
    """A few KB of parquet can be gigabytes in memory."""
    monkeypatch.setattr(hub, "MAX_BYTES", 2**20)
    write_parquet(tmp_path / "train.parquet", [{"tokens": ["a" * 1000] * 100}] * 200)
    assert (tmp_path / "train.parquet").stat().st_size < 2**20
    with pytest.raises(UserError, match="more than 1 MB in memory"):
        hub.load_table(tmp_path / "train.parquet")
    monkeypatch.setattr(hub, "MAX_VALUES", 10**4)
    write_lines(tmp_path / "train.jsonl", [{f"key{i}": i} for i in range(101)])  # each row has a key of its own
    for name in ("train.parquet", "train.jsonl"):
        with pytest.raises(UserError, match="more than 10,000 values"):
            hub.load_table(tmp_path / name)


@pytest.mark.parametrize("layout", ["converted", "shards", "saved", "lines"])
def test_a_missing_split(tmp_path, layout):
    """jnlpba on the hub has train and validation only."""
    folder = write_layout(tmp_path / "set", layout)
    for path in sorted(folder.rglob("test*"), reverse=True):
        path.rename(path.with_name(f"unused{path.suffix}"))
    with pytest.raises(UserError, match=r"holds no test split \(it has: train, dev\); corpus jnlpba needs Genia.*hub"):
        corpora.read_corpus("jnlpba", folder)


def test_several_configs_and_several_files_of_a_split(tmp_path):
    write_layout(tmp_path / "emea", "files"), write_layout(tmp_path / "medline", "saved")
    with pytest.raises(UserError, match="holds 2 configs of a data set; choose one as --data: .*/emea, .*/medline"):
        corpora.read_corpus("quaero-medline", tmp_path)
    (tmp_path / "emea" / "dev.parquet").write_bytes((tmp_path / "emea" / "validation.parquet").read_bytes())
    with pytest.raises(UserError, match=r"holds 2 of dev \(dev.parquet, validation.parquet\); leave one there"):
        corpora.read_corpus("quaero-medline", tmp_path / "emea")
    for path in (tmp_path / "emea").glob("*.parquet"):
        path.rename(path.with_name(f"fr.{path.name}"))
    with pytest.raises(UserError, match=r"no file is named for a split \(.*\); rename them: fr.dev.parquet"):
        corpora.read_corpus("quaero-medline", tmp_path / "emea")


@pytest.mark.parametrize("name", ["cas-pos", "essai-pos"])
def test_parts_of_speech_need_tags(tmp_path, name):
    for part in "train", "test":
        write_lines(tmp_path / f"{part}.jsonl", [DOCUMENT])
    with pytest.raises(UserError, match="has entities of texts, and no parts of speech"):
        corpora.read_corpus(name, tmp_path)
    folder = write_layout(tmp_path / "entities", "saved")
    with pytest.raises(UserError, match="row 1: 'I-Disease' is the tag of an entity, and this corpus has parts of sp"):
        corpora.read_corpus(name, folder)


def test_another_corpus_than_the_named_one(tmp_path):
    """Without an entity of its types there is nothing to learn, and always O would score 100."""
    folder = write_layout(tmp_path / "set", "saved")
    with pytest.raises(UserError, match="no entity of CAS-SG in its training split, whose types are Disease; is it th"):
        corpora.read_corpus("cas-sg", folder)
    assert corpora.count_entities(corpora.read_corpus("custom", folder)[0]["train"]) == 3


# ---------------------------------------------------------------- --labels


def test_labels_choose_a_column(tmp_path, capsys):
    for part in "train", "test":
        write_lines(tmp_path / f"{part}.jsonl", [ROW | {"pos_tags": ["B-x", "B-y"]}])
    for column, want in ("ner_tags", ["O", "B-x"]), ("pos_tags", ["B-x", "B-y"]):
        check(Check("custom", str(tmp_path), labels=column))
        assert f"--labels {column}" in capsys.readouterr().out
        assert corpora.read_corpus("custom", tmp_path, column)[0]["test"][0].labels == want
    with pytest.raises(
        UserError, match="labels = 'x': .*train.jsonl has no tokens with such a column; .* tokens, ner_"
    ):
        corpora.read_corpus("custom", tmp_path, "x")
    (tmp_path / "train.txt").write_text("a O\n"), (tmp_path / "test.txt").write_text("a O\n")
    with pytest.raises(UserError, match="labels = 'ner_tags': .* has no columns with names"):
        corpora.read_corpus("custom", tmp_path, "ner_tags")


def test_labels_are_part_of_the_identity_of_results(tmp_path):
    """Of the folder and of the signature; results that are older than the setting have none."""
    (tmp_path / "config.json").write_text("{}")
    both = [Finetune(str(tmp_path), data="x", labels=labels) for labels in ("", "a/b")]
    tasks = [describe_results(s, corpora.CORPORA["custom"])[1]["task"] for s in both]
    assert tasks == ["custom-x", "custom-x-a-b"]
    setup = SimpleNamespace(
        tokenizer=SimpleNamespace(to_str=lambda: ""), encoder=torch.nn.Linear(1, 1), head={}, max_len=8,
        splits={"train": [], "test": []}, windows={"train": [], "test": []},
    )  # fmt: skip
    without, given = (result_signature(s, setup) for s in both)
    given["checkpoint sha256"] = without["checkpoint sha256"]
    assert differing_settings(without, given) == differing_settings(given, without) == ["labels"]
    assert differing_settings({k: x for k, x in without.items() if k != "labels"}, without) == []
    old = {k: x for k, x in without.items() if k != "overlap of windows"}  # a result of earlier versions
    assert differing_settings(old, without) == []
    setup.windows["test"] = [Window(0, 0, [1, 5, 2], [1])]  # of a word that is in two windows
    assert differing_settings(old, result_signature(both[0], setup)) == ["overlap of windows"]


# ---------------------------------------------------------------- real sets


@cache
def read_real(folder, name):
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return corpora.read_corpus(name, folder)[0]


@pytest.mark.parametrize("corpus, folder, original, sizes", [
    ("ncbi-disease", "ncbi_disease", "ncbi-disease", (300, 80, 120)),
    ("ncbi-disease", "ncbi_disease_converted", "ncbi-disease", (300, 80, 120)),
    ("custom", "ncbi_disease", "ncbi-disease", (300, 80, 120)),
    ("custom", "bare_lists", "ncbi-disease", (20, 20, 20)),
    ("ncbi-disease", "jsonl_strings", "ncbi-disease", (30, 30, 30)),
    ("e3c", "e3c_fr_saved", "e3c/fr/layer1", (150, 150)),
    ("meddocan", "kb_meddocan", "meddocan", (30, 8, 10)),
])  # fmt: skip
def test_real_sets_are_their_original_files(corpus, folder, original, sizes):
    """Each small set holds the first documents of its corpus: the same tokens, labels and entities, one by one."""
    found, want = read_real(HUB / folder, corpus), read_real(NER / original, original.split("/")[0])
    assert tuple(map(len, found.values())) == sizes and [*found] == [*want]
    for split, documents in found.items():
        for d, original_d in zip(documents, want[split]):
            assert (d.tokens, d.labels) == (original_d.tokens, original_d.labels)
            assert (d.spans, d.gold, d.text, d.breaks) == (
                original_d.spans, original_d.gold, original_d.text, original_d.breaks)  # fmt: skip
        assert any(decode_entities(d.labels) for d in documents)


def test_real_parts_of_speech_and_refusals():
    splits = read_real(HUB / "pos_saved", "cas-pos")
    assert splits["train"][0].labels == ["DET:ART", "NOM", "VER:pres", "SENT"]
    with pytest.raises(UserError, match="train.parquet, row 1, ner_tags: numbers without names"):
        read_real(HUB / "numbers_without_names", "custom")
