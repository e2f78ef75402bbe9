"""The sources of a release (SAB): those that are read, and the terms and relations that each gives a language."""

import difflib
import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs import UserError
from support import rrf
from support.forms import find_misfit
from support.rrf import read_rrf

FORM = {str: (int, int, int, str)}  # of counts: {SAB: [terms, relations, PAR and CHD among them, restriction level]}
N_SHOWN = 10  # sources of a language; the others are one line
# In languages other than English a level-0 subset has names of these sources alone, and a larger subset has others. So
# a language with these alone is called nearly empty. LOINC may have many names there, but only of tests.
LEVEL_0 = re.compile("ICPC...|LNC-..-..|MTHMST...")
LARGER = {"fr": "MSHFRE and MDRFRE are level 3"}  # of a language: its larger sources, where they are known
LONG = np.uint64(1 << 56)  # the prefix8 of a name of eight bytes or more is at least this


class Selection(NamedTuple):
    """The sources that are read: those in `only` if it has any, else all but those in `without`."""

    only: list[str]
    without: list[str]

    def includes(self, rows):
        """Whether each row is of a selected source: a bool array, or True for all rows. Names are compared whole."""
        if not (names := self.only or self.without):
            return True
        return np.asarray(pc.is_in(rows.strings("SAB"), pa.array(names))) == bool(self.only)


# ---------------------------------------------------------------- which there are


def read_source_list(umls, skipped=None):
    """MRSAB -> ({SAB: restriction level}, the sources that the subset holds); both empty if the release has none.

    A subset of MetamorphoSys lists all sources of the release, and marks its own with SABIN=Y.
    """
    levels, present = {}, set()
    if rrf.find_rrf(umls, "MRSAB"):
        columns = ("RSAB", "SRL", "SABIN")
        for block in read_rrf(umls, "MRSAB", lambda rows: [rows.strings(c).to_pylist() for c in columns], skipped):
            for sab, level, is_present in zip(*block):
                levels[sab] = max(levels.get(sab, ""), level if re.fullmatch("[0-9]", level) else "")
                present |= {sab} if is_present == "Y" else set()
    return levels, present


def check_selection(umls, selection, levels, present, skipped=None):
    """Raises UserError for a selected source that the release does not hold. levels, present: of read_source_list."""
    names = [*selection.only, *selection.without]
    if names and not present:  # without MRSAB
        blocks = read_rrf(
            umls, "MRCONSO", lambda rows: rows.strings("SAB").unique().to_pylist(),
            None if skipped is None else Counter(),  # they are counted when the terms are read
        )  # fmt: skip
        present = set().union(*blocks)
    for name in names:
        if name in levels and name not in present:
            level = f" (restriction level {levels[name]})" * bool(levels[name])
            advice = f"the release lists it{level}, and the subset was made without it; make another in MetamorphoSys"
            raise UserError(f"{umls} has no source {ascii(name)}: {advice}")
        if name not in present:
            raise unknown_source(umls, name, present)


def unknown_source(umls, name, known):
    """The UserError for a source that is not one of `known`, with the names most like it, or some of them."""
    by_capitals = {sab.upper(): sab for sab in sorted(known)}
    near = [by_capitals[x] for x in difflib.get_close_matches(name.upper(), by_capitals)]
    some = " ".join(sorted(known)[:20]) + " ..." * (len(known) > 20)
    advice = f"did you mean {' or '.join(near)}?" if near else f"it has {some}"
    return UserError(f"{umls} has no source {ascii(name)}: {advice}")


# ---------------------------------------------------------------- counts by source


def count_terms(rows, sources):
    """Counts of a block of atoms: [(SAB, terms, 0, 0, restriction level)], a SAB once or more often.

    sources: dictionary of "SAB|TTY", as parse_atoms ranks them. A source has one level, so one row of each tells it.
    """
    index = np.asarray(sources.indices)
    first = np.flatnonzero(np.diff(np.maximum.accumulate(index), prepend=-1))  # entries come in order of appearance
    levels = rows.filter(first).strings("SRL").to_pylist()
    n = np.bincount(index, minlength=len(levels)).tolist()
    names = (text.split("|")[0] for text in sources.dictionary.to_pylist())
    return [(name, k, 0, 0, level) for name, k, level in zip(names, n, levels)]


