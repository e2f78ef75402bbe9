"""Nearest neighbours among vectors of terms: how well synonyms are found, and the points of a map."""

import numpy as np
import torch
import torch.nn.functional as F

from configs import UserError
from support.arrays import concat_ranges, hash_uniform
from support.datasets import data_of_run, find_data, read_dataset_tables

DATA_HELP = "data set folder; default: the run's own, else the only one in datasets/ of its tokenizer"
MAP_TERMS = 4000  # on a map: more would hide each other, and t-SNE of these takes 10 s of a CPU core


def synonym_ranks(vectors, term, concept):
    """How near the other terms of a concept are, by cosine: the rank of the first of them among all other terms.

    Args:
        vectors: (N, dim) float tensor, one a term. term, concept: (pairs,) int tensors of a term and a concept that it
            names; a term may name several.

    Returns: (queries, ranks): the terms of concepts that have another one, and the rank (1 is the nearest) of the
        nearest other term with a concept in common. Terms that are equally near share the mean of their ranks.
    """
    vectors = F.normalize(vectors, dim=1)
    n, (a, b) = len(vectors), pairs_within(term, concept)
    pairs = torch.unique((a * n + b)[a != b])
    queries, count = torch.unique(pairs // n, return_counts=True)
    return queries, first_right_ranks(vectors[queries.to(vectors.device)], vectors, pairs % n, count, queries)


def first_right_ranks(queries, names, right, count, own=None):
    """The rank by cosine of the first right name for each query; names that are equally near share their mean rank.

    Args:
        queries: (q, dim), names: (n, dim), of length 1. right: the right names of each query, one query after another.
        count: (q,) how many they are, 1 or more. own: (q,) the name that the query itself is, and that does not count.
    """
    ranks, end = [], torch.cumsum(count, 0)
    for i in range(0, len(queries), 256):
        similarity, k = queries[i : i + 256] @ names.T, count[i : i + 256]
        if own is not None:
            similarity[torch.arange(len(k)), own[i : i + 256]] = -2.0
        row = torch.arange(len(k)).repeat_interleave(k)
        of_block = similarity.cpu()[row, right[end[i] - count[i] : end[i + len(k) - 1]]]
        best = torch.full((len(k),), -2.0).scatter_reduce(0, row, of_block, "amax")
        best = best.to(similarity.device)[:, None]
        n_nearer, n_equal = (x.sum(1).cpu() for x in (similarity > best, similarity == best))
        ranks.append(1 + n_nearer + (n_equal - 1) / 2)
    return torch.cat([*ranks, torch.zeros(0)])


def translation_metrics(queries, query, query_concept, names, name, name_concept):
    """How well names in one language find those of the same concept in another: as rank_metrics.

    Args: queries: (q, dim), names: (n, dim) float tensors, a string each. query, query_concept: (pairs,) int arrays of
        a string and a concept that it names; name, name_concept likewise. A query is asked once. One without a name in
        the other language is left out.
    """
    order = np.argsort(name_concept, kind="stable")
    first, last = (np.searchsorted(name_concept[order], query_concept, side) for side in ("left", "right"))
    right = name[order[concat_ranges(first, last - first)]]
    pairs = np.unique(np.stack([np.repeat(query, last - first), right], axis=1), axis=0)
    asked, count = np.unique(pairs[:, 0], return_counts=True)
    queries, names = F.normalize(queries[torch.from_numpy(asked)], dim=1), F.normalize(names, dim=1)
    return rank_metrics(first_right_ranks(queries, names, torch.from_numpy(pairs[:, 1]), torch.from_numpy(count)))


def retrieval_metrics(vectors, term, concept, held_out):
    """Synonym retrieval: rank_metrics over all queries, and over those that name a held-out concept.

    Args: vectors: as in synonym_ranks. term, concept: (pairs,) int arrays. held_out: (pairs,) bool.
    """
    queries, ranks = synonym_ranks(vectors, torch.from_numpy(term), torch.from_numpy(concept))
    return rank_metrics(ranks), rank_metrics(ranks[torch.isin(queries, torch.from_numpy(term[held_out]))])


def rank_metrics(ranks):
    """In per cent: accuracy at 1 and 5, mean reciprocal rank; {} if there is none. ranks: (queries,), 1 is the best."""
    if not len(ranks):
        return {}
    at_1, at_5 = (100 * (ranks <= k).double().mean().item() for k in (1, 5))
    return {"at_1": at_1, "at_5": at_5, "mrr": 100 * (1 / ranks).mean().item(), "queries": len(ranks)}


def trigram_vectors(strings):
    """(strings, 4096) float32 tensor of their trigrams of letters: the baseline by spelling alone."""
    return torch.from_numpy(sparse_trigram_vectors(strings).toarray())


def sparse_trigram_vectors(strings):
    """trigram_vectors as a sparse matrix of scipy (CSR), for millions of strings; its rows have length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer  # a second that training need not wait

    spelling = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), n_features=4096, dtype=np.float32)
    return spelling.transform(strings)


def map_of_groups(vectors, group, seed):
    """Places terms on a plane where those of one semantic group lie together, if the vectors tell the groups apart.

    Discriminant axes between the groups (linear discriminant analysis) are fitted on some of the terms. The others are
    placed by t-SNE of their coordinates on these axes. So the axes know the group of no term that is drawn.

    Args: vectors: (n, dim) float tensor, one a term. group: (n,) int array.
    Returns: (rows, points, shares): the drawn terms (half of them, and at most MAP_TERMS) in random order, (rows, 2)
        points, and the share of the variance between groups on each axis, in per cent.
    Raises: UserError if there are too few terms or groups, or a vector is not finite.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis  # seconds that training need not wait
    from sklearn.manifold import TSNE

    vectors, order = vectors.cpu().numpy(), np.random.default_rng(seed).permutation(len(group))
    rows, others = np.split(order, [min(len(order) // 2, MAP_TERMS)])
    n_groups = len(np.unique(group[others]))
    if n_groups < 2 or len(others) <= n_groups:
        raise UserError(f"a map needs terms of two semantic groups or more: {len(group):,} terms are too few, or alike")
    if not np.isfinite(vectors).all():
        raise UserError("a map of vectors that are not finite numbers shows nothing; is the checkpoint damaged?")
    axes = LinearDiscriminantAnalysis().fit(vectors[others], group[others])
    x = axes.transform(vectors[rows])
    perplexity, init = min(30, (len(rows) - 1) / 3), "pca" if x.shape[1] > 1 else "random"
    points = TSNE(perplexity=perplexity, init=init, max_iter=500, random_state=seed % 2**32).fit_transform(x)
    return rows, points, (100 * axes.explained_variance_ratio_).tolist()


def same_group_shares(points, group, k=10):
    """(of the k nearest neighbours of each point the share of the same group, that share by chance), in per cent."""
    from sklearn.neighbors import NearestNeighbors

    k, (_, size) = min(k, len(points) - 1), np.unique(group, return_counts=True)
    nearest = NearestNeighbors(n_neighbors=k).fit(points).kneighbors(return_distance=False)
    by_chance = (size * (size - 1)).sum() / (len(group) * (len(group) - 1))
    return 100 * (group[nearest] == group[:, None]).mean(1), 100 * by_chance


def data_of(s, checkpoint):
    """The data set of a command: the one that was asked for, the run's own, or the only one of its tokenizer."""
    return find_data(s.data or data_of_run(checkpoint), checkpoint)


def sample_terms(folder, lang, n, seed):
    """All terms of some concepts of a language, drawn until there are n strings (0: all).

    They are those of the release that the data set in `folder` was built from, whose tables are kept beside it.

    Returns: (tables, strings, term, concept): term and concept (pairs,) say which string names which concept. A string
    that names several concepts is there once.
    """
    tables = read_dataset_tables(folder, lang)
    concepts = np.argsort(hash_uniform(seed, tables.cui), kind="stable")
    sizes = np.diff(tables.first_term)[concepts]
    concepts = concepts[: np.searchsorted(np.cumsum(sizes), n) + 1 if n else None]
    sizes = np.diff(tables.first_term)[concepts]
    rows = concat_ranges(tables.first_term[concepts], sizes)
    strings, term = np.unique(np.array(tables.terms.take(rows).to_pylist(), object), return_inverse=True)
    return tables, strings.tolist(), term, np.repeat(concepts, sizes)


def pairs_within(term, concept):
    """All ordered pairs (a, b) of terms of one concept, a term with itself included."""
    order = torch.argsort(concept, stable=True)
    members = term[order]
    _, group, sizes = torch.unique(concept[order], return_inverse=True, return_counts=True)
    first, size = (torch.cumsum(sizes, 0) - sizes)[group], sizes[group]
    a = members.repeat_interleave(size)
    position = torch.arange(len(a)) - (torch.cumsum(size, 0) - size).repeat_interleave(size)
    return a, members[first.repeat_interleave(size) + position]
