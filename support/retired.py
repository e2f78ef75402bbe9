"""Retired and merged CUIs: followed by MRCUI to the concepts that replace them in a UMLS release.

A CUI with a row in MRCONSO is alive, and stays. Any other leads to the CUI2 of its SY rows (it was merged). If it has
none, it leads to those of its RB, RN and RO rows (broader, narrower and related concepts: not synonymous). A single
distinct CUI2 is followed, and so on until a CUI is alive. Several lead nowhere, because the choice of one would depend
on the order of the rows.
"""

import re
import sys
from collections import Counter

import numpy as np

from support import rrf
from support.rrf import prefix8
from support.umls import N_CUIS

CUI = re.compile("C[0-9]{7}")
# The outcomes of a CUI. Only the first three have a concept in the release.
OUTCOMES = ("alive", "merged", "not synonymous", "several", "deleted", "not in this subset", "unknown", "loop")
ALIVE, MERGED, NOT_SYNONYMOUS, SEVERAL, DELETED, NOT_IN_SUBSET, UNKNOWN, LOOP = range(len(OUTCOMES))


def follow_cuis(umls, cuis):
    """{CUI: (the CUI that replaces it or None, its outcome)}, CUIs as strings. Raises: UserError naming file and row.

    Without MRCUI all CUIs that are not alive are unknown.
    """
    if not cuis:
        return {}
    rrf.check_files(umls, "MRCONSO")
    alive = np.zeros(N_CUIS, bool)
    for cui in rrf.read_rrf(umls, "MRCONSO", lambda rows: rows.parse_cui("CUI")):
        alive[cui[cui >= 0]] = True

    def parse_block(rows):
        cui1, cui2 = rows.parse_cui("CUI1"), rows.parse_cui("CUI2", optional=True)
        return [column[cui1 >= 0] for column in (cui1, rows.prefix8("REL"), cui2)]

    if rrf.find_rrf(umls, "MRCUI"):
        columns = zip(*rrf.read_rrf(umls, "MRCUI", parse_block))
    else:
        print(f"{umls} has no MRCUI.RRF, so retired CUIs are unknown", file=sys.stderr)
        columns = [[np.zeros(0, np.int64)]] * 3
    target, outcome = follow_all(*map(np.concatenate, columns), alive)
    found = {}
    for cui in cuis:
        number = int(cui[1:])
        has_concept = outcome[number] <= NOT_SYNONYMOUS
        found[cui] = f"C{target[number]:07d}" if has_concept else None, OUTCOMES[outcome[number]]
    return found


def follow_ids(umls, ids, used):
    """The concepts of ids, with a CUI that leads to another replaced by it. Others stay as they are.

    Args: ids: {id: [concepts]}; an id that is not in it is a concept itself. used: the ids that are looked up.
    Returns: ({id: [concepts]} with all CUIs replaced, the same with synonymous ones replaced, a Counter of outcomes).
    """
    concepts = {i: ids.get(i, [i]) for i in used}
    found = follow_cuis(umls, {c for all_of_id in concepts.values() for c in all_of_id if CUI.fullmatch(c)})
    every = {cui: target or cui for cui, (target, _) in found.items()}
    synonyms = every | {cui: cui for cui, (_, outcome) in found.items() if outcome == "not synonymous"}
    followed = ({i: [to.get(c, c) for c in x] for i, x in concepts.items()} for to in (every, synonyms))
    return *followed, Counter(outcome for _, outcome in found.values())


def follow_all(cui1, rel, cui2, alive):
    """Where each CUI leads: (target int32, outcome int8), both (N,); a target counts if its outcome has a concept.

    Args: cui1, rel, cui2: columns of MRCUI: numbers of CUIs (-1: none), and prefix8 of REL. alive: (N,) bool.
    """
    n = len(alive)
    # The steps are a graph in which each CUI leads to one node: a CUI, or after these an outcome without a concept.
    step, synonymous = np.arange(n + len(OUTCOMES), dtype=np.int32), np.ones(n + len(OUTCOMES), bool)
    step[:n] = n + UNKNOWN
    step[cui1[rel == prefix8("SUBX")]] = n + NOT_IN_SUBSET
    step[cui1[rel == prefix8("DEL")]] = n + DELETED
    mapped = np.isin(rel, [prefix8(name) for name in ("RB", "RN", "RO")])
    for has_rel, is_synonymous in ((mapped, False), (rel == prefix8("SY"), True)):  # the later ones count
        rows = has_rel & (cui2 >= 0)
        pairs = np.unique(cui1[rows] << 32 | cui2[rows])
        source, index, n_targets = np.unique(pairs >> 32, return_index=True, return_counts=True)
        step[source] = np.where(n_targets == 1, pairs[index] & (1 << 32) - 1, n + SEVERAL)
        synonymous[source] = is_synonymous
    live = np.flatnonzero(alive)
    step[live], synonymous[live] = live, True
    for _ in range(len(cui1).bit_length()):  # doubles the number of steps each time, until it is that of the rows
        further = step[step]
        if (further == step).all():
            break
        synonymous &= synonymous[step]
        step = further
    outcome_of_node = np.concatenate([np.where(alive, MERGED, LOOP), np.arange(len(OUTCOMES))]).astype(np.int8)
    target, outcome = step[:n], outcome_of_node[step[:n]]
    outcome[(outcome == MERGED) & ~synonymous[:n]] = NOT_SYNONYMOUS
    outcome[live] = ALIVE
    return target, outcome
