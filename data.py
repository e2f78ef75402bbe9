"""The UMLS graph and clinical text -> examples of the tasks -> masked batches (paper, section 3.1).

    python data.py build --lang fr --umls 2022AB --e3c E3C-Corpus            -> datasets/fr
    python data.py build configs/v2-multi.toml --umls 2022AB --e3c E3C-Corpus
    python data.py build --lang fr --tokenizer DrBERT-4GB                    -> datasets/fr-DrBERT-4GB
    python data.py show datasets/fr                                          its tables, and examples of each task

The file follows the data from top to bottom. It defines the tasks and the graph. It samples triples and paths
from the graph, stratified by semantic group, and turns them into text sequences (equation 1). It writes the data set to
disk, and at training time it makes masked batches of 1500 examples. The input files are read in support/. All random
choices depend on the seed alone: the same input and seed give the same bytes.
"""

import configs  # isort: split

import hashlib
import math
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc
from tokenizers import Tokenizer

from configs import UserError
from support import corpora, rrf, texts, tokenizers, umls
from support.arrays import concat_ranges, hash_uniform, splitmix64
from support.datasets import (
    SCHEMA,
    choose_output,
    find_sources,
    print_replaced,
    print_replacement,
    read_examples,
    read_manifest,
    read_tokenizer,
    write_dataset,
)  # fmt: skip
from support.files import (
    progress,
    run_command,
)  # fmt: skip
from support.reports import print_dataset_tables, print_next, print_training

# "A set of special tokens to represent the relation types R, of which there are seven (parent, child, synonymy, allowed
# qualifier, qualified by, broader, narrower)". SY is last, so that the six classes of link prediction are 0 to 5.
RELATIONS = ("PAR", "CHD", "AQ", "QB", "RB", "RN", "SY")
SY = RELATIONS.index("SY")
INVERSE = np.array([1, 0, 3, 2, 5, 4, 6])  # a parent's inverse is a child, and so on
RELATION_TOKENS = tuple(f"[{r}]" for r in RELATIONS)  # [REL] of equation (1)
HREL = "[HREL]"  # "another hidden relation token"
NEW_TOKENS = (*RELATION_TOKENS, HREL)

SPLITS = ("train", "valid")
TRUE, CORRUPTED_ENTITIES, CORRUPTED_RELATION = range(3)  # kinds of triple-classification examples
MAX_STEPS = 4 << 20  # relations of the random walks made at a time; it limits memory for a large --lp_paths
MIN_DOCUMENT = 5  # tokens; a shorter document holds nothing to learn from
MAX_NAMES = 10  # of a concept, the preferred one first, that synonym alignment makes pairs of


# ---------------------------------------------------------------- the tasks: what is predicted, what is hidden


@dataclass
class Tokens:
    """All tokens of a batch, one example after another; every array has one entry a token.

    ids: token ids. task: index into TASKS. position: in its sequence, [CLS] is 0. length: of its sequence.
    relation: index into RELATIONS, -1 at other tokens. n_relations: relation tokens of the sequence up to here.
    kind: TRUE, CORRUPTED_ENTITIES or CORRUPTED_RELATION. key: a hash of (seed, epoch, example, position), from which
    all random choices about the token follow. special, ordinary: token ids. mlm_probability: of the run.
    """

    ids: np.ndarray
    task: np.ndarray
    position: np.ndarray
    length: np.ndarray
    relation: np.ndarray
    n_relations: np.ndarray
    kind: np.ndarray
    key: np.ndarray
    special: dict  # {"mask": id, "hrel": id, ...}
    ordinary: np.ndarray  # ids of the vocabulary that are not special
    mlm_probability: float

    @property
    def inside(self):
        """Whether a token is between [CLS] and [SEP]."""
        return (self.position > 0) & (self.position < self.length - 1)


def random_document_tokens(tokens):
    """MLM, Table 8: "MLM probability 0.15". Each token of a document is a target with this probability."""
    return tokens.inside & (hash_uniform(tokens.key, 0) < tokens.mlm_probability)


def corrupt_like_bert(tokens, at):
    """MLM, as BERT does it: 80 % of the targets become [MASK], 10 % a random token, and 10 % stay."""
    draw = hash_uniform(tokens.key[at], 1)
    pick = (hash_uniform(tokens.key[at], 2) * len(tokens.ordinary)).astype(np.int64)
    return np.select([draw < 0.8, draw < 0.9], [tokens.special["mask"], tokens.ordinary[pick]], tokens.ids[at])


def tail_tokens(tokens):
    """Entity prediction: "by masking the tokens associated with the concept t", all that follow the relation token."""
    return tokens.inside & (tokens.n_relations > 0) & (tokens.relation < 0)


def replace_by_mask(tokens, at):
    """Entity prediction: all of the targets become [MASK]."""
    return np.full(len(at), tokens.special["mask"])


def relation_tokens(tokens):
    """Link prediction: "masking the relation tokens in the path dataset", each of them."""
    return tokens.relation >= 0


def replace_by_hrel(tokens, at):
    """Link prediction: each target becomes [HREL], the paper's "hidden relation token"."""
    return np.full(len(at), tokens.special["hrel"])


def cls_token(tokens):
    """Triple classification: "classifying triples as true or false", one target a sequence, at [CLS]."""
    return tokens.position == 0


def keep_tokens(tokens, at):
    """Triple classification: nothing is hidden."""
    return tokens.ids[at]


def token_itself(tokens, at):
    """The label of MLM and entity prediction: the token that was there."""
    return tokens.ids[at]


def relation_class(tokens, at):
    """The label of link prediction: "one of six relation types"."""
    return tokens.relation[at]


def triple_is_true(tokens, at):
    """The label of triple classification: 1 for a triple of the graph, 0 for a corrupted one."""
    return (tokens.kind[at] == TRUE).astype(np.int64)


def name_number(tokens, at):
    """The label of synonym alignment: the number of the name in the effective batch; 2k and 2k + 1 are a pair."""
    return np.arange(len(at))


class Task(NamedTuple):
    """One kind of training example; `at` are the positions of its targets in the tokens."""

    name: str
    title: str
    head: str  # the attribute of model.KGIBert that scores the targets
    choose_targets: Callable  # tokens -> which of them are predicted, (tokens,) bool
    corrupt: Callable  # (tokens, at) -> the ids that the model sees there
    label: Callable  # (tokens, at) -> the class to predict
    size: str = ""  # the setting of configs.Data that says how many examples to sample; documents have none
    in_paper: bool = True  # whether it is trained unless --tasks says otherwise
    rows: int = 1  # sequences of an example, which follow one another in the file


TASKS = (
    Task("mlm", "masked language modelling", "mlm_head", random_document_tokens, corrupt_like_bert, token_itself),
    Task("ep", "entity prediction", "mlm_head", tail_tokens, replace_by_mask, token_itself, "ep_examples"),
    Task("lp", "link prediction", "relation_head", relation_tokens, replace_by_hrel, relation_class, "lp_paths"),
    Task("tc", "triple classification", "triple_head", cls_token, keep_tokens, triple_is_true, "tc_examples"),
    Task("sa", "synonym alignment", "alignment_head", cls_token, keep_tokens, name_number, "sa_pairs", False, 2),
)
TASK_NAMES = tuple(task.name for task in TASKS)
PAPER_TASKS = tuple(task.name for task in TASKS if task.in_paper)
SEQUENCES = np.array([task.rows for task in TASKS])  # of an example of each task
MLM, EP, LP, TC, SA = map(TASK_NAMES.index, ("mlm", "ep", "lp", "tc", "sa"))


# ---------------------------------------------------------------- the graph G = (C, E, R)


