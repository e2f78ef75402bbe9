"""Checkpoints of every family, in and out; training that continues from them; embeddings.

tests/checkpoints holds tiny random ones that another library wrote, each with inputs and what it computed (parity.pt).
"""

import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, implementations, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as algorithms

import configs
import data
import finetune
import kgi
import model as models
from beyond import embed as embedding
from configs import UserError, command_line
from support import reports, runs, tokenizers
from support.labels import Document, align_entities
from support.layouts import MicroBatch
from support.pooling import Pooling, inherit_pooling, read_pooling, write_pooling
from support.tensors import DTYPES, read_safetensors, read_torch, write_safetensors
from support.windows import make_windows
from tests.conftest import ROOT, build
from tests.test_evaluate import run_command
from tests.test_files import Narrow

pytestmark = pytest.mark.usefixtures("known_machine")

HERE = Path(__file__).parent / "checkpoints"
OWN_HEADS = ("relation_head", "triple_head")  # initialised randomly where a file has none
NO_OWN_HEADS = [f"no {head} in the checkpoint; initialised randomly" for head in OWN_HEADS]
FAMILIES = sorted(p.name for p in HERE.iterdir() if not p.name.startswith("modernbert"))  # it has a file of its own
SILENT = str.format  # a `log` that prints nothing


def written(family):
    """{name: tensor} of a fixture, read by hand."""
    content = (HERE / family / "model.safetensors").read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + n])
    header.pop("__metadata__")
    out = {}
    for name, e in header.items():
        begin, end = (8 + n + x for x in e["data_offsets"])
        out[name] = torch.from_numpy(np.frombuffer(content[begin:end], "<f4").reshape(e["shape"]).copy())
    return out


def folder_with(path, family, weights, **config):
    """A checkpoint folder with these weights as pytorch_model.bin and a changed config.json."""
    path.mkdir(exist_ok=True)
    d = json.loads((HERE / family / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(d | config))
    torch.save(weights, path / "pytorch_model.bin")
    return path


def equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items() if not k.startswith(OWN_HEADS))


# ---------------------------------------------------------------- in


