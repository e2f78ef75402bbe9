"""Sources of a release: which are read, the counts by source, and the lines that warn."""

import random

import pytest

import configs
import data
from configs import UserError
from support import cache, sources
from support.cache import read_release, save_tables
from support.reports import print_dataset_tables
from tests.conftest import FEW, build, graph_of, run_command
from tests.small_releases import BASE, TYPES, conso, preferred, rel, rewrite, triples, write, write_texts

LONG = "A_SOURCE_WITH_A_NAME_OF_MORE_THAN_THIRTY_TWO_BYTES"
LEVELS = {"SNOMEDCT_US": "9", "SNOMEDCT_VET": "9", "SNOMEDCT": "3", "MSH": "0", "MSHFRE": "3", "MDRFRE1": "", LONG: "2"}
LEVELS |= {LONG + "_2": "1", "É": "0", "ÉTUDES": "4"}
NAMES = [*LEVELS]


def mrsab(levels, absent=()):
    """Rows of MRSAB."""
    return [f"||{s}1|{s}{'|' * 10}{level}{'|' * 9}{'NY'[s not in absent]}|||\n" for s, level in levels.items()]


def write_release(folder, mrconso, mrrel, mrsty=TYPES, listed=None):
    """A release folder with a MRSAB where there are rows of it."""
    write(folder, mrconso, mrrel, mrsty)
    if listed:
        (folder / "MRSAB.RRF").write_text("".join(listed))
    return folder


def from_source(row, column, sab):
    """A row with another source."""
    fields = row.split("|")
    fields[column] = sab
    return "|".join(fields)


def random_release(rng, folder):
    """Thirty concepts with atoms of random sources, in two languages, and relations among them."""
    cuis, mrconso, mrrel = [f"C{i:07d}" for i in range(1, 31)], [], []
    for i in range(150):
        sab, more = rng.choice(NAMES), {"ts": rng.choice("PS"), "suppress": rng.choice("NNNO")}
        text = rng.choice(["", *(f"name {k}" for k in range(8))])
        row = conso(rng.choice(cuis), text, rng.choice(["ENG", "FRE"]), aui=f"A{i:07d}", sab=sab, **more)
        mrconso.append(row.replace("|0|", f"|{LEVELS[sab]}|"))
    for _ in range(600):
        row = rel(rng.choice(cuis), rng.choice([*data.RELATIONS, "RO"]), rng.choice(cuis), rng.choice("NNNO"))
        mrrel.append(from_source(row, 10, rng.choice([*NAMES, "OF_RELATIONS"])))
    mrsty = [f"{c}|T047|B2.2.1.2.1|Disease|AT1||\n" for c in cuis[:28]]
    listed = mrsab(LEVELS | {"OF_RELATIONS": "1"}) if rng.random() < 0.8 else None
    return write_release(folder, mrconso, mrrel, mrsty, listed)


def brute_force(folder, lat, only, without):
    """(preferred, names, triples, counts by source), by a plain loop over split rows."""

    def rows(name):
        path = folder / f"{name}.RRF"
        return [line.split("|") for line in path.read_text().split("\n") if line] if path.exists() else []

    def is_read(sab):
        return sab in only if only else sab not in without

    typed, atoms, counts = {r[0] for r in rows("MRSTY")}, {}, {}
    for r in rows("MRCONSO"):
        if r[1] == lat and r[16] == "N" and r[0] in typed and r[14] and is_read(r[11]):
            atoms.setdefault(r[0], []).append(((r[2] != "P", int(r[7][1:])), r[14]))
            counts.setdefault(r[11], [0, 0, 0])[0] += 1
    names, found = {cui: {text for _, text in a} for cui, a in atoms.items()}, set()
    for r in rows("MRREL"):
        h, kind, t = r[4], r[3], r[0]
        if kind in data.RELATIONS and r[14] == "N" and is_read(r[10]) and h in names and t in names:
            if h != t or (kind == "SY" and len(names[h]) > 1):
                found.add((h, kind, t))
                n = counts.setdefault(r[10], [0, 0, 0])
                n[1], n[2] = n[1] + 1, n[2] + (kind in ("PAR", "CHD"))
    levels = {r[3]: r[13] for r in rows("MRSAB")} | {r[11]: r[15] for r in rows("MRCONSO") if r[11] in counts}
    named = {sab for sab, n in counts.items() if n[0]}
    known = {r[3] for r in rows("MRSAB")} | named
    by_source = {sab: [*n, levels[sab] if sab in known else ""] for sab, n in sorted(counts.items())}
    return {cui: min(a)[1] for cui, a in atoms.items()}, names, found, by_source


