"""Reading a release: against hand-written rows, against a plain loop over the files, and broken files."""

import re
import shutil

import numpy as np
import pytest

import configs
import data
from configs import UserError
from tests.conftest import build, command, graph_of

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
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--tokenizer", "EMPTY"], "tokenizer.json not found"),
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


def test_a_packed_release_is_named(tmp_path):
    with pytest.raises(UserError, match="MRSTY.RRF is neither in .* unpack the release there"):
        graph_of(tmp_path)
    (tmp_path / "umls-2022AB-full.zip").write_bytes(b"x")
    with pytest.raises(UserError, match="MRSTY.RRF is neither in .* unpack umls-2022AB-full.zip first"):
        graph_of(tmp_path)
