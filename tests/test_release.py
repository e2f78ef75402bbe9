"""Reading a release: against hand-written rows, against a plain loop over the files, and broken files."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import configs
import data
from configs import UserError
from tests.conftest import ROOT, build, command, graph_of

DISO, ANAT = "T047|B2.2.1.2.1|Disease or Syndrome", "T023|A1.2.3.1|Body Part"


def conso(cui, text, lat="ENG", ts="P", stt="PF", ispref="Y", aui="A0000001", suppress="N", sab="SYN", tty="PT"):
    return f"{cui}|{lat}|{ts}|L1|{stt}|S1|{ispref}|{aui}||||{sab}|{tty}|X|{text}|0|{suppress}||\n"


def rel(cui1, rel, cui2, suppress="N"):
    return f"{cui1}||CUI|{rel}|{cui2}||CUI||R1||SYN|SYN|||{suppress}||\n"


def write(folder, mrconso, mrrel, mrsty, mrrank=""):
    folder.mkdir(exist_ok=True)
    for name, rows in (("MRCONSO", mrconso), ("MRREL", mrrel), ("MRSTY", mrsty), ("MRRANK", mrrank)):
        if rows:
            (folder / f"{name}.RRF").write_text("".join(rows), encoding="utf-8")
    return folder


def types(*pairs):
    return [f"{cui}|{semantic}|AT1||\n" for cui, semantic in pairs]


def triples(g):
    return {(f"C{g.cui[h]:07d}", data.RELATIONS[r], f"C{g.cui[t]:07d}") for h, r, t in zip(g.h, g.r, g.t)}


def preferred(g):
    return {f"C{c:07d}": g.terms[i].as_py() for c, i in zip(g.cui, g.first_term[:-1].tolist())}


BASE = [conso("C0000001", "hepatitis"), conso("C0000002", "liver disease"), conso("C0000003", "liver")]
TYPES = types(("C0000001", DISO), ("C0000002", DISO), ("C0000003", ANAT))


def test_direction(tmp_path):
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
    rows += rows  # the graph is a set
    g = graph_of(write(tmp_path, BASE, rows, TYPES))
    assert triples(g) == {("C0000002", r, "C0000001") for r in data.RELATIONS}


def test_synonymy_within_a_concept_needs_two_terms(tmp_path):
    more = [*BASE, conso("C0000001", "liver inflammation", ts="S", aui="A0000009")]
    g = graph_of(write(tmp_path, more, [rel("C0000001", "SY", "C0000001"), rel("C0000002", "SY", "C0000002")], TYPES))
    assert triples(g) == {("C0000001", "SY", "C0000001")}


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
    odd = ['"quoted', 'a "b" c', "NA", "null", "é, ' ; \u200b", "-1"]
    rows = [conso("C0000001", s, aui=f"A00000{i:02d}") for i, s in enumerate([*odd, "NA"], 10)]
    g = graph_of(write(tmp_path, rows + BASE[1:], [rel("C0000001", "PAR", "C0000002")], TYPES))
    assert g.terms[: g.first_term[1]].to_pylist() == odd


def test_semantic_group(tmp_path):
    """Kept if one type is; of several kept types the least deep gives the group."""
    sty = types(("C0000001", "T033|A2.2|Finding"), ("C0000001", ANAT), ("C0000002", "T083|A2.1.5.4|Geographic Area"))
    sty += types(("C0000002", DISO), ("C0000003", "T083|A2.1.5.4|Geographic Area"))
    relations = [rel("C0000001", "PAR", "C0000002"), rel("C0000003", "PAR", "C0000001")]
    for order in (sty, sty[::-1]):
        g = graph_of(write(tmp_path, BASE, relations, order))
        assert [g.groups[i] for i in g.group] == ["DISO", "DISO"] and triples(g) == {("C0000002", "PAR", "C0000001")}
    assert [g.groups[i] for i in graph_of(tmp_path, kept=("ANAT", "T083")).group] == ["ANAT", "GEOG", "GEOG"]


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


def compare(umls, lang, lat, kept):
    g = graph_of(umls, lang, kept)
    best, names, found = brute_force(umls, lat, set(kept))
    assert preferred(g) == best
    mine = {f"C{c:07d}": set(g.terms[g.first_term[i] : g.first_term[i + 1]].to_pylist()) for i, c in enumerate(g.cui)}
    assert mine == names and len(g.terms) == sum(map(len, names.values()))
    assert triples(g) == found and len(g.h) == len(found)
    return g


@pytest.mark.parametrize("lang, lat", [("en", "ENG"), ("fr", "FRE"), ("es", "SPA")])
def test_the_sample_against_a_plain_loop(release, lang, lat):
    g = compare(release, lang, lat, list(configs.SEMANTIC_TYPES))
    assert any('"' in t for t in g.terms.to_pylist()) and not any("obsolete" in t for t in g.terms.to_pylist())


@pytest.mark.parametrize("lang, lat", [("fr", "FRE"), ("es", "SPA")])
def test_a_real_release_against_a_plain_loop(real, lang, lat):
    compare(real[0], lang, lat, list(configs.SEMANTIC_TYPES))


def test_membership(release):
    """contains() knows every triple and its inverse, and nothing else."""
    g = graph_of(release)
    rng = np.random.default_rng(0)
    truth = set(zip(g.h.tolist(), g.r.tolist(), g.t.tolist()))
    truth |= {(t, int(data.INVERSE[r]), h) for h, r, t in truth}
    h, r, t = rng.integers(0, len(g.cui), 20_000), rng.integers(0, 7, 20_000), rng.integers(0, len(g.cui), 20_000)
    h, t = np.append(h, g.t), np.append(t, g.h)
    r = np.append(r, rng.integers(0, 7, len(g.h)))
    assert g.contains(h, r, t).tolist() == [x in truth for x in zip(h.tolist(), r.tolist(), t.tolist())]


def same(a, b):
    arrays = all((getattr(a, k) == getattr(b, k)).all() for k in ("cui", "group", "first_term", "keys", "counts"))
    return arrays and a.terms.equals(b.terms) and (a.groups, a.lang) == (b.groups, b.lang)


def rewrite(folder, release, change):
    """A copy of the release whose files went through change(path, bytes)."""
    shutil.copytree(release / "META", folder / "META")
    for path in (folder / "META").iterdir():
        change(path, path.read_bytes())
    return folder


def packed(path, whole):
    path.unlink()
    for k in range(3):  # cut within rows, as `split` does
        part = whole[k * len(whole) // 3 : (k + 1) * len(whole) // 3]
        path.with_name(f"{path.name}.a{'abc'[k]}.gz").write_bytes(gzip.compress(part))


@pytest.mark.parametrize("change", [
    packed,
    lambda path, whole: (path.unlink(), path.with_name(path.name + ".gz").write_bytes(gzip.compress(whole))),
    lambda path, whole: path.write_bytes(whole.replace(b"\n", b"\r\n")),
    lambda path, whole: path.write_bytes(whole.replace(b"\n", b"\n\n")),
    lambda path, whole: path.write_bytes(whole.rstrip(b"\n")),
], ids=["parts", "gz", "windows", "empty lines", "no last line end"])  # fmt: skip
def test_the_same_release_in_another_form(release, tmp_path, change):
    assert same(graph_of(rewrite(tmp_path, release, change), "fr"), graph_of(release, "fr"))


def test_blocks_change_nothing(release, tmp_path, monkeypatch):
    """Rows that lie across blocks, blocks without a line end, and the row numbers of errors."""
    whole = graph_of(release)
    for block in (50, 997, 10_000):
        monkeypatch.setattr(data, "BLOCK", block)
        assert same(graph_of(release), whole)
    broken = rewrite(tmp_path, release, lambda path, whole: None)
    for n in (400, 99, 2000):  # the first one is named, whichever thread finds its own first
        damage(broken, "MRREL", lambda lines, n=n: b"\n".join([*lines[:n], b"x" + lines[n], *lines[n + 1 :]]))
        if n == 400:
            monkeypatch.setattr(data, "BLOCK", 5000)
    with pytest.raises(UserError, match="MRREL.RRF, row 100, column CUI1: 'xC.*' is not C and 7 digits"):
        graph_of(broken)


def test_damaged_parts(release, tmp_path):
    broken = rewrite(tmp_path, release, packed) / "META" / "MRREL.RRF.ab.gz"
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"MRREL.RRF.ab.gz: cannot be read .*; copy or download it again"):
        graph_of(tmp_path)
    broken.write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"MRREL.RRF.ab.gz: cannot be read"):
        graph_of(tmp_path)


def test_malformed_rows_can_be_left_out(release, tmp_path, capsys):
    """The graph is then that of a release without these rows; they are counted and the first five shown."""
    wrong = {
        "MRCONSO": [
            b"C0000001|ENG",
            b"\xe9" * 30,
            b"C12|ENG|P|L|PF|S|Y|A0000001||||S|T|X|t|0|N||",
            b"|ENG|P|L|PF|S|Y|A0000001||||S|T|X|t|0|N||",
        ],
        "MRSTY": [b"C0000001|T047|B|x|y||z", b"X0000001|T047|B|x|y||", b"C0000001|DISO|B|x|y||", b"|" * 7],
        "MRREL": [b"C0000001||CUI|PAR|D0000001||CUI||R1||S|S|||N||"] * 9,
    }

    def damaged(path, whole):
        lines = whole.split(b"\n")
        for k, row in enumerate(wrong.get(path.stem, [])):
            lines.insert(40 * (k + 1), row)
        path.write_bytes(b"\n".join(lines))

    folder = rewrite(tmp_path, release, damaged)
    for name in ("MRSTY", "MRCONSO", "MRREL"):
        with pytest.raises(UserError, match=rf"{name}.RRF, row 41.*\(--skip_bad_rows leaves such rows out\)"):
            graph_of(folder)
        shutil.copy(folder / "META" / f"{name}.RRF", tmp_path / name)
        shutil.copy(release / "META" / f"{name}.RRF", folder / "META")
    for name in ("MRSTY", "MRCONSO", "MRREL"):
        shutil.copy(tmp_path / name, folder / "META" / f"{name}.RRF")
    assert same(graph_of(folder, skip_bad_rows=True), graph_of(release))
    said = capsys.readouterr().err
    assert said.count("MRSTY.RRF, row") == 4 and said.count("MRREL.RRF, row") == 5 and "row 41" in said
    out = build(folder, tmp_path / "en", skip_bad_rows=True, e3c="none", text=str(few_texts(tmp_path)))
    kept = {"MRCONSO.RRF": 4, "MRSTY.RRF": 4, "MRREL.RRF": 9}
    for _ in range(2):  # also where the tables are those of the build before
        assert json.loads((out / "manifest.json").read_text())["malformed_rows_left_out"] == kept
        build(folder, out, skip_bad_rows=True, e3c="none", text=str(few_texts(tmp_path)))


def few_texts(folder):
    path = folder / "texts.txt"
    path.write_text("".join(f"the liver of patient {i} was normal\n" for i in range(60)))
    return path


def test_tables_are_kept_until_something_changes(release, tmp_path, monkeypatch):
    folder, reads = rewrite(tmp_path, release, lambda path, whole: None), []
    read_rrf = data.read_rrf
    monkeypatch.setattr(data, "read_rrf", lambda *a: reads.append(a[1]) or read_rrf(*a))

    def read(lang="en", kept=("DISO", "ANAT", "CONC", "PROC"), **more):
        reads.clear()
        s = configs.Data(semantic_types=list(kept), **more)
        graphs, *_ = data.read_graphs(folder, [lang], s, tmp_path / "tables", lambda _: None, data.save_tables)
        return graphs[0], bool(reads)

    first, again, french = read(), read(), read("fr")
    assert first[1] and not again[1] and same(first[0], again[0]) and french[1] and not read("fr")[1]
    fewer = read(kept=["DISO", "ANAT"])
    assert fewer[1] and len(fewer[0].cui) < len(first[0].cui) and not read("fr")[1]
    assert read()[1] and read(skip_bad_rows=True)[1] and read()[1]
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


# ---------------------------------------------------------------- what users get wrong


def damage(folder, name, change):
    path = folder / "META" / f"{name}.RRF"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(change(lines))


def drop_field(lines):
    return b"\n".join([*lines[:99], lines[99].replace(b"|", b"", 1), *lines[100:]])


def bad_byte(lines):
    return b"\n".join([*lines[:99], b"\xe9" + lines[99][1:], *lines[100:]])


def cut(lines):
    whole = b"\n".join(lines)
    return whole[: len(whole) - 9]


def bad_cui(lines):
    return b"\n".join([*lines[:99], b"X" + lines[99][1:], *lines[100:]])


@pytest.mark.parametrize("name", ["MRCONSO", "MRREL", "MRSTY"])
@pytest.mark.parametrize("change, said", [
    (drop_field, r"row 100: \d+ columns instead of \d+"),
    (cut, r"row \d+: \d+ columns instead of \d+, and the file ends in the middle"),
    (bad_byte, r"row 100, column CUI1?: byte 0xe9 is not UTF-8"),
    (bad_cui, r"row 100, column CUI1?: 'X\d+' is not C and 7 digits"),
    (lambda lines: b"", "there is no row in it"),
    (lambda lines: b"\n\n", "there is no row in it"),
])  # fmt: skip
def test_damaged_files(release, tmp_path, name, change, said):
    shutil.copytree(release / "META", tmp_path / "META")
    damage(tmp_path, name, change)
    with pytest.raises(UserError, match=rf"{name}\.RRF.*{said}"):
        graph_of(tmp_path)


def test_a_bad_atom_identifier(tmp_path):
    rows = [*BASE, conso("C0000001", "x", aui="TX")]
    with pytest.raises(UserError, match="MRCONSO.RRF, row 4, column AUI: 'TX' is not A and 7 or 8 digits"):
        graph_of(write(tmp_path, rows, [rel("C0000001", "PAR", "C0000002")], TYPES))


def test_nothing_left_after_filtering(tmp_path, release):
    with pytest.raises(UserError, match="no relation left in language en"):
        graph_of(write(tmp_path / "a", BASE, [rel("C0000001", "RO", "C0000002")], TYPES))
    with pytest.raises(UserError, match="no row in language GER; it has ENG FRE SPA"):
        graph_of(release, "de")
    with pytest.raises(UserError, match="no relation left in language en .*0 concepts"):
        graph_of(write(tmp_path / "b", BASE, [rel("C0000001", "PAR", "C0000002")], types(("C0000009", DISO))))
    with pytest.raises(UserError, match="semantic_types: DISEASE not in"):
        graph_of(release, kept=["DISEASE"])


def test_languages():
    assert data.languages("fr") == data.languages("FRE") == data.languages("french") == ["fr"]
    assert data.languages("multi") == ["en", "fr", "es"] and data.languages("XYZ") == ["XYZ"]
    with pytest.raises(UserError, match="unknown language 'en_US.UTF-8'"):
        data.languages("en_US.UTF-8")


@pytest.mark.parametrize("argv, said", [
    ([], "say which language"),
    (["--lang", "fr", "--umls", "nowhere"], "no UMLS release in nowhere"),
    (["--lang", "fr", "--umls", "none"], "no UMLS release in none"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--out", "."], "name a folder"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--valid", "1e-6"], "the valid part would be empty"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "nowhere"], "no E3C corpus in nowhere"),
    (["--lang", "xx", "--umls", "SAMPLE", "--e3c", "none"], "unknown language 'xx'"),
    (["--lang", "fr", "--umls", "EMPTY", "--e3c", "none"], "MRSTY.RRF is neither in"),
    (["--lang", "de", "--umls", "SAMPLE", "--e3c", "none"], "no row in language GER"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "NO_JSON"], "layer3 holds no .json file"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "EMPTY"], "data_collection/French/layer3 not found"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--tokenizer", "EMPTY"], "no tokenizer.json there"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--windows", "some"], "windows = 'some'"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--valid", "2"], "valid = 2.0 must be between"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--out", "EMPTY/.."], "is not a data set"),
])  # fmt: skip
def test_the_command_fails_in_one_line_and_leaves_nothing(release, tmp_path, argv, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "no-json" / "data_collection" / "French" / "layer3").mkdir(parents=True)
    names = {"SAMPLE": str(release), "EMPTY": str(tmp_path / "empty"), "EMPTY/..": str(tmp_path)}
    names["NO_JSON"] = str(tmp_path / "empty" / "no-json")
    argv = [names.get(a, a) for a in argv]
    out = tmp_path / "out"
    if "--out" not in argv:
        argv += ["--out", str(out)]
    p = command(
        "data.py", "build", *argv, "--classification", 50, "--prediction", 50, "--paths", 50, "--vocab_size", 400
    )
    assert p.returncode != 0 and said in p.stderr and "Traceback" not in p.stderr
    assert re.match(r"data\.py: error: ", p.stderr)
    assert {f.name for f in tmp_path.iterdir()} <= {"empty", "tables"}  # what was read may stay


def test_a_failed_build_keeps_the_old_data_set(release, tmp_path, monkeypatch):
    out = build(release, tmp_path / "en", paths=50, classification=60, prediction=30)
    before = {f.name: f.read_bytes() for f in out.iterdir()}

    def full(*_):
        assert {f.name for f in tmp_path.iterdir()} == {"en", ".en.building", "tables"}  # beside the old one
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data.Writer, "write", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        build(release, tmp_path / "en", paths=50, classification=60, prediction=30, seed=1)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert {f.name for f in tmp_path.iterdir()} == {"en", "tables"}


def test_a_killed_build_keeps_the_old_data_set(release, tmp_path):
    few = {"paths": 50, "classification": 60, "prediction": 30}
    out = build(release, tmp_path / "en", **few)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    settings = {"lang": "en", "umls": str(release), "e3c": "none", "out": str(out), "vocab_size": 300, "seed": 1} | few
    die = "data.Writer.write = lambda *_: os.kill(os.getpid(), 9)"
    code = f"import os, configs, data; {die}; data.build(configs.Data(**{settings}))"
    p = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert p.returncode == -signal.SIGKILL and (tmp_path / ".en.building").is_dir()
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    build(release, out, **few)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert {f.name for f in tmp_path.iterdir()} == {"en", "tables"}


def test_a_build_killed_between_the_two_renames(release, tmp_path):
    few = {"paths": 50, "classification": 60, "prediction": 30}
    out = build(release, tmp_path / "en", **few)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    out.rename(tmp_path / ".en.old")
    shutil.copytree(tmp_path / ".en.old", tmp_path / ".en.building")
    with pytest.raises(ValueError), data.replacing(out):
        raise ValueError  # whatever comes of the next build
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert {f.name for f in tmp_path.iterdir()} == {"en", "tables"}


def test_two_builds_at_once_take_turns(tmp_path):
    """Each writes a whole folder; without the lock they empty each other's."""
    code = """if True:
        import sys, time, pathlib, data
        with data.replacing(pathlib.Path("out")) as beside:
            for name in "abc":
                (beside / name).write_text(sys.argv[1])
                time.sleep(0.2)
    """
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", code, k], cwd=tmp_path, env=env) for k in "12"]
    assert [p.wait(60) for p in both] == [0, 0]
    assert len({(tmp_path / "out" / name).read_text() for name in "abc"}) == 1
    assert {f.name for f in tmp_path.iterdir()} == {"out"}


