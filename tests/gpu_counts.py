"""What one optimizer step asks of a GPU, by counting: no GPU is needed.

    python tests/gpu_counts.py --gpu h100 --ranks 1                    (make bench-gpu ARGS="--gpu h100 --ranks 1")

The step is the one that kgi.py would take on that GPU: the paper's mix of lengths, its own micro-batches, forward and
backward in mixed precision. It runs on tensors without storage, and every operator that PyTorch dispatches is recorded.
A kernel is an operator that computes something; views do not. From this record come the number of kernels, their
floating-point operations, the bytes that they read and write, and the most memory that tensors take at a time.

A cost model turns the record into time. It assumes:

    device time of a kernel = max(2.5 us a launch, FLOPs / rate, bytes / bandwidth)
    host time of a kernel   = 6 to 15 us a launch, for autograd, autocast and the launch itself
    a micro-batch           = max(host time, device time), summed over its kernels
    a step                  = max(micro-batches, host time + assembly of a batch, exchange of gradients)
                              + clipping and AdamW

The rate of matrix products is 0.70 to 0.85 of that of large ones, as one side is only as wide as the encoder, and less
where tiles of 128 x 128 do not fill the multiprocessors. Attention with bias and dropout is slower: 80 to 120 TFLOP/s
on an H100 or H200, of others guessed from that. Each time is therefore a range, from the fast ends of all assumptions
to the slow ends. No GPU has confirmed it. Trust the ratios more than the figures.

Padding is the mean over 20 steps. The operators are those of the step nearest to the mean. Compiled means that all
operators between two matrix products of the encoder are fused. They read their inputs once and write what others use.
"""

import argparse
import math
import statistics
import sys
import tempfile
import weakref
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import configs  # noqa: E402
import data  # noqa: E402
import kgi  # noqa: E402
import model as models  # noqa: E402
from support import hardware, layouts, modernbert  # noqa: E402
from support.files import write_json  # noqa: E402
from tests import bench  # noqa: E402


class GPU(NamedTuple):
    matmul_flops: float  # operations a second of large products in half precision, as measured by others
    bandwidth: float  # bytes a second of its memory
    attention: tuple  # operations a second of attention with bias and dropout: (slow, fast)
    multiprocessors: int
    memory: float  # bytes
    link: float  # bytes a second between the GPUs of a node
    dtype: torch.dtype
    compiles: bool


GPUS = {
    "v100": GPU(100e12, 0.8e12, (20e12, 30e12), 80, 32e9, 120e9, torch.float16, False),
    "a100": GPU(260e12, 1.7e12, (50e12, 80e12), 108, 80e9, 250e9, torch.bfloat16, True),
    "h100": GPU(790e12, 3.0e12, (80e12, 120e12), 132, 80e9, 350e9, torch.bfloat16, True),
    "h200": GPU(790e12, 4.3e12, (80e12, 120e12), 132, 141e9, 350e9, torch.bfloat16, True),
}
SLOW, FAST = 0, 1  # the ends of a range
MATRICES = 0.70, 0.85  # share of the matrix rate that the encoder's products reach
LAUNCH = 15e-6, 6e-6  # seconds of host time
SHORTEST, TILE = 2.5e-6, 128  # seconds of the shortest kernel, and a side of a product's tiles
ASSEMBLY = 10e-3  # seconds of host time for the next batch, after the launches (docs/measurements.md)
# Launches of an operator that has more than one, and those of clipping and AdamW. The split is a guess. The sums are
# within 2 % of those of PyTorch's CUDA build, 921 eager and 740 compiled (docs/measurements.md).
LAUNCHES = {"fused": 3, "addmm": 2, "native_layer_norm_backward": 2, "embedding_dense_backward": 8,
            "_scaled_dot_product_flash_attention_for_cpu_backward": 3}  # fmt: skip
