"""Checkpoint folders: five families' names and files <-> the values of a Config and named tensors.

A folder holds config.json and the weights, as model.safetensors or pytorch_model.bin, also in parts. The families
are DistilBERT, BERT, RoBERTa, CamemBERT and XLM-RoBERTa; a new family is one entry of FAMILIES.
"""

import json
import math
import os
import pickle
import re
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

import configs
from configs import UserError
from support import tokenizers
from support.corpora import check_label, check_type
from support.files import read_json, reject_lfs_pointer, write_atomic, write_json

# ---------------------------------------------------------------- names


EMBEDDINGS = {
    "word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings",
    "token_type": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
}  # fmt: skip


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
    embeddings: dict = EMBEDDINGS  # {ours: theirs}
    mlm_activation: str = ""  # of the vocabulary head, if it is not the encoder's
    constants: dict = {}  # what else its config.json says, always


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
DEFAULTS = {"dropout": 0.1, "attention_dropout": 0.1, "activation": "gelu", "eps": 1e-12}  # if config.json is silent
BERT = Family(
    "BertForMaskedLM", "bert.", "encoder.layer", BERT_PARTS, "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm", "cls.predictions.bias", "cls.predictions.decoder", BERT_KEYS,
    constants={"position_embedding_type": "absolute"},
)  # fmt: skip
DISTILBERT = Family(
    "DistilBertForMaskedLM", "distilbert.", "transformer.layer", DISTILBERT_PARTS, "vocab_transform",
    "vocab_layer_norm", "vocab_projector.bias", "vocab_projector", DISTILBERT_KEYS,
    constants={"sinusoidal_pos_embds": False},
)  # fmt: skip
ROBERTA = Family(
    "RobertaForMaskedLM", "roberta.", "encoder.layer", BERT_PARTS, "lm_head.dense", "lm_head.layer_norm",
    "lm_head.bias", "lm_head.decoder", BERT_KEYS, padded_positions=True, mlm_activation="gelu",
    constants={"position_embedding_type": "absolute"},
)  # fmt: skip
FAMILIES = {
    "distilbert": DISTILBERT,
    "bert": BERT,
    "roberta": ROBERTA,
    "camembert": ROBERTA._replace(masked_lm="CamembertForMaskedLM"),
    "xlm-roberta": ROBERTA._replace(masked_lm="XLMRobertaForMaskedLM"),
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
        modules[f"encoder.layers.{i}.qkv"] = [parts.pop(x) for x in "qkv"]
        modules |= {f"encoder.layers.{i}.{ours}": [theirs] for ours, theirs in parts.items()}
    names = {"mlm_bias": [family.mlm_bias]}
    for end in (".weight", ".bias"):
        names |= {ours + end: [name + end for name in theirs] for ours, theirs in modules.items()}
    return {parameter: names.get(parameter, [parameter]) for parameter in parameters}


def canonical_tensor_name(name, family):
    """A tensor's name without what wrapped the model, its family's prefix, and LayerNorm's oldest names."""
    name = name.replace("_orig_mod.", "").replace("module.", "")
    while not name.startswith(family.layer) and (found := [x for x in PREFIXES if x and name.startswith(x)]):
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
    for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False), ("pruned_heads", {})):
        if d.get(key) not in (None, only):
            raise UserError(f"{path}: {key} = {d[key]!r} is not supported, only {only!r}")
    family = FAMILIES[name]
    values = DEFAULTS | {"pad_token_id": int(family.padded_positions)}
    if "type_vocab_size" in family.keys:
        values["type_vocab_size"] = 2
    for ours, key in family.keys.items():
        if d.get(key) is None and ours not in values:
            raise UserError(f"{path}: no {key} in it")
        values[ours] = values[ours] if d.get(key) is None else d[key]
    if family.padded_positions:
        if type(values["max_positions"]) is not int or type(values["pad_token_id"]) is not int:
            raise UserError(f"{path}: not a model configuration (a size is no number)")
        values["max_positions"] -= values["pad_token_id"] + 1
    extra = {key: d[key] for key in ("bos_token_id", "eos_token_id") if key in d}
    if type(d.get("kgi_tasks")) is list:  # of a run of kgi.py: the tasks that it was trained on
        extra["kgi_tasks"] = [task for task in d["kgi_tasks"] if type(task) is str]
    return values | {"family": name, "extra_config": extra}


