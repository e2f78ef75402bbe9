"""The concepts nearest to mentions: the candidates, their similarities, and the search."""

import sys
from functools import partial, reduce

import numpy as np

import model as models
from beyond.dictionaries import Dictionary, embed_mentions_and_names, query_blocks, trigram_similarities
from beyond.embed import choose_pooling
from configs import UserError
from support.arrays import concat_ranges
from support.umls import read_cuis_of_types

ROUNDING = 1e-5  # similarities that differ by less are equal: vectors of the same tokens differ by about 1e-7


def choose_concepts(s, dictionary, group_of):
    """Whether each concept is of the groups or types that are asked for (link.Link): (concepts,) bool.

    Args: group_of: {id: its semantic group}, of a data set.
    Raises: UserError if a group or type has no concept, or the dictionary has none of them.
    """
    if not (s.groups or s.types):
        return np.ones(len(dictionary.ids), bool)
    known = sorted({*group_of.values()})
    if unknown := [group for group in s.groups if group not in known]:
        raise UserError(f"--groups: no concept of the data set is of group {unknown[0]}; it has {' '.join(known)}")
    of_types = read_cuis_of_types(s.umls, s.types) if s.types else ()
    is_chosen = np.array([i in of_types or group_of.get(i) in s.groups for i in dictionary.ids])
    if not is_chosen.any():
        what = f"no concept of the dictionary, such as {dictionary.ids[0]}, is of --types {' '.join(s.types)}"
        raise UserError(f"{what} in {s.umls}")
    return is_chosen


def restrict(dictionary, is_chosen):
    """(the Dictionary of some concepts, the indices of its names in that of all). is_chosen: (concepts,) bool."""
    pairs = is_chosen[dictionary.concept]
    concepts, concept = np.unique(dictionary.concept[pairs], return_inverse=True)
    names, term = np.unique(dictionary.term[pairs], return_inverse=True)
    ids, strings = [dictionary.ids[c] for c in concepts.tolist()], [dictionary.names[t] for t in names.tolist()]
    return Dictionary(ids, strings, term, concept), names


def choose_similarity(s, queries, dictionary, chosen, index):
    """A function of a slice of the queries: (k, names of `chosen`) float32, the similarity that s.score names.

    With --keep_vectors the names of all concepts are embedded, so that a run with another choice finds them.

    Args: chosen, index: as restrict gives them of `dictionary`.
    """
    methods = []
    if s.score != "cosine":
        methods.append(trigram_similarities(chosen.names, queries))
    if s.score != "trigrams":
        pooling, *_ = choose_pooling(s, models.load_config(s.checkpoint), partial(print, file=sys.stderr))
        embedded = dictionary if s.keep_vectors else chosen
        vectors, names = embed_mentions_and_names(s, queries, embedded.names, [pooling])
        # If all concepts are candidates, the vectors are not copied: their file may be larger than memory.
        names = names[:, 0] if len(embedded.names) == len(chosen.names) else names[index, 0]
        methods.append(lambda block: vectors[pooling][block] @ names.T)
    return lambda block: reduce(np.add, (method(block) for method in methods))


def nearest_concepts(dictionary, n_queries, similarities, top):
    """The nearest concepts of each query, by the nearest of their names; equally near ones in the order of the ids.

    Args: similarities: a function of a slice of the queries: (k, names) float32.
    Returns: [(links, tied), ...] of the queries. links: [(concept, name, similarity), ...], at most `top`, the nearest
        first. tied: the number of other concepts that are as near as the first, also of those beyond `top`.
    """
    by_name = np.argsort(dictionary.term, kind="stable")
    concepts, count = dictionary.concept[by_name], np.bincount(dictionary.term, minlength=len(dictionary.names))
    offset = np.cumsum(count) - count

    def pairs_of(names):
        """(concept, name) of all pairs of some names."""
        return concepts[concat_ranges(offset[names], count[names])], np.repeat(names, count[names])

    blocks = (similarities(block) for block in query_blocks(dictionary, n_queries))
    return [nearest_to_query(similarity, pairs_of, top) for block in blocks for similarity in block]


def nearest_to_query(similarity, pairs_of, top):
    """(links, tied) of one query, as nearest_concepts gives them.

    The nearest names are taken, and more of them until they name enough concepts: no name that is left is nearer.
    """
    n_names, is_enough = 4 * top, False
    while not is_enough:
        n_names = min(n_names, len(similarity))
        concept, name = pairs_of(np.flatnonzero(similarity >= np.partition(similarity, -n_names)[-n_names]))
        is_enough = n_names == len(similarity) or len(np.unique(concept)) >= top
        n_names *= 4
    nearest_first = np.lexsort((concept, -similarity[name]))
    of_each_concept = np.unique(concept[nearest_first], return_index=True)[1]
    best = nearest_first[np.sort(of_each_concept)[:top]]
    links = [*zip(concept[best].tolist(), name[best].tolist(), similarity[name[best]].tolist())]
    equal, _ = pairs_of(np.flatnonzero(similarity >= links[0][2] - ROUNDING)) if links else ((), ())
    return links, len(np.unique(equal)) - bool(links)
