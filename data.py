"""RRF files + clinical text -> knowledge graph -> four task data sets -> tokens on disk -> batches.

    python data.py build --lang fr --umls 2022AB --e3c E3C-Corpus            -> datasets/fr
    python data.py build configs/v2-multi.toml --umls 2022AB --e3c E3C-Corpus

Reads top to bottom in the order in which data flows (paper, section 3.1): the release is read into
one graph per language; triples and paths are sampled from it, stratified by semantic group; terms and
documents become token ids once; training maps the result into memory and masks it batch by batch.
Everything random is a function of the seed alone: same input, same seed, same bytes.
"""

import hashlib
import json
import os
import re
import shutil
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, ipc
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm

import configs
from configs import UserError, write_atomic

# Section 3.1's seven relation types. SY last, so that the six classes of link prediction are 0..5.
RELATIONS = ("PAR", "CHD", "AQ", "QB", "RB", "RN", "SY")
SY = 6
INVERSE = np.array([1, 0, 3, 2, 5, 4, 6])
TASKS = ("mlm", "ep", "lp", "tc")
NAMES = ("masked language modelling", "entity prediction", "link prediction", "triple classification")
MLM, EP, LP, TC = range(4)
TRUE, OTHER_PAIR, OTHER_RELATION = range(3)  # kinds of triple-classification examples
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
RELATION_TOKENS = tuple(f"[{r}]" for r in RELATIONS) + ("[HREL]",)
PARTS = ("train", "valid")
SHORTEST_DOCUMENT = 5  # tokens; what is shorter holds nothing to learn from

RRF = {  # columns of the release files used here, in order (UMLS Reference Manual, chapter 3)
    "MRCONSO": "CUI LAT TS LUI STT SUI ISPREF AUI SAUI SCUI SDUI SAB TTY CODE STR SRL SUPPRESS CVF".split(),
    "MRREL": "CUI1 AUI1 STYPE1 REL CUI2 AUI2 STYPE2 RELA RUI SRUI SAB SL RG DIR SUPPRESS CVF".split(),
    "MRSTY": "CUI TUI STN STY ATUI CVF".split(),
    "MRRANK": "RANK SAB TTY SUPPRESS".split(),
}
CUIS = 10_000_000  # a CUI is C and seven digits, so a table over all of them is small
LANGUAGES = {  # what users type: (LAT code of the UMLS, folder of E3C)
    "en": ("ENG", "English"), "fr": ("FRE", "French"), "es": ("SPA", "Spanish"), "it": ("ITA", "Italian"),
    "eu": ("BAQ", "Basque"), "de": ("GER", ""), "pt": ("POR", ""), "nl": ("DUT", ""), "cs": ("CZE", ""),
    "da": ("DAN", ""), "el": ("GRE", ""), "et": ("EST", ""), "fi": ("FIN", ""), "he": ("HEB", ""),
    "hr": ("SCR", ""), "hu": ("HUN", ""), "ja": ("JPN", ""), "ko": ("KOR", ""), "lv": ("LAV", ""),
    "no": ("NOR", ""), "pl": ("POL", ""), "ru": ("RUS", ""), "sv": ("SWE", ""), "tr": ("TUR", ""),
    "uk": ("UKR", ""), "zh": ("CHI", ""),
}  # fmt: skip


# ---------------------------------------------------------------- keyed randomness


def mix(*keys):
    """A 64-bit hash of integers (SplitMix64, one round a key), element by element over arrays."""
    x = np.uint64(0)
    with np.errstate(over="ignore"):
        for key in keys:
            x = (x ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x


def uniform(*keys):
    """mix(*keys) as float64 in [0, 1)."""
    return (mix(*keys) >> np.uint64(11)) * 2.0**-53


def held_out(cui_a, cui_b, seed, share):
    """Whether the unordered concept pair belongs to the validation part (bool array).

    A function of the pair alone, so that the inverse row, every relation and every task of a pair,
    in every language, are on the same side.
    """
    return uniform(seed, np.minimum(cui_a, cui_b), np.maximum(cui_a, cui_b)) < share


# ---------------------------------------------------------------- the release: RRF files -> graph


@dataclass
class Graph:
    """The knowledge graph G = (C, E, R) of one language (section 3.1), on integers.

    Concepts are 0..N-1 in the order of their CUIs; the strings of concept c are
    `terms[first_term[c]:first_term[c+1]]`, the preferred one first. The triples (h, r, t) are a set,
    sorted; `known` holds the sorted keys of the triples and of their inverses, for membership.
    """

    lang: str
    cui: np.ndarray  # (N,) int32: the number in the CUI
    group: np.ndarray  # (N,) int8: index into `groups`
    groups: list[str]
    first_term: np.ndarray  # (N + 1,) int64
    terms: pa.Array  # of strings
    h: np.ndarray
    r: np.ndarray
    t: np.ndarray
    known: np.ndarray

    def key(self, h, r, t):
        return (h.astype(np.int64) * len(self.cui) + t) * 8 + r

    def contains(self, h, r, t):
        """Whether (h, r, t), or its inverse, is a triple of the graph (bool array)."""
        key = self.key(h, r, t)
        at = np.minimum(np.searchsorted(self.known, key), len(self.known) - 1)
        return self.known[at] == key

    def stratum(self, h, t):
        return self.group[h].astype(np.int64) * len(self.groups) + self.group[t]


def find_rrf(umls, name):
    """Path of NAME.RRF in a release folder; None if it is not there."""
    for path in (Path(umls, f"{name}.RRF"), Path(umls, "META", f"{name}.RRF")):
        if path.is_file():
            return path


def read_rrf(path, columns):
    """Yields record batches of the named string columns of one RRF file.

    `|`-delimited with a trailing `|` on each row; no quoting, so `"` is an ordinary character.

    Raises: UserError naming the row, for wrong column counts, bytes that are not UTF-8, bad CUIs.
    """
    names = RRF[path.stem] + [""]  # the trailing pipe is one more, empty column
    read = csv.ReadOptions(column_names=names, block_size=8 << 20)
    parse = csv.ParseOptions(delimiter="|", quote_char=False)
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=columns)
    convert.strings_can_be_null = False
    try:
        rows = 0
        with pa.OSFile(str(path)) as f, progress(path.name, path.stat().st_size, "B") as bar:
            for batch in csv.open_csv(f, read, parse, convert):
                yield batch
                rows += len(batch)
                bar.update(f.tell() - bar.n)
        if rows == 0:
            raise pa.ArrowInvalid("there is no row in it")
    except (pa.ArrowInvalid, OSError) as e:
        raise explain(path, e) from None


