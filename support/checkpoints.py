"""Checkpoint folders of six families <-> the values of a Config and named tensors. A new family is one of FAMILIES."""

import re
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

import configs
from configs import UserError
from support import modernbert, tokenizers
from support.datasets import has_tokenizer_of, how_to_build
from support.files import read_json, reject_lfs_pointer, write_atomic, write_json
from support.pooling import modules_of
from support.relations import MAX_KINDS, PAPER_RELATIONS
from support.tensors import is_plain_finite, read_safetensors, read_torch, weight_files, write_safetensors

# ---------------------------------------------------------------- names

EMBEDDINGS = {  # in all families but ModernBERT
    "word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
}  # fmt: skip
DEFAULTS = {"dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu", "eps": 1e-12}  # if config.json is silent


class Family(NamedTuple):
    """What a family of checkpoints calls things."""

    masked_lm: str  # the class that its config.json names
    prefix: str  # of the encoder's tensors
    layer: str
    layer_parts: dict
    mlm_dense: str  # the vocabulary head: dense layer, LayerNorm, bias, and copies of word embeddings and bias
    mlm_norm: str
    mlm_bias: str
    decoder: str
    keys: dict  # {our name: key of config.json}
    padded_positions: bool = False  # RoBERTa's positions begin after the padding token's
    mlm_activation: str = ""  # of the vocabulary head, if it is not the encoder's
    constants: dict = {"position_embedding_type": "absolute"}  # other values of its config.json
    embeddings: dict = EMBEDDINGS
    defaults: dict = DEFAULTS
    settings: dict = {}  # of its own, in Config.extra_config


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
    "activation": "activation", "pad_token_id": "pad_token_id",
}  # fmt: skip
BERT_KEYS = {
    "vocab_size": "vocab_size", "max_positions": "max_position_embeddings", "dim": "hidden_size",
    "layers": "num_hidden_layers", "heads": "num_attention_heads", "ffn": "intermediate_size",
    "dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob", "activation": "hidden_act",
    "pad_token_id": "pad_token_id", "eps": "layer_norm_eps", "type_vocab_size": "type_vocab_size",
}  # fmt: skip
MODERN_PARTS = {
    "norm1": "attn_norm", "qkv": "attn.Wqkv", "out": "attn.Wo", "norm2": "mlp_norm", "ffn1": "mlp.Wi", "ffn2": "mlp.Wo",
}  # fmt: skip
MODERN_KEYS = {
    "vocab_size": "vocab_size", "max_positions": "max_position_embeddings", "dim": "hidden_size",
    "layers": "num_hidden_layers", "heads": "num_attention_heads", "ffn": "intermediate_size",
    "dropout": "mlp_dropout", "attention_dropout": "attention_dropout", "activation": "hidden_activation",
    "pad_token_id": "pad_token_id", "eps": "norm_eps",
}  # fmt: skip
BERT = Family(
    "BertForMaskedLM", "bert.", "encoder.layer", BERT_PARTS, "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm", "cls.predictions.bias", "cls.predictions.decoder", BERT_KEYS,
)  # fmt: skip
DISTILBERT = Family(
    "DistilBertForMaskedLM", "distilbert.", "transformer.layer", DISTILBERT_PARTS, "vocab_transform",
    "vocab_layer_norm", "vocab_projector.bias", "vocab_projector", DISTILBERT_KEYS,
    constants={"sinusoidal_pos_embds": False},
)  # fmt: skip
ROBERTA = Family(
    "RobertaForMaskedLM", "roberta.", "encoder.layer", BERT_PARTS, "lm_head.dense", "lm_head.layer_norm",
    "lm_head.bias", "lm_head.decoder", BERT_KEYS, padded_positions=True, mlm_activation="gelu",
)  # fmt: skip
MODERNBERT = Family(
    "ModernBertForMaskedLM", "model.", "layers", MODERN_PARTS, "head.dense", "head.norm", "decoder.bias", "decoder",
    MODERN_KEYS, constants={},
    embeddings={"word": "embeddings.tok_embeddings", "norm": "embeddings.norm", "final_norm": "final_norm"},
    defaults={"dropout": 0.0, "attention_dropout": 0.0, "activation": "gelu", "eps": 1e-5},
    settings=modernbert.SETTINGS | modernbert.TOKENS,
)  # fmt: skip
FAMILIES = {
    "distilbert": DISTILBERT,
    "bert": BERT,
    "roberta": ROBERTA,
    "camembert": ROBERTA._replace(masked_lm="CamembertForMaskedLM"),
    "xlm-roberta": ROBERTA._replace(masked_lm="XLMRobertaForMaskedLM"),
    "modernbert": MODERNBERT,
}
PREFIXES = {family.prefix for family in FAMILIES.values()} | {"camembert.", "xlm_roberta.", "transformer."}
IGNORED = re.compile(  # parts of other models on the same encoder
    r"^(pooler|cls\.seq_relationship|classifier|pre_classifier|qa_outputs)\.|^embeddings\.(position|token_type)_ids$"
)