UPDATE_LAUNCHES = 30
CASES = [("h100", 1), ("h200", 1), ("h100", 4), ("v100", 1), ("v100", 4)]  # (GPU, ranks) of docs/measurements.md
STEPS, STEPS_V1 = 20, 16_638  # that padding is the mean of; of configs/v1-fr.toml on the paper's examples
VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split", "split_with_sizes",
    "unsqueeze", "squeeze", "detach", "alias", "as_strided", "unbind", "reshape", "chunk", "_reshape_alias", "narrow",
}  # fmt: skip
GATHERS = {"embedding", "index_select", "embedding_dense_backward"}  # they read only the rows that they need


class Kernel(NamedTuple):
    """An operator that was dispatched. reads, writes: {number of a storage: bytes}."""

    name: str
    reads: dict
    writes: dict
    flops: int
    shape: tuple  # of its first result
    in_encoder: bool


class Record(TorchDispatchMode):
    """Records what is dispatched below autograd, and the memory that it takes."""

    def __init__(self):
        super().__init__()
        self.kernels, self.in_encoder = [], False
        self.numbers, self.n_storages = {}, 0
        self.bytes = self.peak_bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = tensors_of((args, kwargs))
        reads = {self.number(t): size(t) for t in inputs}
        out = function(*args, **kwargs)
        name = function._schema.name.removeprefix("aten::")
        outputs = tensors_of(out)
        writes = {self.number(t): size(t) for t in outputs}
        if name in VIEWS or not outputs or name.startswith(("prim::", "sym_", "is_", "_local_scalar", "lift")):
            return out
        if name in GATHERS:
            reads = dict.fromkeys(reads, 0) | {self.number(inputs[0]): sum(writes.values())}
        flops = count_flops(function, args, kwargs, out)
        self.kernels.append(Kernel(name, reads, writes, flops, tuple(outputs[0].shape), self.in_encoder))
        return out

    def number(self, tensor):
        """A number for the storage of a tensor; a new storage counts as memory until it is freed."""
        storage = tensor.untyped_storage()
        if (known := self.numbers.get(storage._cdata)) is not None:
            return known
        self.n_storages += 1
        self.numbers[storage._cdata] = self.n_storages
        self.bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        return self.n_storages

    def free(self, address, n_bytes):
        self.numbers.pop(address)
        self.bytes -= n_bytes


def count_flops(function, args, kwargs, out):
    """Floating-point operations of products of matrices and of attention, as torch.utils.flop_counter counts them."""
    name, packet = function._schema.name, function._overloadpacket
    if name.endswith("attention_for_cpu"):
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if name.endswith("attention_for_cpu_backward"):
        return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def tensors_of(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def size(tensor):
    return tensor.numel() * tensor.element_size()


@contextmanager
def as_on_a_gpu():
    """Replaces what model.py does by hand on a CPU by the one operator that a GPU has for it."""

    def attention(q, k, v, mask, p):
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype).expand(-1, -1, q.shape[2], -1)
        if mask is not None:
            mask = mask.expand(len(q), q.shape[1], -1, -1)  # each head reads it
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=mask)[0]

    def dropout(x, p, training):
        return torch.native_dropout(x, p, True)[0] if training and p else x

    layer_norm = F.layer_norm  # autocast on a GPU computes it in float32
    with (
        mock.patch.multiple(models, attention=attention, dropout=dropout),
        mock.patch.multiple(modernbert, attention=attention, dropout=dropout),
        mock.patch.object(F, "layer_norm", lambda x, *rest: layer_norm(x.float(), *rest)),
    ):
        yield


def record_step(c, micro_batches, dtype):
    """Forward and backward of micro-batches, one after another, gradients added up.

    Args: c: Config. dtype: of autocast.
    Returns: (list of Kernels of each micro-batch, peak of bytes with weights and gradients).
    """
    out = []
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, as_on_a_gpu():
        model = models.KGIBert(c)
        with Record() as record:
            watch_encoder(model.encoder, record)
            for micro_batch in micro_batches:
                tensors = {name: x for name, x in vars(micro_batch).items() if isinstance(x, torch.Tensor)}
                micro_batch = replace(micro_batch, **{name: fake.from_tensor(x) for name, x in tensors.items()})
                record.kernels = []
                with torch.autocast("cpu", dtype):
                    sums = model(micro_batch)
                sums[:, 0].sum().backward()
                record.in_encoder = False
                out.append(record.kernels)
    return out, record.peak_bytes


