"""Entity linking: mentions and their ids, names, exact ranks, baselines, intervals, and the commands."""

import gzip
import io
import json
import math
import shutil
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import configs
import model as models
from beyond import dictionaries, ranking, retrieval, tagged
from beyond import embed as embedding
from beyond import link as linking
from beyond.dictionaries import (
    exact_matches,
    gold_concepts,
    index_of_ids,
    make_dictionary,
    name_vectors,
    parse_ids,
    read_ids,
    trigram_similarities,
    vectors_file,
)
from beyond.gold import LinkingTask, Mention, find_abbreviations, read_mentions, read_tasks, split_of
from beyond.linked import LINKS, format_jsonl
from beyond.mentions import mentions_of_records, parse_record, read_records
from beyond.nearest import nearest_concepts
from configs import UserError
from support import corpora, files, texts, tokenizers
from support.arrays import bootstrap
from tests.conftest import command, random_checkpoint, run_command
from tests.small_releases import read_dictionary


def entity(pmid, text, words, ids, kind="Disease"):
    """A line of PubTator for the first occurrence of some words."""
    start = text.index(words)
    return f"{pmid}\t{start}\t{start + len(words)}\t{words}\t{kind}\t{ids}\n"


def corpus(folder, **splits):
    """A folder of PubTator files. splits: [(title, abstract, [(words, ids), ...]), ...] of each."""
    folder.mkdir()
    for i, (split, documents) in enumerate(splits.items()):
        blocks = []
        for n, (title, abstract, mentions) in enumerate(documents, 100 * i):
            lines = [entity(n, f"{title}\n{abstract}", *mention) for mention in mentions]
            blocks.append(f"{n}|t|{title}\n{n}|a|{abstract}\n" + "".join(lines))
        (folder / f"NCBI{split}set_corpus.txt").write_text("\n".join(blocks))
    return folder


TRAIN = [("Flu.", "A fever of the liver.", [("Flu", "D1"), ("fever", "D2")])]
TEST = [
    ("Influenza (flu).", "Fever and liver pain.", [("Influenza", "MESH:D1"), ("Fever", "D2|D9"), ("pain", "D3+D2")]),
    ("Pain.", "A cold, or the flu, or gout.", [("Pain", "D3"), ("cold", "D4"), ("flu", "D1"), ("gout", "-1")]),
]
NAMES = "id\tname\nD1\tinfluenza\nD1\tflu\nD2\tfever\nD3\tpain\nD3\tfever and pain\nD5\tcold\nD6\tcold\n"


@pytest.fixture
def small(tmp_path):
    """(corpus, dictionary file): D4 is not in the dictionary, and a "cold" is D5 or D6 there."""
    (tmp_path / "names.tsv").write_text(NAMES)
    return corpus(tmp_path / "corpus", train=TRAIN, test=TEST), tmp_path / "names.tsv"


def task_of(small, **settings):
    s = linking.Link(checkpoint="", corpus=str(small[0]), **settings)
    return read_tasks(s, [read_dictionary(small[1])])[0]


def ranks_by_spelling(task):
    """{(document, words): rank} of both baselines."""
    methods = {
        "exact": exact_matches(task.dictionary.names, task.queries),
        "trigrams": trigram_similarities(task.dictionary.names, task.queries),
    }
    (ranks,) = ranking.rank_mentions([task], lambda block: ((name, method(block)) for name, method in methods.items()))
    return {name: {(m.document, m.text): r for m, r in zip(task.mentions, x.tolist())} for name, x in ranks.items()}


# ---------------------------------------------------------------- ids and mentions


@pytest.mark.parametrize("text, parts", [
    ("D008661", (("D008661",),)), (" D008661 ", (("D008661",),)), ("MESH:C535663", (("C535663",),)),
    ("OMIM:215600", (("OMIM:215600",),)), ("UMLS:C0001234", (("C0001234",),)),
    ("D1|OMIM:2", (("D1", "OMIM:2"),)), ("D1| D2", (("D1", "D2"),)), ("5578,5579;5580", (("5578", "5579", "5580"),)),
    ("D1+D2", (("D1",), ("D2",))), ("D1|D2+D3", (("D1", "D2"), ("D3",))),
    ("-1", ()), ("-", ()), ("", ()), ("D1|-1", (("D1",),)), ("c|SUB|G|94|A", (("c|SUB|G|94|A",),)),
    ("p|Allele|R|70", (("p|Allele|R|70",),)), ("c|SUB|A|IVS4+1|G", (("c|SUB|A|IVS4+1|G",),)),
    ("|DEL|70|", (("|DEL|70|",),)), ("rs70,c|SUB|C|-70|T", (("rs70", "c|SUB|C|-70|T"),)),
    ("p|SUB|R|70|W; p|Allele|R|70", (("p|SUB|R|70|W", "p|Allele|R|70"),)), ("D001260|208900", (("D001260", "208900"),)),
    ("70|71+72", (("70", "71"), ("72",))),
])  # fmt: skip
def test_ids_of_corpora(text, parts):
    """Alternatives, composites, prefixes of some corpora, no id, and a variant whose bars are its own."""
    assert parse_ids(text) == parts


def test_mentions_of_a_corpus(small):
    splits, issues = read_mentions(small[0])
    assert {split: [m.text for m in mentions] for split, mentions in splits.items()} == {
        "train": ["Flu", "fever"], "dev": [], "test": ["Influenza", "Fever", "pain", "Pain", "cold", "flu"],
    }  # fmt: skip
    assert +issues["test"] == {"mentions without an id": 1} and not +issues["train"] + +issues["dev"]
    first = splits["test"][0]
    assert (first.document, first.name, first.parts) == ("100", "Influenza", (("D1",),))


def test_lists_of_documents_split_a_corpus_of_one_file(tmp_path):
    """MedMentions: one file, .gz as it is handed out, three lists of ids, and semantic types instead of a type."""
    text = "".join(
        f"{n}|t|Fever\n{n}|a|.\n" + entity(n, "Fever\n.", "Fever", f"C000000{n}", "T033,T184") for n in "123"
    )
    (tmp_path / "corpus_pubtator.txt.gz").write_bytes(gzip.compress(text.encode()))
    for n, split in enumerate(("trng", "dev", "test"), 1):
        (tmp_path / f"corpus_pubtator_pmids_{split}.txt").write_text(f"{n}\n")
    (tmp_path / "corpus_pubtator_pmids_all.txt").write_text("1\n2\n3\n")
    splits, _ = read_mentions(tmp_path)
    found = {split: [m.parts for m in mentions] for split, mentions in splits.items()}
    assert found == {s: [((f"C000000{n}",),)] for n, s in enumerate(corpora.SPLITS, 1)}