def checkpoint_tensor_names(config, parameters):
    """{our parameter: its tensors in a file of this family, less the prefix}; q, k and v are one matrix here.

    Args: config: a model.Config. parameters: names of our parameters. Heads of our own keep their names.
    """
    family = FAMILIES[config.family]
    modules = {f"encoder.{ours}": [theirs] for ours, theirs in family.embeddings.items()}
    modules |= {"mlm_dense": [family.mlm_dense], "mlm_norm": [family.mlm_norm]}
    for i in range(config.layers):
        parts = {ours: f"{family.layer}.{i}.{theirs}" for ours, theirs in family.layer_parts.items()}
        if "q" in parts:
            modules[f"encoder.layers.{i}.qkv"] = [parts.pop(x) for x in "qkv"]
        modules |= {f"encoder.layers.{i}.{ours}": [theirs] for ours, theirs in parts.items()}
    names = {"mlm_bias": [family.mlm_bias]}
    for end in (".weight", ".bias"):
        names |= {ours + end: [name + end for name in theirs] for ours, theirs in modules.items()}
    return {parameter: names.get(parameter, [parameter]) for parameter in parameters}


def canonical_tensor_name(name, family):
    """A tensor's name without what wrapped the model, its family's prefix, and LayerNorm's oldest names."""
    name = name.replace("_orig_mod.", "").replace("module.", "")
    while not name.startswith(family.layer) and (found := [x for x in PREFIXES if name.startswith(x)]):
        name = name.removeprefix(max(found, key=len))
    return re.sub(r"\.(gamma|beta)$", lambda m: {"gamma": ".weight", "beta": ".bias"}[m[1]], name)


# ---------------------------------------------------------------- a folder -> config and tensors


