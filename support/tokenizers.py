"""Tokenizers in, out and trained.

In, whichever files a checkpoint folder has: tokenizer.json; else vocab.txt (BERT's WordPiece); else vocab.json with
merges.txt (RoBERTa's byte-level BPE). Out: tokenizer.json and the two small files that other libraries read with it.
"""

import re
from collections import Counter
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from configs import UserError
from support.arrays import ceil_div, concat_ranges
from support.files import progress, read_bytes, read_json, reject_lfs_pointer, write_atomic, write_json

ROBERTA_NAMES = {"pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>", "unk": "<unk>"}
BERT_NAMES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}  # 0 to 4, if trained

HOW_TO_GET_ONE = """vocab.txt, or vocab.json with merges.txt, would do too, if no tokens were added to them.
  With the transformers library, installed anywhere, this writes a tokenizer.json into the folder DIR:
  python -c "from transformers import AutoTokenizer as T; T.from_pretrained('DIR').save_pretrained('DIR')"
  where DIR is """


# ---------------------------------------------------------------- in


def load(folder, new_tokens=(), max_entries=None):
    """The tokenizer of a checkpoint folder.

    Args: new_tokens: special tokens to append, those that it lacks. max_entries: the most that it may have.
    Raises: UserError naming the file, what is wrong with it and how to get a tokenizer.json.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the checkpoint folder it is in")
    if not folder.is_dir():
        advice = "give a run folder, or the folder of a downloaded checkpoint"
        raise UserError(f"{folder}: no such folder; {advice}{how_to_download(folder)}")
    tokenizer = read_files(folder)
    if read_input_settings(folder)["do_lower_case"]:
        lower_case(tokenizer)
    tokenizer.no_truncation()  # some files come with both switched on
    tokenizer.no_padding()
    n_entries = vocab_size(tokenizer)
    if max_entries is not None and n_entries > max_entries:
        sizes = f"its tokenizer has {n_entries:,} entries, its weights {max_entries:,}"
        raise UserError(f"{folder}: {sizes}; the files are not of one checkpoint")
    add_special_tokens(tokenizer, new_tokens)
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if new_tokens and len(set(ids)) < len(ids):  # the library numbers new tokens from the number of old ones on
        raise UserError(f"{folder}: its vocabulary has holes or repeats, so new tokens would share ids with old ones")
    return tokenizer


def how_to_download(name):
    """What to do if `name` is that of a model on the Hugging Face hub, not of a folder; "" if it cannot be one."""
    is_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)) and not set(Path(name).parts) & {"..", "runs", "results"}
    if not is_name or Path(name).exists() or (Path(name).parent != Path() and Path(name).parent.exists()):
        return ""
    return f" (to download that model: git lfs install && git clone https://huggingface.co/{name})"


def read_files(folder):
    """The tokenizer of the files in a folder. Raises: UserError."""
    config, path = read_json(folder / "tokenizer_config.json"), folder
    names = {p.name for p in folder.iterdir()}
    try:
        if "tokenizer.json" in names:
            path = folder / "tokenizer.json"
            reject_lfs_pointer(path)
            tokenizer = Tokenizer.from_buffer(read_bytes(path))
        elif "vocab.txt" in names:
            path = folder / "vocab.txt"
            tokenizer = wordpiece(path, config, read_input_settings(folder)["do_lower_case"])
        elif {"vocab.json", "merges.txt"} <= names:
            path = folder / "vocab.json"
            tokenizer = byte_level_bpe(path, folder / "merges.txt", config)
        else:
            missing = "no tokenizer.json there (nor what one can be made from)"
            raise UserError(f"{folder}: {missing}. {HOW_TO_GET_ONE}{folder}")
        if path.name != "tokenizer.json" and (lost := lost_tokens(folder, config, tokenizer.get_vocab())):
            missing = f"no tokenizer.json there, and {path.name} lacks the added token {lost[0]!r}"
            raise UserError(f"{folder}: {missing}. {HOW_TO_GET_ONE}{folder}")
        if missing := [role for role, i in special_ids(tokenizer).items() if i is None]:
            lacking = ", ".join(f"neither {BERT_NAMES[role]} nor {ROBERTA_NAMES[role]}" for role in missing)
            raise UserError(f"{path}: the tokenizer has {lacking}")
        return tokenizer
    except UserError:
        raise
    except Exception as e:  # the tokenizers library raises plain Exception
        raise UserError(f"{path}: not a tokenizer: {e}") from None


def read_input_settings(folder):
    """{"max_seq_length": 0 if not said, "do_lower_case"} of a folder of sentence-transformers. Raises: UserError."""
    path = next(iter(sorted(Path(folder).glob("sentence_*_config.json"))), None)  # bert, in old folders other families
    d = read_json(path) if path else {}
    max_len, lower = d.get("max_seq_length") or 0, d.get("do_lower_case") or False
    if type(max_len) is not int or max_len < 0:
        raise UserError(f"{path}: max_seq_length = {max_len!r} is not a number of tokens")
    if type(lower) is not bool:
        raise UserError(f"{path}: do_lower_case = {lower!r} is neither true nor false")
    return {"max_seq_length": max_len, "do_lower_case": lower}


def lower_case(tokenizer):
    """Has a tokenizer take its texts in lower case, unless it does so already."""
    steps = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    if not steps or "A" in tokenizer.normalizer.normalize_str("A"):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def lost_tokens(folder, config, vocab):
    """Tokens that the small files of a folder add to `vocab` ({token: id}), and that it does not have."""

    def text(token):
        return token.get("content") if isinstance(token, dict) else token

    added = [(token, str(i)) for token, i in read_json(folder / "added_tokens.json").items()]
    added += [(text(token), i) for i, token in (config.get("added_tokens_decoder") or {}).items()]
    lost = [token for token, i in added if str(vocab.get(token)) != i]
    places = config, read_json(folder / "special_tokens_map.json")
    for tokens in (d.get(f"{kind}_special_tokens") or () for d in places for kind in ("additional", "extra")):
        tokens = tokens.values() if isinstance(tokens, dict) else tokens
        lost += [token for token in map(text, tokens) if token not in vocab]
    return lost


def wordpiece(path, config, lowered):
    """BERT's tokenizer from vocab.txt, with the casing and accents of tokenizer_config.json (default: uncased).

    Args: lowered: whether another file says that texts are in lower case.
    Raises: UserError if the vocabulary has capitals, and no file says what to do with those of texts.
    """
    reject_lfs_pointer(path)
    words = read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").removesuffix("\n").split("\n")
    lowercase = config.get("do_lower_case")
    capitals = [w for w in words if w != w.lower() and w[:1] + w[-1:] not in ("[]", "<>")]
    if lowercase is None and not lowered and capitals:
        what = f"has capitals, such as {capitals[0]!r}, and nothing says whether texts are put in lower case"
        advice = 'write {"do_lower_case": false} (or true) into a tokenizer_config.json beside it'
        raise UserError(f"{path} {what}; {advice}")
    normalizer = normalizers.BertNormalizer(
        lowercase=True if lowercase is None else lowercase,
        strip_accents=config.get("strip_accents"),  # None: as lowercase is
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    special = [token for role in ROBERTA_NAMES if (token := BERT_NAMES[role]) in words]
    return bert_tokenizer({w: i for i, w in enumerate(words)}, normalizer, special)


def bert_tokenizer(vocab, normalizer, special):
    """A WordPiece tokenizer. Args: vocab: {token: id}. special: the special tokens of it."""
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    add_special_tokens(tokenizer, special)
    if {"[CLS]", "[SEP]"} <= vocab.keys():
        add_cls_sep(tokenizer, "[CLS]", "[SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1")
    return tokenizer


def byte_level_bpe(path, merges, config):
    """RoBERTa's tokenizer from vocab.json and merges.txt."""
    reject_lfs_pointer(path)
    reject_lfs_pointer(merges)
    tokenizer = Tokenizer(models.BPE.from_file(str(path), str(merges)))
    vocab = tokenizer.get_vocab()
    if "\u0120" not in vocab or any(token.endswith("</w>") for token in vocab):
        raise UserError(f"{path}: not a byte-level BPE as RoBERTa has it; a tokenizer.json is needed")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    names = [name for name in ROBERTA_NAMES.values() if name in vocab]
    tokenizer.add_special_tokens([AddedToken(name, lstrip=name == "<mask>", normalized=False) for name in names])
    if {"<s>", "</s>"} <= vocab.keys():
        add_cls_sep(tokenizer, "<s>", "</s>", pair="<s> $A </s> </s> $B </s>")
    return tokenizer


