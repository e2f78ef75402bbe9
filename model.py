"""The encoder and the heads of the tasks.

"For training from scratch, we use the DistilBERT model configuration ... with 12 encoder layers and 12 attention heads"
(section 4.1); appendix C has 8 and 8. The same classes also load the checkpoints that the paper extends or compares
with. These belong to the families DistilBERT, BERT, RoBERTa, CamemBERT and XLM-RoBERTa. The encoder of another family,
ModernBERT, is in support/modernbert.py.

    model = KGIBert(Config(vocab_size=30_522, max_positions=256));  model.save("runs/x")
    model = load("DrBERT-4GB")
"""

from configs import UserError  # isort: split

import math
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from support import checkpoints, modernbert, tokenizers
from support.kernels import ACTIVATIONS, attention, attention_mask, dropout, init_weights
from support.relations import PAPER_RELATIONS


@dataclass
class Config:
    """Sizes of an encoder. heads must divide dim; max_positions is the longest sequence in tokens.

    The fields after pad_token_id come from the config.json of a checkpoint: attention_dropout (as dropout if not
    given), the family (a key of checkpoints.FAMILIES), its activation, and the eps of every LayerNorm (by default that
    of the family). type_vocab_size says how many token types its file has, and relation_classes which relations its
    relation head tells apart. extra_config holds keys that are written back as they are, among them those that only its
    family has (modernbert.SETTINGS).
    """

    vocab_size: int
    max_positions: int
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    dropout: float = 0.1
    pad_token_id: int = 0
    attention_dropout: float | None = None
    family: str = "distilbert"
    activation: str = "gelu"
    eps: float | None = None
    type_vocab_size: int = 0
    relation_classes: list[str] = field(default_factory=lambda: [*PAPER_RELATIONS[:-1]])  # "one of six relation types"
    extra_config: dict = field(default_factory=dict)

    def __post_init__(self):
        family = checkpoints.FAMILIES[self.family]
        self.extra_config = family.settings | self.extra_config
        self.eps = family.defaults["eps"] if self.eps is None else self.eps
        self.attention_dropout = self.dropout if self.attention_dropout is None else self.attention_dropout
        for name in ("vocab_size", "max_positions", "dim", "layers", "heads", "ffn"):
            value, most = getattr(self, name), 1000 if name == "layers" else 2**24
            if type(value) is not int or not 1 <= value <= most:
                raise UserError(f"{name} = {value!r} is not a whole number from 1 to {most:,}")
        if type(self.pad_token_id) is not int or not 0 <= self.pad_token_id < self.vocab_size:
            raise UserError(f"pad_token_id = {self.pad_token_id!r} is not a token of the vocabulary")
        for name in ("dropout", "attention_dropout", "eps"):
            if type(getattr(self, name)) not in (int, float) or not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)!r} is not between 0 and 1")
        if type(self.type_vocab_size) is not int or not 0 <= self.type_vocab_size <= 1000:
            raise UserError(f"type_vocab_size = {self.type_vocab_size!r} is not a number of token types")
        if type(self.activation) is not str or self.activation not in ACTIVATIONS:
            raise UserError(f"activation '{self.activation}' is not supported, only {', '.join(ACTIVATIONS)}")
        if self.dim % self.heads:
            raise UserError(f"heads = {self.heads} does not divide dim = {self.dim}")
        if self.family == "modernbert" and self.dim // self.heads % 2:
            raise UserError(f"dim / heads = {self.dim // self.heads} is odd, and rotary positions turn pairs")

    @property
    def position_offset(self):
        """Rows of a checkpoint's position table before that of the first token (RoBERTa's begin after padding)."""
        return self.pad_token_id + 1 if checkpoints.FAMILIES[self.family].padded_positions else 0


