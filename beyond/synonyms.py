"""Synonym alignment, beyond the paper: pairs of names of one concept, and their vectors drawn together in training.

    python -m beyond.synonyms build datasets/fr --pairs 100000             -> datasets/fr/pairs.arrow
    torchrun --nproc_per_node 4 -m beyond.synonyms configs/v1-fr.toml      kgi.py with this loss beside its tasks
    python -m beyond.synonyms --data datasets/en --tasks mlm --init all-MiniLM-L6-v2

Names of one concept, in one language or two, are positives, as SapBERT has them. Each name has to find its partner
among the partners of all pairs of a step, by the cosine of the vectors at [CLS]. Neither micro-batches nor ranks change
the loss. Names of held-out concepts are in no pair of the training.
"""

import configs  # isort: split

import hashlib
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from pyarrow import ipc
from tokenizers import Tokenizer

import data
import kgi
from beyond.retrieval import pairs_within
from configs import UserError, argument, setting
from support import datasets, hardware, tokenizers
from support.arrays import concat_ranges, memory_map
from support.files import check_output, read_json, write_atomic, write_json
from support.layouts import IGNORE
from support.programs import run_command
from support.reports import print_next

MAX_NAMES = 10  # of a concept, the preferred one first, that pairs are made of
SEED = 4  # of the random numbers that choose pairs, beside those of the tasks
VALID_PAIRS = 128  # pairs in a batch of a validation
DROPOUT_STREAM = 2**32  # no micro-batch of the tasks has this number
SCHEMA = pa.schema([("split", pa.uint8()), ("cuis", pa.large_list(pa.int32())), ("ids", pa.large_list(pa.int32()))])
FORMS = {"pairs.arrow": rb"(?s)ARROW1.{,2000}split", "pairs.json": rb'\{\s*"sha256": '}  # see check_output


@dataclass
class Build(configs.Settings):
    """Choose pairs of names of one concept, from the release that a data set was built from."""

    dataset: str = argument("DATASET", "a folder that 'data.py build' wrote")
    pairs: int = setting(100_000, "pairs in each language, and in each two languages", least=1, most=10**9)


@dataclass
class Train(configs.Train):
    """Pre-train an encoder as kgi.py does, with synonym alignment beside the tasks."""

    temperature: float = setting(0.05, "of the softmax over the names of a step", "synonyms", least=1e-3)
    pairs_per_step: int = setting(0, "pairs in each step; 0: their share of all examples", "synonyms", most=10**6)


# ---------------------------------------------------------------- pairs of names


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


def sample_pairs(graphs, split, n, s):
    """Pairs of names of one concept, n in each language and n in each two languages, if there are so many.

    They are stratified by the semantic group of the concept: each group has the share that it has among heads and
    tails of the relations.

    Args: graphs: of all languages. s: settings of the data set (seed, valid_fraction).
    Returns: {(i, j): NamePairs} of the languages i <= j.
    """
    names = name_table(graphs)
    a, b = pairs_of_names(names, split, s)
    by_spelling, n_named, out = np.argsort(names.spelling, kind="stable"), np.bincount(names.spelling), {}
    for i, j in combinations_with_replacement(range(len(graphs)), 2):
        graph, in_these_languages = graphs[i], np.flatnonzero((names.lang[a] == i) & (names.lang[b] == j))
        rng = np.random.default_rng([s["seed"], i, j, data.SPLITS.index(split), SEED])
        group = graph.group[names.concept[a[in_these_languages]]]
        index = data.StratumIndex(in_these_languages, group, len(graph.groups))
        pair_counts = graph.counts.sum(axis=1).reshape(len(graph.groups), -1)  # of triples, by groups of head and tail
        chosen = data.stratified_sample(rng, index, pair_counts.sum(axis=0) + pair_counts.sum(axis=1), n)
        pairs = np.stack([a[chosen], b[chosen]], axis=1)
        spelling = names.spelling[pairs.ravel()]
        cuis = names.cui[by_spelling[concat_ranges((np.cumsum(n_named) - n_named)[spelling], n_named[spelling])]]
        out[i, j] = NamePairs(names.concept[pairs[:, 0]], names.term[pairs], cuis, n_named[spelling])
    return out