def watch_encoder(encoder, record):
    """Tells the record when the encoder runs: forward, and backward from the gradient of its result on."""

    def enter(*_):
        record.in_encoder = True

    def leave(_, inputs, result):
        record.in_encoder = False
        result.register_hook(enter)

    encoder.register_forward_pre_hook(enter)
    encoder.register_forward_hook(leave)


def fuse(kernels):
    """The kernels after torch.compile of the encoder: each run of operators between two products becomes one."""
    readers = {}
    for i, kernel in enumerate(kernels):
        for number in kernel.reads:
            readers.setdefault(number, []).append(i)
    out, i = [], 0
    while i < len(kernels):
        j = i
        while j < len(kernels) and kernels[j].in_encoder and not kernels[j].flops and kernels[j].name not in GATHERS:
            j += 1
        if j - i < 2:
            out.append(kernels[i])
            i += 1
            continue
        reads, writes = {}, {}
        for kernel in kernels[i:j]:
            reads = {number: n for number, n in kernel.reads.items() if number not in writes} | reads
            writes |= kernel.writes
        # What is read by nobody is a gradient; what is read only inside stays in registers.
        writes = {n: b for n, b in writes.items() if n not in readers or any(not i <= k < j for k in readers[n])}
        out.append(Kernel("fused", reads, writes, 0, (), True))
        i = j
    return out


class Cost(NamedTuple):
    """Of one optimizer step, on each GPU."""

    launches: int
    flops: float
    n_bytes: float
    host: float  # seconds
    step: float
    by_class: dict  # seconds on the device of matrices, attention and the rest


def cost(gpu, micro_batches, n_parameters, ranks, end):
    """The Cost of a step, at one end of the range: the module's docstring has the model."""
    update = 40 * n_parameters  # bytes: clipping reads, then scales; AdamW reads four numbers and writes three
    exchange = 4 * n_parameters * 2 * (ranks - 1) / ranks / gpu.link
    n_launches, flops, n_bytes, passes = UPDATE_LAUNCHES, 0.0, update, 0.0
    by_class = {"matrices": 0.0, "attention": 0.0, "other": update / gpu.bandwidth}
    for kernels in micro_batches:
        device = launches = 0
        for kernel in kernels:
            moved, n = sum(kernel.reads.values()) + sum(kernel.writes.values()), LAUNCHES.get(kernel.name, 1)
            seconds = max(SHORTEST * n, moved / gpu.bandwidth)
            if kernel.flops:
                seconds = max(seconds, kernel.flops / rate(kernel, gpu, end))
            by_class[class_of(kernel)] += seconds
            device, launches = device + seconds, launches + n
            flops, n_bytes = flops + kernel.flops, n_bytes + moved
        n_launches += launches
        passes += max(LAUNCH[end] * launches, device)
    host = LAUNCH[end] * n_launches + ASSEMBLY
    step = max(passes, host, exchange) + update / gpu.bandwidth
    return Cost(n_launches, flops, n_bytes, host, step, by_class)


def class_of(kernel):
    return "attention" if "attention" in kernel.name else "matrices" if kernel.flops else "other"


def rate(kernel, gpu, end):
    """Operations a second of a product of matrices or of attention."""
    if "attention" in kernel.name:
        return gpu.attention[end]
    *batch, m, n = kernel.shape
    tiles = math.prod(batch) * math.ceil(m / TILE) * math.ceil(n / TILE)
    waves = math.ceil(tiles / gpu.multiprocessors)
    return gpu.matmul_flops * MATRICES[end] * tiles / (waves * gpu.multiprocessors)


# ---------------------------------------------------------------- the step of kgi.py