class EncoderLayer(nn.Module):
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
        """x (n, L, dim); mask as attention takes it -> (n, L, dim)."""
        n, length, dim = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        # In each head: softmax(q k^T / sqrt(d)) v, d = dim / heads, with -inf added where the mask hides a token.
        y = attention(q, k, v, mask, self.attention_dropout if self.training else 0.0)
        y = self.out(y.transpose(1, 2).reshape(n, length, dim))
        x = self.norm1(x + dropout(y, self.dropout, self.training))
        y = self.ffn2(self.activation(self.ffn1(x)))
        return self.norm2(x + dropout(y, self.dropout, self.training))


class Encoder(nn.Module):
    """Token ids -> one vector a position: embeddings, LayerNorm, dropout, then the layers."""

    init_head = staticmethod(init_weights)  # first weights of the heads on it: ModernBERT's are others

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.word = nn.Embedding(c.vocab_size, c.dim, padding_idx=c.pad_token_id)
        self.position = nn.Embedding(c.max_positions, c.dim)
        self.norm = nn.LayerNorm(c.dim, eps=c.eps)
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c.layers))
        # The token types of a loaded file, less the first (which is added to the positions): only written back.
        self.token_types = torch.zeros(c.type_vocab_size, c.dim)
        self.apply(init_weights)

    def forward(self, ids, mask=None, position=None):
        """Token ids -> (n, L, dim).

        Args:
            ids: (n, L) int64. mask: (n, L) bool, True at real tokens, None if all are; or, of packed rows, int: tokens
                with the same number belong together and see each other alone.
            position: (n, L) int64 of each token in its example, of packed rows; None: from the left.
        """
        if position is None and ids.shape[1] > self.config.max_positions:
            raise ValueError(f"{ids.shape[1]} tokens; the encoder has {self.config.max_positions} positions")
        position_vectors = self.position.weight[: ids.shape[1]] if position is None else self.position(position)
        x = self.norm(self.word(ids) + position_vectors)
        x = dropout(x, self.config.dropout, self.training)
        mask = None if mask is None else attention_mask(mask, x)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def new_encoder(c):
    """The encoder of a Config's family, randomly initialised."""
    return (modernbert.Encoder if c.family == "modernbert" else Encoder)(c)


class KGIBert(nn.Module):
    """The encoder with the heads of the four tasks (section 3.1).

    mlm_head (MLM and entity prediction): dense, activation, LayerNorm, then the word embeddings as output matrix.
    relation_head (link prediction): the relation at each [HREL]. Section 3.1 also allows the vocabulary head over the
    six relation tokens; its output weights would be their embeddings. triple_head: false or true at [CLS].
    """

    def __init__(self, c):
        super().__init__()
        own, activation = c.extra_config, checkpoints.FAMILIES[c.family].mlm_activation or c.activation
        self.encoder = new_encoder(c)
        self.mlm_activation = ACTIVATIONS[own.get("classifier_activation", activation)]
        self.mlm_dense = nn.Linear(c.dim, c.dim, bias=own.get("classifier_bias", True))
        self.mlm_norm = nn.LayerNorm(c.dim, eps=c.eps, bias=own.get("norm_bias", True))
        self.mlm_bias = nn.Parameter(torch.zeros(c.vocab_size))
        self.relation_head = nn.Linear(c.dim, len(c.relation_classes))
        self.triple_head = nn.Linear(c.dim, 2)
        for head in (self.mlm_dense, self.relation_head, self.triple_head):
            self.encoder.init_head(head)

    def mlm_head(self, x):
        """(k, dim) -> (k, vocabulary) logits."""
        x = self.mlm_norm(self.mlm_activation(self.mlm_dense(x)))
        return F.linear(x, self.encoder.word.weight, self.mlm_bias)

    def save(self, folder):
        """Writes config.json and model.safetensors in the layout of the family, which other libraries read."""
        checkpoints.write(folder, self.encoder.config, self.state_dict(), self.encoder.token_types)

    def logits(self, batch):
        """The scores of every target of a MicroBatch: a tensor (targets, classes) for each task."""
        hidden = self.encoder(batch.ids, batch.mask, batch.position).flatten(0, 1).index_select(0, batch.target_index)
        scores, offset = [], 0
        for head, tasks in groupby(zip(batch.heads, batch.n_targets), key=itemgetter(0)):
            n_targets = [n for _, n in tasks]  # of each task that shares this head: MLM and EP do
            head_input = hidden[offset : offset + sum(n_targets)]
            scores += getattr(self, head)(head_input).split(n_targets)
            offset += sum(n_targets)
        return scores

    def forward(self, batch):
        """Summed cross-entropy and number of correct predictions of each task, over the targets of a MicroBatch only.

        "Each training example is augmented with an indicator label that tells the model which loss function to apply":
        here the targets are sorted by task, and batch.heads names the head of each. Every head takes part even without
        targets, so that all ranks of a distributed run have the same gradients to exchange.

        Returns: (tasks, 2) float32.
        """
        sums = []
        for scores, label in zip(self.logits(batch), batch.label.split(batch.n_targets)):
            scores = scores.float()
            loss = F.cross_entropy(scores, label, reduction="sum")
            n_correct = (scores.argmax(-1) == label).sum()
            sums.append(torch.stack([loss, n_correct.float()]))
        return torch.stack(sums)


