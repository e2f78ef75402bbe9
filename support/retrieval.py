"""Pairs of terms of one concept."""

import torch


def pairs_within(term, concept):
    """All ordered pairs (a, b) of terms of one concept, a term with itself included."""
    order = torch.argsort(concept, stable=True)
    members = term[order]
    _, group, sizes = torch.unique(concept[order], return_inverse=True, return_counts=True)
    first, size = (torch.cumsum(sizes, 0) - sizes)[group], sizes[group]
    a = members.repeat_interleave(size)
    position = torch.arange(len(a)) - (torch.cumsum(size, 0) - size).repeat_interleave(size)
    return a, members[first.repeat_interleave(size) + position]