@pytest.mark.parametrize("seed", range(12))
def test_random_selections_against_a_plain_loop(tmp_path, seed):
    """Names that share their first eight bytes, or their first 50, are different sources."""
    rng = random.Random(seed)
    folder = random_release(rng, tmp_path / "release")
    in_mrconso = sorted({line.split("|")[11] for line in (folder / "MRCONSO.RRF").read_text().splitlines()})
    named = rng.sample(in_mrconso, rng.randint(1, 5))
    only, without = [([], []), (named, []), ([], named)][seed % 3]
    for lang, lat in (("en", "ENG"), ("fr", "FRE")):
        best, names, found, by_source = brute_force(folder, lat, only, without)
        if not found:
            with pytest.raises(UserError, match=f"no relation left in language {lang}"):
                graph_of(folder, lang, ["DISO"], sources=only, exclude_sources=without)
            continue
        g = graph_of(folder, lang, ["DISO"], sources=only, exclude_sources=without)
        terms = [g.terms[i:j].to_pylist() for i, j in zip(g.first_term, g.first_term[1:])]
        assert preferred(g) == best and triples(g) == found and g.sources == by_source
        assert {f"C{c:07d}": set(x) for c, x in zip(g.cui, terms)} == names


RELATED = [rel("C0000001", "PAR", "C0000002"), rel("C0000002", "CHD", "C0000001")]


@pytest.mark.parametrize(
    "name, listed, message",
    [
        ("snomedct_us", True, "did you mean SNOMEDCT_US or SNOMEDCT or SNOMEDCT_VET"),
        ("SNOMED", True, "did you mean SNOMEDCT"),
        ("MESH", True, "did you mean MSH"),
        ("SNOMEDCT_US ", True, "did you mean SNOMEDCT_US"),
        ("SYN", True, "it has "),  # of MRCONSO, though MRSAB does not know it
        ("", True, "it has "),
        ("\x1b[31m\n", True, r"has no source '\\x1b\[31m\\n': it has "),
        ("MSHFRE", "absent", r"the release lists it \(restriction level 3\), and the subset was made without it"),
        ("MDRFRE1", "absent", "the release lists it, and the subset was made without it"),
        ("MSH", False, "has no source 'MSH': it has SYN$"),
        ("SIN", False, "did you mean SYN"),
        ("SYN\0", False, "did you mean SYN"),
    ],
)
def test_an_unknown_source(tmp_path, name, listed, message):
    levels = {sab: level for sab, level in LEVELS.items() if sab.isascii()}
    rows = mrsab(levels, ("MSHFRE", "MDRFRE1") if listed == "absent" else ()) if listed else None
    folder = write_release(tmp_path / "r", BASE, RELATED, listed=rows)
    for setting in ("sources", "exclude_sources"):
        with pytest.raises(UserError, match=message) as e:
            graph_of(folder, **{setting: ["SYN"] * (not listed) + [name]})
        assert "\n" not in str(e.value) and "\x1b" not in str(e.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "MRSAB.RRF: there is no row in it"),
        (b"SYN|Y|\n", "MRSAB.RRF, row 1: 2 columns instead of 25"),
        (mrsab({"SYN": "0"})[0].encode() + b"||\xff" + b"|" * 23 + b"\n", "MRSAB.RRF, row 2, column VSAB: byte 0xff"),
    ],
)
def test_a_damaged_list_of_sources(tmp_path, content, message):
    folder = write_release(tmp_path / "r", BASE, RELATED)
    (folder / "MRSAB.RRF").write_bytes(content)
    with pytest.raises(UserError, match=message):
        graph_of(folder)
    if b"\xff" in content:
        assert graph_of(folder, skip_bad_rows=True, sources=["SYN"]).sources == {"SYN": [3, 2, 2, "0"]}