@dataclass
class Graph(umls.Tables):
    """The graph of one language: "a directed graph G = (C, E, R)", on integers.

    C are the concepts 0..N-1, R is RELATIONS, and E is the set of triples (h, r, t): (h, PAR, t) says that h is a
    parent of t. The fields of umls.Tables hold the strings of each concept, the preferred term first, and one semantic
    group, that of its least deep type. It serves stratification and both kinds of negatives, though section 3.1 lets a
    concept have several. The rest is made from them.

    Attributes:
        h, r, t: (E,) the triples, sorted. strata: (E,) the stratum of each.
        counts: (strata, relations) how many triples each stratum has of each relation.
    """

    def __post_init__(self):
        self.h, self.r, self.t = umls.split_key(self.keys)
        self.strata = self.stratum(self.h, self.t)
        self.counts = self.count(self.h, self.r, self.t)

    def contains(self, h, r, t):
        """Whether (h, r, t), or its inverse, is a triple of the graph (bool array)."""
        found = np.zeros(np.shape(h), bool)
        for key in (umls.triple_key(h, r, t), umls.triple_key(t, INVERSE[r], h)):
            at = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
            found |= self.keys[at] == key
        return found

    def stratum(self, h, t):
        """(semantic group of h, semantic group of t) as one number below len(groups) ** 2."""
        n = len(self.groups)
        small = np.min_scalar_type(n * n)
        return self.group.astype(small)[h] * small.type(n) + self.group[t]

    def count(self, h, r, t):
        """(strata, relations) int64: how many of the triples each stratum has of each relation."""
        cell = self.stratum(h, t).astype(np.int32) * len(RELATIONS) + r
        return np.bincount(cell, minlength=len(self.groups) ** 2 * len(RELATIONS)).reshape(-1, len(RELATIONS))


def in_validation(cui_a, cui_b, seed, fraction):
    """Whether the unordered concept pair is held out for validation (bool array).

    It is a function of the pair alone, so that the inverse of a triple, every relation of the pair and every task, in
    every language, are on the same side of the split. The paper reports no such split. Examples for it are drawn beside
    Table 1's numbers.
    """
    out = np.empty(len(cui_a), bool)
    block = 1 << 15  # small enough for the cache: seven times as fast
    for i in range(0, len(out), block):
        a, b = cui_a[i : i + block], cui_b[i : i + block]
        out[i : i + block] = hash_uniform(seed, np.minimum(a, b), np.maximum(a, b)) < fraction
    return out


# ---------------------------------------------------------------- stratified sampling
# "We perform stratified sampling on the base knowledge graph according to semantic groups, i.e. we ensure that the
# proportional representation of each semantic group in the knowledge-base triples ... is maintained".


def allocate_quotas(shares, n, capacity):
    """n examples over strata in proportion to `shares`, exact to rounding (largest remainder).

    A stratum with less capacity than its quota is filled, and the rest is allocated to the others.

    Args:
        shares: (strata,) non-negative. capacity: (strata,) how many each has.

    Returns: (strata,) int64 with the sum min(n, capacity.sum()).
    """
    n = min(n, int(capacity.sum()))
    quota = np.zeros(len(shares), np.int64)
    while quota.sum() < n:
        free = (capacity > quota) & (shares > 0)
        if not free.any():  # only strata that the shares do not know are left
            free = capacity > quota
            shares = np.where(free, 1, 0)
        exact = np.where(free, shares, 0) / shares[free].sum() * (n - quota.sum())
        more = np.floor(exact).astype(np.int64)
        remainder = n - int(quota.sum() + more.sum())
        more[np.argsort(more - exact, kind="stable")[:remainder]] += 1
        quota = np.minimum(quota + more, capacity)
    return quota


class StratumIndex:
    """Things to draw from, by stratum: those of stratum s are rows[start[s] : start[s] + size[s]]."""

    def __init__(self, rows, strata, n_strata):
        """rows: (n,) indices. strata: (n,) the stratum of each, below n_strata."""
        self.rows = rows[np.argsort(strata, kind="stable")]  # a radix sort, since strata are small integers
        self.size = np.bincount(strata, minlength=n_strata)
        self.start = np.cumsum(self.size) - self.size

    def draw(self, rng, strata):
        """One member of each of `strata`, with replacement."""
        return self.rows[self.start[strata] + (rng.random(len(strata)) * self.size[strata]).astype(np.int64)]


def stratified_sample(rng, index, shares, n, reuse=False):
    """n members of a StratumIndex, drawn without replacement within each stratum; in the order of the strata.

    Args:
        shares: (strata,) counts that set the proportions.
        reuse: where a stratum has fewer members than its share, use them again in turn.
    """
    quota = allocate_quotas(shares, n, np.where(index.size > 0, n, 0) if reuse else index.size)
    positions = [np.zeros(0, np.int64)]
    for s in np.flatnonzero(quota):
        members = rng.choice(index.size[s], min(quota[s], index.size[s]), replace=False)
        positions.append(index.start[s] + np.resize(members, quota[s]))
    return index.rows[np.concatenate(positions)]


# ---------------------------------------------------------------- entity prediction and triple classification