@pytest.mark.parametrize("name, want", [
    ("CDR_DevelopmentSet.PubTator.txt", "dev"), ("NCBIdevelopset_corpus.txt", "dev"), ("testa.txt", "dev"),
    ("x-val.txt", "dev"),
    ("Eval.PubTator", "dev"), ("VALIDATION.txt", "dev"), ("validset.txt", "dev"), ("devel.txt", "dev"),
    ("testb.txt", "test"),
    ("NCBItestset_corpus.txt", "test"), ("Test.PubTator.gz", "test"), ("eval-test.txt", "test"),
    ("corpus_pmids_trng.txt", "train"),
    ("ncbitrain.txt", "train"), ("medieval.txt", ""), ("interval_7.txt", ""), ("corpus_pubtator.txt.gz", ""),
])  # fmt: skip
def test_splits_in_names_of_files(name, want):
    assert split_of(Path("train", name)) == want


def test_issues_are_those_of_the_split(small, tmp_path):
    """A row that is given twice counts once; both are told for the split that is scored, and for no other."""
    path = small[0] / "NCBItrainset_corpus.txt"
    path.write_text("1|t|Flu.\n1|a|.\n" + 2 * (entity(1, "Flu.", "Flu", "D1") + entity(1, "Flu.", "F", "-")) + "\n"
        + 3 * "9|t|A\n9|a|b\n")  # fmt: skip
    text = (small[0] / "NCBItestset_corpus.txt").read_text()
    row = next(line for line in text.split("\n") if "Influenza\t" in line)
    (small[0] / "NCBItestset_corpus.txt").write_text(text.replace(row, f"{row}\n{row}\n{row.replace('MESH:D1', 'D2')}"))
    mentions, issues = read_mentions(small[0])
    assert [m.parts for m in mentions["test"]][:3] == [
        (("D1",),),
        (("D2",),),
        (("D2", "D9"),),
    ]  # other ids: another mention
    assert [m.text for m in mentions["train"]] == ["Flu"]
    once, without = "rows given twice: counted once", "mentions without an id"
    assert +issues["train"] == {once: 2, without: 1, "repeated documents: left out": 2}
    assert +issues["test"] == {once: 1, without: 1} and not +issues["dev"]
    for split in ("train", "test"):
        record = ranking.linking_record(task := task_of(small, split=split), {"x": np.ones(len(mentions[split]))})
        assert len(task.mentions) == len(mentions[split]) and record["issues"] == dict(+issues[split])


def test_lists_of_documents_are_one_a_split(tmp_path):
    (tmp_path / "x_pubtator.txt").write_text("1|t|Flu\n1|a|.\n1\t0\t3\tFlu\tX\tD1\n2|t|B\n2|a|.\n2\t0\t1\tB\tX\t-\n")
    (tmp_path / "pmids_test.txt").write_text("1")
    (tmp_path / "pmids_dev.txt").write_text("2")
    issues = read_mentions(tmp_path)[1]
    assert {split: dict(+c) for split, c in issues.items()} == {
        "train": {},
        "dev": {"mentions without an id": 1},
        "test": {},
    }
    (tmp_path / "pmids_valid.txt").write_text("1")
    with pytest.raises(UserError, match="two files of the dev split: pmids_dev.txt and pmids_valid.txt"):
        read_mentions(tmp_path)


def test_ids_of_documents_need_not_be_numbers(tmp_path):
    text = "".join(f"{i}|t|Flu\n{i}|a|.\n{i}\t0\t3\tFlu\tX\tD1\n\n" for i in ("PMC12", "doc-1", "7"))
    (tmp_path / "test.PubTator").write_text(text)
    assert [m.document for m in read_mentions(tmp_path)[0]["test"]] == ["PMC12", "doc-1", "7"]


@pytest.mark.parametrize("ids, concepts", [
    ("D001260|208900\tataxia", ["D001260|208900"]), ("MESH:D001260|OMIM:208900\tataxia", ["D001260|OMIM:208900"]),
])  # fmt: skip
def test_a_concept_of_several_ids(tmp_path, ids, concepts):
    """It is one concept, which is found by each of them; in a file of ids each of them leads to each concept."""
    (tmp_path / "names.tsv").write_text(f"{ids}\nD2|D001260\tgout\nD3\tflu\n")
    dictionary = read_dictionary(tmp_path / "names.tsv")
    assert dictionary.ids == [*concepts, "D2|D001260", "D3"]
    index = index_of_ids(dictionary)
    omim = ids.split("\t")[0].split("|")[1]
    for parts, want in (((("D001260",),), [[0, 1]]), (((omim, "D3"),), [[0, 2]]), (((omim,), ("D2",)), [[0], [1]]),
        ((("D9",),), None), ((("D001260|208900",),), None)):  # fmt: skip
        found = gold_concepts(Mention("1", "", "", parts), {}, index)
        assert (found and [part.tolist() for part in found]) == want
    folder = corpus(tmp_path / "corpus", test=[("Ataxia.", "No.", [("Ataxia", f"{omim}")])])
    assert [*ranks_by_spelling(task_of((folder, tmp_path / "names.tsv")))["exact"].values()] == [1]
    (tmp_path / "ids.tsv").write_text("D1|208900\tC1\nD1\tC2|C3\n")
    assert read_ids(tmp_path / "ids.tsv") == {"D1": ["C1", "C2", "C3"], "208900": ["C1"]}


