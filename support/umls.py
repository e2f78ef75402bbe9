"""A UMLS release -> the tables of a knowledge graph, one set for each language; cache.py keeps them.

They hold the names of concepts (MRCONSO, and MRRANK for their order), their types (MRSTY and the table of semantic
groups), and their relations (MRREL). Names and relations are those of the sources that sources.py selects. data.py
makes the graph of the tables.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import UserError
from support import rrf
from support.files import read_bytes
from support.relations import (
    INVERSE,
    PAPER_RELATIONS,
    choose_relations,
    find_rel,
    find_relation,
    rel_of,
    sort_unique,
    triple_key,
)
from support.rrf import prefix8, read_rrf
from support.sources import check_selection, count_relations, count_terms, find_lacks, read_source_list, sum_by_source

N_CUIS = 10_000_000  # a CUI is C and seven digits, so a table over all of them is small
MAX_RANK = 4095
LANGUAGES = {  # what users type: (LAT code of the UMLS, folder of E3C)
    "en": ("ENG", "English"), "fr": ("FRE", "French"), "es": ("SPA", "Spanish"), "it": ("ITA", "Italian"),
    "eu": ("BAQ", "Basque"), "de": ("GER", ""), "pt": ("POR", ""), "nl": ("DUT", ""), "cs": ("CZE", ""),
    "da": ("DAN", ""), "el": ("GRE", ""), "et": ("EST", ""), "fi": ("FIN", ""), "he": ("HEB", ""),
    "hr": ("SCR", ""), "hu": ("HUN", ""), "ja": ("JPN", ""), "ko": ("KOR", ""), "lv": ("LAV", ""),
    "no": ("NOR", ""), "pl": ("POL", ""), "ru": ("RUS", ""), "sv": ("SWE", ""), "tr": ("TUR", ""),
    "uk": ("UKR", ""), "zh": ("CHI", ""), "ar": ("ARA", ""),
}  # fmt: skip


@dataclass
class Tables:
    """The concepts, terms and relations of one language.

    Concepts are 0..N-1 in the order of their CUIs. The strings of concept c are
    `terms[first_term[c]:first_term[c+1]]`, the preferred term first. `keys` is the set of triples, sorted.
    """

    lang: str
    cui: np.ndarray  # (N,) int32: the number in the CUI
    group: np.ndarray  # (N,) int16: index into `groups`
    groups: list[str]  # abbreviations of the semantic groups
    first_term: np.ndarray  # (N + 1,) int64
    terms: pa.Array  # of strings
    keys: np.ndarray  # (E,) int64: triple_key of each triple
    sources: dict = field(default_factory=dict)  # rows by source, as sources.FORM has it
    relations: tuple[str, ...] = PAPER_RELATIONS  # the names of r, as relations.py has them
    inverse: tuple[int, ...] = INVERSE  # of each relation, as an index into `relations`


# ---------------------------------------------------------------- languages


def lat_code(lang):
    """The LAT code of MRCONSO for one of our language codes."""
    return LANGUAGES[lang][0] if lang in LANGUAGES else lang


def parse_languages(text):
    """Our codes for what the user typed: ['fr'] for fr, FRE or french; en, fr and es for multi. Raises: UserError."""
    names = re.sub(r"\bmulti\b", "en,fr,es", text, flags=re.I).split(",")
    return list(dict.fromkeys(language_code(name.strip()) for name in names))


def language_code(text):
    """Our code for one language."""
    if not text:
        raise UserError("no language given; example: make data LANG=fr (or en, es, multi, or a LAT code such as ITA)")
    for code, names in LANGUAGES.items():
        if text.lower() in (code, *(name.lower() for name in names if name)):
            return code
    if re.fullmatch(r"[A-Z]{3}", text):
        return text
    known = " ".join(LANGUAGES)
    raise UserError(f"unknown language '{text}'; use {known}, a LAT code such as FRE, several as en,fr, or multi")


# ---------------------------------------------------------------- the three files


def read_semantic_types(umls, kept, table, skipped=None, nci=None):
    """MRSTY and a table of semantic groups -> (groups, (N_CUIS,) int16 group of each kept concept).

    A concept is kept if one of its semantic types is. Of several kept types, the least deep one (shortest tree number
    STN, then STN, then TUI) gives the group. It is -1 for other concepts, and -2 for those without a semantic type.

    Args: kept: TUIs and abbreviations of groups. table: a SemGroups.txt (GRP|name|TUI|type name).
    """
    group_of, _ = read_semantic_groups(table)
    if unknown := [k for k in kept if k not in group_of and k not in group_of.values()]:
        raise UserError(f"semantic_types: {', '.join(unknown)} not in {table}")
    groups = sorted(set(group_of.values()))

    def parse_block(rows):
        cui, tui = rows.parse_cui("CUI"), rows.parse_id("TUI", "T", 3, 3)
        good = (cui >= 0) & (tui >= 0)
        rows, cui, tui = rows.filter(good), cui[good], tui[good]
        one_of_each = rows.filter(np.sort(np.unique(tui, return_index=True)[1]))
        return cui, tui, dict(zip(one_of_each.strings("TUI").to_pylist(), one_of_each.strings("STN").to_pylist()))

    cuis, tuis, tree_numbers = zip(*read_rrf(umls, "MRSTY", parse_block, skipped, nci))
    depth = {tui: stn for block in tree_numbers for tui, stn in block.items()}
    # The kept types in order of preference, so that the least deep one is the smallest number of a concept.
    by_depth = sorted(depth, key=lambda tui: (len(depth[tui]), depth[tui], tui))
    kept_types = [tui for tui in by_depth if tui in kept or group_of.get(tui) in kept]
    preference = np.full(1000, len(kept_types), np.int16)  # by the number in the TUI
    preference[[int(tui[1:]) for tui in kept_types]] = np.arange(len(kept_types))
    best = np.full(N_CUIS, len(kept_types) + 1, np.int16)
    np.minimum.at(best, np.concatenate(cuis), preference[np.concatenate(tuis)])
    return groups, np.array([groups.index(group_of[tui]) for tui in kept_types] + [-1, -2], np.int16)[best]


def read_cuis_of_types(umls, types):
    """The set of CUIs of the concepts with at least one of some semantic types (TUIs).

    Raises: UserError, also for a type that MRSTY does not have.
    """
    names = pa.array(types, pa.string())

    def parse_block(rows):
        cui, tui = rows.parse_cui("CUI"), rows.strings("TUI")
        keep = (cui >= 0) & np.array(pc.is_in(tui, value_set=names), bool)
        return {*zip(tui.filter(pa.array(keep)).to_pylist(), cui[keep].tolist())}

    rrf.check_files(umls, "MRSTY")
    found = set().union(*read_rrf(umls, "MRSTY", parse_block))
    if missing := sorted({*types} - {tui for tui, _ in found}):
        raise UserError(f"{umls}: MRSTY.RRF has no concept of type {missing[0]}; types are written T047")
    return {f"C{number:07d}" for _, number in found}


def read_semantic_groups(path):
    """({TUI: abbreviation of its group}, {abbreviation: name}) of a SemGroups.txt. Raises: UserError naming the row."""
    group_of, name_of = {}, {}
    try:
        for row, line in enumerate(read_bytes(path).decode().split("\n"), 1):
            if line.strip():
                fields = line.split("|")
                if len(fields) != 4:
                    raise UserError(f"{path}, row {row}: {len(fields)} columns instead of 4 (GRP|name|TUI|type)")
                group_of[fields[2]], name_of[fields[0]] = fields[:2]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None
    return group_of, name_of


def read_terms(umls, lats, group, selection, skipped=None, nci=None):
    """MRCONSO (and MRRANK) -> [(cui, first_term, terms, counts by source)] of each language, for concepts with a group.

    Rows with SUPPRESS other than N, or of sources that are not selected, are left out. The strings of a concept are in
    order of preference, and the first is the "preferred term" of section 3.1: TS=P STT=PF ISPREF=Y, then TS=P STT=PF,
    then TS=P, then the rest. Among equals the higher rank of (SAB, TTY) in MRRANK comes first, then the lower AUI.

    Returns: (that list, as in Tables, but with lists of counts; (N_CUIS,) bool: the concepts of MRCONSO from any
    source). Raises: UserError if a language has no row.
    """
    rank, has_row = read_ranks(umls, skipped), np.zeros(N_CUIS, bool)

    def parse_block(rows):
        cui, codes = rows.parse_cui("CUI"), rows.prefix8("LAT")
        rows, cui, languages = rows.filter(cui >= 0), cui[cui >= 0], codes[cui >= 0]
        has_row[cui] = True
        aui = rows.parse_id("AUI", "A", 7, 8)
        keep = (aui >= 0) & (group[cui] >= 0) & (rows.prefix8("SUPPRESS") == prefix8("N")) & selection.includes(rows)
        indices = {lat: np.flatnonzero(keep & (languages == prefix8(lat))) for lat in lats}
        atoms = {lat: parse_atoms(rows.filter(i), cui[i], aui[i], rank) for lat, i in indices.items()}
        return atoms, np.unique(codes)

    atoms, codes = zip(*read_rrf(umls, "MRCONSO", parse_block, skipped, nci))
    codes = np.unique(np.concatenate(codes))
    if missing := [lat for lat in lats if prefix8(lat) not in codes]:
        names = (int(c).to_bytes(8, "little").decode(errors="replace").rstrip("\0") for c in codes)
        path = rrf.find_rrf(umls, "MRCONSO")[0]
        raise UserError(f"{path}: no row in language {missing[0]}; it has {' '.join(sorted(names))}")
    terms = []
    for lat in lats:
        *parts, counts = zip(*(block.pop(lat) for block in atoms))
        terms.append((*sort_terms(*parts), counts))
    return terms, has_row


def read_ranks(umls, skipped=None):
    """{"SAB|TTY": rank} of MRRANK, {} if the release has none."""
    rank = {}
    if rrf.find_rrf(umls, "MRRANK"):
        blocks = read_rrf(umls, "MRRANK", lambda rows: (rows.strings("SAB", "TTY"), rows.strings("RANK")), skipped)
        for sources, ranks in blocks:
            for source, text in zip(sources.to_pylist(), ranks.to_pylist()):
                number = int(text.lstrip("0")[:5] or 0) if text.isdecimal() else 0  # MAX_RANK has four digits
                rank[source] = max(rank.get(source, 0), min(number, MAX_RANK))
    return rank


def parse_atoms(rows, cui, aui, rank):
    """Rows of MRCONSO in one language -> (cui, priority, string) of those with a name, and their counts by source.

    Low priorities come first.
    """
    start, end = rows.span("STR")
    keep = end > start  # an empty string is no name
    rows, cui, aui = rows.filter(keep), cui[keep], aui[keep]
    preferred_class = rows.prefix8("TS") == prefix8("P")
    preferred_form = preferred_class & (rows.prefix8("STT") == prefix8("PF"))
    preferred_atom = preferred_form & (rows.prefix8("ISPREF") == prefix8("Y"))
    level = 3 - preferred_class.astype(np.int64) - preferred_form - preferred_atom
    source = rows.strings("SAB", "TTY").dictionary_encode()
    ranks = np.array([rank.get(s, 0) for s in source.dictionary.to_pylist()] or [0])[source.indices]
    priority = (level << 39) | ((MAX_RANK - ranks) << 27) | aui
    return cui.astype(np.int32), priority, rows.strings("STR").cast(pa.large_string()), count_terms(rows, source)


def sort_terms(cui, priority, strings):
    """Atoms of one language -> (cui, first_term, terms) as in Tables: by concept and priority, each string once."""
    cui, priority, strings = np.concatenate(cui), np.concatenate(priority), pa.concat_arrays(strings)
    is_concept = np.zeros(N_CUIS, bool)
    is_concept[cui] = True
    concepts = np.flatnonzero(is_concept).astype(np.int32)
    concept = (np.cumsum(is_concept, dtype=np.int32) - 1)[cui].astype(np.int64)
    order = np.argsort(concept.astype(np.uint64) << np.uint64(41) | priority.astype(np.uint64))
    # Of equal strings of a concept the first stays. Only strings of equal length need to be compared.
    length = np.asarray(pc.binary_length(strings)).astype(np.int64)
    key = (concept << 32 | length)[order]
    by_key = np.argsort(key)
    same_length = np.flatnonzero(key[by_key[1:]] == key[by_key[:-1]])
    candidates = np.unique(by_key[np.concatenate([same_length, same_length + 1])])
    string_id = np.asarray(strings.take(pa.array(order[candidates])).dictionary_encode().indices)
    first_of_each = np.unique(concept[order[candidates]] << 32 | string_id, return_index=True)[1]
    keep = np.ones(len(order), bool)
    keep[candidates] = False
    keep[candidates[first_of_each]] = True
    order = order[keep]
    first_term = np.concatenate([[0], np.cumsum(np.bincount(concept[order], minlength=len(concepts)))])
    return concepts, first_term, strings.take(pa.array(order))


def read_relations(umls, terms, relations, selection, skipped=None, nci=None):
    """MRREL -> the sorted triple_key of each language's triples, and lists of counts by source.

    REL is the relation of the SECOND concept to the first: `C1|..|PAR|C2` says that C2 is a parent of C1. The paper
    does not say which of them is h. We read (h, r, t) as "h is the r of t", so that h = CUI2, r = REL, t = CUI1. Kept
    are the given relations with SUPPRESS=N of selected sources, both concepts with a term in the language. A concept is
    related to itself only by SY, and only if the language has two strings for it, or there would be nothing to read.

    Args: terms: (cui, first_term, ...) of each language. relations: their names; r is an index into them. A row whose
    REL:RELA is none of them has the relation of its REL.
    Returns: (a list of ((E,) int64, counts), (2, N_CUIS + 1) bool: the concepts in CUI1 and those in CUI2, of any row,
    the number of rows that have no CUI1 or no CUI2). Raises: UserError if these are many.
    """
    stands_in = np.zeros((2, N_CUIS + 1), bool)  # the last one for "no concept", -1
    concept_of, has_synonym = [], []
    for cui, first_term, *_ in terms:
        index = np.full(N_CUIS + 1, -1, np.int32)
        index[cui] = np.arange(len(cui))
        concept_of.append(index)
        has_synonym.append(np.append(np.diff(first_term) > 1, False))
    rels = [name for name in relations if name == rel_of(name)]
    synonymy, is_hierarchical = len(rels) - 1, np.isin(rels, ["PAR", "CHD"])

    def parse_block(rows):
        t, h = rows.parse_cui("CUI1", optional=True), rows.parse_cui("CUI2", optional=True)
        stands_in[0, t] = stands_in[1, h] = True
        n_empty = rows.filter((t < 0) | (h < 0)).count_empty("CUI1", "CUI2")
        rel = find_rel(rows, rels)
        keep = (rel >= 0) & (rows.prefix8("SUPPRESS") == prefix8("N")) & selection.includes(rows)
        n_rows, rows, h, rel, t, found = len(t), rows.filter(keep), h[keep], rel[keep], t[keep], []
        r = find_relation(rows, rel, relations)
        for index, synonyms in zip(concept_of, has_synonym):
            head, tail = index[h], index[t]
            good = (head >= 0) & (tail >= 0) & ((head != tail) | ((rel == synonymy) & synonyms[head]))
            keys = triple_key(head[good], r[good], tail[good])
            found.append((keys, count_relations(rows.filter(good), is_hierarchical[rel[good]])))
        return *found, np.array([n_empty, n_rows])

    *languages, counts = zip(*read_rrf(umls, "MRREL", parse_block, skipped, nci))
    n_empty, n_rows = sum(counts).tolist()
    rrf.check_empty_cuis(umls, n_empty, n_rows)
    languages = (zip(*blocks) for blocks in languages)
    return [(sort_unique(np.concatenate(keys)), counts) for keys, counts in languages], stands_in, n_empty


# ---------------------------------------------------------------- a release -> tables


def read_tables(umls, langs, s, semgroups, selection, counters, log):
    """The Tables of each language, from the files.

    Args: s: a configs.Data. selection: of sources. counters: (skipped, nci) of read_rrf.
    """
    levels, present = read_source_list(umls, counters[0])
    check_selection(umls, selection, levels, present, counters[0])
    groups, group = read_semantic_types(umls, s.semantic_types, semgroups, *counters)
    log(f"MRSTY: {np.count_nonzero(group >= 0):,} concepts of the kept semantic types")
    terms, has_row = read_terms(umls, [lat_code(lang) for lang in langs], group, selection, *counters)
    log(f"MRCONSO: {sum(len(strings) for _, _, strings, _ in terms):,} terms")
    relations, inverse = PAPER_RELATIONS, INVERSE
    if s.relations == "rela":
        relations, inverse = choose_relations(umls, group, s.n_rela, selection, counters, log)
    triples, stands_in, n_empty = read_relations(umls, terms, relations, selection, *counters)
    without = f" ({n_empty:,} rows without CUI1 or CUI2)" * bool(n_empty)
    log(f"MRREL: {sum(len(keys) for keys, _ in triples):,} relations{without}")
    hint = "" if rrf.find_rrf(umls, "MRFILES") else "; many mean that a file was cut"  # MRFILES states its rows
    for line in find_gaps(group, has_row, *stands_in[:, :-1]):
        log(line + hint)
    tables = []
    for lang, (cui, first_term, strings, n_terms), (keys, n_relations) in zip(langs, terms, triples):
        sources = sum_by_source((*n_terms, *n_relations), levels)
        if not len(keys):
            what = f"{len(cui)} concepts with a term and a kept semantic type, none of them related"
            settings = "--semantic_types" + ", --sources and --exclude_sources" * any(selection)
            lacks = "".join(f"; {line}" for line in find_lacks(lang, sources, selection.only))
            advice = f"see {settings}, or use a larger subset{lacks}"
            raise UserError(f"{umls}: no relation left in language {lang} ({lat_code(lang)}): {what}; {advice}")
        tables.append(Tables(lang, cui, group[cui], groups, first_term, strings, keys, sources, relations, inverse))
    return tables


def find_gaps(group, has_row, in_cui1, in_cui2):
    """Yields a line for each kind of gap in the concepts. Files that were cut leave many.

    Args: (N_CUIS,) arrays: group of each, and which are in MRCONSO, in CUI1 and in CUI2 of MRREL.
    """
    related = in_cui1 | in_cui2
    for what, concepts, gaps in (
        ("MRCONSO have no semantic type in MRSTY", has_row, group == -2),
        ("MRREL have no row in MRCONSO", related, ~has_row),
        ("MRREL have relations in one direction only", related, in_cui1 != in_cui2),
    ):
        if n := np.count_nonzero(concepts & gaps):
            yield f"{n:,} of the {np.count_nonzero(concepts):,} concepts of {what}"
