"""Vectors of text: those of lines as an array of NumPy, and those of terms for the other programs.

    python -m beyond.embed runs/kgi-fr terms.txt > vectors.npy                   one vector a line, at [CLS]
    python -m beyond.embed SapBERT-from-PubMedBERT --pooling mean < terms.txt > vectors.npy

Pooling and the longest text are those that a checkpoint's files of sentence-transformers name, if it has any.
"""

from configs import DEVICES, POOLINGS, PRECISIONS, UserError, argument, setting  # isort: split

import functools
import sys
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import model as models
from support import tokenizers
from support.arrays import ceil_div, npy_header
from support.files import progress, write_all
from support.hardware import autocast, choose_device
from support.pooling import read_pooling
from support.programs import run_command, standard_output
from support.texts import STANDARD_INPUT, read_lines

POOLING_HELP = "the vector at [CLS], or the mean over all tokens; default: the checkpoint's own, else cls"
EXAMPLE = "python -m beyond.embed CHECKPOINT < terms.txt"


@dataclass
class Embed:
    """Turn lines of text into vectors: python -m beyond.embed CHECKPOINT terms.txt > vectors.npy"""

    checkpoint: str = argument("CHECKPOINT", "run folder, or folder of another checkpoint")
    terms: str = argument("TERMS", "a file with a text a line; default: standard input", optional=True)
    pooling: str = setting("", POOLING_HELP, choices=POOLINGS)
    max_len: int = setting(0, "longer lines are cut to so many tokens; 0: the checkpoint's limit, else its positions")
    precision: str = setting("auto", "number format of the matrix products", choices=PRECISIONS)
    device: str = setting("auto", "where to run", choices=DEVICES)


def embed_lines(s):
    """Lines of UTF-8 text -> a NumPy array (lines, dim) of float32 on standard output."""
    if not sys.stdout or sys.stdout.isatty():
        raise UserError("the vectors are a NumPy array, not for a terminal; add > vectors.npy")
    lines = [line.strip() for line in read_lines(s.terms, "one term", EXAMPLE)]
    if not lines:
        raise UserError(f"{s.terms or STANDARD_INPUT} is empty; give one term a line: {EXAMPLE}")
    log = functools.partial(print, file=sys.stderr)
    device, dtype = choose_device(s.device, s.precision)
    encoder, tokenizer = models.open_encoder(s.checkpoint, device, log)
    pooling, max_tokens, normalize = choose_pooling(s, encoder.config, log, s.max_len)
    ids, length = tokenizers.encode_names(tokenizer, lines, "tokens")
    if (length > max_tokens).any():
        log(f"{(length > max_tokens).sum():,} lines of more than {max_tokens} tokens were cut")
    out = standard_output()
    write_all(out, npy_header((len(length), encoder.config.dim)))
    for block in embed(encoder, tokenizers.special_ids(tokenizer), ids, length, [pooling], max_tokens, dtype):
        write_all(out, F.normalize(torch.from_numpy(block), dim=-1).numpy() if normalize else block)


def choose_pooling(s, c, log, max_len=0, default="cls"):
    """(pooling, tokens of the longest text, whether vectors get length 1) for settings `s` with checkpoint and pooling.

    Settings that are not given come from the files of sentence-transformers. Without these the pooling is `default`. If
    a pooling is given, the modules of the folder are left out. c: the checkpoint's Config.
    """
    own = read_pooling(s.checkpoint)
    if own.fault and not s.pooling:
        raise UserError(f"{s.checkpoint}: {own.fault}; give --pooling cls or --pooling mean")
    normalize = own.normalize and not s.pooling
    taken = [f"--pooling {own.mode}"] if own.mode not in ("", default) and not s.pooling else []
    taken += [f"--max_len {own.max_len}"] if 0 < own.max_len < c.max_positions and not max_len else []
    taken += ["length 1"] if normalize else []
    if taken:
        log(f"{s.checkpoint}: {' '.join(taken)}, as its files of sentence-transformers say")
    return s.pooling or own.mode or default, longest_text(own, c, max_len), normalize


def longest_text(own, c, max_len=0):
    """Tokens of the longest text between [CLS] and [SEP]. Args: own: a pooling.Pooling. max_len: if another one."""
    limit = min(max_len or own.max_len or c.max_positions, c.max_positions)
    if limit < 3:
        raise UserError(f"max_len = {limit} leaves no room for a token")
    return limit - 2


@torch.inference_mode()
def embed(encoder, special, ids, length, poolings, max_tokens, dtype):
    """Vectors of texts: yields arrays (k, poolings, dim) float32, together one row a text in their order.

    Args:
        ids, length: tokens as tokenizers.encode gives them, of which max_tokens are kept a text.
        special: tokenizers.special_ids. poolings: some of configs.POOLINGS: "cls" is the vector at [CLS], "mean" the
            mean over all tokens, [CLS] and [SEP] among them. dtype: of autocast, or None.
    """
    device = encoder.word.weight.device
    tokens_at_once = 65536 if device.type == "cuda" else 4096
    offset, kept = np.cumsum(length) - length, np.minimum(length, max_tokens)
    chunks = np.array_split(np.arange(len(length)), ceil_div(len(length), 16384))
    for chunk in progress("vectors", chunks) if len(chunks) > 1 else chunks:
        out = np.empty((len(chunk), len(poolings), encoder.config.dim), np.float32)
        order = np.argsort(-kept[chunk], kind="stable")  # the longest first: memory does not grow later
        while len(order):
            longest = int(kept[chunk[order[0]]]) + 2
            rows, order = np.split(order, [max(1, tokens_at_once // longest)])
            texts = [ids[offset[i] : offset[i] + kept[i]].tolist() for i in chunk[rows]]
            x = [torch.tensor([special["cls"], *text, special["sep"]]) for text in texts]
            n_tokens = torch.tensor([len(t) for t in x])
            x = nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=special["pad"]).to(device)
            mask = (torch.arange(x.shape[1]) < n_tokens[:, None]).to(device)
            with autocast(device, dtype):
                hidden = encoder(x, mask).float()
            mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            vectors = [hidden[:, 0] if pooling == "cls" else mean for pooling in poolings]
            out[rows] = torch.stack(vectors, dim=1).cpu().numpy()
        yield out


def embed_terms(encoder, tokenizer, terms, poolings, dtype, max_tokens=None):
    """{pooling: (terms, dim) float32 tensor} of a list of strings, on the encoder's device. Arguments as in embed."""
    ids, length = tokenizers.encode_names(tokenizer, terms, "terms")
    max_tokens = encoder.config.max_positions - 2 if max_tokens is None else max_tokens
    blocks = list(embed(encoder, tokenizers.special_ids(tokenizer), ids, length, poolings, max_tokens, dtype))
    vectors = torch.from_numpy(np.concatenate(blocks)).to(encoder.word.weight.device)
    return dict(zip(poolings, vectors.unbind(1)))


COMMANDS = {"embed": (embed_lines, Embed)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="embed")
