"""Exports of names, codes and the graph for other tools."""

from collections import defaultdict
from pathlib import Path

import pytest

import configs
from beyond import export
from beyond.dictionaries import make_dictionary, read_ids
from beyond.export import Dictionary, Ids, write_dictionary, write_ids
from configs import UserError
from support import datasets, rrf
from support.codes import codes_of_concepts, read_codes
from tests.conftest import FEW, build, command, run_command
from tests.small_releases import conso, read_dictionary, write

ROWS = [  # CUI, SAB, CODE, SUPPRESS
    ("C0000002", "MSH", "D2", "N"), ("C0000001", "MSH", "D1", "N"), ("C0000001", "MSH", "D1", "N"),
    ("C0000003", "OMIM", "215600", "N"), ("C0000004", "MSHFRE", "D4", "N"), ("C0000005", "MSH", "D5", "O"),
    ("C0000006", "MSH", "NOCODE", "N"), ("C0000007", "SNOMEDCT_US", "12", "N"), ("C0000008", "SNOMEDCT_VET", "13", "N"),
    ("C0000001", "SNOMEDCT_US", "12", "N"), ("C0000001", "SNOMEDCT_US", "11", "N"),
    ("C0000001", "RXNORM", " 7\t8 ", "N"), ("C0000009", "MTH", "NOCODE", "N"), ("C0000009", "RXNORM", " ", "N"),
    ("C0000010", "GO", "GO:5", "N"),
]  # fmt: skip


def release_of(folder, rows=ROWS):
    """A release whose MRCONSO has these sources and codes."""
    mrconso = [conso(c, "x", sab=sab, suppress=s).replace("|PT|X|", f"|PT|{code}|") for c, sab, code, s in rows]
    folder.mkdir(exist_ok=True)
    return write(folder / "release", mrconso, [], [])


def codes_by_splitting(umls, sources):
    """What read_codes gives, from the lines of the file."""
    rows = [line.split("|") for line in (umls / "MRCONSO.RRF").read_text().splitlines()]
    kept = [(r[11], " ".join(r[13].split()), r[0]) for r in rows if r[11] in sources and r[16] == "N"]
    return sorted({x for x in kept if x[1] and x[1] != "NOCODE"})


@pytest.mark.parametrize("sources", [["SNOMEDCT_US"], ["SNOMEDCT_VET", "MSH"], ["RXNORM", "OMIM", "SNOMEDCT_US"]])
def test_codes_of_sources(tmp_path, sources):
    """Names of sources are compared in full: eight bytes do not tell SNOMEDCT_US from SNOMEDCT_VET."""
    umls = release_of(tmp_path)
    assert read_codes(umls, sources) == codes_by_splitting(umls, sources)
    of_concepts = codes_of_concepts(umls, sources)
    pairs = [
        (s, code, cui) for cui, by_source in of_concepts.items() for s, codes in by_source.items() for code in codes
    ]
    assert sorted(pairs) == read_codes(umls, sources)


def test_codes_of_a_concept(tmp_path):
    found = codes_of_concepts(release_of(tmp_path), ["SNOMEDCT_US", "RXNORM"])
    assert found == {"C0000001": {"RXNORM": ["7 8"], "SNOMEDCT_US": ["11", "12"]}, "C0000007": {"SNOMEDCT_US": ["12"]}}


@pytest.mark.parametrize("sources, message", [
    (["SNOMEDCT"], "no source 'SNOMEDCT': did you mean SNOMEDCT_US or SNOMEDCT_VET?"),
    (["MSH", "snomedct_us"], "no source 'snomedct_us': did you mean SNOMEDCT_US or SNOMEDCT_VET?"),
    (["RXNROM"], "no source 'RXNROM': did you mean RXNORM?"),
    (["ICD10CM"], "no source 'ICD10CM': it has GO MSH MSHFRE MTH OMIM RXNORM SNOMEDCT_US SNOMEDCT_VET"),
    (["MTH"], "no code of the sources MTH; take the full release, or a subset of MetamorphoSys with these sources"),
])  # fmt: skip
def test_sources_that_are_not_there(tmp_path, sources, message):
    with pytest.raises(UserError) as e:
        read_codes(release_of(tmp_path), sources)
    assert str(e.value).endswith(f" has {message}")


