"""ModernBERT: its encoder, in the place of model.Encoder, and what its config.json says beside the sizes.

Pre-norm, rotary positions in the place of a table, a gated feed-forward, and most layers with sliding attention. There
are no token types. Biases exist only where config.json says so; mostly there are none.
"""

import math

import torch
import torch.nn as nn

from configs import UserError
from support.kernels import ACTIVATIONS, attention, attention_mask, compute_dtype, dropout, sliding_mask

FULL, SLIDING = "full_attention", "sliding_attention"
THETAS = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
SETTINGS = {  # keys of config.json, kept in Config.extra_config, with the values of a file that is silent
    "local_attention": 128, "global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0, "norm_bias": False, "attention_bias": False, "mlp_bias": False,
    "classifier_bias": False, "decoder_bias": True, "classifier_activation": "gelu",
}  # fmt: skip
TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))  # null: not said
OPTIONAL = ("rope_parameters", "layer_types", "embedding_dropout")


def read_settings(d, path):
    """SETTINGS, TOKENS and OPTIONAL of a config.json in either spelling: thetas by name, or in rope_parameters.

    Both are written back if both are known, as old and new versions of other libraries read one each.
    Raises: UserError for a value that is not supported.
    """

    def refuse(what):
        raise UserError(f"{path}: {what}")

    out = SETTINGS | {key: d[key] for key in (*SETTINGS, *TOKENS) if key in d}
    out |= {key: d[key] for key in OPTIONAL if d.get(key) is not None}
    rope, types, p = (out.get(key, default) for key, default in zip(OPTIONAL, ({}, [], 0)))
    if type(rope) is not dict or any(type(x) not in (dict, type(None)) for x in rope.values()):
        refuse("rope_parameters is not an object of objects")
    for parameters in (*rope.values(), d.get("rope_scaling")):
        kind = parameters and (type(parameters) is not dict or parameters.get("rope_type", parameters.get("type")))
        if kind not in (None, {}, "default"):
            refuse(f"rope_type in {ascii(parameters)[:80]} is not supported, only 'default'")
    out |= {theta: rope[kind]["rope_theta"] for kind, theta in THETAS.items() if "rope_theta" in (rope.get(kind) or {})}
    if type(types) is not list or any(kind not in (FULL, SLIDING) for kind in types):
        refuse(f"layer_types is not a list of {FULL} and {SLIDING}")
    if "layer_types" in out and len(types) != d.get("num_hidden_layers"):
        refuse(f"layer_types has {len(types)} layers, num_hidden_layers says {d.get('num_hidden_layers')!r:.20}")
    for key, default in SETTINGS.items():
        value, kinds = out[key], (int, float) if type(default) is float else (type(default),)
        is_known = type(value) in kinds and (value in ACTIVATIONS if kinds == (str,) else 0 <= value < 2**60)
        if not is_known or (value == 0 and kinds != (bool,)):
            refuse(f"{key} = {value!r:.60} is not supported")
    if type(p) not in (int, float) or not 0 <= p < 1:
        refuse(f"embedding_dropout = {p!r:.60} is not between 0 and 1")
    return out | {"decoder_bias": True}  # the vocabulary head has one, which begins as zeros where a file has none


def layer_types(c):
    """FULL or SLIDING for each layer of a model.Config; of other families all layers are full."""
    every = c.extra_config.get("global_attn_every_n_layers", 1)
    return c.extra_config.get("layer_types") or [SLIDING if i % every else FULL for i in range(c.layers)]


def rotation(position, theta, head_dim, dtype):
    """(cos, sin), each (n, L, 1, 1, head_dim / 2), of the angles by which rotate turns queries and keys.

    Args: position: (n, L). theta: the angles of pair k are position * theta ** (-2k / head_dim).
    """
    exponent = torch.arange(0, head_dim, 2, device=position.device).float() / head_dim
    angle = position[..., None, None, None].float() / theta**exponent
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, cos, sin):
    """Turns each pair of a vector by its angle; a pair is an entry of the first half and that of the second."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def layer_norm(c):
    return nn.LayerNorm(c.dim, eps=c.eps, bias=c.extra_config["norm_bias"])


@torch.no_grad()
def init_weights(module, std=0.02):
    """Normal(0, std) weights, none beyond two std, and zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        cut = math.erf(2**0.5)  # the share of a normal distribution within two std
        module.weight.uniform_(-cut, cut).erfinv_().mul_(2**0.5 * std)
    if getattr(module, "bias", None) is not None:
        module.bias.zero_()
    if isinstance(module, nn.Embedding):
        module.weight[module.padding_idx].zero_()


