"""The relations of a graph: the paper's seven, or those with the finer names (RELA) that a release gives them.

A relation is named REL ("PAR") or REL:RELA ("RB:has_part"), and synonymy is last. A row of MRREL states it from CUI2
to CUI1, and another row its inverse, from CUI1 to CUI2.
"""

from collections import Counter

import numpy as np

from configs import UserError
from support import rrf
from support.arrays import concat_ranges
from support.rrf import prefix8, read_rrf

PAPER_RELATIONS = ("PAR", "CHD", "AQ", "QB", "RB", "RN", "SY")
INVERSE = (1, 0, 3, 2, 5, 4, 6)  # a parent's inverse is a child, and so on
HREL = "[HREL]"  # hides a relation
# With finer names other relations (RO) join them, as nearly all names are theirs.
RELS = (*PAPER_RELATIONS[:-1], "RO")
INVERSE_REL = dict(zip(PAPER_RELATIONS, (PAPER_RELATIONS[i] for i in INVERSE))) | {"RO": "RO"}
MAX_KINDS = 1 << 15  # a triple_key has 15 bits for its relation
N_VOTES = 200  # triples of a kind that vote on its inverse


def triple_key(h, r, t):
    """Triples as one int64 each, so that they sort by head and membership is a search."""
    return (np.asarray(h, np.int64) << 39) | (np.asarray(t, np.int64) << 15) | r


def split_key(keys):
    """(h int32, r int16, t int32) of triple_key(h, r, t)."""
    h, t = (keys >> 39).astype(np.int32), (keys >> 15 & (1 << 24) - 1).astype(np.int32)
    return h, (keys & MAX_KINDS - 1).astype(np.int16), t


def sort_unique(keys):
    """np.unique of integers, in place: the triples of English are 20 million."""
    keys.sort()
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys


def new_tokens(names):
    """The tokens that relations add to a vocabulary: one each, and [HREL]."""
    return [*(f"[{name}]" for name in names), HREL]


def keys_of_rels(keys, rel):
    """The sorted keys of triples with the REL in the place of each relation: `keys` itself if no relation is finer.

    Args: rel: (relations,) the index of the REL of each.
    """
    if (rel == range(len(rel))).all():
        return keys
    h, r, t = split_key(keys)
    return sort_unique(triple_key(h, rel[r], t))


def rel_of(name):
    """The REL of a relation's name."""
    return name.partition(":")[0]


def rela_of(name):
    """The RELA of a relation's name, "" if it has none."""
    return name.partition(":")[2]


def find_rel(rows, rels):
    """The REL of rows of MRREL as indices into `rels`; -1 if it is another."""
    code = rows.prefix8("REL")
    rel = np.full(len(code), -1)
    for i, name in enumerate(rels):
        rel[code == prefix8(name)] = i
    return rel


def find_relation(rows, rel, relations):
    """The relation of rows of MRREL, int16: REL:RELA as an index into `relations`, or REL where that is none of them.

    Args: rel: of each row, as an index into those of the relations that are a REL.
    """
    rels, index = [name for name in relations if rel_of(name) == name], {x: i for i, x in enumerate(relations)}
    if len(rels) == len(relations):
        return rel.astype(np.int16)
    rela = rows.strings("RELA").dictionary_encode()
    names = rela.dictionary.to_pylist()
    table = np.array([[index.get(f"{name}:{x}", index[name]) for x in names] for name in rels], np.int16)
    return table[rel, np.asarray(rela.indices)]


# ---------------------------------------------------------------- finer names


def choose_relations(umls, group, n, selection, counters, log):
    """The n most frequent finer relations of a release, beside the RELs that they fall back to.

    A kind is a REL with a RELA. Its triples are counted in the whole release, among concepts with a group, so that all
    languages have the same relations. A kind enters with its inverse. The first pair that does not fit ends the list.
    SY joins a concept to itself, and a REL with one kind alone would only be renamed, so neither is refined.

    Args: group: (N_CUIS,) of concepts. n: n_rela. selection: of sources. counters: (skipped, nci) of read_rrf.
    Returns: (names, synonymy last; index of the inverse of each). Raises: UserError if no kind has a mutual inverse.
    """
    # MRREL is read again for the triples, and its malformed rows are shown and counted then.
    silent = None if counters[0] is None else Counter({"MRREL.RRF": rrf.N_SHOWN})
    keys, kinds = read_kinds(umls, group, selection, silent)
    inverse_of, n_triples = find_inverses(keys, kinds)
    pairs = {tuple(sorted({kind, inverse})) for kind, inverse in inverse_of.items()}
    frequency = {pair: max(n_triples[kind] for kind in pair) for pair in pairs}
    chosen = []
    for pair in sorted(pairs, key=lambda pair: (-frequency[pair], pair)):
        if len(chosen) + len(pair) > n:
            break
        chosen += pair
    if n and not chosen:
        what, place = "relation with a finer name (RELA) and an inverse", rrf.find_rrf(umls, "MRREL")[0]
        if inverse_of:
            raise UserError(f"{place}: the most frequent {what} does not fit into n_rela = {n}; give at least 2")
        selected = " from the selected sources" * any(selection)
        raise UserError(f"{place}: no {what}{selected}; leave out --relations rela (--n_rela 0 adds RO alone)")
    rarest = f", the rarest with {n_triples[chosen[-1]]:,} triples" if chosen else ""
    log(f"MRREL: {len(chosen)} finer relations{rarest}, of {len(inverse_of):,} with an inverse")
    compare_with_mrdoc(umls, {kind: inverse_of[kind] for kind in chosen}, counters[0], log)
    names = (*RELS, *chosen, "SY")
    inverse_of |= INVERSE_REL
    return names, tuple(names.index(inverse_of[name]) for name in names)