def computes_as_its_library(name):
    """Compares a fixture with the outputs of the library that wrote it. Returns: (model with gradients, parity.pt)."""
    lines = []
    model = models.load(HERE / name, dropout=0.0, log=lines.append)
    assert lines == [f"{HERE / name}: {line}" for line in NO_OWN_HEADS]
    want = read_torch(HERE / name / "parity.pt")
    mask, targets = want["am"].bool(), (want["labels"].ravel() != -100).nonzero().ravel()
    hidden = model.encoder(want["ids"], mask)
    assert (hidden - want["hidden"])[mask].abs().max() < 1e-5
    logits = model.mlm_head(hidden)
    assert (logits - want["logits"])[mask].abs().max() < 1e-5 * want["logits"].abs().max()
    labels, heads = want["labels"].ravel()[targets], ("mlm_head", "relation_head", "triple_head")
    n_targets = [len(targets), 0, 0]
    out = model(MicroBatch(want["ids"], mask, None, targets, labels, targets // mask.shape[1], n_targets, heads))
    loss = out[0, 0] / len(targets)
    loss.backward()
    assert loss.item() == pytest.approx(want["loss"].item(), abs=1e-5)
    assert (model.encoder.word.weight.grad - want["gword"]).abs().max() < 1e-6
    return model, want


@pytest.mark.parametrize("family", FAMILIES)
def test_computes_what_another_library_computed(family):
    """Hidden states, logits, loss and gradients as that library computed them."""
    model, want = computes_as_its_library(family)
    offset = 0 if family in ("bert", "distilbert") else 2
    assert model.encoder.config.position_offset == offset and model.encoder.config.max_positions == 32
    assert (model.encoder.position.weight.grad - want["gpos"][offset:]).abs().max() < 1e-6


def bare(weights):
    return {n.removeprefix("bert.").removeprefix("roberta.").removeprefix("distilbert."): t for n, t in weights.items()}


DRESSES = {
    "as it is": lambda w: w,
    "no prefix": bare,
    "compiled and wrapped": lambda w: {f"_orig_mod.module.{n}": t for n, t in w.items()},
    "wrapped and compiled": lambda w: {f"module._orig_mod.{n}": t for n, t in w.items()},
    "inside a model": lambda w: {f"transformer.{n}" if "embeddings" in n else n: t for n, t in bare(w).items()},
    "old names": lambda w: {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): w[n] for n in w},
    "double": lambda w: {n: t.double() for n, t in w.items()},
    "parameters": lambda w: {n: torch.nn.Parameter(t) for n, t in w.items()},
    "old buffers": lambda w: w | {"bert.embeddings.position_ids": torch.arange(32)[None]},
}


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensor_names_of_wrapped_and_old_models(tmp_path, family, dress):
    plain = models.load(HERE / family, log=SILENT)
    assert equal(plain, models.load(folder_with(tmp_path / "x", family, DRESSES[dress](written(family))), log=SILENT))


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_the_tied_weights(tmp_path, family):
    """Equal ones are fine. Others mean a head that is not tied, which is refused; the encoder alone can be read."""
    decoder = {"distilbert": "vocab_projector", "bert": "cls.predictions.decoder"}.get(family, "lm_head.decoder")
    weights = written(family)
    words = weights[[n for n in weights if "word_embeddings" in n][0]]
    plain = models.load(HERE / family, log=SILENT)
    path = folder_with(tmp_path / "x", family, weights | {f"{decoder}.weight": words.clone()})
    assert equal(plain, models.load(path, log=SILENT))
    if family != "distilbert":
        bias = weights.pop(f"{decoder.removesuffix('.decoder')}.bias")
        path = folder_with(tmp_path / "x", family, weights | {f"{decoder}.bias": bias})
        assert equal(plain, models.load(path, log=SILENT))
    path = folder_with(tmp_path / "x", family, written(family) | {f"{decoder}.weight": words + 1})
    with pytest.raises(UserError, match=f"{decoder}.weight differs from .* not tied to the word embeddings"):
        models.load(path)
    assert equal(plain.encoder, models.load(path, encoder_only=True, log=SILENT).encoder)


def test_words_under_the_decoders_name_alone(tmp_path):
    weights = written("bert")
    weights["cls.predictions.decoder.weight"] = weights.pop("bert.embeddings.word_embeddings.weight")
    path, plain = folder_with(tmp_path / "x", "bert", weights), models.load(HERE / "bert", log=SILENT)
    assert equal(plain, models.load(path, log=SILENT))
    assert equal(plain.encoder, models.load(path, encoder_only=True, log=SILENT).encoder)


def test_half_precision_and_several_files(tmp_path):
    plain = models.load(HERE / "bert", log=SILENT)
    half = {n: t.half() for n, t in written("bert").items()}
    model = models.load(folder_with(tmp_path / "half", "bert", half, torch_dtype="float16"), log=SILENT)
    state = plain.state_dict()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all((p - state[n]).abs().max() < 2e-3 for n, p in model.state_dict().items() if not n.startswith(OWN_HEADS))
    folder = folder_with(tmp_path / "parts", "bert", {})
    (folder / "pytorch_model.bin").unlink()
    where = {}
    for i, name in enumerate(written("bert")):
        where[name] = f"model-{i % 3}.safetensors"
    for part in set(where.values()):
        with open(folder / part, "wb") as f:
            write_safetensors(f, {n: t for n, t in written("bert").items() if where[n] == part})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert equal(plain, models.load(folder, log=SILENT))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(UserError, match="model-1.safetensors not found"):
        models.load(folder)
    for wrong in ({"a": "../x"}, {"a": 1}, [1]):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(UserError, match="its weight_map does not name files beside it"):
            models.load(folder)


def test_unused_parts_of_other_models_are_listed(tmp_path):
    lines, extra = [], {"bert.pooler.dense.weight": torch.ones(2), "cls.seq_relationship.bias": torch.ones(2)}
    models.load(folder_with(tmp_path / "x", "bert", written("bert") | extra), log=lines.append)
    assert lines[2].endswith("not used: cls.seq_relationship.bias, pooler.dense.weight")
    encoder = {n: t for n, t in written("bert").items() if not n.startswith("cls")} | {"classifier.bias": torch.ones(2)}
    path = folder_with(tmp_path / "y", "bert", encoder)
    lines.clear()
    models.load(path, log=lines.append)
    no_heads = ["no vocabulary head in the checkpoint; initialised randomly", *NO_OWN_HEADS]
    assert lines == [f"{path}: {line}" for line in (*no_heads, "not used: classifier.bias")]
    lines.clear()
    models.load(HERE / "bert", encoder_only=True, log=lines.append)
    assert not lines


def test_what_does_not_fit_is_listed(tmp_path):
    def raises(message, change, **config):
        weights = written("roberta")
        change(weights)
        with pytest.raises(UserError, match=message):
            models.load(folder_with(tmp_path / "x", "roberta", weights, **config))

    def two_faults(w):
        del w["roberta.encoder.layer.1.output.dense.bias"]
        w["roberta.extra.weight"] = torch.ones(1)
        w["roberta.embeddings.LayerNorm.bias"] = torch.ones(31)

    raises(
        r"missing: encoder.layer.1.output.dense.bias \(1\); left over: extra.weight \(1\); "
        r"wrong shape: embeddings.LayerNorm.bias \(31,\) where config.json says \(32,\)",
        two_faults,
    )
    raises("missing: lm_head.dense.bias", lambda w: w.pop("lm_head.dense.bias"))
    raises("missing: embeddings.token_type", lambda w: w.pop("roberta.embeddings.token_type_embeddings.weight"))
    raises(r"wrong shape: .*position_embeddings.* \(34, 32\) where config.json says \(40, 32\)", dict.copy,
           max_position_embeddings=40)  # fmt: skip
    raises(r"left over: encoder.layer.1.attention.output.LayerNorm.bias, .* \(16\)", dict.copy, num_hidden_layers=1)
    raises(r"missing: encoder.layer.2.*\.\.\. \(32\)", dict.copy, num_hidden_layers=4)
    raises(r"duplicate tensor .* \(with and", lambda w: w.update({"module.lm_head.bias": w["lm_head.bias"]}))
    raises("not a file of named tensors", lambda w: w.update(step=3))
    raises("not a file of named tensors", lambda w: w.update({1: torch.ones(1)}))
    strange = {"nan": lambda t: t * float("nan"), "sparse": torch.Tensor.to_sparse, "whole": torch.Tensor.long}
    for change in (*strange.values(), lambda t: t * 1j):
        raises(
            "not plain finite numbers: lm_head.b", lambda w, f=change: w.update({"lm_head.bias": f(w["lm_head.bias"])})
        )
    raises("activation 'silu' is not supported, only gelu, ", dict.copy, hidden_act="silu")
    raises(
        "position_embedding_type = 'relative_key' is not supported", dict.copy, position_embedding_type="relative_key"
    )
    raises("is_decoder = True is not supported", dict.copy, is_decoder=True)
    raises("model_type 't5' is not supported, only distilbert, bert, roberta", dict.copy, model_type="t5")
    raises("heads = 5 does not divide dim = 32", dict.copy, num_attention_heads=5)
    raises("max_positions = 0 is not a whole number from 1 to 16,777,216", dict.copy, max_position_embeddings=2)
    for wrong in (
        {"num_hidden_layers": "1"}, {"num_attention_heads": 0}, {"hidden_dropout_prob": "x"}, {"vocab_size": -1},
        {"pad_token_id": 999}, {"pad_token_id": "1"}, {"layer_norm_eps": 3}, {"hidden_size": 2**40},
        {"vocab_size": 2**63}, {"num_hidden_layers": 10**6}, {"type_vocab_size": 2**63}, {"hidden_act": ["gelu"]},
        {"hidden_size": None}, {"model_type": ["bert"]}, {"pad_token_id": None, "max_position_embeddings": "9"},
    ):  # fmt: skip
        raises("config.json: ", dict.copy, **wrong)


def test_tasks_that_are_no_list_of_names_are_dropped(tmp_path):
    for value, kept in ((5, None), (None, None), ("mlm", None), ([1, "mlm", []], ["mlm"])):
        folder = folder_with(tmp_path / "x", "bert", written("bert"), kgi_tasks=value)
        assert models.load_config(folder).extra_config.get("kgi_tasks") == kept


def test_missing_and_damaged_files_are_named(tmp_path):
    good = folder_with(tmp_path / "good", "bert", written("bert"))
    content = (good / "pytorch_model.bin").read_bytes()

    def raises(message, **files):
        folder = tmp_path / "x"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        for name, content in files.items():
            path = folder / name.replace("_json", ".json").replace("_bin", ".bin").replace("_st", ".safetensors")
            path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            models.load(folder)

    with pytest.raises(UserError, match="config.json not found; is .*none a checkpoint folder"):
        models.load(tmp_path / "none")
    raises("config.json: cannot be read as JSON", config_json=b"{")
    raises("config.json: cannot be read as JSON", config_json=b"[]")
    raises("config.json: cannot be read as JSON", config_json=b"\xff")
    raises("config.json is a pointer of Git LFS", config_json=b"version https://git-lfs.github.com/spec/v1\noid")
    raises("config.json: no vocab_size in it", config_json=b'{"model_type": "bert"}')
    raises("holds neither model.safetensors nor pytorch_model.bin", pytorch_model_bin=None)
    for damaged in (content[:900], b"", b"hello", content[:-9]):
        raises("pytorch_model.bin: damaged or not a weights file", pytorch_model_bin=damaged)
    raises(
        "pointer of Git LFS, not the file: run 'git lfs pull'",
        model_st=b"version https://git-lfs.github.com/spec/v1\noid",
    )


# ---------------------------------------------------------------- safetensors


def tensors_of(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    return read_safetensors(tmp_path / "x.safetensors")


def file_of(header, payload=b""):
    text = header if type(header) is bytes else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def entry(dtype="F32", shape=(1,), at=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


def test_safetensors_there_and_back(tmp_path):
    """What is written can be read, by hand too; every type of number is read."""
    f = io.BytesIO()
    want = {"a": torch.randn(3, 4), "b": torch.randn(6, 5).T, "ä": torch.tensor(2.5), "c": torch.randn(7)}
    write_safetensors(f, want)
    content = f.getvalue()
    got = tensors_of(content, tmp_path)
    assert got.keys() == want.keys() and all(torch.equal(got[k], v) for k, v in want.items())
    n = struct.unpack("<Q", content[:8])[0]
    assert n % 8 == 0 and json.loads(content[8 : 8 + n])["b"] == entry(shape=(5, 6), at=(48, 168))
    assert struct.unpack("<f", content[8 + n + 168 : 8 + n + 172]) == (2.5,)
    for name, dtype in DTYPES.items():
        x = torch.tensor([[0, 1, 3]]).to(dtype)
        payload = x.view(torch.uint8).numpy().tobytes() if dtype != torch.bool else bytes([0, 1, 1])
        header = {"x": entry(name, (1, 3), (0, len(payload))), "empty": entry(shape=(0, 2**62), at=(len(payload),) * 2)}
        assert torch.equal(tensors_of(file_of(header, payload), tmp_path)["x"], x)


@pytest.mark.parametrize("content", [
    b"", b"abc", struct.pack("<Q", 5), struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 10) + b"{}",
    struct.pack("<Q", 2**64 - 1) + b"{}" * 9, file_of(b"{"), file_of(b"[]"), file_of(b"\xff\xff"),
    file_of(b"[" * 10**5),
    file_of({"x": 3}), file_of({"x": []}), file_of({"x": {"dtype": "F32"}}), file_of({"x": entry("F8_E4M3")}, b"1234"),
    file_of({"x": entry() | {"dtype": ["F32"]}}, b"1234"), file_of({"x": entry() | {"shape": 1}}, b"1234"),
    file_of({"x": entry() | {"data_offsets": 4}}, b"1234"), file_of({"x": entry() | {"data_offsets": [0]}}, b"1234"),
    file_of({"x": entry() | {"data_offsets": [0, 4, 4]}}, b"1234"), file_of({"x": entry(at=(0, "4"))}, b"1234"),
    file_of({"x": entry(at=(None, None))}, b"1234"), file_of({"x": entry(shape=(-1,), at=(4, 0))}, b"1234"),
    file_of({"x": entry(shape=(True,))}, b"1234"), file_of({"x": entry(shape=(1.0,))}, b"1234"),
    file_of({"x": entry(shape=[1] * 9)}, b"1234"), file_of({"x": entry(shape=[10**4000] * 4000)}, b"1234"),
    file_of({"x": entry(shape=(2**62, 4))}, b"1234"), file_of({"x": entry(shape=(2,), at=(0, 8))}, b"1234"),
    file_of({"x": entry(at=(0, 10**30))}, b"1234"), file_of({"x": entry(at=(4, 8))}, b"12345678"),
    file_of({"x": entry(), "y": entry()}, b"1234"), file_of({"x": entry(), "y": entry(at=(2, 6))}, b"123456"),
    file_of({"x": entry()}, b"12345"), file_of({}, b"1"),
    file_of({"x": entry(), "y": entry(at=("4", "8"))}, b"12345678"),
    file_of(b'{"x": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % (b"9" * 5000), b"1234"),
])  # fmt: skip
def test_malformed_safetensors(tmp_path, content):
    with pytest.raises(UserError, match="x.safetensors: damaged or not a safetensors file"):
        tensors_of(content, tmp_path)


def test_random_damage_to_safetensors(tmp_path):
    """Bytes changed at random: tensors of the sizes that the file holds, or one clear error; never anything else."""
    rng, good = random.Random(0), (HERE / "bert" / "model.safetensors").read_bytes()
    head = 8 + struct.unpack("<Q", good[:8])[0]
    refused = 0
    for _ in range(600):
        content = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(rng.choice([8, head]))] = rng.randrange(256)
        try:
            got = tensors_of(bytes(content), tmp_path)
            assert sum(t.numel() * t.element_size() for t in got.values()) <= len(good) - 8
        except UserError:
            refused += 1
    assert refused > 300


# ---------------------------------------------------------------- out


@pytest.mark.parametrize("family", FAMILIES)
def test_in_out_in_is_bit_exact(tmp_path, family):
    model = models.load(HERE / family, log=SILENT)
    model.save(tmp_path / "a")
    again = models.load(tmp_path / "a", log=pytest.fail)
    again.save(tmp_path / "b")
    state = again.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.encoder.config == again.encoder.config
    assert torch.equal(model.encoder.token_types, again.encoder.token_types)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_keeps_its_layout(tmp_path, family):
    """Names, shapes and values of the file that came in, but for token type 0, which went into the positions."""
    models.load(HERE / family, log=SILENT).save(tmp_path)
    before, after = written(family), read_safetensors(tmp_path / "model.safetensors")
    extra = {n for n in after if n.startswith(OWN_HEADS) or n.endswith("decoder.bias")}
    assert set(after) - extra == set(before) and len(extra) == (4 if family == "distilbert" else 5)
    for name, tensor in before.items():
        assert tensor.shape == after[name].shape and after[name].dtype == torch.float32
        assert torch.equal(tensor, after[name]) or "position_emb" in name or "token_type" in name
    if family != "distilbert":
        prefix = "bert" if family == "bert" else "roberta"
        sums = []
        for w in (before, after):  # what is added at each position for each type of token
            position, types = (w[f"{prefix}.embeddings.{x}_embeddings.weight"] for x in ("position", "token_type"))
            sums.append(position[0 if family == "bert" else 2 :, None] + types)
        assert (sums[0] - sums[1]).abs().max() < 1e-6
    old, new = (json.loads((d / "config.json").read_text()) for d in (HERE / family, tmp_path))
    assert all(old[key] == value for key, value in new.items() if key in old)
    left = set(old) - set(new) - {"transformers_version", "dtype", "use_cache", "tie_word_embeddings"}
    assert all(not old[key] for key in left - {"qa_dropout", "seq_classif_dropout"})  # nothing the encoder depends on


def test_scratch_models_have_distilberts_layout(tmp_path):
    for layers, heads in ((12, 12), (8, 8)):
        model = models.KGIBert(models.Config(60, 20, 24 * heads // 4, layers, heads, 32))
        model.save(tmp_path / str(layers))
        d = json.loads((tmp_path / str(layers) / "config.json").read_text())
        assert d["model_type"] == "distilbert" and (d["n_layers"], d["n_heads"]) == (layers, heads)
        names = read_safetensors(tmp_path / str(layers) / "model.safetensors").keys()
        fixture = written("distilbert").keys()
        shape_of = {n.replace(".1.", ".0.") for n in fixture}
        assert {n for n in names if ".layer." not in n or ".layer.0." in n} - shape_of == {
            f"{head}.{end}" for head in OWN_HEADS for end in ("weight", "bias")
        }
        assert equal(model, models.load(tmp_path / str(layers), log=pytest.fail))


# ---------------------------------------------------------------- new tokens


def test_new_tokens_start_around_the_mean_of_the_old(tmp_path):
    """Old rows and logits stay; new ones lie around the mean of the old; the seed decides."""
    model = models.load(HERE / "bert", dropout=0.0, log=SILENT)
    want = read_torch(HERE / "bert" / "parity.pt")
    mask = want["am"].bool()
    word, bias = model.encoder.word.weight.detach().clone(), model.mlm_bias.detach().clone()
    new = [90, 95, *range(96, 500)]  # the first two have rows that were never trained
    torch.manual_seed(3)
    models.resize_token_embeddings(model, new, 500)
    known = [i for i in range(96) if i not in new]
    grown = model.encoder.word.weight.detach()
    assert grown.shape == (500, 32) and model.mlm_bias.shape == (500,) and model.encoder.config.vocab_size == 500
    assert torch.equal(grown[known], word[known]) and torch.equal(model.mlm_bias[known], bias[known])
    away = grown[new] - word[known].mean(0)
    assert away.std() == pytest.approx(0.02, rel=0.05) and away.mean().abs() < 1e-3
    assert len(away.unique(dim=0)) == len(new)
    assert (model.mlm_bias[new] - bias[known].mean()).abs().max() < 1e-6
    ids = want["ids"].clone()
    ids[(ids == 90) | (ids == 95)] = 7
    fresh = models.load(HERE / "bert", dropout=0.0, log=SILENT)
    logits = [m.mlm_head(m.encoder(ids, mask)) for m in (fresh, model)]
    assert torch.equal(logits[0][mask][:, known], logits[1][mask][:, known])
    assert all(p.requires_grad for p in model.parameters())
    torch.manual_seed(3)
    models.resize_token_embeddings(fresh, new, 500)
    assert torch.equal(fresh.encoder.word.weight, model.encoder.word.weight)
    smaller = models.load(HERE / "bert", log=SILENT)
    models.resize_token_embeddings(smaller, [], 50)  # never fewer than the checkpoint has
    assert torch.equal(smaller.encoder.word.weight, word) and torch.equal(smaller.mlm_bias, bias)


# ---------------------------------------------------------------- continue training from a checkpoint


def checkpoint(folder, family, texts, positions=70):
    """A tiny checkpoint as one finds them: no heads but the vocabulary's, its family's kind of tokenizer files."""
    folder.mkdir(parents=True)
    if family in ("bert", "distilbert"):
        vocab = tokenizers.train_wordpiece([texts], 400, False, data.NEW_TOKENS).get_vocab()
        words = [w for w in sorted(vocab, key=vocab.get) if w not in data.NEW_TOKENS]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    elif family == "roberta":
        bpe = implementations.ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        bpe.train_from_iterator(texts, 500, special_tokens=special, show_progress=False)
        bpe.save_model(str(folder))
    else:
        t = Tokenizer(algorithms.Unigram())
        t.normalizer, t.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        special = ["<s>NOTUSED", "<pad>", "<s>", "</s>", "<unk>", "<mask>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        t.train_from_iterator(texts, trainer)
        t.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
        t.save(str(folder / "tokenizer.json"))
    tokenizer = tokenizers.load(folder)
    pad = tokenizers.special_ids(tokenizer)["pad"]
    type_vocab_size = {"bert": 2, "distilbert": 0}.get(family, 1)
    torch.manual_seed(1)
    model = models.KGIBert(
        models.Config(tokenizers.vocab_size(tokenizer) + 3, positions, 32, 2, 4, 48, 0.1, pad, family=family,
                      eps=1e-12 if family in ("bert", "distilbert") else 1e-5, type_vocab_size=type_vocab_size)
    )  # fmt: skip
    model.save(folder)
    weights = read_safetensors(folder / "model.safetensors")
    weights = {n: t for n, t in weights.items() if not n.startswith(OWN_HEADS)}
    if type_vocab_size:
        weights[("bert" if family == "bert" else "roberta") + ".embeddings.token_type_embeddings.weight"].normal_()
    with open(folder / "model.safetensors", "wb") as f:
        write_safetensors(f, weights)
    return folder


@pytest.fixture(scope="module")
def texts(release):
    return [line.split("|")[14] for line in (release / "META" / "MRCONSO.RRF").read_text().splitlines()][:1500]


def train(**settings):
    """Trains to the end, as the command does."""
    with pytest.raises(SystemExit) as end:
        kgi.train(configs.Train(**TINY | settings))
    assert end.value.code == 0


def set_up(**settings):
    return kgi.set_up(configs.Train(**TINY | settings))


TINY = {"steps": 4, "batch_size": 40, "lr": 1e-3, "log_every": 1, "valid_every": 2, "device": "cpu"}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_continues_from_a_checkpoint(release, texts, tmp_path, family, monkeypatch, capsys):
    """Data with its tokenizer, pre-training from its weights, a folder of its own layout, NER and embeddings on it."""
    monkeypatch.chdir(tmp_path)
    start = checkpoint(tmp_path / "models" / "start", family, texts)
    build(release, "", tokenizer=str(start))
    build(release, "datasets/en")  # another tokenizer: not the one to be found
    run = set_up(init=str(start))
    assert str(run.train.folder) == "datasets/en-start" and str(run.out) == "runs/kgi-en-start"
    old, special = models.load(start, log=SILENT), run.train.special
    n = tokenizers.vocab_size(tokenizers.load(start))
    assert special["relations"] + [special["hrel"]] == list(range(n, n + 8))
    assert special["pad"] == old.encoder.config.pad_token_id
    word = run.model.encoder.word.weight
    assert len(word) == n + 8 and torch.equal(word[:n], old.encoder.word.weight[:n])
    assert (word[n : n + 3] != old.encoder.word.weight[n:]).all()  # rows that no token had
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    runs.resume(run)
    kgi.begin(run)
    kgi.training_loop(run)
    out = Path("runs/kgi-en-start")
    model = models.load(out, log=pytest.fail)
    state = model.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(v, state[k])}
    assert moved == before.keys() and torch.equal(model.encoder.token_types, old.encoder.token_types)
    assert all(torch.equal(v, run.model.state_dict()[k]) for k, v in state.items())
    a, b = (json.loads((d / "config.json").read_text()) for d in (start, out))
    assert a | {"vocab_size": n + 8, "kgi_tasks": list(data.TASK_NAMES)} == b
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    wordpiece = family in ("bert", "distilbert")
    assert tokenizer["model_max_length"] == 70 and tokenizer["pad_token"] == ("[PAD]" if wordpiece else "<pad>")
    assert tokenizer["additional_special_tokens"][-8:] == list(data.NEW_TOKENS)
    assert ("token_type_ids" in tokenizer["model_input_names"]) == (family == "bert")
    roles = json.loads((out / "special_tokens_map.json").read_text())
    assert roles.items() <= tokenizer.items() and len(roles) == 6
    card = (out / "README.md").read_text()
    assert "continues the training of `start`" in card and "| en |" in card and "held out, at step 4" in card
    assert (out / "tokenizer.json").read_bytes() == Path("datasets/en-start/tokenizer.json").read_bytes()
    assert read_pooling(out) == Pooling("cls", 70)

    again = set_up(init=str(out), out="runs/again")  # no token is new now
    assert all(torch.equal(v, state[k]) for k, v in again.model.state_dict().items())
    capsys.readouterr()
    corpus = ["--corpus", "e3c", "--data", str(release / "ner" / "en"), "--device", "cpu"]
    for folder in (start, out):
        function, s = command_line.parse([str(folder), *corpus], finetune.__doc__, finetune.COMMANDS, "run")
        function(s)
        assert "windows of up to 70 tokens" in capsys.readouterr().out


def test_a_run_from_a_checkpoint_resumes_exactly(release, texts, tmp_path, monkeypatch, capsys):
    """With BERT's token types: stopped and resumed, the weights are the same to the bit."""
    start = checkpoint(tmp_path / "start", "bert", texts)
    pooled(start, MEAN, max_seq_length=9)
    dataset = build(release, tmp_path / "data", tokenizer=str(start))
    settings = {"steps": 6, "valid_every": 3, "data": str(dataset), "init": str(start)}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    capsys.readouterr()
    train(**settings, out=str(whole))
    assert capsys.readouterr().out.count("initialised randomly") == len(OWN_HEADS)
    write = reports.write_metrics

    def leave(run, record):
        write(run, record)
        if record["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(reports, "write_metrics", leave)
        with pytest.raises(KeyboardInterrupt):
            kgi.train(configs.Train(**TINY | settings, out=str(stopped)))
    train(**settings, out=str(stopped))
    assert "training steps 3 to 6" in capsys.readouterr().out
    assert read_pooling(stopped) == read_pooling(start) == Pooling("mean", 9)
    a, b = (read_torch(out / "checkpoint.pt")["model"] for out in (whole, stopped))
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_checkpoint_that_does_not_fit_the_data_is_refused(release, dataset, texts, tmp_path, monkeypatch):
    start = checkpoint(tmp_path / "start", "roberta", texts, positions=60)
    another = "has another tokenizer than .*start; build one with: make data .* TOKENIZER='.*start'"
    with pytest.raises(UserError, match=another):
        set_up(data=str(dataset), init=str(start))
    own = build(release, tmp_path / "own", tokenizer=str(start))
    with pytest.raises(UserError, match="has 60 positions and .* sequences of up to 64 tokens"):
        set_up(data=str(own), init=str(start))
    d = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(d | {"pad_token_id": 0, "max_position_embeddings": 62}))
    with pytest.raises(UserError, match="pads with token 0, its tokenizer with 1"):
        set_up(data=str(own), init=str(start))
    (start / "config.json").write_text(json.dumps(d))
    (start / "tokenizer_config.json").write_text('{"add_prefix_space": true}')  # the same vocabulary, other text
    with pytest.raises(UserError, match="has another tokenizer"):
        set_up(data=str(own), init=str(start))
    (start / "tokenizer_config.json").unlink()
    for more, message in (
        ({"out": str(start)}, "--init and --out are both"),
        ({"layers": 9}, "layers = 9, but .*start has 2; leave it out"),
    ):
        with pytest.raises(UserError, match=message):
            set_up(data=str(own), init=str(start), **more)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no data set under datasets/ has the tokenizer of .*start; build one with"):
        set_up(init=str(start))


def test_a_run_does_not_resume_from_other_initial_weights(release, texts, tmp_path):
    """A run is bound to the checkpoint that it began with."""
    start = checkpoint(tmp_path / "start", "distilbert", texts)
    dataset = build(release, tmp_path / "data", tokenizer=str(start))
    settings = {"data": str(dataset), "init": str(start), "out": str(tmp_path / "run")}
    train(**settings)
    weights = read_safetensors(start / "model.safetensors")
    weights["distilbert.embeddings.LayerNorm.bias"] += 1
    with open(start / "model.safetensors", "wb") as f:
        write_safetensors(f, weights)
    with pytest.raises(UserError, match="cannot resume .*: init has changed"):
        kgi.train(configs.Train(**TINY | settings))


def test_names_and_words_are_encoded_as_in_the_middle_of_a_text(release, texts, tmp_path):
    """To a byte-level BPE a word with a space before it is another one than a word that begins a text."""
    start = checkpoint(tmp_path / "start", "roberta", texts)
    dataset = data.PretrainingDataset(build(release, tmp_path / "data", tokenizer=str(start)), "train")
    tokenizer = tokenizers.load(start, data.NEW_TOKENS)
    for i in np.flatnonzero(dataset.task == data.EP)[:50]:
        ids = dataset.ids[dataset.offsets[i] : dataset.offsets[i + 1]]
        tokens = [tokenizer.id_to_token(x) for x in ids]
        names = [0, *(j + 1 for j, t in enumerate(tokens) if t in data.NEW_TOKENS[:-1])]
        assert len(names) == 2 and all(tokens[j].startswith("\u0120") for j in names)
    special = tokenizers.special_ids(tokenizer)
    sentences = [Document("x", ["kidney", "liver"], ["O", "O"])]
    ((_, _, ids, positions),) = make_windows(sentences, tokenizer, special, 60)
    assert all(tokenizer.id_to_token(ids[p]).startswith("\u0120") for p in positions)
    text = align_entities("x", "acute liver-kidney", [], None, Counter())  # a word touches the one before
    ((_, _, ids, positions),) = make_windows([text], tokenizer, special, 60)
    assert [tokenizer.id_to_token(ids[p])[0] == "\u0120" for p in positions] == [True, True, False, False]


# ---------------------------------------------------------------- embeddings


def embed(*args):
    run_command(embedding, "--device", "cpu", *args)


def embedded(monkeypatch, folder, stdin, *args):
    """What `beyond.embed` writes, in this process; what fails must have written nothing."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    out = sys.stdout
    try:
        embed(folder, *args)
    except UserError:
        assert not out.buffer.getvalue()
        raise
    finally:
        monkeypatch.undo()
    return np.load(io.BytesIO(out.buffer.getvalue()))


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_embed(texts, tmp_path, family, monkeypatch, capsys):
    """One vector a line, in the lines' order, each as if computed alone."""
    start = checkpoint(tmp_path / "start", family, texts, positions=20)
    lines = ["foie", "", "Hépatite aiguë [SEP]", "  rein ", *texts[:40], "x " * 100, "fin"]
    encoder, tokenizer = models.load(start, encoder_only=True, log=SILENT).encoder.eval(), tokenizers.load(start)
    special = tokenizers.special_ids(tokenizer)
    tokenizer.encode_special_tokens = True
    for pooling, end in (("cls", "\n"), ("mean", "\r\n")):
        stdin = end.join(lines).encode() + b"\n" * (pooling == "cls")
        got = embedded(monkeypatch, start, b"\xef\xbb\xbf" + stdin, "--pooling", pooling)
        assert got.dtype == np.float32 and got.shape == (len(lines), 32)
        assert "1 lines of more than 18 tokens were cut" in capsys.readouterr().err
        for line, vector in zip(lines, got):
            ids = tokenizer.encode(" " + line.strip(), add_special_tokens=False).ids[:18]
            hidden = encoder(torch.tensor([[special["cls"], *ids, special["sep"]]]))[0]
            want = hidden[0] if pooling == "cls" else hidden.mean(0)
            assert np.abs(vector - want.detach().numpy()).max() < 1e-5


def test_embed_takes_a_file(texts, tmp_path, monkeypatch):
    start = checkpoint(tmp_path / "start", "bert", texts)
    (tmp_path / "terms.txt").write_text("foie\nrein\n")
    want = embedded(monkeypatch, start, b"foie\nrein\n")
    assert np.array_equal(embedded(monkeypatch, start, b"other\n", tmp_path / "terms.txt"), want)
    (tmp_path / "terms.txt").write_bytes(b"foie\n\xff")
    with pytest.raises(UserError, match="terms.txt, row 2: not UTF-8"):
        embedded(monkeypatch, start, b"", tmp_path / "terms.txt")


def test_folders_that_hold_no_checkpoint_say_what_to_do(tmp_path, monkeypatch):
    """A model of the hub is downloaded first; a run that has saved nothing yet is no other folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="^runs/new: its run has saved no checkpoint yet; wait for it, or"):
        models.load_config("runs/new")
    clone = "(to download that model: git lfs install && git clone https://huggingface.co/"
    for name in ("bert-base-uncased", "Dr-BERT/DrBERT-4GB"):
        for load in (models.load_config, tokenizers.load):
            with pytest.raises(UserError) as e:
                load(name)
            assert str(e.value).endswith(f" {clone}{name})")
    for name in ("runs/x", "runs", "a/b/c", "/x", "../x"):
        with pytest.raises(UserError) as e:
            models.load_config(name)
        assert "huggingface" not in str(e.value)


def test_embed_in_pieces(texts, tmp_path):
    """More texts than are computed at a time."""
    start = checkpoint(tmp_path / "start", "distilbert", texts)
    encoder = models.load(start, encoder_only=True, log=SILENT).encoder.eval()
    tokenizer = tokenizers.load(start)
    ids, length = tokenizers.encode(tokenizer, [t for t in texts for _ in range(12)], "x")
    blocks = list(embedding.embed(encoder, tokenizers.special_ids(tokenizer), ids, length, ["mean"], 68, None))
    got = np.concatenate(blocks)[:, 0]
    assert len(blocks) == 2 and len(got) == 12 * len(texts)
    assert np.abs(got.reshape(len(texts), 12, -1) - got[::12, None]).max() < 1e-5


@pytest.mark.parametrize("stdin, args, message", [
    (b"a\nb\xff\n", [], "standard input, row 2: byte 0xff is not UTF-8"),
    (b"", [], "standard input is empty; give one term a line"),
    (b"a", ["--pooling", "max"], "pooling = 'max' is not one of cls, mean"),
    (b"a", [], "the tokenizer has neither [MASK] nor <mask>"),
    (b"a", ["--max_len", "2"], "max_len = 2 leaves no room"),
    (b"a", ["--poling", "cls"], "did you mean 'pooling'?"),
])  # fmt: skip
def test_mistakes_of_embed_are_one_line(texts, tmp_path, stdin, args, message, monkeypatch):
    start = checkpoint(tmp_path / "start", "bert", texts)
    if message.startswith("the tokenizer has"):
        (start / "vocab.txt").write_text((start / "vocab.txt").read_text().replace("[MASK]", "[masque]"))
    with pytest.raises(UserError, match=re.escape(message)):
        embedded(monkeypatch, start, stdin, *args)


def test_embed_as_a_command(texts, tmp_path):
    start = checkpoint(tmp_path / "start", "bert", texts)
    argv = [sys.executable, "-m", "beyond.embed", start]
    p = subprocess.run(argv, cwd=ROOT, input=b"foie\nrein\n", capture_output=True)
    assert p.returncode == 0 and np.load(io.BytesIO(p.stdout)).shape == (2, 32), p.stderr
    p = subprocess.run(["sh", "-c", '"$0" -m beyond.embed "$1" <&-', sys.executable, start], cwd=ROOT,
                       capture_output=True, text=True)  # fmt: skip
    assert (p.returncode, p.stdout) == (1, "")
    assert re.fullmatch(
        "python -m beyond.embed: error: standard input is closed; give one term a line: .*\\n", p.stderr
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_embed_on_a_full_disk(texts, tmp_path, unbuffered):
    start = checkpoint(tmp_path / "start", "bert", texts)
    with open("/dev/full", "wb") as full:
        p = subprocess.run([sys.executable, "-m", "beyond.embed", start], cwd=ROOT, input=b"foie\n" * 9, stdout=full,
                           stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})  # fmt: skip
    line = b"python -m beyond.embed: error: standard output cannot be written: No space left on device\n"
    assert (p.returncode, p.stderr) == (1, line)


def test_embed_to_a_stream_that_takes_little_at_a_time(texts, tmp_path, monkeypatch, capsys):
    start = checkpoint(tmp_path / "start", "bert", texts)
    want = embedded(monkeypatch, start, b"foie\nrein\n" * 20)
    for size, done in ((10**6, True), (1000, False)):
        raw = Narrow(100, size)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"foie\nrein\n" * 20)))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, write_through=True))
        if done:
            embed(start)
        else:
            with pytest.raises(UserError, match="standard output cannot be written: it takes no more"):
                embed(start)
        monkeypatch.undo()
        assert not done or (np.load(io.BytesIO(raw.content)) == want).all()


def pooled(start, pooling=None, **limits):
    """The files of sentence-transformers in a checkpoint folder."""
    (start / "1_Pooling").mkdir(exist_ok=True)
    (start / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {}))
    (start / "sentence_bert_config.json").write_text(json.dumps(limits))


def test_embed_as_the_checkpoint_says(texts, tmp_path, monkeypatch, capsys):
    """Pooling and limit of a folder of sentence-transformers, unless others are given."""
    start = checkpoint(tmp_path / "start", "bert", texts)
    stdin = "\n".join(texts[:30] + ["foie " * 40]).encode()

    def run(*args):
        return embedded(monkeypatch, start, stdin, *args), capsys.readouterr().err

    cls, mean, short = (run(*args)[0] for args in ([], ["--pooling", "mean"], ["--pooling", "mean", "--max_len", "7"]))
    assert not np.allclose(cls, mean, atol=1e-3) and not np.allclose(mean, short, atol=1e-3)
    modes = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
             "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}  # fmt: skip
    for own in (modes, {"pooling_mode": "mean"}):
        pooled(start, own, max_seq_length=7, do_lower_case=False)
        got, log = run()
        assert (got == short).all() and "start: --pooling mean --max_len 7, as its files of sentence-tr" in log
        got, log = run("--max_len", "70")
        assert (got == mean).all() and "start: --pooling mean, as its files" in log
        got, log = run("--pooling", "cls", "--max_len", "70")
        assert (got == cls).all() and log == ""
    pooled(start, modes | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, max_seq_length=None)
    assert (run()[0] == cls).all()
    for more, name in (({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max_tokens"),
                       ({"pooling_mode_cls_token": True}, "cls and mean")):  # fmt: skip
        pooled(start, modes | more)
        with pytest.raises(UserError, match=f"start: its pooling, {name}, is not supported; give --pooling cls or"):
            run()
        assert (run("--pooling", "cls")[0] == cls).all()
    for wrong in ("7", -1, 7.5, [7]):
        pooled(start, modes, max_seq_length=wrong)
        with pytest.raises(UserError, match="sentence_bert_config.json: max_seq_length = .* is not a number of tokens"):
            run()
    pooled(start, modes, max_seq_length=2)
    with pytest.raises(UserError, match="max_len = 2 leaves no room"):
        run()


def modules_json(root, *kinds, first="", package="sentence_transformers.models"):
    """The modules.json of sentence-transformers in a folder."""
    paths = [first, *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": i, "path": path, "type": f"{package}.{kind}"} for i, (kind, path) in enumerate(zip(kinds, paths))
    ]
    root.mkdir(exist_ok=True)
    (root / "modules.json").write_text(json.dumps(modules))


MEAN = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}


def test_embed_with_the_modules_of_a_folder(texts, tmp_path, monkeypatch, capsys):
    """As sentence-transformers does it, or not at all: in its old layout and its newest too."""
    start = checkpoint(tmp_path / "start", "bert", texts)
    stdin = "\n".join(texts[:9] + ["foie " * 40]).encode()

    def run(*args, folder=start):
        return embedded(monkeypatch, folder, stdin, *args), capsys.readouterr().err

    (cls, _), (mean, _) = run(), run("--pooling", "mean")
    modules_json(start, "Transformer", "Pooling", "Normalize")
    pooled(start, MEAN)
    got, log = run()
    assert np.abs(got - mean / np.linalg.norm(mean, axis=1, keepdims=True)).max() < 1e-6
    assert "start: --pooling mean length 1, as its files of sentence-transformers say" in log
    assert (run("--pooling", "mean")[0] == mean).all()
    for kinds, fault in (("Transformer Pooling Dense Normalize", "module Dense"), ("BERT LSTM Pooling", "module LSTM")):
        modules_json(start, *kinds.split())
        with pytest.raises(
            UserError, match=f"start: its {fault} is not supported; give --pooling cls or --pooling mean"
        ):
            run()
        assert (run("--pooling", "cls")[0] == cls).all()
    newest = "sentence_transformers.sentence_transformer.modules.pooling"
    modules_json(start, "Transformer", "Pooling", package=newest)
    pooled(start, {"embedding_dimension": 32, "pooling_mode": ["cls", "mean"]})
    with pytest.raises(UserError, match="start: its pooling, cls and mean, is not supported"):
        run()
    pooled(start, {"embedding_dimension": 32})  # that library's default
    (start / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    assert (run()[0] == run("--pooling", "mean", "--max_len", "7")[0]).all() and (run()[0] != mean).any()
    (start / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert (run()[0] == mean).all()
    (start / "config_sentence_transformers.json").write_text(
        '{"default_prompt_name": "query", "prompts": {"query": "x"}}'
    )
    with pytest.raises(UserError, match="its prompt before each text is not supported"):
        run()
    (start / "config_sentence_transformers.json").unlink()
    shutil.rmtree(start / "1_Pooling")  # as from a download of the files beside it alone
    with pytest.raises(UserError, match=r"its pooling, unknown \(1_Pooling/config.json is missing\), is not supported"):
        run()
    for wrong, message in (('{"a": 1}', "cannot be read as JSON: not a list"), ("[[]]", "not a list of modules"),
                           ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS")):  # fmt: skip
        (start / "modules.json").write_text(wrong)
        with pytest.raises(UserError, match=f"modules.json:? {message}"):
            run("--pooling", "cls")


def test_embed_of_the_old_layout_of_sentence_transformers(texts, tmp_path, monkeypatch, capsys):
    """The encoder is in 0_BERT there, and what is done with its vectors beside that folder."""
    start = checkpoint(tmp_path / "root" / "0_BERT", "bert", texts)
    stdin = "\n".join(texts[:9]).encode()
    mean = embedded(monkeypatch, start, stdin, "--pooling", "mean")
    modules_json(start.parent, "BERT", "Pooling", first="0_BERT")
    (start.parent / "config.json").write_text('{"__version__": "0.3.0"}')
    pooled(start.parent, MEAN)
    for folder in (start, Path("root/0_BERT"), Path(".")):
        monkeypatch.chdir(start if str(folder) == "." else tmp_path)
        assert (embedded(monkeypatch, folder, stdin) == mean).all()
    with pytest.raises(UserError, match="root: its encoder is in the folder 0_BERT; give .*root/0_BERT"):
        embedded(monkeypatch, start.parent, stdin)


def test_the_pooling_of_a_run(tmp_path):
    """[CLS], which other libraries would not take by themselves; else that of the checkpoint that it began with."""
    lines = []
    for name, kinds, own, want in (
        ("none", "", None, ("cls", 0)), ("mean", "Pooling Normalize", MEAN, ("mean", 9, True)),
        ("dense", "Pooling Dense", MEAN, ("cls", 9)), ("max", "Pooling", {"pooling_mode": "max"}, ("cls", 9)),
    ):  # fmt: skip
        init, out = tmp_path / name, tmp_path / f"{name}-run"
        init.mkdir()
        out.mkdir()
        if own:
            modules_json(init, "Transformer", *kinds.split())
            pooled(init, own, max_seq_length=9)
        found = inherit_pooling(str(init) if own else "", lines.append)
        assert found == Pooling(*want)
        write_pooling(out, found, 32, 20)
        assert read_pooling(out) == found._replace(max_len=found.max_len or 20)
    assert [line.removeprefix(f"{tmp_path}/") for line in lines] == [
        "dense: its module Dense is not supported; the run has the vector at [CLS]",
        "max: its pooling, max, is not supported; the run has the vector at [CLS]",
    ]
    out = tmp_path / "mean-run"
    assert json.loads((out / "modules.json").read_text()) == [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
    ]
    assert json.loads((out / "1_Pooling" / "config.json").read_text()) == MEAN | {
        "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
    }  # fmt: skip
    assert json.loads((out / "sentence_bert_config.json").read_text()) == {"max_seq_length": 9, "do_lower_case": False}
    write_pooling(out, Pooling("cls"), 32, 20)  # what its user changed stays
    assert read_pooling(out).mode == "mean"


def test_fixed_positions_and_another_name_of_gelu(tmp_path):
    lines = []
    models.load(folder_with(tmp_path / "a", "distilbert", written("distilbert")), log=lines.append)
    assert not any("sinusoidal" in line for line in lines)
    fixed = folder_with(tmp_path / "b", "distilbert", written("distilbert"), sinusoidal_pos_embds=True)
    models.load(fixed, log=lines.append)
    assert f"{fixed}: its fixed sinusoidal positions become trainable" in lines
    ids, got = torch.arange(5, 15)[None], []
    for name in ("gelu", "gelu_python"):
        folder = folder_with(tmp_path / name, "bert", written("bert"), hidden_act=name)
        got.append(models.load(folder, log=SILENT).eval().encoder(ids))
    assert torch.equal(*got)


class Harmful:
    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize("thing", [Harmful(), torch.nn.Linear(1, 1), np.ones(2)], ids=["code", "module", "array"])
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_that_could_run_code_are_refused(tmp_path, thing, zipped):
    """The message is not torch's own, which advises how to load the file regardless."""
    torch.save({"a": thing}, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="x.bin: holds objects other than tensors, which could run code; refused$"):
        read_torch(tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(pickle.dumps({"a": 1}, 2)[:-1] + b"\x95")
    with pytest.raises(UserError, match="x.bin: damaged or not a weights file") as e:
        read_torch(tmp_path / "x.bin")
    assert "weights_only" not in str(e.value)


@pytest.mark.parametrize("family", ["bert", "camembert"])
def test_a_checkpoint_folder_whose_name_is_not_utf_8(texts, tmp_path, family, monkeypatch):
    start = checkpoint(tmp_path / "start", family, texts).rename(tmp_path / os.fsdecode(b"mod\xe8le"))
    assert embedded(monkeypatch, start, b"foie").shape == (1, 32)


def test_a_model_card_of_a_folder_whose_name_is_not_utf_8(dataset, tmp_path):
    out = tmp_path / os.fsdecode(b"essai-\xe9")
    train(data=str(dataset), out=str(out), layers=1, heads=1, dim=8, ffn=8)
    assert "# essai-\ufffd\n" in (out / "README.md").read_text(encoding="utf-8")
