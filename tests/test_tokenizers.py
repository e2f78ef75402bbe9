"""support/tokenizers.py: tokenizers in from every kind of file, trained, used, and out again."""

import json
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, implementations, normalizers, pre_tokenizers, trainers
from tokenizers import models as algorithms

from configs import UserError
from support import tokenizers

NEW_TOKENS = ("[PAR]", "[CHD]", "[HREL]")
TEXT = ["Fièvre élevée de l'Estomac", "L'estomac; ÉLEVÉ 37,5 °C", "naïve ﬁbrose 肝炎\u00a0aiguë"]


# ---------------------------------------------------------------- in


@pytest.mark.parametrize("settings", [
    {}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True}, {"tokenize_chinese_chars": False},
])  # fmt: skip
def test_vocab_txt(tmp_path, settings):
    """As the tokenizers library's own BERT tokenizer makes it of the same file."""
    letters = sorted({c for t in TEXT for c in t + t.lower() + "éèeïi" if not c.isspace()})
    letters = [c for c in letters if "do_lower_case" in settings or c == c.lower()]  # or capitals would be refused
    pieces = ["##" + c for c in letters]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fi", "estomac", "\x85", *letters, *pieces]
    for end in ("\n", "\r\n"):
        (tmp_path / "vocab.txt").write_bytes((end.join(words) + end).encode())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "BertTokenizer"}))
        mine = tokenizers.load(tmp_path)
        theirs = implementations.BertWordPieceTokenizer(
            {w: i for i, w in enumerate(words)},
            lowercase=settings.get("do_lower_case", True),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        )
        for text in [*TEXT, "a [MASK] b", "\x85"]:
            assert mine.encode(text).ids == theirs.encode(text).ids
        assert mine.encode("a", "b").type_ids == theirs.encode("a", "b").type_ids
        assert mine.decode(mine.encode(TEXT[0]).ids) == theirs.decode(theirs.encode(TEXT[0]).ids)
        assert tokenizers.special_ids(mine) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
        tokenizers.add_special_tokens(mine, NEW_TOKENS)
        assert mine.encode("a [PAR] b").tokens[2] == "[PAR]" and tokenizers.vocab_size(mine) == len(words) + 3


@pytest.mark.parametrize("space", [None, False, True])
def test_vocab_json_and_merges_txt(tmp_path, space):
    bpe = implementations.ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        TEXT * 5, 320, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    bpe.save_model(str(tmp_path))
    if space is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": space}))
    n = bpe.get_vocab_size()
    mine = tokenizers.load(tmp_path, max_entries=n)
    files = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    theirs = implementations.ByteLevelBPETokenizer(*files, add_prefix_space=bool(space))
    for text in TEXT:
        assert mine.encode(text).ids == [0, *theirs.encode(text).ids, 2]
        assert mine.decode(mine.encode(text).ids).strip() == text
    assert mine.encode("x <mask> y").ids == mine.encode("x<mask> y").ids and 4 in mine.encode("x<mask> y").ids
    assert mine.encode("a", "b").tokens.count("</s>") == 3
    with pytest.raises(UserError, match=f"has {n} entries, its weights {n - 1}; the files are not of one checkpoint"):
        tokenizers.load(tmp_path, max_entries=n - 1)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({k: i for k, i in vocab.items() if k != "\u0120"}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="not a byte-level BPE"):
        tokenizers.load(tmp_path)


