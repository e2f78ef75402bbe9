"""The encoder, the heads of the four tasks, and checkpoints in and out.

A post-LayerNorm BERT as DistilBERT has it (paper, section 4.1): word and position embeddings,
LayerNorm, dropout; then layers of attention and feed-forward, each followed by add & norm.
v1 of the paper is 12 layers with 12 heads, v2 (appendix C) 8 with 8; any other size works.

    model = KGIBert(Config(vocab_size=30_522, max_positions=256))
    save(model, "runs/x", tokenizer);  model = load("runs/x")
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from configs import UserError, write_atomic

RELATION_CLASSES = 6  # the seven relations of section 3.1 without synonymy


@dataclass
class Config:
    """Sizes of an encoder. heads must divide dim; max_positions is the longest sequence."""

    vocab_size: int
    max_positions: int
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    dropout: float = 0.1
    pad: int = 0

    def __post_init__(self):
        for name in ("vocab_size", "max_positions", "dim", "layers", "heads", "ffn"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)!r} is not a whole number above 0")
        if type(self.pad) is not int or not 0 <= self.pad < self.vocab_size:
            raise UserError(f"pad = {self.pad!r} is not a token of the vocabulary")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout = {self.dropout!r} is not between 0 and 1")
        if self.dim % self.heads:
            raise UserError(f"heads = {self.heads} does not divide dim = {self.dim}")


class Layer(nn.Module):
    """Attention and feed-forward, each with dropout, residual and LayerNorm after it (post-norm)."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.dropout = c.heads, c.dropout
        self.qkv = nn.Linear(c.dim, 3 * c.dim)
        self.out = nn.Linear(c.dim, c.dim)
        self.norm1 = nn.LayerNorm(c.dim, eps=1e-12)
        self.ffn1 = nn.Linear(c.dim, c.ffn)
        self.ffn2 = nn.Linear(c.ffn, c.dim)
        self.norm2 = nn.LayerNorm(c.dim, eps=1e-12)

    def forward(self, x, mask):
        n, length, dim = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        y = self.out(y.transpose(1, 2).reshape(n, length, dim))
        x = self.norm1(x + F.dropout(y, drop))
        y = self.ffn2(F.gelu(self.ffn1(x)))
        return self.norm2(x + F.dropout(y, drop))