class EncoderLayer(nn.Module):
    """Attention and gated feed-forward, each with LayerNorm before it (pre-norm), dropout and residual."""

    def __init__(self, c, is_first):
        super().__init__()
        self.heads, self.dropout, self.attention_dropout = c.heads, c.dropout, c.attention_dropout
        self.activation, bias = ACTIVATIONS[c.activation], c.extra_config
        self.norm1 = nn.Identity() if is_first else layer_norm(c)  # the embeddings end with one
        self.qkv = nn.Linear(c.dim, 3 * c.dim, bias=bias["attention_bias"])
        self.out = nn.Linear(c.dim, c.dim, bias=bias["attention_bias"])
        self.norm2 = layer_norm(c)
        self.ffn1 = nn.Linear(c.dim, 2 * c.ffn, bias=bias["mlp_bias"])
        self.ffn2 = nn.Linear(c.ffn, c.dim, bias=bias["mlp_bias"])

    def forward(self, x, mask, cos, sin):
        """x (n, L, dim); mask as attention takes it; cos, sin of rotation -> (n, L, dim)."""
        n, length, dim = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, dim // self.heads)
        q, k = rotate(qkv[:, :, :2], cos, sin).permute(2, 0, 3, 1, 4)
        v = qkv[:, :, 2].transpose(1, 2)
        y = attention(q, k, v, mask, self.attention_dropout if self.training else 0.0)
        y = self.out(y.transpose(1, 2).reshape(n, length, dim))
        x = x + dropout(y, self.attention_dropout, self.training)
        y, gate = self.ffn1(self.norm2(x)).chunk(2, dim=-1)
        return x + self.ffn2(dropout(self.activation(y) * gate, self.dropout, self.training))


class Encoder(nn.Module):
    """Token ids -> one vector a position: embeddings, LayerNorm, dropout, the layers, LayerNorm."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.word = nn.Embedding(c.vocab_size, c.dim, padding_idx=c.pad_token_id)
        self.norm = layer_norm(c)
        self.layers = nn.ModuleList(EncoderLayer(c, is_first=i == 0) for i in range(c.layers))
        self.final_norm = layer_norm(c)
        self.token_types = torch.zeros(0, c.dim)  # none
        self.apply(init_weights)
        for layer in self.layers:
            init_weights(layer.out, self.output_std)
            init_weights(layer.ffn2, self.output_std)

    @property
    def output_std(self):
        """Of the first weights of matrices whose results are added to the stream, or that come before the output."""
        return 0.02 / (2 * self.config.layers) ** 0.5

    def init_head(self, layer):
        """First weights of a head; a square matrix is the one before the output."""
        init_weights(layer, self.output_std if layer.in_features == layer.out_features else 0.02)

    def forward(self, ids, mask=None, position=None):
        """Token ids -> (n, L, dim). Arguments as in model.Encoder."""
        c, length = self.config, ids.shape[1]
        if position is None and length > c.max_positions:
            raise ValueError(f"{length} tokens; the encoder has {c.max_positions} positions")
        position = torch.arange(length, device=ids.device)[None] if position is None else position
        x = dropout(self.norm(self.word(ids)), c.extra_config.get("embedding_dropout", c.dropout), self.training)
        reach = c.extra_config["local_attention"] // 2
        masks = {FULL: None if mask is None else attention_mask(mask, x)}
        masks[SLIDING] = masks[FULL] if length <= reach + 1 else sliding_mask(mask, length, reach, x)
        head_dim, dtype = c.dim // c.heads, compute_dtype(x)
        turns = {kind: rotation(position, c.extra_config[key], head_dim, dtype) for kind, key in THETAS.items()}
        for layer, kind in zip(self.layers, layer_types(c)):
            x = layer(x, masks[kind], *turns[kind])
        return self.final_norm(x)


class TaggerHead(nn.Module):
    """Dense layer, activation and LayerNorm before the classifier; the vocabulary head has the same."""

    def __init__(self, encoder):
        super().__init__()
        c = encoder.config
        self.activation = ACTIVATIONS[c.extra_config["classifier_activation"]]
        self.dense = nn.Linear(c.dim, c.dim, bias=c.extra_config["classifier_bias"])
        self.norm = layer_norm(c)
        encoder.init_head(self.dense)

    def forward(self, x):
        return self.norm(self.activation(self.dense(x)))
