"""The encoder, the heads of the four tasks, and checkpoints in and out.

    python model.py embed runs/kgi-fr < terms.txt > vectors.npy                  one vector a line, at [CLS]
    python model.py embed SapBERT-from-PubMedBERT --pooling mean < terms.txt > vectors.npy

A post-LayerNorm BERT as DistilBERT has it (paper, section 4.1): word and position embeddings,
LayerNorm, dropout; then layers of attention and feed-forward, each followed by add & norm.
v1 of the paper is 12 layers with 12 heads, v2 (appendix C) 8 with 8; any other size works.
The same class reads the checkpoints that the paper goes on from or compares with: DistilBERT, BERT, RoBERTa,
CamemBERT and XLM-RoBERTa, and writes each back in its own layout.

    model = KGIBert(Config(vocab_size=30_522, max_positions=256));  save(model, "runs/x")
    model = load("DrBERT-4GB")
"""

import ctypes
import errno
import functools
import io
import json
import math
import os
import pickle
import re
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import configs
from configs import UserError, tokenization, write_atomic

RELATION_CLASSES = 6  # the seven relations of section 3.1 without synonymy
ROBERTAS = ("roberta", "camembert", "xlm-roberta")
TANH_GELU = functools.partial(F.gelu, approximate="tanh")
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": TANH_GELU,
    "gelu_pytorch_tanh": TANH_GELU,
    "relu": F.relu,
}


@dataclass
class Config:
    """Sizes of an encoder. heads must divide dim; max_positions is the longest sequence in tokens.

    What is behind `pad` tells families of checkpoints apart: attention_dropout (as dropout if not given), whose
    layout the checkpoint has, its activation (a key of ACTIVATIONS), the eps of every LayerNorm, how many token
    types its file has, and the keys of its config.json that are handed on as they are.
    """

    vocab_size: int
    max_positions: int
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    dropout: float = 0.1
    pad: int = 0
    attention_dropout: float | None = None
    family: str = "distilbert"
    activation: str = "gelu"
    eps: float = 1e-12
    segments: int = 0
    handed_on: dict = field(default_factory=dict)

    def __post_init__(self):
        self.attention_dropout = self.dropout if self.attention_dropout is None else self.attention_dropout
        for name in ("vocab_size", "max_positions", "dim", "layers", "heads", "ffn"):
            value, most = getattr(self, name), 1000 if name == "layers" else 2**24
            if type(value) is not int or not 1 <= value <= most:
                raise UserError(f"{name} = {value!r} is not a whole number from 1 to {most:,}")
        if type(self.pad) is not int or not 0 <= self.pad < self.vocab_size:
            raise UserError(f"pad = {self.pad!r} is not a token of the vocabulary")
        for name in ("dropout", "attention_dropout", "eps"):
            if type(getattr(self, name)) not in (int, float) or not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)!r} is not between 0 and 1")
        if type(self.segments) is not int or not 0 <= self.segments <= 1000:
            raise UserError(f"token types: {self.segments!r} is not a number of them")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation '{self.activation}' is not supported, only {', '.join(ACTIVATIONS)}")
        if self.dim % self.heads:
            raise UserError(f"heads = {self.heads} does not divide dim = {self.dim}")

    @property
    def offset(self):
        """Rows of a checkpoint's position table before that of the first token (RoBERTa counts from pad + 1)."""
        return self.pad + 1 if self.family in ROBERTAS else 0


def dropout(x, p, training):
    """F.dropout; on the CPU from 16 random bits an element, as its own generator takes a fifth of a step."""
    if x.device.type != "cpu" or not training or p == 0:
        return F.dropout(x, p, training)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = torch.empty_like(x, requires_grad=False)
    torch.ge(bits[: x.numel()].view(x.shape), round(p * 2**16) - 2**15, out=kept)
    return x * kept.mul_(1 / (1 - p))


def attention(q, k, v, mask, p):
    """softmax(q k^T / sqrt(d)) v with dropout p. q, k, v: (n, heads, L, d); mask: (n, 1, 1, L) bool or None."""
    if q.device.type != "cpu" or p == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # the fused kernel of the CPU has no dropout
    if mask is not None:
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    return dropout(scores.softmax(-1), p, True) @ v


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and LayerNorm after it (post-norm)."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.dropout, self.attention_dropout = c.heads, c.dropout, c.attention_dropout
        self.activation = ACTIVATIONS[c.activation]
        self.qkv = nn.Linear(c.dim, 3 * c.dim)
        self.out = nn.Linear(c.dim, c.dim)
        self.norm1 = nn.LayerNorm(c.dim, eps=c.eps)
        self.ffn1 = nn.Linear(c.dim, c.ffn)
        self.ffn2 = nn.Linear(c.ffn, c.dim)
        self.norm2 = nn.LayerNorm(c.dim, eps=c.eps)

    def forward(self, x, mask):
        n, length, dim = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        drop = self.attention_dropout if self.training else 0.0
        y = attention(q, k, v, mask, drop)
        y = self.out(y.transpose(1, 2).reshape(n, length, dim))
        x = self.norm1(x + dropout(y, self.dropout, self.training))
        y = self.ffn2(self.activation(self.ffn1(x)))
        return self.norm2(x + dropout(y, self.dropout, self.training))