def test_ids_with_holes(tmp_path):
    """The size is that of the largest id; new tokens, which would share ids with old ones, are refused."""
    new_tokens = [f"[{letter}]" for letter in "ABCDEFGH"]
    special = {token: i for i, token in enumerate(tokenizers.ROBERTA_NAMES.values())}
    t = Tokenizer(algorithms.WordLevel(special | {"a": 9}, unk_token="<unk>"))
    t.save(str(tmp_path / "tokenizer.json"))
    assert tokenizers.vocab_size(tokenizers.load(tmp_path, max_entries=10)) == 10
    with pytest.raises(UserError, match="has 10 entries, its weights 9"):
        tokenizers.load(tmp_path, max_entries=9)
    with pytest.raises(UserError, match="vocabulary has holes or repeats, so new tokens would share ids with old ones"):
        tokenizers.load(tmp_path, new_tokens)
    (tmp_path / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijkl"]
    for extra, good in (([], True), (["a", "z"], False)):
        (tmp_path / "vocab.txt").write_text("\n".join([*words, *extra]) + "\n")
        if good:
            assert tokenizers.vocab_size(tokenizers.load(tmp_path, new_tokens)) == len(words) + len(new_tokens)
        else:
            with pytest.raises(UserError, match="holes or repeats"):
                tokenizers.load(tmp_path, new_tokens)


def test_what_is_not_a_tokenizer(tmp_path):
    def raises(message, **files):
        folder = tmp_path / "x"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in files.items():
            stem, _, suffix = name.rpartition("_")
            (folder / f"{stem}.{suffix}").write_bytes(content)
        with pytest.raises(UserError, match=message):
            tokenizers.special_ids(tokenizers.load(folder))

    good = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n"
    raises("no tokenizer.json there .*\n.*\n.*AutoTokenizer as T; T.from_pretrained", spiece_txt=b"x")
    raises("no tokenizer.json there", vocab_json=b"{}")
    raises("tokenizer_config.json: cannot be read as JSON", vocab_txt=good, tokenizer_config_json=b"{")
    raises("vocab.txt: not a tokenizer", vocab_txt=b"\xff" + good)
    raises("vocab.txt: not a tokenizer", vocab_txt=good, tokenizer_config_json=b'{"do_lower_case": "yes"}')
    raises(r"vocab.txt: the tokenizer has neither \[CLS\] nor <s>, neither \[SEP\]", vocab_txt=b"[PAD]\n[UNK]\na\n")
    raises(r"the tokenizer has neither \[MASK\] nor <mask>", vocab_txt=good.replace(b"[MASK]\n", b""))
    raises("vocab.json: not a tokenizer", vocab_json=b"{", merges_txt=b"")
    raises("tokenizer.json: not a tokenizer", tokenizer_json=b"{}")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    others = {"vocab_txt": good, "tokenizer_config_json": b"{}"}
    for name in ("tokenizer_json", "vocab_txt", "tokenizer_config_json", "added_tokens_json", "special_tokens_map_json",
                 "sentence_bert_config_json"):  # fmt: skip
        raises(f"{name.replace('_j', '.j').replace('_txt', '.txt')} is a pointer of Git LFS, not the file: run",
               **others | {name: pointer})  # fmt: skip
    for name in ("vocab_json", "merges_txt"):
        raises("is a pointer of Git LFS", **{"vocab_json": b"{}", "merges_txt": b""} | {name: pointer})
    with pytest.raises(UserError, match="nowhere: no such folder; give a run folder"):
        tokenizers.load(tmp_path / "nowhere")
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + good)
    assert tokenizers.load(tmp_path).token_to_id("[PAD]") == 0
    with pytest.raises(UserError, match="vocab.txt is a file; give the checkpoint folder it is in"):
        tokenizers.load(tmp_path / "vocab.txt")
    bad = Tokenizer(algorithms.Unigram([(t, 0.0) for t in tokenizers.ROBERTA_NAMES.values()]))  # and no unk_id
    with pytest.raises(UserError, match="words: the tokenizer cannot encode all of them: .*unk"):
        tokenizers.encode(bad, ["x"], "words")


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<S>", "[unused1]", "liver", "foie"]


def folder_of(path, words=WORDS, **files):
    """A folder with vocab.txt and some JSON files."""
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("config", [{}, {"do_lower_case": None, "tokenizer_class": "BertTokenizer"}])
def test_capitals_of_a_vocabulary_are_not_lost_in_silence(tmp_path, config):
    """Where no file says that texts are put in lower case, or that they are not."""
    assert tokenizers.load(folder_of(tmp_path, tokenizer_config=config)).encode("Liver").ids == [2, 7, 3]
    folder_of(tmp_path, [*WORDS, "Liver"])
    with pytest.raises(UserError, match=r"vocab.txt has capitals, such as 'Liver', .*\{\"do_lower_case\": false\}"):
        tokenizers.load(tmp_path)
    for lower, ids in ((False, [2, 9, 3]), (True, [2, 7, 3])):
        folder_of(tmp_path, [*WORDS, "Liver"], tokenizer_config=config | {"do_lower_case": lower})
        assert tokenizers.load(tmp_path).encode("Liver").ids == ids
    folder_of(tmp_path, [*WORDS, "Liver"], tokenizer_config=config, sentence_bert_config={"do_lower_case": True})
    assert tokenizers.load(tmp_path).encode("Liver").ids == [2, 7, 3]