def test_another_language_does_not_take_the_place_of_a_data_set(release, tmp_path):
    few = {"paths": 50, "classification": 60, "prediction": 30}
    out = build(release, tmp_path / "en", **few)
    with pytest.raises(UserError, match="en holds a data set of language en, not fr; choose another --out"):
        build(release, out, lang="fr", **few)
    (out / "manifest.json").write_text('{"sha256": {}}')  # damaged, or of an older version
    with pytest.raises(UserError, match=r"damaged or of another version \(no counts, .*; build the data set again"):
        data.show(out)
    build(release, out, **few)


def test_odd_fields(release, tmp_path):
    """An empty string is no name; a rank that is no number is none; a row with two faults counts once."""
    more = [conso("C0000003", "", aui="A0000000"), conso("C0000001", "a" * 99, aui="B" * 99)]
    rank = ["²|SYN|PT|N|\n", "0007|SYN|PT|N|\n", "0003|SYN|PT|N|\n"]
    good = [rel("C0000001", "PAR", "C0000002")]
    folder = write(tmp_path / "odd", [*BASE, more[0]], good, TYPES, rank)
    assert preferred(graph_of(folder)) == {"C0000001": "hepatitis", "C0000002": "liver disease", "C0000003": "liver"}
    with pytest.raises(UserError, match=r"row 4, column AUI: 'B{40}'\.\.\. is not A and 7 or 8 digits"):
        graph_of(write(tmp_path / "long", [*BASE, more[1]], good, TYPES))
    folder = write(tmp_path / "two", BASE, [rel("C1", "PAR", "C2"), *good], [f"|{DISO}|AT1||\n", *TYPES])
    with pytest.raises(UserError, match="MRSTY.RRF, row 1, column CUI: '' is not C and 7 digits"):
        graph_of(folder)
    skip = Counter()
    assert len(list(data.read_rrf(folder, "MRREL", lambda r: (r.cui("CUI1"), r.cui("CUI2")), skip))) == 1
    assert skip == {"MRREL.RRF": 1}


