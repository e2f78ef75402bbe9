"""What an encoder computes with: attention and dropout, activations, first weights. Fast on a CPU, the same on a GPU.

Another family's encoder uses the same functions. `make bench` measures them.
"""

import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

from support.arrays import ceil_div

TANH_GELU = functools.partial(F.gelu, approximate="tanh")
ACTIVATIONS = {
    "gelu": F.gelu, "gelu_python": F.gelu, "relu": F.relu, "gelu_new": TANH_GELU, "gelu_pytorch_tanh": TANH_GELU,
}  # fmt: skip


def init_weights(module):
    """Normal(0, 0.02) weights and zero biases, as BERT has them; zeros for padding's word vector."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])


def dropout(x, p, training):
    """F.dropout; on the CPU from 16 random bits an element, as its own generator takes a fifth of a step."""
    if x.device.type != "cpu" or not training or p == 0:
        return F.dropout(x, p, training)
    words = torch.empty(ceil_div(x.numel(), 4), dtype=torch.int64).random_(-(2**63), None)
    uniform = words.view(torch.int16)[: x.numel()].view(x.shape)  # from -2**15 to 2**15 - 1
    threshold = round(p * 2**16) - 2**15
    keep = torch.ge(uniform, threshold, out=torch.empty_like(x, requires_grad=False))
    return x * keep.mul_(1 / (1 - p))


def attention_mask(mask, x):
    """The mask of Encoder.forward as attention takes it, made once for all layers.

    A bool mask of tokens becomes (n, 1, 1, L). The numbers of packed rows become a block-diagonal bias (n, 1, L, L), 0
    within an example and -inf elsewhere: a float one, since a bool mask takes a slower kernel.

    Args: x: what the layers compute with.
    """
    if mask.dtype == torch.bool:
        return mask[:, None, None, :]
    return bias_of(mask[:, None, :, None] != mask[:, None, None, :], compute_dtype(x))


def sliding_mask(mask, length, reach, x):
    """attention_mask of layers in which a token sees those at most `reach` places away: a bias (n or 1, 1, L, L).

    Examples are contiguous, so that places of the row count as positions. Padding sees padding, since a softmax over
    nothing would be NaN.

    Args: mask: as Encoder.forward takes it. length: L. x: what the layers compute with.
    """
    place = torch.arange(length, device=x.device)
    is_hidden = ((place[:, None] - place).abs() > reach)[None, None]
    if mask is not None:
        is_hidden = is_hidden | (mask[:, None, :, None] != mask[:, None, None, :])
    return bias_of(is_hidden, compute_dtype(x))


def bias_of(is_hidden, dtype):
    """0 where attention may look, -inf where `is_hidden`."""
    return torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device).masked_fill_(is_hidden, float("-inf"))


def compute_dtype(x):
    """The dtype of matrix products with x: that of autocast, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def attention(q, k, v, mask, p):
    """softmax(q k^T / sqrt(d)) v with dropout p; on the CPU by hand, as its fused kernel has no dropout.

    q, k, v: (n, heads, L, d); mask: (n, 1, 1, L) bool, (n, 1, L, L) float to be added, or None.
    """
    if q.device.type != "cpu" or p == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    if mask is not None:
        scores += mask
    return dropout(scores.softmax(-1), p, True) @ v