@torch.no_grad()
def resize_token_embeddings(model, new_ids, vocab_size):
    """Makes room for vocab_size tokens, of which those in new_ids are new to the model.

    New word vectors are initialised around the mean of the others (spread 0.02, as at the start of a BERT), so that no
    old token loses much of its probability to them. Their bias in the MLM head is the mean of the others.
    """
    old, c = model.encoder.word.weight, model.encoder.config
    known = torch.ones(len(old), dtype=torch.bool)
    known[[i for i in new_ids if i < len(old)]] = False
    c.vocab_size = max(vocab_size, len(old))
    word = nn.Embedding(c.vocab_size, c.dim, padding_idx=c.pad_token_id)
    word.weight.copy_(old[known].mean(0) + 0.02 * torch.randn(c.vocab_size, c.dim))
    word.weight[: len(old)][known] = old[known]
    bias = model.mlm_bias[known].mean().repeat(c.vocab_size)
    bias[: len(old)][known] = model.mlm_bias[known]
    model.encoder.word, model.mlm_bias = word, nn.Parameter(bias)


# ---------------------------------------------------------------- checkpoints


def load_config(folder):
    """The Config of a checkpoint folder of any family. Raises: UserError naming the file and what is wrong."""
    try:
        return Config(**checkpoints.read_config(folder))
    except UserError as e:
        path = Path(folder, "config.json")
        names_it = str(e).startswith((str(path), str(folder)))
        raise UserError(str(e) if names_it else f"{path}: {e}") from None


def load(folder, dropout=None, encoder_only=False, log=print, relation_classes=()):
    """A KGIBert from a checkpoint folder of any family, with its own dropout or another.

    Args: encoder_only: reads no heads. log: prints a line on what is initialised randomly or not used.
    relation_classes: of the relation head, initialised randomly if the checkpoint has others.
    Raises: UserError naming the file and all that is missing, left over or of the wrong shape.
    """
    c = load_config(folder)
    c.relation_classes = relation_classes or c.relation_classes
    if dropout is not None:
        c.dropout = c.attention_dropout = dropout
        c.extra_config.pop("embedding_dropout", None)
    weights, token_types = checkpoints.read_weights(folder, c, parameter_shapes(c), not encoder_only, log)
    model = KGIBert(c)
    model.load_state_dict(model.state_dict() | weights)
    if token_types is not None:
        model.encoder.token_types = token_types - token_types[0]
    return model


def count_parameters(c):
    return sum(math.prod(shape) for shape in parameter_shapes(c).values())


def parameter_shapes(c):
    """{name: shape} of a KGIBert, without taking memory for it: an absurd config.json is found out first."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in KGIBert(c).state_dict().items()}


def open_encoder(folder, device, log=print):
    """The encoder of a checkpoint folder on a device, ready to be used, and its tokenizer."""
    encoder = load(folder, encoder_only=True, log=log).encoder.to(device).eval()
    return encoder, tokenizers.load(folder, max_entries=encoder.config.vocab_size)