def prepare(folder, gpu, ranks, layout, layers, dim, family="distilbert"):
    """A Run whose batches assemble the micro-batches that kgi.py has on the first rank with this GPU."""
    size = bench.encoder_size(layers, dim, family)
    s = configs.Train(data=str(folder), out=f"{folder}/run", steps=100, device="cpu", layout=layout, **size)
    run = kgi.set_up(s)
    n_parameters = sum(p.numel() for p in run.model.parameters())
    run.batches.max_tokens = hardware.max_tokens_that_fit(run.model.encoder.config, n_parameters, gpu.memory)
    run.batches.ranks = mock.Mock(rank=0, world_size=ranks, device=torch.device("cuda"))
    return run


class Means(NamedTuple):
    """Of several steps, as each GPU sees them."""

    micro_batches: float
    tokens: float
    computed: float  # tokens with padding
    flops: float  # useful ones
    nearest: list  # the micro-batches of the step whose padded tokens are nearest to the mean


def mean_step(run, ranks):
    """The Means of the first STEPS steps."""
    c, steps = run.model.encoder.config, [run.batches.assemble(step) for step in range(STEPS)]
    computed = [sum(x.ids.numel() for x in micro_batches) for micro_batches, _ in steps]
    mean = statistics.mean(computed)
    return Means(
        statistics.mean(len(micro_batches) for micro_batches, _ in steps),
        statistics.mean(float(batch.length.sum()) for _, batch in steps) / ranks,
        mean,
        statistics.mean(hardware.training_flops(c, x.length, bench.vocabulary_targets(x)) for _, x in steps) / ranks,
        min(zip(computed, steps), key=lambda pair: abs(pair[0] - mean))[1][0],
    )


