"""Finer relations: the names that a release gives them, their inverses, negatives, data sets and checkpoints."""

import json
import random
import re
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

import configs
import data
import kgi
import model as models
from beyond import export
from configs import UserError
from data import CORRUPTED_ENTITIES, CORRUPTED_RELATION, EP, LP, RELATIONS, TASKS, TC, TRUE
from support import checkpoints, datasets, relations, tokenizers
from support.cache import load_tables, read_release
from support.relations import INVERSE, RELS
from tests.conftest import FEW, build, graph_of, run_command
from tests.small_releases import DISO, conso, rel, rewrite, triples, types, write
from tests.training import same_weights, settings, train

INVERSE_REL = {"PAR": "CHD", "CHD": "PAR", "AQ": "QB", "QB": "AQ", "RB": "RN", "RN": "RB", "RO": "RO", "SY": "SY"}
CUIS = [f"C{i:07d}" for i in range(1, 41)]
NAMES = [conso(cui, f"name {cui}") for cui in CUIS]
KEPT = types(*((cui, DISO) for cui in CUIS))


def both(r, name, back, pairs):
    """Rows of (h, r:name, t) and of their inverses, for pairs (h, t) of numbers."""
    rows = [rel(CUIS[t], r, CUIS[h], rela=name) for h, t in pairs]
    return rows + [rel(CUIS[h], INVERSE_REL.get(r, r), CUIS[t], rela=back) for h, t in pairs]


def pairs(n, step):
    return [(i, (i + step) % 40) for i in range(n)]


ROWS = [
    *both("PAR", "inverse_isa", "isa", pairs(40, 1)),  # one name and never empty: only renamed, so not refined
    *both("RB", "", "", pairs(30, 2)), *both("RB", "has_part", "part_of", pairs(20, 3)),
    *both("RB", "inverse_isa", "isa", pairs(6, 4)),  # a name that stands under two RELs
    *both("RO", "associated_with", "associated_with", pairs(25, 5)),  # symmetric
    # Of equals, the inverse is not the kind itself.
    *[row for there in ("tie", "aim") for back in ("tie", "aim") for row in both("RO", there, back, pairs(9, 6))],
    *[rel(CUIS[t], "RO", CUIS[h], rela="one_way") for h, t in pairs(23, 7)],  # no inverse
    *both("RO", "treats", "treated_by", pairs(8, 8)), *both("RO", "rare", "rare_of", pairs(1, 9)),
    *both("RO", "adjacent_to", "adjacent_to", pairs(2, 15)),  # it does not take the place of a pair that does not fit
    *both("AQ", "", "", pairs(12, 10)), *both("SIB", "sib_in_isa", "sib_in_isa", pairs(39, 11)),
    *[rel(CUIS[t], "RO", CUIS[h], suppress="O", rela="old") for h, t in pairs(30, 12)],
    *[rel(cui, "SY", cui, rela="same_as") for cui in CUIS],
]  # fmt: skip
ORDER = [
    "RO:associated_with", "RB:has_part", "RN:part_of", "RO:aim", "RO:tie", "RO:treated_by", "RO:treats",
    "RB:inverse_isa", "RN:isa", "RO:adjacent_to", "RO:rare", "RO:rare_of",
]  # fmt: skip


def read(folder, n_rela=32, langs=("en",), **more):
    """(graphs, lines of the log) of a release with finer relations."""
    lines, s = [], configs.Data(relations="rela", n_rela=n_rela, **{"semantic_types": ["DISO", "ANAT"]} | more)
    found = read_release(folder, [*langs], s, folder / "tables", lines.append)
    return [data.Graph(**vars(tables)) for tables in found.tables], lines


