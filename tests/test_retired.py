"""Retired CUIs: the rule by enumeration, and files that break it."""

import itertools

import numpy as np
import pytest

import configs
from beyond.gold import read_tasks
from beyond.link import Link
from beyond.ranking import linking_record, print_linking
from configs import UserError
from support.cache import describe_source
from support.retired import ALIVE, LOOP, NOT_SYNONYMOUS, OUTCOMES, SEVERAL, follow_all, follow_cuis, follow_ids
from support.rrf import prefix8
from tests.small_releases import BASE, TYPES, conso, read_dictionary, rel, write

# Every row of MRCUI over three CUIs; RB, RN and RO count alike, and test_rows_of_a_file has them all.
ROWS = [(a, r, b) for a in range(3) for r in ("SY", "RB", "RO") for b in range(3)]
ROWS += [(a, r, -1) for a in range(3) for r in ("DEL", "SUBX")]
TABLES = [rows for n in range(4) for rows in itertools.combinations(ROWS, n)]


def search(rows, alive, cui, path=(), synonymous=True):
    """Where a CUI leads, (None or the CUI, outcome): the rule, read aloud."""
    if cui in alive:
        return cui, "not synonymous" if not synonymous else "merged" if path else "alive"
    if cui in path:
        return None, "loop"
    mine = [(r, b) for a, r, b in rows if a == cui]
    merged = {b for r, b in mine if r == "SY"}
    targets = merged or {b for r, b in mine if r in ("RB", "RN", "RO")}
    if len(targets) > 1:
        return None, "several"
    for target in targets:
        return search(rows, alive, target, (*path, cui), synonymous and bool(merged))
    kinds = {r for r, _ in mine}
    return None, "deleted" if "DEL" in kinds else "not in this subset" if "SUBX" in kinds else "unknown"


def columns(rows):
    cui1, rel, cui2 = zip(*rows) if rows else ((), (), ())
    return np.array(cui1, np.int64), np.array([prefix8(r) for r in rel], np.uint64), np.array(cui2, np.int64)


def test_every_small_table():
    """All sets of up to three rows over three CUIs, all sets of live CUIs, four CUIs asked for: 192,576 cases.

    All are followed at once: case k has the CUIs 4 k to 4 k + 3.
    """
    cases = list(itertools.product(TABLES, itertools.product((False, True), repeat=3)))
    alive = np.array([(*live, False) for _, live in cases]).ravel()
    assert len(alive) == 192_576
    rows = [(4 * k + a, r, b if b < 0 else 4 * k + b) for k, (table, _) in enumerate(cases) for a, r, b in table]
    table = columns(rows)
    target, outcome = follow_all(*table, alive)
    has_concept = outcome <= NOT_SYNONYMOUS
    assert alive[target[has_concept]].all() and (target[alive] == np.flatnonzero(alive)).all()
    assert ((outcome == ALIVE) == alive).all()
    for other in (slice(None, None, -1), np.random.default_rng(1).permutation(len(rows)), [*range(len(rows))] * 2):
        again = follow_all(*(x[other] for x in table), alive)
        assert (again[0][has_concept] == target[has_concept]).all() and (again[1] == outcome).all()
    twice = target[target[has_concept]], outcome[target[has_concept]]
    assert (twice[0] == target[has_concept]).all() and (twice[1] == ALIVE).all()
    found = zip(np.where(has_concept, target, -1).tolist(), outcome.tolist())
    for k, (table, live) in enumerate(cases):
        live = {c for c in range(3) if live[c]}
        for cui in range(4):
            where, what = search(table, live, cui)
            assert next(found) == (-1 if where is None else 4 * k + where, OUTCOMES.index(what)), (table, live, cui)
    assert {*outcome.tolist()} == {*range(len(OUTCOMES))}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 1000])
