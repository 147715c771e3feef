"""The vocabulary of a model as the files of a Hugging Face tokenizer.

Nothing but JSON is written, so that the tokenizers package is not needed. The format is that of
its `Tokenizer.save`.
"""

import json

from ..data.bpe import byte_characters
from ..data.vocabulary import TOKENIZER

TOKENIZER_CONFIG = "tokenizer_config.json"
_BYTE_LEVEL = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
}  # fmt: skip


def tokenizer_files(vocabulary, context):
    """{file name: bytes} for AutoTokenizer.from_pretrained; only flatstep's own file, without a
    tokenizer, for a vocabulary of bare numbers.

    vocabulary: a Vocabulary of flatstep.data, or None. context: tokens the model sees at once.
    """
    if vocabulary is None:
        return {}
    files = dict(vocabulary.files())  # flatstep reads its own kinds without the tokenizers package
    if vocabulary.kind == "ids":
        return files
    if vocabulary.kind == "byte":
        files[TOKENIZER] = _json(_byte_tokenizer())
    elif vocabulary.kind == "char":
        files[TOKENIZER] = _json(_char_tokenizer(vocabulary))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if vocabulary.end_of_text is not None:
        name = token_texts(json.loads(files[TOKENIZER]))[vocabulary.end_of_text]
        configuration |= {"bos_token": name, "eos_token": name}
    files[TOKENIZER_CONFIG] = _json(configuration)
    return files


def _json(value):
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def token_texts(tokenizer):
    """{id: text} of the dict of a tokenizer.json, in the notation of its own vocabulary."""
    vocabulary = tokenizer["model"].get("vocab", {})
    if isinstance(vocabulary, list):  # unigram: pairs of text and score
        texts = {number: entry[0] for number, entry in enumerate(vocabulary)}
    else:
        texts = {number: text for text, number in vocabulary.items()}
    added = tokenizer.get("added_tokens") or []
    return texts | {token["id"]: token["content"] for token in added}


def _tokenizer(pre_tokenizer, decoder, model):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _byte_tokenizer():
    """Byte pairs without a single merge: each byte is its own token."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {character: byte for byte, character in enumerate(byte_characters())},
        "merges": [],
    }
    return _tokenizer(_BYTE_LEVEL, _BYTE_LEVEL, model)


def _char_tokenizer(vocabulary):
    """Each character is a word. A word that is not there is an error, since the token that would
    stand for it is not there either; byte pairs would leave such characters out in silence."""
    decoder = vocabulary.decoder()
    characters = {decoder.feed(number): number for number in range(vocabulary.size)}
    split = {
        "type": "Split",
        "pattern": {"Regex": r"[\s\S]"},
        "behavior": "Isolated",
        "invert": False,
    }
    model = {"type": "WordLevel", "vocab": characters, "unk_token": "[UNK]"}
    return _tokenizer(split, {"type": "Fuse"}, model)
