"""ModernBERT: its encoder, its checkpoints in and out, training, tagging and embedding with it.

tests/checkpoints/modernbert* are tiny random ones that another library wrote, with inputs and what it computed.
"""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as algorithms
from torch.utils.flop_counter import FlopCounterMode

import configs
import data
import finetune
import kgi
import model as models
from beyond import embed, evaluate, synonyms, tag
from configs import UserError
from support import hardware, kernels, modernbert, reports, taggers, tokenizers
from support.modernbert import FULL, SLIDING
from support.tensors import read_safetensors, read_torch, write_safetensors
from support.windows import MAX_WINDOW
from tests.conftest import build, run_command
from tests.test_checkpoints import (  # noqa: F401  # noqa: F401
    HERE,
    NO_OWN_HEADS,
    OWN_HEADS,
    SILENT,
    computes_as_its_library,
    embedded,
    texts,
    train,
    written,
)
from tests.test_model import bytes_kept, micro_batch
from tests.training import TINY

pytestmark = pytest.mark.usefixtures("known_machine")

MASKED_LMS = ["modernbert", "modernbert-biases", "modernbert-old-config"]
SIZES = {"vocab_size": 50, "max_positions": 64, "dim": 48, "layers": 4, "heads": 4, "ffn": 40, "dropout": 0.0}


def small(window=8, seed=0, **more):
    """A KGIBert of the family in float64, with weights and biases that are not trivial."""
    torch.manual_seed(seed)
    own = {"local_attention": window} | more.pop("own", {})
    model = models.KGIBert(models.Config(**SIZES | more, family="modernbert", extra_config=own))
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1) / 2, std=0.2)
    return model.double().eval()


def config_with(folder, name="modernbert", **changes):
    """A copy of a fixture with other values in its config.json."""
    shutil.copytree(HERE / name, folder)
    d = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(d))
    return folder


# ---------------------------------------------------------------- the encoder


@pytest.mark.parametrize("name", MASKED_LMS)
def test_computes_what_another_library_computed(name):
    """Hidden states, logits, loss and gradients as that library computed them, with and without biases."""
    computes_as_its_library(name)


def test_a_tagger_of_another_library_computes_what_it_did():
    folder = HERE / "modernbert-tagger"
    encoder, want = models.load(folder, encoder_only=True, log=SILENT).encoder, read_torch(folder / "parity.pt")
    shapes = {"classifier.weight": (5, 48), "classifier.bias": (5,)} | taggers.head_shapes(encoder.config)
    weights = taggers.read_parts(folder, encoder.config, shapes)
    classifier = finetune.TokenClassifier(encoder, [*"abcde"], 0, torch.device("cpu"), None).eval()
    classifier.load_state_dict(classifier.state_dict() | weights)
    mask = want["am"].bool()
    hidden = encoder(want["ids"], mask)
    logits = classifier.classifier(classifier.head(hidden))
    assert (hidden - want["hidden"])[mask].abs().max() < 1e-5
    assert (logits - want["logits"])[mask].abs().max() < 1e-5 * want["logits"].abs().max()
    loss = F.cross_entropy(logits.flatten(0, 1), want["labels"].flatten())
    loss.backward()
    assert loss.item() == pytest.approx(want["loss"].item(), abs=1e-5)
    assert (encoder.word.weight.grad - want["gword"]).abs().max() < 1e-5 * want["gword"].abs().max()


@pytest.mark.parametrize("reach", [1, 3, 4, 30])
def test_the_sliding_mask_by_a_loop_over_pairs(reach):
    padded = torch.arange(12) < torch.tensor([12, 5, 1])[:, None]
    packed = torch.tensor([[1] * 7 + [2] * 5, [3] * 12, [4] * 4 + [0] * 8], dtype=torch.int32)
    for mask in (None, padded, packed):
        bias = kernels.sliding_mask(mask, 12, reach, torch.zeros(1))
        for row, i, j in itertools.product(range(len(bias)), range(12), range(12)):
            together = mask is None or mask[row, i] == mask[row, j]
            assert bias[row, 0, i, j] == (0 if together and abs(i - j) <= reach else -math.inf)