@pytest.mark.parametrize("header, is_header", [
    ("id\tname", True), ("CUI\tname", True), ("concept_id\tname", True), ("Concept ID\tterm", True),
    ("ConceptID\tx", True),
    ("#id\tname", True), ("# DiseaseID\tDiseaseName", True), ("mesh\tcui", True), ("UMLS_CUI\tSTR", True),
    ("code\tlabel", True),
    ("identifier\tsynonym", True), ("concept\tname", True), ("SNOMED-code\tname\tmore", True),
    ("D1\tname", False), ("flu\tid", False), ("thyroid\tname", False), ("C0000001\tconcept", False),
    ("MESH:D4\tcode", False),
])  # fmt: skip
def test_a_header_is_no_concept(tmp_path, header, is_header):
    """Only as the first line. The first field decides: a concept may have any name."""
    (tmp_path / "names.tsv").write_text(f"{header}\nD1\tflu\n")
    assert len(read_dictionary(tmp_path / "names.tsv").ids) == (1 if is_header or header[:3] == "D1\t" else 2)
    (tmp_path / "names.tsv").write_text("D1\tflu\nid\tname\n")
    assert read_dictionary(tmp_path / "names.tsv").ids == ["D1", "id"]


@pytest.mark.parametrize("form, other", [("NFC", "NFD"), ("NFD", "NFC")])
def test_mentions_and_names_are_compared_in_one_form(tmp_path, form, other):
    """Exact match, abbreviations, unseen mentions, training mentions as names, and mentions of a file."""
    text, abstract = unicodedata.normalize(form, "Névrite rétrobulbaire (NÉ). Fièvre\nNÉ.").split("\n")
    mentions = [(unicodedata.normalize(form, words), "D1") for words in ("Fièvre", "NÉ")]
    train = [(unicodedata.normalize(other, "Fièvre."), ".", [(unicodedata.normalize(other, "Fièvre"), "D1")])]
    folder = corpus(tmp_path / "corpus", train=train, test=[(text, abstract, mentions)])
    (tmp_path / "names.tsv").write_text(unicodedata.normalize(other, "D1\tfièvre\nD1\tnévrite rétrobulbaire\nD2\tx\n"))
    task = task_of((folder, tmp_path / "names.tsv"), expand_abbreviations=True)
    assert [*ranks_by_spelling(task)["exact"].values()] == [1, 1] and task.unseen.tolist() == [False, True]
    with_train = task_of((folder, tmp_path / "names.tsv"), train_mentions=True).dictionary
    assert with_train.names == ["fièvre", "névrite rétrobulbaire", "x", "Fièvre"]
    records = [{"text": unicodedata.normalize(form, "Fièvre")}]
    assert [x for _, x in mentions_of_records(records)] == ["Fièvre"] and len(records[0]["text"]) == 6 + (form == "NFD")


def test_bc5cdr_and_biored_lines(tmp_path):
    """Relations of four and five columns are no mentions; a seventh column names the parts; the file has a mark."""
    lines = [
        "1|t|Renal and liver disease.\n1|a|.\n",
        "1\t0\t23\tRenal and liver disease\tDisease\tD7674|D8107\tRenal disease|liver disease\n",
        "1\tCID\tD1\tD7674\n1\tAssociation\tD1\tD7674\tNovel\n",
    ]
    (tmp_path / "CDR_TestSet.PubTator.txt").write_text("\ufeff" + "".join(lines), encoding="utf-8")
    assert [m.parts for m in read_mentions(tmp_path)[0]["test"]] == [(("D7674", "D8107"),)]


@pytest.mark.parametrize("text, want", [
    ("Wilson disease (WD) is rare.", {"WD": "Wilson disease"}),
    ("He had ataxia-telangiectasia (A-T), and more (see below).", {"A-T": "ataxia-telangiectasia"}),
    ("No sign. Adenomatous polyposis coli (APC; MIM 1)", {"APC": "Adenomatous polyposis coli"}),
    ("phenylketonuria (PKU)", {"PKU": "phenylketonuria"}),
    ("a disease of the hand (WD)", {}), ("the gene (12)", {}), ("WD (WD)", {}), ("of (a) kind", {}),
    ("Wilson was. A disease (WD)", {}), ("swollen disease (WD)", {}),
    ("Wilson disease (WD) and white dwarf (WD)", {"WD": "Wilson disease"}),
])  # fmt: skip
def test_definitions_of_abbreviations(text, want):
    """The first letter begins a word of the same sentence; the first definition counts; no form defines itself."""
    assert find_abbreviations(text) == want


def test_abbreviations_are_expanded_within_their_document(tmp_path):
    """Elsewhere, and by default, the short form is looked up. Whether a mention is seen depends on its words alone."""
    documents = [("Wilson disease (WD).", "WD is rare.", [("WD", "D1")]), ("WD.", "No.", [("WD", "D1")])]
    folder = corpus(tmp_path / "corpus", train=[("WD.", ".", [("WD", "D1")])], test=documents)
    (tmp_path / "names.tsv").write_text("D1\twilson disease\nD2\twd\n")
    task = task_of((folder, tmp_path / "names.tsv"), expand_abbreviations=True)
    assert [(m.text, m.name) for m in task.mentions] == [("WD", "Wilson disease"), ("WD", "WD")]
    assert [*ranks_by_spelling(task)["exact"].values()] == [1, 2] and not task.unseen.any()
    assert [m.name for m in task_of((folder, tmp_path / "names.tsv")).mentions] == ["WD", "WD"]


# ---------------------------------------------------------------- ranks


def rank_by_sorting(similarity, dictionary, parts):
    """The rank by its definition: every name compared, concepts sorted, all orders of ties averaged."""
    best = {}
    for term, concept in zip(dictionary.term.tolist(), dictionary.concept.tolist()):
        best[concept] = max(best.get(concept, -9), similarity[term])
    ranks = []
    for part in parts:
        top = max(best[c] for c in part.tolist())
        n_nearer = sum(x > top for x in best.values())
        equal = [c for c, x in best.items() if x == top]
        n, m = len(equal), len({*equal} & {*part.tolist()})
        # P(the first right one comes at j) = C(n - j, m - 1) / C(n, m)
        ranks.append(n_nearer + sum(j * math.comb(n - j, m - 1) for j in range(1, n + 1)) / math.comb(n, m))
    needed = min(max(best[c] for c in part.tolist()) for part in parts)
    return 1 if len(parts) > 1 and sum(x >= needed for x in best.values()) <= len(parts) else max(ranks)


