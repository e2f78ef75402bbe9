"""Measurements that anyone can repeat; each prints ratios of things measured side by side in one run.

    python tests/bench.py data [--folder .cache/2022AB] [--scale 1] [--repeat 3]      (make bench-data)
    python tests/bench.py zip [--folder .cache/2022AB] [--scale 1] [--repeat 3]
    python tests/bench.py train [--sizes 12x768 6x384] [--repeat 3] [--family modernbert]     (make bench)
    python tests/bench.py search [--names 4000000] [--repeat 3]
    python tests/bench.py embed [--sizes 6x384] [--names 20000] [--repeat 3]
    python tests/bench.py tag [--sizes 6x384] [--repeat 3]
    python tests/bench.py busy [--repeat 3]                                           (after make demo)

data: makes a release as large as 2022AB once, which stays in the folder. It then reads the needed columns with
pyarrow.csv (the floor: no build can do without reading) and builds the English data set at the sizes of Table 1, with
the time and the peak memory of each stage. Last, it builds with another seed on the tables that were kept.

zip: builds from that release and from a zip of it in turn, and prints the ratios of wall and of CPU seconds.

train: forward and backward over the paper's mix of lengths, in three ways: (a) everything padded to 256, (b) the
paper's random micro-batches of 15 padded to their longest, and (c) ours. The first two have PyTorch's own encoder, with
the vocabulary head at all positions. Each takes a sample of the micro-batches of effective batches, every k-th by
width. A useful token is one that is not padding. With --family modernbert there is also (d), ours with that encoder,
whose gated feed-forward has as many weights. This is for a CPU; where torch sees a GPU, tests/bench_gpu.py runs.

search: the exact search of beyond.link by cosine, among random vectors of dim 768, with 424 mentions: as many distinct
ones as the test split of NCBI-Disease has. Beside it are the products of the same matrices alone. Four million names
take 13 GB of memory.

embed: the vectors of names as beyond.embed makes them, beside plain loops over the same encoder and over that of
torch.nn: 64 names at a time in their order, padded to the longest of them. All begin with text. The names have 8 words
on average.

tag: documents a second of beyond.tag, beside a plain loop over torch.nn.TransformerEncoder of the same size. There are
100 notes of 300 words. Both begin with text and end with a label for each word, and no word is left out. The plain loop
cuts a note wherever 254 words are full, 16 windows at a time in their order, padded to the longest of them.

busy: whole commands on what make demo has left, alone and beside one process that never sleeps, with the spin count of
OpenMP that libgomp has by itself, with ours, and with none. Training is also run with two ranks of one thread each.
"""

import argparse
import itertools
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import configs  # noqa: E402
import data  # noqa: E402
import kgi  # noqa: E402
import model as models  # noqa: E402
from beyond import embed, ranking, tag  # noqa: E402
from beyond.dictionaries import MAX_SIMILARITIES, Dictionary  # noqa: E402
from beyond.gold import LinkingTask  # noqa: E402
from beyond.tagged import Text  # noqa: E402
from finetune import TokenClassifier  # noqa: E402
from support import datasets, hardware, layouts, rrf  # noqa: E402
from support.layouts import IGNORE  # noqa: E402
from tests import synthetic_umls  # noqa: E402

NEEDED = {
    "MRSTY": ["CUI", "TUI", "STN"],
    "MRCONSO": "CUI LAT TS STT ISPREF AUI SAB TTY STR SUPPRESS".split(),
    "MRREL": ["CUI1", "REL", "CUI2", "SUPPRESS"],
}
FLOOR = """
import sys, pyarrow as pa
from pyarrow import csv
path, names, needed = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
names.append("")
convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=needed)
read = csv.ReadOptions(column_names=names, block_size=8 << 20)
parse = csv.ParseOptions(delimiter="|", quote_char=False)
print(sum(len(batch) for batch in csv.open_csv(path, read, parse, convert)))
"""


def floor(folder):
    """Seconds that pyarrow.csv takes to stream the needed columns of the three files."""
    seconds = 0
    for name, needed in NEEDED.items():
        argv = [str(folder / "META" / f"{name}.RRF"), " ".join(rrf.COLUMNS[name]), " ".join(needed)]
        began = time.time()
        subprocess.run([sys.executable, "-c", FLOOR, *argv], check=True, capture_output=True)
        seconds += time.time() - began
    return seconds


