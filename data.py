"""The UMLS graph and clinical text -> examples of the four tasks -> masked batches (paper, section 3.1).

    python data.py build --lang fr --umls 2022AB --e3c E3C-Corpus            -> datasets/fr
    python data.py build configs/v2-multi.toml --umls 2022AB --e3c E3C-Corpus
    python data.py build --lang fr --tokenizer DrBERT-4GB                    -> datasets/fr-DrBERT-4GB
    python data.py show datasets/fr                                          its tables, and examples of each task

The file follows an example through its five forms: integers (Sample), token ids (equation 1), a row of an Arrow file
(build), a part of a masked batch (PretrainingDataset), and, in support/layouts.py, of a micro-batch. Only the masks
come early: each task has one section, with its sampler and its mask beside the paper's sentence. All random choices
depend on the seed alone: the same input and seed give the same bytes.
"""

import configs  # isort: split

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support import builds, cache, datasets, tokenizers, umls
from support.arrays import hash_uniform, splitmix64
from support.layouts import IGNORE
from support.programs import run_command
from support.relations import PAPER_RELATIONS, keys_of_rels, new_tokens, rel_of, split_key, triple_key
from support.reports import print_dataset_tables, print_examples, print_next, print_training

# "A set of special tokens to represent the relation types R, of which there are seven (parent, child, synonymy, allowed
# qualifier, qualified by, broader, narrower)". SY is last, so that the six classes of link prediction are 0 to 5.
RELATIONS = PAPER_RELATIONS  # PAR CHD, AQ QB, RB RN (pairs of inverses), and SY, its own; see support/relations.py
NEW_TOKENS = new_tokens(RELATIONS)  # [REL] of equation (1), and [HREL], "another hidden relation token"

SPLITS = ("train", "valid")
TRUE, CORRUPTED_ENTITIES, CORRUPTED_RELATION = range(3)  # kinds of triples
WINDOW, TOKEN = range(2)  # random streams of an example: the window of a document, and what its tokens draw from
TARGET, ACTION, REPLACEMENT = range(3)  # random streams of a token


# ---------------------------------------------------------------- the graph G = (C, E, R)


@dataclass
class Graph(umls.Tables):
    """The graph of one language: "a directed graph G = (C, E, R)", on integers.

    C are the concepts 0..N-1, R is `relations`, and E is the set of triples (h, r, t): (h, PAR, t) says that h is a
    parent of t. The fields of umls.Tables hold the strings of each concept, the preferred term first, and one semantic
    group: that of its semantic type nearest to the root. This one group serves stratification and both kinds of
    negatives, though section 3.1 lets a concept have several.

    Attributes:
        h, r, t: (E,) the triples, sorted. strata: (E,) the stratum of each.
        counts: (strata, relations) how many triples each stratum has of each relation.
        synonymy: index of SY, the last. rel: (relations,) index of the REL of each: its own, or RB's for RB:has_part.
        rel_keys: the keys of all triples with the REL in the place of r.
    """

    def __post_init__(self):
        self.h, self.r, self.t = split_key(self.keys)
        self.synonymy, self.inverse = len(self.relations) - 1, np.array(self.inverse)
        self.rel = np.array([self.relations.index(rel_of(name)) for name in self.relations])
        self.rel_keys = keys_of_rels(self.keys, self.rel)
        self.strata = self.stratum(self.h, self.t)
        self.joins_groups = ~np.eye(len(self.groups), dtype=bool).ravel()
        self.counts = self.count(self.h, self.r, self.t)

    def contains(self, h, r, t):
        """Whether (h, r, t), or its inverse, is a triple of the graph by some relation of the same REL (bool array)."""
        found, rel = np.zeros(np.shape(h), bool), self.rel[r]
        for key in (triple_key(h, rel, t), triple_key(t, self.inverse[rel], h)):
            index = np.minimum(np.searchsorted(self.rel_keys, key), len(self.rel_keys) - 1)
            found |= self.rel_keys[index] == key
        return found

    def stratum(self, h, t):
        """(semantic group of h, semantic group of t) as one number below len(groups) ** 2."""
        return self.group[h] * np.int16(len(self.groups)) + self.group[t]

    def count(self, h, r, t):
        """(strata, relations) int64: how many of the triples each stratum has of each relation."""
        cell, n = self.stratum(h, t).astype(np.int32), len(self.relations)
        return np.bincount(cell * n + r, minlength=len(self.groups) ** 2 * n).reshape(-1, n)