def test_a_level_that_is_no_digit_is_unknown(tmp_path):
    rows = [row.replace("|0|", f"|{level}|") for row, level in zip(BASE, ["x" * 5000, "33", "²"])]
    folder = write_release(tmp_path / "r", rows, RELATED, listed=mrsab({"SYN": "\x1b"}))
    assert graph_of(folder).sources == {"SYN": [3, 2, 2, ""]}


def test_no_relation_of_the_selected_sources(tmp_path):
    folder = write_release(tmp_path / "r", [*BASE, conso("C0000003", "x", sab="MSH")], RELATED)
    with pytest.raises(UserError, match="1 concepts .*; see --semantic_types, --sources and --exclude_sources, or use"):
        graph_of(folder, sources=["MSH"])
    level_0 = [row.replace("ENG", "FRE").replace("|SYN|", "|ICPCFRE|") for row in BASE]
    with pytest.raises(UserError, match="larger subset; fr is nearly empty: .* MSHFRE and MDRFRE are level 3"):
        graph_of(write_release(tmp_path / "f", level_0, [rel("C0000001", "RO", "C0000002")]), "fr")


# ---------------------------------------------------------------- what is said of them


@pytest.mark.parametrize(
    "lang, counts, only, expected",
    [
        ("fr", {"ICPCFRE": 1, "LNC-FR-CA": 10**6, "MTHMSTFRE": 1, "LNC-FR-BE": 1}, [], "MSHFRE and MDRFRE are level 3"),
        ("de", {"ICPCGER": 5}, [], "translations of MSH and MDR are level 3"),
        ("XYZ", {"LNC-XY-ZZ": 5, "MSH": 0}, [], "translations of MSH and MDR are level 3"),
        ("fr", {"ICPCFRE": 1, "MSHFRE": 1}, [], None),
        ("fr", {"ICPCFRE": 1, "HPOFRE": 1}, [], None),
        ("fr", {"ICPCFRE": 1}, ["ICPCFRE"], "ICPCFRE; a translation has"),  # as the user wanted
        ("en", {"ICPCENG": 1}, [], None),
        ("fr", {"MSHFRE": 9}, [], None),
        ("fr", {"MSHFRE": 9}, ["MSHFRE"], "sources with names but without PAR or CHD: MSHFRE; a translation has"),
        ("fr", {"MSHFRE": 9, "MSH": 0}, ["MSHFRE", "MSH"], None),
        ("fr", {"MSHFRE": 9, "MSH": 0, "MDRFRE": 1}, ["MSHFRE", "MSH"], "without PAR or CHD: MDRFRE;"),
        ("fr", {}, [], None),
    ],
)
def test_lines_that_warn(lang, counts, only, expected):
    """MSH alone has a hierarchy here."""
    table = {sab: [n, 4, 2 * (sab == "MSH"), "0"] for sab, n in counts.items()}
    lines = [*sources.find_lacks(lang, table, only)]
    assert [expected in line for line in lines] == [True] if expected else not lines


def shown_table(capsys, table, lang="fr", only=()):
    sources.print_sources(lang, table, only)
    return capsys.readouterr().out