def explain(path, error):
    """The UserError for an RRF file that could not be read, with the first bad row."""
    names = RRF[path.stem]
    if path.stat().st_size == 0:
        return UserError(f"{path}: the file is empty; unpack the release again")
    with open(path, "rb") as f:
        for n, line in enumerate(f, 1):
            if not line.strip():
                continue
            if line.count(b"|") != len(names):
                cut = "" if line.endswith(b"\n") else ", and the file ends in the middle of it"
                return UserError(
                    f"{path}, row {n}: {line.count(b'|')} columns instead of {len(names)}{cut}; "
                    "the file is damaged or truncated: unpack the release again"
                )
            try:
                row = dict(zip(names, line.decode("utf-8").split("|")))
            except UnicodeDecodeError as e:
                column = names[min(line[: e.start].count(b"|"), len(names) - 1)]
                return UserError(
                    f"{path}, row {n}, column {column}: byte 0x{line[e.start]:02x} is not UTF-8; "
                    "unpack the release again or convert the file to UTF-8"
                )
            for column in ("CUI", "CUI1", "CUI2"):
                if row.get(column) and not re.fullmatch(r"C\d{7}", row[column]):
                    return UserError(f"{path}, row {n}, column {column}: '{row[column]}' is not C and seven digits")
            if not re.fullmatch(r"A\d{7,9}", row.get("AUI", "A0000000")):
                return UserError(f"{path}, row {n}, column AUI: '{row['AUI']}' is not A and seven digits or more")
    return UserError(f"{path}: {error}")


def cui_numbers(column):
    """['C0000123', ...] -> int32 [123, ...], by arithmetic on the bytes; ValueError if not CUIs."""
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    if len(column) == 0:
        return np.zeros(0, np.int32)
    if (np.diff(offsets) == 8).all():
        chars = np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, 8)
        digits = chars[:, 1:] - np.uint8(48)
        if (chars[:, 0] == 67).all() and (digits <= 9).all():
            return digits @ 10 ** np.arange(6, -1, -1, dtype=np.int32)
    raise pa.ArrowInvalid("a concept identifier is not C and seven digits")


