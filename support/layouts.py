"""A masked batch -> micro-batches: examples of like length, padded, or rows into which several examples are packed.

The layout affects only speed and dropout masks.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from support.arrays import ceil_div, concat_ranges

IGNORE = -100  # the label of a token that is not predicted
MAX_PADDING = {"cpu": 64, "cuda": 1024}  # tokens of padding in a padded micro-batch (docs/measurements.md)
ROW_MULTIPLE = {"cpu": 8, "cuda": 1}  # of packed rows: a CPU compiles its products for each new shape


@dataclass
class MicroBatch:
    """Examples laid out as rows of L tokens for the encoder, and what the heads need. All tensors are int64.

    ids: (n, L). mask: as model.Encoder takes it: None if every token is real; bool (n, L), True at real tokens; or, of
    packed rows, int32 (n, L), which tells the examples of a row apart. position: (n, L) of each token in its example;
    None if every row has one example. Of k targets, sorted by task: target_index (k,) in ids.ravel(), label (k,), and
    example (k,) in the effective batch. n_targets: how many each task has. heads: of each task, by name.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    position: torch.Tensor | None
    target_index: torch.Tensor
    label: torch.Tensor
    example: torch.Tensor
    n_targets: list
    heads: tuple

    def to(self, device, pin=False):
        """The micro-batch on a device, or in pinned memory, from which a GPU copies meanwhile."""
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, torch.Tensor)}
        move = torch.Tensor.pin_memory if pin else lambda x: x.to(device, non_blocking=True)
        return replace(self, **{name: move(x) for name, x in tensors.items()})


def padded(batch, max_tokens, max_padding, rank=0, world_size=1):
    """This rank's part of an effective batch, one example a row, as MicroBatches of at most max_tokens tokens.

    Examples are sorted by length and dealt to the ranks in turn. So rows of a micro-batch have nearly the same length,
    and ranks nearly the same work. There is always at least one micro-batch: empty ones keep the ranks in step.
    """
    mine = np.argsort(batch.length, kind="stable")[rank::world_size]
    lengths = batch.length[mine]
    cuts = cut_by_length(lengths.tolist(), max_tokens, max_padding)
    for i, j in zip(cuts, [*cuts[1:], len(mine)]):
        examples, width = mine[i:j], int(lengths[j - 1]) if j > i else 1
        offset = np.zeros(len(examples), np.int64)
        yield place_examples(batch, examples, np.arange(len(examples)), offset, (len(examples), width), is_packed=False)


def cut_by_length(lengths, max_tokens, max_padding):
    """Where to cut ascending lengths into padded micro-batches: the first index of each.

    A micro-batch ends where the next example would take it over max_tokens, or its padding over max_padding tokens. The
    latter is as much as another micro-batch costs in itself.
    """
    cuts, real = [0], 0  # real: tokens of the open micro-batch that are not padding
    for i, length in enumerate(lengths):
        size, real = (i + 1 - cuts[-1]) * length, real + length
        if i > cuts[-1] and (size > max_tokens or size - real > max_padding):
            cuts.append(i)
            real = length
    return cuts


def packed(batch, max_tokens, row_length, row_multiple=1, rank=0, world_size=1):
    """This rank's part of an effective batch, several examples a row, as MicroBatches of at most max_tokens tokens.

    Hardly a token is padding, and only the number of rows varies: for a GPU, where small micro-batches cost more than
    attention over row_length positions. All ranks have the same number and shape of micro-batches.

    Args: row_multiple: the number of rows is rounded up to a multiple of it, so that fewer shapes occur.
    """
    row, offset = first_fit_decreasing(batch.length, row_length)
    n_rows = ceil_div(int(row.max()) + 1, world_size)  # of each rank, which has every world_size-th row
    n_micro_batches = ceil_div(n_rows, max(1, max_tokens // row_length))
    height = ceil_div(ceil_div(n_rows, n_micro_batches), row_multiple) * row_multiple
    height = max(2, height)  # torch.compile compiles a single row separately
    is_mine = row % world_size == rank
    examples, row, offset = np.flatnonzero(is_mine), row[is_mine] // world_size, offset[is_mine]
    for top in range(0, n_rows, height):
        here = (row >= top) & (row < top + height)
        yield place_examples(batch, examples[here], row[here] - top, offset[here], (height, row_length), is_packed=True)


def first_fit_decreasing(length, capacity):
    """Packs examples into rows of `capacity` tokens: the longest first, each into the first row that has room.

    Returns: (row, position in it) of each example, int64.
    """
    row, offset = np.empty(len(length), np.int64), np.empty(len(length), np.int64)
    free = np.full(len(length), capacity)
    for i in np.argsort(-length, kind="stable").tolist():
        row[i] = np.argmax(free >= length[i])
        offset[i] = capacity - free[row[i]]
        free[row[i]] -= length[i]
    return row, offset


def place_examples(batch, examples, row, offset, shape, is_packed):
    """The MicroBatch of some examples of a batch (data.MaskedBatch), each from position `offset` of its row on."""
    length = batch.length[examples]
    index = concat_ranges(row * shape[1] + offset, length)  # of each token in the rows, one after another
    batch_index = concat_ranges(batch.offset[examples], length)
    ids, segment = np.full(shape, batch.pad), np.zeros(shape, np.int32)
    ids.ravel()[index] = batch.ids[batch_index]
    segment.ravel()[index] = np.repeat(np.arange(1, len(examples) + 1), length)
    position = None
    if is_packed:
        position = np.zeros(shape, np.int64)
        position.ravel()[index] = concat_ranges(np.zeros(len(length), np.int64), length)
    if is_packed:
        mask = segment
    else:
        mask = None if segment.all() else segment > 0

    labels, example = batch.labels[batch_index], np.repeat(examples, length)
    targets = np.flatnonzero(labels != IGNORE)
    task = batch.task[example[targets]]
    targets = targets[np.argsort(task, kind="stable")]
    arrays = ids, mask, position, index[targets], labels[targets], example[targets]
    tensors = (x if x is None else torch.from_numpy(x) for x in arrays)
    return MicroBatch(*tensors, np.bincount(task, minlength=len(batch.heads)).tolist(), batch.heads)