def read_weights(folder, config, shapes, with_heads, log):
    """The tensors of a checkpoint folder under our names.

    Args:
        config: its model.Config. shapes: {our parameter: shape} of the whole model. with_heads: False reads the encoder
        alone. log: prints a line on what is not used, or not there.

    Returns: ({our parameter: float32 tensor}, token types (type_vocab_size, dim) or None). Heads that the checkpoint
    lacks are left out. The positions hold token type 0, which every input of ours has.

    Raises: UserError naming the file and all that is missing, left over or of the wrong shape.
    """
    if read_json(Path(folder, "config.json")).get("sinusoidal_pos_embds"):
        log(f"{folder}: its fixed sinusoidal positions become trainable")
    family, names = FAMILIES[config.family], checkpoint_tensor_names(config, shapes)
    weights, types, positions = read_tensors(folder, family), None, names["encoder.position.weight"][0]
    token_types = family.embeddings["token_type"] + ".weight"
    remove_tied_copies(folder, family, weights, with_heads)
    for title, group in head_groups(names).items():
        present = [theirs for ours in group for theirs in names[ours] if theirs in weights]
        if with_heads and present:
            continue
        if with_heads:
            log(f"{folder}: no {title} in the checkpoint; initialised randomly")
        names = {ours: theirs for ours, theirs in names.items() if ours not in group}
        weights = {name: tensor for name, tensor in weights.items() if name not in present}
    expected = {}
    for ours, theirs in names.items():
        rows, *columns = shapes[ours]
        rows = rows + config.position_offset if theirs == [positions] else rows // len(theirs)
        expected |= {name: (rows, *columns) for name in theirs}
    if config.type_vocab_size:
        expected[token_types] = (config.type_vocab_size, config.dim)
    check_weights(folder, weights, expected, log)
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
            raise UserError(
                f"{folder}: {copy_name} differs from {name}, so the vocabulary head is not tied to the word embeddings"
                ", as it must be to continue training; finetune.py and embed can use the encoder"
            )


def check_weights(folder, weights, expected, log):
    """Raises UserError unless the tensors are those that config.json promises."""
    unused = sorted(name for name in weights if name not in expected and IGNORED.match(name))
    if unused:
        log(f"{folder}: not used: {', '.join(unused)}")
    issues = {
        "missing": [name for name in expected if name not in weights],
        "left over": [name for name in weights if name not in expected and name not in unused],
        "wrong shape": [
            f"{name} {tuple(weights[name].shape)} where config.json says {tuple(shape)}"
            for name, shape in expected.items()
            if name in weights and tuple(weights[name].shape) != tuple(shape)
        ],
        "not plain finite numbers": [
            name for name in expected if name in weights and not is_plain_finite(weights[name])
        ],
    }
    if any(issues.values()):
        listed = [f"{what}: {', '.join(x[:20])}{' ...' * (len(x) > 20)} ({len(x)})" for what, x in issues.items() if x]
        raise UserError(f"{folder}: the weights are not those of its config.json. {'; '.join(listed)}")


def is_plain_finite(t):
    return t.layout == torch.strided and t.device.type == "cpu" and t.is_floating_point() and t.float().isfinite().all()


# ---------------------------------------------------------------- files of sentence-transformers


class Pooling(NamedTuple):
    """What a folder of sentence-transformers says of its vectors; the defaults say nothing."""

    mode: str = ""  # cls or mean, or what else its file names
    max_len: int = 0  # tokens of the longest input
    normalize: bool = False  # whether vectors get length 1
    others: tuple = ()  # what else goes into them and is not supported here

    @property
    def fault(self):
        """Why vectors as that library computes them cannot be had here, "" if they can."""
        if self.others:
            return f"its {self.others[0]} is not supported"
        return f"its pooling, {self.mode}, is not supported" if self.mode not in ("", *configs.POOLINGS) else ""