def test_long_chains_and_loops(n):
    """A chain of n rows ends where it ends; one row more makes it a loop; a related concept in it is remembered."""
    chain = [(i, "SY", i + 1) for i in range(n)]
    alive = np.arange(n + 1) == n
    target, outcome = follow_all(*columns(chain), alive)
    assert (target == n).all() and [OUTCOMES[x] for x in outcome] == ["merged"] * n + ["alive"]
    chain[n // 2] = (n // 2, "RN", n // 2 + 1)
    outcome = follow_all(*columns(chain), alive)[1]
    assert (outcome == NOT_SYNONYMOUS).sum() == n // 2 + 1 and outcome[n // 2] == NOT_SYNONYMOUS
    outcome = follow_all(*columns([*chain, (n, "RO", 0)]), alive & False)[1]
    assert (outcome == LOOP).all()
    outcome = follow_all(*columns([*chain, (n - 1, chain[n - 1][1], 0)]), alive)[1]
    assert (outcome[:n] == SEVERAL).all()


RETIRED = [
    "C0000011|2019AB|SY|||C0000001|Y|\n", "C0000012|2019AB|RB|||C0000002|Y|\n", "C0000013|2019AB|DEL|||||\n",
    "C0000014|2019AB|RN|||C0000001|Y|\n", "C0000014|2019AB|RO|||C0000002|Y|\n", "C0000015|2019AB|SUBX|||||\n",
    "C0000016|2019AB|SY|||C0000011|N|\n", "C0000017|2019AB|SY|||C0000018|N|\n", "C0000018|2019AB|SY|||C0000017|N|\n",
    "C0000019|2019AB|SY|||C0000019|N|\n", "C0000001|2019AB|SY|||C0000002|Y|\n", "C0000020|2019AB|RO|||C0000012|N|\n",
    "C0000021|2019AB|XR|||C0000001|N|\n", "C0000022|2019AB|SY|||C0000001|Y|\n", "C0000022|2019AB|SY|||C0000001|Y|\n",
    "C0000022|2019AB|RO|||C0000002|Y|\n", "C0000023|2019AB|SY|||||\n", "C0000023|2019AB|RN|||C0000003|Y|\n",
    "C0000024|2019AB|SY|||C0000099|N|\n", "CL000001|2019AB|SY|||C0000001|Y|\n", "C0000025|2019AB|RN|||CL12345|Y|\n",
]  # fmt: skip
WANT = {
    "C0000001": ("C0000001", "alive"), "C0000011": ("C0000001", "merged"), "C0000012": ("C0000002", "not synonymous"),
    "C0000013": (None, "deleted"), "C0000014": (None, "several"), "C0000015": (None, "not in this subset"),
    "C0000016": ("C0000001", "merged"), "C0000017": (None, "loop"), "C0000019": (None, "loop"),
    "C0000020": ("C0000002", "not synonymous"), "C0000021": (None, "unknown"), "C0000022": ("C0000001", "merged"),
    "C0000023": ("C0000003", "not synonymous"), "C0000024": (None, "unknown"), "C0000025": (None, "unknown"),
    "C9999999": (None, "unknown"), "C0000000": (None, "unknown"),
}  # fmt: skip


def release(folder, retired, mrconso=BASE):
    folder = write(folder / "release", mrconso, [rel("C0000001", "RO", "C0000002")], TYPES)
    if retired is not None:
        (folder / "MRCUI.RRF").write_bytes(retired if isinstance(retired, bytes) else "".join(retired).encode())
    return folder


@pytest.mark.parametrize("change", [lambda rows: rows, lambda rows: rows[::-1], lambda rows: [*rows, *rows],
    lambda rows: [row.replace("\n", "\r\n") for row in rows]])  # fmt: skip
def test_rows_of_a_file(tmp_path, change):
    assert follow_cuis(release(tmp_path, change(RETIRED)), [*WANT]) == WANT


def test_a_concept_is_alive_with_suppressed_names_too(tmp_path):
    folder = release(tmp_path, RETIRED, [conso("C0000011", "x", suppress="O"), *BASE])
    assert follow_cuis(folder, ["C0000011"]) == {"C0000011": ("C0000011", "alive")}


def test_a_release_without_mrcui(tmp_path, capsys):
    assert follow_cuis("none", []) == {}
    found = follow_cuis(release(tmp_path, None), ["C0000001", "C0000011"])
    assert capsys.readouterr().err == f"{tmp_path}/release has no MRCUI.RRF, so retired CUIs are unknown\n"
    assert found == {"C0000001": ("C0000001", "alive"), "C0000011": (None, "unknown")}


@pytest.mark.parametrize("row, place", [
    (b"c0000011|2019AB|SY|||C0000001|Y|", "row 2, column CUI1: 'c0000011' is not C and 7 digits"),
    (b"C0000011|2019AB|SY|||c0000001|Y|", "row 2, column CUI2: 'c0000001' is not C and 7 digits"),
    (b"C11|2019AB|SY|||C0000001|Y|", "row 2, column CUI1: 'C11'"), (b"|2019AB|SY|||C0000001|Y|", "column CUI1: ''"),
    (b"C0000011|2019AB|SY|||C00000011|Y|", "row 2, column CUI2: 'C00000011'"),
    (b"C0000011|2019AB|SY|||C000001 |Y|", "row 2, column CUI2: 'C000001 '"),
    (b"C0000011|2019AB|DEL|||None||", "row 2, column CUI2: 'None'"),
    (b"C0000011|2019AB|SY|||C0000001|Y", "row 2: 6 columns instead of 7"),
    (b"C0000011|2019AB|SY|||C0000001|Y||", "row 2: 8 columns instead of 7"),
    (b"C0000011|SY|C0000001|", "row 2: 3 columns instead of 7"), (b"C0000011\tSY\tC0000001", "row 2: 0 columns"),
    (b"C0000011|2019AB|SY|||C0000001|Y|x", "row 2: text after the last column"),
    (b"C0000011|\xff|SY|||C0000001|Y|", "row 2, column VER: byte 0xff is not UTF-8"),
])  # fmt: skip
def test_rows_that_are_malformed(tmp_path, row, place):
    folder = release(tmp_path, RETIRED[0].encode() + row + b"\n")
    with pytest.raises(UserError) as e:
        follow_cuis(folder, ["C0000011"])
    assert f"{folder}/MRCUI.RRF, {place}"[:40] in str(e.value) and place in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("content, message", [
    (b"", "there is no row in it"), (b"\n\n", "there is no row in it"), (b"\xff\xfeC\x00", "UTF-16"),
    (RETIRED[0].encode()[:-9], "columns instead of 7, and the file ends in the middle of it"),
])  # fmt: skip
def test_files_that_are_no_mrcui(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        follow_cuis(release(tmp_path, content), ["C0000011"])


def test_ids_that_lead_to_retired_cuis(tmp_path):
    """Only those that are used are followed. Ids of other sources, and CUIs without a concept, stay as they are."""
    ids = {"D1": ["C0000011", "C0000012"], "D2": ["C0000013"], "D3": ["C0000015"], "D4": ["X"], "c0000011": ["C1"]}
    used = {"D1", "D2", "D4", "D9", "C0000012", "C0000001", "c0000011", "C00000111"}
    every, synonyms, outcomes = follow_ids(release(tmp_path, RETIRED), ids, used)
    same = {"D2": ["C0000013"], "D4": ["X"], "D9": ["D9"], "C0000001": ["C0000001"], "c0000011": ["C1"],
        "C00000111": ["C00000111"]}  # fmt: skip
    assert every == same | {"D1": ["C0000001", "C0000002"], "C0000012": ["C0000002"]}
    assert synonyms == same | {"D1": ["C0000001", "C0000012"], "C0000012": ["C0000012"]}
    assert outcomes == {"alive": 1, "merged": 1, "not synonymous": 1, "deleted": 1}


def test_mrcui_is_no_part_of_the_tables(tmp_path):
    """Those of a data set stay valid when it comes, or changes."""
    folder, semgroups = release(tmp_path, None), tmp_path / "SemGroups.txt"
    before = describe_source(folder, configs.Data(), semgroups)
    (folder / "MRCUI.RRF").write_text("".join(RETIRED))
    assert describe_source(folder, configs.Data(), semgroups) == before


# ---------------------------------------------------------------- in linking


def linked(folder, **settings):
    """The LinkingTask of a corpus whose concepts were alive, merged, mapped, deleted ...; by exact match."""
    text = "Hepatitis and ataxia, liver disease of the liver; flu.\n"
    gold = {"Hepatitis": "C0000016", "ataxia": "C0000013", "liver disease": "C0000012", "liver;": "C0000003|C0000012",
        "flu": "C0000011+C0000020"}  # fmt: skip
    places = [(text.index(words), text.index(words) + len(words), words, ids) for words, ids in gold.items()]
    lines = [f"1\t{start}\t{end}\t{words}\tDisease\t{ids}\n" for start, end, words, ids in places]
    for split in ("train", "test"):
        (folder / f"{split}.txt").write_text(f"1|t|{text.strip()}\n1|a|\n" + "".join(lines))
    names = "C0000001\thepatitis\nC0000002\tliver disease\nC0000003\tliver\n"
    (folder / "names.tsv").write_text(names)
    return read_tasks(Link("", corpus=str(folder), **settings), [read_dictionary(folder / "names.tsv")])[0]


def test_retired_cuis_of_a_gold_standard(tmp_path, capsys):
    """A mapped concept counts only where no other is found, and is a miss in scores of their own."""
    folder = str(release(tmp_path, RETIRED))
    task = linked(tmp_path, umls=folder)
    assert [parts and [x.tolist() for x in parts] for parts in task.gold] == [[[0]], None, [[1]], [[2]], [[0], [1]]]
    assert task.not_synonymous.tolist() == [False, False, True, False, True]
    assert task.retired == {"alive": 1, "merged": 2, "not synonymous": 2, "deleted": 1}
    ranks = {"first": np.array([1.0, np.inf, 1, 1, 2])}
    record = linking_record(task, ranks) | {"settings": {"corpus": "x", "split": "test", "umls": "2022AB"}}
    at_1 = {name: scores["methods"]["first"].get("at_1") for name, scores in record["scores"].items()}
    assert at_1 == {"all": 60, "reachable": 75, "unseen": None, "unseen_reachable": None, "synonymous": 40}
    print_linking(record)
    out = capsys.readouterr().out
    assert "\n  CUIs in 2022AB: 1 alive, 2 merged, 2 not synonymous, 1 deleted\n" in out
    assert "\n  all, broader or related concepts not found (5) " in out
    names = linked(tmp_path, umls=folder, train_mentions=True).dictionary.names
    assert {*names} - {*task.dictionary.names} == {"Hepatitis", "liver;"}


def test_retired_cuis_are_followed_only_if_asked_for(tmp_path):
    task = linked(tmp_path)
    assert [bool(parts) for parts in task.gold] == [False, False, False, True, False]
    record = linking_record(task, {"first": np.ones(5)})
    assert record["retired"] == {} and "synonymous" not in record["scores"]
    (tmp_path / "ids.tsv").write_text("C0000016\tC0000011|C0000014\nC0000013\tC0000012\n")
    task = linked(tmp_path, umls=str(release(tmp_path, RETIRED)), ids=str(tmp_path / "ids.tsv"))
    assert [parts and [x.tolist() for x in parts] for parts in task.gold[:2]] == [[[0]], [[1]]]
    assert task.retired == {"alive": 1, "merged": 1, "not synonymous": 2, "several": 1}