def in_validation(cui_a, cui_b, seed, fraction):
    """Whether the unordered concept pair is held out for validation (bool array).

    It depends on the pair, not on the triple, so that the inverse of a triple, every relation of the pair and every
    task, in every language, are on the same side of the split. The paper reports no such split: sampled examples for
    it come on top of Table 1's counts. Documents are split by a hash of their text (support/builds.py).
    """
    return hash_uniform(seed, np.minimum(cui_a, cui_b), np.maximum(cui_a, cui_b)) < fraction


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
        n_left = n - int(quota.sum() + more.sum())
        largest_remainders = np.argsort(more - exact, kind="stable")[:n_left]
        more[largest_remainders] += 1
        quota = np.minimum(quota + more, capacity)
    return quota


class StratumIndex:
    """Things to draw from, by stratum: those of stratum s are members[offset[s] : offset[s] + size[s]]."""

    def __init__(self, members, strata, n_strata):
        """members: (n,) indices. strata: (n,) the stratum of each, below n_strata."""
        self.members = members[np.argsort(strata, kind="stable")]  # a radix sort, since strata are small integers
        self.size = np.bincount(strata, minlength=n_strata)
        self.offset = np.cumsum(self.size) - self.size

    def draw(self, rng, strata):
        """One member of each of `strata`, with replacement."""
        return self.members[self.offset[strata] + (rng.random(len(strata)) * self.size[strata]).astype(np.int64)]


def stratified_sample(rng, index, shares, n, reuse=False):
    """n members of a StratumIndex, drawn without replacement within each stratum; in the order of the strata.

    Args:
        shares: (strata,) counts that set the proportions.
        reuse: where a stratum has fewer members than its share, use them again in turn.
    """
    quota = allocate_quotas(shares, n, np.where(index.size > 0, n, 0) if reuse else index.size)
    positions = [np.zeros(0, np.int64)]
    for s in np.flatnonzero(quota):
        chosen = rng.choice(index.size[s], min(quota[s], index.size[s]), replace=False)
        positions.append(index.offset[s] + np.resize(chosen, quota[s]))
    return index.members[np.concatenate(positions)]


class SplitTriples:
    """The triples of one split of a graph.

    Attributes: split: its name. index: a StratumIndex of its triples, as indices into graph.h, graph.r and graph.t.
    """

    def __init__(self, graph, split, s):
        """s: settings (seed, valid_fraction)."""
        self.cui, self.split, self.seed, self.fraction = graph.cui, split, s.seed, s.valid_fraction
        members = np.flatnonzero(self.has_pair(graph.h, graph.t))
        self.index = StratumIndex(members, graph.strata[members], len(graph.counts))

    def has_pair(self, h, t):
        """Whether concept pairs are on this side of the split (bool array)."""
        return in_validation(self.cui[h], self.cui[t], self.seed, self.fraction) == (self.split == "valid")


# ---------------------------------------------------------------- what a sampler returns


class Sample(NamedTuple):
    """Sampled paths h_1 r_1 h_2 r_2 ... of k relations at most; a triple is a path of one. -1 after the end of a path.

    concepts: (n, k + 1), relations: (n, k). terms: (n, k + 1) the string that names each concept, as an index into
    graph.terms. kind: (n,) TRUE, CORRUPTED_ENTITIES or CORRUPTED_RELATION. All int64.
    """

    concepts: np.ndarray
    relations: np.ndarray
    terms: np.ndarray
    kind: np.ndarray

    def triples(self):
        """(h, r, t) of all relations in the sample."""
        i, k = np.nonzero(self.relations >= 0)
        return self.concepts[i, k], self.relations[i, k], self.concepts[i, k + 1]


def name_triples(rng, graph, h, r, t, kind):
    """A Sample of triples: the head has its preferred term, and the tail that of choose_tail_terms."""
    terms = np.stack([graph.first_term[h], choose_tail_terms(rng, graph, h, r, t)], axis=1)
    return Sample(np.stack([h, t], axis=1), np.reshape(r, (-1, 1)), terms, kind)


def choose_tail_terms(rng, graph, h, r, t):
    """Which string names each tail, as indices into graph.terms.

    It is the preferred term, "except in the case of synonym relations where we randomly select another of the terms
    associated with the concept". The same holds for a corrupted triple of a concept and itself, which would otherwise
    have the same name twice.
    """
    n_terms = graph.first_term[t + 1] - graph.first_term[t]
    another = ((r == graph.synonymy) | (h == t)) & (n_terms > 1)
    return graph.first_term[t] + np.where(another, 1 + (rng.random(len(t)) * (n_terms - 1)).astype(np.int64), 0)