class Triples(NamedTuple):
    """Sampled triples, (n,) int64 each: concepts and relation, the string that names the tail, and their kind."""

    h: np.ndarray
    r: np.ndarray
    t: np.ndarray
    tail_term: np.ndarray
    kind: np.ndarray

    def terms(self, graph):
        """(n, 2) the strings of head and tail, as indices into graph.terms."""
        return np.stack([graph.first_term[self.h], self.tail_term], axis=1)

    def edges(self):
        """(h, r, t) of all relations in the sample."""
        return self.h, self.r, self.t

    def sequences(self, graph, names, max_tokens):
        """Equation (1): [CLS] w_1^h ... w_m^h [REL] w_1^t ... w_n^t [SEP].

        Where both names do not fit, their ends are cut: each keeps at least half of the room, or all that it needs.
        Returns: as Sequences.
        """
        h, t = names.find(self.terms(graph)).T
        room = max_tokens - 3  # [CLS], [REL] and [SEP]
        m = np.minimum(names.length[h], np.maximum(room // 2, room - names.length[t]))
        n = np.minimum(names.length[t], room - m)
        one = np.ones(len(h), np.int64)
        start = np.stack([one * names.cls, names.start[h], names.rel + self.r, names.start[t], one * names.sep], axis=1)
        length = np.stack([one, m, one, n, one], axis=1)
        return Sequences(start, length, graph.cui[np.stack([self.h, self.t], axis=1)].ravel(), 2 * one, self.kind)


def choose_tail_terms(rng, graph, h, r, t):
    """Which string names each tail, as indices into graph.terms.

    It is the preferred term, "except in the case of synonym relations where we randomly select another of the terms
    associated with the concept". The same holds for a corrupted triple of a concept and itself, which would otherwise
    have the same name twice.
    """
    n_terms = graph.first_term[t + 1] - graph.first_term[t]
    another = ((r == SY) | (h == t)) & (n_terms > 1)
    return graph.first_term[t] + np.where(another, 1 + (rng.random(len(t)) * (n_terms - 1)).astype(np.int64), 0)


def sample_entity_prediction(rng, graph, true, n):
    """Triples of the graph whose tail is to be predicted. true: StratumIndex of the triples of this split."""
    i = stratified_sample(rng, true, graph.counts.sum(axis=1), n)
    h, r, t = graph.h[i], graph.r[i], graph.t[i]
    return Triples(h, r, t, choose_tail_terms(rng, graph, h, r, t), np.full(len(i), TRUE))


def sample_triple_classification(rng, graph, true, n, in_split):
    """Triples: "50% positive examples (real triples from the KG), 25% examples generated by the first negative sampling
    method and the rest by the second".

    The triples that negatives are made from are drawn apart from the positives. Where a kind of negative cannot be had
    in full, the other makes up for it. The positives are cut to match, so that half of the examples are always true.

    Args:
        true: StratumIndex of the triples of this split. in_split(h, t): whether pairs are on this side of the split.
    """
    n_groups, shares = len(graph.groups), graph.counts.sum(axis=1)
    different_groups = np.arange(n_groups**2) // n_groups != np.arange(n_groups**2) % n_groups
    has_relations = np.zeros(len(graph.group), bool)
    has_relations[graph.h], has_relations[graph.t] = True, True
    concepts = StratumIndex(np.flatnonzero(has_relations), graph.group[has_relations], n_groups)
    frequency = graph.counts[~different_groups].sum(axis=0) + 1e-9

    def negatives(corrupt, allowed_strata, n):
        """n negatives made from true triples of some strata (a mask), which keep the shares they have in the graph."""
        available = shares * allowed_strata * (true.size > 0)
        if not available.any():
            return np.zeros((3, 0), np.int64)
        source = stratified_sample(rng, true, available, n, reuse=True)
        return sample_negatives(rng, graph, source, corrupt, true, in_split)

    half = min(n // 2, len(true.rows))
    first_strategy = partial(corrupt_entities, graph=graph, concepts=concepts)
    second_strategy = partial(corrupt_relation, graph=graph, frequency=frequency)
    first = negatives(first_strategy, different_groups, half - half // 2)
    second = negatives(second_strategy, ~different_groups, half - first.shape[1])
    # Where the second kind fell short, there are more of the first, unless that did too.
    if first.shape[1] + second.shape[1] < half and first.shape[1] == half - half // 2:
        first = negatives(first_strategy, different_groups, half - second.shape[1])
    i = stratified_sample(rng, true, shares, first.shape[1] + second.shape[1])
    positives = np.stack([graph.h[i], graph.r[i], graph.t[i]])
    h, r, t = np.concatenate([positives, first, second], axis=1)
    sizes = [len(i), first.shape[1], second.shape[1]]
    kind = np.repeat([TRUE, CORRUPTED_ENTITIES, CORRUPTED_RELATION], sizes)
    return Triples(h, r, t, choose_tail_terms(rng, graph, h, r, t), kind)


def corrupt_entities(rng, i, graph, concepts):
    """The first strategy: "false triples with the same relation type and semantic group categories".

    Both concepts are drawn again from their semantic groups, uniformly among concepts that have relations; the paper
    does not say how. True triples hold well-connected concepts more often, which a model can learn.

    Args: i: indices of true triples. concepts: StratumIndex by group. Returns: (h, r, t).
    """
    h = concepts.draw(rng, graph.group[graph.h[i]])
    t = concepts.draw(rng, graph.group[graph.t[i]])
    return h, graph.r[i], t


def corrupt_relation(rng, i, graph, frequency):
    """The second strategy: "form the negative training example by changing the relation type r".

    The new relation is drawn by its frequency among true triples: a relation that only false triples have would give
    them away. Args: i: indices of true triples. frequency: (relations,). Returns: (h, r, t).
    """
    weight = np.where(np.arange(len(RELATIONS)) == graph.r[i][:, None], 0, frequency).cumsum(axis=1)
    r = (rng.random((len(i), 1)) * weight[:, -1:] >= weight).sum(axis=1)
    return graph.h[i], r, graph.t[i]


def sample_negatives(rng, graph, source, corrupt, true, in_split):
    """Distinct triples that are not in the graph, one for each true triple of `source`: (3, n) int64.

    A corrupted triple is rejected if it is in the graph, in the other split or a repeat. Then another true triple of
    its stratum is corrupted, in up to 200 rounds. In a very dense graph fewer negatives than requested are returned.

    Args:
        source: indices of true triples. corrupt(rng, source) -> (h, r, t). true: StratumIndex of the true triples.
    """
    done, keys = [np.zeros((3, 0), np.int64)], np.zeros(0, np.int64)
    for _ in range(200):
        if len(source) == 0:
            break
        h, r, t = corrupt(rng, source)
        key = umls.triple_key(h, r, t)
        good = np.zeros(len(key), bool)
        good[np.unique(key, return_index=True)[1]] = True
        good &= ~graph.contains(h, r, t) & in_split(h, t) & ~np.isin(key, keys)
        done.append(np.stack([h, r, t])[:, good])
        keys = np.concatenate([keys, key[good]])
        source = true.draw(rng, graph.strata[source[~good]])
    return np.concatenate(done, axis=1)


# ---------------------------------------------------------------- link prediction


class Paths(NamedTuple):
    """Sampled paths h_1 r_1 h_2 r_2 ...: concepts (n, k + 1) and relations (n, k) int64, -1 after the end of each."""

    concepts: np.ndarray
    relations: np.ndarray

    def terms(self, graph):
        """The preferred term of each concept in turn, as indices into graph.terms."""
        return graph.first_term[self.concepts[self.concepts >= 0]]

    def edges(self):
        """(h, r, t) of all relations in the sample."""
        i, k = np.nonzero(self.relations >= 0)
        return self.concepts[i, k], self.relations[i, k], self.concepts[i, k + 1]

    def sequences(self, graph, names, max_tokens):
        """[CLS] h_1 [R_1] h_2 [R_2] h_3 ... [SEP], in max_tokens tokens.

        Names are shortened to a third of the room, so that three always fit. A path that is still too long ends after
        its last whole name.

        Returns: as Sequences.
        """
        n, most = self.relations.shape
        start, length = np.full((n, 2 * most + 3), names.cls), np.zeros((n, 2 * most + 3), np.int64)
        term, is_concept, is_relation = names.find(self.terms(graph)), self.concepts >= 0, self.relations >= 0
        name_start, name_length = start[:, 1:-1:2], length[:, 1:-1:2]  # views: writing to them fills their columns
        relation = slice(2, -1, 2)  # the columns of relations
        name_start[is_concept] = names.start[term]
        name_length[is_concept] = np.minimum(names.length[term], (max_tokens - 4) // 3)  # three names always fit
        start[:, relation] = np.where(is_relation, names.rel + self.relations, names.cls)
        length[:, relation] = is_relation
        fits = np.cumsum(length, axis=1)[:, 1::2] <= max_tokens - 2  # up to and with each name
        kept = fits & is_concept
        name_length *= kept
        length[:, relation] *= kept[:, 1:]
        length[:, 0], length[:, -1], start[:, -1] = 1, 1, names.sep
        return Sequences(start, length, graph.cui[self.concepts[kept]], kept.sum(1), np.full(n, TRUE))


def sample_link_prediction(rng, graph, true, n, max_relations):
    """Paths: "variable-length paths through the KG by iteratively selecting a list of triples ... where h_{i+1} = t_i".

    "We exclude synonym relations from the path dataset." Ours, where the paper is silent: 2 to max_relations relations,
    the wanted length uniform; the first triple of a walk is stratified; no concept comes twice, so that the inverse of
    a relation never follows it.

    Args: true: StratumIndex of the triples of this split. Returns: up to n distinct Paths.
    """
    rows = true.rows[graph.r[true.rows] != SY]
    first_triples = StratumIndex(rows, graph.strata[rows], len(graph.counts))
    edges = np.sort(rows)  # in the order of their heads
    first, walks = np.zeros(0, np.int64), np.zeros((0, 2 * max_relations + 1), np.int64)
    shares = graph.counts[:, :SY].sum(axis=1)
    at_once = MAX_STEPS // max_relations
    for _ in range(6 + n // at_once):  # walks that meet a dead end or repeat another are replaced by new ones
        n_before = len(first)
        if n_before >= n or len(edges) == 0:
            break
        missing = min(n - n_before, at_once)
        starts = stratified_sample(rng, first_triples, shares, 2 * missing + 1000, reuse=True)
        wanted = rng.integers(2, max_relations + 1, len(starts))
        new = np.concatenate(random_walks(rng, graph, edges, starts, wanted, max_relations), axis=1)
        long_enough = new[:, 2] >= 0
        walks, first = np.concatenate([walks, new[long_enough]]), np.concatenate([first, starts[long_enough]])
        distinct = np.unique(splitmix64(*walks.T), return_index=True)[1]
        walks, first = walks[distinct], first[distinct]
        if len(first) - n_before < missing // 20:
            break  # there are hardly any others
    chosen = stratified_sample(rng, StratumIndex(np.arange(len(first)), graph.strata[first], len(shares)), shares, n)
    return Paths(walks[chosen, : max_relations + 1], walks[chosen, max_relations + 1 :])


def random_walks(rng, graph, edges, first, length, max_relations):
    """Walk i starts with triple first[i] and ends after length[i] relations, or where 8 draws find no new concept.

    Args: edges: indices of the triples to walk on, sorted.
    Returns: (concepts (n, max_relations + 1), relations (n, max_relations)) int64, -1 after the end.
    """
    first_edge = np.concatenate([[0], np.cumsum(np.bincount(graph.h[edges], minlength=len(graph.cui)))])
    concepts = np.full((len(first), max_relations + 1), -1, np.int64)
    relations = np.full((len(first), max_relations), -1, np.int64)
    concepts[:, 0], relations[:, 0], concepts[:, 1] = graph.h[first], graph.r[first], graph.t[first]
    alive = np.arange(len(first))
    for step in range(1, max_relations):
        pending, moved = alive[length[alive] > step], []
        for _ in range(8):
            here = concepts[pending, step]
            degree = first_edge[here + 1] - first_edge[here]
            at = first_edge[here] + (rng.random(len(pending)) * degree).astype(np.int64)
            edge = edges[np.minimum(at, len(edges) - 1)]
            is_new = (concepts[pending, : step + 1] != graph.t[edge][:, None]).all(axis=1)
            good = (degree > 0) & is_new
            concepts[pending[good], step + 1] = graph.t[edge[good]]
            relations[pending[good], step] = graph.r[edge[good]]
            moved.append(pending[good])
            pending = pending[~good]
        alive = np.sort(np.concatenate(moved))
    return concepts, relations


# ---------------------------------------------------------------- synonym alignment (beyond the paper)


class NamePairs(NamedTuple):
    """Sampled pairs of names of one concept, in one language or two.

    concept: (n,) in the graph of the first name. names: (n, 2) as indices into the terms of the graph of each. cuis,
    n_cuis: the concepts that each name names, one name after another, and how many they are. A string may name several
    concepts, which are no negatives of each other.
    """

    concept: np.ndarray
    names: np.ndarray
    cuis: np.ndarray
    n_cuis: np.ndarray

    def edges(self):
        """(h, r, t): each pair as a synonym relation of its concept."""
        return self.concept, np.full(len(self.concept), SY), self.concept

    def sequences(self, first, second, max_tokens):
        """[CLS] name [SEP] twice for each pair, one after the other.

        Args: first, second: Names of both languages. Returns: (Sequences of 2n, ids of both, which they index).
        """
        a, b = first.find(self.names[:, 0]), second.find(self.names[:, 1])
        start = np.stack([first.start[a], len(first.ids) + second.start[b]], axis=1).ravel()
        length = np.minimum(np.stack([first.length[a], second.length[b]], axis=1).ravel(), max_tokens - 2)
        one = np.ones(len(start), np.int64)
        pieces = np.stack([one * first.cls, start, one * first.sep], axis=1), np.stack([one, length, one], axis=1)
        return Sequences(*pieces, self.cuis, self.n_cuis, TRUE * one), np.concatenate([first.ids, second.ids])


def sample_synonym_alignment(graphs, split, n, s):
    """Pairs of names of one concept, n in each language and n in each two languages, if there are so many.

    They are stratified by the semantic group of the concept: each group has the share that it has among heads and
    tails of the relations.

    Args: graphs: of all languages. s: settings (seed, valid_fraction).
    Returns: {(i, j): NamePairs} of the languages i <= j.
    """
    names = name_table(graphs)
    a, b = pairs_of_names(names, split, s)
    by_spelling, out = np.argsort(names.spelling, kind="stable"), {}
    for i, j in combinations_with_replacement(range(len(graphs)), 2):
        graph, in_these_languages = graphs[i], np.flatnonzero((names.lang[a] == i) & (names.lang[b] == j))
        rng = np.random.default_rng([s.seed, i, j, SPLITS.index(split), SA])
        index = StratumIndex(in_these_languages, graph.group[names.concept[a[in_these_languages]]], len(graph.groups))
        chosen = stratified_sample(rng, index, triples_of_groups(graph.counts), n)
        pairs = np.stack([a[chosen], b[chosen]], axis=1)
        cuis = concepts_named(names, by_spelling, pairs.ravel())
        out[i, j] = NamePairs(names.concept[pairs[:, 0]], names.term[pairs], *cuis)
    return out


class NameTable(NamedTuple):
    """All names of all languages; arrays have one entry a name.

    lang: index into the graphs. concept, term: in the graph of its language. rank: among the names of its concept in
    its language, the preferred one is 0. cui: as a number. spelling: a number for its string in lower case.
    """

    lang: np.ndarray
    concept: np.ndarray
    term: np.ndarray
    rank: np.ndarray
    cui: np.ndarray
    spelling: np.ndarray


def name_table(graphs):
    """The NameTable of the concepts of all graphs."""
    concept = [np.repeat(np.arange(len(g.cui)), np.diff(g.first_term)) for g in graphs]
    lang = [np.full(len(c), i) for i, c in enumerate(concept)]
    term = [np.arange(len(c)) for c in concept]
    rank = [t - g.first_term[c] for g, t, c in zip(graphs, term, concept)]
    cui = [g.cui[c] for g, c in zip(graphs, concept)]
    strings = pa.chunked_array([g.terms for g in graphs]).combine_chunks()
    spelling = pc.utf8_lower(strings).dictionary_encode().indices.to_numpy()
    return NameTable(*map(np.concatenate, (lang, concept, term, rank, cui)), spelling)


def pairs_of_names(names, split, s):
    """(a, b): all pairs of names of one concept in a split, as positions in `names`; a is of the first language.

    The names are the first MAX_NAMES strings of MRCONSO in a language. Those of SY rows, which mostly join two atoms of
    one concept, are among them. Concepts are held out whole: a string that names a concept of either split, upper and
    lower case apart, is in no pair of the other. Two names that differ by case alone are no pair.
    """
    is_here = in_validation(names.cui, names.cui, s.seed, s.valid_fraction) == (split == "valid")
    named_elsewhere = np.zeros(names.spelling.max(initial=-1) + 1, bool)
    named_elsewhere[names.spelling[~is_here]] = True
    usable = np.flatnonzero(is_here & ~named_elsewhere[names.spelling] & (names.rank < MAX_NAMES))
    usable = usable[np.argsort(names.cui[usable], kind="stable")]  # of one concept, those of the first language first
    a, b = (usable[x] for x in pairs_of_equals(names.cui[usable]))
    differ = names.spelling[a] != names.spelling[b]
    return a[differ], b[differ]


def concepts_named(names, by_spelling, at):
    """(cuis, how many): the concepts that have the spelling of each of the names `at`, those of one after another.

    by_spelling: the order that sorts the names by spelling.
    """
    n_named = np.bincount(names.spelling)
    first = (np.cumsum(n_named) - n_named)[names.spelling[at]]
    n_cuis = n_named[names.spelling[at]]
    return names.cui[by_spelling[concat_ranges(first, n_cuis)]], n_cuis


def triples_of_groups(counts):
    """(groups,): how many triples have a head or a tail of each semantic group. counts: (strata, relations)."""
    n_groups = math.isqrt(len(counts))
    of_pair = counts.sum(axis=1).reshape(n_groups, n_groups)
    return of_pair.sum(axis=0) + of_pair.sum(axis=1)


def terms_in_pairs(alignment, lang):
    """Arrays of the terms of a language that are in pairs. alignment: {split: {(i, j): NamePairs}}."""
    every = [(langs, pairs) for of_split in alignment.values() for langs, pairs in of_split.items()]
    return [pairs.names[:, k] for langs, pairs in every for k in (0, 1) if langs[k] == lang]


def pairs_of_equals(values):
    """(a, b): positions a < b of all pairs of equal values, which must stand together."""
    first = np.flatnonzero(np.diff(values, prepend=-1))
    size = np.diff(first, append=len(values))
    a, b = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for n in range(2, size.max(initial=0) + 1):
        i, j = np.triu_indices(n, 1)
        a.append((first[size == n, None] + i).ravel())
        b.append((first[size == n, None] + j).ravel())
    return np.concatenate(a), np.concatenate(b)


# ---------------------------------------------------------------- all samples


def sample_tasks(graph, split, sizes, s):
    """The samples of the graph for one split: {task: Triples or Paths}.

    Args: sizes: {task: how many examples}. s: settings (seed, valid_fraction, max_relations).
    """
    lang = int.from_bytes(graph.lang.encode())
    rng = {task: np.random.default_rng([s.seed, lang, SPLITS.index(split), task]) for task in sizes}

    def in_split(h, t):
        return in_validation(graph.cui[h], graph.cui[t], s.seed, s.valid_fraction) == (split == "valid")

    rows = np.flatnonzero(in_split(graph.h, graph.t))
    true = StratumIndex(rows, graph.strata[rows], len(graph.counts))
    return {
        EP: sample_entity_prediction(rng[EP], graph, true, sizes[EP]),
        TC: sample_triple_classification(rng[TC], graph, true, sizes[TC], in_split),
        LP: sample_link_prediction(rng[LP], graph, true, sizes[LP], s.max_relations),
    }


def distribution_report(graph, samples):
    """Shares of semantic groups (heads and tails together) and relations in the graph and in each sample.

    The report also compares each sample with its frame, the triples that it is drawn from. It gives the pair (group of
    h, group of t) whose share differs most. samples: as sample_tasks returns them.
    """
    n, counts, columns = len(graph.groups), graph.counts, {"graph": (graph.counts, graph.counts)}
    different_groups = (np.arange(n**2) // n != np.arange(n**2) % n)[:, None]
    frames = {"true": counts, "corrupted entities": counts * different_groups}
    frames |= {"corrupted relation": counts * ~different_groups, "paths": counts * (np.arange(len(RELATIONS)) != SY)}
    diagonal = np.arange(n**2) // n == np.arange(n**2) % n  # a pair of names is of one group
    frames["synonym alignment"] = (diagonal * triples_of_groups(counts)[np.arange(n**2) % n])[:, None]
    for task, sample in samples.items():
        if task == TC:  # a column for each kind
            for kind, title in enumerate(("true", "corrupted entities", "corrupted relation")):
                columns[title] = graph.count(*(x[sample.kind == kind] for x in sample.edges())), frames[title]
        else:
            title = "paths" if task == LP else TASKS[task].title
            columns[title] = graph.count(*sample.edges()), frames.get(title, counts)
    share = {c: drawn / max(1, drawn.sum()) for c, (drawn, _) in columns.items()}
    by_pair = {c: x.sum(1).reshape(n, n) for c, x in share.items()}
    by_group = {c: (x.sum(0) + x.sum(1)) / 2 for c, x in by_pair.items()}
    out = {"columns": list(columns), "groups": {}, "relations": {}, "largest_deviation": {}}
    for k in np.flatnonzero(by_group["graph"]).tolist():
        out["groups"][graph.groups[k]] = [round(float(x[k]), 6) for x in by_group.values()]
    for k, relation in enumerate(RELATIONS):
        out["relations"][relation] = [round(float(x[:, k].sum()), 6) for x in share.values()]
    for c, (drawn, frame) in columns.items():
        difference = np.abs(share[c].sum(1) - frame.sum(1) / max(1, frame.sum())) * bool(drawn.sum())
        k = int(difference.argmax())
        pair = f"{graph.groups[k // n]} {graph.groups[k % n]}"
        out["largest_deviation"][c] = [round(float(difference[k]), 6), pair]
    return out


# ---------------------------------------------------------------- samples -> sequences of tokens


class Sequences(NamedTuple):
    """Text sequences as ranges of Names.ids, and what belongs to each of n sequences.

    start, length: (n, pieces) int64, pieces of length 0 are not there. cuis, n_cuis: the concepts, one sequence after
    another, and how many each has. kind: (n,) of triple-classification examples, TRUE at others.
    """

    start: np.ndarray
    length: np.ndarray
    cuis: np.ndarray
    n_cuis: np.ndarray
    kind: np.ndarray


class Names:
    """The token ids of the terms that the samples use, one term after another; sequences are gathered from them.

    The single tokens [CLS], [SEP], [UNK] and the relation tokens come last, so that they are ranges of length 1:
    cls, sep, rel (of the first relation) are their positions.
    """

    def __init__(self, terms, ids, length, special):
        """terms: (n,) sorted indices into graph.terms. ids: their tokens. length: (n,) how many each has."""
        self.terms = terms
        self.cls, self.sep, unk, self.rel = len(ids) + np.arange(4)
        single = np.array([special["cls"], special["sep"], special["unk"], *special["relations"]], np.int32)
        self.ids = np.concatenate([ids, single])
        # A name without any token (control characters) is [UNK].
        self.start = np.where(length == 0, unk, np.cumsum(length) - length)
        self.length = np.maximum(length, 1)

    def find(self, terms):
        """Where some terms are in start and length."""
        return np.searchsorted(self.terms, terms)


def used_terms(graph, samples, names):
    """The strings that the samples need, as sorted indices into graph.terms; the others are never decoded.

    names: arrays of further ones, of synonym alignment.
    """
    used = np.zeros(len(graph.terms), bool)
    for terms in (*(sample.terms(graph) for sample in samples), *names):
        used[terms] = True
    return np.flatnonzero(used)


def special_token_ids(tokenizer):
    """{"pad", "cls", "sep", "mask", "unk", "hrel": id, "relations": [ids in the order of RELATIONS]}."""
    relations = [tokenizer.token_to_id(token) for token in RELATION_TOKENS]
    return tokenizers.special_ids(tokenizer) | {"relations": relations, "hrel": tokenizer.token_to_id(HREL)}


def split_documents(documents, seed, valid_fraction, keep_duplicates):
    """Texts of documents -> {split: texts}, in an order that depends on the texts alone.

    A text counts once unless keep_duplicates; its copies are in one split.
    """
    documents = documents if keep_duplicates else set(documents)
    digests = [(int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little"), t) for t in documents]
    digests.sort()
    valid = hash_uniform(seed, np.array([digest for digest, _ in digests], np.uint64)) < valid_fraction
    return {split: [t for (_, t), v in zip(digests, valid) if v == (split == "valid")] for split in SPLITS}


def cut_documents(ids, length, windows, max_tokens):
    """Tokens of documents -> (start, length) of the examples; documents below MIN_DOCUMENT tokens are left out.

    Args:
        length: (n,) tokens of each. max_tokens: of a window, without [CLS] and [SEP].
        windows: "random" keeps whole documents, of which training draws a window in each epoch; "first" keeps the
            beginning of each, our reading of "a maximal sequence length of 256"; "all" makes every window an example.
    """
    start = np.cumsum(length) - length
    start, length = start[length >= MIN_DOCUMENT], length[length >= MIN_DOCUMENT]
    if windows == "first":
        length = np.minimum(length, max_tokens)
    elif windows == "all":
        n_windows = -(-length // max_tokens)
        offset = concat_ranges(np.zeros(len(n_windows), np.int64), n_windows) * max_tokens
        offset = np.minimum(offset, np.maximum(np.repeat(length, n_windows) - max_tokens, 0))  # the last one overlaps
        start, length = np.repeat(start, n_windows) + offset, np.minimum(np.repeat(length, n_windows), max_tokens)
    return start, length


# ---------------------------------------------------------------- the data set on disk


class ExampleWriter:
    """Collects the examples of one split and writes them as one Arrow record batch.

    Columns: task (index into TASKS), lang (index into the languages), kind (of a triple-classification example), cuis
    (list: the concepts, which prove the split), ids (list: tokens with [CLS] and [SEP]; documents are without).
    """

    def __init__(self):
        self.columns = {name: [] for name in ("task", "lang", "kind", "cui", "n_cuis", "id", "n_ids")}

    def add_sequences(self, task, lang, sequences, ids):
        """Sequences of a task, gathered from token ids as Names.ids has them."""
        start, length, cuis, n_cuis, kind = sequences
        ids = ids[concat_ranges(start.ravel(), length.ravel())]
        self.add(task, lang, kind, cuis, n_cuis, ids, length.sum(axis=1))

    def add_documents(self, lang, ids, start, length):
        """Documents as cut_documents returns them; their tokens are ids[start[i] : start[i] + length[i]]."""
        n = len(start)
        self.add(MLM, lang, TRUE, np.zeros(0), np.zeros(n, np.int64), ids[concat_ranges(start, length)], length)

    def add(self, task, lang, kind, cuis, n_cuis, ids, n_ids):
        """Examples of one task: lists one after another, with the length of each. lang: of all, or in turn of each."""
        n = len(n_ids)
        row = np.full(n, task), np.resize(lang, n), np.broadcast_to(kind, n), cuis, n_cuis, ids, n_ids
        for column, values in zip(self.columns.values(), row):
            column.append(values)

    def counts(self, lang):
        """{task name: examples of the language so far}."""
        task, langs = np.concatenate(self.columns["task"]), np.concatenate(self.columns["lang"])
        n_rows = np.bincount(task[langs == lang], minlength=len(TASKS)).tolist()  # of a pair in two languages, half
        return {task.name: n // task.rows for task, n in zip(TASKS, n_rows) if task.in_paper or n}

    def n_bytes(self, lang):
        """What the examples of a language take on disk."""
        return sum(
            19 * len(n_ids) + 4 * (len(cuis) + len(ids))
            for langs, cuis, ids, n_ids in zip(*(self.columns[c] for c in ("lang", "cui", "id", "n_ids")))
            if len(langs) and langs[0] == lang
        )

    def write(self, f):
        columns = {name: np.concatenate(values) for name, values in self.columns.items()}
        arrays = {name: pa.array(columns[name].astype(np.uint8)) for name in ("task", "lang", "kind")}
        for name, values, length in (("cuis", "cui", "n_cuis"), ("ids", "id", "n_ids")):
            offsets = np.concatenate([[0], np.cumsum(columns[length])]).astype(np.int64)
            arrays[name] = pa.LargeListArray.from_arrays(offsets, pa.array(columns[values].astype(np.int32)))
        batch = pa.record_batch(list(arrays.values()), schema=SCHEMA)
        with ipc.new_file(f, batch.schema) as out:
            out.write_batch(batch)


# ---------------------------------------------------------------- effective batches, masked


class PretrainingDataset:
    """One split of a data set, mapped into memory: nothing is copied but the batches.

    rows: the examples of the tasks asked for, as rows of the file, of a pair of names the first. An ablation leaves
    rows out and changes nothing of the others.
    """

    def __init__(self, folder, split, tasks=PAPER_TASKS):
        self.folder, self.manifest = folder, read_manifest(folder, PAPER_TASKS)
        columns = read_examples(
            Path(folder, f"{split}.arrow"), self.manifest, MLM, (len(TASKS), CORRUPTED_RELATION + 1)
        )
        self.task, self.lang, self.kind, self.ids, self.offsets, self.cuis, self.cui_offsets = columns
        chosen = [TASK_NAMES.index(name) for name in tasks]
        of_task = [np.flatnonzero(self.task == index)[:: TASKS[index].rows] for index in chosen]
        self.rows = np.sort(np.concatenate([np.zeros(0, np.int64), *of_task]))
        self.seq_len = self.manifest["settings"]["seq_len"]
        self.special = self.manifest["special"]
        vocab_size = self.manifest["vocab_size"]
        self.relation_of_token = np.full(vocab_size, -1, np.int64)
        self.relation_of_token[self.special["relations"]] = np.arange(len(RELATIONS))
        is_special = np.zeros(vocab_size, bool)
        for ids in self.special.values():
            is_special[ids] = True
        self.ordinary = np.flatnonzero(~is_special)

    def __len__(self):
        return len(self.rows)

    def masked_batch(self, rows, epochs, seed, mlm_probability):
        """The MaskedBatch of examples `rows`, each in its epoch (int arrays).

        A mask is a function of (seed, epoch, example, position) alone: an example is masked alike in every batch,
        micro-batch and rank.
        """
        n_sequences = SEQUENCES[self.task[rows]]
        rows, epochs = concat_ranges(rows, n_sequences), np.repeat(epochs, n_sequences)
        key = splitmix64(seed, epochs, rows)
        start, length = self.window_documents(rows, key)
        tokens, example = self.gather_tokens(rows, key, start, length, mlm_probability)
        ids, at, labels = tokens.ids.copy(), [], []
        for index, task in enumerate(TASKS):
            targets = np.flatnonzero((tokens.task == index) & task.choose_targets(tokens))
            ids[targets] = task.corrupt(tokens, targets)
            labels.append(task.label(tokens, targets))
            at.append(targets)
        at, labels = np.concatenate(at), np.concatenate(labels)
        order = np.argsort(at)
        at, labels = at[order], labels[order]
        per_task = np.bincount(tokens.task[at], minlength=len(TASKS))
        first = np.cumsum(length) - length
        targets = (example[at], tokens.position[at], tokens.task[at], labels)
        return MaskedBatch(ids, first, length, *targets, per_task, self.special["pad"], self.concepts_of_names(rows))

    def concepts_of_names(self, rows):
        """(k, 2) int64: the number of a name of synonym alignment among those of a batch, and a concept it names."""
        rows = rows[self.task[rows] == SA]
        n = self.cui_offsets[rows + 1] - self.cui_offsets[rows]
        cuis = self.cuis[concat_ranges(self.cui_offsets[rows], n)]
        return np.stack([np.repeat(np.arange(len(rows)), n), cuis], axis=1)

    def window_documents(self, rows, key):
        """(first stored token, tokens with [CLS] and [SEP]) of each example.

        A document is longer than it is stored, as [CLS] and [SEP] come around it. Of a document that is too long, the
        key draws another window of seq_len - 2 tokens in each epoch. Other examples are whole.
        """
        start, stored = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        is_document, room = self.task[rows] == MLM, self.seq_len - 2
        n_windows = np.maximum(stored - room, 0) + 1
        window = (hash_uniform(key, 0) * n_windows).astype(np.int64)
        start = np.where(is_document, start + window - 1, start)  # the -1 is for [CLS]
        return start, np.where(is_document, np.minimum(stored, room) + 2, stored)

    def gather_tokens(self, rows, key, start, length, mlm_probability):
        """(Tokens, example of each): the stored tokens of a batch, documents with [CLS] and [SEP] around them."""
        example = np.repeat(np.arange(len(rows)), length)
        first = np.cumsum(length) - length
        position = np.arange(len(example)) - first[example]
        task, of_length = self.task[rows].astype(np.int64)[example], length[example]
        ids = self.ids[np.clip(start[example] + position, 0, len(self.ids) - 1)].astype(np.int64)
        ids[(task == MLM) & (position == 0)] = self.special["cls"]
        ids[(task == MLM) & (position == of_length - 1)] = self.special["sep"]
        relation = self.relation_of_token[ids]
        n_relations = np.cumsum(relation >= 0)
        n_relations -= n_relations[first][example]  # every sequence begins with [CLS], which is no relation
        kind, key = self.kind[rows][example], splitmix64(key[example], 1, position)
        numbers = self.special, self.ordinary, mlm_probability
        return Tokens(ids, task, position, of_length, relation, n_relations, kind, key, *numbers), example


class MaskedBatch(NamedTuple):
    """An effective batch after masking, flat: example i is ids[start[i] : start[i] + length[i]].

    There is one entry for each target, in the order of the examples: target_example, target_position in the sequence,
    target_task, and label (the token id, the relation class, true/false, or the number of a name). targets_per_task:
    (tasks,). concepts_of_names: as PretrainingDataset has them.

    A pair of names is two examples here, as each is a sequence of its own.
    """

    ids: np.ndarray
    start: np.ndarray
    length: np.ndarray
    target_example: np.ndarray
    target_position: np.ndarray
    target_task: np.ndarray
    label: np.ndarray
    targets_per_task: np.ndarray
    pad: int
    concepts_of_names: np.ndarray

    def select(self, examples):
        """The batch of some of its examples (a mask), which are numbered again."""
        kept = examples[self.target_example]
        number = np.cumsum(examples) - 1
        targets = (x[kept] for x in (self.target_position, self.target_task, self.label))
        return self._replace(
            start=self.start[examples], length=self.length[examples],
            target_example=number[self.target_example[kept]],
            **dict(zip(("target_position", "target_task", "label"), targets)),
        )  # fmt: skip


class EpochSampler:
    """The seeded order of examples: epoch after epoch, each a new permutation.

    Effective batches are cut without regard to where an epoch ends, so that all have the same size.
    """

    def __init__(self, n, batch_size, seed):
        self.n, self.batch_size, self.seed, self.permutations = n, batch_size, seed, {}

    def __call__(self, step):
        """(positions, epochs) of effective batch `step`, counted from 0: two int64 arrays (batch_size,)."""
        at = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = at // self.n
        self.permutations = {e: p for e, p in self.permutations.items() if e >= epochs[0]}
        positions = np.empty(len(at), np.int64)
        for e in np.unique(epochs).tolist():
            if e not in self.permutations:
                self.permutations[e] = np.random.default_rng([self.seed, e]).permutation(self.n)
            positions[epochs == e] = self.permutations[e][at[epochs == e] % self.n]
        return positions, epochs


class MicroBatch(NamedTuple):
    """Examples laid out as rows for the encoder. Its targets are sorted by task.

    ids: (n, L) int64. segment: (n, L) int32, which example of its row a token is of, counted from 1; 0 is padding.
    position: (n, L) int64, of each token in its example; None if every row has one example. For each target:
    target_index in ids.ravel(), example in the effective batch, task, and label.
    """

    ids: np.ndarray
    segment: np.ndarray
    position: np.ndarray | None
    target_index: np.ndarray
    example: np.ndarray
    task: np.ndarray
    label: np.ndarray


def rectangles(batch, max_tokens, max_padding, rank=0, world=1):
    """This rank's part of an effective batch, one example a row, as MicroBatches of at most max_tokens tokens.

    Examples are sorted by length and dealt to the ranks in turn. So rows of a rectangle have nearly the same length,
    and ranks nearly the same work. There is always at least one rectangle: empty ones keep the ranks in step.
    """
    mine = np.argsort(batch.length, kind="stable")[rank::world]
    lengths = batch.length[mine]
    cuts = cut_rectangles(lengths.tolist(), max_tokens, max_padding)
    for i, j in zip(cuts, [*cuts[1:], len(mine)]):
        examples, width = mine[i:j], int(lengths[j - 1]) if j > i else 1
        first = np.zeros(len(examples), np.int64)
        yield place_examples(batch, examples, np.arange(len(examples)), first, (len(examples), width), packed=False)


def packed_rows(batch, max_tokens, row_length, row_multiple=1, rank=0, world=1):
    """This rank's part of an effective batch, several examples a row, as MicroBatches of at most max_tokens tokens.

    Hardly a token is padding, and only the number of rows varies: for a GPU, where small rectangles cost more than
    attention over row_length positions. All ranks have the same number and shape of micro-batches.

    Args: row_multiple: the number of rows is rounded up to a multiple of it, so that fewer shapes occur.
    """
    row, first = first_fit_decreasing(batch.length, row_length)
    n_rows = -(-(int(row.max()) + 1) // world)  # of each rank, which has every world-th row
    n_micro = -(-n_rows // max(1, max_tokens // row_length))
    rows_each = -(-n_rows // n_micro)
    height = max(2, -(-rows_each // row_multiple) * row_multiple)  # torch.compile compiles a single row separately
    mine = row % world == rank
    examples, row, first = np.flatnonzero(mine), row[mine] // world, first[mine]
    for top in range(0, n_rows, height):
        here = (row >= top) & (row < top + height)
        yield place_examples(batch, examples[here], row[here] - top, first[here], (height, row_length), packed=True)


def first_fit_decreasing(length, capacity):
    """Packs examples into rows of `capacity` tokens: the longest first, each into the first row that has room.

    Returns: (row, first position in it) of each example, int64.
    """
    row, first = np.empty(len(length), np.int64), np.empty(len(length), np.int64)
    free = np.full(len(length), capacity)
    for i in np.argsort(-length, kind="stable").tolist():
        row[i] = np.argmax(free >= length[i])
        first[i] = capacity - free[row[i]]
        free[row[i]] -= length[i]
    return row, first


def place_examples(batch, examples, row, first, shape, packed):
    """The MicroBatch of some examples of a batch, each from position `first` of its row on."""
    length = batch.length[examples]
    ids, segment = np.full(shape, batch.pad, np.int64), np.zeros(shape, np.int32)
    position = np.zeros(shape, np.int64) if packed else None
    begin = row * shape[1] + first  # in the rows one after another
    at = concat_ranges(begin, length)
    ids.ravel()[at] = batch.ids[concat_ranges(batch.start[examples], length)]
    order = np.lexsort((first, row))  # the examples of a row, from left to right
    number = np.empty(len(row), np.int64)
    number[order] = np.arange(len(row)) - np.searchsorted(row[order], row[order]) + 1
    segment.ravel()[at] = np.repeat(number, length)
    if packed:
        position.ravel()[at] = concat_ranges(np.zeros(len(length), np.int64), length)
    n_targets = np.bincount(batch.target_example, minlength=len(batch.length))
    first_target = np.cumsum(n_targets) - n_targets
    targets = concat_ranges(first_target[examples], n_targets[examples])
    index = np.repeat(begin, n_targets[examples]) + batch.target_position[targets]
    by_task = np.argsort(batch.target_task[targets], kind="stable")
    targets, index = targets[by_task], index[by_task]
    of_target = batch.target_example[targets], batch.target_task[targets], batch.label[targets]
    return MicroBatch(ids, segment, position, index, *of_target)


def cut_rectangles(lengths, max_tokens, max_padding):
    """Where to cut ascending lengths into rectangles: the first index of each.

    A rectangle ends where the next example would take it over max_tokens, or its padding over max_padding tokens. The
    latter is as much as another micro-batch costs in itself.
    """
    cuts, real = [0], 0  # real: tokens of the open rectangle that are not padding
    for i, length in enumerate(lengths):
        size, real = (i + 1 - cuts[-1]) * length, real + length
        if i > cuts[-1] and (size > max_tokens or size - real > max_padding):
            cuts.append(i)
            real = length
    return cuts


# ---------------------------------------------------------------- the build


def build(s):
    """Builds the data set of settings `s` (configs.Data) in a folder beside `out`, then moves it there."""
    began = time.monotonic()

    def log(text):
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    # What can be wrong is read first, what takes long later.
    langs = umls.parse_languages(s.lang)
    umls_folder, e3c_folder = find_sources(s)
    name, out = choose_output(s, langs)
    tokenizer = tokenizers.load(s.tokenizer, NEW_TOKENS) if s.tokenizer else None
    before = print_replacement(s, out, manifest_settings(s), log)
    skipped = Counter() if s.skip_bad_rows else None
    documents, issues = read_documents(s, langs, e3c_folder, skipped, log)

    wanted = {index: getattr(s, task.size) for index, task in enumerate(TASKS) if task.size}
    wanted[TC] -= wanted[TC] % 2  # even, as half of them are true
    sizes = {"train": wanted, "valid": {task: round(s.valid_fraction * n / 2) * 2 for task, n in wanted.items()}}
    graphs, samples, left_out = read_and_sample(s, langs, umls_folder, out.parent / "tables", sizes, skipped, log)

    alignment = {split: sample_synonym_alignment(graphs, split, sizes[split][SA], s) for split in SPLITS if s.sa_pairs}
    used = []
    for i, g in enumerate(graphs):
        of_graph = [sample for split in SPLITS for sample in samples[g.lang][split].values()]
        used.append(used_terms(g, of_graph, terms_in_pairs(alignment, i)))
    strings = [g.terms.take(pa.array(terms)).to_pylist() for g, terms in zip(graphs, used)]
    if tokenizer is None:
        corpus = [*strings, *(documents[lang][split] for lang in langs for split in SPLITS)]
        tokenizer = tokenizers.train_wordpiece(corpus, s.vocab_size, s.cased, NEW_TOKENS)
    log(f"tokenizer: {tokenizers.vocab_size(tokenizer):,} entries")

    writers, names, n_short = {split: ExampleWriter() for split in SPLITS}, [], {}
    for i, g in enumerate(graphs):
        ids, length = tokenizers.encode(tokenizer, [" " + string for string in strings[i]], f"{g.lang}: names")
        names.append(Names(used[i], ids, length, special_token_ids(tokenizer)))
        n_short[g.lang] = Counter()
        for split, writer in writers.items():
            for task, sample in samples[g.lang][split].items():
                writer.add_sequences(task, i, sample.sequences(g, names[i], s.seq_len), names[i].ids)
            n_short[g.lang][split] = write_documents(writer, i, documents[g.lang][split], tokenizer, s)
        issues[g.lang]["short texts"] += n_short[g.lang].total()
    for split, by_langs in alignment.items():
        for (i, j), pairs in by_langs.items():
            writers[split].add_sequences(SA, [i, j], *pairs.sequences(names[i], names[j], s.seq_len))
    counts = {}
    for i, g in enumerate(graphs):
        drawn = samples[g.lang]["train"] | ({SA: alignment["train"][i, i]} if alignment else {})
        counts[g.lang] = count_language(g, i, writers, drawn, issues[g.lang])
        report_counts(log, g.lang, counts[g.lang], sizes, n_short[g.lang])

    manifest = make_manifest(s, name, langs, tokenizer, umls_folder, counts) | left_out
    write_dataset(out, writers, tokenizer, manifest)
    print_dataset_tables(manifest, TASKS)
    print_replaced(s, out, before, manifest, log)
    log(f"wrote {out}")
    print_training(s, out, counts, PAPER_TASKS)


def read_and_sample(s, langs, umls_folder, cache, sizes, skipped, log):
    """The graph of each language and its samples; the tables of a release are kept in `cache` meanwhile.

    Returns: (graphs, {language: {split: samples}}, what was left out of the files, for the manifest).
    """
    release = umls.read_release(umls_folder, langs, s, cache, RELATIONS, log)
    with ThreadPoolExecutor(1) as saver:
        saving = [
            saver.submit(umls.save_tables, cache / t.lang, t, release.source, release.skipped, release.nci)
            for t in release.unsaved
        ]
        graphs, samples = [Graph(**vars(tables)) for tables in release.tables], {}
        for g in graphs:
            log(f"{g.lang}: {len(g.terms):,} terms, {len(g.cui):,} CUIs, {len(g.h):,} relations")
            samples[g.lang] = {split: sample_tasks(g, split, sizes[split], s) for split in SPLITS}
        for saved in saving:
            saved.result()
    malformed = release.skipped | (skipped or {})
    for what, rows in (("malformed or missing", malformed), ("of NCI Metathesaurus concepts (CL...)", release.nci)):
        if rows:
            log(f"rows {what} left out: " + ", ".join(f"{file} {n:,}" for file, n in rows.items()))
    log("samples drawn" + (f", tables kept in {cache}" if saving else ""))
    return graphs, samples, {"malformed_rows_left_out": malformed, "nci_rows_left_out": release.nci}


def read_documents(s, langs, e3c_folder, skipped, log):
    """({language: {split: texts}}, {language: Counter of issues}): E3C's documents and those of --text, split.

    Texts that overlap with the evaluation corpora of --exclude are left out.
    """
    excluded = [text for place in s.exclude.split(":") if place for text in corpora.read_texts(place)]
    documents, issues = {}, {}
    for lang in langs:
        found, issues[lang] = texts.read_e3c(e3c_folder, lang, s.e3c_layers) if e3c_folder else ([], Counter())
        if s.text:
            more, more_issues = texts.read_text(s.text.replace("{lang}", lang), skipped)
            found, issues[lang] = found + more, issues[lang] + more_issues
        if excluded:
            overlaps = texts.find_overlaps(progress(f"{lang}: texts to exclude", found), excluded)
            kept = [text for text, same in zip(found, overlaps) if not len(same)]
            issues[lang]["excluded texts"], found = len(found) - len(kept), kept
        documents[lang] = split_documents(found, s.seed, s.valid_fraction, s.keep_duplicates)
        n = sum(map(len, documents[lang].values()))
        issues[lang]["repeated texts"] = len(found) - n
        shown = [f"{k:,} {what}" for what, k in sorted(issues[lang].items()) if k or what == "excluded texts"]
        log(f"{lang}: {n:,} documents" + (f" ({', '.join(shown)})" if shown else ""))
    return documents, issues


def write_documents(writer, lang, documents, tokenizer, s):
    """Adds the MLM examples of a language. Returns: how many documents were too short."""
    ids, length = tokenizers.encode(tokenizer, documents, "documents")
    writer.add_documents(lang, ids, *cut_documents(ids, length, s.windows, s.seq_len - 2))
    return int((length < MIN_DOCUMENT).sum())


def count_language(graph, lang, writers, samples, issues):
    """What the manifest says of a language. lang: its index. samples: of the training split."""
    counts = {split: writer.counts(lang) for split, writer in writers.items()}
    counts |= {"terms": len(graph.terms), "cuis": len(graph.cui), "relations": len(graph.h), "issues": dict(issues)}
    counts["megabytes"] = round(writers["train"].n_bytes(lang) / 1e6, 1)
    return counts | {"distribution": distribution_report(graph, samples)}


def report_counts(log, lang, counts, sizes, n_short):
    """A line on the examples of each split, and one on what the graph could not give."""
    for split in SPLITS:
        n = n_short[split]
        note = f" ({n:,} documents of less than {MIN_DOCUMENT} tokens left out)" if n else ""
        log(f"{lang} {split}: {sum(counts[split].values()):,} examples{note}")
        for task, wanted in sizes[split].items():
            if (n := counts[split].get(TASKS[task].name, 0)) < wanted:
                title = TASKS[task].title
                log(f"{lang} {split}: only {n:,} of the {wanted:,} requested {title} examples are available")


def make_manifest(s, name, langs, tokenizer, umls_folder, counts):
    """What a data set was built from and holds: manifest.json, but for the hashes. Raises: UserError if it is empty."""
    for split in SPLITS:
        if not any(n for c in counts.values() for n in c[split].values()):
            raise UserError(
                f"the {split} split would be empty; use a larger release, sizes above 0 or another --valid_fraction"
            )
    source_files = [path for table in rrf.COLUMNS for path in rrf.find_rrf(umls_folder, table)]
    return {
        "name": name, "languages": langs, "settings": manifest_settings(s),
        "special": special_token_ids(tokenizer), "vocab_size": tokenizers.vocab_size(tokenizer),
        "source_bytes": {path.name: path.stat().st_size for path in source_files},
        "counts": counts,
    }  # fmt: skip


def manifest_settings(s):
    """The settings of a build but for the places of files."""
    places = ("umls", "e3c", "text", "exclude", "out", "tokenizer", "semgroups")
    return {k: v for k, v in asdict(s).items() if k not in places}


# ---------------------------------------------------------------- what a data set looks like


def show(s):
    """Prints the tables of a data set again, and examples of each task as the model sees them."""
    dataset = PretrainingDataset(s.dataset, "train", TASK_NAMES)
    tokenizer = Tokenizer.from_buffer(read_tokenizer(s.dataset))
    print_dataset_tables(dataset.manifest, TASKS)
    rng = np.random.default_rng(0)
    for index, task in enumerate(TASKS):
        rows = dataset.rows[dataset.task[dataset.rows] == index]
        of_kind = [rows[dataset.kind[rows] == kind] for kind in (TRUE, CORRUPTED_ENTITIES, CORRUPTED_RELATION)]
        n_shown = [1, 1, 1] if index == TC else [3, 0, 0]
        rows = np.concatenate([rng.choice(k, min(n, len(k)), replace=False) for k, n in zip(of_kind, n_shown)])
        batch = dataset.masked_batch(rows, np.zeros(len(rows), np.int64), 0, configs.Train.mlm_probability)
        if len(rows):
            print(task.title)
        for i, row in enumerate(np.repeat(rows, task.rows)):
            ids = batch.ids[batch.start[i] : batch.start[i] + batch.length[i]].tolist()
            answer = describe_targets(index, batch.label[batch.target_example == i], dataset.kind[row], tokenizer)
            for line in (tokenizer.decode(ids, skip_special_tokens=False), f"-> {answer}"):
                line = line[:600] + " ..." if len(line) > 600 else line
                print(textwrap.fill(line, 110, initial_indent="  ", subsequent_indent="    "))
        print(end="\n" if len(rows) else "")
    print_next(("python kgi.py --data {}", s.dataset))


def describe_targets(task, labels, kind, tokenizer):
    """What the model should answer for one example, as text."""
    if task == TC:
        return ("true", "false: other concepts", "false: another relation")[kind]
    if task == LP:
        return " ".join(RELATIONS[k] for k in labels)
    if task == EP:
        return tokenizer.decode(labels.tolist())
    if task == SA:
        return f"name {labels[0]}, whose partner is name {labels[0] ^ 1}"
    return " | ".join(tokenizer.decode([k]) for k in labels.tolist())


COMMANDS = {
    "build": (build, configs.Data),
    "show": (show, configs.Show),
}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS)
