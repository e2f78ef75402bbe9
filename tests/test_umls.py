"""A release becomes a graph: hand-written rows, a plain loop over whole releases, and the cache of tables."""

import json

import numpy as np
import pytest

import configs
import data
from configs import UserError
from support import umls
from support.cache import read_release, save_tables
from tests.conftest import graph_of
from tests.small_releases import (
    ANAT,
    BASE,
    DISO,
    TYPES,
    conso,
    damage,
    preferred,
    rel,
    rewrite,
    same,
    triples,
    types,
    write,
)  # fmt: skip

# ---------------------------------------------------------------- MRSTY and MRCONSO


@pytest.mark.parametrize(
    "rows, best",
    [
        ([dict(ts="S"), dict(stt="VO"), dict(ispref="N"), dict()], 3),
        ([dict(ts="S"), dict(stt="VO"), dict(ispref="N")], 2),
        ([dict(ts="S"), dict(stt="VO")], 1),
        ([dict(ts="S", sab="LOW"), dict(ts="S", sab="HIGH"), dict(ts="S", sab="NONE")], 1),
        ([dict(ts="S", aui="A0000020"), dict(ts="S", aui="A0000003"), dict(ts="S", aui="A0000100")], 1),
        ([dict(suppress="O"), dict(suppress="E"), dict(suppress="Y"), dict(ts="S")], 3),
        ([dict(lat="FRE"), dict(ts="S")], 1),
    ],
)
def test_preferred_term(tmp_path, rows, best):
    """SUPPRESS=N of the language only; TS=P STT=PF ISPREF=Y, then the documented fall-back order."""
    names = [conso("C0000001", f"name {i}", **{"aui": f"A000000{i}"} | row) for i, row in enumerate(rows)]
    rank = ["0001|LOW|PT|N|\n", "0900|HIGH|PT|N|\n"]
    other = [conso("C0000002", "x", ts="S")]
    for shuffled in (names + other, other + names[::-1]):
        g = graph_of(write(tmp_path, shuffled, [rel("C0000001", "PAR", "C0000002")], TYPES, rank))
        assert preferred(g)["C0000001"] == f"name {best}"


def test_strings_are_taken_as_they_are(tmp_path):
    strings = ['"quoted', 'a "b" c', "NA", "null", "é, ' ; \u200b", "-1"]
    rows = [conso("C0000001", s, aui=f"A00000{i:02d}") for i, s in enumerate([*strings, "NA"], 10)]
    g = graph_of(write(tmp_path, rows + BASE[1:], [rel("C0000001", "PAR", "C0000002")], TYPES))
    assert g.terms[: g.first_term[1]].to_pylist() == strings


def test_an_empty_string_is_no_name_and_a_rank_without_a_number_is_none(tmp_path):
    rows = [*BASE, conso("C0000003", "", aui="A0000000")]
    rank = ["²|SYN|PT|N|\n", "²5|SYN|PT|N|\n", "0007|SYN|PT|N|\n", "0003|SYN|PT|N|\n"]
    g = graph_of(write(tmp_path, rows, [rel("C0000001", "PAR", "C0000002")], TYPES, rank))
    assert preferred(g) == {"C0000001": "hepatitis", "C0000002": "liver disease", "C0000003": "liver"}


@pytest.mark.parametrize("low, high", [("1", "9" * 5000), ("0" * 5000 + "7", "8"), ("", "0001"), ("10", "4095")])
def test_ranks_of_any_length(tmp_path, low, high):
    rows = [conso("C0000001", "a", ts="S", sab="LOW"), conso("C0000001", "b", ts="S", sab="HIGH", aui="A0000009")]
    rank = [f"{low}|LOW|PT|N|\n", f"{high}|HIGH|PT|N|\n"]
    g = graph_of(write(tmp_path, rows + BASE[1:], [rel("C0000001", "PAR", "C0000002")], TYPES, rank))
    assert preferred(g)["C0000001"] == "b"


