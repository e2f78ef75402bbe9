"""Documents to train on: lines, JSON Lines and folders of files."""

import io
import json
import sys
from collections import Counter

import pytest

import data
from beyond import tagged
from beyond.dictionaries import read_ids
from beyond.mentions import read_records
from configs import UserError, command_line
from data import MLM
from support import corpora, formats, texts
from tests.conftest import build


def test_lines_json_lines_and_a_folder_of_texts_give_the_same_documents(release, tmp_path):
    """A document a line, JSON Lines and a folder of .txt give the same; alone or beside E3C, per language."""
    documents = [f"Le foie du patient n° {i} était normal." for i in range(80)]
    (tmp_path / "lines.txt").write_bytes("\ufeff".encode() + "\r\n".join([*documents, "", " ", documents[0]]).encode())
    rows = [json.dumps({"id": i, "text": t}, ensure_ascii=bool(i % 2)) for i, t in enumerate(documents)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, '{"text": ""}']) + "\n", encoding="utf-8")
    (tmp_path / "fr" / "deep").mkdir(parents=True)
    for i, text in enumerate(documents):
        (tmp_path / "fr" / ("deep" if i % 3 else ".") / f"{i}.txt").write_text(text + "\n", encoding="utf-8")
    few = {"tc_examples": 40, "ep_examples": 20, "lp_paths": 20, "e3c": "none", "lang": "fr"}
    built = []
    for text in ("lines.txt", "rows.jsonl", "fr", "{lang}"):
        out = build(release, tmp_path / "out", **few, text=str(tmp_path / text))
        built.append((out / "train.arrow").read_bytes())
        issues = json.loads((out / "manifest.json").read_text())["counts"]["fr"]["issues"]
        assert count_documents(out) == 80 and issues["repeated texts"] == (text == "lines.txt")
        assert issues.get("empty texts", 0) == {"lines.txt": 2, "rows.jsonl": 1}.get(text, 0)
    assert len(set(built)) == 1
    both = build(release, tmp_path / "out", **few | {"e3c": str(release / "E3C")}, text=str(tmp_path / "fr"))
    assert count_documents(both) == 140


def count_documents(folder):
    return sum((data.PretrainingDataset(folder, split).task == MLM).sum() for split in data.SPLITS)


@pytest.mark.parametrize("name, content, message, n_good", [
    ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', 'a.jsonl, row 2: not a JSON object with a field "text"', 1),
    ("a.jsonl", b'{"text": "x"}\n\n{"text": 3}\n', "a.jsonl, row 3: not a JSON object", 1),
    ("a.jsonl", b'["text"]', "a.jsonl, row 1: not a JSON object", 0),
    ("a.JSONL", b"[" * 200_000, "a.JSONL, row 1: not a JSON object", 0),
    ("a.txt", b"x\ny\n\xe9\n", "a.txt, row 3: byte 0xe9 is not UTF-8", 2),
    ("folder/a.txt", b"x\ny\n\xe9\n", "a.txt, row 3: byte 0xe9 is not UTF-8", 0),
    ("folder/a.doc", b"", "folder: neither a file nor a folder with .txt files", None),
])  # fmt: skip
def test_a_bad_text_is_reported_or_left_out(tmp_path, name, content, message, n_good):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path = path.parent if "/" in name else path
    with pytest.raises(UserError, match=message):
        texts.read_text(path)
    if n_good is not None:
        skipped = Counter()
        assert len(texts.read_text(path, skipped)[0]) == n_good and sum(skipped.values()) == 1


@pytest.mark.parametrize("file, first_line, want", [
    ("a.jsonl", "", True), ("a.NDJSON", "x", True), ("a.jsonl.gz", "", True), ("a.txt", '{"text": "a"}', True),
    (texts.STANDARD_INPUT, ' {"id": 1, "text": "a"}', True), (texts.STANDARD_INPUT, '{"id": 1}', True),
    (texts.STANDARD_INPUT, "{fever}", False), (texts.STANDARD_INPUT, "", False), ("a.txt", '{"text": "a', True),
    ("a.txt", '{ "text": fever}', True), ("a.txt", "{", True), ("a.txt", "{}", True),
    ("a.txt", '[{"text": "a"}]', True),
    ("a.txt", '{"a":' * 10**5, True), ("a.txt", "[" * 10**5, True), ("a.txt", "[fever]", False),
    ("a.txt", "[[1]]", False),
])  # fmt: skip
def test_what_is_json_lines(file, first_line, want):
    assert texts.is_json_lines(file, first_line) is want


