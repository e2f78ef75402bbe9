"""The tokenizer of a checkpoint folder, in and out: what data.py, kgi.py, finetune.py and model.py share.

In, whichever files are there: tokenizer.json; else vocab.txt (BERT's WordPiece); else vocab.json with merges.txt
(RoBERTa's byte-level BPE). Out: tokenizer.json and the two small files that the wider ecosystem reads with it.
"""

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from configs import UserError, progress, write_atomic

ROLES = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "unk": "<unk>"}  # RoBERTa's; BERT's: [PAD] ...

HOW_TO_GET_ONE = """vocab.txt, or vocab.json with merges.txt, would do too, if no tokens were added to them.
  With the transformers library, installed anywhere, this writes a tokenizer.json into the folder DIR:
  python -c "from transformers import AutoTokenizer as T; T.from_pretrained('DIR').save_pretrained('DIR')"
  where DIR is """


def load(folder, entries=None):
    """The tokenizer of a checkpoint folder.

    entries: the size of the checkpoint's vocabulary, which the tokenizer must not exceed.
    Raises: UserError naming the file, what is wrong with it and how to get a tokenizer.json.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the checkpoint folder it is in")
    config = read_json(folder / "tokenizer_config.json")
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    try:
        if "tokenizer.json" in there:
            path = folder / "tokenizer.json"
            refuse_pointer(path)
            tokenizer = Tokenizer.from_buffer(path.read_bytes())
        elif "vocab.txt" in there and not read_json(folder / "added_tokens.json"):
            path = folder / "vocab.txt"
            tokenizer = wordpiece(path, config)
        elif {"vocab.json", "merges.txt"} <= there and not read_json(folder / "added_tokens.json"):
            path = folder / "vocab.json"
            tokenizer = byte_level(path, folder / "merges.txt", config)
        else:
            raise UserError(
                f"{folder}: no tokenizer.json there (nor what one can be made from). {HOW_TO_GET_ONE}{folder}"
            )
        missing = [role for role, i in special_ids(tokenizer).items() if i is None]
        if missing:
            names = ", ".join(f"neither [{role.upper()}] nor {ROLES[role]}" for role in missing)
            raise UserError(f"{path}: the tokenizer has {names}")
    except UserError:
        raise
    except Exception as e:  # the tokenizers library raises plain Exception
        raise UserError(f"{path}: not a tokenizer: {e}") from None
    tokenizer.no_truncation()  # some files come with both switched on
    tokenizer.no_padding()
    if entries is not None and size(tokenizer) > entries:
        raise UserError(
            f"{folder}: its tokenizer has {size(tokenizer):,} entries, its weights {entries:,}; "
            "the files are not of one checkpoint"
        )
    return tokenizer


def read_json(path):
    """The object in a JSON file, {} if there is none. Raises: UserError."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
        if type(content) is not dict:
            raise ValueError("not an object")
        return content
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read as JSON: {e}") from None


def refuse_pointer(path):
    """Raises UserError if Git LFS left a pointer in the place of the file."""
    if path.stat().st_size < 1000 and path.read_bytes().startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer of Git LFS, not the file: run 'git lfs pull' there")


def wordpiece(path, config):
    """BERT's tokenizer from vocab.txt, with the casing and accents of tokenizer_config.json (default: uncased)."""
    words = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),  # None: as lowercase is
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([f"[{role.upper()}]" for role in ROLES if f"[{role.upper()}]" in words])
    if {"[CLS]", "[SEP]"} <= set(words):
        add_ends(tokenizer, "[CLS]", "[SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1")
    return tokenizer


def byte_level(path, merges, config):
    """RoBERTa's tokenizer from vocab.json and merges.txt."""
    tokenizer = Tokenizer(models.BPE.from_file(str(path), str(merges)))
    vocab = tokenizer.get_vocab()
    if "\u0120" not in vocab or any(token.endswith("</w>") for token in vocab):
        raise UserError(f"{path}: not a byte-level BPE as RoBERTa has it; a tokenizer.json is needed")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    marks = [AddedToken(t, lstrip=t == "<mask>", normalized=False) for t in ROLES.values() if t in vocab]
    tokenizer.add_special_tokens(marks)
    if {"<s>", "</s>"} <= vocab.keys():
        add_ends(tokenizer, "<s>", "</s>", pair="<s> $A </s> </s> $B </s>")
    return tokenizer


def add_ends(tokenizer, cls, sep, pair):
    """Puts cls and sep around a text; `pair` is the same for two texts."""
    ids = [(t, tokenizer.token_to_id(t)) for t in (cls, sep)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{cls} $A {sep}", pair, ids)


def size(tokenizer):
    """Rows an embedding must have for it: one more than the largest id (there may be holes below)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def special_ids(tokenizer):
    """{"pad", "cls", "sep", "mask", "unk": id}, by BERT's names or RoBERTa's; None where there is neither."""
    names = {role: (f"[{role.upper()}]", name) for role, name in ROLES.items()}
    ids = {role: [i for i in map(tokenizer.token_to_id, pair) if i is not None] for role, pair in names.items()}
    return {role: found[0] if found else None for role, found in ids.items()}


def encode(tokenizer, texts, what):
    """Strings -> (token ids one after another (int32), tokens of each string (int64)); no [CLS], [SEP].

    Names and single words should come with a space before them, as in the middle of a text: to a byte-level BPE
    "liver" and " liver" are different words, and the second is the one it mostly met. To others they are one.
    A "[SEP]" inside a text is text here, while other libraries make the special token of it.
    """
    tokenizer.encode_special_tokens = True
    ids, lengths = [np.zeros(0, np.int32)], []
    with progress(what, len(texts)) as bar:
        for i in range(0, len(texts), 2048):
            try:
                encoded = tokenizer.encode_batch_fast(texts[i : i + 2048], add_special_tokens=False)
            except Exception as e:  # such as an unknown character and no token for it
                raise UserError(f"{what}: the tokenizer cannot encode all of them: {e}") from None
            lengths += [len(e) for e in encoded]
            ids.append(np.fromiter((x for e in encoded for x in e.ids), np.int32))
            bar.update(len(encoded))
    tokenizer.encode_special_tokens = False
    return np.concatenate(ids), np.array(lengths, np.int64)


def save(content, folder, positions, segments):
    """Writes tokenizer.json (`content`: its bytes), tokenizer_config.json and special_tokens_map.json.

    positions: tokens of the model's longest input. segments: its token types; with fewer than two, the
    inputs that other libraries make must have none.
    """
    tokenizer = Tokenizer.from_str(content.decode())
    roles = {f"{role}_token": tokenizer.id_to_token(i) for role, i in special_ids(tokenizer).items()}
    marks = [t.content for _, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special]
    roles["additional_special_tokens"] = [t for t in marks if t not in roles.values()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it stands, nothing built anew around it
        "model_max_length": positions,
        "model_input_names": ["input_ids", *["token_type_ids"] * (segments > 1), "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    for name, value in (("tokenizer_config.json", config | roles), ("special_tokens_map.json", roles)):
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        write_atomic(Path(folder, name), lambda f, text=text: f.write(text.encode()))
    write_atomic(Path(folder, "tokenizer.json"), lambda f: f.write(content))