def read_pooling(folder):
    """The Pooling of a checkpoint folder, which may be the encoder's in the old layout (0_BERT). Raises: UserError."""
    root, modules = read_modules(folder)
    max_len = tokenizers.read_input_settings(folder)["max_seq_length"]
    if modules and not max_len:  # newer folders have it in the tokenizer's file alone
        longest = read_json(Path(folder, "tokenizer_config.json")).get("model_max_length")
        max_len = longest if type(longest) is int and longest > 0 else 0
    kinds = [kind for kind, _ in modules[1:]]
    others = [f"module {kind}" for kind in kinds if kind not in ("Pooling", "Normalize", "Dropout")]
    if read_json(root / "config_sentence_transformers.json").get("default_prompt_name"):
        others.append("prompt before each text")
    paths = [path for kind, path in modules if kind == "Pooling"] if modules else ["1_Pooling"]
    mode = pooling_mode(root / paths[0] / "config.json", bool(modules)) if paths else ""
    return Pooling(mode, max_len, "Normalize" in kinds, tuple(others))


def read_modules(folder):
    """(the folder of modules.json, [(kind, subfolder) of each module]); of none, `folder` and []. Raises: UserError."""
    folder = Path(folder)
    name, parent = folder.absolute().name, folder.absolute().parent
    modules = modules_of(parent) if name.startswith("0_") else []
    return (parent, modules) if modules and modules[0][1] == name else (folder, modules_of(folder))


def modules_of(root):
    """[(kind, subfolder)] of the modules.json in a folder, [] if there is none. Raises: UserError."""
    path = Path(root, "modules.json")
    modules = read_json(path, list)
    if not all(type(m) is dict and type(m.get("type")) is str and type(m.get("path")) is str for m in modules):
        raise UserError(f"{path}: not a list of modules, each with its path and type")
    return [(m["type"].split(".")[-1], m["path"].rstrip("/")) for m in modules]


def pooling_mode(path, is_named):
    """What a file of pooling says: cls or mean, or others as they are named there.

    Without it "", or words for an error if modules.json names it (is_named).
    """
    if not path.exists():
        return f"unknown ({path.parent.name}/{path.name} is missing)" if is_named else ""
    d = read_json(path)
    of_keys = [key.removeprefix("pooling_mode_") for key in d if key.startswith("pooling_mode_") and d[key]]
    modes = d.get("pooling_mode") or of_keys or ["mean"]
    names = {"cls_token": "cls", "mean_tokens": "mean"}
    return " and ".join(names.get(str(x), str(x)) for x in (modes if type(modes) is list else [modes]))


def inherit_pooling(init, at_cls, log):
    """The Pooling of a run, which begins with the checkpoint `init` ("": with none).

    It is [CLS], unless the checkpoint has its own. at_cls: whether names were aligned at [CLS], which then counts.
    """
    own = read_pooling(init) if init else Pooling()
    if own.fault:
        log(f"{init}: {own.fault}; the run has the vector at [CLS]")
    return own._replace(mode="cls" if at_cls or own.fault else own.mode or "cls", others=())


def write_pooling(folder, pooling, dim, max_positions):
    """Writes what sentence-transformers reads of a folder, modules.json last, unless there is one.

    Other libraries take the mean over all tokens where nothing is said. Texts in lower case are the tokenizer's matter.
    """
    folder = Path(folder)
    if (folder / "modules.json").exists():  # of this run, or put there by its user
        return
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": dim, "pooling_mode_cls_token": pooling.mode == "cls",
        "pooling_mode_mean_tokens": pooling.mode == "mean", "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    })  # fmt: skip
    max_len = min(pooling.max_len or max_positions, max_positions)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_len, "do_lower_case": False})
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * pooling.normalize
    write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ])  # fmt: skip


# ---------------------------------------------------------------- config and tensors -> a folder