def test_ids_for_other_tools(tmp_path):
    """Of MSH and OMIM, not suppressed, each once, as PubTator has them."""
    umls = release_of(tmp_path)
    for _ in range(2):
        write_ids(Ids(str(umls), out=str(tmp_path / "ids.tsv")))
    with pytest.raises(UserError, match="MRCONSO.RRF is in the input"):
        write_ids(Ids(str(umls), out=str(rrf.find_rrf(umls, "MRCONSO")[0])))
    want = "id\tcui\nD1\tC0000001\nD2\tC0000002\nOMIM:215600\tC0000003\n"
    assert (tmp_path / "ids.tsv").read_text() == want
    assert read_ids(tmp_path / "ids.tsv")["OMIM:215600"] == ["C0000003"]
    for rows, message in (
        (ROWS[4:5], "MRCONSO.RRF has no code of the sources MSH OMIM; take the full release, or a subset of Meta"),
        ([], "MRCONSO.RRF is neither"),
    ):
        other = release_of(tmp_path / f"other{len(rows)}", rows)
        with pytest.raises(UserError, match=message):
            write_ids(Ids(str(other), out=str(tmp_path / "none.tsv")))
    assert not (tmp_path / "none.tsv").exists()


@pytest.mark.parametrize("sources, want", [
    (["SNOMEDCT_US"], ["11\tC0000001", "12\tC0000001", "12\tC0000007"]),
    (["OMIM", "OMIM"], ["215600\tC0000003"]), (["MSH"], ["D1\tC0000001", "D2\tC0000002"]),
    (["SNOMEDCT_VET", "OMIM", "MSH"], ["D1\tC0000001", "D2\tC0000002", "OMIM:215600\tC0000003",
        "SNOMEDCT_VET:13\tC0000008"]),
    (["OMIM", "GO"], ["GO:5\tC0000010", "OMIM:215600\tC0000003"]),
    (["OMIM", "SNOMEDCT_VET"], ["OMIM:215600\tC0000003", "SNOMEDCT_VET:13\tC0000008"]),
    (["MSH", "SNOMED"], None),
])  # fmt: skip
def test_ids_of_sources(tmp_path, sources, want):
    """Of one source the codes as they are; of several with the source, but MeSH's. beyond.link reads all of them."""
    umls, out = release_of(tmp_path), tmp_path / "ids.tsv"
    if want is None:
        with pytest.raises(UserError, match="no source 'SNOMED': did you mean SNOMEDCT_US or SNOMEDCT_VET?"):
            run_command(export, "ids", umls, "--sources", *sources, "--out", out)
        assert not out.exists()
        return
    run_command(export, "ids", umls, "--sources", *sources, "--out", out)
    assert out.read_text().splitlines() == ["id\tcui", *want]
    pairs = sorted(f"{i}\t{cui}" for i, cuis in read_ids(out).items() for cui in cuis)
    assert pairs == sorted(want)


# ---------------------------------------------------------------- names


