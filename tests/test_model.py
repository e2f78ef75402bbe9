"""The encoder against torch's own layer, the heads against a dense computation, and what a step costs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import model as models
from configs import UserError
from support import checkpoints, hardware, kernels
from support.layouts import MicroBatch

HEADS = ("mlm_head", "mlm_head", "relation_head", "triple_head")  # of the four tasks
SIZES = [(48, 2, 4, 96), (32, 1, 1, 64), (40, 3, 8, 80)]  # dim, layers, heads, ffn


def small(dim=48, layers=2, heads=4, ffn=96, vocab=50, positions=20, seed=0, dropout=0.1, **more):
    torch.manual_seed(seed)
    model = models.KGIBert(models.Config(vocab, positions, dim, layers, heads, ffn, dropout, **more))
    for p in model.parameters():  # LayerNorms and biases that are not trivial
        nn.init.normal_(p, mean=float(p.ndim == 1) / 2, std=0.2)
    return model.double().eval()


def reference(model):
    """torch.nn.TransformerEncoder with the same weights."""
    c = model.config
    activation = {"gelu_new": lambda x: F.gelu(x, approximate="tanh")}.get(c.activation, c.activation)
    layer = nn.TransformerEncoderLayer(
        c.dim, c.heads, c.ffn, c.dropout, activation, layer_norm_eps=c.eps, batch_first=True, norm_first=False
    )
    ref = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False).double().eval()
    pairs = {
        "self_attn.in_proj_weight": "qkv.weight", "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj": "out", "linear1": "ffn1", "linear2": "ffn2",
    }  # fmt: skip
    for theirs, ours in zip(ref.layers, model.layers):
        state = ours.state_dict()
        for name in theirs.state_dict():
            mine = name
            for a, b in pairs.items():
                mine = mine.replace(a, b)
            theirs.state_dict()[name].copy_(state[mine])
    return ref


def micro_batch(ids, mask, target_index, label, *n_targets):
    """The MicroBatch of padded rows with targets of the four tasks."""
    return MicroBatch(ids, mask, None, target_index, label, target_index // ids.shape[1], n_targets, HEADS)


def ids_and_mask(vocab=50, seed=1, lengths=(9, 4, 12, 1)):
    torch.manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(5, vocab, mask.shape) * mask, mask


@pytest.mark.parametrize("family, activation, eps", [
    ("distilbert", "gelu", 1e-12), ("bert", "relu", 1e-12), ("roberta", "gelu", 1e-5), ("camembert", "gelu_new", 0.1),
])  # fmt: skip
@pytest.mark.parametrize("sizes", SIZES)
def test_encoder_is_torchs(sizes, family, activation, eps):
    encoder = small(*sizes, family=family, activation=activation, eps=eps).encoder
    ids, mask = ids_and_mask()
    x = encoder.norm(encoder.word(ids) + encoder.position(torch.arange(ids.shape[1])))
    want = reference(encoder)(x, src_key_padding_mask=~mask)
    assert (encoder(ids, mask) - want)[mask].abs().max() < 1e-6


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_padding_and_other_examples_change_nothing(family):
    encoder = small(family=family).encoder
    ids, mask = ids_and_mask()
    together = encoder(ids, mask)
    for i, n in enumerate(mask.sum(1).tolist()):
        assert (encoder(ids[i : i + 1, :n]) - together[i, :n]).abs().max() < 1e-10
    wide = torch.cat([ids, torch.full((4, 8), 7)], 1)  # whatever is in the padding
    mask = torch.cat([mask, torch.zeros(4, 8, dtype=bool)], 1)
    assert (encoder(wide, mask)[:, :12] - together)[mask[:, :12]].abs().max() < 1e-10


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_packed_examples_see_themselves_alone(family):
    """Several examples in a row give what each gives alone, at its own positions, also in training without dropout."""
    encoder = small(family=family, dropout=0.0).encoder.train()
    lengths = [[12, 5, 3], [7, 7], [20]]
    ids, segment, position = (torch.zeros(3, 20, dtype=torch.int64) for _ in range(3))
    ids[:] = encoder.config.pad_token_id
    alone = {}
    for row, of_row in enumerate(lengths):
        start = 0
        for number, n in enumerate(of_row, 1):
            example = torch.randint(5, 50, (n,))
            at = slice(start, start + n)
            ids[row, at], segment[row, at], position[row, at] = example, number, torch.arange(n)
            alone[row, number], start = encoder(example[None])[0], start + n
    hidden = encoder(ids, segment, position)
    for (row, number), want in alone.items():
        assert (hidden[row][segment[row] == number] - want).abs().max() < 1e-10
    assert hidden.isfinite().all()


def test_gathered_heads_are_the_dense_ones():
    """Losses and gradients as if every head had run at every position."""
    model = small()
    ids, mask = ids_and_mask()
    width = ids.shape[1]
    targets = [[(0, 1, 7), (2, 3, 9), (2, 11, 8)], [(0, 2, 30)], [(1, 3, 5), (2, 5, 0)], [(3, 0, 1), (1, 0, 0)]]
    flat = [(r * width + c, label) for task in targets for r, c, label in task]
    target_index, label = (torch.tensor(x) for x in zip(*flat))
    out = model(micro_batch(ids, mask, target_index, label, *map(len, targets)))
    out[:, 0].sum().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()

    hidden = model.encoder(ids, mask)
    dense = [model.mlm_head(hidden)] * 2 + [model.relation_head(hidden), model.triple_head(hidden)]
    total = 0
    for task, (logits, places) in enumerate(zip(dense, targets)):
        gold = torch.full(ids.shape, -100)
        for r, c, y in places:
            gold[r, c] = y
        loss = F.cross_entropy(logits.flatten(0, 1), gold.flatten(), reduction="sum")
        right = (logits.argmax(-1) == gold).sum()
        assert abs(out[task, 0] - loss) < 1e-4 and out[task, 1] == right
        total = total + loss
    total.backward()
    assert all((p.grad - grads[n]).abs().max() < 1e-5 for n, p in model.named_parameters())


def test_a_micro_batch_without_targets_of_a_task():
    """Zero loss, and a gradient (of zeros) for every parameter, so that ranks have the same to exchange."""
    model = small().train()
    ids, mask = ids_and_mask()
    for sizes in ([0, 0, 0, 2], [2, 0, 0, 0], [0, 0, 0, 0]):
        model.zero_grad()
        n = sum(sizes)
        out = model(micro_batch(ids, mask, torch.arange(n), torch.zeros(n, dtype=torch.int64), *sizes))
        assert out[torch.tensor(sizes) == 0].eq(0).all() and out.isfinite().all()
        out.sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_initial_values():
    model = models.KGIBert(models.Config(500, 64, 96, 2, 4, 200))
    assert abs(model.encoder.word.weight.std() - 0.02) < 2e-3 and model.encoder.word.weight[0].eq(0).all()
    ffn = model.encoder.layers[0].ffn1
    assert abs(ffn.weight.std() - 0.02) < 2e-3 and ffn.bias.eq(0).all()
    for name, p in model.named_parameters():
        assert "norm" not in name or p.eq(1 if name.endswith("weight") else 0).all()


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="more ranks than GPUs: --nproc_per_node must be 1 at most"):
        hardware.choose_device("auto", "auto")


def test_a_sequence_that_is_too_long_is_refused_with_the_limit():
    with pytest.raises(ValueError, match="21 tokens; the encoder has 20 positions"):
        small().encoder(torch.ones(1, 21, dtype=torch.int64))


def bytes_kept(c, n, targets):
    """Of every tensor that autograd saves for the backward pass of n examples of 32 tokens, the parameters left out."""
    model, seen = models.KGIBert(c), {}
    mine = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def save(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in mine:
            seen[storage.data_ptr()] = storage.nbytes(), storage  # held, or its address would be given away again
        return x

    ids, target_index = torch.randint(5, 5000, (n, 32)), torch.arange(targets)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda x: x), torch.autocast("cpu", torch.bfloat16):
        model(micro_batch(ids, None, target_index, ids.flatten()[:targets], targets, 0, 0, 0))
    return sum(size for size, _ in seen.values())


def test_memory_is_what_autograd_keeps():
    """The calculation that sizes micro-batches, against the bytes of every tensor saved for the backward pass."""

    def of_layers(layers):
        return models.Config(5000, 64, 96, layers, 4, 384, 0.0)

    c = models.Config(5000, 64, 96, 3, 4, 384)
    per_token = (bytes_kept(of_layers(3), 16, 64) - bytes_kept(of_layers(3), 8, 32)) / (8 * 32)
    fixed, counted = hardware.estimate_memory(c, 10)
    assert fixed == 220
    in_backward = counted - c.vocab_size  # 8 of the 12 bytes of the head exist in the backward pass
    assert per_token == pytest.approx(in_backward, rel=0.02)


def test_flops_by_torchs_counter():
    """Against PyTorch's own count of what its operators do, on examples without padding."""
    c = models.Config(500, 64, 32, 2, 4, 64, 0.1)  # with dropout: of the fused kernel the counter does not know
    model = models.KGIBert(c).train()
    ids, target_index = torch.randint(5, 500, (6, 20)), torch.arange(30)
    with FlopCounterMode(display=False) as counter:
        model(micro_batch(ids, None, target_index, ids.flatten()[:30], 30, 0, 0, 0))[:, 0].sum().backward()
    assert hardware.training_flops(c, np.full(6, 20), 30) == pytest.approx(counter.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_on_the_cpu(p):
    """An element is kept with probability 1 - p, scaled to the same mean; forward and backward drop the same ones."""
    torch.manual_seed(0)
    x = torch.full((1001, 999), 2.0, requires_grad=True)
    y = kernels.dropout(x, p, True)
    y.sum().backward()
    kept = y != 0
    assert abs(kept.float().mean().item() - (1 - p)) < 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert torch.equal(y, torch.where(kept, 2 / (1 - p), 0.0)) and torch.equal(x.grad, y / 2)
    drawn = kept.float()
    drawn = (drawn - drawn.mean()) / drawn.std()
    for a, b in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1]), (drawn[:, 4:], drawn[:, :-4])):
        assert abs((a * b).mean().item()) < 0.005  # neighbours, also those of one draw of 64 bits, are independent
    assert not torch.equal(kernels.dropout(x, p, True), y) and kernels.dropout(x, p, False) is x
    torch.manual_seed(0)
    assert torch.equal(kernels.dropout(x, p, True), y)


def test_attention_with_dropout_is_attention(monkeypatch):
    """What replaces the fused kernel when attention has dropout, with nothing dropped."""
    q, k, v = (torch.randn(3, 2, 7, 8) for _ in range(3))
    mask = (torch.arange(7) < torch.tensor([7, 4, 1])[:, None])[:, None, None]
    whole = [F.scaled_dot_product_attention(q, k, v, m) for m in (None, mask)]
    monkeypatch.setattr(kernels, "dropout", lambda x, p, training: x)
    for m, right in zip((None, mask), whole):
        assert (kernels.attention(q, k, v, m, 0.1) - right).abs().max() < 1e-5