def test_the_least_deep_kept_type_gives_the_semantic_group(tmp_path):
    """Kept if one type is; of several kept types the least deep gives the group."""
    sty = types(("C0000001", "T033|A2.2|Finding"), ("C0000001", ANAT), ("C0000002", "T083|A2.1.5.4|Geographic Area"))
    sty += types(("C0000002", DISO), ("C0000003", "T083|A2.1.5.4|Geographic Area"))
    relations = [rel("C0000001", "PAR", "C0000002"), rel("C0000003", "PAR", "C0000001")]
    for order in (sty, sty[::-1]):
        g = graph_of(write(tmp_path, BASE, relations, order))
        assert [g.groups[i] for i in g.group] == ["DISO", "DISO"] and triples(g) == {("C0000002", "PAR", "C0000001")}
    assert [g.groups[i] for i in graph_of(tmp_path, kept=("ANAT", "T083")).group] == ["ANAT", "GEOG", "GEOG"]


# ---------------------------------------------------------------- MRREL


def test_rel_is_the_relation_of_the_second_concept_to_the_first(tmp_path):
    """C1|..|PAR|C2 says that C2 is a parent of C1: the triple of the paper is C2 [PAR] C1."""
    g = graph_of(write(tmp_path, BASE, [rel("C0000001", "PAR", "C0000002")], TYPES))
    assert triples(g) == {("C0000002", "PAR", "C0000001")}
    one, two = np.array([0]), np.array([1])
    true = [(r, bool(g.contains(a, r, b)[0])) for a, b in ((two, one), (one, two)) for r in range(7)]
    assert [data.RELATIONS[r] for r, yes in true if yes] == ["PAR", "CHD"]  # its inverse is true as well


def test_which_relations_are_kept(tmp_path):
    rows = [rel("C0000001", r, "C0000002") for r in "PAR CHD SY AQ QB RB RN RO SIB RQ RL RU XR DEL".split()]
    rows += [rel("C0000001", "PAR", "C0000003", suppress=s) for s in "OEY"]
    rows += [rel("C0000001", "PAR", "C0000099"), rel("", "PAR", "C0000001"), rel("C0000001", "PAR", "")]
    rows += [rel("C0000001", r, "C0000001") for r in ("PAR", "SY")]  # to itself: SY has no second term here
    rows += rows + rows[:1] * 400  # the graph is a set
    g = graph_of(write(tmp_path, BASE, rows, TYPES))
    assert triples(g) == {("C0000002", r, "C0000001") for r in data.RELATIONS}


def test_synonymy_within_a_concept_needs_two_terms(tmp_path):
    more = [*BASE, conso("C0000001", "liver inflammation", ts="S", aui="A0000009")]
    g = graph_of(write(tmp_path, more, [rel("C0000001", "SY", "C0000001"), rel("C0000002", "SY", "C0000002")], TYPES))
    assert triples(g) == {("C0000001", "SY", "C0000001")}


def test_concepts_that_whole_files_do_not_have_are_counted(tmp_path):
    """A file that was cut shows, also without MRFILES.RRF: each line of the log against rows counted by hand."""
    whole = [rel("C0000001", "PAR", "C0000002"), rel("C0000002", "CHD", "C0000001")]
    whole += [rel("C0000002", "RO", "C0000003", suppress="O"), rel("C0000003", "RO", "C0000002"), rel("", "PAR", "")]
    whole += whole[:1] * 100
    names = [*BASE, conso("C0000003", "Leber", lat="GER")]

    def gaps(mrconso, mrrel, mrsty):
        lines = []
        for name in (tmp_path / "x").glob("*"):
            name.unlink()
        folder = write(tmp_path / "x", mrconso, mrrel, mrsty)
        read_release(folder, ["en"], configs.Data(), tmp_path / "cache", lines.append)
        return [line.split("; many mean")[0] for line in lines if "; many mean" in line]

    assert gaps(names, whole, TYPES) == gaps([*names, *BASE], whole * 2, TYPES * 2) == []
    assert gaps(names, whole, TYPES[:2]) == ["1 of the 3 concepts of MRCONSO have no semantic type in MRSTY"]
    not_kept = types(("C0000003", "T083|A2.1.5.4|Geographic Area"))
    assert gaps(names, whole, TYPES[:2] + not_kept) == []  # it has a type, though none that is kept
    assert gaps(BASE[:2], whole, TYPES) == ["1 of the 3 concepts of MRREL have no row in MRCONSO"]
    assert gaps(names, whole[:3], TYPES) == ["1 of the 3 concepts of MRREL have relations in one direction only"]
    (tmp_path / "x" / "MRFILES.RRF").write_text("MRREL.RRF|||16|3|1|\n")
    again = []
    read_release(tmp_path / "x", ["en"], configs.Data(), tmp_path / "cache", again.append)
    assert "1 of the 3 concepts of MRREL have relations in one direction only" in again  # it is whole
    assert gaps(names, whole[:1], TYPES) == ["2 of the 2 concepts of MRREL have relations in one direction only"]