def test_a_packed_release_is_named(tmp_path):
    with pytest.raises(UserError, match="MRSTY.RRF is neither in .* unpack the release there"):
        graph_of(tmp_path)
    (tmp_path / "umls-2022AB-full.zip").write_bytes(b"x")
    with pytest.raises(UserError, match="MRSTY.RRF is neither in .* unpack .*/umls-2022AB-full.zip first"):
        graph_of(tmp_path)


def test_concepts_of_the_nci_metathesaurus_are_left_out(release, tmp_path, capsys):
    """CL and digits is another numbering: such rows are no error, in any file and column, and counted once each."""
    rows = {
        "MRCONSO": [conso(cui, "x", lat="ENG") for cui in ("CL105989", "CL1", "CL12345678")],
        "MRSTY": types(("CL105989", DISO), ("CL000001", ANAT)),
        "MRREL": [rel("CL105989", "PAR", "CL105990"), rel("CL105989", "RO", "C0000001")],
    }
    rows["MRREL"] += [rel("C0000001", "PAR", "CL105989"), rel("CL105989", "PAR", "C0000001")]

    def more(path, whole):
        lines = "".join(rows.get(path.stem, [])).encode()
        cut = whole.index(b"\n") + 1
        path.write_bytes(whole[:cut] + lines + whole[cut:])

    folder = rewrite(tmp_path, release, more)
    assert same(graph_of(folder), graph_of(release))
    kept = {"MRCONSO.RRF": 3, "MRSTY.RRF": 2, "MRREL.RRF": 3}
    for _ in range(2):  # also where the tables are those of the build before
        out = build(folder, tmp_path / "en", e3c="none", text=str(few_texts(tmp_path)))
        manifest = json.loads((out / "manifest.json").read_text())
        assert (manifest["nci_rows_left_out"], manifest["malformed_rows_left_out"]) == (kept, {})
        said = capsys.readouterr().out
        for line in ("NCI Metathesaurus numbers (CL and digits) left out: MRSTY.RRF 2, MRCONSO.RRF 3, MRREL.RRF 3",
                     "MRREL.RRF: 3 rows left out, of concepts"):  # fmt: skip
            assert line in said
    for cui in ("CL", "CLX", "CL123456789", "CL12 ", "XL105989"):
        rows = [rel("CL105989", "PAR", cui)]
        with pytest.raises(UserError, match=f"MRREL.RRF, row 1, column CUI2: '{cui}' is not C and 7 digits"):
            graph_of(write(tmp_path / "bad", BASE, rows, TYPES))


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["MRSTY", "MRCONSO", "MRREL"])
def test_utf_16(release, tmp_path, name, codec):
    folder = rewrite(tmp_path, release, lambda path, whole: None)
    path = folder / "META" / f"{name}.RRF"
    path.write_bytes(("\ufeff" + path.read_text(encoding="utf-8")).encode(codec))
    with pytest.raises(UserError, match=f"{name}.RRF: UTF-16, and an RRF file must be UTF-8; convert it with iconv"):
        graph_of(folder)