def test_lower_case_of_sentence_transformers(tmp_path):
    """That library puts texts in lower case before any tokenizer, a cased one too."""
    words = [*WORDS, "Liver", "É", "é"]
    cased, settings = {"do_lower_case": False}, {"max_seq_length": 9, "do_lower_case": True}
    plain = tokenizers.load(folder_of(tmp_path / "a", words, tokenizer_config=cased))
    for name in ("sentence_bert_config", "sentence_roberta_config"):  # the second in old folders
        mine = tokenizers.load(folder_of(tmp_path / name, words, tokenizer_config=cased, **{name: settings}))
        for text in ("Liver É foie", "liver"):
            assert mine.encode(text).ids == plain.encode(text.lower()).ids
    assert plain.encode("Liver É").ids == [2, 9, 10, 3] and mine.encode("Liver É").ids == [2, 7, 11, 3]
    uncased = tokenizers.load(folder_of(tmp_path / "b"))
    assert tokenizers.load(folder_of(tmp_path / "b", sentence_bert_config=settings)).to_str() == uncased.to_str()
    for key, value in (("do_lower_case", "yes"), ("do_lower_case", 1), ("max_seq_length", "9")):
        with pytest.raises(UserError, match=f"sentence_bert_config.json: {key} = .* is n"):
            tokenizers.load(folder_of(tmp_path / "b", sentence_bert_config={key: value}))


@pytest.mark.parametrize("token", [9, 7, "lost"])
def test_tokens_that_only_small_files_name_are_not_lost(tmp_path, token):
    """Or the first new token would take the row of one. Such a folder needs a tokenizer.json."""
    decoder = {"0": {"content": "[PAD]"}, "5": {"content": "<S>"}}
    roles = {"additional_special_tokens": ["<S>", {"content": "liver"}], "extra_special_tokens": {"a": "<S>"}}
    good = {"added_tokens": {"<S>": 5}, "tokenizer_config": roles | {"added_tokens_decoder": decoder}}
    folder_of(tmp_path, **good, special_tokens_map=roles)
    assert tokenizers.vocab_size(tokenizers.load(tmp_path)) == len(WORDS)
    if type(token) is int:  # an id that the vocabulary lacks, or that is another token's there
        more = {"added_tokens_decoder": decoder | {str(token): {"content": "[X]"}}}
        files = [{"added_tokens": {"[X]": token}}, {"tokenizer_config": more}]
    else:
        listed = {"additional_special_tokens": ["[X]"]}, {"extra_special_tokens": {"x": {"content": "[X]"}}}
        files = [{name: d} for name in ("tokenizer_config", "special_tokens_map") for d in listed]
    for bad in files:
        folder_of(tmp_path, **good | {"special_tokens_map": roles} | bad)
        with pytest.raises(UserError, match=r"no tokenizer.json there, and vocab.txt lacks the added token '\[X\]'"):
            tokenizers.load(tmp_path)
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizers.load(tmp_path)  # this has them, or not


def test_truncation_and_padding_of_a_file_are_switched_off(tmp_path):
    t = small_tokenizer()
    t.enable_truncation(4)
    t.enable_padding(length=9)
    t.save(str(tmp_path / "tokenizer.json"))
    assert tokenizers.load(tmp_path).encode("a b a b a b").ids == [2, *[5, 6] * 3, 3]


def test_tokenizer_json_is_preferred(tmp_path):
    """Where a folder has several kinds of files, and tokens were added that vocab.txt does not know."""
    t = small_tokenizer()
    t.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nb\na\n")
    (tmp_path / "added_tokens.json").write_text('{"[X]": 7}')
    assert tokenizers.load(tmp_path).to_str() == t.to_str()


# ---------------------------------------------------------------- new tokens