class Encoder(nn.Module):
    """Token ids -> one vector per position."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.word = nn.Embedding(c.vocab_size, c.dim, padding_idx=c.pad)
        self.position = nn.Embedding(c.max_positions, c.dim)
        self.norm = nn.LayerNorm(c.dim, eps=c.eps)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.segments = torch.zeros(c.segments, c.dim)  # a file's token types less the first: never used here, kept
        self.apply(initialise)

    def forward(self, ids, mask=None):
        """ids (n, L) int64; mask (n, L) bool, True at real tokens, None if all are -> (n, L, dim)."""
        if ids.shape[1] > self.config.max_positions:
            raise ValueError(f"{ids.shape[1]} tokens; the encoder has {self.config.max_positions} positions")
        x = self.norm(self.word(ids) + self.position.weight[: ids.shape[1]])
        x = dropout(x, self.config.dropout, self.training)
        mask = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x


class KGIBert(nn.Module):
    """The encoder with the heads of the four tasks (section 3.1).

    Vocabulary head (MLM and entity prediction): dense, activation, LayerNorm, then the word embeddings as
    output matrix. Link head: six relation classes at each [HREL]. Triple head: false / true at [CLS].
    """

    def __init__(self, c):
        super().__init__()
        self.encoder = Encoder(c)
        self.activation = F.gelu if c.family in ROBERTAS else ACTIVATIONS[c.activation]
        self.transform = nn.Linear(c.dim, c.dim)
        self.transform_norm = nn.LayerNorm(c.dim, eps=c.eps)
        self.vocab_bias = nn.Parameter(torch.zeros(c.vocab_size))
        self.link = nn.Linear(c.dim, RELATION_CLASSES)
        self.triple = nn.Linear(c.dim, 2)
        for head in (self.transform, self.link, self.triple):
            initialise(head)

    def vocabulary(self, x):
        """(k, dim) -> (k, vocabulary) logits."""
        x = self.transform_norm(self.activation(self.transform(x)))
        return F.linear(x, self.encoder.word.weight, self.vocab_bias)

    def logits(self, ids, mask, position, sizes):
        """The scores of every target, a tensor (sizes[task], classes) for each task; arguments as in forward."""
        hidden = self.encoder(ids, mask).flatten(0, 1).index_select(0, position)
        words, links, triples = hidden.split([sizes[0] + sizes[1], sizes[2], sizes[3]])
        return *self.vocabulary(words).split(sizes[:2]), self.link(links), self.triple(triples)

    def forward(self, ids, mask, position, label, sizes):
        """Summed cross-entropy and number of right answers of each task, over the targets only.

        Args:
            ids, mask: as in Encoder. position (k,): index of each target in ids.ravel().
            label (k,): its class. Targets stand in the order of the tasks.
            sizes: how many belong to mlm, ep, lp, tc. Every head takes part even with none, so that
                all ranks of a distributed run have the same gradients to exchange.

        Returns: (4, 2) float32.
        """
        out = []
        for scores, gold in zip(self.logits(ids, mask, position, sizes), label.split(sizes)):
            loss = F.cross_entropy(scores.float(), gold, reduction="sum")
            out += [loss, (scores.argmax(-1) == gold).sum() if len(gold) else loss.detach()]
        return torch.stack([x.float() for x in out]).view(4, 2)


def initialise(module):
    """Normal(0, 0.02) weights, zero biases, as BERT has it; zeros for padding's word vector."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])


@torch.no_grad()
def grow(model, new, size):
    """Makes room for `size` tokens, of which the ids in `new` are ones the model has not met.

    Their word vectors are drawn around the mean of the others (spread 0.02, as at the start of a BERT), so that
    no old token loses much of its probability to them; their bias in the vocabulary head is the mean of the others.
    """
    old, c = model.encoder.word.weight, model.encoder.config
    known = torch.ones(len(old), dtype=torch.bool)
    known[[i for i in new if i < len(old)]] = False
    c.vocab_size = max(size, len(old))
    word = nn.Embedding(c.vocab_size, c.dim, padding_idx=c.pad)
    word.weight.copy_(old[known].mean(0) + 0.02 * torch.randn(c.vocab_size, c.dim))
    word.weight[: len(old)][known] = old[known]
    bias = model.vocab_bias[known].mean().repeat(c.vocab_size)
    bias[: len(old)][known] = model.vocab_bias[known]
    model.encoder.word, model.vocab_bias = word, nn.Parameter(bias)