def build(folder, out, seed=0, umls=None):
    """Stages of an English build: [(what, seconds, peak GB)]. umls: the release; default: the folder."""
    argv = f"build --lang en --umls {umls or folder} --e3c {folder}/E3C --out {out} --seed {seed}".split()
    child = subprocess.Popen([sys.executable, str(ROOT / "data.py"), *argv], stdout=subprocess.PIPE, text=True)
    peak, done = [0.0], threading.Event()

    def watch():
        while not done.wait(0.02):
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
                peak[0] = max(peak[0], int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e6)
            except (OSError, TypeError):  # it has ended, or this is not Linux
                pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    stages, before = [], 0.0
    for line in child.stdout:
        if match := re.match(r"\[ *([\d.]+) s\] (.*)", line):
            stages.append((match[2], float(match[1]) - before, peak[0]))
            before, peak[0] = float(match[1]), 0.0
    done.set()
    watcher.join()
    if child.wait():
        sys.exit(child.returncode)
    return stages


def make_release(folder, scale):
    """The synthetic release at a scale, written once."""
    made = folder / f"made-{scale:g}"
    if not made.is_file():
        began = time.time()
        print(f"writing {3.4 * scale:.1f} GB into {folder}, once", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        synthetic_umls.write_full(folder, scale)
        made.touch()
        print(f"made {folder} in {time.time() - began:.0f} s")


def bench_zip(folder, scale, repeat):
    """Builds from the folder and from a zip of it, in turn."""
    make_release(folder, scale)
    path = folder.with_suffix(".zip")
    if not path.is_file():
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for file in sorted(folder.glob("META/*.RRF")):
                z.write(file, f"2022AB/META/{file.name}")
    took = {folder: [], path: []}  # of each build: wall and CPU seconds
    for _ in range(repeat):
        for umls, seconds in took.items():
            shutil.rmtree(folder.parent / "tables", ignore_errors=True)
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
            build(folder, folder.parent / "dataset", umls=umls)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            seconds.append((time.time() - began, cpu))
            print(f"{umls}: {seconds[-1][0]:.1f} s, CPU {cpu:.1f} s", flush=True)
    for k, what in enumerate(("wall", "CPU")):
        pairs = [b[k] / a[k] for a, b in zip(*took.values())]
        print(f"{what}: zip / folder {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})")


def bench_data(folder, scale, repeat):
    make_release(folder, scale)
    out, floors, runs = folder.parent / "dataset", [], []
    for _ in range(repeat):
        shutil.rmtree(out.parent / "tables", ignore_errors=True)
        floors.append(floor(folder))
        runs.append(build(folder, out))
    again = build(folder, out, seed=1)

    print(f"\n{'stage':<72}{'seconds':>9}{'peak GB':>9}   (medians of {repeat})")
    medians = [statistics.median(run[k][1] for run in runs) for k in range(len(runs[0]))]
    for k, (what, _, _) in enumerate(runs[0]):
        print(f"{what[:70]:<72}{medians[k]:>9.1f}{max(run[k][2] for run in runs):>9.2f}")
    last = next(k for k, (what, *_) in enumerate(runs[0]) if what.startswith("samples"))
    first = next(k for k, (what, *_) in enumerate(runs[0]) if what.startswith("MRSTY"))
    tables = statistics.median(sum(s for _, s, _ in run[first : last + 1]) for run in runs)
    ratio = statistics.median(sum(s for _, s, _ in run[first : last + 1]) / f for run, f in zip(runs, floors))
    total = statistics.median(sum(s for _, s, _ in run) for run in runs)
    print(f"\nfloor: pyarrow.csv reading the needed columns {statistics.median(floors):>25.1f} s")
    print(f"tables and samplers {tables:>51.1f} s   {ratio:.2f} x the floor")
    print(f"the whole build {total:>55.1f} s   {max(p for run in runs for _, _, p in run):.2f} GB")
    print(f"another seed on the tables kept {sum(s for _, s, _ in again):>39.1f} s")


# ---------------------------------------------------------------- training

VOCAB = 30_522
TABLE_1 = {"mlm": 25_740, "ep": 100_000, "lp": 64_208, "tc": 200_000}  # French; here a tenth of it
LENGTHS = {"mlm": (256, 0), "ep": (20, 0.35), "lp": (65, 0.5), "tc": (20, 0.35)}  # means, spreads of the logarithm


def tokenizer_of_numbers():
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(5, VOCAB))]
    return Tokenizer(WordLevel({entry: i for i, entry in enumerate(entries)}, "[UNK]"))