class NameTable(NamedTuple):
    """All names of all languages; arrays have one entry a name.

    lang: index into the graphs. concept, term: in the graph of its language. rank: among the names of its concept in
    its language, the preferred one is 0. cui: as a number. spelling: an id of its string in lower case.
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
    is_here = data.in_validation(names.cui, names.cui, s["seed"], s["valid_fraction"]) == (split == "valid")
    named_elsewhere = np.zeros(names.spelling.max(initial=-1) + 1, bool)
    named_elsewhere[names.spelling[~is_here]] = True
    usable = np.flatnonzero(is_here & ~named_elsewhere[names.spelling] & (names.rank < MAX_NAMES))
    usable = usable[np.argsort(names.cui[usable], kind="stable")]  # of one concept, those of the first language first
    a, b = (usable[x] for x in pairs_of_equals(names.cui[usable]))
    differ = names.spelling[a] != names.spelling[b]
    return a[differ], b[differ]


def pairs_of_equals(values):
    """(a, b): positions a < b of all pairs of equal values, which must stand together."""
    offset = np.flatnonzero(np.diff(values, prepend=-1))
    size, found = np.diff(offset, append=len(values)), [np.zeros((2, 0), np.int64)]
    for n in range(2, size.max(initial=0) + 1):
        found += [offset[size == n, None] + np.array(np.triu_indices(n, 1))[:, None]]
    return np.concatenate([x.reshape(2, -1) for x in found], axis=1)


# ---------------------------------------------------------------- pairs.arrow


def build(s):
    """Writes the pairs of a data set into its folder."""
    folder, manifest = Path(s.dataset), datasets.read_manifest(s.dataset)
    for name, form in FORMS.items():
        check_output(folder / name, form)
    tokenizer, unk = Tokenizer.from_buffer(datasets.read_tokenizer(folder)), manifest["special"]["unk"]
    graphs = [data.Graph(**vars(datasets.read_dataset_tables(folder, lang))) for lang in manifest["languages"]]
    tables = []
    for index, split in enumerate(data.SPLITS):
        n = round(manifest["settings"]["valid_fraction"] * s.pairs / 2) * 2 if split == "valid" else s.pairs
        for (i, j), found in sample_pairs(graphs, split, n, manifest["settings"]).items():
            langs = " and ".join(dict.fromkeys((graphs[i].lang, graphs[j].lang)))
            print(f"{langs}, {split}: {len(found.concept):,} pairs", flush=True)
            a, b = (graphs[k].terms.take(pa.array(terms)).to_pylist() for k, terms in zip((i, j), found.names.T))
            strings = [" " + string for pair in zip(a, b) for string in pair]  # as in the middle of a text
            named = tokenizers.encode_lists(tokenizer, strings, "names")
            # A name without any token (control characters) is [UNK].
            ids = [ids[: manifest["settings"]["seq_len"] - 2] or [unk] for ids in named]
            cuis = np.split(found.cuis, np.cumsum(found.n_cuis)[:-1]) if len(ids) else []
            tables.append(pa.table([np.full(len(ids), index), cuis, ids], SCHEMA))
    table = pa.concat_tables(tables).combine_chunks()
    if not pc.any(pc.equal(table["split"], 0)).as_py():
        raise UserError(f"{folder}: no concept has two names, so there is no pair")
    with ipc.new_file(content := pa.BufferOutputStream(), SCHEMA) as out:
        out.write_table(table)
    content = content.getvalue().to_pybytes()
    write_atomic(folder / "pairs.arrow", lambda f: f.write(content))
    write_json(folder / "pairs.json", {"sha256": hashlib.sha256(content).hexdigest(), "data": manifest["sha256"]})
    print(f"wrote {folder / 'pairs.arrow'}")
    print_next(("python -m beyond.synonyms --data {}", folder))


class Pairs:
    """The pairs of one split: names 2k and 2k + 1 are pair k. ids, cuis: one list after another, with offsets."""

    def __init__(self, table, split):
        rows = table.filter(pc.equal(table["split"], data.SPLITS.index(split)))
        ids, cuis = (rows[name].combine_chunks() for name in ("ids", "cuis"))
        self.ids, self.offsets = np.asarray(ids.values), np.asarray(ids.offsets)
        self.cuis, self.cui_offsets = np.asarray(cuis.values), np.asarray(cuis.offsets)

    def __len__(self):
        return len(self.offsets) // 2

    def batch(self, pairs, special):
        """(a data.MaskedBatch of the names of some pairs, whose labels number them at [CLS], their concepts).

        The concepts are (k, 2) int64: a name and a concept that it names.
        """
        rows = np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()
        stored = np.diff(self.offsets)[rows]
        length = stored + 2  # with [CLS] and [SEP]
        offset = np.cumsum(length) - length
        ids, labels = np.full(length.sum(), special["cls"], np.int64), np.full(length.sum(), IGNORE)
        ids[concat_ranges(offset + 1, stored)] = self.ids[concat_ranges(self.offsets[rows], stored)]
        ids[offset + length - 1] = special["sep"]
        labels[offset] = np.arange(len(rows))
        n_cuis = np.diff(self.cui_offsets)[rows]
        cuis = self.cuis[concat_ranges(self.cui_offsets[rows], n_cuis)]
        task = np.zeros(len(rows), np.int64)
        names = data.MaskedBatch(ids, labels, offset, length, task, np.array([len(rows)]), ("",), special["pad"])
        return names, np.stack([np.repeat(np.arange(len(rows)), n_cuis), cuis], axis=1)


def read_pairs(folder):
    """({split: Pairs}, the SHA-256 of the file) of a data set. Raises: UserError if it has none."""
    manifest, path = datasets.read_manifest(folder), Path(folder, "pairs.arrow")
    about, how = read_json(Path(folder, "pairs.json")), f"python -m beyond.synonyms build {folder}"
    if not path.is_file() or about.get("data") != manifest["sha256"]:
        raise UserError(f"{folder} has no pairs of names, or those of another build; choose some: {how}")
    try:
        if hashlib.sha256(path.read_bytes()).hexdigest() != about.get("sha256"):
            raise ValueError("not the file that was written")
        table = ipc.open_file(memory_map(path)).read_all()
        if table.schema != SCHEMA:
            raise ValueError("other columns")
    except (ValueError, pa.ArrowException) as e:
        raise UserError(f"{path}: damaged ({e}); choose them again: {how}") from None
    return {split: Pairs(table, split) for split in data.SPLITS}, about["sha256"]


# ---------------------------------------------------------------- the loss


def alignment_loss(vectors, concepts_of_names, temperature):
    """Symmetric contrastive cross-entropy: each name has to find its partner among the partners of all pairs.

    A candidate that shares a concept with the name, but is not its partner, is a synonym too. It is left out.

    Args: vectors: (2n, dim) of length 1; names 2k and 2k + 1 are a pair. concepts_of_names: (k, 2) int64, a name and a
    concept that it names.
    Returns: ((2n,) cross-entropy of each name, (2n,) whether its partner is the nearest).
    """
    n = len(vectors) // 2
    name, concept = torch.from_numpy(concepts_of_names.T.copy())
    share_a_concept = torch.zeros(2 * n, 2 * n, dtype=torch.bool)
    share_a_concept[pairs_within(name, concept)] = True
    share_a_concept = share_a_concept.to(vectors.device)
    partner, loss, correct = torch.arange(n, device=vectors.device), [], []
    for anchor, candidate in ((0, 1), (1, 0)):
        scores = vectors[anchor::2] @ vectors[candidate::2].T / temperature
        is_synonym = share_a_concept[anchor::2, candidate::2].clone().fill_diagonal_(False)
        scores = scores.masked_fill(is_synonym, float("-inf"))
        loss.append(F.cross_entropy(scores, partner, reduction="none"))
        correct.append((scores.argmax(-1) == partner).float())
    return torch.stack(loss, dim=1).flatten(), torch.stack(correct, dim=1).flatten()


class Alignment:
    """Synonym alignment as an objective of kgi.train.

    The vectors of all names of a step are compared, so each rank needs those of the others. Each embeds its own names,
    gathers the others' without gradients, and puts its own back with them. The gradients of the ranks add up to those
    of the whole loss. All names of a rank are in one graph of autograd: they are short, and few beside the tasks.
    """

    name, title, pooling = "sa", "synonym alignment", "cls"

    def __init__(self, s):
        """s: a Train."""
        folder = datasets.find_data(s.data, s.init)
        self.pairs, self.signature = read_pairs(folder)
        self.count = len(self.pairs["train"])
        counts = datasets.read_manifest(folder)["counts"].values()
        n_examples = sum(c["train"][name] for c in counts for name in s.tasks or data.TASK_NAMES if name in c["train"])
        share = self.count / max(1, self.count + n_examples)
        self.sampler = data.EpochSampler(self.count, s.pairs_per_step or max(2, round(share * s.batch_size)), s.seed)
        self.temperature = s.temperature

    def backward(self, run, weight):
        """Adds the gradients of one step; weight: of equation (2).

        Returns: (3,) of the names of this rank: summed loss, correct predictions, and their number.
        """
        kgi.seed_dropout(run, DROPOUT_STREAM)
        names, concepts = self.pairs["train"].batch(self.sampler(run.state.step)[0], run.train.special)
        loss, sums = self.loss(run, names, concepts)
        run.scaler.scale(weight * run.ranks.world_size * loss).backward()
        return sums

    def loss(self, run, names, concepts):
        """(mean loss over all names of some pairs, as Pairs.batch gives them, and sums as backward returns them)."""
        vectors, name_index = [], []
        for micro_batch in run.batches.lay_out(names):
            micro_batch = hardware.to_device(micro_batch, run.ranks.device, run.compiled)
            with hardware.autocast(run.ranks.device, run.ranks.dtype):
                hidden = run.model.encoder(micro_batch.ids, micro_batch.mask, micro_batch.position)
            cls = hidden.flatten(0, 1).index_select(0, micro_batch.target_index)
            vectors.append(F.normalize(cls.float(), dim=-1))
            name_index.append(micro_batch.label)
        local, name_index = torch.cat(vectors), torch.cat(name_index)  # of the names of this rank

        # All ranks get all vectors, without gradients; the local ones are put back with theirs.
        gathered = torch.zeros(len(names.length), local.shape[1], device=local.device)
        gathered[name_index] = local.detach()
        gathered = run.ranks.all_reduce(gathered).index_put((name_index,), local)

        losses, correct = alignment_loss(gathered, concepts, self.temperature)
        n_local = torch.tensor(float(len(name_index)), device=local.device)
        return losses.mean(), torch.stack([losses.detach()[name_index].sum(), correct[name_index].sum(), n_local])

    def validate(self, run):
        """The sums of a validation, as backward returns them.

        Its batches have one size and a seeded order, and the rest is left out. So the loss, which depends on the other
        names of a batch, is the same whatever the other settings. The last validation has as many pairs as it can.
        """
        pairs, is_last = self.pairs["valid"], run.state.step == run.state.steps > 0
        order = np.random.default_rng(0).permutation(len(pairs))
        n = len(pairs) if is_last else min(len(pairs), run.s.valid_examples)
        n = n // VALID_PAIRS * VALID_PAIRS or n
        batches = np.split(order[:n], range(VALID_PAIRS, n, VALID_PAIRS)) if n else []
        sums = [self.loss(run, *pairs.batch(chosen, run.train.special))[1] for chosen in batches]
        return sum(sums, torch.zeros(3, device=run.ranks.device))


def train(s):
    """Trains as kgi.py does, with the alignment of the data set's pairs beside the tasks."""
    if Alignment.name in s.tasks:
        raise UserError("sa is always trained here: leave it out of --tasks, which names the tasks beside it")
    kgi.train(s, [Alignment(s)])


COMMANDS = {"train": (train, Train), "build": (build, Build)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="train")