# ---------------------------------------------------------------- what a mask sees


@dataclass
class Tokens:
    """The tokens of one task in a batch, one example after another; every array has one entry a token.

    ids: token ids. position: in its sequence, [CLS] is 0. length: of its sequence. relation: index, -1
    at other tokens. kind: of its triple. example_key: a hash of (seed, epoch, example). special: {"mask": token id,
    "hrel": ..., ...}. ordinary: ids of the vocabulary that are not special. mlm_probability: of the run.
    """

    ids: np.ndarray
    position: np.ndarray
    length: np.ndarray
    relation: np.ndarray
    kind: np.ndarray
    example_key: np.ndarray
    special: dict
    ordinary: np.ndarray
    mlm_probability: float

    @property
    def inside(self):
        """Whether a token is between [CLS] and [SEP]."""
        return (self.position > 0) & (self.position < self.length - 1)

    def take(self, index):
        """Some of the tokens."""
        arrays = ("ids", "position", "length", "relation", "kind", "example_key")
        return replace(self, **{name: getattr(self, name)[index] for name in arrays})


# A mask takes the Tokens of its task, and returns three arrays with one entry a target: which of the tokens are
# predicted (an index), the ids that the model sees there, and the labels.


# ---------------------------------------------------------------- entity prediction


def sample_entity_prediction(rng, graph, triples, n, s):
    """Triples of the graph whose tail is to be predicted.

    All samplers are called like this. Args: triples: the SplitTriples. n: how many. s: settings. Returns: a Sample.
    """
    i = stratified_sample(rng, triples.index, graph.counts.sum(axis=1), n)
    return name_triples(rng, graph, graph.h[i], graph.r[i], graph.t[i], np.full(len(i), TRUE))


def mask_tails(tokens):
    """Entity prediction "by masking the tokens associated with the concept t": all of them become [MASK]."""
    n_relations = np.cumsum(tokens.relation >= 0)  # up to and with each token, over all sequences
    cls = np.arange(len(n_relations)) - tokens.position  # the [CLS] of each token's sequence
    is_after_relation = (n_relations > n_relations[cls]) & (tokens.relation < 0)
    targets = np.flatnonzero(tokens.inside & is_after_relation)
    return targets, np.full(len(targets), tokens.special["mask"]), tokens.ids[targets]


# ---------------------------------------------------------------- link prediction


def sample_link_prediction(rng, graph, triples, n, s):
    """Samples paths: "variable-length paths ... by iteratively selecting a list of triples ... where h_{i+1} = t_i".

    "We exclude synonym relations from the path dataset." Ours, where the paper is silent: 2 to max_relations relations,
    the wanted length uniform; the first triple of a walk is stratified; no concept comes twice, so that the inverse of
    a relation never follows it. Returns: a Sample of up to n distinct paths.
    """
    members = triples.index.members[graph.r[triples.index.members] != graph.synonymy]
    no_synonyms = StratumIndex(members, graph.strata[members], len(graph.counts))
    shares = graph.counts[:, : graph.synonymy].sum(axis=1)
    paths, first_triple = draw_distinct_paths(rng, graph, no_synonyms, shares, n, s.max_relations)

    by_first_triple = StratumIndex(np.arange(len(paths)), graph.strata[first_triple], len(shares))
    chosen = stratified_sample(rng, by_first_triple, shares, n)
    concepts, relations = np.split(paths[chosen], [s.max_relations + 1], axis=1)
    terms = np.where(concepts >= 0, graph.first_term[concepts], -1)
    return Sample(concepts, relations, terms, np.full(len(chosen), TRUE))