def test_names_for_other_tools(dataset, tmp_path, capsys):
    """The file holds what beyond.link takes from the data set."""
    found = command("-m", "beyond.export", "dictionary", dataset)
    tables = datasets.read_dataset_tables(dataset, "en")
    lines = found.stdout.splitlines()
    assert found.returncode == 0, found.stderr
    assert len(lines) == len(tables.terms)
    assert lines[0] == f"C{tables.cui[0]:07d}\t{tables.terms[0]}"
    assert found.stderr == f"{len(lines):,} names of {len(tables.cui):,} concepts -> standard output\n"
    capsys.readouterr()
    for _ in range(2):
        write_dictionary(Dictionary(str(dataset), "en", str(tmp_path / "out.tsv")))
        out, err = capsys.readouterr()
        told = f"{len(lines):,} names of {len(tables.cui):,} concepts -> {tmp_path}/out.tsv\n"
        following = f"python -m beyond.link CHECKPOINT --dictionary {tmp_path}/out.tsv < mentions.txt > links.jsonl"
        assert (out, err) == ("", f"{told}next:  {following}\n")
    assert (tmp_path / "out.tsv").read_text() == found.stdout
    of_file = read_dictionary(tmp_path / "out.tsv")
    of_dataset = make_dictionary(*datasets.names_of_dataset(dataset, ""))
    assert of_file.ids == of_dataset.ids and of_file.names == of_dataset.names
    assert (of_file.term == of_dataset.term).all() and (of_file.concept == of_dataset.concept).all()
    with pytest.raises(UserError, match="has no names in language fr; it has en"):
        write_dictionary(Dictionary(str(dataset), "en,fr"))
    (tmp_path / "mine.tsv").write_text("notes\n")
    tables_of_en = dataset.parent / "tables" / "en"
    for path, message in ((dataset / "manifest.json", "is in the input"), (dataset / "new.tsv", "is in the input"),
                          (tables_of_en / "source.json", "is in the input"), (tables_of_en / "new.tsv", "is in the in"),
                          (tmp_path / "mine.tsv", "is not an output of this command"), (".", "a folder")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            write_dictionary(Dictionary(str(dataset), out=str(path)))


# ---------------------------------------------------------------- the graph


@pytest.fixture(scope="module")
def two(release, tmp_path_factory):
    """A data set of French and English, in this order."""
    return build(release, tmp_path_factory.mktemp("two") / "fr-en", lang="fr,en", **FEW)


def rows_of(folder, name):
    return [line.split("|") for line in (folder / "META" / f"{name}.RRF").read_text(encoding="utf-8").splitlines()]


def graph_by_reading(folder, lats):
    """({(CUI, REL, CUI)}, {CUI: preferred term}) of some languages, by the rules of section 3.1, from the lines."""
    semgroups = Path(configs.__file__).with_name("SemGroups.txt").read_text().splitlines()
    group_of = {line.split("|")[2]: line.split("|")[0] for line in semgroups if line}
    kept = {r[0] for r in rows_of(folder, "MRSTY") if {r[1], group_of[r[1]]} & {*configs.SEMANTIC_TYPES}}
    rank = {(r[1], r[2]): int(r[0]) for r in rows_of(folder, "MRRANK")}
    triples, preferred = set(), {}
    for lat in lats:
        names = defaultdict(list)
        for r in rows_of(folder, "MRCONSO"):
            if r[0] in kept and r[1] == lat and r[16] == "N" and r[14]:
                level = 3 if r[2] != "P" else 2 if r[4] != "PF" else 1 if r[6] != "Y" else 0
                names[r[0]].append((level, -rank.get((r[11], r[12]), 0), int(r[7][1:]), r[14]))
        for t, rel, h, suppress in ((r[0], r[3], r[4], r[14]) for r in rows_of(folder, "MRREL")):
            is_pair = h in names and t in names and (h != t or rel == "SY" and len({x[3] for x in names[h]}) > 1)
            if is_pair and rel in ("PAR", "CHD", "SY", "AQ", "QB", "RB", "RN") and suppress == "N":
                triples.add((h, rel, t))
        preferred = {cui: " ".join(min(found)[3].split()) for cui, found in names.items()} | preferred
    return triples, preferred


@pytest.mark.parametrize(
    "lang, lats", [("", ["FRE", "ENG"]), ("fr", ["FRE"]), ("en", ["ENG"]), ("en,fr", ["ENG", "FRE"])]
)
def test_the_graph_is_that_of_the_release(two, release, tmp_path, monkeypatch, capsys, lang, lats):
    """Each triple once, of all languages that were asked for; names are of the first of these that has one."""
    monkeypatch.setattr(export, "CHUNK", 100)
    triples, preferred = graph_by_reading(release, lats)
    out = tmp_path / "graph.tsv"
    for _ in range(2):
        run_command(export, "graph", two, "--lang", lang, "--out", out)
    lines = [line.split("\t") for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(triples) and {*map(tuple, lines)} == triples
    run_command(export, "graph", two, "--lang", lang, "--names", "--out", out)
    named = [tuple(line.split("\t")) for line in out.read_text(encoding="utf-8").splitlines()]
    assert named == [(preferred[h], r, preferred[t]) for h, r, t in lines]
    told = f"{len(lines):,} triples of {len(preferred):,} concepts -> {out}\n"
    assert capsys.readouterr() == ("", 3 * told)


def test_the_graph_on_standard_output(two, tmp_path):
    found = command("-m", "beyond.export", "graph", two)
    export.write_graph(export.Graph(str(two), out=str(tmp_path / "graph.tsv")))
    text = (tmp_path / "graph.tsv").read_text(encoding="utf-8")
    assert (found.returncode, found.stdout) == (0, text)
    assert found.stderr.startswith(f"{text.count(chr(10)):,} triples of ") and found.stderr.count("\n") == 1


def test_where_no_graph_is_written(two, tmp_path):
    (tmp_path / "mine.tsv").write_text("C0000001\tflu\n")
    for path, message in ((two / "manifest.json", "is in the input"), (tmp_path / "mine.tsv", "is not an output"),
                          (two.parent / "tables" / "new.tsv", "is in the input"), (".", "a folder")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            export.write_graph(export.Graph(str(two), out=str(path)))
    with pytest.raises(UserError, match="has no names in language es; it has fr en"):
        export.write_graph(export.Graph(str(two), lang="es"))
    with pytest.raises(UserError, match="none is not a data set"):
        export.write_graph(export.Graph(str(tmp_path / "none")))