def small_tokenizer(cls="[CLS]", sep="[SEP]"):
    """A tokenizer of the words a and b, with ids 5 and 6."""
    words = ["[PAD]", "[UNK]", cls, sep, "[MASK]", "a", "b"]
    t = implementations.BertWordPieceTokenizer(
        {w: i for i, w in enumerate(words)}, cls_token=cls, sep_token=sep
    )._tokenizer
    t.add_special_tokens(words[:5])
    return t


def test_new_tokens_are_appended_in_order_and_those_that_exist_stay(tmp_path):
    t = small_tokenizer()
    t.add_special_tokens(["[CHD]"])
    t.save(str(tmp_path / "tokenizer.json"))
    for _ in range(2):
        mine = tokenizers.load(tmp_path, NEW_TOKENS)
        assert [mine.token_to_id(token) for token in NEW_TOKENS] == [8, 7, 9]
        assert tokenizers.vocab_size(mine) == 10 and mine.encode("a [PAR] b").ids == [2, 5, 8, 6, 3]
        mine.save(str(tmp_path / "tokenizer.json"))  # nothing is new the second time


def test_the_limit_of_entries_is_that_of_the_file_without_new_tokens(tmp_path):
    small_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert tokenizers.vocab_size(tokenizers.load(tmp_path, NEW_TOKENS, max_entries=7)) == 10
    with pytest.raises(UserError, match="has 7 entries, its weights 6; the files are not of one checkpoint"):
        tokenizers.load(tmp_path, NEW_TOKENS, max_entries=6)


# ---------------------------------------------------------------- trained


def test_accents_stay_and_case_is_a_choice():
    texts = [["Fièvre élevée de l'estomac"] * 5, ["fièvre Élevée"] * 5]
    for cased in (True, False):
        t = tokenizers.train_wordpiece(iter(texts), 200, cased, NEW_TOKENS)
        assert "è" in "".join(t.encode("fièvre").tokens)
        assert (t.encode("Fièvre").ids == t.encode("fièvre").ids) == (not cased)
        assert t.encode("e\u0301leve\u0301e").ids == t.encode("élevée").ids  # decomposed accents are the same