@pytest.mark.parametrize("n", [24, 6, 5])  # tokens, also hardly more than a window reaches
@pytest.mark.parametrize("kind, window, reach", [(SLIDING, 8, 4), (SLIDING, 7, 3), (FULL, 8, 99)])
def test_a_token_sees_those_within_the_window(kind, window, reach, n):
    """One layer: the vector at i depends on the token at j exactly where abs(i - j) <= reach."""
    encoder, ids = small(window, layers=1, own={"layer_types": [kind]}).encoder, torch.arange(5, 5 + n)[None]
    before = encoder(ids)[0]
    for j in range(n):
        changed = ids.clone()
        changed[0, j] = 40
        differs = (encoder(changed)[0] - before).abs().amax(-1) > 1e-9
        assert differs.tolist() == [abs(i - j) <= reach for i in range(n)]


@pytest.mark.parametrize("dropout", [0.0, 0.1])  # the latter has another kernel of attention, with the same masks
def test_packed_and_padded_rows_are_each_example_alone(dropout, monkeypatch):
    monkeypatch.setattr(kernels, "dropout", lambda x, p, training: x)
    monkeypatch.setattr(modernbert, "dropout", lambda x, p, training: x)
    encoder = small(dropout=dropout).encoder.train()
    examples = [torch.randint(5, 50, (n,)) for n in (20, 12, 5, 3, 17)]
    alone = [encoder(example[None])[0] for example in examples]
    ids, segment, position = (torch.zeros(3, 24, dtype=torch.int64) for _ in range(3))
    places = [(0, 0), (1, 0), (1, 12), (0, 20), (2, 7)]  # row, offset: the last after padding
    for number, ((row, offset), example) in enumerate(zip(places, examples), 1):
        at = slice(offset, offset + len(example))
        ids[row, at], segment[row, at], position[row, at] = example, number, torch.arange(len(example))
    hidden = encoder(ids, segment.int(), position)
    for (row, offset), want in zip(places, alone):
        assert (hidden[row, offset : offset + len(want)] - want).abs().max() < 1e-10
    mask = torch.arange(30) < torch.tensor([len(x) for x in examples])[:, None]
    for filling in (0, 7):  # whatever is in the padding
        ids = torch.full(mask.shape, filling)
        ids[mask] = torch.cat(examples)
        hidden = encoder(ids, mask)
        assert hidden.isfinite().all() and (hidden[mask] - torch.cat(alone)).abs().max() < 1e-10


def test_gradients_of_padded_rows_are_finite():
    """Also where a window holds nothing but padding."""
    model, mask = small(window=2), torch.arange(30) < torch.tensor([30, 1])[:, None]
    model(
        micro_batch(torch.ones(2, 30).long(), mask, torch.tensor([0]), torch.tensor([7]), 1, 0, 0, 0)
    ).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_first_weights():
    """Truncated at two std; smaller where results are added to the stream; biases only if asked for."""
    c = models.Config(500, 64, 96, 8, 4, 200, family="modernbert")
    model = models.KGIBert(c)
    biases = {n for n, _ in model.named_parameters() if n.endswith("bias")}
    assert c.eps == 1e-5 and biases == {"mlm_bias", "relation_head.bias", "triple_head.bias"}
    encoder, cut = model.encoder, 0.8796  # the std of a normal distribution that is cut at two
    assert encoder.word.weight[0].eq(0).all() and encoder.token_types.shape == (0, 96)
    large = encoder.word.weight, encoder.layers[5].qkv.weight, encoder.layers[5].ffn1.weight
    tiny = encoder.layers[5].out.weight, encoder.layers[5].ffn2.weight, model.mlm_dense.weight
    for std, weights in ((0.02, large), (0.02 / 4, tiny)):
        for w in weights:
            assert w.abs().max() < 2.0001 * std and w[1:].std().item() == pytest.approx(cut * std, rel=0.03)
    biases = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)
    model = models.KGIBert(models.Config(**SIZES, family="modernbert", extra_config=biases))
    names = {n for n, _ in model.named_parameters()}
    weights = {n for n in names if n.endswith("weight")} - {"encoder.word.weight"}
    assert {n.removesuffix("bias") for n in names if n.endswith(".bias")} == {n.removesuffix("weight") for n in weights}
    with pytest.raises(UserError, match="dim / heads = 9 is odd, and rotary positions turn pairs"):
        models.Config(**SIZES | {"dim": 36}, family="modernbert")