class Encoder(nn.Module):
    """Token ids -> one vector per position."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.word = nn.Embedding(c.vocab_size, c.dim, padding_idx=c.pad)
        self.position = nn.Embedding(c.max_positions, c.dim)
        self.norm = nn.LayerNorm(c.dim, eps=1e-12)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.apply(initialise)

    def forward(self, ids, mask=None):
        """ids (n, L) int64; mask (n, L) bool, True at real tokens, None if all are -> (n, L, dim)."""
        if ids.shape[1] > self.config.max_positions:
            raise ValueError(f"{ids.shape[1]} tokens; the encoder has {self.config.max_positions} positions")
        x = self.norm(self.word(ids) + self.position.weight[: ids.shape[1]])
        x = F.dropout(x, self.config.dropout, self.training)
        mask = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x


class KGIBert(nn.Module):
    """The encoder with the heads of the four tasks (section 3.1).

    Vocabulary head (MLM and entity prediction): dense, GELU, LayerNorm, then the word embeddings as
    output matrix. Link head: six relation classes at each [HREL]. Triple head: false / true at [CLS].
    """

    def __init__(self, c):
        super().__init__()
        self.encoder = Encoder(c)
        self.transform = nn.Linear(c.dim, c.dim)
        self.transform_norm = nn.LayerNorm(c.dim, eps=1e-12)
        self.vocab_bias = nn.Parameter(torch.zeros(c.vocab_size))
        self.link = nn.Linear(c.dim, RELATION_CLASSES)
        self.triple = nn.Linear(c.dim, 2)
        for head in (self.transform, self.link, self.triple):
            initialise(head)

    def vocabulary(self, x):
        """(k, dim) -> (k, vocabulary) logits."""
        x = self.transform_norm(F.gelu(self.transform(x)))
        return F.linear(x, self.encoder.word.weight, self.vocab_bias)

    def forward(self, ids, mask, position, label, sizes):
        """Summed cross-entropy and number of right answers of each task, over the targets only.

        Args:
            ids, mask: as in Encoder. position (k,): index of each target in ids.ravel().
            label (k,): its class. Targets stand in the order of the tasks.
            sizes: how many belong to mlm, ep, lp, tc. Every head takes part even with none, so that
                all ranks of a distributed run have the same gradients to exchange.

        Returns: (4, 2) float32.
        """
        hidden = self.encoder(ids, mask).flatten(0, 1).index_select(0, position)
        words, links, triples = hidden.split([sizes[0] + sizes[1], sizes[2], sizes[3]])
        logits = (*self.vocabulary(words).split(sizes[:2]), self.link(links), self.triple(triples))
        out = []
        for scores, gold in zip(logits, label.split(sizes)):
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
    if name == "cuda":
        if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count():
            raise UserError(f"more ranks than GPUs: --nproc_per_node must be {torch.cuda.device_count()} at most")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if precision == "auto":
        precision = "fp32" if name == "cpu" else "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    return torch.device(name), {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]


# ---------------------------------------------------------------- checkpoints


def layer_names(i):
    """Our parameter prefixes of layer i -> those of DistilBERT, whose layout our checkpoints have."""
    theirs = f"distilbert.transformer.layer.{i}."
    return {
        f"encoder.layers.{i}.{ours}.": theirs + name + "."
        for ours, name in (
            ("out", "attention.out_lin"), ("norm1", "sa_layer_norm"), ("ffn1", "ffn.lin1"),
            ("ffn2", "ffn.lin2"), ("norm2", "output_layer_norm"),
        )
    }  # fmt: skip


def renamed(c):
    """[(our name, [names on disk])] for all parameters; q, k and v are one matrix here, three there."""
    prefixes = {
        "encoder.norm.": "distilbert.embeddings.LayerNorm.", "transform.": "vocab_transform.",
        "transform_norm.": "vocab_layer_norm.", "link.": "link_head.", "triple.": "triple_head.",
    }  # fmt: skip
    for i in range(c.layers):
        prefixes |= layer_names(i)
    names = [(a + end, [b + end]) for a, b in prefixes.items() for end in ("weight", "bias")]
    for i in range(c.layers):
        for end in ("weight", "bias"):
            three = [f"distilbert.transformer.layer.{i}.attention.{x}_lin.{end}" for x in "qkv"]
            names.append((f"encoder.layers.{i}.qkv.{end}", three))
    names.append(("encoder.word.weight", ["distilbert.embeddings.word_embeddings.weight"]))
    names.append(("encoder.position.weight", ["distilbert.embeddings.position_embeddings.weight"]))
    return names + [("vocab_bias", ["vocab_projector.bias"])]


def save(model, folder, tokenizer):
    """Writes config.json, pytorch_model.bin and tokenizer.json in DistilBERT's layout.

    tokenizer: the bytes of a tokenizer.json. Each file is written beside and renamed.
    """
    folder, c = Path(folder), model.encoder.config
    folder.mkdir(parents=True, exist_ok=True)
    state, weights = model.state_dict(), {}
    for ours, theirs in renamed(c):
        for name, part in zip(theirs, state[ours].cpu().chunk(len(theirs))):
            weights[name] = part.clone()
    config = {
        "architectures": ["DistilBertForMaskedLM"], "model_type": "distilbert", "activation": "gelu",
        "vocab_size": c.vocab_size, "max_position_embeddings": c.max_positions, "dim": c.dim,
        "n_layers": c.layers, "n_heads": c.heads, "hidden_dim": c.ffn, "dropout": c.dropout,
        "attention_dropout": c.dropout, "pad_token_id": c.pad, "sinusoidal_pos_embds": False,
    }  # fmt: skip
    write_atomic(folder / "pytorch_model.bin", lambda f: torch.save(weights, f))
    write_atomic(folder / "tokenizer.json", lambda f: f.write(tokenizer))
    write_atomic(folder / "config.json", lambda f: f.write((json.dumps(config, indent=1) + "\n").encode()))


def load_config(folder):
    """The Config of a checkpoint folder. Raises: UserError naming the file and what is wrong."""
    path = Path(folder, "config.json")
    try:
        d = json.loads(path.read_text(encoding="utf-8"))
        if d["model_type"] != "distilbert":
            raise UserError(f"model type '{d['model_type']}' is not supported, only distilbert")
        return Config(
            d["vocab_size"], d["max_position_embeddings"], d["dim"], d["n_layers"], d["n_heads"],
            d["hidden_dim"], d["dropout"], d["pad_token_id"],
        )  # fmt: skip
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}; is {folder} a checkpoint folder?") from None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not a model configuration ({e!r})") from None


def load(folder, dropout=None):
    """A KGIBert from a folder written by save, with its own dropout or another.

    Raises: UserError naming the file and what is wrong.
    """
    c = load_config(folder)
    c.dropout = c.dropout if dropout is None else dropout
    path, model = Path(folder, "pytorch_model.bin"), KGIBert(c)
    weights, state = read_torch(path), model.state_dict()
    for ours, theirs in renamed(c):
        missing = [name for name in theirs if name not in weights]
        if missing:
            raise UserError(f"{path}: no weight {missing[0]}; the file is not of this config.json")
        tensor = torch.cat([weights[name] for name in theirs]).float()
        if tensor.shape != state[ours].shape:
            want = tuple(state[ours].shape)
            raise UserError(f"{path}: {theirs[0]} has shape {tuple(tensor.shape)} where config.json says {want}")
        state[ours] = tensor
    model.load_state_dict(state)
    return model


def read_torch(path):
    """torch.load of tensors and plain values only; UserError if absent or damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except Exception as e:  # what a damaged file raises depends on where the damage is
        said = (str(e).splitlines() or [""])[0]
        raise UserError(f"{path}: damaged or not a weights file ({type(e).__name__}: {said})") from None