def test_a_trained_vocabulary_depends_on_the_texts_alone():
    """Not on their order, nor on how they are divided into lists; special tokens come first."""
    texts = [f"{a}{b} {b}{a}{b}ité" for a in "abcdefgh" for b in ("hépat", "rein", "cœur", "estomac")]
    ways = [[texts], [texts[::-1]], [texts[:9], texts[9:]], [[t] for t in texts]]
    vocab, *others = [tokenizers.train_wordpiece(way, 150, True, NEW_TOKENS).to_str() for way in ways]
    assert all(other == vocab for other in others)
    t = Tokenizer.from_str(vocab)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NEW_TOKENS]
    assert [t.id_to_token(i) for i in range(len(special))] == special
    assert 100 < tokenizers.vocab_size(t) <= 150
    assert t.encode("hépatité").tokens[0] == "[CLS]" and t.encode("\u4e00").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert t.decode(t.encode("ahépat hépataité").ids) == "ahépat hépataité"


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize("size", [90, 250])
def test_training_on_counted_words_is_training_on_the_texts(cased, size):
    """With all that a text can hold; of 90 entries only the most frequent letters get one."""
    texts = texts_of_words(300, True)
    case = normalizers.BertNormalizer(lowercase=not cased, strip_accents=False)
    bpe = Tokenizer(algorithms.BPE(continuing_subword_prefix="##"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), case])
    bpe.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word in text.split()}
    count = Counter(bpe.normalizer.normalize_str(" ".join(words)))
    letters = sorted(sorted(c for c in count if not c.isspace()), key=lambda c: -count[c])[: size // 4]
    special = [*tokenizers.BERT_NAMES.values(), *("##" + c for c in sorted(letters))]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=letters, limit_alphabet=len(letters),
        continuing_subword_prefix="##", show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    assert (len(letters) < size // 4) == (size == 250)
    for lists in ([texts], [texts[:9], [], texts[9:]]):
        assert tokenizers.train_wordpiece(map(list, lists), size, cased, []).get_vocab() == bpe.get_vocab()


# ---------------------------------------------------------------- used


def test_special_tokens_have_berts_names_or_robertas():
    assert tokenizers.special_ids(small_tokenizer()) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    mixed = tokenizers.special_ids(small_tokenizer("<s>", "<end>"))
    assert mixed == {"pad": 0, "unk": 1, "cls": 2, "sep": None, "mask": 4}
    both = small_tokenizer()
    both.add_special_tokens(["<s>"])
    assert tokenizers.special_ids(both)["cls"] == 2


def test_encode_is_one_array_with_the_length_of_each_text():
    """More texts than are encoded at a time; special tokens in a text are text."""
    t, texts = small_tokenizer(), ["a", "", "b a b", "a [SEP] b"] * 1000
    ids, length = tokenizers.encode(t, texts, "texts")
    assert ids.dtype == np.int32 and length.dtype == np.int64
    assert length.tolist() == [1, 0, 3, 5] * 1000  # [, SEP and ] are unknown words
    assert ids.tolist() == [5, 6, 5, 6, 5, 1, 1, 1, 6] * 1000
    assert t.encode("[SEP]", add_special_tokens=False).ids == [3]  # the tokenizer is as it was
    ids, length = tokenizers.encode(t, [], "texts")
    assert (ids.dtype, len(ids), length.dtype, len(length)) == (np.int32, 0, np.int64, 0)


# Each kind of tokenizer: (the model, its trainer, its normaliser, its pre-tokenizer).
ADVICE = {"special_tokens": ["<unk>"], "show_progress": False}
XLM_R = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
STRIPPED = normalizers.BertNormalizer(strip_accents=True)
ALPHABET = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
BYTES = algorithms.BPE, partial(trainers.BpeTrainer, vocab_size=500, **ADVICE, **ALPHABET)
PIECES = algorithms.Unigram, partial(trainers.UnigramTrainer, vocab_size=300, unk_token="<unk>", **ADVICE)
WORDPIECE = algorithms.WordPiece, partial(trainers.WordPieceTrainer, vocab_size=300, **ADVICE)
BY_WORD = {
    "own, cased": True, "own, uncased": False,
    "BERT": (*WORDPIECE, STRIPPED, pre_tokenizers.BertPreTokenizer()),
    "RoBERTa": (*BYTES, None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "ModernBERT": (*BYTES, normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "RoBERTa, a space first": (*BYTES, None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "bytes, lower case": (
        *BYTES, normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), pre_tokenizers.ByteLevel()
    ),
    "CamemBERT": (
        *PIECES, XLM_R, pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    ),
    "XLM-R": (*PIECES, XLM_R, pre_tokenizers.Metaspace()),
    "a space before the first word": (*PIECES, None, pre_tokenizers.Metaspace(prepend_scheme="first")),
}  # fmt: skip
ACROSS_WORDS = {
    "bytes without words": (*BYTES, None, pre_tokenizers.ByteLevel(use_regex=False)),
    "pieces without words": (*PIECES, None, pre_tokenizers.Metaspace(split=False)),
    "stripped": (*PIECES, normalizers.Strip(), pre_tokenizers.Metaspace(prepend_scheme="never")),
    "Llama": (
        *BYTES, normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]), None
    ),
    "a token of two words": AddedToken("foie aigu", special=False),
    "a token of spaces": AddedToken("   ", special=False),  # BERT puts two between a CJK character and the next word
    "a token with the space after it": AddedToken("foie", special=False, rstrip=True),
}  # fmt: skip
TOKENS = [AddedToken(text, special=False) for text in ("foie", "e\u0301", "[x]")]


def texts_of_words(n, odd):
    """n texts; odd: with all that a text can hold beside words and single spaces."""
    rng, words = np.random.default_rng(0), [w for text in TEXT for w in text.split()]
    words += "foie aigu rein cœur (foie) l'estomac ½ \u00b4x e\u0301 \u0301b \u2581 [x]".split()
    words += (
        "[SEP] <unk> ##s 肝炎 a-b \U0001f600".split() + ["\u00a0x\ta\n\u3000", "a\u200b", "", "\x00", "a\x1cb"] * odd
    )
    texts = [" ".join(rng.choice(words, k).tolist()) for k in rng.integers(1, 9, n)]
    return [" " * (k & 1) + text + " " * (k & 2 > 0 and odd) for k, text in zip(rng.integers(0, 4, n).tolist(), texts)]


def tokenizer_of(kind, more=()):
    """A tokenizer trained on texts without what is odd. Args: more: added tokens."""
    texts = texts_of_words(300, False)
    if isinstance(kind, bool):
        t = tokenizers.train_wordpiece([texts], 250, kind, [])
    elif isinstance(kind, AddedToken):
        t, more = tokenizers.train_wordpiece([texts], 250, True, []), [kind]
    else:
        model, trainer, normalizer, pre_tokenizer = kind
        t = Tokenizer(model() if model is algorithms.Unigram else model(unk_token="<unk>"))
        for name, part in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer)):
            if part is not None:
                setattr(t, name, part)
        t.train_from_iterator(texts, trainer())
    t.add_tokens([*more])
    return t