FEW = {"paths": 50, "classification": 60, "prediction": 30}


def test_a_link_in_the_place_of_a_data_set_stays(release, tmp_path):
    """Also one to a folder that is not there yet."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "en"
    link.symlink_to(tmp_path / "disk" / "english")
    for seed in range(3):
        build(release, link, seed=seed, **FEW)
        assert link.is_symlink() and data.read_manifest(link)["settings"]["seed"] == seed
        assert [f.name for f in (tmp_path / "disk").iterdir()] == ["english"]


def test_a_folder_whose_name_is_not_utf_8(release, tmp_path):
    out = tmp_path / os.fsdecode(b"donn\xe9es") / os.fsdecode(b"fran\xe7ais")
    few = [f"--{k}={v}" for k, v in (FEW | {"vocab_size": 300}).items()]
    for said in ("MRCONSO: ", "made from the same files"):  # tables beside it are read again
        p = command("data.py", "build", "--lang=en", f"--umls={release}", "--e3c=none", f"--out={out}", *few)
        assert p.returncode == 0 and said in p.stdout, p.stderr
    p = command("data.py", "show", out)
    assert p.returncode == 0 and "link prediction" in p.stdout, p.stderr


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                                 {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii:strict"}])  # fmt: skip
def test_show_in_a_locale_without_the_letters(release, tmp_path, env):
    texts = few_texts(tmp_path)
    texts.write_text(texts.read_text(encoding="utf-8").replace("liver", "foie \u0153d\u00e9mateux \u80dd"), "utf-8")
    out = build(release, tmp_path / "fr", lang="fr", e3c="none", text=str(texts), **FEW)
    argv = [sys.executable, "data.py", "show", str(out)]
    p = subprocess.run(argv, cwd=ROOT, env=os.environ | env, capture_output=True)
    assert p.returncode == 0 and p.stdout.count(b"[CLS]") >= 9 and b"?" in p.stdout, p.stderr


def test_wishes_beyond_the_graph(tmp_path):
    """What a graph gives is all that takes memory; the wish alone takes none."""
    rows = [rel("C0000001", "PAR", "C0000002"), rel("C0000002", "PAR", "C0000003"), rel("C0000003", "SIB", "C0000001")]
    g = graph_of(write(tmp_path, BASE, rows, TYPES))
    most = {f: configs.Data.__dataclass_fields__[f].metadata["most"] for f in ("classification", "prediction", "paths")}
    s = configs.Data(max_relations=50, valid=1e-6)
    sizes = {data.TC: most["classification"], data.EP: most["prediction"], data.LP: most["paths"]}
    ep, tc, (concepts, relations) = data.sample(g, "train", sizes, s)
    assert len(ep[0]) == 2 and 2 <= len(tc[0]) <= 4 and len(concepts) == 1