def test_flops_by_torchs_counter_and_by_a_loop_over_pairs():
    c = models.Config(500, 64, 32, 5, 4, 64, 0.1, family="modernbert")
    ids, at = torch.randint(5, 500, (6, 20)), torch.arange(30)
    with FlopCounterMode(display=False) as counter:
        model = models.KGIBert(c).train()
        model(micro_batch(ids, None, at, ids.flatten()[:30], 30, 0, 0, 0))[:, 0].sum().backward()
    assert hardware.training_flops(c, np.full(6, 20), 30) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    c.extra_config["local_attention"] = 8
    length = np.array([1, 4, 5, 20])
    pairs = sum(abs(i - j) <= 4 for n in length for i in range(n) for j in range(n))
    full = hardware.training_flops(models.Config(500, 64, 32, 5, 4, 64, 0.1, family="modernbert"), length, 0)
    fewer = 3 * 12 * 32 * ((length**2).sum() - pairs)  # 3 of the 5 layers are sliding ones
    assert full - hardware.training_flops(c, length, 0) == pytest.approx(fewer)


def test_memory_is_what_autograd_keeps():
    """The calculation that sizes micro-batches, against the bytes of every tensor saved for the backward pass."""

    c = models.Config(5000, 64, 96, 3, 4, 128, 0.0, family="modernbert")
    per_token = (bytes_kept(c, 16, 64) - bytes_kept(c, 8, 32)) / (8 * 32)
    assert per_token == pytest.approx(hardware.estimate_memory(c, 10)[1] - c.vocab_size, rel=0.02)


# ---------------------------------------------------------------- config.json


def test_both_spellings_of_config_json(tmp_path):
    """Both say the same, and what is written opens in versions of other libraries that know one of them alone."""
    new, old = (models.load_config(HERE / name) for name in ("modernbert", "modernbert-old-config"))
    assert (new.dropout, new.attention_dropout, new.eps, new.activation) == (0.0, 0.0, 1e-5, "gelu")
    assert modernbert.layer_types(new) == modernbert.layer_types(old) == [FULL, SLIDING, SLIDING, FULL]
    keys = ("local_attention", "global_rope_theta", "local_rope_theta")
    assert [new.extra_config[key] for key in keys] == [old.extra_config[key] for key in keys] == [8, 160_000, 10_000]
    rope = {FULL: {"rope_type": "default", "rope_theta": 7e4}, SLIDING: {"rope_theta": 5000}}
    changed = config_with(
        tmp_path / "x", layer_types=[SLIDING, FULL, FULL, SLIDING], rope_parameters=rope, global_rope_theta=3.0,
        embedding_dropout=0.25, mlp_dropout=0.5, norm_eps=0.01, layer_norm_eps=1e-12,
        position_embedding_type="sans_pos",
    )  # fmt: skip
    model = models.load(changed, log=SILENT)
    model.save(tmp_path / "y")
    d, c = json.loads((tmp_path / "y" / "config.json").read_text()), models.load_config(tmp_path / "y")
    assert c == model.encoder.config and (d["global_rope_theta"], d["local_rope_theta"]) == (7e4, 5000)
    assert d["rope_parameters"] == rope and modernbert.layer_types(c) == d["layer_types"] == [
        SLIDING,
        FULL,
        FULL,
        SLIDING,
    ]
    assert (d["embedding_dropout"], d["mlp_dropout"], d["norm_eps"]) == (0.25, 0.5, 0.01) and "layer_norm_eps" not in d
    other = models.load(changed, dropout=0.1, log=SILENT).encoder.config
    assert other.dropout == other.attention_dropout == 0.1 and "embedding_dropout" not in other.extra_config


