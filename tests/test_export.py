"""Exports of names, codes and the graph for other tools."""

import pytest

from configs import UserError
from support.codes import codes_of_concepts, read_codes
from tests.small_releases import conso, write

ROWS = [  # CUI, SAB, CODE, SUPPRESS
    ("C0000002", "MSH", "D2", "N"), ("C0000001", "MSH", "D1", "N"), ("C0000001", "MSH", "D1", "N"),
    ("C0000003", "OMIM", "215600", "N"), ("C0000004", "MSHFRE", "D4", "N"), ("C0000005", "MSH", "D5", "O"),
    ("C0000006", "MSH", "NOCODE", "N"), ("C0000007", "SNOMEDCT_US", "12", "N"), ("C0000008", "SNOMEDCT_VET", "13", "N"),
    ("C0000001", "SNOMEDCT_US", "12", "N"), ("C0000001", "SNOMEDCT_US", "11", "N"),
    ("C0000001", "RXNORM", " 7\t8 ", "N"), ("C0000009", "MTH", "NOCODE", "N"), ("C0000009", "RXNORM", " ", "N"),
]  # fmt: skip


def release(folder, rows=ROWS):
    """A release whose MRCONSO has these sources and codes."""
    mrconso = [conso(c, "x", sab=sab, suppress=s).replace("|PT|X|", f"|PT|{code}|") for c, sab, code, s in rows]
    return write(folder / "release", mrconso, [], [])


def codes_by_splitting(umls, sources):
    """What read_codes gives, from the lines of the file."""
    rows = [line.split("|") for line in (umls / "MRCONSO.RRF").read_text().splitlines()]
    kept = [(r[11], " ".join(r[13].split()), r[0]) for r in rows if r[11] in sources and r[16] == "N"]
    return sorted({x for x in kept if x[1] and x[1] != "NOCODE"})


@pytest.mark.parametrize("sources", [["SNOMEDCT_US"], ["SNOMEDCT_VET", "MSH"], ["RXNORM", "OMIM", "SNOMEDCT_US"]])
def test_codes_of_sources(tmp_path, sources):
    """Names of sources are compared in full: eight bytes do not tell SNOMEDCT_US from SNOMEDCT_VET."""
    umls = release(tmp_path)
    assert read_codes(umls, sources) == codes_by_splitting(umls, sources)
    of_concepts = codes_of_concepts(umls, sources)
    pairs = [
        (s, code, cui) for cui, by_source in of_concepts.items() for s, codes in by_source.items() for code in codes
    ]
    assert sorted(pairs) == read_codes(umls, sources)


def test_codes_of_a_concept(tmp_path):
    found = codes_of_concepts(release(tmp_path), ["SNOMEDCT_US", "RXNORM"])
    assert found == {"C0000001": {"RXNORM": ["7 8"], "SNOMEDCT_US": ["11", "12"]}, "C0000007": {"SNOMEDCT_US": ["12"]}}


@pytest.mark.parametrize("sources, message", [
    (["SNOMEDCT"], "no row of the source SNOMEDCT; did you mean SNOMEDCT_US or SNOMEDCT_VET?"),
    (["MSH", "snomedct_us"], "no row of the source snomedct_us; did you mean SNOMEDCT_US or SNOMEDCT_VET?"),
    (["RXNROM"], "no row of the source RXNROM; did you mean RXNORM?"),
    (["ICD10CM"], "no row of the source ICD10CM; it has MSH MSHFRE MTH OMIM RXNORM SNOMEDCT_US SNOMEDCT_VET"),
    (["MTH"], "no code of the sources MTH; take the full release, or a subset of MetamorphoSys with these sources"),
])  # fmt: skip
def test_sources_that_are_not_there(tmp_path, sources, message):
    with pytest.raises(UserError) as e:
        read_codes(release(tmp_path), sources)
    assert str(e.value).endswith(f"MRCONSO.RRF has {message}")
