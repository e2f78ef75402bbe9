"""Arrays: random numbers that are a function of their key, ranges, the bootstrap, and files mapped into memory."""

import io
import mmap

import numpy as np
import pyarrow as pa

BLOCK = 1 << 15  # keys hashed at once: their arrays stay in the cache, which is seven times as fast


def splitmix64(*keys):
    """A 64-bit hash of integers (SplitMix64, one round a key), or of arrays that broadcast together: uint64."""
    x = np.uint64(0)
    with np.errstate(over="ignore"):
        for key in keys:
            x = (x ^ np.asarray(key).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x


def hash_uniform(*keys):
    """splitmix64 of the keys as float64 in [0, 1): the same key gives the same number on every machine."""
    size = max(np.size(key) for key in keys)
    if size <= BLOCK:
        return (splitmix64(*keys) >> np.uint64(11)) * 2.0**-53
    cut = lambda key, i: key[i : i + BLOCK] if np.ndim(key) else key  # noqa: E731
    return np.concatenate([hash_uniform(*(cut(key, i) for key in keys)) for i in range(0, size, BLOCK)])


def concat_ranges(offset, length):
    """The indices offset[i], offset[i] + 1, ... (length[i] of them) for all i, one range after another; all int64."""
    end = np.cumsum(length)
    return np.repeat(offset - (end - length), length) + np.arange(end[-1] if len(end) else 0)


def sum_groups(groups, values):
    """Sums of values (sequences, k) over groups (the document of each), in the order of their first sequences."""
    index = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(index), values.shape[1]))
    np.add.at(sums, [index[g] for g in groups], values)
    return sums


def bootstrap(groups, values, n):
    """Sums of values (sequences, k) over n samples, with replacement, of groups (the document of each): (n, k)."""
    sums = sum_groups(groups, values)
    weights = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), n)
    return weights @ sums


def ceil_div(x, y):
    """x / y, rounded up."""
    return -(-x // y)


def memory_map(path):
    """A file mapped into memory, as pyarrow reads it; of pyarrow's own the path would have to be UTF-8."""
    with open(path, "rb") as f:
        return pa.BufferReader(pa.py_buffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)))


def npy_header(shape):
    """The beginning of a .npy file of NumPy: bytes that an array of float32 in the order of C follows."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()