def draw_distinct_paths(rng, graph, triples, shares, n, max_relations):
    """Walks on `triples` (a StratumIndex) until there are n distinct paths, in up to 6 rounds.

    Walks that meet a dead end or repeat another are replaced in the next round. A round that adds fewer than a
    twentieth of the missing paths is the last.

    Returns: (paths, a row of concepts and then relations each, -1 after their ends; the first triple of each).
    """
    edges = np.sort(triples.members)  # in the order of their heads
    paths, first_triple = np.zeros((0, 2 * max_relations + 1), np.int64), np.zeros(0, np.int64)
    for _ in range(6):
        n_before = len(paths)
        n_missing = n - n_before
        if n_missing <= 0 or len(edges) == 0:
            break
        first = stratified_sample(rng, triples, shares, 2 * n_missing + 1000, reuse=True)
        length = rng.integers(2, max_relations + 1, len(first))
        walks = np.concatenate(random_walks(rng, graph, edges, first, length, max_relations), axis=1)
        has_two_relations = walks[:, 2] >= 0
        paths = np.concatenate([paths, walks[has_two_relations]])
        first_triple = np.concatenate([first_triple, first[has_two_relations]])
        distinct = np.unique(splitmix64(*paths.T), return_index=True)[1]
        paths, first_triple = paths[distinct], first_triple[distinct]
        if len(paths) - n_before < n_missing // 20:
            break
    return paths, first_triple


def random_walks(rng, graph, edges, first, length, max_relations):
    """Walk i starts with triple first[i] and ends after length[i] relations, or where 8 draws find no new concept.

    Args: edges: indices of the triples to walk on, sorted.
    Returns: (concepts (n, max_relations + 1), relations (n, max_relations)) int64, -1 after the end.
    """
    offset = np.concatenate([[0], np.cumsum(np.bincount(graph.h[edges], minlength=len(graph.cui)))])
    concepts = np.full((len(first), max_relations + 1), -1, np.int64)
    relations = np.full((len(first), max_relations), -1, np.int64)
    concepts[:, 0], relations[:, 0], concepts[:, 1] = graph.h[first], graph.r[first], graph.t[first]
    alive = np.arange(len(first))
    for step in range(1, max_relations):
        pending, moved = alive[length[alive] > step], []
        for _ in range(8):
            here = concepts[pending, step]  # its edges are edges[offset[here] : offset[here + 1]]
            degree = offset[here + 1] - offset[here]
            index = offset[here] + (rng.random(len(pending)) * degree).astype(np.int64)
            edge = edges[np.minimum(index, len(edges) - 1)]
            is_new = (concepts[pending, : step + 1] != graph.t[edge][:, None]).all(axis=1)
            good = (degree > 0) & is_new
            concepts[pending[good], step + 1] = graph.t[edge[good]]
            relations[pending[good], step] = graph.r[edge[good]]
            moved.append(pending[good])
            pending = pending[~good]
        alive = np.sort(np.concatenate(moved))
    return concepts, relations


def mask_relations(tokens):
    """Link prediction "by masking the relation tokens in the path dataset": each of them becomes [HREL].

    The label is "one of six relation types".
    """
    targets = np.flatnonzero(tokens.relation >= 0)
    return targets, np.full(len(targets), tokens.special["hrel"]), tokens.relation[targets]


# ---------------------------------------------------------------- triple classification