def read_semantic_types(umls, kept, table):
    """MRSTY and SemGroups.txt -> (groups, (CUIS,) int8 group of each kept concept or -1).

    A concept is kept if one of its semantic types is. Of several kept types the least deep one
    (shortest tree number STN, then STN, then TUI) gives the group used for stratification.

    Args:
        kept: TUIs and group abbreviations. table: a SemGroups.txt (GRP|name|TUI|type name).
    """
    group_of = {}
    try:
        for n, line in enumerate(Path(table).read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                fields = line.split("|")
                if len(fields) != 4:
                    raise UserError(f"{table}, row {n}: {len(fields)} columns instead of 4 (GRP|name|TUI|type)")
                group_of[fields[2]] = fields[0]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{table}: cannot be read: {e}") from None
    unknown = [k for k in kept if k not in group_of and k not in group_of.values()]
    if unknown:
        raise UserError(f"semantic_types: {', '.join(unknown)} not in {table}")
    groups = sorted(set(group_of.values()))
    path, cuis, types = find_rrf(umls, "MRSTY"), [], {}
    codes = []
    for batch in read_rrf(path, ["CUI", "TUI", "STN"]):
        try:
            cuis.append(cui_numbers(batch["CUI"]))
        except pa.ArrowInvalid as e:
            raise explain(path, e) from None
        pairs = pc.binary_join_element_wise(batch["TUI"], batch["STN"], "|").dictionary_encode()
        known = [types.setdefault(p, len(types)) for p in pairs.dictionary.to_pylist()]
        codes.append(np.array(known, np.int64)[pairs.indices])
    # Types in order of preference, so that the least deep one is the smallest number of a concept.
    order = sorted(types, key=lambda p: (len(p.split("|")[1]), p.split("|")[1], p))
    use = [p for p in order if p.split("|")[0] in kept or group_of.get(p.split("|")[0]) in kept]
    preference = np.full(len(types), len(use), np.int64)
    preference[[types[p] for p in use]] = np.arange(len(use))
    best = np.full(CUIS, len(use), np.int64)
    np.minimum.at(best, np.concatenate(cuis), preference[np.concatenate(codes)])
    number = np.array([groups.index(group_of[p.split("|")[0]]) for p in use] + [-1], np.int8)
    return groups, number[best]


def read_terms(umls, lats, group):
    """MRCONSO (and MRRANK) -> {lat: (cui, first_term, terms)} as in Graph, for concepts with a group.

    Rows with SUPPRESS other than N are left out. The strings of a concept are in order of preference:
    TS=P STT=PF ISPREF=Y, then TS=P STT=PF, then TS=P, then the rest; among equals the higher rank of
    (SAB, TTY) in MRRANK, then the lower AUI. The first is the "preferred term" of section 3.1.

    Raises: UserError if a language has no row, naming those that the release has.
    """
    rank = {}
    if find_rrf(umls, "MRRANK"):
        for batch in read_rrf(find_rrf(umls, "MRRANK"), ["RANK", "SAB", "TTY"]):
            for row in batch.to_pylist():
                rank[f"{row['SAB']}|{row['TTY']}"] = int(row["RANK"]) if row["RANK"].isdigit() else 0
    path, seen = find_rrf(umls, "MRCONSO"), set()
    rows = {lat: [] for lat in lats}
    columns = ["CUI", "LAT", "TS", "STT", "ISPREF", "AUI", "SAB", "TTY", "STR", "SUPPRESS"]
    for batch in read_rrf(path, columns):
        seen.update(pc.unique(batch["LAT"]).to_pylist())
        for lat in lats:
            b = batch.filter(pc.and_(pc.equal(batch["LAT"], lat), pc.equal(batch["SUPPRESS"], "N")))
            try:
                cui = cui_numbers(b["CUI"])
                aui = pc.cast(pc.utf8_slice_codeunits(b["AUI"], 1), pa.int64()).to_numpy(zero_copy_only=False)
            except pa.ArrowInvalid as e:
                raise explain(path, e) from None
            p, pf = pc.equal(b["TS"], "P"), pc.equal(b["STT"], "PF")
            tests = (p, pc.and_(p, pf), pc.and_(pc.and_(p, pf), pc.equal(b["ISPREF"], "Y")))
            worse = 3 - sum(np.asarray(test).astype(np.int64) for test in tests)
            source = pc.binary_join_element_wise(b["SAB"], b["TTY"], "|").dictionary_encode()
            ranks = np.array([min(rank.get(s, 0), 4095) for s in source.dictionary.to_pylist()] or [0])
            priority = (worse << 39) | ((4095 - ranks[source.indices]) << 27) | (aui & (1 << 27) - 1)
            keep = group[cui] >= 0
            rows[lat].append((cui[keep], priority[keep], b["STR"].filter(pa.array(keep))))
    out = {}
    for lat in lats:
        if lat not in seen:
            raise UserError(f"{path}: no row in language {lat}; it has {' '.join(sorted(seen))}")
        cui, priority, strings = (list(x) for x in zip(*rows[lat]))
        cui, priority = np.concatenate(cui), np.concatenate(priority)
        strings = pa.chunked_array(strings, pa.string()).cast(pa.large_string()).combine_chunks()
        concepts, concept = np.unique(cui, return_inverse=True)
        order = np.argsort((concept.astype(np.uint64) << np.uint64(41)) | priority.astype(np.uint64), kind="stable")
        concept, string = concept[order], np.asarray(strings.dictionary_encode().indices)[order]
        # One entry per distinct string of a concept: the first, which is the preferred one.
        _, first = np.unique((concept.astype(np.int64) << 32) | string, return_index=True)
        first.sort()
        starts = np.searchsorted(concept[first], np.arange(len(concepts) + 1))
        out[lat] = concepts.astype(np.int32), starts, strings.take(pa.array(order[first]))
    return out


def read_relations(umls, wanted):
    """MRREL -> (head, relation, tail) arrays of CUI numbers and relation indices, for wanted concepts.

    REL is the relation of the SECOND concept to the first: `C1|..|PAR|C2` says that C2 is a parent
    of C1. So h = CUI2, r = REL, t = CUI1. Kept: the seven relations, SUPPRESS=N, both CUIs present
    and wanted ((CUIS,) bool).
    """
    path, parts = find_rrf(umls, "MRREL"), []
    for batch in read_rrf(path, ["CUI1", "REL", "CUI2", "SUPPRESS"]):
        relation = pc.index_in(batch["REL"], value_set=pa.array(RELATIONS))
        good = pc.and_(pc.is_valid(relation), pc.equal(batch["SUPPRESS"], "N"))
        for column in ("CUI1", "CUI2"):
            good = pc.and_(good, pc.greater(pc.binary_length(batch[column]), 0))
        b = batch.filter(good)
        try:
            t, h = cui_numbers(b["CUI1"]), cui_numbers(b["CUI2"])
        except pa.ArrowInvalid as e:
            raise explain(path, e) from None
        both = wanted[h] & wanted[t]
        parts.append((h[both], np.asarray(relation.filter(good)).astype(np.int8)[both], t[both]))
    return tuple(np.concatenate(column) for column in zip(*parts))


def make_graph(lang, groups, group, terms, relations):
    """The Graph of one language: relations whose two concepts both have a term in it.

    Dropped: relations of a concept to itself other than SY, and SY of a concept to itself where the
    language has but one string for it (nothing to say).
    """
    cui, first_term, strings = terms
    index = np.full(CUIS, -1, np.int32)
    index[cui] = np.arange(len(cui))
    h, r, t = index[relations[0]], relations[1], index[relations[2]]
    alone = np.diff(first_term)[h] == 1
    keep = (h >= 0) & (t >= 0) & ((h != t) | ((r == SY) & ~alone))
    h, r, t = h[keep].astype(np.int64), r[keep], t[keep]
    keys = np.unique((h * len(cui) + t) * 8 + r)
    pair, r = keys // 8, keys % 8
    h, t = pair // len(cui), pair % len(cui)
    known = np.union1d(keys, (t * len(cui) + h) * 8 + INVERSE[r])
    h, r, t = h.astype(np.int32), r.astype(np.int8), t.astype(np.int32)
    return Graph(lang, cui, group[cui], groups, first_term, strings, h, r, t, known)


def read_graphs(umls, langs, kept, semgroups):
    """One Graph per language of a UMLS release folder; each RRF file is read once."""
    for name in ("MRSTY", "MRCONSO", "MRREL"):
        if not find_rrf(umls, name):
            raise UserError(f"{name}.RRF is neither in {umls} nor in {Path(umls, 'META')}; unpack the release there")
    groups, group = read_semantic_types(umls, kept, semgroups)
    lats = {lang: lat_code(lang) for lang in langs}
    terms = read_terms(umls, lats.values(), group)
    wanted = np.zeros(CUIS, bool)
    for cui, *_ in terms.values():
        wanted[cui] = True
    relations = read_relations(umls, wanted)
    graphs = []
    for lang, lat in lats.items():
        graph = make_graph(lang, groups, group, terms[lat], relations)
        if len(graph.h) == 0:
            raise UserError(
                f"{umls}: no relation left in language {lang} ({lat}): {len(graph.cui)} concepts with a term and a "
                "kept semantic type, none of them related; see --semantic_types, or use a larger subset"
            )
        graphs.append(graph)
    return graphs


def lat_code(lang):
    return LANGUAGES[lang][0] if lang in LANGUAGES else lang


def languages(text):
    """What the user typed -> our codes: 'fr', 'FRE', 'french' -> ['fr']; 'multi' -> en, fr, es."""
    if text.lower() == "multi":
        return ["en", "fr", "es"]
    for code, names in LANGUAGES.items():
        if text.lower() in (code, *(name.lower() for name in names if name)):
            return [code]
    if re.fullmatch(r"[A-Z]{3}", text):
        return [text]
    raise UserError(f"unknown language '{text}'; say one of {' '.join(LANGUAGES)}, a LAT code such as FRE, or multi")


# ---------------------------------------------------------------- samplers (section 3.1)


def deal(shares, n, room):
    """n examples over strata in proportion to `shares`, exact to rounding (largest remainder).

    A stratum with less room than its share is filled and the rest is dealt on over the others.
    Returns (strata,) int64 with sum min(n, room.sum()).
    """
    n = min(n, int(room.sum()))
    quota = np.zeros(len(shares), np.int64)
    while quota.sum() < n:
        free = (room > quota) & (shares > 0)
        if not free.any():  # only strata that the shares do not know are left
            free = room > quota
            shares = np.where(free, 1, 0)
        exact = np.where(free, shares, 0) / shares[free].sum() * (n - quota.sum())
        more = np.floor(exact).astype(np.int64)
        rest = n - int(quota.sum() + more.sum())
        more[np.argsort(more - exact, kind="stable")[:rest]] += 1
        quota = np.minimum(quota + more, room)
    return quota


def stratified(rng, pool, of_pool, shares, n, repeat=False):
    """n members of `pool`, drawn without replacement within each stratum; order random.

    Args:
        of_pool: stratum of each member. shares: (strata,) counts that set the proportions.
        repeat: where a stratum has fewer members than its share, use them again in turn.
    """
    order = rng.permutation(len(pool))
    order = order[np.argsort(of_pool[order], kind="stable")]
    size = np.bincount(of_pool, minlength=len(shares))
    quota = deal(shares, n, np.where(size > 0, n, 0) if repeat else size)
    start = np.cumsum(size) - size
    strata = np.repeat(np.arange(len(shares)), quota)
    turn = np.arange(len(strata)) - np.repeat(np.cumsum(quota) - quota, quota)
    return rng.permutation(pool[order[start[strata] + turn % np.maximum(size, 1)[strata]]])


def negatives(rng, graph, source, redraw, propose, allowed):
    """Distinct triples that are not in the graph, one per true triple of `source`: (3, n) int64.

    Args:
        source: indices of true triples. propose(rng, source) -> candidate (h, r, t).
        redraw(rng, source) -> other true triples of the same strata.
        allowed(h, t) -> bool array: whether the pair is on this part's side of the validation split.

    Instead of a candidate that is true, on the wrong side or taken already another one is proposed, 200
    times at most: in a graph so dense that this fails, fewer come back (and the build says so).
    """
    done, taken = [np.zeros((3, 0), np.int64)], np.zeros(0, np.int64)
    for _ in range(200):
        if len(source) == 0:
            break
        h, r, t = propose(rng, source)
        key = graph.key(h, r, t)
        good = np.zeros(len(key), bool)
        good[np.unique(key, return_index=True)[1]] = True
        good &= ~graph.contains(h, r, t) & allowed(h, t) & ~np.isin(key, taken)
        done.append(np.stack([h, r, t])[:, good])
        taken = np.concatenate([taken, key[good]])
        source = redraw(rng, source[~good])
    return np.concatenate(done, axis=1)


def sample_classification(rng, graph, part, shares, n, allowed):
    """Triple classification (section 3.1): (kind, h, r, t), 50 % true, 25 % + 25 % negatives.

    OTHER_PAIR: from a true triple with different semantic groups, both concepts drawn anew within
    their groups (among concepts that have relations), the relation kept. OTHER_RELATION: from a true
    triple within one group, another relation, drawn by its frequency within groups. Where one kind
    cannot be had in full the other makes up for it, and the true triples are cut to match: one half is
    always true.

    Args: part: indices of the triples of this part. shares: (strata,) triples of the whole graph.
    """
    stratum, group = graph.stratum(graph.h, graph.t), graph.group
    crossing = group[graph.h] != group[graph.t]
    related = np.unique(np.concatenate([graph.h, graph.t]))
    related = related[np.argsort(group[related], kind="stable")]
    size = np.bincount(group[related], minlength=len(graph.groups))
    start = np.cumsum(size) - size

    def draw(rng, groups):
        return related[start[groups] + (rng.random(len(groups)) * size[groups]).astype(np.int64)]

    def other_pair(rng, i):
        return draw(rng, group[graph.h[i]]), graph.r[i], draw(rng, group[graph.t[i]])

    # As often as among true triples: a relation that only false triples have would give them away.
    common = np.bincount(graph.r[~crossing], minlength=len(RELATIONS)) + 1e-9

    def other_relation(rng, i):
        weight = np.where(np.arange(len(RELATIONS)) == graph.r[i][:, None], 0, common).cumsum(axis=1)
        return graph.h[i], (rng.random((len(i), 1)) * weight[:, -1:] >= weight).sum(axis=1), graph.t[i]

    def make(propose, pool, n):
        if len(pool) == 0:
            return np.zeros((3, 0), np.int64)
        crossed = np.arange(len(shares)) // len(graph.groups) != np.arange(len(shares)) % len(graph.groups)
        weight = np.where(crossed == crossing[pool[0]], shares, 0)
        by_stratum = pool[np.argsort(stratum[pool], kind="stable")]
        members = np.bincount(stratum[pool], minlength=len(shares))
        begin = np.cumsum(members) - members

        def redraw(rng, i):
            s = stratum[i]
            return by_stratum[begin[s] + (rng.random(len(i)) * members[s]).astype(np.int64)]

        source = stratified(rng, pool, stratum[pool], weight, n, repeat=True)
        return negatives(rng, graph, source, redraw, propose, allowed)

    across, within = part[crossing[part]], part[~crossing[part]]
    true = min(n // 2, len(part))
    pairs = make(other_pair, across, true - true // 2)
    changed = make(other_relation, within, true - pairs.shape[1])
    if pairs.shape[1] + changed.shape[1] < true and pairs.shape[1] == true - true // 2:
        pairs = make(other_pair, across, true - changed.shape[1])
    true = stratified(rng, part, stratum[part], shares, pairs.shape[1] + changed.shape[1])
    triples = np.concatenate([np.stack([graph.h[true], graph.r[true], graph.t[true]]), pairs, changed], axis=1)
    kind = np.repeat([TRUE, OTHER_PAIR, OTHER_RELATION], [len(true), pairs.shape[1], changed.shape[1]])
    return kind, *triples


def sample_paths(rng, graph, edges, shares, n, most):
    """Up to n distinct paths h1 r1 h2 r2 ... (section 3.1): (concepts, relations), -1 after the end.

    Random walks over the triples `edges` (no SY among them) of 2 to `most` relations, the wanted
    length uniform; their first triples are stratified. No concept comes twice in a path, so that the
    inverse of a relation never stands beside it.
    """
    first, walks = np.zeros(0, np.int64), np.zeros((0, 2 * most + 1), np.int64)
    for _ in range(6):  # walks that meet a dead end or repeat another are replaced by new ones
        missing = n - len(first)
        if missing <= 0 or len(edges) == 0:
            break
        starts = stratified(rng, edges, graph.stratum(graph.h[edges], graph.t[edges]), shares, 2 * missing, repeat=True)
        wanted = rng.integers(2, most + 1, len(starts))
        new = np.concatenate(random_walks(rng, graph, edges, starts, wanted, most), axis=1)
        long = new[:, 2] >= 0
        walks, first = np.concatenate([walks, new[long]]), np.concatenate([first, starts[long]])
        walks, at = np.unique(walks, axis=0, return_index=True)
        first = first[at]
    chosen = stratified(rng, np.arange(len(first)), graph.stratum(graph.h[first], graph.t[first]), shares, n)
    return walks[chosen, : most + 1], walks[chosen, most + 1 :]


def random_walks(rng, graph, edges, first, length, most):
    """Random walks over `edges`; walk i starts with triple first[i] and ends after length[i] relations,
    or where 8 draws find no new concept. Returns (concepts (n, most+1), relations (n, most)) int64.
    """
    begin = np.searchsorted(graph.h[edges], np.arange(len(graph.cui) + 1))  # triples are sorted by h
    concepts = np.full((len(first), most + 1), -1, np.int64)
    relations = np.full((len(first), most), -1, np.int64)
    concepts[:, 0], relations[:, 0], concepts[:, 1] = graph.h[first], graph.r[first], graph.t[first]
    alive = np.arange(len(first))
    for step in range(1, most):
        pending, moved = alive[length[alive] > step], []
        for _ in range(8):
            here = concepts[pending, step]
            degree = begin[here + 1] - begin[here]
            at = begin[here] + (rng.random(len(pending)) * degree).astype(np.int64)
            edge = edges[np.minimum(at, len(edges) - 1)]
            new = (concepts[pending, : step + 1] != graph.t[edge][:, None]).all(axis=1)
            good = (degree > 0) & new
            concepts[pending[good], step + 1] = graph.t[edge[good]]
            relations[pending[good], step] = graph.r[edge[good]]
            moved.append(pending[good])
            pending = pending[~good]
        alive = np.sort(np.concatenate(moved))
    return concepts, relations


def tail_terms(rng, graph, h, r, t):
    """Index of the string that stands for each tail: the preferred term, "except in the case of synonym
    relations where we randomly select another of the terms" (section 3.1) if there is another."""
    count = graph.first_term[t + 1] - graph.first_term[t]
    another = ((r == SY) | (h == t)) & (count > 1)
    return graph.first_term[t] + np.where(another, 1 + (rng.random(len(t)) * (count - 1)).astype(np.int64), 0)


# ---------------------------------------------------------------- documents


def read_e3c(folder, lang, layers):
    """Texts of data_collection/<Language>/layer<n>/*.json in order of file name; (texts, odd files).

    Files without a text, or that are not JSON, are odd: counted, never fatal.
    """
    name = LANGUAGES.get(lang, ("", ""))[1]
    if not name:
        raise UserError(f"E3C has no documents in language {lang}; say E3C=none to build without documents")
    texts, odd = [], 0
    for layer in layers:
        place = Path(folder, "data_collection", name, f"layer{layer}")
        if not place.is_dir():
            raise UserError(f"{place} not found; E3C must point to the folder that holds data_collection/")
        files = sorted(place.glob("*.json"))
        if not files:
            raise UserError(f"{place} holds no .json file; E3C must point to the corpus")
        for path in progress(f"E3C {name} layer {layer}", files):
            try:
                text = json.loads(path.read_text(encoding="utf-8-sig"))["text"]
                text = text.encode("utf-8", "ignore").decode().strip()  # JSON can hold half a surrogate pair
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                text = ""
            if text:
                texts.append(text)
            else:
                odd += 1
    return texts, odd


def split_documents(texts, seed, share, keep_duplicates):
    """texts -> {part: texts}. A text counts once unless keep_duplicates; its copies stay in one part."""
    texts = texts if keep_duplicates else list(dict.fromkeys(texts))
    digests = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little") for t in texts]
    valid = uniform(seed, np.array(digests, np.uint64)) < share
    return {p: [t for t, v in zip(texts, valid) if v == (p == "valid")] for p in PARTS}


# ---------------------------------------------------------------- tokenizer


def train_tokenizer(texts, vocab_size, cased):
    """A WordPiece tokenizer (accents kept) from an iterator of lists of strings.

    tokenizers' WordPieceTrainer numbers its "##x" pieces in the order of a hash table, so that two
    runs differ. Its BPE trainer given those pieces up front learns the same merges and is deterministic,
    whatever the order of the texts; WordPiece then only needs the vocabulary.
    """
    texts = list(texts)
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=not cased, strip_accents=False)]
    )
    count = Counter()
    for batch in texts:
        count.update(normalizer.normalize_str(" ".join(batch)))
    letters = sorted(c for c, n in count.items() if not c.isspace())
    letters = sorted(sorted(letters, key=lambda c: -count[c])[: vocab_size // 4])
    first = [*SPECIALS, *RELATION_TOKENS, *("##" + c for c in letters)]
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    bpe.normalizer, bpe.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=first, initial_alphabet=letters, limit_alphabet=len(letters),
        continuing_subword_prefix="##", show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(bpe.get_vocab(), unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    add_specials(tokenizer, SPECIALS)
    return tokenizer


def add_specials(tokenizer, specials=()):
    """Makes `specials` and the relation tokens (fixed order) special, appending those that are new."""
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in (*specials, *RELATION_TOKENS)])


def load_tokenizer(folder):
    """The tokenizer of a checkpoint folder, relation tokens appended. Raises: UserError."""
    path = Path(folder, "tokenizer.json")
    if not path.is_file():
        raise UserError(f"{path} not found; the tokenizer must be a checkpoint folder with a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises plain Exception
        raise UserError(f"{path}: not a tokenizer.json: {e}") from None
    tokenizer.no_truncation()  # some files come with both switched on
    tokenizer.no_padding()
    add_specials(tokenizer)
    return tokenizer


def special_ids(tokenizer):
    """{"pad", "cls", "sep", "mask", "unk": id, "relations": [ids], "hrel": id}, BERT's names or RoBERTa's."""
    roberta = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "unk": "<unk>"}
    out = {}
    for role, name in roberta.items():
        found = [i for i in map(tokenizer.token_to_id, (f"[{role.upper()}]", name)) if i is not None]
        if not found:
            raise UserError(f"the tokenizer has neither [{role.upper()}] nor {name}")
        out[role] = found[0]
    out["relations"] = [tokenizer.token_to_id(t) for t in RELATION_TOKENS[:-1]]
    out["hrel"] = tokenizer.token_to_id("[HREL]")
    return out


def encode(tokenizer, texts, what):
    """Strings -> (token ids one after another (int32), tokens of each string (int64)); no [CLS], [SEP]."""
    tokenizer.encode_special_tokens = True  # a "[SEP]" inside a name is text
    ids, lengths = [np.zeros(0, np.int32)], []
    with progress(what, len(texts)) as bar:
        for i in range(0, len(texts), 2048):
            encoded = tokenizer.encode_batch_fast(texts[i : i + 2048], add_special_tokens=False)
            lengths += [len(e) for e in encoded]
            ids.append(np.fromiter((x for e in encoded for x in e.ids), np.int32))
            bar.update(len(encoded))
    tokenizer.encode_special_tokens = False
    return np.concatenate(ids), np.array(lengths, np.int64)


# ---------------------------------------------------------------- samples -> sequences of tokens


def ragged(start, length):
    """Positions start[i], start[i]+1, ... (length[i] of them) for all i, one after another."""
    end = np.cumsum(length)
    return np.repeat(start - (end - length), length) + np.arange(end[-1] if len(end) else 0)


class Writer:
    """Collects the examples of one part and writes them as one Arrow record batch.

    Columns: task (index into TASKS), lang (index into the languages), kind (of a tc example), cuis
    (list: the concepts, to prove the split), ids (list: tokens with [CLS] and [SEP]; documents without).
    """

    def __init__(self):
        self.columns = {name: [] for name in ("task", "lang", "kind", "cui", "cuis", "id", "ids")}

    def add(self, task, lang, cuis, n_cuis, ids, n_ids, kind=0):
        n = len(n_ids)
        row = [np.full(n, task), np.full(n, lang), np.broadcast_to(kind, n), cuis, n_cuis, ids, n_ids]
        for column, values in zip(self.columns.values(), row):
            column.append(values)

    def counts(self, lang):
        task, langs = np.concatenate(self.columns["task"]), np.concatenate(self.columns["lang"])
        return np.bincount(task[langs == lang], minlength=len(TASKS)).tolist()

    def write(self, f):
        col = {name: np.concatenate(values) for name, values in self.columns.items()}
        small = [pa.array(col[name].astype(np.uint8)) for name in ("task", "lang", "kind")]
        lists = [
            pa.LargeListArray.from_arrays(
                np.concatenate([[0], np.cumsum(col[n])]).astype(np.int64), pa.array(col[values].astype(np.int32))
            )
            for values, n in (("cui", "cuis"), ("id", "ids"))
        ]
        batch = pa.record_batch(small + lists, names=["task", "lang", "kind", "cuis", "ids"])
        with ipc.new_file(f, batch.schema) as out:
            out.write_batch(batch)


def write_graph_examples(writer, lang, graph, samples, tokenizer, seq_len, special):
    """Samples -> equation (1): [CLS] h [REL] t [SEP], and paths [CLS] h1 [R1] h2 [R2] ... [SEP].

    Each distinct string is decoded and tokenised once; sequences are then gathered from that pool.
    Long names are cut so that the relation and a part of both names always stay, paths at a whole name.
    """
    (ep_h, ep_r, ep_t, ep_term), (kind, tc_h, tc_r, tc_t, tc_term), (concepts, relations) = samples
    preferred = graph.first_term[:-1]
    used, where = np.unique(
        np.concatenate([preferred[ep_h], ep_term, preferred[tc_h], tc_term, preferred[concepts[concepts >= 0]]]),
        return_inverse=True,
    )
    names = graph.terms.take(pa.array(used)).to_pylist()
    ids, length = encode(tokenizer, names, f"{graph.lang}: names")
    start = np.cumsum(length) - length
    # The pool ends in the single tokens; a name without any token (control characters) is [UNK].
    single = np.array([special["cls"], special["sep"], special["unk"], *special["relations"]], np.int32)
    cls, sep, unk, rel = len(ids) + np.array([0, 1, 2, 3])
    pool = np.concatenate([ids, single])
    start, length = np.where(length == 0, unk, start), np.maximum(length, 1)
    h1, t1, h2, t2, walk = np.split(where, np.cumsum([len(ep_h), len(ep_h), len(tc_h), len(tc_h)]))

    for task, h, r, t, a, b, k in ((EP, ep_h, ep_r, ep_t, h1, t1, 0), (TC, tc_h, tc_r, tc_t, h2, t2, kind)):
        room = seq_len - 3
        left = np.minimum(length[a], np.maximum(room // 2, room - length[b]))
        right = np.minimum(length[b], room - left)
        one = np.ones(len(h), np.int64)
        starts = np.stack([one * cls, start[a], rel + r, start[b], one * sep], axis=1)
        lengths = np.stack([one, left, one, right, one], axis=1)
        cuis = graph.cui[np.stack([h, t], axis=1)].ravel()
        writer.add(task, lang, cuis, 2 * one, pool[ragged(starts.ravel(), lengths.ravel())], lengths.sum(1), k)

    n, most = relations.shape
    starts, lengths = np.full((n, 2 * most + 3), cls), np.zeros((n, 2 * most + 3), np.int64)
    at, of = np.nonzero(concepts >= 0)
    starts[at, 1 + 2 * of] = start[walk]
    lengths[at, 1 + 2 * of] = np.minimum(length[walk], (seq_len - 4) // 3)  # three names always fit
    at, of = np.nonzero(relations >= 0)
    starts[at, 2 + 2 * of], lengths[at, 2 + 2 * of] = rel + relations[at, of], 1
    fits = np.cumsum(lengths, axis=1)[:, 1::2] <= seq_len - 2  # up to and with each name
    kept = fits & (concepts >= 0)
    lengths[:, 1:-1:2] *= kept
    lengths[:, 2:-1:2] *= kept[:, 1:]
    lengths[:, 0], lengths[:, -1], starts[:, -1] = 1, 1, sep
    cuis = graph.cui[concepts[kept]]
    writer.add(LP, lang, cuis, kept.sum(1), pool[ragged(starts.ravel(), lengths.ravel())], lengths.sum(1))


def write_documents(writer, lang, texts, tokenizer, windows, seq_len):
    """Documents -> mlm examples without [CLS] and [SEP]; returns how many were too short to use.

    windows: "random" stores the whole document (training draws a window of seq_len - 2 tokens each
    epoch), "first" its beginning, "all" every window as an example of its own.
    """
    ids, length = encode(tokenizer, texts, "documents")
    start, room = np.cumsum(length) - length, seq_len - 2
    start, length = start[length >= SHORTEST_DOCUMENT], length[length >= SHORTEST_DOCUMENT]
    dropped = len(texts) - len(start)
    if windows == "first":
        length = np.minimum(length, room)
    elif windows == "all":
        pieces = -(-length // room)
        offset = ragged(np.zeros(len(pieces), np.int64), pieces) * room
        offset = np.minimum(offset, np.maximum(np.repeat(length, pieces) - room, 0))  # the last one overlaps
        start, length = np.repeat(start, pieces) + offset, np.minimum(np.repeat(length, pieces), room)
    writer.add(MLM, lang, np.zeros(0), np.zeros(len(start), np.int64), ids[ragged(start, length)], length)
    return dropped


# ---------------------------------------------------------------- the build

WHAT_TO_GET = """
  UMLS: a release with META/MRCONSO.RRF, MRREL.RRF and MRSTY.RRF; free licence and download from the US National
        Library of Medicine, https://uts.nlm.nih.gov (the paper: 2022AB, "Metathesaurus Full Subset"); unzip it.
  E3C:  clinical text, CC BY-NC; git clone https://github.com/hltfbk/E3C-Corpus (the paper: version 2.0.0).
  Put or link them at ./umls and ./E3C-Corpus, or say: make data LANG=fr UMLS=/path/2022AB E3C=/path/E3C-Corpus
  (E3C=none builds without documents). 'make demo' needs neither: it shows all of it on synthetic data."""


def sources(s):
    """The folders (umls, e3c or None) from the settings, the environment, or the default places."""
    if not s.lang:
        raise UserError("say which language: make data LANG=fr (or en, es, multi, ..., or a LAT code such as ITA)")
    umls = s.umls or os.environ.get("UMLS") or "umls"
    e3c = s.e3c or os.environ.get("E3C") or "E3C-Corpus"
    e3c = None if e3c == "none" else e3c
    for what, folder in (("UMLS release", umls), ("E3C corpus", e3c)):
        if folder and not Path(folder).is_dir():
            raise UserError(f"no {what} in {folder}\n{WHAT_TO_GET}")
    return umls, e3c


def build(s):
    """Builds the data set of settings `s` (configs.Data) in a folder beside `out`, then moves it there."""
    began = time.time()
    umls, e3c = sources(s)
    langs = languages(s.lang)
    name = s.lang.lower() if len(langs) > 1 else langs[0]
    out = Path(s.out or Path("datasets", name))
    if s.windows not in ("random", "first", "all"):
        raise UserError(f"windows = '{s.windows}' is not one of random, first, all")
    if not out.name:
        raise UserError(f"--out {out}: name a folder, such as datasets/{name}")
    if out.exists() and not Path(out, "manifest.json").is_file() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not a data set; choose another --out")

    def say(text):
        print(f"[{time.time() - began:6.1f} s] {text}", flush=True)

    table = s.semgroups or Path(configs.__file__).with_name("SemGroups.txt")
    graphs = read_graphs(umls, langs, s.semantic_types, table)
    for g in graphs:
        say(f"{g.lang}: {len(g.terms):,} terms, {len(g.cui):,} CUIs, {len(g.h):,} relations")

    documents, odd = {}, {}
    for lang in langs:
        texts, odd[lang] = read_e3c(e3c, lang, s.e3c_layers) if e3c else ([], 0)
        documents[lang] = split_documents(texts, s.seed, s.valid, s.keep_duplicates)
        used = sum(map(len, documents[lang].values()))
        left_out = f"{len(texts) - used:,} repeated texts, {odd[lang]:,} files without text"
        say(f"{lang}: {used:,} documents of {len(texts):,} files ({left_out})")

    if s.tokenizer:
        tokenizer = load_tokenizer(s.tokenizer)
    else:
        texts = [g.terms[i : i + 10_000].to_pylist() for g in graphs for i in range(0, len(g.terms), 10_000)]
        texts += [d[p][i : i + 100] for d in documents.values() for p in PARTS for i in range(0, len(d[p]), 100)]
        tokenizer = train_tokenizer(texts, s.vocab_size, s.cased)
    special = special_ids(tokenizer)
    say(f"tokenizer: {tokenizer.get_vocab_size():,} entries")

    writers = {part: Writer() for part in PARTS}
    report = {}
    wanted = {EP: s.prediction, LP: s.paths, TC: s.classification}
    for i, (lang, g) in enumerate(zip(langs, graphs)):
        short = 0
        for part in PARTS:
            share = 1 if part == "train" else s.valid
            sizes = {task: round(share * n) for task, n in wanted.items()}
            samples = sample(g, part, sizes, s)
            write_graph_examples(writers[part], i, g, samples, tokenizer, s.seq_len, special)
            short += write_documents(writers[part], i, documents[lang][part], tokenizer, s.windows, s.seq_len)
            n = dict(zip(TASKS, writers[part].counts(i)))
            short_of = [f"{n[TASKS[t]]:,} {NAMES[t]} of {size:,}" for t, size in sizes.items() if n[TASKS[t]] < size]
            say(f"{lang} {part}: {sum(n.values()):,} examples")
            if short_of:
                say(f"{lang} {part}: the graph has no more than {', '.join(short_of)}")
            report.setdefault(lang, {})[part] = n
        report[lang] |= {
            "terms": len(g.terms), "cuis": len(g.cui), "relations": len(g.h),
            "relation_types": dict(zip(RELATIONS, np.bincount(g.r, minlength=len(RELATIONS)).tolist())),
            "semantic_groups": dict(zip(g.groups, np.bincount(g.group, minlength=len(g.groups)).tolist())),
            "files_without_text": odd[lang], "documents_too_short": short,
        }  # fmt: skip

    for part in PARTS:
        if not any(n for c in report.values() for n in c[part].values()):
            raise UserError(f"the {part} part would be empty; use a larger release, sizes above 0 or another --valid")
    settings = {k: v for k, v in asdict(s).items() if k not in ("umls", "e3c", "out", "tokenizer", "semgroups")}
    manifest = {
        "name": name, "languages": langs, "settings": settings,
        "special": special, "vocab_size": tokenizer.get_vocab_size(),
        "source_bytes": {p.name: p.stat().st_size for p in (find_rrf(umls, n) for n in RRF) if p}, "counts": report,
    }  # fmt: skip
    with replacing(out) as beside:
        for part, writer in writers.items():
            write_atomic(beside / f"{part}.arrow", writer.write)
        write_atomic(beside / "tokenizer.json", lambda f: f.write(tokenizer.to_str(pretty=True).encode()))
        manifest["sha256"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(beside.iterdir())}
        write_atomic(beside / "manifest.json", lambda f: f.write((json.dumps(manifest, indent=1) + "\n").encode()))
    print_tables(manifest)
    say(f"wrote {out}")


@contextmanager
def replacing(out):
    """A new folder beside `out` to write to, which takes the place of `out` if all went well."""
    beside, old = (out.with_name(f".{out.name}.{what}") for what in ("building", "old"))
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a build that was killed
        beside.mkdir(parents=True)
        yield beside
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        beside.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as e:
        raise UserError(f"{out}: cannot be written: {e.strerror or e}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sample(graph, part, sizes, s):
    """The three samples of one part: ((h, r, t, tail term), (kind, h, r, t, tail term), paths)."""
    lang = int.from_bytes(graph.lang.encode())
    rng = {task: np.random.default_rng([s.seed, lang, PARTS.index(part), task]) for task in sizes}
    stratum = graph.stratum(graph.h, graph.t)
    shares = np.bincount(stratum, minlength=len(graph.groups) ** 2)

    def allowed(h, t):
        return held_out(graph.cui[h], graph.cui[t], s.seed, s.valid) == (part == "valid")

    mine = np.flatnonzero(allowed(graph.h, graph.t))
    ep = stratified(rng[EP], mine, stratum[mine], shares, sizes[EP])
    ep = graph.h[ep], graph.r[ep], graph.t[ep]
    tc = sample_classification(rng[TC], graph, mine, shares, sizes[TC], allowed)
    edges = mine[graph.r[mine] != SY]
    without_sy = np.bincount(stratum[graph.r != SY], minlength=len(shares))
    paths = sample_paths(rng[LP], graph, edges, without_sy, sizes[LP], s.max_relations)
    return (*ep, tail_terms(rng[EP], graph, *ep)), (*tc, tail_terms(rng[TC], graph, *tc[1:])), paths


def print_tables(manifest):
    """Tables 1 and 7 of the paper for this data set."""
    head = ("", "terms", "CUIs", "relations", "classific.", "ent. pred.", "paths", "documents")
    print(" ".join(f"{h:>10}" for h in head))
    for lang, c in manifest["counts"].items():
        for part in PARTS:
            first = [c["terms"], c["cuis"], c["relations"]] if part == "train" else ["", "", ""]
            row = [f"{lang} {part}", *first, *(c[part][task] for task in ("tc", "ep", "lp", "mlm"))]
            print(" ".join(f"{x:>10,}" if isinstance(x, int) else f"{x:>10}" for x in row))


# ---------------------------------------------------------------- the data set at training time


@dataclass
class Batch:
    """An effective batch after masking, flat: example i is ids[start[i] : start[i] + length[i]].

    One target per entry of row (ascending), col, task, label: the position to predict, and the token id (mlm, ep),
    the relation class 0..5 (lp) or true/false (tc, at [CLS]). counts: targets of each task.
    """

    ids: np.ndarray
    start: np.ndarray
    length: np.ndarray
    row: np.ndarray
    col: np.ndarray
    task: np.ndarray
    label: np.ndarray
    counts: np.ndarray
    pad: int


class Examples:
    """One part of a data set, mapped into memory: nothing is copied but the batches."""

    def __init__(self, folder, part):
        self.manifest = read_manifest(folder)
        path = Path(folder, f"{part}.arrow")
        try:
            with open(path, "rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != self.manifest["sha256"][path.name]:
                    raise UserError(f"{path}: damaged (not what the manifest says); build the data set again")
            batch = ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (pa.ArrowInvalid, OSError) as e:
            raise UserError(f"{path}: cannot be read ({e}); build the data set again") from None
        self.task, self.lang, self.kind = (np.asarray(batch[c]) for c in ("task", "lang", "kind"))
        self.ids, self.offsets = np.asarray(batch["ids"].values), np.asarray(batch["ids"].offsets)
        self.cuis, self.cui_offsets = np.asarray(batch["cuis"].values), np.asarray(batch["cuis"].offsets)
        self.seq_len = self.manifest["settings"]["seq_len"]
        self.special = self.manifest["special"]
        vocab = self.manifest["vocab_size"]
        self.relation = np.full(vocab, -1, np.int64)  # token id -> relation index
        self.relation[self.special["relations"]] = np.arange(len(RELATIONS))
        marks = {i for v in self.special.values() for i in (v if isinstance(v, list) else [v])}
        self.ordinary = np.array([i for i in range(vocab) if i not in marks])  # 10 % of section 3's masks

    def __len__(self):
        return len(self.task)

    def batch(self, epoch, rows, seed, mlm_probability):
        """The masked Batch of examples `rows`, each in its epoch (int arrays).

        A mask is a function of (seed, epoch, example, position) alone: whatever the batch, the
        micro-batch or the rank, an example is masked alike. MLM: mlm_probability of the tokens, of which
        80 % [MASK], 10 % a random token, 10 % kept; EP: all of the tail; LP: all relations -> [HREL].
        """
        task, special = self.task[rows].astype(np.int64), self.special
        begin, stored = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        key = mix(seed, epoch, rows)
        room = self.seq_len - 2
        document = task == MLM
        spare = np.maximum(stored - room, 0) * document  # another window each epoch
        begin = begin + (uniform(key, 0) * (spare + 1)).astype(np.int64) - document
        length = np.where(document, np.minimum(stored, room) + 2, stored)
        start = np.cumsum(length) - length
        row = np.repeat(np.arange(len(rows)), length)
        col = np.arange(len(row)) - start[row]
        ids = self.ids[np.clip(begin[row] + col, 0, len(self.ids) - 1)].astype(np.int64)
        last = col == length[row] - 1
        ids[document[row] & (col == 0)] = special["cls"]
        ids[document[row] & last] = special["sep"]

        relation = self.relation[ids]
        after = np.cumsum(relation >= 0)  # whether the relation token of this row has been passed
        after = (after - after[start][row] > 0) & (relation < 0) & ~last
        inner = (col > 0) & ~last
        token = mix(key[row], 1, col)
        target = (
            (document[row] & inner & (uniform(token, 0) < mlm_probability))
            | ((task[row] == EP) & after)
            | ((task[row] == LP) & (relation >= 0))
            | ((task[row] == TC) & (col == 0))
        )
        at = np.flatnonzero(target)
        kind = task[row[at]]
        label = np.select([kind == LP, kind == TC], [relation[at], self.kind[rows[row[at]]] == TRUE], ids[at])
        dice = uniform(token[at], 1)
        random = self.ordinary[(uniform(token[at], 2) * len(self.ordinary)).astype(np.int64)]
        masked = np.select([dice < 0.8, dice < 0.9], [special["mask"], random], ids[at])
        shown = [masked, special["mask"], special["hrel"]]
        ids[at] = np.select([kind == MLM, kind == EP, kind == LP], shown, ids[at])
        counts = np.bincount(kind, minlength=len(TASKS))
        return Batch(ids, start, length, row[at], col[at], kind, label, counts, special["pad"])


def read_manifest(folder):
    path = Path(folder, "manifest.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        missing = {"name", "settings", "special", "vocab_size", "counts", "sha256"} - set(manifest)
        if missing:
            raise ValueError(f"no {', '.join(sorted(missing))} in it")
        return manifest
    except OSError:
        raise UserError(f"{folder} is not a data set (no manifest.json); build one with make data") from None
    except (ValueError, TypeError) as e:
        raise UserError(f"{path}: damaged ({e}); build the data set again") from None


def read_tokenizer(folder):
    """The bytes of a data set's tokenizer.json, checked against the manifest."""
    path = Path(folder, "tokenizer.json")
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != read_manifest(folder)["sha256"]["tokenizer.json"]:
        raise UserError(f"{path} is not the tokenizer this data set was built with; build the data set again")
    return content


class Order:
    """The seeded order of examples: epoch after epoch, each a new permutation, cut into effective
    batches without regard to where an epoch ends, so that all have the same size."""

    def __init__(self, n, batch_size, seed):
        self.n, self.batch_size, self.seed, self.cache = n, batch_size, seed, {}

    def __call__(self, step):
        """(epochs, rows) of effective batch `step`, counted from 0: two int64 arrays (batch_size,)."""
        at = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = at // self.n
        self.cache = {e: self.cache[e] for e in self.cache if e >= epochs[0]}
        rows = np.empty(len(at), np.int64)
        for e in np.unique(epochs).tolist():
            if e not in self.cache:
                self.cache[e] = np.random.default_rng([self.seed, e]).permutation(self.n)
            rows[epochs == e] = self.cache[e][at[epochs == e] % self.n]
        return epochs, rows


def micro_batches(batch, budget, rank=0, world=1):
    """This rank's part of an effective batch as padded rectangles of at most `budget` tokens.

    Examples are sorted by length, dealt to the ranks in turn, then cut: a rectangle's rows have nearly
    the same length, so that there is little padding, and ranks nearly the same work.

    Yields dicts: ids (n, L) int64, length (n,), position (k,) of each target in ids.ravel(), task (k,),
    label (k,), targets sorted by task. Always at least one (empty ones keep the ranks in step).
    """
    mine = np.argsort(batch.length, kind="stable")[rank::world]
    lengths = batch.length[mine].tolist()
    cuts = [0]
    for i, length in enumerate(lengths):
        if (i + 1 - cuts[-1]) * length > budget and i > cuts[-1]:
            cuts.append(i)
    per_row = np.bincount(batch.row, minlength=len(batch.length))
    first = np.cumsum(per_row) - per_row
    for i, j in zip(cuts, [*cuts[1:], len(mine)]):
        rows = mine[i:j]
        width = int(lengths[j - 1]) if j > i else 1
        ids = np.full((len(rows), width), batch.pad, np.int64)
        ids[np.arange(width) < batch.length[rows][:, None]] = batch.ids[ragged(batch.start[rows], batch.length[rows])]
        targets = ragged(first[rows], per_row[rows])
        local = np.repeat(np.arange(len(rows)), per_row[rows])
        by_task = np.argsort(batch.task[targets], kind="stable")
        targets, local = targets[by_task], local[by_task]
        yield {
            "ids": ids, "length": batch.length[rows], "position": local * width + batch.col[targets],
            "task": batch.task[targets], "label": batch.label[targets],
        }  # fmt: skip


def progress(what, total, unit=""):
    """A tqdm bar on a terminal, nothing elsewhere. total: a number, or something to iterate over."""
    options = {"desc": what, "disable": None, "leave": False, "dynamic_ncols": True}
    if isinstance(total, int):
        return tqdm(total=total, unit=unit or "it", unit_scale=True, **options)
    return tqdm(total, **options)


if __name__ == "__main__":
    USAGE = "python data.py build [config.toml] --lang fr --umls DIR [--e3c DIR] [--key value ...]"

    def main(argv):
        settings, (command,) = configs.load("data", argv, USAGE, positionals=1)
        if command != "build":
            raise UserError(f"unknown command '{command}'; usage: {USAGE}")
        build(settings)

    configs.run(main)