def write(folder, config, parameters, token_types, more_config=None):
    """Writes config.json and model.safetensors in the layout of the family, each beside and then renamed.

    Token type 0 and the positions stay folded together, in the positions, and the rows that RoBERTa has before its
    first position are zeros: what is computed is the same.

    Args:
        config: a model.Config. parameters: {our name: tensor}. token_types: (type_vocab_size, dim), less the first.
        more_config: what else config.json says, such as describe_tagger of a token classifier.
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
    positions = f"{family.prefix}{family.embeddings['position']}.weight"
    weights[positions] = F.pad(weights[positions], (0, 0, config.position_offset, 0))
    d = {"architectures": [family.masked_lm], "model_type": config.family, "initializer_range": 0.02}
    d |= {theirs: getattr(config, ours) for ours, theirs in family.keys.items()}
    d[family.keys["max_positions"]] += config.position_offset
    if config.type_vocab_size:
        weights[f"{family.prefix}{family.embeddings['token_type']}.weight"] = token_types
    write_atomic(folder / "model.safetensors", lambda f: write_safetensors(f, weights))
    write_json(folder / "config.json", d | family.constants | config.extra_config | (more_config or {}))


# ---------------------------------------------------------------- token classifiers


TAGGER_FILES = {  # of a tagger's folder, which is replaced as a whole: how ours is recognised; see files.check_output
    "config.json": rb'(?s).*"kgi_tagger": ', "model.safetensors": None, "tokenizer.json": None,
    "tokenizer_config.json": None, "special_tokens_map.json": None,
}  # fmt: skip


def describe_tagger(config, labels, details):
    """What config.json says of a token classifier: its class, its labels, and `details` of our own (kgi_tagger)."""
    return {
        "architectures": [FAMILIES[config.family].masked_lm.replace("MaskedLM", "TokenClassification")],
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "kgi_tagger": details,
    }


def read_tagger(folder, config):
    """The classifier of a checkpoint folder for tokens.

    Returns: (its labels, {"classifier.weight" and "classifier.bias": float32 tensor}, its read_tagger_details, with
    defaults for a folder of another library). Raises: UserError if the folder is not that of a tagger.
    """
    d, how = read_json(Path(folder, "config.json")), "finetune.py CHECKPOINT --corpus .. writes one to <results>/model"
    names = d.get("id2label")
    if type(names) is not dict:
        raise UserError(f"{folder} is not a tagger: its config.json has no id2label; {how}")
    classes = d.get("architectures") or []
    if type(classes) is not list or not all(type(name) is str for name in classes):
        raise UserError(f"{folder}: architectures in its config.json is not a list of names")
    if others := [name for name in classes if not name.endswith("ForTokenClassification")]:
        raise UserError(f"{folder} is not a tagger: its config.json says {others[0]}; {how}")
    labels = [names.get(str(i)) for i in range(len(names))]
    if not all(type(label) is str and label for label in labels) or len({*labels}) < len(labels):
        raise UserError(f"{folder}: id2label in its config.json does not number distinct labels from 0")
    weights = read_tensors(folder, FAMILIES[config.family])
    shapes = {"classifier.weight": (len(labels), config.dim), "classifier.bias": (len(labels),)}
    if not shapes.keys() <= weights.keys():
        raise UserError(f"{folder} is not a tagger: its weights have no classifier; {how}")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape or not is_plain_finite(weights[name]):
            raise UserError(f"{folder}: {name} is not {shape} finite numbers, as its config.json says")
    return labels, {name: weights[name].float() for name in shapes}, tagger_settings(folder, labels, config)


def read_tagger_details(folder):
    """The object kgi_tagger in config.json, {} if there is none. Raises: UserError."""
    details = read_json(Path(folder, "config.json")).get("kgi_tagger", {})
    if type(details) is not dict:
        raise UserError(f"{folder}: kgi_tagger in its config.json is not an object")
    return details


def tagger_settings(folder, labels, config):
    """{"max_len", "has_text", "pos", "precision", "is_ours", "scheme"} of a tagger.

    is_ours: whether fine-tuning wrote it; its labels are IOB2. scheme: BIOES, BILOU, or "" for IOB1 or IOB2.
    Raises: UserError for values of another kind, or for labels of no scheme.
    """
    defaults = {"max_len": config.max_positions, "has_text": True, "pos": False, "precision": "auto"}
    ours = read_tagger_details(folder)
    details = defaults | ours
    for key, default in defaults.items():
        if type(details[key]) is not type(default):
            raise UserError(f"{folder}: kgi_tagger in its config.json has {key} = {details[key]!r:.60}")
    if not 8 <= details["max_len"] <= config.max_positions or details["precision"] not in ("auto", "bf16", "fp32"):
        raise UserError(f"{folder}: kgi_tagger in its config.json has an impossible max_len or precision")
    scheme, where = "", f"{folder}: id2label in its config.json"
    for label in labels:
        check_type(label, where)
        scheme = "" if details["pos"] else check_label(label, scheme, where)
    if ours and scheme:
        raise UserError(f"{where}: its labels are of {scheme}, but a tagger of finetune.py has IOB2")
    return details | {"is_ours": bool(ours), "scheme": scheme}


# ---------------------------------------------------------------- files of tensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first is taken where there are both
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def weight_files(folder):
    """model.safetensors, else pytorch_model.bin, either maybe in parts: a list of files. Raises: UserError."""
    for path in (Path(folder, name) for name in WEIGHT_FILES):
        if path.is_file():
            return [path]
        index = path.with_name(path.name + ".index.json")
        parts = read_json(index).get("weight_map")
        if parts:
            if type(parts) is not dict or not all(type(p) is str and Path(p).name == p for p in parts.values()):
                raise UserError(f"{index}: its weight_map does not name files beside it")
            return [Path(folder, name) for name in sorted(set(parts.values()))]
    raise UserError(f"{folder} holds neither {' nor '.join(WEIGHT_FILES)}")


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


def read_torch(path):
    """torch.load of tensors and plain values only. Raises: UserError if the file is absent, damaged or unsafe."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} not found") from None
    except Exception as e:  # what a damaged file raises depends on where the damage is
        if "unsupported global" in str(e).lower():
            raise UserError(f"{path}: holds objects other than tensors, which could run code; refused") from None
        # torch's own message advises to load the file regardless.
        unsafe = isinstance(e, pickle.UnpicklingError)
        reason = "not tensors alone" if unsafe else (str(e).splitlines() or [""])[0]
        raise UserError(f"{path}: damaged or not a weights file ({type(e).__name__}: {reason})") from None