def count_relations(rows, is_hierarchical):
    """Counts of a block of relations: [(SAB, 0, relations, those of them that are PAR or CHD, "")].

    A name of up to seven bytes is its own key. Only longer names are made strings, because that takes twice as long.
    """
    key = rows.prefix8("SAB")
    is_long = key >= LONG
    long = rows.filter(is_long).strings("SAB").dictionary_encode()
    key[is_long] = LONG + np.asarray(long.indices).astype(np.uint64)
    found, n = np.unique(key << np.uint64(1) | is_hierarchical, return_counts=True)
    names, counts = long.dictionary.to_pylist(), []
    for key, k in zip(found.tolist(), n.tolist()):
        word, hierarchical = key >> 1, key & 1
        name = names[word - int(LONG)] if word >= LONG else word.to_bytes(8, "little").decode().rstrip("\0")
        counts.append((name, 0, k, k * hierarchical, ""))
    return counts


def sum_by_source(blocks, levels):
    """Lists of count_terms and count_relations -> counts by source, as in FORM. levels: of MRSAB, for other sources."""
    total = {}
    for sab, *counts, level in (x for block in blocks for x in block):
        *before, known = total.get(sab, (0, 0, 0, ""))
        known = max(known, level) if re.fullmatch("[0-9]", level) else known
        total[sab] = [*(a + b for a, b in zip(before, counts)), known]
    return {sab: [*counts, level or levels.get(sab, "")] for sab, (*counts, level) in sorted(total.items())}


# ---------------------------------------------------------------- the report of a build


def print_sources(lang, sources, only):
    """Prints the largest sources of a language, and lines that warn. sources: of a manifest. only: of its settings."""
    if not sources or find_misfit(sources, FORM):  # an older data set, or one of another program
        return
    by_size = sorted(sources.items(), key=lambda x: (-x[1][0] - x[1][1], x[0]))
    table = [(ascii(sab)[1:-1], level or "?", *counts) for sab, (*counts, level) in by_size[:N_SHOWN]]
    if rest := [counts for _, (*counts, _) in by_size[N_SHOWN:]]:
        table.append((f"{len(rest)} others", "", *map(sum, zip(*rest))))
    width = max(len(row[0]) for row in table)
    print(f"\n{lang}: rows of each source that were used (SRL: its restriction level, 0 is free under the licence)")
    print(f"  {'':<{width}}  SRL{'terms':>11}{'relations':>11}{'PAR, CHD':>11}")
    for name, level, *counts in table:
        print(f"  {name:<{width}}  {level:>3}" + "".join(f"{n:>11,}" for n in counts))
    for line in find_lacks(lang, sources, only):
        print(f"  {line}")


def find_lacks(lang, sources, only):
    """Yields a warning for each lack in the counts by source. only: the selected sources, [] for all."""
    named = [sab for sab, (n_terms, *_) in sources.items() if n_terms]
    if not only and named and lang != "en" and all(map(LEVEL_0.fullmatch, named)):
        larger = LARGER.get(lang, "the translations of MSH and MDR are level 3, where there are any")
        has = "a MetamorphoSys subset with level 3 has them"
        yield f"{lang} is nearly empty: all of its names are of restriction level 0; {larger}: {has}"
    hierarchies = [sab for sab, (_, _, n, _) in sources.items() if n]
    # HPOFRE has the hierarchy of HPO, if that was selected as well.
    without = [sab for sab in named if not any(map(sab.startswith, hierarchies))]
    if only and without:
        shown = " ".join(ascii(sab)[1:-1] for sab in without[:N_SHOWN]) + " ..." * (len(without) > N_SHOWN)
        advice = "a translation has its hierarchy in the source that it translates (MSHFRE in MSH), so select both"
        yield f"sources with names but without PAR or CHD: {shown}; {advice}"