def add_cls_sep(tokenizer, cls, sep, pair):
    """Puts cls and sep around a text; `pair` is the same for two texts."""
    ids = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    tokenizer.post_processor = processors.TemplateProcessing(f"{cls} $A {sep}", pair, ids)


def add_special_tokens(tokenizer, tokens):
    """Makes tokens special, appending those that are new, in this order."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens])


# ---------------------------------------------------------------- trained


def load_or_train(s, new_tokens, texts):
    """The tokenizer of a build: that of its checkpoint, or a trained one. s: a configs.Data."""
    return load(s.tokenizer, new_tokens) if s.tokenizer else train_wordpiece(texts, s.vocab_size, s.cased, new_tokens)


def train_wordpiece(texts, vocab_size, cased, new_tokens):
    """A WordPiece tokenizer (accents kept) from an iterable of lists of strings.

    The WordPieceTrainer of the tokenizers library numbers its "##x" pieces in the order of a hash table, so that two
    runs differ. Its BPE trainer, given those pieces up front, learns the same merges and is deterministic, whatever the
    order of the texts. WordPiece then only needs the vocabulary.

    Args: new_tokens: special tokens beside [PAD], [UNK], [CLS], [SEP], [MASK].
    """
    specials = [*BERT_NAMES.values(), *new_tokens]
    case = normalizers.BertNormalizer(lowercase=not cased, strip_accents=False)
    normalizer = normalizers.Sequence([normalizers.NFC(), case])
    words = pa.chunked_array([pa.array(batch, pa.large_string()) for batch in texts], pa.large_string())
    words, n = pc.list_flatten(pc.split_pattern(words, " ")).value_counts().flatten()
    words, n = words.to_pylist(), n.to_pylist()
    count = Counter(normalizer.normalize_str(" ".join({w for word in words for w in word.split()})))
    letters = sorted(c for c in count if not c.isspace())
    letters = sorted(sorted(letters, key=lambda c: -count[c])[: vocab_size // 4])
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    bpe.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*specials, *("##" + c for c in letters)], initial_alphabet=letters,
        limit_alphabet=len(letters), continuing_subword_prefix="##", show_progress=False,
    )  # fmt: skip
    # Each distinct word is normalised once, and written as often as it occurs: the trainer counts them itself.
    repeated = chain.from_iterable(map(repeat, map(normalizer.normalize_str, words), n))
    bpe.train_from_iterator(iter(lambda: " ".join(islice(repeated, 2000)), ""), trainer)
    return bert_tokenizer(bpe.get_vocab(), normalizer, specials)


# ---------------------------------------------------------------- used


def vocab_size(tokenizer):
    """Rows an embedding must have for it: one more than the largest id (there may be holes below)."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def special_ids(tokenizer):
    """{"pad", "cls", "sep", "mask", "unk": id}, by BERT's names or RoBERTa's; None where there is neither."""
    ids = {}
    for role, name in ROBERTA_NAMES.items():
        bert_id, roberta_id = tokenizer.token_to_id(BERT_NAMES[role]), tokenizer.token_to_id(name)
        ids[role] = roberta_id if bert_id is None else bert_id
    return ids