def read_safetensors(path):
    """{name: tensor} of a .safetensors file: 8 bytes of header length, a JSON header, the tensors one after another.

    Every number of the header is checked before it is used. The tensors must fill the file, without holes and without
    sharing bytes. Raises: UserError.
    """

    def damaged(what):
        return UserError(f"{path}: damaged or not a safetensors file ({what})")

    with open(path, "rb") as f:
        n_bytes = os.fstat(f.fileno()).st_size - 8
        length = int.from_bytes(f.read(8), "little")
        if n_bytes < 2 or length > min(n_bytes, 100_000_000):
            raise damaged(f"a header of {length:,} bytes in a file of {n_bytes + 8:,}")
        try:
            header = json.loads(f.read(length).decode("utf-8"))
            header.pop("__metadata__", None)
            entries = [(*e["data_offsets"], name, e["dtype"], e["shape"]) for name, e in header.items()]
            entries.sort(key=lambda e: e[:2])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise damaged(f"the header cannot be read: {type(e).__name__}") from None
        out, position = {}, 0
        for entry in entries:
            if len(entry) != 5 or type(entry[3]) is not str or type(entry[4]) is not list:
                raise damaged("an entry of the header does not describe a tensor")
            begin, end, name, dtype, shape = entry
            if dtype not in DTYPES:
                raise damaged(f"{name}: numbers of type {dtype[:20]} are not supported")
            if len(shape) > 8 or any(type(x) is not int or not 0 <= x < 2**63 for x in (begin, end, *shape)):
                raise damaged(f"{name}: a size or a place in the file is impossible")
            size = math.prod(shape) * DTYPES[dtype].itemsize
            if begin != position or end > n_bytes - length or end - begin != size:
                raise damaged(f"{name}: bytes {begin:,} to {end:,} are not its place in the file")
            if begin < end:  # tensors without elements are of no use to anyone here
                out[name] = torch.frombuffer(bytearray(f.read(end - begin)), dtype=DTYPES[dtype]).view(shape)
            position = end
        if position != n_bytes - length:
            raise damaged(f"{n_bytes - length - position:,} bytes behind the last tensor")
    return out


def write_safetensors(f, tensors):
    """The counterpart of read_safetensors, for float32 tensors on the CPU."""
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [position, position + 4 * t.numel()]}
        position += 4 * t.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    f.write(len(text).to_bytes(8, "little") + text)
    for t in tensors.values():
        f.write(t.contiguous().numpy())