def test_ten_sources_and_the_sum_of_the_others(capsys):
    table = {f"S{k:02d}": [k, 10 * k, k // 2, str(k % 10)] for k in range(1, 14)} | {"\x1b\ud800": [500, 0, 0, ""]}
    lines = shown_table(capsys, table).splitlines()[3:]
    rows = [line.split() for line in lines]
    assert rows[0] == [r"\x1b\ud800", "?", "500", "0", "0"] and rows[1] == ["S13", "3", "13", "130", "6"]
    assert rows[10] == ["4", "others", "10", "100", "4"] and len(rows) == 11
    assert len({len(line) for line in lines}) == 1  # aligned


@pytest.mark.parametrize("table", [None, {}, [], 5, {"A": 1}, {"A": [1, 2, 3]}, {"A": [1, -2, 3, "0"]}, {"A": [1] * 4}])
def test_a_manifest_without_counts_by_source_is_shown_without_them(capsys, table):
    assert shown_table(capsys, table) == ""


# ---------------------------------------------------------------- whole builds


def test_both_settings_are_an_error_before_anything_is_read(tmp_path, release):
    with pytest.raises(UserError, match="sources and exclude_sources: give one of them"):
        build(release, tmp_path / "en", sources=["SYN"], exclude_sources=["DUP"], text="no such file")


def test_a_build_from_cached_tables_prints_the_same(tmp_path, release, capsys, monkeypatch):
    def shown():
        build(release, tmp_path / "fr", lang="fr", e3c="none", text=str(text), sources=["SYN", "SYN"], **FEW)
        out = capsys.readouterr().out
        return out[out.index("fr: rows of each source") : out.index("fr: shares")]

    text, reads = write_texts(tmp_path), []
    read_tables = cache.read_tables
    monkeypatch.setattr(cache, "read_tables", lambda *a: reads.append(1) or read_tables(*a))
    first = shown()
    assert "SYN" in first and "DUP" not in first and shown() == first and len(reads) == 1
    run_command(data, "show", tmp_path / "fr")
    assert first in capsys.readouterr().out
    manifest = data.PretrainingDataset(tmp_path / "fr", "train").manifest
    assert manifest["settings"]["sources"] == ["SYN", "SYN"] and [*manifest["counts"]["fr"]["sources"]] == ["SYN"]
    del manifest["counts"]["fr"]["sources"], manifest["settings"]["sources"]  # a data set of before
    print_dataset_tables(manifest, data.TASKS)
    assert "rows of each source" not in capsys.readouterr().out


def test_tables_of_another_selection_or_an_older_version_are_read_anew(tmp_path, release):
    folder = rewrite(tmp_path, release, lambda path, whole: None)
    (folder / "META" / "MRSAB.RRF").write_text("".join(mrsab({"SYN": "0", "DUP": "1"})))  # DUP has relations alone

    def read(**more):
        s, place = configs.Data(**more), tmp_path / "tables"
        found = read_release(folder, ["en"], s, place, lambda _: None)
        for tables in found.unsaved:
            save_tables(place / "en", tables, found.source, found.skipped, found.nci)
        return bool(found.unsaved), found.tables[0].sources

    (new, whole), (again, cached) = read(), read()
    assert new and not again and whole == cached and [*whole] == ["DUP", "SYN"]
    for more in ({"sources": ["SYN", "DUP"]}, {"exclude_sources": ["DUP"]}, {"sources": ["SYN"]}, {}):
        assert read(**more)[0] and not read(**{k: [*v[::-1], v[0]] for k, v in more.items()})[0]
    (folder / "META" / "MRSAB.RRF").write_text("".join(mrsab({"SYN": "0", "DUP": "22"})))
    new, of_other_list = read()
    assert new and of_other_list["DUP"][3] == "" and whole["DUP"][3] == "1"
    (folder / "META" / "MRSAB.RRF").write_text("".join(mrsab({"SYN": "0", "DUP": "1"})))
    read()
    path = tmp_path / "tables" / "en" / "source.json"
    changes = [('"version": 5', '"version": 4'), ('"SYN": [', '"SYN": [-'), ('"sources": {', '"sources": {"X": 1,')]
    for old, other in changes:
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, other))
        assert read() == (True, whole) and not read()[0]


def test_arabic_is_a_language(tmp_path):
    rows = [row.replace("ENG", "ARA") for row in BASE]
    assert graph_of(write_release(tmp_path / "r", rows, RELATED), "ar").sources == {"SYN": [3, 2, 2, "0"]}