def kgi_ids(tokenizer, new_tokens):
    """special_ids, and {"relations": ids, "hrel": id} of the tokens of the relations and [HREL], which is last."""
    *relations, hrel = map(tokenizer.token_to_id, new_tokens)
    return special_ids(tokenizer) | {"relations": relations, "hrel": hrel}


# What may join a word with its neighbours: two spaces, other white space, and characters that a normaliser may drop.
ODD = r"  |[^\P{Z} ]|\p{C}"
N_CHECKED = 2000  # texts that are encoded both ways


def encode(tokenizer, texts, what):
    """Strings -> (token ids one after another (int32), tokens of each string (int64)); no [CLS], [SEP].

    Texts repeat their words. So each distinct word is encoded once, unless the tokenizer reads across spaces. A "[SEP]"
    inside a text is text here, while other libraries make the special token of it.

    Args: what: for the progress bar. Raises: UserError if the tokenizer cannot encode a text.
    """
    words = split_words(texts, what)
    several = words.filter(pc.greater(pc.list_value_length(words), 1))
    added = tokenizer.get_added_tokens_decoder().values()
    if len(several) > N_CHECKED and not any(may_join_words(token, tokenizer.normalizer) for token in added):
        checked = several.take(np.arange(0, len(several), ceil_div(len(several), N_CHECKED)))
        whole = encode_whole(tokenizer, ["".join(text) for text in checked.to_pylist()], what)
        if all(map(np.array_equal, encode_words(tokenizer, checked, what), whole)):
            return encode_words(tokenizer, words, what)
    return encode_whole(tokenizer, texts, what)


