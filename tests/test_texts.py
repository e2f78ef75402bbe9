"""Documents to train on: lines, JSON Lines and folders of files."""

import json
from collections import Counter

import pytest

import data
from configs import UserError
from data import MLM
from support import texts
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
    (texts.STANDARD_INPUT, "{fever}", False), (texts.STANDARD_INPUT, "", False),
])  # fmt: skip
def test_what_is_json_lines(file, first_line, want):
    assert texts.is_json_lines(file, first_line) is want


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