def test_ranks_that_are_no_small_number(tmp_path):
    """The largest counts as MAX_RANK, however long it is, and what is no decimal number as 0."""
    rows = [f"{rank}|S|{tty}|N|\n" for rank, tty in (("0012", "A"), ("9" * 5000, "B"), ("²", "C"), ("", "D"))]
    folder = write(tmp_path / "release", BASE, [], [], rows)
    assert umls.read_ranks(folder) == {"S|A": 12, "S|B": umls.MAX_RANK, "S|C": 0, "S|D": 0}


# ---------------------------------------------------------------- whole releases


def brute_force(folder, lat, kept):
    """The same graph by a plain loop: (preferred, all terms, triples) by CUI."""

    def rows(name):
        return [
            line.split("|")
            for line in (folder / "META" / f"{name}.RRF").read_text(encoding="utf-8").split("\n")
            if line
        ]

    group = {
        line.split("|")[2]: line.split("|")[0]
        for line in open(configs.__file__.replace("__init__.py", "SemGroups.txt"))
    }
    has_type = {cui for cui, tui, *_ in rows("MRSTY") if tui in kept or group[tui] in kept}
    rank = {(sab, tty): int(r) for r, sab, tty, *_ in rows("MRRANK")}
    atoms = {}
    for r in rows("MRCONSO"):
        if r[1] == lat and r[16] == "N" and r[0] in has_type:
            marks = (r[2] == "P" and r[4] == "PF" and r[6] == "Y", r[2] == "P" and r[4] == "PF", r[2] == "P")
            key = ([not m for m in marks], -rank.get((r[11], r[12]), 0), int(r[7][1:]))
            atoms.setdefault(r[0], []).append((key, r[14]))
    best = {cui: min(a)[1] for cui, a in atoms.items()}
    names = {cui: {text for _, text in a} for cui, a in atoms.items()}
    found = set()
    for r in rows("MRREL"):
        h, kind, t = r[4], r[3], r[0]
        if kind in data.RELATIONS and r[14] == "N" and h in names and t in names:
            if h != t or (kind == "SY" and len(names[h]) > 1):
                found.add((h, kind, t))
    return best, names, found


def compare_with_brute_force(folder, lang, lat, kept):
    g = graph_of(folder, lang, kept)
    best, names, found = brute_force(folder, lat, set(kept))
    assert preferred(g) == best
    mine = {f"C{c:07d}": set(g.terms[g.first_term[i] : g.first_term[i + 1]].to_pylist()) for i, c in enumerate(g.cui)}
    assert mine == names and len(g.terms) == sum(map(len, names.values()))
    assert triples(g) == found and len(g.h) == len(found)
    return g


@pytest.mark.parametrize("lang, lat", [("en", "ENG"), ("fr", "FRE"), ("es", "SPA")])
def test_the_synthetic_release_against_a_plain_loop(release, lang, lat):
    g = compare_with_brute_force(release, lang, lat, list(configs.SEMANTIC_TYPES))
    assert any('"' in t for t in g.terms.to_pylist()) and not any("obsolete" in t for t in g.terms.to_pylist())