@pytest.mark.parametrize("kind", [*BY_WORD, *ACROSS_WORDS])
def test_words_are_encoded_as_whole_texts_are(kind, monkeypatch):
    """Each distinct word is encoded once, where the tokenizer lets that be done, and the ids are those of the text."""
    encode_whole, asked, way = tokenizers.encode_whole, [], (BY_WORD | ACROSS_WORDS)[kind]
    monkeypatch.setattr(tokenizers, "N_CHECKED", 150)
    monkeypatch.setattr(tokenizers, "encode_whole", lambda *args: asked.append(len(args[1])) or encode_whole(*args))
    spaces = [AddedToken(" " * n, special=False) for n in (2, 3)] * (kind == "ModernBERT")
    for more in ((), TOKENS + spaces) if kind in BY_WORD else ((),):
        t = tokenizer_of(way, more)
        for odd in (False, True):
            texts = texts_of_words(700, odd)
            asked.clear()
            ids, length = tokenizers.encode(t, texts, "x")
            t.encode_special_tokens = True
            want = [t.encode(text, add_special_tokens=False).ids for text in texts]
            t.encode_special_tokens = False
            assert length.tolist() == [*map(len, want)]
            assert ids.tolist() == [i for text in want for i in text]
            assert (asked[-1] == 700) == (kind in ACROSS_WORDS)
            assert kind in ACROSS_WORDS or odd or asked[-1] < 100
            assert tokenizers.encode_lists(t, texts, "x") == want


@pytest.mark.parametrize("kind", [True, BY_WORD["RoBERTa"], BY_WORD["XLM-R"]])
def test_names_have_a_space_before_them(kind):
    t, names = tokenizer_of(kind), texts_of_words(3000, False)
    names = [name for name in names if "[SEP]" not in name and "<unk>" not in name]
    ids, length = tokenizers.encode_names(t, names, "x")
    want = [t.encode(" " + name, add_special_tokens=False).ids for name in names]
    assert [x.tolist() for x in np.split(ids, np.cumsum(length)[:-1])] == want


def test_half_a_surrogate_pair_is_no_text():
    for n in (1, 5000):
        with pytest.raises(UserError, match="names: the tokenizer cannot encode all of them: .*surrogates"):
            tokenizers.encode(small_tokenizer(), ["a b"] * n + ["a \ud800"], "names")


# ---------------------------------------------------------------- out


@pytest.mark.parametrize("type_vocab_size", [0, 1, 2])
def test_saved_files_hold_what_other_libraries_read(tmp_path, type_vocab_size):
    t = small_tokenizer("<s>", "</s>")
    t.add_special_tokens(["[é]", *NEW_TOKENS])
    tokenizers.save(t.to_str().encode(), tmp_path, 60, type_vocab_size)
    config, roles = (
        json.loads((tmp_path / name).read_text()) for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    wanted = {"pad": "[PAD]", "unk": "[UNK]", "cls": "<s>", "sep": "</s>", "mask": "[MASK]"}
    assert roles == {f"{role}_token": token for role, token in wanted.items()} | {
        "additional_special_tokens": ["[é]", *NEW_TOKENS]
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    assert config == roles | {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 60, "clean_up_tokenization_spaces": False,
        "model_input_names": inputs if type_vocab_size > 1 else inputs[::2],
    }  # fmt: skip
    assert tokenizers.load(tmp_path).to_str() == t.to_str()