def read_config(folder):
    """The values of a model.Config from a checkpoint folder. Raises: UserError naming the file and what is wrong."""
    path, modules = Path(folder, "config.json"), modules_of(folder)
    if modules and modules[0][1]:  # the old layout of sentence-transformers
        raise UserError(f"{folder}: its encoder is in the folder {modules[0][1]}; give {Path(folder, modules[0][1])}")
    if not path.is_file() and Path(folder, "metrics.jsonl").is_file():
        raise UserError(f"{folder}: its run has saved no checkpoint yet; wait for it, or start it again")
    if not path.is_file():
        raise UserError(f"{path} not found; is {folder} a checkpoint folder?{tokenizers.how_to_download(folder)}")
    d = read_json(path)
    name = d.get("model_type")
    if type(name) is not str or name not in FAMILIES:
        raise UserError(f"{path}: model_type '{name}' is not supported, only {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    # ModernBERTs have rotary positions, whatever they say: "absolute", or "sans_pos".
    positions = {} if family is MODERNBERT else {"position_embedding_type": "absolute"}
    for key, only in (positions | {"is_decoder": False, "pruned_heads": {}}).items():
        if d.get(key) not in (None, only):
            raise UserError(f"{path}: {key} = {d[key]!r} is not supported, only {only!r}")
    values = family.defaults | {"pad_token_id": int(family.padded_positions)}
    values["type_vocab_size"] = 2 if "type_vocab_size" in family.keys else 0
    values |= {ours: d[key] for ours, key in family.keys.items() if d.get(key) is not None}
    if missing := [key for ours, key in family.keys.items() if ours not in values]:
        raise UserError(f"{path}: no {missing[0]} in it")
    if family.padded_positions:
        if type(values["max_positions"]) is not int or type(values["pad_token_id"]) is not int:
            raise UserError(f"{path}: not a model configuration (a size is no number)")
        values["max_positions"] -= values["pad_token_id"] + 1
    extra = {key: d[key] for key in ("bos_token_id", "eos_token_id") if key in d}
    if name == "modernbert":
        extra |= modernbert.read_settings(d, path)
    if type(d.get("kgi_tasks")) is list:  # of a run of kgi.py: the tasks that it was trained on
        extra["kgi_tasks"] = [task for task in d["kgi_tasks"] if type(task) is str]
    if (classes := d.get("relation_classes")) is not None:
        is_list = type(classes) is list and all(type(x) is str for x in classes)
        if not is_list or len({*classes}) != len(classes) or not 6 <= len(classes) < MAX_KINDS:
            raise UserError(f"{path}: relation_classes is no list of six or more different relations")
        values["relation_classes"] = classes
    return values | {"family": name, "extra_config": extra}


def read_weights(folder, config, shapes, with_heads, log):
    """The tensors of a checkpoint folder under our names, without heads that it lacks.

    The positions hold token type 0, which every input of ours has.

    Args: config: its model.Config. shapes: {our parameter: shape} of the whole model. log: prints a line.
    Returns: ({our parameter: float32 tensor}, token types (type_vocab_size, dim) or None).
    Raises: UserError naming the file and all that is missing, left over or of the wrong shape.
    """
    d = read_json(Path(folder, "config.json"))
    classes = d.get("relation_classes") or [*PAPER_RELATIONS[:-1]]
    if d.get("sinusoidal_pos_embds"):
        log(f"{folder}: its fixed sinusoidal positions become trainable")
    family, names = FAMILIES[config.family], checkpoint_tensor_names(config, shapes)
    weights, types = read_tensors(folder, family), None
    positions = names.get("encoder.position.weight", [""])[0]  # ModernBERT has no table of them
    token_types = EMBEDDINGS["token_type"] + ".weight"
    remove_tied_copies(folder, family, weights, with_heads)
    if with_heads and "decoder_bias" in config.extra_config and f"{family.mlm_dense}.weight" in weights:
        if family.mlm_bias not in weights:
            log(f"{folder}: no {family.mlm_bias} in the checkpoint; it begins as zeros")
        weights.setdefault(family.mlm_bias, torch.zeros(config.vocab_size))
    for title, group in head_groups(names).items():
        present = [theirs for ours in group for theirs in names[ours] if theirs in weights]
        if with_heads and present and title == "relation_head" and config.relation_classes != classes:
            log(f"{folder}: its relation_head is of other relations; initialised randomly")
            tasks = config.extra_config.get("kgi_tasks", [])
            config.extra_config["kgi_tasks"] = [task for task in tasks if task != "lp"]  # it is to be learned again
        elif with_heads and present:
            continue
        elif with_heads:
            log(f"{folder}: no {title} in the checkpoint; initialised randomly")
        names = {ours: theirs for ours, theirs in names.items() if ours not in group}
        weights = {name: tensor for name, tensor in weights.items() if name not in present}
    expected = {}
    for ours, theirs in names.items():
        size, *width = shapes[ours]
        size = size + config.position_offset if theirs == [positions] else size // len(theirs)
        expected |= {name: (size, *width) for name in theirs}
    if config.type_vocab_size:
        expected[token_types] = (config.type_vocab_size, config.dim)
    check_weights(folder, weights, expected, log)
    if positions:
        weights[positions] = weights[positions][config.position_offset :].float()
    if config.type_vocab_size:
        types = weights[token_types].float()
        weights[positions] = weights[positions] + types[0]
    return {ours: torch.cat([weights[name].float() for name in theirs]) for ours, theirs in names.items()}, types


def head_groups(names):
    """{title: our parameters} of the heads, each of which a checkpoint has as a whole or lacks."""
    groups = {}
    for name in names:
        if not name.startswith("encoder."):
            title = "vocabulary head" if name.startswith("mlm_") else name.split(".")[0]
            groups.setdefault(title, []).append(name)
    return groups


def remove_tied_copies(folder, family, weights, with_heads):
    """Drops the copies of word embeddings and bias that some files have for the vocabulary head; they must be equal."""
    word = family.embeddings["word"] + ".weight"
    for copy_name, name in ((f"{family.decoder}.weight", word), (f"{family.decoder}.bias", family.mlm_bias)):
        if copy_name == name or copy_name not in weights:
            continue
        copied = weights.pop(copy_name)
        weights.setdefault(name, copied)  # some files have the copy alone
        if with_heads and not torch.equal(copied.float(), weights[name].float()):
            fault = f"{copy_name} differs from {name}, so the vocabulary head is not tied to the word embeddings"
            what_works = "finetune.py and beyond.embed can use the encoder"
            raise UserError(f"{folder}: {fault}, as it must be to continue training; {what_works}")


def check_weights(folder, weights, expected, log):
    """Raises UserError unless the tensors are those that config.json promises."""
    unused = sorted(name for name in weights if name not in expected and IGNORED.match(name))
    if unused:
        log(f"{folder}: not used: {', '.join(unused)}")
    found = {name: tuple(weights[name].shape) for name in expected if name in weights}
    wrong = {name: shape for name, shape in found.items() if shape != expected[name]}
    issues = {
        "missing": [name for name in expected if name not in weights],
        "left over": [name for name in weights if name not in expected and name not in unused],
        "wrong shape": [f"{name} {shape} where config.json says {expected[name]}" for name, shape in wrong.items()],
        "not plain finite numbers": [name for name in found if not is_plain_finite(weights[name])],
    }
    if any(issues.values()):
        listed = [f"{what}: {', '.join(x[:20])}{' ...' * (len(x) > 20)} ({len(x)})" for what, x in issues.items() if x]
        raise UserError(f"{folder}: the weights are not those of its config.json. {'; '.join(listed)}")


def read_tensors(folder, family):
    """{canonical_tensor_name: tensor} of all files of a checkpoint. Raises: UserError."""
    out = {}
    for path in weight_files(folder):
        if not path.is_file():
            raise UserError(f"{path} not found")
        reject_lfs_pointer(path)
        content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        if not isinstance(content, dict):
            raise UserError(f"{path}: not a file of named tensors")
        for name, tensor in content.items():
            if not isinstance(name, str) or not name.isprintable() or not isinstance(tensor, torch.Tensor):
                raise UserError(f"{path}: not a file of named tensors: {ascii(name)[:60]}")
            if (canonical := canonical_tensor_name(name, family)) in out:
                raise UserError(f"{path}: duplicate tensor {name} (with and without a prefix)")
            out[canonical] = tensor
    return out


# ---------------------------------------------------------------- config and tensors -> a folder


def write(folder, config, parameters, token_types, more_config=None):
    """Writes config.json and model.safetensors in the layout of the family, each beside and then renamed.

    Token type 0 stays in the positions. Those that RoBERTa has before its first one are zeros, and never used.

    Args: config: a model.Config. parameters: {our name: tensor}. token_types: (type_vocab_size, dim), less the first.
    more_config: other keys of config.json.
    """
    folder, family, weights = Path(folder), FAMILIES[config.family], {}
    folder.mkdir(parents=True, exist_ok=True)
    for ours, theirs in checkpoint_tensor_names(config, parameters).items():
        prefix = family.prefix if ours.startswith("encoder.") else ""
        for name, part in zip(theirs, parameters[ours].cpu().chunk(len(theirs))):
            weights[prefix + name] = part
    if family.mlm_bias in weights and family.decoder + ".bias" != family.mlm_bias:
        # Some versions of other libraries take it from the copy alone.
        weights[family.decoder + ".bias"] = weights[family.mlm_bias]
    positions = f"{family.prefix}{EMBEDDINGS['position']}.weight"
    if positions in weights:
        weights[positions] = F.pad(weights[positions], (0, 0, config.position_offset, 0))
    d = {"architectures": [family.masked_lm], "model_type": config.family, "initializer_range": 0.02}
    d |= {theirs: getattr(config, ours) for ours, theirs in family.keys.items()}
    d[family.keys["max_positions"]] += config.position_offset
    if config.relation_classes != [*PAPER_RELATIONS[:-1]]:
        d["relation_classes"] = config.relation_classes
    if config.type_vocab_size:
        weights[f"{family.prefix}{EMBEDDINGS['token_type']}.weight"] = token_types
    write_atomic(folder / "model.safetensors", lambda f: write_safetensors(f, weights))
    write_json(folder / "config.json", d | family.constants | config.extra_config | (more_config or {}))


# ---------------------------------------------------------------- the checkpoint that a run begins with


def check_initial(s, c, train, out):
    """Raises UserError if a checkpoint cannot be trained on a data set with these settings (configs.Train).

    Args: c: its model.Config. train: a data.PretrainingDataset. out: the run folder.
    """
    if Path(s.init).resolve() == out.resolve():
        raise UserError(f"--init and --out are both {s.init}; to resume that run leave --init as it was")
    # A size that equals the default passes as not given: the checkpoint's counts.
    for size in ("family", "layers", "heads", "dim", "ffn"):
        if getattr(s, size) not in (getattr(configs.Train, size), getattr(c, size)):
            raise UserError(f"{size} = {getattr(s, size)}, but {s.init} has {getattr(c, size)}; leave it out")
    tokenizers.load(s.init, max_entries=c.vocab_size)
    if not has_tokenizer_of(train.folder, s.init):
        raise UserError(f"{train.folder} has another tokenizer than {s.init}; {how_to_build(s.init)}")
    if c.pad_token_id != (pad := train.special["pad"]):
        raise UserError(f"{s.init}: its config.json pads with token {c.pad_token_id}, its tokenizer with {pad}")
    if c.max_positions < train.seq_len:
        sizes = f"{c.max_positions} positions and {train.folder} sequences of up to {train.seq_len} tokens"
        raise UserError(f"{s.init} has {sizes}; build it with a smaller --seq_len")