def choose_device(name, precision):
    """(device, autocast dtype or None). bf16 from compute capability 8.0 on, fp16 before, fp32 on CPU."""
    if name not in ("auto", "cuda", "cpu"):
        raise UserError(f"device = '{name}' is not auto, cuda or cpu")
    if precision not in ("auto", "bf16", "fp16", "fp32"):
        raise UserError(f"precision = '{precision}' is not auto, bf16, fp16 or fp32")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda', but torch sees no GPU here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and precision == "fp16":
        raise UserError("precision = 'fp16' needs a GPU; on the CPU give bf16 or fp32")
    if name == "cpu":
        keep_memory()
    if name == "cuda":
        if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count():
            raise UserError(f"more ranks than GPUs: --nproc_per_node must be {torch.cuda.device_count()} at most")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if precision == "auto":
        precision = "fp32" if name == "cpu" else "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return torch.device(name), {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


def keep_memory():
    """Has glibc keep freed memory, which it would otherwise map and zero again for each large tensor of a step.

    Without this setting the training of `make demo` took 109 s instead of 30, measured on one machine.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no maps of their own for large blocks
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink
    except (OSError, AttributeError):  # another system's
        pass


def flops(c, length, words):
    """Floating-point operations of training on examples of `length` tokens (array) with `words` vocabulary targets.

    2 per weight and token forward, 4 backward, and the two products of attention; padding is none of it.
    """
    weights = c.layers * (4 * c.dim**2 + 2 * c.dim * c.ffn)
    attention = 2 * c.layers * c.dim * float((length.astype(float) ** 2).sum())
    return 6.0 * (weights * float(length.sum()) + attention + (c.dim**2 + c.dim * c.vocab_size) * float(words))


@functools.cache
def matrix_rate(device, dtype, repeat=3):
    """Floating-point operations a second of a product of two square matrices: what the machine can do at most.

    The state of the global random generator stays as it is.
    """
    n = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(n, n, device=device, dtype=dtype or torch.float32, generator=generator)
    best = math.inf
    for _ in range(repeat):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the GPU
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / max(best, 1e-9)


def peak_memory(device):
    """The most bytes taken so far: of the GPU by tensors, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory(c, parameters):
    """(bytes whatever the batch, bytes per padded token of a micro-batch) of training in mixed precision on a GPU.

    By counting what autograd keeps, not by trial. Weights, gradients, two moments and the buckets of DDP in float32 and
    a half copy: 22 a parameter. Per token and layer: the inputs of both LayerNorms in float32, queries, keys and
    values, attention's result and the inputs of the matrices in half, two bytes of dropout: 22 dim + 4 ffn. At the
    vocabulary head 12 bytes an entry (logits, log-probabilities, gradients), for one token in eight.
    """
    return 22 * parameters, c.layers * (22 * c.dim + 4 * c.ffn) + 1.5 * c.vocab_size


def must_fit(c, device):
    """Raises UserError if a model is too large to be trained here, before any of it is allocated.

    Weights, gradients and two moments of AdamW in float32 take 16 bytes a parameter, on each GPU or for each rank.
    """
    with torch.device("meta"):
        needed = 16 * sum(p.numel() for p in KGIBert(c).parameters())
    there, ranks = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda":
        there, ranks = torch.cuda.get_device_properties(device).total_memory, 1
    if needed * ranks > there:
        raise UserError(
            f"the model is too large for the memory: {needed // 16:,} parameters take {needed / 1e9:,.0f} GB to train"
            + f" on each of {ranks} ranks" * (ranks > 1)
            + f", and there are {there / 1e9:,.0f} GB; give fewer --layers or a smaller --dim and --ffn"
        )