@pytest.mark.parametrize("seed", range(6))
def test_ranks_are_those_of_sorting(seed, monkeypatch):
    """Names of several concepts, concepts of several names, ties, composites, and blocks of a few mentions."""
    rng = np.random.default_rng(seed)
    n_names, n_concepts, n_mentions = 30, 12, 25
    ids = [f"C{c}" for c in [*range(n_concepts), *rng.integers(n_concepts, size=40)]]
    names = [f"n{t}" for t in [*range(n_concepts), *rng.integers(n_names, size=40)]]
    dictionary = make_dictionary(ids, names)
    assert sorted({*zip(ids, names)}) == sorted(
        (dictionary.ids[c], dictionary.names[t]) for c, t in zip(dictionary.concept, dictionary.term)
    )
    gold = [
        [rng.choice(n_concepts, rng.integers(1, 4), replace=False) for _ in range(rng.integers(1, 3))]
        if rng.random() < 0.9 else None
        for _ in range(n_mentions)
    ]  # fmt: skip
    queries = [f"q{i}" for i in range(7)]
    query = rng.integers(len(queries), size=n_mentions)
    mentions = [Mention("1", "", "", ()) for _ in gold]
    task = LinkingTask(mentions, dictionary, queries, query, gold, None, Counter())
    table = rng.integers(0, 6, (len(queries), len(dictionary.names))).astype(np.float32)  # few values: many ties
    monkeypatch.setattr(dictionaries, "MAX_SIMILARITIES", 3 * len(dictionary.names))
    ranks = ranking.rank_mentions([task], lambda block: [("x", table[block])])[0]["x"]
    want = [rank_by_sorting(table[q], dictionary, g) if g else np.inf for q, g in zip(query, gold)]
    assert ranks.tolist() == pytest.approx(want)


def test_alternatives_composites_homonyms_and_names_that_are_not_there(small):
    exact = ranks_by_spelling(task_of(small))["exact"]
    assert exact["100", "Influenza"] == 1 and exact["101", "Pain"] == 1
    assert exact["100", "Fever"] == 1  # D2|D9, of which the dictionary has one
    assert exact["101", "cold"] == np.inf  # D4 is not there
    assert exact["100", "pain"] == 3.5  # D3+D2: D3 first, D2 among four that do not match at all
    ids = {"D4": ["D5"], "D1": ["D1"], "D2": ["D2"], "D3": ["D3"]}
    (small[1].parent / "ids.tsv").write_text("id\tcui\n" + "".join(f"{i}\t{c[0]}\n" for i, c in ids.items()))
    with_ids = ranks_by_spelling(task_of(small, ids=str(small[1].parent / "ids.tsv")))["exact"]
    assert with_ids["101", "cold"] == 1.5  # D5 or D6
    parts_found = Mention("1", "", "", (("D3",), ("D4",))), {}, {"D3": [0]}
    assert gold_concepts(*parts_found) is None  # one part of a composite is not there


def test_a_composite_is_right_at_1_if_the_first_concepts_hold_all_its_parts():
    parts, similarity = [np.array([0]), np.array([1, 2])], np.array([0.9, 0.1, 0.8, 0.7])
    assert ranking.rank_of_mention(similarity, parts) == 1
    assert ranking.rank_of_mention(np.array([0.9, 0.1, 0.2, 0.7]), parts) == 3
    assert ranking.rank_of_mention(np.array([0.9, 0.8, 0.2, 0.9]), parts) == 3  # two before the second part
    assert ranking.rank_of_mention(np.array([0.9, 0.9, 0.2, 0.1]), parts) == 1  # 1.5 each
    assert ranking.rank_of_mention(np.array([0.9, 0.9, 0.2, 0.9]), parts) == 2  # three for two places
    assert ranking.rank_of_mention(similarity, [np.array([3])]) == 3


def test_concepts_that_are_equally_near_share_the_mean_of_their_ranks():
    """A search that finds everything equally near finds nothing; of three, two of them right, the first is at 4 / 3."""
    assert ranking.rank_of_mention(np.zeros(9), [np.array([4])]) == 5
    assert ranking.rank_of_mention(np.array([1.0, 1.0, 1.0, 0.0]), [np.array([0, 2, 3])]) == pytest.approx(4 / 3)


def test_trigrams_are_those_of_the_synonym_baseline():
    names, queries = ["hepatitis", "Liver disease", "fièvre", "x"], ["Hepatitides", "disease of liver", "pain"]
    of_names, of_queries = retrieval.trigram_vectors(names), retrieval.trigram_vectors(queries)
    want = of_queries @ of_names.T
    similarity = trigram_similarities(names, queries)
    assert similarity(slice(0, 3)) == pytest.approx(want.numpy(), abs=1e-6) and want.max() > 0.5
    assert similarity(slice(1, 3)) == pytest.approx(want[1:].numpy(), abs=1e-6)
    assert of_names.norm(dim=1).tolist() == pytest.approx([1] * 4)


def test_exact_matches_ignore_case_and_blanks():
    found = exact_matches(["Liver disease", "liver", "LIVER"], ["liver  Disease", "Liver", "kidney"])
    assert found(slice(0, 3)).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_mentions_of_training_as_names(small):
    """They name concepts of the dictionary and add none; composites are left out; unseen ones stay unseen."""
    (small[0] / "NCBItrainset_corpus.txt").write_text(
        "1|t|Ague, grippe, cold, mix.\n1|a|.\n"
        + "".join(
            entity(1, "Ague, grippe, cold, mix.", words, ids)
            for words, ids in (("Ague", "D2"), ("grippe", "D1|D3"), ("cold", "D4"), ("mix", "D1+D2"))
        )
    )
    plain, with_train = task_of(small), task_of(small, train_mentions=True)
    pairs = [
        {(d.ids[c], d.names[t]) for c, t in zip(d.concept.tolist(), d.term.tolist())}
        for d in (plain.dictionary, with_train.dictionary)
    ]
    assert pairs[1] - pairs[0] == {("D2", "Ague"), ("D1", "grippe"), ("D3", "grippe")} and pairs[0] < pairs[1]
    assert with_train.dictionary.ids == plain.dictionary.ids
    assert plain.unseen.tolist() == with_train.unseen.tolist() == [True, True, True, True, False, True]