def bytes_per_token(c, dtype, row_length):
    """What a token of a micro-batch adds to the peak of memory, from two packed micro-batches."""
    peaks, n_tokens = [], []
    for n_rows in (32, 64):
        n = n_rows * row_length
        ids, number = torch.zeros(n_rows, row_length, dtype=torch.int64), torch.ones(n_rows, row_length).int()
        at = torch.arange(n // 9)  # the targets: 10.8 % of the paper's mix
        position, heads = torch.arange(row_length).expand(n_rows, -1).contiguous(), tuple(x.head for x in data.TASKS)
        micro_batch = layouts.MicroBatch(ids, number, position, at, at % 2, at, [len(at), 0, 0, 0], heads)
        peaks.append(record_step(c, [micro_batch], dtype)[1])
        n_tokens.append(n)
    return (peaks[1] - peaks[0]) / (n_tokens[1] - n_tokens[0])


WAYS = {  # name: (layout, compiled)
    "padded": ("padded", False), "packed rows": ("packed", False), "packed, compiled": ("packed", True),
}  # fmt: skip


def predict(folder, gpu, ranks, layers, dim, family="distilbert"):
    """{name of a way: figures} of one optimizer step; a pair is the low and the high end of a range."""

    @cache
    def record(layout):
        run = prepare(folder, gpu, ranks, layout, layers, dim, family)
        mean = mean_step(run, ranks)
        return run.model, mean, *record_step(run.model.encoder.config, mean.nearest, gpu.dtype)

    out = {}
    for name, (layout, is_compiled) in WAYS.items():
        if is_compiled and not gpu.compiles:
            continue
        model, mean, kernels, peak = record(layout)
        kernels = [fuse(some) for some in kernels] if is_compiled else kernels
        n_parameters = sum(p.numel() for p in model.parameters())
        slow, fast = (cost(gpu, kernels, n_parameters, ranks, end) for end in (SLOW, FAST))
        out[name] = {
            "micro_batches": mean.micro_batches, "padding": 1 - mean.tokens / mean.computed, "launches": fast.launches,
            "tflop": fast.flops / 1e12, "gigabytes": fast.n_bytes / 1e9, "peak_gb": (peak + 8 * n_parameters) / 1e9,
            "host_ms": [1e3 * fast.host, 1e3 * slow.host], "step_ms": [1e3 * fast.step, 1e3 * slow.step],
            "mfu": [mean.flops / gpu.matmul_flops / x.step for x in (slow, fast)],
            "tokens_per_s": [mean.tokens / x.step for x in (slow, fast)],
            "by_class_ms": {name: [1e3 * x.by_class[name] for x in (fast, slow)] for name in fast.by_class},
            "v1_french_minutes": [STEPS_V1 * x.step / 60 for x in (fast, slow)],
        }  # fmt: skip
    return out


def report(name, ranks, layers, dim, family, folder):
    """Prints a table for one GPU and number of ranks. Returns: what `predict` gives."""
    gpu = GPUS[name]
    many, dtype = "s" if ranks > 1 else "", str(gpu.dtype)[6:]
    print(f"\n{name}, {ranks} rank{many}, {family}, {layers} layers of dim {dim}, {dtype}: predicted, not measured")
    print(f"one step of 1,500 examples, as each GPU sees it, in ms; minutes of the {STEPS_V1:,} steps of v1 French")
    print(
        f"{'':<18}{'launches':>8}{'padding':>9}{'TFLOP':>7}{'GB':>5}{'host':>9}{'matrices':>10}{'attention':>10}"
        f"{'other':>9}{'step':>9}{'MFU, %':>8}{'minutes':>9}"
    )
    ways = predict(folder, gpu, ranks, layers, dim, family)
    for way, x in ways.items():
        matrices, attention, other = (as_range(pair) for pair in x["by_class_ms"].values())
        mfu = as_range([100 * share for share in x["mfu"]])
        print(
            f"{way:<18}{x['launches']:>8,}{100 * x['padding']:>7.1f} %{x['tflop']:>7.1f}{x['gigabytes']:>5.0f}"
            f"{as_range(x['host_ms']):>9}{matrices:>10}{attention:>10}{other:>9}{as_range(x['step_ms']):>9}{mfu:>8}"
            f"{as_range(x['v1_french_minutes']):>9}",
            flush=True,
        )
    return ways


def as_range(pair):
    low, high = (f"{x:.0f}" for x in pair)
    return low if low == high else f"{low}-{high}"


def report_memory(layers, dim, family, folder):
    """Prints the largest micro-batch that fits each GPU, by counting and by estimate_memory."""
    run = prepare(folder, GPUS["h100"], 1, "packed", layers, dim, family)
    c, n_parameters = run.model.encoder.config, sum(p.numel() for p in run.model.parameters())
    fixed, estimated = hardware.estimate_memory(c, n_parameters)
    print(f"\nmemory, {layers} layers of dim {dim}: {fixed / 1e9:.1f} GB, and a token of a micro-batch")
    for dtype, names in ((torch.bfloat16, ("a100", "h100", "h200")), (torch.float16, ("v100",))):
        counted = bytes_per_token(c, dtype, run.train.seq_len)
        print(f"  {str(dtype)[6:]}: {counted / 1e3:.0f} kB by counting, {estimated / 1e3:.0f} kB by estimate_memory")
        for name in names:
            room = 0.75 * GPUS[name].memory - fixed
            print(f"    {name}: {room / counted:,.0f} tokens by counting, {room / estimated:,.0f} by estimate_memory")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, help="default: the cases of docs/measurements.md")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--size", type=bench.layers_and_dim, default=(12, 768), metavar="12x768")
    parser.add_argument("--family", choices=configs.ARCHITECTURES, default="distilbert")
    parser.add_argument("--out", type=Path, help="a JSON file of the figures, for tests/bench_gpu.py --predicted")
    args = parser.parse_args()
    if args.ranks < 1:
        parser.error("--ranks must be 1 or more")
    cases = [(args.gpu, args.ranks)] if args.gpu else CASES
    with tempfile.TemporaryDirectory() as folder:
        bench.write_mix(Path(folder))
        figures = [
            {"gpu": name, "ranks": n, "ways": report(name, n, *args.size, args.family, folder)} for name, n in cases
        ]
        if args.out:
            write_json(args.out, {"size": args.size, "family": args.family, "cases": figures})
        report_memory(*args.size, args.family, folder)


if __name__ == "__main__":
    main()