def test_what_begins_as_json_is_never_read_as_text(tmp_path):
    """Broken or too deep in its first line: an error names it; each command that takes lines or JSON Lines does so."""
    for first in ('{"text": "fever', '{"text": fever}', '{"x":' * 10**5, "[" * 10**5, '[{"text": "a"}]'):
        (tmp_path / "x.txt").write_text(f'{first}\n{{"text": "b"}}\n')
        for read in (lambda path: [*tagged.read_texts(path)], read_records, texts.read_text):
            with pytest.raises(UserError, match='x.txt, row 1: not a JSON object with a field "text"'):
                read(str(tmp_path / "x.txt"))


def test_json_lines_to_train_on_may_have_any_name(tmp_path):
    (tmp_path / "x.txt").write_text('\n{"text": "a"}\n{"text": "b"}\n')
    assert texts.read_text(tmp_path / "x.txt")[0] == ["a", "b"]
    assert texts.read_text(tmp_path)[0] == ['{"text": "a"}\n{"text": "b"}']  # of a folder each .txt file is a document


def test_blank_lines_do_not_hide_json_lines(tmp_path):
    """Before other text they are documents; alone, in JSON Lines, nothing."""
    (tmp_path / "x.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="x.jsonl is empty"):
        [*tagged.read_texts(str(tmp_path / "x.jsonl"))]
    for content, want in (
        ('\n \n{"text": "a"}\n\n{"text": "b"}', ["a", "b"]),
        ("\n\na\n\n", ["", "", "a", ""]),
        ("\n", [""]),
    ):
        (tmp_path / "x.txt").write_text(content)
        assert [text for _, text in tagged.read_texts(str(tmp_path / "x.txt"))] == want


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(tmp_path, monkeypatch, end):
    """Every reader of lines takes all three; CR alone is one only where a file has no LF."""

    def there(name, *lines):
        (tmp_path / name).write_bytes(("\ufeff" + end.join([*lines, ""])).encode())
        return tmp_path / name

    lines = there("x.txt", "fièvre", "", "foie")
    assert texts.read_text(lines)[0] == ["fièvre", "foie"]
    assert [text for _, text in tagged.read_texts(str(lines))] == ["fièvre", "", "foie"]
    assert [record["text"] for record in read_records(str(lines))] == ["fièvre", "", "foie"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.read_bytes())))
    assert [record["text"] for record in read_records("")] == ["fièvre", "", "foie"]
    assert [line.strip() for line in texts.read_lines(lines, "", "")] == ["fièvre", "", "foie"]
    rows = there("x.jsonl", '{"text": "a"}', '{"text": "b"}')
    assert texts.read_text(rows)[0] == [text for _, text in tagged.read_texts(str(rows))] == ["a", "b"]
    assert command_line.read_toml(there("x.toml", "# demo", "[train]", "lr = 0.5")) == {"train": {"lr": 0.5}}
    assert read_ids(there("ids.tsv", "id\tcui", "D1\tC1", "D2\tC2")) == {"D1": ["C1"], "D2": ["C2"]}
    columns = formats.read_split(there("x.tsv", "", "a\tB-x", "b\tO", "", "c\tO"), None, Counter())
    assert [d.tokens for d in columns] == [["a", "b"], ["c"]]
    pubtator = there("test.PubTator", "1|t|Flu", "1|a|Bad.", "1\t0\t3\tFlu\tX\tD1")
    assert formats.read_split(pubtator, None, Counter())[0].text == "Flu\nBad."
    assert corpora.read_texts(pubtator)[0].split() == ["Flu", "Bad."]
    (tmp_path / "brat").mkdir()
    there("brat/x.txt", "Le foie", "va")
    there("brat/x.ann", f"T1\tX 4 {11 + len(end)}\tfoie va")
    (document,) = formats.read_brat(tmp_path / "brat", None, Counter())
    assert document.text == "\ufeff" + end.join(["Le foie", "va", ""]) and document.breaks == (2,)
    assert document.gold == [("X", ((4, 10 + len(end)),))]


def test_a_language_that_e3c_lacks_is_named(tmp_path):
    (tmp_path / "data_collection" / "French" / "layer3").mkdir(parents=True)
    for lang, message in (
        ("it", "no Italian in .*data_collection; give E3C=none .--e3c none. to build without documents"),
        ("fr", "layer3 holds no .json file"),
    ):
        with pytest.raises(UserError, match=message):
            texts.read_e3c(tmp_path, lang, ["3"])
    with pytest.raises(UserError, match="layer3 not found; E3C must point to the folder that holds data_collection"):
        texts.read_e3c(tmp_path / "data_collection", "it", ["3"])