def sample_triple_classification(rng, graph, triples, n, s):
    """Triples: "50% positive examples (real triples from the KG), 25% examples generated by the first negative sampling
    method and the rest by the second".

    Negatives are made from triples that are sampled independently of the positives. If the first kind runs short, the
    second fills the gap. The positives are cut to match, so that half of the examples are always true.
    """
    shares, joins_groups = graph.counts.sum(axis=1), graph.joins_groups
    connected = np.flatnonzero(np.bincount(np.concatenate([graph.h, graph.t])))
    concepts = StratumIndex(connected, graph.group[connected], len(graph.groups))
    frequency = graph.counts[~joins_groups].sum(axis=0) + 1e-9  # no relation has the weight 0
    first_strategy = partial(corrupt_entities, graph=graph, concepts=concepts)
    second_strategy = partial(corrupt_relation, graph=graph, frequency=frequency)

    n_negatives = min(n // 2, len(triples.index.members))
    n_first = n_negatives - n_negatives // 2
    false_entities = sample_negatives(rng, graph, triples, first_strategy, shares * joins_groups, n_first)
    n_first = false_entities.shape[1]  # fewer than requested in a very dense graph
    n_second = n_negatives - n_first
    false_relations = sample_negatives(rng, graph, triples, second_strategy, shares * ~joins_groups, n_second)
    n_second = false_relations.shape[1]
    i = stratified_sample(rng, triples.index, shares, n_first + n_second)
    true = np.stack([graph.h[i], graph.r[i], graph.t[i]])

    h, r, t = np.concatenate([true, false_entities, false_relations], axis=1)
    kind = np.repeat([TRUE, CORRUPTED_ENTITIES, CORRUPTED_RELATION], [len(i), n_first, n_second])
    return name_triples(rng, graph, h, r, t, kind)


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

    The new relation, of another REL, is drawn by its frequency among true triples within one group: one that only false
    triples have would give them away. Args: i: indices of true triples. frequency: (relations,). Returns: (h, r, t).
    """
    same_rel = graph.rel == graph.rel[graph.r[i]][:, None]
    cumulative = np.where(same_rel, 0, frequency).cumsum(axis=1)
    draw = rng.random((len(i), 1)) * cumulative[:, -1:]
    r = (draw >= cumulative).sum(axis=1)  # the first relation whose cumulative frequency exceeds the draw
    return graph.h[i], r, graph.t[i]


def sample_negatives(rng, graph, triples, corrupt, shares, n):
    """n distinct triples that are not in the graph: (3, n) int64. They are made from true ones with these shares.

    A corrupted triple is rejected if it or its inverse is in the graph, if its pair is in the other split, or if it is
    a repeat. Then another true triple of its stratum is corrupted, in up to 200 rounds. In a very dense graph fewer
    negatives than requested are returned.

    Args: corrupt(rng, indices of true triples) -> (h, r, t). shares: (strata,).
    """
    negatives, keys = np.zeros((3, 0), np.int64), np.zeros(0, np.int64)
    shares = shares * (triples.index.size > 0)
    if not shares.any():
        return negatives
    source = stratified_sample(rng, triples.index, shares, n, reuse=True)
    for _ in range(200):
        if len(source) == 0:
            break
        h, r, t = corrupt(rng, source)
        key = triple_key(h, r, t)
        is_first_of_equals = np.isin(np.arange(len(key)), np.unique(key, return_index=True)[1])
        is_new = is_first_of_equals & ~np.isin(key, keys)
        is_good = is_new & ~graph.contains(h, r, t) & triples.has_pair(h, t)
        negatives = np.concatenate([negatives, np.stack([h, r, t])[:, is_good]], axis=1)
        keys = np.concatenate([keys, key[is_good]])
        source = triples.index.draw(rng, graph.strata[source[~is_good]])
    return negatives


def mask_nothing(tokens):
    """ "Classifying triples as true or false": nothing is hidden, and the label at [CLS] says whether it is true."""
    targets = np.flatnonzero(tokens.position == 0)
    return targets, tokens.ids[targets], (tokens.kind[targets] == TRUE).astype(np.int64)


# ---------------------------------------------------------------- masked language modelling


def document_sequences(documents, s):
    """Yields (kind, CUIs, token ids) of documents, as token_sequences does; those without content are left out.

    Training draws a window of a whole document in each epoch. With windows = "first" only its beginning is kept,
    another reading of "a maximal sequence length of 256". Args: documents: lists of token ids.
    """
    longest = s.seq_len - 2 if s.windows == "first" else None
    return ((TRUE, (), ids[:longest]) for ids in documents if len(ids) >= builds.MIN_DOCUMENT)


def mask_documents(tokens):
    """MLM, Table 8: "MLM probability 0.15". Each token of a document is a target with this probability.

    As BERT does it, 80 % of the targets become [MASK], 10 % a random token, and 10 % stay.
    """
    key = splitmix64(tokens.example_key, TOKEN, tokens.position)
    targets = np.flatnonzero(tokens.inside & (hash_uniform(key, TARGET) < tokens.mlm_probability))
    key, labels = key[targets], tokens.ids[targets]
    action, pick = hash_uniform(key, ACTION), hash_uniform(key, REPLACEMENT) * len(tokens.ordinary)
    random_tokens = tokens.ordinary[pick.astype(np.int64)]
    inputs = np.select([action < 0.8, action < 0.9], [tokens.special["mask"], random_tokens], labels)
    return targets, inputs, labels


# ---------------------------------------------------------------- the table of tasks


class Task(NamedTuple):
    """One kind of training example."""

    name: str
    title: str
    head: str  # the attribute of model.KGIBert that scores the targets
    sample: Callable | None  # its sampler; documents have none
    mask: Callable
    setting: str = ""  # the setting of configs.Data that says how many examples to sample


TASKS = (
    Task("mlm", "masked language modelling", "mlm_head", None, mask_documents),
    Task("ep", "entity prediction", "mlm_head", sample_entity_prediction, mask_tails, "ep_examples"),
    Task("lp", "link prediction", "relation_head", sample_link_prediction, mask_relations, "lp_paths"),
    Task("tc", "triple classification", "triple_head", sample_triple_classification, mask_nothing, "tc_examples"),
)
TASK_NAMES = tuple(task.name for task in TASKS)
MLM, EP, LP, TC = map(TASK_NAMES.index, ("mlm", "ep", "lp", "tc"))
GRAPH_TASKS = (EP, TC, LP, *range(4, len(TASKS)))  # in the order of their rows in a data set; further tasks are last


# ---------------------------------------------------------------- equation (1): triples and paths as token sequences


def token_sequences(sample, graph, names, relation_ids, seq_len):
    """Yields (kind, CUIs, token ids) of each example, [CLS] and [SEP] not yet among them.

    Args: names: {term: its token ids}. relation_ids: those of the relations. seq_len: of the longest, with both.
    """
    join = join_triple if sample.relations.shape[1] == 1 else join_path
    columns = (sample.kind, graph.cui[sample.concepts], sample.relations, sample.terms)
    for kind, cuis, relations, terms in zip(*(x.tolist() for x in columns)):
        named = [names[term] for term in terms if term >= 0]
        ids, n_concepts = join(named, [relation_ids[r] for r in relations if r >= 0], seq_len - 2)
        yield kind, cuis[:n_concepts], ids


def join_triple(names, relations, room):
    """Equation (1) without [CLS] and [SEP], which gather_tokens adds: w_1^h ... w_m^h [REL] w_1^t ... w_n^t.

    Where both names do not fit into `room` tokens, their ends are cut: each keeps at least half of the room, or all
    that it needs. Args: names: token ids of h and t. Returns: (token ids, the number of concepts in them).
    """
    head, tail = names
    room -= 1  # for [REL]
    head = head[: max(room // 2, room - len(tail))]
    tail = tail[: room - len(head)]
    return [*head, *relations, *tail], 2


def join_path(names, relations, room):
    """A path as text, h_1 [R_1] h_2 [R_2] h_3 ..., in `room` tokens. As join_triple.

    Names are shortened to a third of the room, so that three always fit. Relations and names at the end that do not
    fit are dropped.
    """
    third = (room - 2) // 3
    first, *others = [name[:third] for name in names]
    ids, n_concepts = first, 1
    for relation, name in zip(relations, others):
        if len(ids) + 1 + len(name) > room:
            break
        ids, n_concepts = [*ids, relation, *name], n_concepts + 1
    return ids, n_concepts


# ---------------------------------------------------------------- the build


def build(s):
    """Builds the data set of settings `s` (configs.Data) in a folder beside `out`, then moves it there."""
    log = builds.start_log()
    # Check inputs first; the slow work comes later.
    langs = umls.parse_languages(s.lang)
    umls_folder, e3c_folder = builds.find_sources(s, NEW_TOKENS)
    name, out, before = builds.choose_output(s, langs)
    builds.print_replacement(s, out, before, log)
    skipped = Counter() if s.skip_bad_rows else None
    documents, issues = builds.read_documents(s, langs, e3c_folder, skipped, log)

    # The graphs, and integer triples and paths from them.
    release = cache.read_release(umls_folder, langs, s, out.parent / "tables", log)
    graphs = [Graph(**vars(tables)) for tables in release.tables]
    for g in graphs:
        log(f"{g.lang}: {len(g.terms):,} terms, {len(g.cui):,} CUIs, {len(g.h):,} relations")
    with cache.saving_tables(release, out.parent / "tables"):  # meanwhile
        samples = [{split: sample_tasks(g, split, s, log) for split in SPLITS} for g in graphs]
    left_out = builds.report_left_out(release, skipped, log)
    log("samples drawn" + f", tables kept in {out.parent / 'tables'}" * bool(release.unsaved))

    # Token ids, as rows of the two files.
    strings = [builds.used_strings(g, lang_samples) for g, lang_samples in zip(graphs, samples)]
    added = new_tokens(graphs[0].relations)
    corpus = [*(x.values() for x in strings), *(documents[lang][split] for lang in langs for split in SPLITS)]
    tokenizer = tokenizers.load_or_train(s, added, map(list, corpus))
    special = tokenizers.kgi_ids(tokenizer, added)
    log(f"tokenizer: {tokenizers.vocab_size(tokenizer):,} entries")
    writers, counts = {split: datasets.ExampleWriter() for split in SPLITS}, {}
    for i, g in enumerate(graphs):
        write_language(writers, i, g, samples[i], strings[i], documents[g.lang], tokenizer, special, s, issues[g.lang])
        counts[g.lang] = builds.count_language(i, g, writers, TASK_NAMES, issues[g.lang], log)
        counts[g.lang]["distribution"] = builds.compare_shares(g, samples[i]["train"], TASKS)
    manifest = builds.make_manifest(s, name, langs, umls_folder, tokenizer, special, counts) | left_out
    datasets.write_dataset(out, writers, tokenizer, manifest)
    print_dataset_tables(manifest, TASKS)
    builds.print_replaced(s, out, before, manifest, log)
    log(f"wrote {out}")
    print_training(s, out, counts, TASK_NAMES)


def sample_tasks(graph, split, s, log):
    """The samples of the graph for one split: {task: Sample}. s: settings."""
    triples, samples = SplitTriples(graph, split, s), {}
    for index in GRAPH_TASKS:
        task, n = TASKS[index], getattr(s, TASKS[index].setting)
        n -= n % 2 if index == TC else 0  # half of them are true
        if split == "valid":  # on top of the n for training
            n = 2 * round(s.valid_fraction * n / 2)
        rng = np.random.default_rng([s.seed, int.from_bytes(graph.lang.encode()), SPLITS.index(split), index])
        samples[index] = task.sample(rng, graph, triples, n, s)
        if (found := len(samples[index].kind)) < n:
            log(f"{graph.lang} {split}: only {found:,} of the {n:,} requested {task.title} examples are available")
    return samples


def write_language(writers, lang, graph, samples, strings, documents, tokenizer, special, s, issues):
    """Adds the examples of a language to the writers of both splits. issues: counts documents that are too short."""
    texts = [" " + string for string in strings.values()]  # as in the middle of a text
    ids = tokenizers.encode_lists(tokenizer, texts, f"{graph.lang}: names")
    # A name without any token (control characters) is [UNK].
    names = {term: x or [special["unk"]] for term, x in zip(strings, ids)}
    for split, writer in writers.items():
        for task, sample in samples[split].items():
            writer.add(task, lang, token_sequences(sample, graph, names, special["relations"], s.seq_len))
        found = tokenizers.encode_lists(tokenizer, documents[split], "documents")
        writer.add(MLM, lang, document_sequences(found, s))
        issues["short texts"] += sum(len(ids) < builds.MIN_DOCUMENT for ids in found)


# ---------------------------------------------------------------- effective batches, masked


class PretrainingDataset:
    """One split of a data set, mapped into memory: nothing is copied but the batches.

    rows: the examples of the tasks asked for, as rows of the file. An ablation leaves rows out and changes nothing of
    the others. Other attributes: the columns of datasets.SCHEMA, and the manifest.
    """

    def __init__(self, folder, split, tasks=TASK_NAMES):
        self.folder, self.manifest = folder, datasets.read_manifest(folder, TASK_NAMES)
        path, limits = Path(folder, f"{split}.arrow"), (len(TASKS), CORRUPTED_RELATION + 1)
        columns = datasets.read_examples(path, self.manifest, MLM, limits)
        self.task, self.lang, self.kind, self.ids, self.offsets, self.cuis, self.cui_offsets = columns
        self.rows = np.flatnonzero(np.isin(self.task, [TASK_NAMES.index(name) for name in tasks]))
        self.seq_len, self.special = self.manifest["settings"]["seq_len"], self.manifest["special"]
        vocab_size = self.manifest["vocab_size"]
        self.relation_of_token = np.full(vocab_size, -1, np.int64)
        self.relation_of_token[self.special["relations"]] = range(len(self.special["relations"]))
        self.ordinary = np.setdiff1d(np.arange(vocab_size), np.hstack([*self.special.values()]))

    def __len__(self):
        return len(self.rows)

    def masked_batch(self, rows, epochs, seed, mlm_probability):
        """The MaskedBatch of examples `rows`, each in its epoch (int arrays).

        A mask is a function of (seed, epoch, example, position) alone: an example is masked alike in every batch,
        micro-batch and rank.
        """
        tokens, length = self.gather_tokens(rows, splitmix64(seed, epochs, rows), mlm_probability)
        task_index = self.task[rows].astype(np.int64)
        token_task = np.repeat(task_index, length)
        ids, labels = tokens.ids.copy(), np.full(len(tokens.ids), IGNORE)
        for i, task in enumerate(TASKS):
            index = np.flatnonzero(token_task == i)
            targets, inputs, target_labels = task.mask(tokens.take(index))
            ids[index[targets]] = inputs
            labels[index[targets]] = target_labels
        n_targets = np.bincount(token_task[labels != IGNORE], minlength=len(TASKS))
        heads = tuple(task.head for task in TASKS)
        offset = np.cumsum(length) - length
        return MaskedBatch(ids, labels, offset, length, task_index, n_targets, heads, self.special["pad"])

    def gather_tokens(self, rows, key, mlm_probability):
        """(Tokens of all tasks, length of each example): the stored tokens between [CLS] and [SEP].

        A document that is longer has another window of seq_len - 2 tokens in each epoch, as the key draws it. No other
        example is longer. Args: key: a hash for each example.
        """
        stored = self.offsets[rows + 1] - self.offsets[rows]
        taken = np.minimum(stored, self.seq_len - 2)
        n_windows = stored - taken + 1
        window = self.offsets[rows] + (hash_uniform(key, WINDOW) * n_windows).astype(np.int64)  # its first token

        length = taken + 2  # with [CLS] and [SEP]
        offset = np.cumsum(length) - length
        example = np.repeat(np.arange(len(rows)), length)
        position = np.arange(len(example)) - offset[example]
        stored_index = window[example] + position - 1  # position 0 is [CLS]
        ids = self.ids[np.clip(stored_index, 0, len(self.ids) - 1)].astype(np.int64)
        ids[offset] = self.special["cls"]
        ids[offset + length - 1] = self.special["sep"]
        arrays = ids, position, length[example], self.relation_of_token[ids], self.kind[rows][example], key[example]
        return Tokens(*arrays, self.special, self.ordinary, mlm_probability), length


class MaskedBatch(NamedTuple):
    """An effective batch after masking, flat: example i is ids[offset[i] : offset[i] + length[i]].

    labels: of each token: the token id, relation class or truth to predict, IGNORE where nothing is predicted. task:
    (n,) of each example, an index into TASKS. n_targets, heads: of each task. pad: the id of [PAD].
    """

    ids: np.ndarray
    labels: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    task: np.ndarray
    n_targets: np.ndarray
    heads: tuple
    pad: int


class EpochSampler:
    """The seeded order of examples: epoch after epoch, each a new permutation.

    Effective batches are cut without regard to where an epoch ends, so that all have the same size.
    """

    def __init__(self, n, batch_size, seed):
        self.n, self.batch_size, self.seed, self.permutations = n, batch_size, seed, {}

    def __call__(self, step):
        """(positions, epochs) of effective batch `step`, counted from 0: two int64 arrays (batch_size,)."""
        index = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = index // self.n
        self.permutations = {e: p for e, p in self.permutations.items() if e >= epochs[0]}
        positions = np.empty(len(index), np.int64)
        for e in np.unique(epochs).tolist():
            if e not in self.permutations:
                self.permutations[e] = np.random.default_rng([self.seed, e]).permutation(self.n)
            positions[epochs == e] = self.permutations[e][index[epochs == e] % self.n]
        return positions, epochs


# ---------------------------------------------------------------- what a data set looks like


def show(s):
    """Prints the tables of a data set again, and examples of each task as the model sees them."""
    dataset, rng = PretrainingDataset(s.dataset, "train"), np.random.default_rng(0)
    print_dataset_tables(dataset.manifest, TASKS)
    for index in np.unique(dataset.task).tolist():
        rows = np.flatnonzero(dataset.task == index)
        by_kind = [rows[dataset.kind[rows] == kind] for kind in (TRUE, CORRUPTED_ENTITIES, CORRUPTED_RELATION)]
        n_shown = (1, 1, 1) if index == TC else (3, 0, 0)
        rows = np.concatenate([rng.choice(k, min(n, len(k)), replace=False) for k, n in zip(by_kind, n_shown)])
        batch = dataset.masked_batch(rows, np.zeros(len(rows), np.int64), 0, configs.Train.mlm_probability)
        print_examples(s.dataset, TASKS[index], dataset.kind[rows], batch, datasets.relation_names(s.dataset))
    print_next(("python kgi.py --data {}", s.dataset))


COMMANDS = {"build": (build, configs.Data), "show": (show, configs.Show)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS)