@pytest.mark.parametrize("changes, message", [
    ({"rope_parameters": {FULL: {"rope_type": "yarn", "factor": 4}}}, "rope_type in .*yarn.* is not supported, only"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type in .*linear.* is not supported"),
    ({"rope_scaling": 3}, "rope_type in 3 is not supported"),
    ({"rope_parameters": [1]}, "rope_parameters is not an object of objects"),
    ({"rope_parameters": {FULL: 3}}, "rope_parameters is not an object of objects"),
    ({"rope_parameters": {SLIDING: {"rope_theta": "x"}}}, "local_rope_theta = 'x' is not supported"),
    ({"rope_parameters": {SLIDING: {"rope_theta": math.inf}}}, "local_rope_theta = inf is not supported"),
    ({"rope_parameters": None, "local_rope_theta": None}, "local_rope_theta = None is not supported"),
    ({"rope_parameters": None, "global_rope_theta": -1}, "global_rope_theta = -1 is not supported"),
    ({"layer_types": ["full_attention", "linear", 3, {}]}, "layer_types is not a list of full_attention and sliding"),
    ({"layer_types": "full_attention"}, "layer_types is not a list"),
    ({"layer_types": [FULL]}, "layer_types has 1 layers, num_hidden_layers says 4"),
    ({"layer_types": None, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers = 0 is not supported"),
    ({"local_attention": 2.5}, "local_attention = 2.5 is not supported"),
    ({"local_attention": True}, "local_attention = True is not supported"),
    ({"norm_bias": "no"}, "norm_bias = 'no' is not supported"),
    ({"mlp_bias": 1}, "mlp_bias = 1 is not supported"),
    ({"classifier_activation": "silu"}, "classifier_activation = 'silu' is not supported"),
    ({"classifier_activation": ["gelu"]}, r"classifier_activation = \['gelu'\] is not supported"),
    ({"hidden_activation": "silu"}, "activation 'silu' is not supported, only gelu, "),
    ({"embedding_dropout": 1}, "embedding_dropout = 1 is not between 0 and 1"),
    ({"num_attention_heads": 16}, "dim / heads = 3 is odd, and rotary positions turn pairs"),
    ({"num_attention_heads": 5}, "heads = 5 does not divide dim = 48"),
    ({"hidden_size": None}, "no hidden_size in it"),
    ({"attention_bias": True}, "missing: layers.0.attn.Wqkv.bias"),
    ({"intermediate_size": 41}, r"wrong shape: layers.0.mlp.Wi.weight \(80, 48\) where config.json says \(82, 48\)"),
    ({"num_hidden_layers": 3, "layer_types": None}, "left over: layers.3"),
    ({"is_decoder": True}, "is_decoder = True is not supported"),
])  # fmt: skip
def test_what_is_not_supported_is_named(tmp_path, changes, message):
    folder = config_with(tmp_path / "x", **changes)
    with pytest.raises(UserError, match=f"^{folder}.*: .*{message}") as e:
        models.load(folder)
    assert "\n" not in str(e.value)


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", MASKED_LMS)
def test_in_out_in_is_byte_for_byte(tmp_path, name):
    """The tensors of the file that came in, the keys and values of its config.json, and heads of our own."""
    model = models.load(HERE / name, log=SILENT)
    model.save(tmp_path / "a")
    models.load(tmp_path / "a", log=pytest.fail).save(tmp_path / "b")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    before, after = written(name), read_safetensors(tmp_path / "a" / "model.safetensors")
    extra = {f"{head}_head.{end}" for head in ("relation", "triple") for end in ("weight", "bias")}
    assert set(after) - extra == set(before)
    assert all(tensor.numpy().tobytes() == after[n].numpy().tobytes() for n, tensor in before.items())
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (HERE / name, tmp_path / "a"))
    both = {"global_rope_theta", "local_rope_theta"}
    assert all(old[key] == value for key, value in new.items() if key not in both) and both <= set(new)
    left = set(old) - set(new) - {"transformers_version", "dtype", "torch_dtype", "layer_norm_eps"}
    neutral = {"classifier_pooling", "initializer_cutoff_factor", "position_embedding_type", "tie_word_embeddings"}
    assert all(not old[key] for key in left - neutral - {"sparse_pred_ignore_index"})


def test_other_names_and_copies_of_the_tensors(tmp_path):
    plain, folder = models.load(HERE / "modernbert", log=SILENT).state_dict(), config_with(tmp_path / "x")
    (folder / "model.safetensors").unlink()
    weights = written("modernbert")
    words = weights["model.embeddings.tok_embeddings.weight"]
    for change in (
        lambda w: {f"_orig_mod.module.{n}": t for n, t in w.items()},
        lambda w: {n.removeprefix("model."): t for n, t in w.items()},
        lambda w: w | {"decoder.weight": words.clone()},
    ):
        torch.save(change(weights), folder / "pytorch_model.bin")
        state = models.load(folder, log=SILENT).state_dict()
        assert all(torch.equal(t, state[n]) for n, t in plain.items() if n.split(".")[0] not in OWN_HEADS)
    torch.save(weights | {"decoder.weight": words + 1}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="decoder.weight differs from .*tok_embeddings.* not tied"):
        models.load(folder)
    torch.save({n: t for n, t in weights.items() if n.startswith("model.")}, folder / "pytorch_model.bin")
    lines = []
    models.load(folder, log=lines.append)
    assert lines[0] == f"{folder}: no vocabulary head in the checkpoint; initialised randomly"


def test_a_vocabulary_head_without_bias_gets_one(tmp_path):
    folder = config_with(tmp_path / "x", decoder_bias=False)
    (folder / "model.safetensors").unlink()
    torch.save({n: t for n, t in written("modernbert").items() if n != "decoder.bias"}, folder / "pytorch_model.bin")
    lines = []
    model = models.load(folder, log=lines.append)
    assert lines[0] == f"{folder}: no decoder.bias in the checkpoint; it begins as zeros" and model.mlm_bias.eq(0).all()
    model.save(tmp_path / "y")
    assert json.loads((tmp_path / "y" / "config.json").read_text())["decoder_bias"] is True
    assert read_safetensors(tmp_path / "y" / "model.safetensors")["decoder.bias"].shape == (150,)


def test_new_tokens(tmp_path):
    model = models.load(HERE / "modernbert-biases", log=SILENT)
    word, ids = model.encoder.word.weight.detach().clone(), torch.randint(5, 150, (2, 30))
    before = model.mlm_head(model.encoder(ids))
    models.resize_token_embeddings(model, [150, 151], 152)
    assert torch.equal(model.encoder.word.weight[:150], word) and model.mlm_bias.shape == (152,)
    assert (model.mlm_head(model.encoder(ids))[..., :150] - before).abs().max() < 1e-5
    model.save(tmp_path)
    assert models.load(tmp_path, log=pytest.fail).encoder.config.vocab_size == 152


# ---------------------------------------------------------------- training, tagging, embedding


def checkpoint(folder, lines, mask="<mask>", **more):
    """A tiny checkpoint with a byte-level BPE, as one finds them: names of BERT, and maybe RoBERTa's of the mask."""
    folder.mkdir(parents=True)
    t = Tokenizer(algorithms.BPE(unk_token="[UNK]"))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", mask]
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    t.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    t.save(str(folder / "tokenizer.json"))
    torch.manual_seed(1)
    own = {"local_attention": 8, "layer_types": [FULL, SLIDING, SLIDING], "cls_token_id": 1, "sep_token_id": 2}
    sizes = {"max_positions": 700, "dim": 32, "layers": 3, "heads": 4, "ffn": 24, "dropout": 0.0} | more
    c = models.Config(t.get_vocab_size() + 3, **sizes, pad_token_id=3, family="modernbert", extra_config=own)
    models.KGIBert(c).save(folder)
    weights = read_safetensors(folder / "model.safetensors")
    with open(folder / "model.safetensors", "wb") as f:
        write_safetensors(f, {n: t for n, t in weights.items() if n.split(".")[0] not in OWN_HEADS})
    return folder


@pytest.fixture(scope="module")
def start(texts, tmp_path_factory):  # noqa: F811
    return checkpoint(tmp_path_factory.mktemp("models") / "start", texts)


@pytest.fixture(scope="module")
def own_data(release, start, tmp_path_factory):
    """A data set with the tokenizer of `start`."""
    return build(release, tmp_path_factory.mktemp("built") / "own", tokenizer=str(start))


SMALL_RUN = {"steps": 6, "batch_size": 40, "lr": 1e-3, "log_every": 1, "valid_every": 3, "device": "cpu"}


def set_up(given=frozenset(), **settings):
    s = configs.Train(**SMALL_RUN | settings)
    s.given = given
    return kgi.set_up(s)


@pytest.mark.parametrize("mask", ["<mask>", "[MASK]"])
def test_special_tokens_by_the_names_that_are_there(texts, tmp_path, mask):  # noqa: F811
    tokenizer = tokenizers.load(checkpoint(tmp_path / "x", texts, mask))
    assert tokenizers.special_ids(tokenizer) == {"pad": 3, "cls": 1, "sep": 2, "mask": 4, "unk": 0}
    roles = {
        f"{role}_token": name for role, name in zip(("pad", "cls", "sep", "mask"), ("[PAD]", "[CLS]", "[SEP]", mask))
    }
    tokenizers.save(tokenizer.to_str().encode(), tmp_path, 64, 0)
    d = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert roles.items() <= d.items() and "token_type_ids" not in d["model_input_names"]


def test_training_continues_from_a_checkpoint(start, own_data, release, tmp_path, capsys, monkeypatch):
    """Pre-training, evaluation, NER, tagging and embeddings; the folders keep the family's layout."""
    out = tmp_path / "run"
    train(**SMALL_RUN, data=str(own_data), init=str(start), out=str(out))
    model, before = models.load(out, log=pytest.fail), models.load(start, log=SILENT)
    moved = {n for n, t in before.state_dict().items() if t.shape == model.state_dict()[n].shape}
    assert not any(torch.equal(before.state_dict()[n], model.state_dict()[n]) for n in moved) and len(moved) > 15
    a, b = (json.loads((d / "config.json").read_text()) for d in (start, out))
    assert a | {"vocab_size": b["vocab_size"], "kgi_tasks": list(data.TASK_NAMES)} == b and b["mlp_dropout"] == 0.0
    card = (out / "README.md").read_text()
    assert "| dropout | 0.0 |" in card and "the layout `modernbert`" in card
    run_command(evaluate, out, "--data", own_data, "--device", "cpu", "--out", tmp_path / "evaluation.json")

    corpus, results = release / "ner" / "en", tmp_path / "results"
    argv = [out, "--corpus", "e3c", "--data", corpus, "--device", "cpu", "--out", results]
    capsys.readouterr()
    run_command(finetune, "run", *argv)
    assert f"windows of up to {MAX_WINDOW} tokens" in capsys.readouterr().out
    d = json.loads((results / "model" / "config.json").read_text())
    assert d["architectures"] == ["ModernBertForTokenClassification"] and d["local_attention"] == 8
    tensors = read_safetensors(results / "model" / "model.safetensors")
    ends = {n for n in tensors if not n.startswith("model.")}
    assert ends == {"head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"}
    text = tmp_path / "notes.txt"
    text.write_text("acute liver failure and fever\n")
    run_command(tag, results / "model", text, "--device", "cpu", "--out", tmp_path / "found.jsonl")
    assert json.loads((tmp_path / "found.jsonl").read_text())["text"].startswith("acute")
    vectors = embedded(monkeypatch, out, b"foie\nfoie aigu\n")
    encoder, tokenizer = models.open_encoder(out, torch.device("cpu"), log=pytest.fail)
    want = embed.embed_terms(encoder, tokenizer, ["foie", "foie aigu"], ["cls"], None)["cls"]
    assert np.abs(vectors - want.numpy()).max() < 1e-6


def test_a_tagger_begins_with_the_head_of_the_checkpoint(start, tmp_path):
    """As other libraries begin it; untrained, with none. Read again it computes what it did."""
    head = taggers.read_head(start, models.load_config(start))
    before = models.load(start, log=SILENT)
    assert torch.equal(head["head.dense.weight"], before.mlm_dense.weight) and len(head) == 2
    folder = config_with(tmp_path / "x")
    (folder / "model.safetensors").unlink()
    torch.save({n: t for n, t in written("modernbert").items() if n.startswith("model.")}, folder / "pytorch_model.bin")
    assert taggers.read_head(folder, models.load_config(folder)) == {}
    assert taggers.read_head(HERE / "bert", models.load_config(HERE / "bert")) == {}

    c, labels, tokenizer = before.encoder.config, ["O", "B-x", "I-x"], tokenizers.load(start)
    classifier = finetune.TokenClassifier(before.encoder, labels, 3, torch.device("cpu"), None).eval()
    details = {"max_len": 16, "has_text": True, "pos": False, "precision": "fp32"}
    taggers.save_tagger(tmp_path / "model", classifier, tokenizer, details)
    again = tag.load_tagger(tag.Tag(model=str(tmp_path / "model"), device="cpu")).classifier
    state = again.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in classifier.state_dict().items())
    d = json.loads((tmp_path / "model" / "config.json").read_text())
    del d["kgi_tagger"]  # as a folder of another library is
    (tmp_path / "model" / "config.json").write_text(json.dumps(d))
    assert tag.load_tagger(tag.Tag(model=str(tmp_path / "model"), device="cpu")).max_len == MAX_WINDOW < c.max_positions
    weights = read_safetensors(tmp_path / "model" / "model.safetensors")
    weights["head.dense.weight"] = torch.zeros(3, 3)
    with open(tmp_path / "model" / "model.safetensors", "wb") as f:
        write_safetensors(f, weights)
    with pytest.raises(UserError, match=r"head.dense.weight is not \(32, 32\) finite numbers, as its config.json says"):
        tag.load_tagger(tag.Tag(model=str(tmp_path / "model"), device="cpu"))


def test_a_run_resumes_exactly(start, own_data, tmp_path, monkeypatch, capsys):
    """With dropout: stopped and resumed, the weights are the same to the bit."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = SMALL_RUN | {"data": str(own_data), "init": str(start)}

    def start_run(out):
        s = configs.Train(**settings, out=str(out), dropout=0.2)
        s.given = {"dropout"}
        kgi.train(s)

    with pytest.raises(SystemExit):
        start_run(whole)
    write = reports.write_metrics

    def leave(run, record):
        write(run, record)
        if record["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(reports, "write_metrics", leave)
        with pytest.raises(KeyboardInterrupt):
            start_run(stopped)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        start_run(stopped)
    assert "training steps 3 to 6" in capsys.readouterr().out
    a, b = (read_torch(out / "checkpoint.pt")["model"] for out in (whole, stopped))
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    with pytest.raises(UserError, match="dropout was 0.2, now 0.0"):  # of the family, as it is not given now
        kgi.train(configs.Train(**settings, out=str(stopped)))


def test_packed_and_padded_layouts_have_the_same_losses(start, own_data, tmp_path):
    sums = []
    for layout in ("padded", "packed"):
        run = set_up(data=str(own_data), init=str(start), out=str(tmp_path / layout), layout=layout, seed=3)
        micro_batches, batch = run.batches.assemble(0)
        sums.append(kgi.forward_backward(run, micro_batches, batch))
        sums.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]))
    assert torch.allclose(sums[0], sums[2], rtol=1e-5) and (sums[1] - sums[3]).abs().max() < 1e-5 < sums[1].abs().max()


def test_a_model_from_scratch(dataset, tmp_path):
    """--family modernbert: no dropout but where it is given, and a folder of the family's layout."""
    settings = {k: v for k, v in TINY.items() if k != "dropout"} | {"data": str(dataset), "out": str(tmp_path / "run")}
    for given, dropout in ((set(), 0.0), ({"dropout"}, 0.1)):
        run = set_up(given, **settings | {"family": "modernbert"})
        assert (
            run.s.dropout
            == run.model.encoder.config.dropout
            == run.model.encoder.layers[0].attention_dropout
            == dropout
        )
    train(**settings, family="modernbert")
    d = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (d["model_type"], d["architectures"], d["norm_eps"]) == ("modernbert", ["ModernBertForMaskedLM"], 1e-5)
    names = {n.replace(".1.", ".0.") for n in read_safetensors(tmp_path / "run" / "model.safetensors")}
    known = {n.replace(".1.", ".0.") for n in written("modernbert")}
    assert {n for n in names if not n.startswith(("relation_head", "triple_head"))} <= known
    models.load(tmp_path / "run", log=pytest.fail)
    with pytest.raises(UserError, match="family = modernbert, but .*bert has bert; leave it out"):
        set_up(data=str(dataset), init=str(HERE / "bert"), out=str(tmp_path / "x"), family="modernbert")


def test_alignment_takes_the_encoder_as_it_is(start, own_data, tmp_path):
    shutil.copytree(own_data.parent, tmp_path / "built")
    folder = tmp_path / "built" / own_data.name
    synonyms.build(synonyms.Build(dataset=str(folder), pairs=200))
    settings = SMALL_RUN | {
        "steps": 2,
        "valid_every": 2,
        "data": str(folder),
        "init": str(start),
        "out": str(tmp_path / "run"),
    }
    with pytest.raises(SystemExit):
        synonyms.train(synonyms.Train(**settings))
    before, after = (models.load(x, encoder_only=True, log=SILENT).encoder for x in (start, tmp_path / "run"))
    assert not any(torch.equal(a, b) for a, b in zip(before.layers.parameters(), after.layers.parameters()))