def write_mix(folder):
    """A data set of random tokens with the paper's shares of the tasks and lengths."""
    rng, special = np.random.default_rng(0), dict(pad=0, unk=1, cls=2, sep=3, mask=4, hrel=5)
    special["relations"] = list(range(6, 13))
    counts = {split: {task: n // k for task, n in TABLE_1.items()} for split, k in (("train", 10), ("valid", 500))}
    writers = {split: datasets.ExampleWriter() for split in data.SPLITS}
    for split, writer in writers.items():
        for task, n in counts[split].items():
            examples = ((data.TRUE, (0,), ids) for ids in random_examples(rng, task, n))
            writer.add(data.TASK_NAMES.index(task), 0, examples)
    distribution = {"columns": [], "groups": {}, "relations": {}, "largest_deviation": {}}
    nothing = dict.fromkeys(("terms", "cuis", "relations", "megabytes"), 0)
    manifest = {
        "name": "mix", "languages": ["fr"], "version": datasets.VERSION, "settings": {"seq_len": 256},
        "special": special, "vocab_size": VOCAB,
        "counts": {"fr": counts | nothing | {"distribution": distribution}},
        "malformed_rows_left_out": {}, "nci_rows_left_out": {},
    }  # fmt: skip
    datasets.write_dataset(folder, writers, tokenizer_of_numbers(), manifest)


def random_examples(rng, task, n):
    """Yields the token ids of n examples of a task, as a data set has them: without [CLS] and [SEP]."""
    mean, spread = LENGTHS[task]
    length = np.clip(rng.lognormal(np.log(mean) - spread**2 / 2, spread, n).round().astype(int), 6, 256)
    for k in length.tolist():
        ids = rng.integers(13, VOCAB, k - 2)
        if task != "mlm":
            n_relations = max(k // 12, 2) if task == "lp" else 1
            ids[np.arange(1, n_relations + 1) * (k // (n_relations + 1)) - 1] = rng.integers(6, 12, n_relations)
        yield ids.tolist()


class Plain(nn.Module):
    """The same model as PyTorch's own encoder layers make it, the vocabulary head at every position."""

    def __init__(self, c):
        super().__init__()
        self.word, self.position = nn.Embedding(c.vocab_size, c.dim), nn.Embedding(c.max_positions, c.dim)
        layer = nn.TransformerEncoderLayer(c.dim, c.heads, c.ffn, c.dropout, "gelu", batch_first=True)
        self.start = nn.Sequential(nn.LayerNorm(c.dim), nn.Dropout(c.dropout))
        self.encoder = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False)
        self.mlm_dense = nn.Sequential(nn.Linear(c.dim, c.dim), nn.GELU(), nn.LayerNorm(c.dim))
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))
        self.relation_head, self.triple_head = nn.Linear(c.dim, len(c.relation_classes)), nn.Linear(c.dim, 2)

    def forward(self, batch):
        """The summed loss of a MicroBatch of the layout "padded", as (1, 1)."""
        x = self.start(self.word(batch.ids) + self.position.weight[: batch.ids.shape[1]])
        x = self.encoder(x, src_key_padding_mask=None if batch.mask is None else ~batch.mask).flatten(0, 1)
        logits = F.linear(self.mlm_dense(x), self.word.weight, self.bias)
        words, *sizes = vocabulary_targets(batch), *batch.n_targets[data.LP :]
        labels = torch.full_like(batch.ids.flatten(), IGNORE)
        labels = labels.index_copy(0, batch.target_index[:words], batch.label[:words])
        relations, triples = x[batch.target_index[words:]].split(sizes)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        scores = self.relation_head(relations), self.triple_head(triples)
        for logits, labels in zip(scores, batch.label[words:].split(sizes)):
            loss = loss + F.cross_entropy(logits.float(), labels, reduction="sum")
        return loss[None, None]


def vocabulary_targets(batch):
    """How many tokens the vocabulary head predicts."""
    return batch.n_targets[data.MLM] + batch.n_targets[data.EP]


def lengths(batch):
    """The lengths of the examples of a MicroBatch of the layout "padded"."""
    n_rows, width = batch.ids.shape
    return np.full(n_rows, width) if batch.mask is None else batch.mask.sum(1).numpy()


def paper_micro_batches(run, step, n_rows, width):
    """The micro-batches of effective batch `step` as the paper cuts them: n_rows examples in random order, padded to
    their longest, or to `width`."""
    positions, epochs = run.batches.sampler(step)
    for k in range(0, len(positions), n_rows):
        rows = run.train.rows[positions[k : k + n_rows]]
        batch = run.batches.mask(run.train, rows, epochs[k : k + n_rows])
        (micro_batch,) = layouts.padded(batch, 10**9, 10**9)
        if width:
            longest = micro_batch.ids.shape[1]
            mask = torch.arange(width) < torch.from_numpy(lengths(micro_batch))[:, None]
            index = micro_batch.target_index
            micro_batch = replace(
                micro_batch, ids=F.pad(micro_batch.ids, (0, width - longest), value=batch.pad), mask=mask,
                target_index=index // longest * width + index % longest,
            )  # fmt: skip
        yield micro_batch


def every(micro_batches, k):
    """Every k-th by width, so that all widths are there as often as they come."""
    return sorted(micro_batches, key=lambda batch: batch.ids.shape[1])[k // 2 :: k]


def time_passes(model, micro_batches, device, dtype):
    """Seconds of forward and backward over micro-batches."""
    began = time.perf_counter()
    for micro_batch in micro_batches:
        with hardware.autocast(device, dtype):
            loss = model(micro_batch.to(device))[:, 0].sum()
        loss.backward()
        model.zero_grad()
    return time.perf_counter() - began


def precisions():
    """What the CPU computes in hardware."""
    info = Path("/proc/cpuinfo")
    return ["fp32"] + ["bf16"] * (info.is_file() and "bf16" in info.read_text())


def encoder_size(layers, dim, family="distilbert"):
    """Settings of an encoder; a gated feed-forward has three matrices instead of two, and here as many weights."""
    ffn = 8 * dim // 3 if family == "modernbert" else 4 * dim
    return dict(family=family, layers=layers, dim=dim, heads=dim // 64, ffn=ffn)


def bench_train(sizes, repeat, family):
    with tempfile.TemporaryDirectory() as folder:
        write_mix(Path(folder))
        for layers, dim in sizes:
            s = configs.Train(data=folder, out=f"{folder}/run", steps=100, **encoder_size(layers, dim))
            run, other = kgi.set_up(s), None
            if family != "distilbert":
                other = kgi.set_up(replace(s, **encoder_size(layers, dim, family))).model
            compare(run, repeat, other)


def compare(run, repeat, other=None):
    """Prints the speeds of PyTorch's encoder, of ours, and of another model of ours."""
    device, c = run.ranks.device, run.model.encoder.config
    share = 12  # of the micro-batches one is taken
    plain = Plain(c).to(device)
    ways = {}  # name: (model, dtype, micro-batches)
    paper = {"(a) padded to 256": (256, 4 * share), "(b) 15 at random, padded to their longest": (0, share)}
    for precision in precisions():
        _, dtype = hardware.choose_device("auto", precision)
        for what, (width, k) in paper.items():
            if precision == precisions()[0]:
                ways[f"{what}, {precision}"] = plain, dtype, every(paper_micro_batches(run, 0, 15, width), k)
        micros = [micro_batch for step in range(3) for micro_batch in run.batches.assemble(step)[0]]
        ways[f"(c) ours, {precision}"] = run.model, dtype, every(micros, share // 2)
        if other:
            ways[f"(d) ours, {other.encoder.config.family}, {precision}"] = other, dtype, every(micros, share // 2)
    rates, took = {dtype: [] for _, dtype, _ in ways.values()}, {name: [] for name in ways}
    for i in range(repeat + 1):  # the first round warms up
        for name, (model, dtype, micros) in ways.items():
            rates[dtype].append(hardware.measure_matmul_flops(device, dtype))
            took[name].append(time_passes(model, micros if i else micros[-1:], device, dtype))
    print(f"\n{c.layers} layers of dim {c.dim}, {device.type}, {torch.get_num_threads()} threads, medians of {repeat}")
    tokens_per_second = print_speeds(c, ways, rates, took)
    for dtype, rate in rates.items():
        print(f"matrices alone, {str(dtype or torch.float32)[6:]}: {statistics.median(rate[1:]) / 1e12:.3g} TFLOP/s")
    print_other_costs(run, repeat, tokens_per_second)


def print_speeds(c, ways, rates, took):
    """A line for each way. Returns: tokens a second of the last one. c: the Config of those that have none."""
    print(f"{'':<46}{'tokens/s':>9}{'examples/s':>11}{'padding':>8}{'MFU':>6}{'x (b)':>7}")
    base = None
    for name, (model, dtype, micros) in ways.items():
        length = np.concatenate([lengths(m) for m in micros])
        speeds = [length.sum() / seconds for seconds in took[name][1:]]
        base = speeds if "(b)" in name else base
        ratio = f"{statistics.median(x / y for x, y in zip(speeds, base)):.2f}" if base else ""
        flops = (
            hardware.training_flops(getattr(model.encoder, "config", c), length, sum(map(vocabulary_targets, micros)))
            / length.sum()
        )
        padding = 1 - length.sum() / sum(m.ids.numel() for m in micros)
        speed = statistics.median(speeds)
        mfu = speed * flops / statistics.median(rates[dtype][1:])
        examples = speed / length.mean()
        print(
            f"{name:<46}{speed:>9,.0f}{examples:>11,.1f}{100 * padding:>6.1f} %{100 * mfu:>4.0f} %{ratio:>7}",
            flush=True,
        )
    return speed


def print_other_costs(run, repeat, tokens_per_second):
    """What a step costs beside forward and backward."""
    assembly, update = [], []
    for step in range(repeat + 2):
        began = time.perf_counter()
        _, batch = run.batches.assemble(step)
        assembly.append(time.perf_counter() - began)
        for p in run.model.parameters():
            p.grad = torch.zeros_like(p)
        began = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        update.append(time.perf_counter() - began)
    step = batch.length.sum() / tokens_per_second
    for what, seconds in (("assembly of a batch, in a thread of its own", assembly), ("clipping and AdamW", update)):
        median = statistics.median(seconds)
        print(f"{what}: {median:.3f} s, {100 * median / step:.2f} % of a step of {step:.1f} s")


# ---------------------------------------------------------------- search


def bench_search(n_names, repeat):
    rng, n_mentions, dim = np.random.default_rng(0), 424, 768
    names = np.empty((n_names, dim), np.float32)
    for start in range(0, n_names, 16384):
        rng.standard_normal(out=names[start : start + 16384], dtype=np.float32)
        names[start : start + 16384] /= np.linalg.norm(names[start : start + 16384], axis=1, keepdims=True)
    queries = rng.standard_normal((n_mentions, dim), dtype=np.float32)
    at = np.arange(n_names)
    dictionary = Dictionary(range(n_names // 2), range(n_names), at, np.minimum(at // 2, n_names // 2 - 1))
    gold = [[rng.integers(0, n_names // 2, 1)] for _ in range(n_mentions)]
    mentions, unseen = range(n_mentions), np.zeros(n_mentions, bool)
    task = LinkingTask(mentions, dictionary, mentions, np.arange(n_mentions), gold, unseen, {})
    n_at_once = max(1, MAX_SIMILARITIES // n_names)
    floors, searches = [], []
    for _ in range(repeat):
        began = time.perf_counter()
        for start in range(0, n_mentions, n_at_once):
            queries[start : start + n_at_once] @ names.T
        floors.append(time.perf_counter() - began)
        began = time.perf_counter()
        ranking.rank_mentions([task], lambda block: [("cosine", queries[block] @ names.T)])
        searches.append(time.perf_counter() - began)
    ratio = statistics.median(search / floor for search, floor in zip(searches, floors))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{n_mentions} mentions among {n_names:,} names of dim {dim}, medians of {repeat}")
    print(
        f"products alone {statistics.median(floors):.1f} s, search {statistics.median(searches):.1f} s, {ratio:.2f} x"
    )
    print(f"{memory:.1f} GB of memory")


def bench_embed(sizes, n_names, repeat):
    """Names a second of embed.embed_terms and of a plain loop, whose vectors must agree."""
    rng, tokenizer, special = np.random.default_rng(0), tokenizer_of_numbers(), {"pad": 0, "cls": 2, "sep": 3}
    n_words = np.clip(rng.lognormal(np.log(8) - 0.18, 0.6, n_names).round().astype(int), 1, 60)
    names = [" ".join(map(str, rng.integers(5, VOCAB, k).tolist())) for k in n_words.tolist()]
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    for layers, dim in sizes:
        torch.manual_seed(0)
        c = models.Config(vocab_size=VOCAB, dim=dim, layers=layers, heads=dim // 64, ffn=4 * dim, max_positions=64)
        encoder, stock = models.Encoder(c).eval(), Plain(c).eval()

        def stock_encoder(x, mask, stock=stock):
            return stock.encoder(stock.start(stock.word(x) + stock.position.weight[: x.shape[1]]), None, ~mask)

        ways = {
            "plain loop": lambda encoder=encoder: plain_embeddings(encoder, tokenizer, special, names),
            "plain loop of torch.nn": lambda: plain_embeddings(stock_encoder, tokenizer, special, names),
            "beyond.embed": lambda encoder=encoder: embed.embed_terms(encoder, tokenizer, names, ["cls"], None)["cls"],
        }
        took, vectors = {way: [] for way in ways}, {}
        for way, run in repeat * [*ways.items()]:
            began = time.perf_counter()
            vectors[way] = run()
            took[way].append(time.perf_counter() - began)
        assert (vectors["plain loop"] - vectors["beyond.embed"]).abs().max() < 1e-4
        print(f"{layers} x {dim}, {torch.get_num_threads()} threads, medians of {repeat}")
        for way, seconds in took.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, took["beyond.embed"]))
            print(f"{way:<24}{n_names / statistics.median(seconds):8,.0f} names/s   {1 / ratio:5.2f} x of beyond.embed")


@torch.inference_mode()
def plain_embeddings(encoder, tokenizer, special, names, at_once=64):
    """(names, dim): the vectors at [CLS], with batches in the order of the names. encoder: of ids and mask."""
    vectors = []
    for i in range(0, len(names), at_once):
        texts = [encoding.ids for encoding in tokenizer.encode_batch(names[i : i + at_once], add_special_tokens=False)]
        x = [torch.tensor([special["cls"], *text, special["sep"]]) for text in texts]
        x = nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=special["pad"])
        vectors.append(encoder(x, x != special["pad"])[:, 0])
    return torch.cat(vectors)


def bench_tag(sizes, repeat):
    """Documents a second of tag.tag_texts and of a plain loop."""
    rng, tokenizer, labels = np.random.default_rng(0), tokenizer_of_numbers(), ["O", "B-X", "I-X"]
    notes = [" ".join(map(str, rng.integers(5, VOCAB, 300).tolist())) for _ in range(100)]
    texts = [Text(str(i), note) for i, note in enumerate(notes)]
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    for layers, dim in sizes:
        c = models.Config(vocab_size=VOCAB, dim=dim, layers=layers, heads=dim // 64, ffn=4 * dim, max_positions=256)
        plain, head = Plain(c).eval(), nn.Linear(dim, len(labels))
        for precision in precisions():
            device, dtype = torch.device("cpu"), torch.bfloat16 if precision == "bf16" else None
            classifier = TokenClassifier(models.Encoder(c), labels, 0, device, dtype).eval()
            tagger = tag.Tagger(classifier, tokenizer, 256, True, False, True, "")
            took = {"plain loop": [], "beyond.tag": []}
            for _ in range(repeat):
                began = time.perf_counter()
                n_labels = sum(map(len, plain_labels(plain, head, tokenizer, notes, dtype)))
                took["plain loop"].append(time.perf_counter() - began)
                began = time.perf_counter()
                tagged = list(tag.tag_texts(tagger, iter(texts), None))
                took["beyond.tag"].append(time.perf_counter() - began)
                assert n_labels == sum(len(document.labels) for document in tagged) == 100 * 300
            ratio = statistics.median(a / b for a, b in zip(*took.values()))
            speeds = ", ".join(f"{way} {100 / statistics.median(x):,.1f}" for way, x in took.items())
            print(f"{layers} x {dim}, {precision}, {torch.get_num_threads()} threads, medians of {repeat}: documents/s "
                  f"{speeds}, {ratio:.2f} x", flush=True)  # fmt: skip


@torch.inference_mode()
def plain_labels(plain, head, tokenizer, notes, dtype, room=254, at_once=16):
    """The indices of labels of each window of the notes, one a token."""
    encoded = tokenizer.encode_batch(notes, add_special_tokens=False)
    windows = [[2, *e.ids[i : i + room], 3] for e in encoded for i in range(0, len(e.ids), room)]
    found = []
    for i in range(0, len(windows), at_once):
        x = [torch.tensor(window) for window in windows[i : i + at_once]]
        lengths, x = [len(window) for window in x], nn.utils.rnn.pad_sequence(x, batch_first=True)
        with hardware.autocast(torch.device("cpu"), dtype):
            hidden = plain.start(plain.word(x) + plain.position.weight[: x.shape[1]])
            best = head(plain.encoder(hidden, src_key_padding_mask=x == 0)).argmax(-1)
        found += [row[1 : n - 1].tolist() for row, n in zip(best, lengths)]
    return found


def bench_busy(repeat):
    """Seconds of commands for each spin count, quiet and busy in turn."""
    demo = ROOT / "demo"
    if not (demo / ".done").exists():
        sys.exit("run make demo first")
    with tempfile.TemporaryDirectory() as folder:
        text, names = Path(folder, "notes.txt"), Path(folder, "names.txt")
        text.write_text((demo / "sample" / "ner" / "fr.txt").read_text() * 10)
        names.write_text((demo / "sample" / "ner" / "fr.txt").read_text() * 20)
        training = ["kgi.py", "configs/demo.toml", "--steps", "60", "--valid_every", "60", "--layout", "padded"]
        two_ranks = ["-m", "torch.distributed.run", "--nproc_per_node", "2", *training]
        commands = {
            "train": training,
            "train, two ranks": two_ranks,
            "finetune": ["finetune.py", "demo/kgi-fr", "configs/demo.toml", "--runs", "1"],
            "tag": ["-m", "beyond.tag", "demo/results/pretrained", str(text)],
            "embed": ["-m", "beyond.embed", "demo/kgi-fr", str(names)],
        }
        print(f"{'seconds, median of ' + str(repeat):<26}" + "".join(f"{x:>10}" for x in ("300000", "1000", "0") * 2))
        print(f"{'spin count of OpenMP':<26}{'quiet':>10}{'':20}{'busy':>10}")
        for name, argv in commands.items():
            took = {}
            for _, spin, busy in itertools.product(range(repeat), ("300000", "1000", "0"), (False, True)):
                out = ["--out", tempfile.mkdtemp(dir=folder) + "/out"] * (name not in ("tag", "embed"))
                took.setdefault((busy, spin), []).append(seconds_of_command([*argv, *out], spin, busy))
            print(f"{name:<26}" + "".join(f"{statistics.median(x):10.1f}" for _, x in sorted(took.items(), key=order)))


def order(item):
    (busy, spin), _ = item
    return busy, -int(spin)


def seconds_of_command(argv, spin, busy):
    """Wall seconds of a command of this project. busy: beside a process that never sleeps."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    began = time.monotonic()
    try:
        env = os.environ | {"GOMP_SPINCOUNT": spin}
        subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - began
    finally:
        if other:
            other.kill()
            other.wait()


def layers_and_dim(text):
    layers, dim = map(int, text.split("x"))  # a ValueError is argparse's to tell
    return layers, dim


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"] and torch.cuda.is_available():
        from tests import bench_gpu

        sys.exit(bench_gpu.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "zip", "train", "search", "embed", "tag", "busy"])
    parser.add_argument("--folder", type=Path, default=Path(".cache/2022AB"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", type=layers_and_dim, default=[(6, 384), (12, 768)], metavar="6x384")
    parser.add_argument("--family", choices=configs.ARCHITECTURES, default="distilbert", help="of a fourth way")
    parser.add_argument("--names", type=int, help="default: 4,000,000 of search, 20,000 of embed")
    args = parser.parse_args()
    if args.what == "data":
        bench_data(args.folder, args.scale, args.repeat)
    elif args.what == "zip":
        bench_zip(args.folder, args.scale, args.repeat)
    elif args.what == "search":
        bench_search(args.names or 4_000_000, args.repeat)
    elif args.what == "embed":
        bench_embed(args.sizes, args.names or 20_000, args.repeat)
    elif args.what == "tag":
        bench_tag(args.sizes, args.repeat)
    elif args.what == "busy":
        bench_busy(args.repeat)
    else:
        bench_train(args.sizes, args.repeat, args.family)
