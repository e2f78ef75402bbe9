"""A masked batch -> micro-batches: padded rectangles of examples of like length, or packed rows.

The layout changes the speed, and which units dropout drops, and nothing else.
"""

from typing import NamedTuple

import numpy as np

from support.arrays import concat_ranges


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