# ---------------------------------------------------------------- scores


def test_scores_and_their_intervals():
    """Against a loop that draws the documents one by one; documents of many mentions weigh more."""
    rng = np.random.default_rng(0)
    number = rng.integers(20, size=200) ** 2 // 20  # of the document; mentions of one are alike
    ranks = np.where(rng.random(200) < 0.1 + 0.8 * (number % 2), 1, rng.integers(2, 9, 200)).astype(float)
    ranks[:5] = np.inf
    documents = [f"d{i}" for i in number]
    scores = ranking.linking_scores(ranks, documents)
    assert scores["at_1"] == pytest.approx(100 * np.mean([r <= 1 for r in ranks]))
    assert scores["at_5"] == pytest.approx(100 * np.mean([r <= 5 for r in ranks]))
    assert scores["mrr"] == pytest.approx(100 * sum(1 / r for r in ranks) / 200)
    names, means = sorted({*documents}), []
    for _ in range(3000):
        drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
        found = np.concatenate([[r <= 1 for r, d in zip(ranks, documents) if d == name] for name in drawn])
        means.append(100 * found.mean())
    assert scores["interval"]["at_1"] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=3)
    assert ranking.linking_scores(ranks, documents) == scores  # seeded
    assert ranking.linking_scores(np.ones(0), []) == {}
    assert bootstrap(["a", "b"], np.array([[1.0], [1.0]]), 50).tolist() == [[2.0]] * 50


def test_a_record_counts_all_reachable_and_unseen_mentions(small):
    task = task_of(small)
    ranks = {"exact match": np.array([1, 2, np.inf, 1, np.inf, 1])}
    record = ranking.linking_record(task, ranks)
    got = {name: (x["mentions"], x["methods"]["exact match"]["at_1"]) for name, x in record["scores"].items()}
    assert got == {
        "all": (6, 50), "reachable": (5, 60), "unseen": (4, 50), "unseen_reachable": (3, pytest.approx(200 / 3)),
    }  # fmt: skip
    assert (record["documents"], record["composite"], record["concepts"], record["names"]) == (2, 1, 5, 6)
    assert record["ranks"] == {"exact match": [1, 2, None, 1, None, 1]}
    names = [*dict.fromkeys(mention.document for mention in task.mentions)]
    assert [names[i] for i in record["document_of_mention"]] == [mention.document for mention in task.mentions]


def test_mentions_are_not_unseen_where_there_is_no_training_split(tmp_path, capsys):
    (tmp_path / "names.tsv").write_text(NAMES)
    task = task_of((corpus(tmp_path / "corpus", test=TEST), tmp_path / "names.tsv"))
    record = ranking.linking_record(task, {"exact match": np.ones(6)})
    assert [*record["scores"]] == ["all", "reachable"]
    ranking.print_linking(record | {"settings": {"corpus": "x", "split": "test"}})
    printed = capsys.readouterr().out
    assert "unseen" not in printed and "100.0 [100.0, 100.0]  100.0 [" in printed


# ---------------------------------------------------------------- files and errors


@pytest.mark.parametrize("name, content, message", [
    ("names.tsv", "D1\tflu\nD2\n", "names.tsv, row 2: not 'id TAB name': 'D2'"),
    ("names.tsv", "D1\tflu\nD2\t \n", "names.tsv, row 2: not 'id TAB name'"),
    ("names.tsv", "D1\tflu\tx\n", "names.tsv, row 1: not 'id TAB name'"),
    ("names.tsv", b"D1\tflu\nD2\t\xff\n", "names.tsv, row 2: not UTF-8"),
    ("names.tsv", "id\tname\n", "names.tsv: no line 'id TAB name'"),
    ("names.tsv", "X1\tflu\n", "no id of its test split, such as D1, is in the dictionary, whose ids are such as X1"),
    ("ids.tsv", "D1\tD1\nD2,D2\n", "ids.tsv, row 2: not 'id TAB concept'"),
    ("corpus/NCBItestset_corpus.txt", "1|t|Flu\n1|a|.\n1\t0\t3\tFly\tX\tD1\n", "test.*, row 3: 0 3 is"),
    ("corpus/NCBItestset_corpus.txt", "1|t|Flu\n1|a|.\nFlu\n", "test.*, row 3: neither text, entity nor relation"),
    ("corpus/NCBItestset_corpus.txt", "1|t|Flu\n1|a|.\n", "no mention with an id in its test split"),
    ("corpus/all.txt", "9|t|Flu\n9|a|.\n", "all.txt: its name must say its split"),
    ("corpus/Test2.txt", "9|t|Flu\n9|a|.\n", "two files of the test split: NCBItestset_corpus.txt and Test2.txt"),
    ("corpus/Dev.txt.gz", b"\x1f\x8b\x08\x00damaged", "Dev.txt.gz: cannot be read"),
])  # fmt: skip
def test_what_is_wrong_with_files(small, name, content, message):
    path = small[1].parent / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    ids = {"ids": str(path)} if name == "ids.tsv" else {}
    with pytest.raises(UserError, match=message):
        task_of(small, **ids)


def test_a_dictionary_may_be_packed_and_have_a_header_and_line_ends_of_windows(small):
    packed = small[1].with_suffix(".gz")
    packed.write_bytes(gzip.compress(NAMES.replace("\n", "\r\n").encode()))
    plain, other = read_dictionary(small[1]), read_dictionary(packed)
    assert other.ids == plain.ids == ["D1", "D2", "D3", "D5", "D6"] and other.names == plain.names
    assert plain.names.count("cold") == 1 and len(plain.term) == 7


@pytest.mark.parametrize("settings, message", [
    ({"corpus": "nowhere"}, "nowhere: no such folder"), ({"split": "dev"}, "in its dev split"),
    ({"split": "train", "train_mentions": True}, "train_mentions with --split train"),
    ({"ids": "none.tsv"}, "none.tsv"),
])  # fmt: skip
def test_what_is_wrong_with_settings(small, settings, message):
    s = linking.Link(checkpoint="", **{"corpus": str(small[0])} | settings)
    with pytest.raises((UserError, FileNotFoundError), match=message):
        read_tasks(s, [read_dictionary(small[1])])