@pytest.mark.parametrize("lang, lat", [("fr", "FRE"), ("es", "SPA")])
def test_a_real_release_against_a_plain_loop(real, lang, lat):
    compare_with_brute_force(real[0], lang, lat, list(configs.SEMANTIC_TYPES))


def test_nothing_left_after_filtering_is_an_error(tmp_path, release):
    with pytest.raises(UserError, match="no relation left in language en"):
        graph_of(write(tmp_path / "a", BASE, [rel("C0000001", "RO", "C0000002")], TYPES))
    with pytest.raises(UserError, match="no row in language GER; it has ENG FRE SPA"):
        graph_of(release, "de")
    with pytest.raises(UserError, match="no relation left in language en .*0 concepts"):
        graph_of(write(tmp_path / "b", BASE, [rel("C0000001", "PAR", "C0000002")], types(("C0000009", DISO))))
    with pytest.raises(UserError, match="semantic_types: DISEASE not in"):
        graph_of(release, kept=["DISEASE"])


def test_languages_by_code_lat_or_name():
    assert umls.parse_languages("fr") == umls.parse_languages("FRE") == umls.parse_languages("french") == ["fr"]
    assert umls.parse_languages("multi") == ["en", "fr", "es"] and umls.parse_languages("XYZ") == ["XYZ"]
    assert umls.parse_languages("it, EN,XYZ,english") == ["it", "en", "XYZ"]
    with pytest.raises(UserError, match="unknown language 'en_US.UTF-8'"):
        umls.parse_languages("en_US.UTF-8")
    assert umls.parse_languages("multi,it") == ["en", "fr", "es", "it"]
    for text in ("", "en,", "en,,fr"):
        with pytest.raises(UserError, match="no language given"):
            umls.parse_languages(text)


def test_tables_are_kept_until_something_changes(release, tmp_path, monkeypatch):
    folder, reads = rewrite(tmp_path, release, lambda path, whole: None), []
    read_rrf = umls.read_rrf
    monkeypatch.setattr(umls, "read_rrf", lambda *a: reads.append(a[1]) or read_rrf(*a))

    def read(lang="en", kept=("DISO", "ANAT", "CONC", "PROC"), **more):
        reads.clear()
        s = configs.Data(semantic_types=list(kept), **more)
        cache = tmp_path / "tables"
        found = read_release(folder, [lang], s, cache, lambda _: None)
        for tables in found.unsaved:
            save_tables(cache / tables.lang, tables, found.source, found.skipped, found.nci)
        return data.Graph(**vars(found.tables[0])), bool(reads)

    first, again, french = read(), read(), read("fr")
    assert first[1] and not again[1] and same(first[0], again[0]) and french[1] and not read("fr")[1]
    fewer = read(kept=["DISO", "ANAT"])
    assert fewer[1] and len(fewer[0].cui) < len(first[0].cui) and not read("fr")[1]
    assert read()[1] and read(skip_bad_rows=True)[1] and read()[1]
    for _ in range(2):  # MRFILES.RRF, which states how many rows there must be, came or changed
        with open(folder / "META" / "MRFILES.RRF", "a") as f:
            f.write("MRSAB.RRF|||25|1|1|\n")
        assert read()[1] and not read()[1]
    damage(folder, "MRCONSO", lambda lines: b"\n".join(lines[10:]))
    shorter = read()
    assert shorter[1] and len(shorter[0].terms) < len(first[0].terms)
    for name in ("relations.parquet", "terms.parquet", "concepts.parquet", "source.json"):
        path = tmp_path / "tables" / "en" / name
        whole = path.read_bytes()
        lines = [b"[]", b"null", json.dumps(json.loads(whole) | {"groups": 5}).encode()] if "json" in name else []
        for content in (*lines, whole[: len(whole) // 2], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], b""):
            path.write_bytes(content)
            assert same(read()[0], shorter[0]), name
    assert {f.name for f in (tmp_path / "tables").iterdir()} == {"en", "fr"}