def read_kinds(umls, group, selection, skipped):
    """MRREL -> (sorted triple_key(CUI of h, kind, CUI of t) of all kept concepts, the names REL:RELA of the kinds).

    Triples are as in umls.read_relations, in which synonymy is left out here. An empty RELA makes a kind too.
    """
    is_kept, number, found = np.append(group >= 0, False), {}, [np.zeros(0, np.int64)]  # the last for "no concept", -1

    def parse_block(rows):
        t, h = rows.parse_cui("CUI1", optional=True), rows.parse_cui("CUI2", optional=True)
        rel = find_rel(rows, RELS)
        keep = (rel >= 0) & (rows.prefix8("SUPPRESS") == prefix8("N")) & is_kept[h] & is_kept[t] & (h != t)
        keep &= selection.includes(rows)
        rela = rows.filter(keep).strings("RELA").dictionary_encode()
        pair = rel[keep] * len(rela.dictionary) + np.asarray(rela.indices)
        pairs, index = np.unique(pair, return_inverse=True)
        names = rela.dictionary.to_pylist()
        return h[keep], index, t[keep], [f"{RELS[k // len(names)]}:{names[k % len(names)]}" for k in pairs.tolist()]

    for h, index, t, names in read_rrf(umls, "MRREL", parse_block, skipped):
        kind = np.array([number.setdefault(name, len(number)) for name in names], np.int64)
        if len(number) > MAX_KINDS:
            path = rrf.find_rrf(umls, "MRREL")[0]
            raise UserError(f"{path}: more than {MAX_KINDS:,} pairs of REL and RELA; leave out --relations rela")
        found.append(triple_key(h, kind[index], t))
    return sort_unique(np.concatenate(found)), [*number]


def find_inverses(keys, kinds):
    """({kind: its inverse}, {kind: its triples}) of the kinds that can be refined and have a mutual inverse.

    The inverse is the most frequent kind of the triples in the opposite direction. In a tie another kind comes before
    the kind itself, then the first by name. At most N_VOTES triples of a kind vote. Args: as read_kinds returns them.
    """
    kind_of_key = split_key(keys)[1]
    order = np.argsort(kind_of_key, kind="stable")  # a radix sort of small integers
    size = np.bincount(kind_of_key, minlength=len(kinds))
    offset, n_kinds = np.cumsum(size) - size, Counter(map(rel_of, kinds))
    can_be_refined = [rela_of(kind) != "" and n_kinds[rel_of(kind)] > 1 for kind in kinds]
    likeliest = {}
    for k in np.flatnonzero(can_be_refined).tolist():
        voters = np.linspace(0, size[k] - 1, min(size[k], N_VOTES)).astype(np.int64)
        h, _, t = split_key(keys[order[offset[k] + voters]])
        begin = np.searchsorted(keys, triple_key(t, 0, h))
        back = np.searchsorted(keys, triple_key(t, MAX_KINDS - 1, h), side="right")
        votes = Counter(kind_of_key[concat_ranges(begin, back - begin)].tolist())
        rel = INVERSE_REL[rel_of(kinds[k])]
        candidates = [(-n, i == k, kinds[i]) for i, n in votes.items() if can_be_refined[i] and rel_of(kinds[i]) == rel]
        if candidates:
            likeliest[kinds[k]] = min(candidates)[-1]
    mutual = {kind: inverse for kind, inverse in likeliest.items() if likeliest.get(inverse) == kind}
    return mutual, dict(zip(kinds, size.tolist()))


def compare_with_mrdoc(umls, inverse_of, skipped, log):
    """Logs which inverses MRDOC states otherwise, if the release has it. The rows count: they are the graph.

    Args: inverse_of: {kind: its inverse}.
    """
    if not rrf.find_rrf(umls, "MRDOC"):
        return
    stated = {}
    columns = ("DOCKEY", "VALUE", "TYPE", "EXPL")
    for block in read_rrf(umls, "MRDOC", lambda rows: [rows.strings(c).to_pylist() for c in columns], skipped):
        stated |= {rela: inverse for key, rela, what, inverse in zip(*block) if (key, what) == ("RELA", "rela_inverse")}
    known = [(kind, stated[rela_of(kind)], rela_of(i)) for kind, i in inverse_of.items() if rela_of(kind) in stated]
    others = [f"{kind} (there {there}, in the rows {in_rows})" for kind, there, in_rows in known if there != in_rows]
    differ = f", another for {', '.join(others)}; the rows count" * bool(others)
    log(f"MRDOC: the same inverse for {len(known) - len(others)} of the {len(inverse_of)} finer relations{differ}")