def test_mentions_of_training_that_are_not_there(tmp_path):
    (tmp_path / "names.tsv").write_text(NAMES)
    small = corpus(tmp_path / "corpus", test=TEST), tmp_path / "names.tsv"
    with pytest.raises(UserError, match="no mention with an id in a train split"):
        task_of(small, train_mentions=True)


# ---------------------------------------------------------------- vectors, and the commands


@pytest.fixture(scope="module")
def checkpoint(dataset, tmp_path_factory):
    """A model initialised randomly, with the tokenizer of the data set."""
    return random_checkpoint(dataset, tmp_path_factory.mktemp("linked") / "random")


def test_vectors_are_kept_and_stale_ones_are_not_used(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    path, calls = tmp_path / "kept" / "x.npy", []

    def blocks(array):
        calls.append(len(array))
        yield from (array[:2], array[2:])

    assert (name_vectors(None, x.shape, blocks(x)) == x).all()
    assert (name_vectors(path, x.shape, blocks(x)) == x).all() and (np.load(path) == x).all()
    assert (name_vectors(path, x.shape, blocks(x + 1)) == x).all() and calls == [5, 5]  # not asked for again
    assert not capsys.readouterr().err
    whole, size = path.read_bytes(), x.nbytes
    other_type, zeros, nan = io.BytesIO(), bytes(size), np.full(x.shape, np.nan, np.float32).tobytes()
    np.save(other_type, x.astype(np.int32))
    damaged = {
        "cut off": whole[:-4], "empty": b"", "one bit": whole[:140] + bytes([whole[140] ^ 1]) + whole[141:],
        "zeros": whole[: -size - 32] + zeros + whole[-32:], "nan": whole[: -size - 32] + nan + whole[-32:],
        "another type": other_type.getvalue() + whole[-32:], "longer": whole + whole[-32:], "no array": b"x" * 300,
        "another shape": whole.replace(b"(5, 3)", b"(3, 5)"), "of an older version": whole[:-32],
    }  # fmt: skip
    for n, content in enumerate(damaged.values()):
        path.write_bytes(content)
        assert (name_vectors(path, x.shape, blocks(x + n)) == x + n).all() and len(calls) == 3 + n
        assert (name_vectors(path, x.shape, blocks(x)) == x + n).all() and len(calls) == 3 + n
        line = f"{path}: damaged, or of an older version; the names are embedded again\n"
        assert capsys.readouterr().err == line

    def broken():
        yield x[:2]
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        name_vectors(tmp_path / "kept" / "y.npy", x.shape, broken())
    with files.folder_lock(tmp_path / "kept", ""), pytest.raises(UserError, match="another process embeds names"):
        name_vectors(tmp_path / "kept" / "z.npy", x.shape, blocks(x))
    assert [p.name for p in path.parent.iterdir()] == ["x.npy"]
    names = {vectors_file("f", "x", parts) for parts in (["a", b"b"], ["ab", b""], ["a", b"c"], ["", b"ab"])}
    assert len(names) == 4 and vectors_file("f", "x", ["a", b"b"]) in names


def test_link(checkpoint, small, tmp_path, capsys, monkeypatch):
    """Ranks by the vectors of the model and the sums with trigrams, in a record and a printed table."""
    monkeypatch.chdir(tmp_path)
    argv = [checkpoint, "--corpus", small[0], "--dictionary", small[1], "--device", "cpu"]
    run_command(linking, *argv)
    path = Path("results/random/linking-corpus.json")
    first, shown = json.loads(path.read_text()), capsys.readouterr().out
    assert "6 mentions in 2 documents, 5 with a concept in the dictionary of 5 concepts and 6 names" in shown
    methods = ["exact match", "trigrams", "cls", "cls + trigrams", "mean", "mean + trigrams"]
    assert [*first["scores"]["all"]["methods"]] == methods and shown.count("    cls + trigrams  ") == 4
    encoder, tokenizer = models.load(checkpoint, encoder_only=True).encoder.eval(), tokenizers.load(checkpoint)
    task, spelling = task_of(small), retrieval.trigram_vectors
    for pooling in configs.POOLINGS:
        queries, names = (
            torch.nn.functional.normalize(
                embedding.embed_terms(encoder, tokenizer, texts, [pooling], None)[pooling], dim=1
            )
            for texts in (task.queries, task.dictionary.names)
        )
        cosine = queries @ names.T
        both = cosine + spelling(task.queries) @ spelling(task.dictionary.names).T
        for method, similarity in ((pooling, cosine), (f"{pooling} + trigrams", both)):
            ranks = ranking.rank_mentions([task], lambda block, x=similarity: [("x", x[block].numpy())])[0]["x"]
            want = ranking.linking_scores(ranks, [m.document for m in task.mentions])
            assert first["scores"]["all"]["methods"][method] == want
            assert first["ranks"][method] == [rank if rank < np.inf else None for rank in ranks.tolist()]


def test_kept_vectors_are_those_of_the_checkpoint_the_names_and_the_settings(checkpoint, small, tmp_path, monkeypatch):
    """Only mentions are embedded again. With other names, precision or weights the names are, and are kept beside."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "same-name/random")
    embed, calls = embedding.embed, []
    monkeypatch.setattr(embedding, "embed", lambda *args: calls.append(1) or embed(*args))

    def n_embedded(*argv, folder=checkpoint, out="results"):
        calls.clear()
        run_command(linking, folder, "--corpus", small[0], "--dictionary", small[1], "--device", "cpu",
            "--pooling", "mean", "--keep_vectors", "kept", "--out", out, *argv)  # fmt: skip
        return len(calls) - 1, json.loads(Path(out, "random/linking-corpus.json").read_text())["scores"]

    first = n_embedded()
    assert first[0] == 1 and n_embedded() == (0, first[1]) and len([*Path("kept").iterdir()]) == 1
    with pytest.raises(UserError, match="linking-corpus.json holds results of precision auto, now bf16"):
        n_embedded("--precision", "bf16")
    assert not calls  # found out before the names are embedded
    assert n_embedded("--precision", "bf16", out="a")[0] == n_embedded("--pooling", "cls", out="b")[0] == 1
    model = models.load("same-name/random")
    model.encoder.word.weight.data += 1
    model.save("same-name/random")
    assert n_embedded(folder="same-name/random", out="c")[0] == 1
    small[1].write_text(NAMES + "D7\tgout\n")
    with pytest.raises(UserError, match="holds results of dictionary sha256"):
        n_embedded()
    assert n_embedded(out="d")[0] == 1 and len([*Path("kept").iterdir()]) == 5


@pytest.mark.parametrize("seed", range(12))
def test_nearest_concepts_are_those_of_sorting(seed, monkeypatch):
    """Of each concept the nearest name, concepts by similarity, then in the order of the ids; in blocks of any size."""
    rng = np.random.default_rng(seed)
    n_concepts, n_names, n_queries = (int(rng.integers(1, 12)) for _ in range(3))
    pairs = [
        (f"D{c}", f"n{int(t)}") for c in range(n_concepts) for t in rng.choice(n_names, rng.integers(1, n_names + 1))
    ]
    dictionary = make_dictionary(*zip(*pairs))
    similarity = rng.choice([0.0, 0.25, 0.5, 0.75], (n_queries, len(dictionary.names))).astype(np.float32)
    monkeypatch.setattr(dictionaries, "MAX_SIMILARITIES", int(rng.integers(1, 40)))
    top = int(rng.integers(1, 8))
    found = nearest_concepts(dictionary, n_queries, lambda block: similarity[block], top)
    assert len(found) == n_queries
    of_name = {name: i for i, name in enumerate(dictionary.names)}
    for row, (links, tied) in zip(similarity, found):
        best = {c: max(row[of_name[name]] for d, name in pairs if d == c) for c in dictionary.ids}
        want = sorted(best.items(), key=lambda item: (-item[1], dictionary.ids.index(item[0])))[:top]
        assert [(dictionary.ids[concept], similarity) for concept, _, similarity in links] == want
        assert all((dictionary.ids[concept], dictionary.names[name]) in pairs for concept, name, _ in links)
        assert all(row[name] == similarity for _, name, similarity in links)
        assert tied == [*best.values()].count(max(best.values())) - 1


def test_links_of_lines(checkpoint, small, tmp_path):
    """A line of standard input is a line of the output; each name is nearest to itself."""
    argv = ["-m", "beyond.link", checkpoint, "--dictionary", small[1], "--device", "cpu", "--pooling", "mean"]
    found = command(*argv, stdin="\ufefffever  and pain\r\n\n flu\nflu\n\n")
    assert found.returncode == 0, found.stderr
    assert "3 mentions, 2 of them distinct; 5 concepts with 6 names" in found.stderr
    records = [json.loads(line) for line in found.stdout.splitlines()]
    assert [r["text"] for r in records] == ["fever  and pain", "", "flu", "flu", ""]
    assert records[1]["concepts"] == [] and records[2] == records[3]
    first = {"id": "D3", "name": "pain", "matched": "fever and pain", "group": None, "similarity": 1.0}
    assert records[0]["concepts"][0] == first and len(records[0]["concepts"]) == 5


def test_links_of_entities(checkpoint, small, tmp_path):
    """The output of beyond.tag keeps all that it has, and each entity gets concepts, by [CLS]."""
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"id": "a", "text": "Flu\nor not, cold.", "entities": [
            {"start": 0, "end": 3, "type": "X", "text": "flu", "score": 0.5}, {"text": "pain\n"},
        ]}) + "\n\n" + json.dumps({"id": 7, "text": "Nothing.", "entities": []}) + "\n"
        + json.dumps({"id": 8, "text": "cold \ud800"}) + "\n"
    )  # fmt: skip
    out = tmp_path / "out.jsonl"
    argv = [checkpoint, tmp_path / "in.jsonl", "--dictionary", small[1], "--device", "cpu", "--out", out]
    run_command(linking, *argv)
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [r["id"] for r in records] == ["a", 7, 8] and records[1]["entities"] == []
    flu, pain = records[0]["entities"]
    given = {"start": 0, "end": 3, "type": "X", "text": "flu", "score": 0.5}
    assert {**flu, "concepts": 0} == given | {"concepts": 0, "tied": 0}
    first = {"id": "D1", "name": "influenza", "matched": "flu", "group": None, "similarity": 1.0}
    assert flu["concepts"][0] == first and pain["concepts"][0]["id"] == "D3"
    assert "concepts" not in records[0] and len(records[2]["concepts"]) == 5 and records[2]["text"] == "cold \ufffd"
    encoder, tokenizer = models.load(checkpoint, encoder_only=True).encoder.eval(), tokenizers.load(checkpoint)
    x = embedding.embed_terms(encoder, tokenizer, ["flu", *read_dictionary(small[1]).names], ["cls"], None)["cls"]
    cosine = torch.nn.functional.cosine_similarity(x[:1], x[1:]).tolist()
    want = dict(zip(read_dictionary(small[1]).names, cosine))
    assert all(link["similarity"] == pytest.approx(want[link["matched"]], abs=1e-4) for link in flu["concepts"])


def test_what_is_written_is_json():
    """Numbers that are not finite, which json.loads takes, become null; the rest of the record stays."""
    line = '{"text": "a", "score": NaN, "more": [1.5, -Infinity, {"x": 1e999}], "id": "NaN"}'
    text = format_jsonl([parse_record(line, "x", 1)])
    want = {"text": "a", "score": None, "more": [1.5, None, {"x": None}], "id": "NaN"}
    assert json.loads(text, parse_constant=pytest.fail) == want


def test_pooling_and_limit_are_those_of_the_checkpoint(checkpoint, small, tmp_path, capsys, monkeypatch):
    """As beyond.embed takes them. A corpus is scored with the pooling that is named alone, and the limit holds."""
    own = Path(shutil.copytree(checkpoint, tmp_path / "own"))
    modes = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (own / "1_Pooling").mkdir()
    (own / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (own / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')
    (tmp_path / "in.txt").write_text("flu\n")
    embed, limits = embedding.embed, []
    monkeypatch.setattr(embedding, "embed", lambda *args: limits.append(args[5]) or embed(*args))
    argv = ["--dictionary", small[1], "--device", "cpu"]
    encoder, tokenizer = models.load(own, encoder_only=True).encoder.eval(), tokenizers.load(own)
    texts = ["flu", *read_dictionary(small[1]).names]
    for more, pooling in (([], "mean"), (["--pooling", "cls"], "cls")):
        capsys.readouterr()
        run_command(linking, own, tmp_path / "in.txt", *argv, *more)
        found, log = capsys.readouterr()
        assert ("own: --pooling mean --max_len 4, as its files" in log) == (not more)
        x = embedding.embed_terms(encoder, tokenizer, texts, [pooling], None, 2)[pooling]
        want = dict(zip(texts[1:], torch.nn.functional.cosine_similarity(x[:1], x[1:]).tolist()))
        for link in json.loads(found)["concepts"]:
            assert link["similarity"] == pytest.approx(want[link["matched"]], abs=1e-4)
    (own / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    with pytest.raises(
        UserError, match="own: its pooling, max, is not supported; give --pooling cls or --pooling mean"
    ):
        run_command(linking, own, tmp_path / "in.txt", *argv)
    of_corpus = [own, "--corpus", small[0], *argv, "--out", tmp_path / "results"]
    with pytest.raises(UserError, match="own: its pooling, max, is not supported"):
        run_command(linking, *of_corpus)
    for own_mode, asked, used in (("mean", "", "mean"), ("cls", "", "cls"), ("cls", "mean", "mean")):
        (own / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": own_mode}))
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        run_command(linking, *of_corpus, *["--pooling", asked] * bool(asked))
        assert (f"own: --pooling {used} --max_len 4, as its files" in capsys.readouterr().err) == (not asked)
        scores = json.loads((tmp_path / "results" / "own" / "linking-corpus.json").read_text())["scores"]
        assert [*scores["all"]["methods"]][2:] == [used, f"{used} + trigrams"]
    assert {*limits} == {2} and len(limits) == 12


def test_the_output_of_the_tagger_may_come_from_a_pipe(monkeypatch):
    """Standard input has no suffix; its first line tells."""
    for content, want in (
        ('{"text": "a", "entities": [{"text": "b"}]}\n\n{"text": "c"}', ["b", "c"]), ("{a}\n\n", ["{a}", ""]),
        ('\n{"text": "c"}', ["c"]),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        assert [text for _, text in mentions_of_records(read_records(""))] == want


@pytest.mark.parametrize("read", [
    lambda: read_records(""), lambda: [*tagged.read_texts("")], lambda: texts.read_lines("", "", ""),
    lambda: read_dictionary("/dev/zero"), lambda: [*tagged.read_texts("/dev/zero")],
], ids=range(5))  # fmt: skip
def test_nobody_reads_a_device_to_its_end(monkeypatch, read):
    with open("/dev/zero") as zero:
        monkeypatch.setattr(sys, "stdin", zero)
        with pytest.raises(UserError, match="(standard input|/dev/zero) is a device, not a file"):
            read()


def test_which_files_links_replace(tmp_path):
    """Those of mentions, of entities, and of documents without any; no other JSON Lines."""
    mention, entity = {"text": "flu", "concepts": []}, {"start": 0, "text": "flu", "concepts": [{"id": "D1"}]}
    empty, linked = {"id": 1, "text": "", "entities": []}, {"id": 2, "text": "flu", "entities": [entity]}
    for records in ([mention], [linked], [empty, empty, linked], [empty], [empty, empty]):
        (tmp_path / "x").write_text(format_jsonl(records))
        files.check_output(tmp_path / "x", LINKS)
    del entity["concepts"]
    for records in ([linked], [empty, linked], [{"text": "concepts"}], [empty, {"text": ""}]):
        (tmp_path / "x").write_text(format_jsonl(records))
        with pytest.raises(UserError, match="x is not an output of this command"):
            files.check_output(tmp_path / "x", LINKS)


def test_results_of_other_protocols_have_other_names():
    s = {"checkpoint": "runs/a", "corpus": "x/ncbi/"}
    assert ranking.results_file(linking.Link(**s)) == Path("results/a/linking-ncbi.json")
    other = linking.Link(**s, split="dev", expand_abbreviations=True, out="o")
    assert ranking.results_file(other) == Path("o/a/linking-ncbi-dev-expand_abbreviations.json")


def test_a_file_in_place_of_the_results(checkpoint, small, tmp_path, monkeypatch):
    """It is found out before the names are embedded."""
    (tmp_path / "results").touch()
    monkeypatch.setattr(embedding, "embed", None)
    with pytest.raises((UserError, OSError), match="results"):
        run_command(linking, checkpoint, "--corpus", small[0], "--dictionary", small[1], "--out",
            tmp_path / "results")  # fmt: skip


@pytest.mark.parametrize("argv, message", [
    (["--corpus", "CORPUS", "--lang", "en"], "give one of them"),
    (["--corpus", "CORPUS", "--split", "valid"], "split = 'valid' is not one of train, dev, test"),
    (["MENTIONS", "--corpus", "CORPUS"], "give one of them"), (["MENTIONS", "--ids", "x"], "--ids is for the mentions"),
    (["MENTIONS", "--split", "dev"], "--split is for the mentions of a --corpus"),
    (["MENTIONS", "--out", "MENTIONS"], "is the input, which would be replaced"),
    (["MENTIONS", "--out", "NAMES"], "is the input, which would be replaced"),
    (["MENTIONS", "--out", "BAD"], "bad.jsonl is not an output of this command"),
    (["MENTIONS", "--out", "none/x"], "none is not a folder"), (["EMPTY"], "is empty; give a mention a line"),
    (["BAD"], r'bad.jsonl, row 3: "entities" is not a list of objects with a field "text"'),
])  # fmt: skip
def test_mistakes(checkpoint, small, tmp_path, argv, message):
    names = {
        "CORPUS": small[0],
        "NAMES": small[1],
        "MENTIONS": tmp_path / "m.txt",
        "EMPTY": tmp_path / "e.txt",
        "BAD": tmp_path / "bad.jsonl",
    }
    names["MENTIONS"].write_text("flu\n")
    names["EMPTY"].touch()
    names["BAD"].write_text('{"text": "a"}\n\n{"text": "a", "entities": [{"text": 1}]}\n')
    with pytest.raises(UserError, match=message):
        run_command(linking, checkpoint, *(names.get(a, a) for a in argv), "--dictionary", small[1])
