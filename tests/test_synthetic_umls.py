"""The synthetic release: deterministic, any size, with the warts of the real thing."""

import itertools

import numpy as np
import pytest

import configs
from tests import bench, synthetic_umls
from tests.conftest import graph_of


def test_same_arguments_same_bytes(release, tmp_path):
    terms = synthetic_umls.write_release(tmp_path, 700)
    synthetic_umls.write_documents(tmp_path, terms, 60)
    synthetic_umls.write_corpus(tmp_path, terms, 40, 40)
    files = [f for f in release.rglob("*") if f.is_file()]
    assert len(files) > 100 and all(f.read_bytes() == (tmp_path / f.relative_to(release)).read_bytes() for f in files)


def test_layout_and_warts(release):
    rows = {}
    for name, columns in (("MRCONSO", 18), ("MRREL", 16), ("MRSTY", 6), ("MRRANK", 4)):
        rows[name] = [line.split("|") for line in (release / "META" / f"{name}.RRF").read_text().split("\n")[:-1]]
        assert all(len(r) == columns + 1 and r[-1] == "" for r in rows[name])
    assert {r[16] for r in rows["MRCONSO"]} >= {"N", "O", "Y"} and {r[1] for r in rows["MRCONSO"]} == {
        "ENG",
        "FRE",
        "SPA",
    }
    assert any('"' in r[14] for r in rows["MRCONSO"]) and any("é" in r[14] for r in rows["MRCONSO"])
    assert {r[3] for r in rows["MRREL"]} == set(synthetic_umls.INVERSE) and {r[14] for r in rows["MRREL"]} == {"N", "O"}
    assert any(r[4] == "" for r in rows["MRREL"])
    pairs = [(r[0], r[3], r[4]) for r in rows["MRREL"] if r[4]]
    assert len(set(pairs)) < len(pairs) and {(b, synthetic_umls.INVERSE[k], a) for a, k, b in pairs} == set(pairs)
    types = [r[0] for r in rows["MRSTY"]]
    named = {r[0] for r in rows["MRCONSO"]}
    assert len(set(types)) < len(types) and named - set(types) and {c for p in pairs for c in p[::2]} - named


def test_the_text_of_the_corpus(release):
    """A line for each test sentence, of the same words."""
    for lang in synthetic_umls.LANGS:
        blocks = (release / "ner" / lang / "test.txt").read_text().strip().split("\n\n")
        words = ["".join(line.split()[0] for line in block.split("\n")) for block in blocks]
        lines = (release / "ner" / f"{lang}.txt").read_text().split("\n")
        assert [line.replace(" ", "") for line in lines] == [*words, ""] and " ." not in "".join(lines)


def test_any_size_without_end():
    names = set()
    for i, _, strings, links in itertools.islice(synthetic_umls.concepts(), 20_000):
        names.add(strings[0][0])
        assert all(other < i for _, other in links)
    assert len(names) == 20_000


def test_the_size_of_2022ab(tmp_path):
    """At a two-hundredth: the counts of the paper's appendix A.1 to the row, those of Table 7 within 1 %."""
    synthetic_umls.write_full(tmp_path, 0.005, block=4000)
    rows = {p.stem: p.read_text().count("\n") for p in (tmp_path / "META").iterdir()}
    assert rows["MRCONSO"] == round(0.005 * synthetic_umls.ROWS) and rows["MRREL"] == round(
        0.005 * synthetic_umls.RELATIONS
    )
    assert len({row[:8] for row in (tmp_path / "META" / "MRSTY.RRF").read_text().split("\n")[:-1]}) == round(
        0.005 * synthetic_umls.CUIS
    )
    for lang, size in zip(("en", "fr", "es"), synthetic_umls.TABLE_7.values()):
        g = graph_of(tmp_path, lang, kept=configs.SEMANTIC_TYPES)
        found = np.array([len(g.terms), len(g.cui), len(g.h)])
        assert np.abs(found / (0.005 * np.array(size)) - 1).max() < 0.02
        degree = np.sort(np.bincount(g.h))[::-1]
        assert degree[0] > 20 * degree.mean() and 10 < np.mean([len(t) for t in g.terms.to_pylist()]) < 60


def test_bench_data_says_what_it_writes_and_where(tmp_path, monkeypatch, capsys):
    """Before it does."""
    monkeypatch.setattr(synthetic_umls, "write_full", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.bench_data(tmp_path / "x", 0.5, 1)
    assert capsys.readouterr().out == f"writing 1.7 GB into {tmp_path / 'x'}, once\n"