def micro_tokens(model, device):
    """Padded tokens of a micro-batch that a GPU's memory holds with a quarter to spare, 65,536 at most; 2048 on CPU."""
    if device.type != "cuda":
        return 2048
    fixed, per_token = memory(model.encoder.config, sum(p.numel() for p in model.parameters()))
    room = 0.75 * torch.cuda.get_device_properties(device).total_memory - fixed
    return int(min(65536, max(1024, room / per_token // 1024 * 1024)))


def autocast(device, dtype):
    """Mixed precision in `dtype`; with None, nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


# ---------------------------------------------------------------- checkpoints: names


class Family(NamedTuple):
    """What a family of checkpoints calls things."""

    masked_lm: str  # the class that its config.json names
    prefix: str  # of the encoder's tensors
    layer: str
    parts: dict  # of a layer
    transform: str  # the vocabulary head: dense layer, LayerNorm, bias, and copies of word embeddings and bias
    norm: str
    bias: str
    decoder: str
    keys: dict  # of config.json


DISTILBERT_PARTS = {
    "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin", "out": "attention.out_lin",
    "norm1": "sa_layer_norm", "ffn1": "ffn.lin1", "ffn2": "ffn.lin2", "norm2": "output_layer_norm",
}  # fmt: skip
BERT_PARTS = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "out": "attention.output.dense", "norm1": "attention.output.LayerNorm",
    "ffn1": "intermediate.dense", "ffn2": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip
DISTILBERT_KEYS = {
    "vocab_size": "vocab_size", "max_positions": "max_position_embeddings", "dim": "dim", "layers": "n_layers",
    "heads": "n_heads", "ffn": "hidden_dim", "dropout": "dropout", "attention_dropout": "attention_dropout",
    "activation": "activation", "pad": "pad_token_id",
}  # fmt: skip
BERT_KEYS = {
    "vocab_size": "vocab_size", "max_positions": "max_position_embeddings", "dim": "hidden_size",
    "layers": "num_hidden_layers", "heads": "num_attention_heads", "ffn": "intermediate_size",
    "dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob", "activation": "hidden_act",
    "pad": "pad_token_id", "eps": "layer_norm_eps", "segments": "type_vocab_size",
}  # fmt: skip
DEFAULTS = {"dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu", "eps": 1e-12}  # if config.json is silent
FAMILIES = {
    "distilbert": Family(
        "DistilBertForMaskedLM", "distilbert.", "transformer.layer", DISTILBERT_PARTS,
        "vocab_transform", "vocab_layer_norm", "vocab_projector.bias", "vocab_projector", DISTILBERT_KEYS,
    ),
    "bert": Family(
        "BertForMaskedLM", "bert.", "encoder.layer", BERT_PARTS, "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm", "cls.predictions.bias", "cls.predictions.decoder", BERT_KEYS,
    ),
    "roberta": Family(
        "RobertaForMaskedLM", "roberta.", "encoder.layer", BERT_PARTS,
        "lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder", BERT_KEYS,
    ),
}  # fmt: skip
FAMILIES["camembert"] = FAMILIES["roberta"]._replace(masked_lm="CamembertForMaskedLM")
FAMILIES["xlm-roberta"] = FAMILIES["roberta"]._replace(masked_lm="XLMRobertaForMaskedLM")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first is taken where there are both
WORDS, POSITIONS, TYPES = (f"embeddings.{x}_embeddings.weight" for x in ("word", "position", "token_type"))
HEADS = {"vocabulary head": ("transform", "vocab_bias"), "link and triple heads": ("link.", "triple.")}
WRAPPERS = re.compile(r"^((bert|roberta|camembert|xlm_roberta|distilbert|transformer(?!\.layer))\.)+")
NOT_USED = re.compile(  # parts of other models on the same encoder
    r"^(pooler|cls\.seq_relationship|classifier|pre_classifier|qa_outputs)\.|^embeddings\.(position|token_type)_ids$"
)


def names(c):
    """{our parameter: its tensors in a file of this family, less the prefix}; q, k and v are one matrix here."""
    family = FAMILIES[c.family]
    modules = {
        "encoder.norm": ["embeddings.LayerNorm"], "transform": [family.transform], "transform_norm": [family.norm],
        "link": ["link_head"], "triple": ["triple_head"],
    }  # fmt: skip
    for i in range(c.layers):
        parts = {ours: f"{family.layer}.{i}.{theirs}" for ours, theirs in family.parts.items()}
        modules[f"encoder.layers.{i}.qkv"] = [parts.pop(x) for x in "qkv"]
        modules |= {f"encoder.layers.{i}.{ours}": [theirs] for ours, theirs in parts.items()}
    out = {"encoder.word.weight": [WORDS], "encoder.position.weight": [POSITIONS], "vocab_bias": [family.bias]}
    for end in (".weight", ".bias"):
        out |= {ours + end: [name + end for name in theirs] for ours, theirs in modules.items()}
    return out


def plain_name(name):
    """A tensor's name without what wrapped the model, its family's prefix, and LayerNorm's oldest names."""
    name = WRAPPERS.sub("", name.replace("_orig_mod.", "").replace("module.", ""))
    return re.sub(r"\.(gamma|beta)$", lambda m: {"gamma": ".weight", "beta": ".bias"}[m[1]], name)


# ---------------------------------------------------------------- checkpoints: files


DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_safetensors(path):
    """{name: tensor} of a .safetensors file: 8 bytes of header length, a JSON header, the tensors one after another.

    Every number of the header is checked before it is used, and the tensors must fill the file, without holes and
    without sharing bytes. Raises: UserError.
    """

    def bad(what):
        return UserError(f"{path}: damaged or not a safetensors file ({what})")

    with open(path, "rb") as f:
        rest = os.fstat(f.fileno()).st_size - 8
        length = int.from_bytes(f.read(8), "little")
        if rest < 2 or length > min(rest, 100_000_000):
            raise bad(f"a header of {length:,} bytes in a file of {rest + 8:,}")
        try:
            header = json.loads(f.read(length).decode("utf-8"))
            header.pop("__metadata__", None)
            entries = [(*e["data_offsets"], name, e["dtype"], e["shape"]) for name, e in header.items()]
            entries.sort(key=lambda e: e[:2])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise bad(f"the header cannot be read: {type(e).__name__}") from None
        out, at = {}, 0
        for entry in entries:
            if len(entry) != 5 or type(entry[3]) is not str or type(entry[4]) is not list:
                raise bad("an entry of the header is not one of a tensor")
            begin, end, name, dtype, shape = entry
            if dtype not in DTYPES:
                raise bad(f"{name}: numbers of type {dtype[:20]} are not supported")
            if len(shape) > 8 or any(type(x) is not int or not 0 <= x < 2**63 for x in (begin, end, *shape)):
                raise bad(f"{name}: a size or a place in the file is not a number that it can be")
            if begin != at or end > rest - length or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
                raise bad(f"{name}: bytes {begin:,} to {end:,} are not its place in the file")
            if begin < end:  # tensors without elements are of no use to anyone here
                out[name] = torch.frombuffer(bytearray(f.read(end - begin)), dtype=DTYPES[dtype]).view(shape)
            at = end
        if at != rest - length:
            raise bad(f"{rest - length - at:,} bytes behind the last tensor")
    return out


def write_safetensors(f, tensors):
    """The counterpart of read_safetensors, for float32 tensors on the CPU."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [at, at + 4 * t.numel()]}
        at += 4 * t.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    f.write(len(text).to_bytes(8, "little") + text)
    for t in tensors.values():
        f.write(t.contiguous().numpy())


def read_torch(path):
    """torch.load of tensors and plain values only; UserError if absent or damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except Exception as e:  # what a damaged file raises depends on where the damage is
        if "unsupported global" in str(e).lower():
            raise UserError(f"{path}: holds objects other than tensors, which could run code; refused") from None
        # Of what torch says here, the advice to load the file regardless is nothing to pass on.
        said = "not tensors alone" if isinstance(e, pickle.UnpicklingError) else (str(e).splitlines() or [""])[0]
        raise UserError(f"{path}: damaged or not a weights file ({type(e).__name__}: {said})") from None


def weight_files(folder):
    """model.safetensors, else pytorch_model.bin, either maybe in parts: a list of files. Raises: UserError."""
    for path in (Path(folder, name) for name in WEIGHTS):
        if path.is_file():
            return [path]
        index = path.with_name(path.name + ".index.json")
        parts = tokenization.read_json(index).get("weight_map")
        if parts:
            if type(parts) is not dict or not all(type(p) is str and Path(p).name == p for p in parts.values()):
                raise UserError(f"{index}: its weight_map does not name files beside it")
            return [Path(folder, name) for name in sorted(set(parts.values()))]
    raise UserError(f"{folder} holds neither {' nor '.join(WEIGHTS)}")


def read_weights(folder):
    """{plain_name: tensor} of all files of a checkpoint. Raises: UserError."""
    out = {}
    for path in weight_files(folder):
        if not path.is_file():
            raise UserError(f"{path} not found")
        tokenization.refuse_pointer(path)
        content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: not a file of named tensors")
        for name, tensor in content.items():
            if not isinstance(name, str) or not name.isprintable() or not isinstance(tensor, torch.Tensor):
                raise UserError(f"{path}: not a file of named tensors: {ascii(name)[:60]}")
            if plain_name(name) in out:
                raise UserError(f"{path}: {name} stands there twice, with and without a prefix")
            out[plain_name(name)] = tensor
    return out


# ---------------------------------------------------------------- checkpoints: in and out


def load_config(folder):
    """The Config of a checkpoint folder. Raises: UserError naming the file and what is wrong."""
    path = Path(folder, "config.json")
    if not path.is_file():
        raise UserError(f"{path} not found; is {folder} a checkpoint folder?")
    d = tokenization.read_json(path)
    try:
        family = d.get("model_type")
        if family not in FAMILIES:
            raise UserError(f"model_type '{family}' is not supported, only {', '.join(FAMILIES)}")
        for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False), ("pruned_heads", {})):
            if d.get(key) not in (None, only):
                raise UserError(f"{key} = {d[key]!r} is not supported, only {only!r}")
        values = DEFAULTS | {"pad": int(family in ROBERTAS), "segments": 0 if family == "distilbert" else 2}
        for ours, key in FAMILIES[family].keys.items():
            if d.get(key) is None and ours not in values:
                raise UserError(f"no {key} in it")
            values[ours] = values[ours] if d.get(key) is None else d[key]
        if family in ROBERTAS:
            values["max_positions"] -= values["pad"] + 1
        handed_on = {key: d[key] for key in ("bos_token_id", "eos_token_id") if key in d}
        if type(d.get("kgi_tasks")) is list:  # of a run of kgi.py: the tasks it was trained on
            handed_on["kgi_tasks"] = [task for task in ("mlm", "ep", "lp", "tc") if task in d["kgi_tasks"]]
        return Config(**values, family=family, handed_on=handed_on)
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    except TypeError as e:  # a size that is no number
        raise UserError(f"{path}: not a model configuration ({e})") from None


def usable(t):
    return t.layout == torch.strided and t.device.type == "cpu" and t.is_floating_point() and t.float().isfinite().all()


def load(folder, dropout=None, heads=True, say=print):
    """A KGIBert from a checkpoint folder of any family, with its own dropout or another.

    heads: False reads the encoder alone; the heads stay as drawn. say: what is drawn anew or not used is told here.
    Raises: UserError naming the file and all that is missing, left over or of the wrong shape.
    """
    c = load_config(folder)
    if dropout is not None:
        c.dropout = c.attention_dropout = dropout
    if c.family == "distilbert" and tokenization.read_json(Path(folder, "config.json")).get("sinusoidal_pos_embds"):
        say(f"{folder}: its fixed sinusoidal positions become trainable ones")
    weights, family, table = read_weights(folder), FAMILIES[c.family], names(c)
    for twin, name in ((f"{family.decoder}.weight", WORDS), (f"{family.decoder}.bias", family.bias)):
        if twin == name or twin not in weights:
            continue
        copy = weights.pop(twin)
        weights.setdefault(name, copy)  # some files have the copy alone
        if heads and not torch.equal(copy.float(), weights[name].float()):
            raise UserError(
                f"{folder}: {twin} differs from {name}, so the vocabulary head is not tied to the word embeddings, "
                "as it must be to be trained on; finetune.py and embed can use the encoder"
            )
    for what, beginnings in HEADS.items():
        group = {ours: theirs for ours, theirs in table.items() if ours.startswith(beginnings)}
        present = [name for (name,) in group.values() if name in weights]
        if heads and present:
            continue
        if heads:
            say(f"{folder} has no {what}: drawn anew")
        table = {ours: theirs for ours, theirs in table.items() if ours not in group}
        weights = {name: tensor for name, tensor in weights.items() if name not in present}

    with torch.device("meta"):  # shapes alone, so that an absurd config.json takes no memory
        state, shapes = KGIBert(c).state_dict(), {}
    for ours, theirs in table.items():
        rows, *columns = state[ours].shape
        rows = rows + c.offset if theirs == [POSITIONS] else rows // len(theirs)
        shapes |= {name: (rows, *columns) for name in theirs}
    if c.segments:
        shapes[TYPES] = (c.segments, c.dim)
    unused = sorted(name for name in weights if name not in shapes and NOT_USED.match(name))
    if unused:
        say(f"{folder}: not used: {', '.join(unused)}")
    faults = {
        "missing": [name for name in shapes if name not in weights],
        "left over": [name for name in weights if name not in shapes and name not in unused],
        "wrong shape": [
            f"{name} {tuple(weights[name].shape)} where config.json says {shape}"
            for name, shape in shapes.items()
            if name in weights and weights[name].shape != shape
        ],
        "not plain finite numbers": [name for name in shapes if name in weights and not usable(weights[name])],
    }
    if any(faults.values()):
        told = [f"{what}: {', '.join(f[:20])}{' ...' * (len(f) > 20)} ({len(f)})" for what, f in faults.items() if f]
        raise UserError(f"{folder}: the weights are not those of its config.json. {'; '.join(told)}")

    model = KGIBert(c)
    state = model.state_dict()
    types = weights[TYPES].float() if c.segments else torch.zeros(1, c.dim)
    weights[POSITIONS] = weights[POSITIONS][c.offset :].float() + types[0]
    for ours, theirs in table.items():
        state[ours] = torch.cat([weights[name].float() for name in theirs])
    model.load_state_dict(state)
    if c.segments:
        model.encoder.segments = types - types[0]
    return model


def save(model, folder):
    """Writes config.json and model.safetensors in the layout of the model's family, each beside and then renamed.

    Token type 0 and the positions stay folded together, in the positions, and the rows that RoBERTa has before
    its first position are zeros: what is computed is the same.
    """
    folder, c = Path(folder), model.encoder.config
    folder.mkdir(parents=True, exist_ok=True)
    family, state, weights = FAMILIES[c.family], model.state_dict(), {}
    for ours, theirs in names(c).items():
        prefix = family.prefix if ours.startswith("encoder.") else ""
        for name, part in zip(theirs, state[ours].cpu().chunk(len(theirs))):
            weights[prefix + name] = part
    if family.decoder + ".bias" != family.bias:  # some versions of other libraries take it from the copy alone
        weights[family.decoder + ".bias"] = weights[family.bias]
    weights[family.prefix + POSITIONS] = F.pad(weights[family.prefix + POSITIONS], (0, 0, c.offset, 0))
    config = {"architectures": [family.masked_lm], "model_type": c.family, "initializer_range": 0.02}
    config |= {theirs: getattr(c, ours) for ours, theirs in family.keys.items()}
    config["max_position_embeddings"] += c.offset
    if c.segments:
        weights[family.prefix + TYPES] = model.encoder.segments
        config["position_embedding_type"] = "absolute"
    else:
        config["sinusoidal_pos_embds"] = False
    config |= c.handed_on
    write_atomic(folder / "model.safetensors", lambda f: write_safetensors(f, weights))
    write_atomic(folder / "config.json", lambda f: f.write((json.dumps(config, indent=1) + "\n").encode()))


# ---------------------------------------------------------------- embeddings


@torch.inference_mode()
def embed(encoder, special, ids, length, pooling, room, precision):
    """Vectors of texts: yields arrays (k, dim) float32, together one row per text in their order.

    ids, length: tokens as tokenization.encode gives them, of which `room` are kept per text.
    pooling: "cls" is the vector at [CLS], "mean" the mean over all tokens, [CLS] and [SEP] among them.
    precision: the dtype of autocast or None.
    """
    device = encoder.word.weight.device
    budget = 65536 if device.type == "cuda" else 4096  # tokens computed at a time
    start, kept = np.cumsum(length) - length, np.minimum(length, room)
    for chunk in np.array_split(np.arange(len(length)), -(-len(length) // 16384)):
        out = np.empty((len(chunk), encoder.config.dim), np.float32)
        order = np.argsort(-kept[chunk], kind="stable")  # the longest first: memory does not grow later
        while len(order):
            rows, order = np.split(order, [max(1, budget // (int(kept[chunk[order[0]]]) + 2))])
            bodies = [ids[start[i] : start[i] + kept[i]].tolist() for i in chunk[rows]]
            x = [torch.tensor([special["cls"], *body, special["sep"]]) for body in bodies]
            n = torch.tensor([len(t) for t in x])
            x = nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=special["pad"]).to(device)
            mask = (torch.arange(x.shape[1]) < n[:, None]).to(device)
            with autocast(device, precision):
                hidden = encoder(x, mask).float()
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[rows] = (hidden[:, 0] if pooling == "cls" else mean).cpu().numpy()
        yield out


def nearest_synonym(vectors, term, concept):
    """How near the other terms of a concept are, by cosine: the rank of the first of them among all other terms.

    Args:
        vectors: (N, dim) float tensor, one per term. term, concept: (P,) int tensors, the pairs of a term and a
            concept that it names; a term may name several.

    Returns: (queries, ranks): the terms of concepts that have another one, and the rank (1 is the nearest) of the
        nearest other term with a concept in common; among terms that are equally near the mean of their ranks.
    """
    vectors = F.normalize(vectors, dim=1)
    n, order = len(vectors), torch.argsort(concept, stable=True)
    _, which, sizes = torch.unique(concept[order], return_inverse=True, return_counts=True)
    members, size = term[order], sizes[which]
    first = (torch.cumsum(sizes, 0) - sizes)[which]
    # All ordered pairs of terms within a concept.
    a = members.repeat_interleave(size)
    b = members[
        first.repeat_interleave(size) + torch.arange(len(a)) - (torch.cumsum(size, 0) - size).repeat_interleave(size)
    ]
    pairs = torch.unique((a * n + b)[a != b])
    queries, count = torch.unique(pairs // n, return_counts=True)
    ranks, end = [], torch.cumsum(count, 0)
    for i in range(0, len(queries), 256):
        block = queries[i : i + 256]
        similarity = vectors[block.to(vectors.device)] @ vectors.T
        similarity[torch.arange(len(block)), block] = -2.0  # itself
        k = count[i : i + 256]
        others = pairs[end[i] - count[i] : end[i + len(block) - 1]] % n
        row = torch.arange(len(block)).repeat_interleave(k)
        best = torch.full((len(block),), -2.0).scatter_reduce(0, row, similarity.cpu()[row, others], "amax")
        best = best.to(similarity.device)[:, None]
        above, level = ((x.sum(1).cpu()) for x in (similarity > best, similarity == best))
        ranks.append(1 + above + (level - 1) / 2)
    return queries, torch.cat([*ranks, torch.zeros(0)])


def own_pooling(folder):
    """What a folder of sentence-transformers says of itself: (pooling, longest input in tokens), "" and 0 if nothing.

    pooling: cls or mean, or what else its file names. Raises: UserError.
    """
    pooling, limits = Path(folder, "1_Pooling", "config.json"), Path(folder, "sentence_bert_config.json")
    d, most = tokenization.read_json(pooling), tokenization.read_json(limits).get("max_seq_length") or 0
    if type(most) is not int or most < 0:
        raise UserError(f"{limits}: max_seq_length = {most!r} is not a number of tokens")
    ways = [key.removeprefix("pooling_mode_") for key in d if key.startswith("pooling_mode_") and d[key]]
    ways = [str(d["pooling_mode"])] if d.get("pooling_mode") else ways
    return " and ".join({"cls_token": "cls", "mean_tokens": "mean"}.get(way, way) for way in ways), most


def write_all(f, content):
    """Writes bytes to a raw file, which may take fewer at a time than it is given."""
    content = memoryview(content).cast("B")
    try:
        while len(content):
            taken = f.write(content)
            if not taken:
                raise OSError(errno.EAGAIN, "it takes no more")
            content = content[taken:]
    except BrokenPipeError:
        raise
    except OSError as e:
        raise UserError(f"the vectors cannot be written to standard output: {e.strerror}") from None


def main(argv):
    usage = "python model.py embed CHECKPOINT [--pooling cls|mean] < terms.txt > vectors.npy"
    s, (command, folder) = configs.load("embed", argv, usage, positionals=2)
    if command != "embed":
        raise UserError(f"unknown command '{command}'; usage: {usage}")
    if s.pooling not in ("", "cls", "mean"):
        raise UserError(f"pooling = '{s.pooling}' is not cls or mean")
    if not sys.stdin or not sys.stdout:
        raise UserError(f"standard {'output' if sys.stdin else 'input'} is closed; usage: {usage}")
    if sys.stdout.isatty():
        raise UserError(f"the vectors are a NumPy array, not for a terminal; usage: {usage}")
    say = functools.partial(print, file=sys.stderr)
    own, limit = own_pooling(folder)
    if not s.pooling and own not in ("", "cls", "mean"):
        raise UserError(f"{folder}: its pooling, {own}, is not supported; give --pooling cls or --pooling mean")
    taken = [f"--pooling {own}"] * bool(own and not s.pooling) + [f"--max_len {limit}"] * bool(limit and not s.max_len)
    if taken:
        say(f"{folder}: {' '.join(taken)}, as its files of sentence-transformers say")
    pooling, max_len = s.pooling or own or "cls", s.max_len or limit
    device, dtype = choose_device(s.device, s.precision)
    encoder = load(folder, heads=False, say=say).encoder.to(device).eval()
    tokenizer = tokenization.load(folder, encoder.config.vocab_size)
    room = min(max_len or encoder.config.max_positions, encoder.config.max_positions) - 2
    if room < 1:
        raise UserError(f"max_len = {max_len} leaves no room for a token")
    lines = sys.stdin.buffer.read()
    if not lines:
        raise UserError(f"nothing on standard input; usage: {usage}")
    texts = []
    for i, line in enumerate(lines.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n"), 1):
        try:
            texts.append(" " + line.decode("utf-8").strip())
        except UnicodeDecodeError:
            raise UserError(f"standard input, line {i}: not UTF-8") from None
    ids, length = tokenization.encode(tokenizer, texts, "tokens")
    if (length > room).any():
        say(f"{(length > room).sum():,} lines of more than {room} tokens were cut")
    out = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)  # nothing waits in a buffer when the disk is full
    header, shape = io.BytesIO(), (len(texts), encoder.config.dim)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    write_all(out, header.getvalue())
    special = tokenization.special_ids(tokenizer)
    with configs.progress("vectors", len(texts)) as bar:
        for block in embed(encoder, special, ids, length, pooling, room, dtype):
            write_all(out, block)
            bar.update(len(block))


if __name__ == "__main__":
    configs.run(main)