def split_words(texts, what):
    """Strings -> a ListArray of their words, each with the space before it; a string that is odd is one word."""
    try:
        texts = pa.array(texts, pa.large_string())
    except UnicodeEncodeError as e:  # half a surrogate pair
        raise UserError(f"{what}: the tokenizer cannot encode all of them: {e}") from None
    as_one = pa.ListArray.from_arrays(np.arange(len(texts) + 1, dtype=np.int32), texts)
    words = pc.split_pattern(pc.replace_substring(texts, " ", "\n "), "\n")  # a text with a line break is odd
    return pc.if_else(pc.match_substring_regex(texts, ODD), as_one, words)


def may_join_words(token, normalizer):
    """Whether an added token may reach beyond a word of a text that is not odd; special ones match nothing here.

    ModernBERT has tokens of several spaces, which only odd texts hold. Most normalisers could make spaces, NFC none.
    """
    is_odd = pc.match_substring_regex(token.content, ODD).as_py() and isinstance(normalizer, normalizers.NFC | None)
    return not token.special and (token.rstrip or (bool(re.search(r"\s", token.content)) and not is_odd))


def encode_words(tokenizer, words, what):
    """encode of texts that split_words has split, by their distinct words."""
    numbered = words.flatten().dictionary_encode()
    ids, length = encode_whole(tokenizer, numbered.dictionary.to_pylist(), what)
    word, n_words = np.asarray(numbered.indices), np.asarray(pc.list_value_length(words))
    index = concat_ranges((np.cumsum(length) - length)[word], length[word])
    return ids[index], np.add.reduceat(length[word], np.cumsum(n_words) - n_words)


def encode_whole(tokenizer, texts, what):
    """encode of texts as they are, 2,048 at a time."""
    ids, lengths = [np.zeros(0, np.int32)], []
    tokenizer.encode_special_tokens = True
    with progress(what, len(texts)) as bar:
        for i in range(0, len(texts), 2048):
            try:
                encoded = tokenizer.encode_batch_fast(texts[i : i + 2048], add_special_tokens=False)
            except Exception as e:  # such as an unknown character and no token for it
                raise UserError(f"{what}: the tokenizer cannot encode all of them: {e}") from None
            batch = [e.ids for e in encoded]
            lengths += map(len, batch)
            ids.append(np.fromiter(chain.from_iterable(batch), np.int32, sum(lengths[-len(batch) :])))
            bar.update(len(encoded))
    tokenizer.encode_special_tokens = False
    return np.concatenate(ids), np.array(lengths, np.int64)


def encode_lists(tokenizer, texts, what):
    """encode, with a list of token ids for each string."""
    ids, length = encode(tokenizer, texts, what)
    ids, end = ids.tolist(), np.cumsum(length)
    return [ids[i:j] for i, j in zip((end - length).tolist(), end.tolist())]


def encode_names(tokenizer, names, what):
    """encode of names or single words with a space before each, as in the middle of a text.

    To a byte-level BPE "liver" and " liver" are different words, and the second is the one it mostly met.
    """
    return encode(tokenizer, [" " + name for name in names], what)


# ---------------------------------------------------------------- out


def save(content, folder, max_positions, type_vocab_size):
    """Writes tokenizer.json (`content`: its bytes), tokenizer_config.json and special_tokens_map.json.

    Args: max_positions, type_vocab_size: of the model; with fewer than two types inputs of other libraries have none.
    """
    tokenizer = Tokenizer.from_str(content.decode())
    roles = {f"{role}_token": tokenizer.id_to_token(i) for role, i in special_ids(tokenizer).items()}
    special = [t.content for _, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special]
    roles["additional_special_tokens"] = [token for token in special if token not in roles.values()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is, with nothing built around it
        "model_max_length": max_positions,
        "model_input_names": ["input_ids", *["token_type_ids"] * (type_vocab_size > 1), "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    write_json(Path(folder, "tokenizer_config.json"), config | roles)
    write_json(Path(folder, "special_tokens_map.json"), roles)
    write_atomic(Path(folder, "tokenizer.json"), lambda f: f.write(content))