@pytest.fixture(scope="module")
def sorts(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sorts") / "release", NAMES, ROWS, KEPT)


# ---------------------------------------------------------------- the vocabulary


@pytest.mark.parametrize(
    "n, chosen", [(0, 0), (1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (7, 7), (8, 7), (12, 12), (99, 12)]
)
def test_the_most_frequent_kinds_with_their_inverses(sorts, n, chosen):
    """The first pair that does not fit is the end, and kinds without an inverse have the relation of their REL."""
    (g,), lines = read(sorts, n)
    assert g.relations == (*RELS, *ORDER[:chosen], "SY")
    assert [g.relations[i] for i in g.inverse[:7]] == [INVERSE_REL[r] for r in RELS] and g.inverse[-1] == g.synonymy
    assert (g.inverse[g.inverse] == range(len(g.relations))).all()
    named = {x: g.relations[g.inverse[g.relations.index(x)]] for x in ORDER[:chosen]}
    wanted = {"RB:has_part": "RN:part_of", "RO:associated_with": "RO:associated_with", "RO:tie": "RO:aim"}
    assert all(named[a] == b for a, b in wanted.items() if a in named)
    assert [g.relations[i] for i in g.rel] == [x.split(":")[0] for x in g.relations]
    kinds = Counter(g.relations[r] for r in g.r)
    assert kinds["PAR"] == kinds["CHD"] == 40 and kinds["AQ"] == kinds["QB"] == 12 and not kinds["SIB"]
    assert kinds["RB"] == 30 + 20 * (chosen < 3) + 6 * (chosen < 9)
    assert f"MRREL: {chosen} finer relations" in "".join(lines)


def brute_force(rows, n):
    """The names of the relations and their inverses, by plain loops over rows that are all kept."""
    found = {(f[4], f[3], f[7], f[0]) for f in (row.split("|") for row in rows) if f[3] in RELS and f[14] == "N"}
    found = {x for x in found if x[0] != x[3]}
    count = Counter((r, name) for _, r, name, _ in found)
    refined = {r for r in RELS if len([k for k in count if k[0] == r]) > 1}
    best = {}
    for kind in (k for k in count if k[1] and k[0] in refined):
        votes = Counter()
        for h, r, name, t in found:
            if (r, name) == kind:
                votes.update(k for k in count if (t, *k, h) in found)
        votes = {k: x for k, x in votes.items() if k[0] == INVERSE_REL[kind[0]] and k[1] and k[0] in refined}
        if votes:
            most = max(votes.values())
            best[kind] = min((k == kind, ":".join(k), k) for k, x in votes.items() if x == most)[2]
    mutual = {a: b for a, b in best.items() if best.get(b) == a}
    pairs = sorted({tuple(sorted({":".join(a), ":".join(b)})) for a, b in mutual.items()})
    pairs.sort(key=lambda pair: -max(count[tuple(x.split(":", 1))] for x in pair))
    chosen = []
    for pair in pairs:
        if len(chosen) + len(pair) > n:
            break
        chosen += pair
    inverse = {":".join(a): ":".join(b) for a, b in mutual.items()} | INVERSE_REL
    names = (*RELS, *chosen, "SY")
    return names, tuple(names.index(inverse[x]) for x in names)


def random_rows(seed):
    """Rows of random kinds; most, not all, with an inverse."""
    rng, rows = random.Random(seed), []
    for kind in range(14):
        r = rng.choice(["PAR", "RB", "RO", "RO", "RO", "AQ"])
        there, back = (
            rng.choice(["", f"r{kind}", f"R{kind}:x", "same"]),
            rng.choice([f"b{kind}", f"r{kind}", "", "same"]),
        )
        for _ in range(rng.randrange(1, 9)):
            h, t = rng.sample(CUIS[:12], 2)
            rows += [rel(t, r, h, rng.choice("NNNO"), there)] + [rel(h, INVERSE_REL[r], t, rela=back)] * (
                rng.random() < 0.9
            )
    return rows + [rel(CUIS[0], "PAR", CUIS[1])]


@pytest.mark.parametrize("seed", range(12))
def test_the_vocabulary_against_plain_loops(tmp_path, seed):
    n, rows = random.Random(seed).randrange(2, 14), random_rows(seed)
    names, inverse = brute_force(rows, n)
    folder = write(tmp_path, NAMES, rows, KEPT)
    if names == (*RELS, "SY"):
        with pytest.raises(UserError, match="no relation with a finer name"):
            read(folder, n)
        return
    (g,), _ = read(folder, n)
    assert (g.relations, tuple(g.inverse)) == (names, inverse)
    wanted = set()
    for f in (row.split("|") for row in rows):
        name = f"{f[3]}:{f[7]}" if f"{f[3]}:{f[7]}" in names else f[3]
        wanted |= {(f[4], name, f[0])} if f[14] == "N" and f[4] != f[0] else set()
    assert triples(g) == wanted


def test_counts_are_of_the_release_not_of_a_language(tmp_path):
    """All languages have the same relations; concepts of no kept type count in none."""
    french = [conso(cui, f"nom {cui}", lat="FRE") for cui in CUIS[:9]]
    off = [rel(f"C10000{i:02d}", "RO", f"C10000{i + 1:02d}", rela="off") for i in range(50)]
    off += [rel(f"C10000{i + 1:02d}", "RO", f"C10000{i:02d}", rela="off") for i in range(50)]
    (en, fr), _ = read(write(tmp_path, NAMES + french, ROWS + off, KEPT), langs=("en", "fr"))
    assert en.relations == fr.relations == (*RELS, *ORDER, "SY") and 0 < len(fr.keys) < len(en.keys)


def test_counts_are_of_the_selected_sources(tmp_path):
    """Rows of other sources count in no kind, and have no triples."""
    other = [row.replace("|SYN|", "|OTHER|") for row in both("RO", "most", "most_of", pairs(35, 16))]
    folder = write(tmp_path, [*NAMES, conso(CUIS[0], "another", sab="OTHER")], ROWS + other, KEPT)
    assert {"RO:most", "RO:most_of"} < {*read(folder, 5)[0][0].relations}
    (g,), _ = read(folder, 5, exclude_sources=["OTHER"])
    assert g.relations == (*RELS, *ORDER[:5], "SY") and not any("most" in name for _, name, _ in triples(g))


def test_a_sample_of_the_triples_gives_the_same_inverses(sorts, monkeypatch):
    (whole,), _ = read(sorts)
    monkeypatch.setattr(relations, "N_VOTES", 3)
    shutil.rmtree(sorts / "tables", ignore_errors=True)
    (sampled,), _ = read(sorts)
    assert (sampled.relations, [*sampled.inverse]) == (whole.relations, [*whole.inverse])


MRDOC = [
    "RELA|has_part|rela_inverse|part_of|\n", "RELA|part_of|rela_inverse|whole_of|\n", "RELA|tie|expanded_form|Tie|\n",
    "RELA||rela_inverse||\n", "REL|PAR|rel_inverse|CHD|\n", "RELA|never_used|rela_inverse|x|\n",
]  # fmt: skip


def test_mrdoc_is_compared_and_the_rows_count(tmp_path):
    folder = write(tmp_path, NAMES, ROWS, KEPT)
    (folder / "MRDOC.RRF").write_text("".join(MRDOC))
    (g,), lines = read(folder)
    (line,) = (x for x in lines if x.startswith("MRDOC"))
    assert line.startswith("MRDOC: the same inverse for 1 of the 12 finer relations, another for RN:part_of")
    assert "(there whole_of, in the rows has_part)" in line
    assert g.relations[g.inverse[g.relations.index("RN:part_of")]] == "RB:has_part"


@pytest.mark.parametrize("change, n, message", [
    (lambda rows: [re.sub(r"\|CUI\|[a-z_]+\|R1", "|CUI||R1", row) for row in rows], 32, "no relation with a finer"),
    (lambda rows: [row for row in rows if "part" not in row], 0, ""), (lambda rows: rows[:80], 32, "no relation with"),
    (lambda rows: [row for row in rows if "has_part" in row], 32, "no relation with a finer"),
    (lambda rows: [row for row in rows if "|RB|" in row or "|RN|" in row], 1, "not fit into n_rela = 1; give"),
    (lambda rows: [*rows, "C0000001|x\n"], 32, "MRREL.RRF, row [0-9]+: 1 columns instead of 16"),
    (lambda rows: [*rows, rel("C1", "RO", "C0000001", rela="x")], 32, "column CUI1: 'C1' is not C and 7 digits"),
    (lambda rows: [*rows, rel("C0000001", "RO", "C0000002", rela=" ")], 99, ""),
    (lambda rows: [*rows, *both("RO", "a:b] [SEP]", "é\x01\t", pairs(9, 13))], 99, ""),
    (lambda rows: [*rows, *both("RO", "x" * 70_000, "y" * 70_000, pairs(9, 13))], 99, ""),
    (lambda rows: [*rows, *both("RO", "Treats", "Treated_By", pairs(9, 14))], 99, ""),
    (lambda rows: [f"{rows[0][:-1]}|\n"] * 3, 32, "17 columns instead of 16"),
])  # fmt: skip
def test_releases_of_all_kinds(tmp_path, change, n, message):
    """Each is read, or refused by one line."""
    folder = write(tmp_path, NAMES, change(ROWS), KEPT)
    if message:
        with pytest.raises(UserError, match=message) as error:
            read(folder, n)
        assert "\n" not in str(error.value)
    else:
        (g,), _ = read(folder, n)
        assert len({*g.relations}) == len(g.relations) and (g.inverse[g.inverse] == range(len(g.relations))).all()


def test_too_many_kinds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(relations, "MAX_KINDS", 8)
    with pytest.raises(UserError, match="more than 8 pairs of REL and RELA; leave out --relations rela"):
        read(write(tmp_path, NAMES, ROWS, KEPT))


def test_malformed_rows_of_mrdoc(tmp_path):
    folder = write(tmp_path, NAMES, ROWS, KEPT)
    (folder / "MRDOC.RRF").write_text(MRDOC[0] + "RELA|has_part|rela_inverse\n")
    with pytest.raises(UserError, match="MRDOC.RRF, row 2: 2 columns instead of 4"):
        read(folder)
    (g,), _ = read(folder, skip_bad_rows=True)
    assert g.relations == (*RELS, *ORDER, "SY")


def test_a_malformed_row_of_mrrel_is_shown_once(tmp_path, capsys):
    folder = write(tmp_path, NAMES, ROWS, KEPT)
    with open(folder / "MRREL.RRF", "a") as f:
        f.write("C0000001|too short|\n")
    (g,), _ = read(folder, skip_bad_rows=True)
    assert g.relations == (*RELS, *ORDER, "SY")
    assert capsys.readouterr().err.count(f"MRREL.RRF, row {len(ROWS) + 1}:") == 1


# ---------------------------------------------------------------- negatives


def rela_graph(seed, density=0.02):
    """A graph of one group and of two, whose pairs often have several relations of one REL; and what is true by REL."""
    names = (*RELS, "PAR:a", "CHD:b", "RO:both", "RB:has_part", "RN:part_of", "SY")
    inverse = tuple(names.index({"PAR:a": "CHD:b", "CHD:b": "PAR:a", "RO:both": "RO:both", "RB:has_part": "RN:part_of",
                                 "RN:part_of": "RB:has_part"}.get(x) or INVERSE_REL[x]) for x in names)  # fmt: skip
    rng = np.random.default_rng(seed)
    h, r, t = np.nonzero(rng.random((40, len(names), 40)) < density)
    keep = h != t
    h, r, t = h[keep], r[keep], t[keep]
    truth = {(a, names[k].split(":")[0], b) for a, k, b in zip(h.tolist(), r.tolist(), t.tolist())}
    truth |= {(b, INVERSE_REL[k], a) for a, k, b in truth}
    strings = [f"{c}.{k}" for c in range(40) for k in range(2)]
    keys = np.sort(relations.triple_key(h, r, t))
    first, cui, group = np.arange(0, 82, 2), np.sort(rng.choice(10**6, 40, replace=False)), rng.integers(0, 2, 40)
    tables = "en", cui, group.astype(np.int8), ["A", "B"], first, pa.array(strings), keys
    return data.Graph(*tables, relations=names, inverse=inverse), truth


def false_triples(graph, seed):
    s = configs.Data(valid_fraction=0.3, seed=seed)
    triples = data.SplitTriples(graph, "train", s)
    found = TASKS[TC].sample(np.random.default_rng(seed), graph, triples, 400, s)
    by_kind = {}
    for kind in (TRUE, CORRUPTED_ENTITIES, CORRUPTED_RELATION):
        chosen = data.Sample(*(x[found.kind == kind] for x in found)).triples()
        by_kind[kind] = [(h, graph.relations[r], t) for h, r, t in zip(*(x.tolist() for x in chosen))]
    return by_kind


@pytest.mark.parametrize("seed", range(6))
def test_no_negative_is_true_by_any_name_of_its_rel(seed):
    """By enumeration, in both directions; every kind of negative comes up, with finer relations among them."""
    graph, truth = rela_graph(seed)
    found = false_triples(graph, seed)
    for kind in (CORRUPTED_ENTITIES, CORRUPTED_RELATION):
        assert len(found[kind]) > 30 and any(":" in r for _, r, _ in found[kind])
        assert not [x for x in found[kind] if (x[0], x[1].split(":")[0], x[2]) in truth]
    assert all((h, r.split(":")[0], t) in truth for h, r, t in found[TRUE])


def test_a_check_of_names_alone_would_make_true_negatives():
    """The enumeration above can fail: without the RELs it does, for each kind of negative."""
    n_true = Counter()
    for seed in range(6):
        graph, truth = rela_graph(seed)
        graph.rel, graph.rel_keys = np.arange(len(graph.relations)), graph.keys
        for kind, found in false_triples(graph, seed).items():
            n_true[kind] += sum((h, r.split(":")[0], t) in truth for h, r, t in found)
    assert n_true[CORRUPTED_ENTITIES] > 0 and n_true[CORRUPTED_RELATION] > 0


def test_contains_is_about_rels():
    graph, truth = rela_graph(1)
    h, r, t = (x.ravel() for x in np.indices((40, len(graph.relations), 40)))
    rel_names = [name.split(":")[0] for name in graph.relations]
    wanted = [(a, rel_names[k], b) in truth for a, k, b in zip(h.tolist(), r.tolist(), t.tolist())]
    assert graph.contains(h, r, t).tolist() == wanted


def test_a_new_relation_is_of_another_rel():
    graph, _ = rela_graph(2)
    i = np.arange(len(graph.h))
    _, r, _ = data.corrupt_relation(np.random.default_rng(0), i, graph, graph.counts.sum(axis=0) + 1e-9)
    assert (graph.rel[r] != graph.rel[graph.r[i]]).all() and len({*r.tolist()}) == len(graph.relations)


def test_the_seven_need_no_copy_of_their_keys(release):
    g = graph_of(release)
    assert g.rel_keys is g.keys and g.relations == RELATIONS and tuple(g.inverse) == INVERSE and g.synonymy == 6


# ---------------------------------------------------------------- data sets


FINER = [("has_part", "part_of"), ("inverse_isa", "isa"), ("", ""), ("has_form", "form_of")]  # of PAR and of CHD


def with_rela(path, content):
    """MRREL with finer names: of PAR and CHD by the sum of the pair, and of RO beside them."""
    if not path.name.startswith("MRREL"):
        return
    rows = []
    for row in content.decode().splitlines():
        f = row.split("|")
        if f[3] in ("PAR", "CHD") and f[0] and f[4]:
            kind, is_first = (int(f[0][1:]) + int(f[4][1:])) % 4, f[3] == "PAR"
            f[7] = FINER[kind][not is_first]
            if kind == 0:
                rows.append("|".join([*f[:3], "RO", *f[4:7], ("treats", "treated_by")[is_first], *f[8:]]))
        rows.append("|".join(f))
    path.write_bytes("".join(row + "\n" for row in rows).encode())


@pytest.fixture(scope="module")
def named_release(release, tmp_path_factory):
    return rewrite(tmp_path_factory.mktemp("named"), release, with_rela)


@pytest.fixture(scope="module")
def named(release, named_release, tmp_path_factory):
    """A data set of finer relations, and one of the seven beside it."""
    place, e3c = tmp_path_factory.mktemp("datasets"), str(release / "E3C")
    build(named_release, place / "seven", e3c=e3c)
    return build(named_release, place / "en", relations="rela", e3c=e3c)


def test_a_data_set_of_finer_relations(named, capsys):
    """Names and ids, labels of link prediction, true and false triples against the rows of MRREL, and `show`."""
    names = datasets.relation_names(named)
    assert names[:7] == [*RELS] and names[-1] == "SY" and {"PAR:has_part", "PAR:inverse_isa", "RO:treats"} < {*names}
    manifest = datasets.read_manifest(named)
    assert manifest["settings"]["relations"] == "rela" and manifest["settings"]["n_rela"] == 32
    assert {*manifest["counts"]["en"]["distribution"]["relations"]} <= {*names}
    examples = data.PretrainingDataset(named, "train")
    seen = {task: Counter() for task in data.GRAPH_TASKS}
    for i in np.flatnonzero(examples.task != data.MLM).tolist():
        relation = examples.relation_of_token[examples.ids[examples.offsets[i] : examples.offsets[i + 1]]]
        seen[examples.task[i]].update(relation[relation >= 0].tolist())
    assert max(seen[LP]) == len(names) - 2 and max(seen[EP]) == len(names) - 1 and {8, 9} < {*seen[LP]}
    rows = np.flatnonzero(examples.task == LP)
    batch = examples.masked_batch(rows, np.zeros(len(rows), np.int64), 0, 0.15)
    labels = Counter(batch.labels[batch.labels >= 0].tolist())
    assert labels == seen[LP] and (batch.ids[batch.labels >= 0] == examples.special["hrel"]).all()
    run_command(data, "show", named)
    assert "PAR:has_part" in capsys.readouterr().out


def test_stored_negatives_against_the_rows(named, named_release):
    """At the REL level, in both directions, whatever the language."""
    truth, exact = set(), set()
    for line in (named_release / "META" / "MRREL.RRF").read_text().splitlines():
        f = line.split("|")
        if f[3] in INVERSE_REL and f[14] == "N":
            truth |= {(f[4], f[3], f[0]), (f[0], INVERSE_REL[f[3]], f[4])}
            exact |= {(f[4], f[3], f[0]), (f[4], f"{f[3]}:{f[7]}", f[0])}
    names, n = datasets.relation_names(named), Counter()
    for split in data.SPLITS:
        examples = data.PretrainingDataset(named, split)
        for i in np.flatnonzero(examples.task == TC).tolist():
            relation = examples.relation_of_token[examples.ids[examples.offsets[i] : examples.offsets[i + 1]]]
            (name,) = (names[r] for r in relation if r >= 0)
            h, t = (f"C{c:07d}" for c in examples.cuis[examples.cui_offsets[i] : examples.cui_offsets[i + 1]])
            is_true = examples.kind[i] == TRUE
            assert ((h, name.split(":")[0], t) in truth) == is_true and (not is_true or (h, name, t) in exact)
            n[bool(is_true), ":" in name] += 1
    assert len(n) == 4 and min(n.values()) > 20


def test_data_sets_of_both_kinds_keep_their_tables_apart(named, named_release, release, tmp_path, capsys):
    """And what else reads them: the graph as lines has the names of its own."""
    for folder, has_names in ((named, True), (named.parent / "seven", False)):
        tables = datasets.read_dataset_tables(folder, "en")
        assert [*tables.relations] == datasets.relation_names(folder) and (len(tables.relations) > 7) == has_names
        run_command(export, "graph", folder, "--out", tmp_path / "graph.tsv")
        run_command(export, "graph", folder, "--out", tmp_path / "graph.tsv")  # it knows its own output
        found = {line.split("\t")[1] for line in (tmp_path / "graph.tsv").read_text().splitlines()}
        assert found <= {*tables.relations} and ("PAR:has_part" in found) == has_names
    other = build(named_release, tmp_path / "a" / "en", relations="rela", e3c=str(release / "E3C"), **FEW)
    build(named_release, tmp_path / "a" / "fewer", relations="rela", n_rela=2, e3c=str(release / "E3C"), **FEW)
    with pytest.raises(UserError, match="replaced by a build with other terms or relations"):
        datasets.read_dataset_tables(other, "en")
    assert "tables of" not in capsys.readouterr().out


@pytest.mark.parametrize("key, value", [
    ("relations", 5), ("relations", ["PAR"]), ("relations", [1] * 7), ("relations", {}), ("relations", ["PAR:isa"] * 7),
    ("inverse", []), ("inverse", "x"), ("inverse", [99] * 7), ("inverse", [-1] * 7), ("inverse", [0.5] * 7),
    ("inverse", None),
])  # fmt: skip
def test_damaged_tables_are_not_used(named, tmp_path, key, value):
    shutil.copytree(named.parent / "tables" / "en", tmp_path / "en")
    assert load_tables(tmp_path / "en", "en")
    about = json.loads((tmp_path / "en" / "source.json").read_text())
    (tmp_path / "en" / "source.json").write_text(json.dumps(about | {key: value}))
    assert load_tables(tmp_path / "en", "en") is None


def test_tables_and_manifests_of_before_are_of_the_seven(named, tmp_path):
    shutil.copytree(named.parent / "tables" / "en", tmp_path / "tables" / "en")
    shutil.copytree(named.parent / "seven", tmp_path / "seven")
    path = tmp_path / "tables" / "en" / "source.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({key: x for key, x in about.items() if key not in ("relations", "inverse")}))
    path = tmp_path / "seven" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["relations"], manifest["settings"]["n_rela"]
    path.write_text(json.dumps(manifest))
    tables = datasets.read_dataset_tables(tmp_path / "seven", "en")
    assert (tables.relations, tables.inverse) == (RELATIONS, INVERSE)
    assert datasets.relation_names(tmp_path / "seven") == [*RELATIONS]


def test_the_default_folder_says_rela(named_release, release, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    build(named_release, "", relations="rela", e3c=str(release / "E3C"), **FEW)
    assert (tmp_path / "datasets" / "en-rela" / "manifest.json").exists()
    build(named_release, "datasets/en", e3c=str(release / "E3C"), **FEW)
    path = tmp_path / "datasets" / "en" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["relations"]  # as before there was a choice
    path.write_text(json.dumps(manifest, indent=1))
    build(named_release, "datasets/en", relations="rela", e3c=str(release / "E3C"), **FEW)
    assert "relations was paper, now rela" in capsys.readouterr().out


def test_n_rela_is_for_finer_relations(named_release):
    with pytest.raises(UserError, match="n_rela is for finer relations; add --relations rela"):
        run_command(data, "build", "--lang", "en", "--umls", named_release, "--e3c", "none", "--n_rela", 8)


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def runs_of(named, named_release, release, tmp_path_factory):
    """A run on the seven, and the data set of finer relations that has its tokenizer."""
    place = tmp_path_factory.mktemp("runs")
    train(named.parent / "seven", place / "seven", steps=2)
    e3c = str(release / "E3C")
    build(named_release, place / "en", relations="rela", tokenizer=str(place / "seven"), e3c=e3c)
    return place


def test_a_checkpoint_of_the_seven_is_continued(runs_of, monkeypatch, capsys):
    """Old tokens keep their ids and vectors, new ones are behind them, and the relation head is a new one."""
    start, out = runs_of / "seven", runs_of / "rela"
    old, new = tokenizers.load(start), tokenizers.load(runs_of / "en")
    names, n = datasets.relation_names(runs_of / "en"), tokenizers.vocab_size(old)
    for token in ("[PAR]", "[SY]", "[HREL]", "[MASK]", "the"):
        assert old.token_to_id(token) == new.token_to_id(token) is not None
    added = [f"[{name}]" for name in names if name not in RELATIONS]
    assert [new.token_to_id(token) for token in added] == [*range(n, n + len(added))]
    before = models.load(start)
    capsys.readouterr()
    run = kgi.set_up(settings(runs_of / "en", out, init=str(start)))
    said = capsys.readouterr().out
    assert said.count("initialised randomly") == 1 and f"{start}: its relation_head is of other relations" in said
    assert run.model.relation_head.out_features == len(names) - 1
    assert torch.equal(run.model.encoder.word.weight[:n], before.encoder.word.weight)
    assert torch.equal(run.model.triple_head.weight, before.triple_head.weight)

    train(runs_of / "en", out, init=str(start), steps=2)
    config = json.loads((out / "config.json").read_text())
    assert config["relation_classes"] == names[:-1] and config["kgi_tasks"] == [*data.TASK_NAMES]
    assert "relation_classes" not in json.loads((start / "config.json").read_text())
    capsys.readouterr()
    again = kgi.set_up(settings(runs_of / "en", runs_of / "again", init=str(out)))  # the same relations
    assert "initialised randomly" not in capsys.readouterr().out
    assert torch.equal(again.model.relation_head.weight, models.load(out).relation_head.weight)
    monkeypatch.chdir(runs_of)
    shutil.copytree(runs_of / "en", runs_of / "datasets" / "en")
    assert str(datasets.find_data("", str(start))) == str(datasets.find_data("", str(out))) == "datasets/en"


def test_a_new_head_was_not_trained(runs_of, tmp_path):
    """The tasks of a checkpoint say what its heads have learned: without lp, not link prediction."""
    train(runs_of / "en", tmp_path / "run", init=str(runs_of / "seven"), steps=1, tasks=["mlm", "tc"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["kgi_tasks"] == ["mlm", "ep", "tc"]


def test_a_run_on_finer_relations_is_resumed(runs_of, tmp_path, monkeypatch):
    """With the new head that it has trained, not with another new one."""
    more = {"init": str(runs_of / "seven"), "steps": 4, "save_every": 2}
    train(runs_of / "en", tmp_path / "whole", **more)
    update, stopped = kgi.update, tmp_path / "stopped"

    def killed(run, lr):
        if run.state.step == 3:
            raise KeyboardInterrupt
        update(run, lr)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(kgi, "update", killed)
        kgi.train(settings(runs_of / "en", stopped, **more))
    train(runs_of / "en", stopped, **more)
    assert same_weights(tmp_path / "whole", stopped)


def test_a_checkpoint_of_finer_relations_is_continued_on_others(runs_of, named_release, release, tmp_path):
    """On the paper's seven, or on fewer finer ones: the head is theirs, and all tokens keep their ids."""
    start = tmp_path / "start"
    train(runs_of / "en", start, init=str(runs_of / "seven"), steps=1)
    for n, more in ((6, {}), (9, {"relations": "rela", "n_rela": 2})):
        folder = build(named_release, tmp_path / str(n), tokenizer=str(start), e3c=str(release / "E3C"), **FEW, **more)
        train(folder, tmp_path / "run", init=str(start), steps=1)
        assert datasets.read_tokenizer(folder) == datasets.read_tokenizer(runs_of / "en")
        c = models.load_config(tmp_path / "run")
        assert len(c.relation_classes) == n and c.relation_classes == datasets.relation_names(folder)[:-1]
        assert ("relation_classes" in json.loads((tmp_path / "run" / "config.json").read_text())) == (n != 6)
        shutil.rmtree(tmp_path / "run")


HOSTILE = [
    ("a:b] [SEP]", "c[d] e"),
    ("é\x01", "Mixed"),
    ("mixed", "MIXED"),
    ("[PAR]", " [MASK] "),
    ("x" * 300, "y" * 300),
]


def test_names_of_any_letters(release, tmp_path, capsys):
    """Each name has one token, in data sets, in what is shown of them, and in runs."""

    def hostile(path, content):
        if path.name.startswith("MRREL"):
            rows = [row.split("|") for row in content.decode().splitlines()]
            for f in (f for f in rows if f[3] in ("PAR", "CHD") and f[0] and f[4]):
                f[7] = HOSTILE[(int(f[0][1:]) + int(f[4][1:])) % 5][f[3] == "CHD"]
            path.write_bytes("".join("|".join(f) + "\n" for f in rows).encode())

    folder, e3c = rewrite(tmp_path / "release", release, hostile), str(release / "E3C")
    en = build(folder, tmp_path / "en", relations="rela", e3c=e3c, **FEW)
    names = datasets.relation_names(en)
    assert {*names[7:-1]} == {f"{r}:{x[r == 'CHD']}" for x in HOSTILE for r in ("PAR", "CHD")}
    manifest = datasets.read_manifest(en)
    assert len({*manifest["special"]["relations"]}) == len(names)
    assert tokenizers.load(en).token_to_id("[PAR]") == manifest["special"]["relations"][0]
    run_command(data, "show", en)
    train(en, tmp_path / "run", steps=1)
    assert models.load_config(tmp_path / "run").relation_classes == names[:-1]
    capsys.readouterr()
    both_langs = build(folder, tmp_path / "both", lang="en,fr", relations="rela", e3c=e3c, **FEW)  # en from its tables
    assert "tables of" in capsys.readouterr().out and datasets.relation_names(both_langs) == names


def test_relations_of_other_names_but_equal_number_are_other_relations(runs_of, named, release, tmp_path, capsys):
    """A run on one set of relations does not lend its head to another."""
    model_names = datasets.relation_names(named)[:-1]
    manifest = datasets.read_manifest(named)
    c = models.Config(manifest["vocab_size"], 64, 32, 1, 2, 64, relation_classes=model_names)
    models.KGIBert(c).save(tmp_path / "model")
    tokenizers.save(datasets.read_tokenizer(named), tmp_path / "model", 64, 0)
    lines = []
    same = models.load(tmp_path / "model", log=lines.append, relation_classes=model_names)
    assert torch.equal(same.relation_head.weight, models.load(tmp_path / "model").relation_head.weight) and not lines
    for classes in ([*model_names[:-1], "RO:other"], model_names[::-1], model_names[:6]):
        other = models.load(tmp_path / "model", log=lines.append, relation_classes=classes)
        assert lines.pop().endswith("its relation_head is of other relations; initialised randomly")
        assert other.encoder.config.relation_classes == classes and other.relation_head.out_features == len(classes)
        assert not torch.equal(other.relation_head.weight[:6], same.relation_head.weight[:6])


@pytest.mark.parametrize("value", [5, "PAR", [], ["PAR"] * 7, [*range(7)], ["PAR", "CHD"], {}, [["PAR"]] * 8, True])
def test_relation_classes_of_another_form(runs_of, tmp_path, value):
    shutil.copytree(runs_of / "seven", tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps(config | {"relation_classes": value}))
    with pytest.raises(UserError, match="config.json: relation_classes is no list of six or more different relations"):
        models.load(tmp_path / "x")


def test_classes_that_the_weights_do_not_have(runs_of, tmp_path):
    shutil.copytree(runs_of / "seven", tmp_path / "x")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    names = [*"ABCDEFGHI"]
    (tmp_path / "x" / "config.json").write_text(json.dumps(config | {"relation_classes": names}))
    with pytest.raises(UserError, match="wrong shape: relation_head.weight .6, 32. where config.json says .9, 32."):
        models.load(tmp_path / "x")
    model = models.load(tmp_path / "x", encoder_only=True, log=lambda _: None)
    assert model.relation_head.out_features == 9
    assert checkpoints.read_config(tmp_path / "x")["relation_classes"] == names
