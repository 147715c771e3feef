"""The vocabulary of a new run: the one that its options name, or one made of its text."""

from ..errors import InputError
from .vocabulary import ByteVocabulary, CharVocabulary


def named_vocabulary(config):
    """The vocabulary of a TrainConfig where text does not matter; None for a new char or BPE one.

    Raises InputError if --tokenizer cannot be read, or --vocab-size is not its size.
    """
    if config.tokenizer:
        from .bpe import BpeVocabulary

        named = BpeVocabulary.read(config.tokenizer)
    elif config.vocab in ("auto", "byte"):
        named = ByteVocabulary()
    else:
        return None
    check_size(config, named)
    return named


def check_size(config, vocabulary):
    """Raises InputError if --vocab-size was given and is not the size of a vocabulary."""
    if config.vocab_size not in (0, vocabulary.size):
        raise InputError(
            f"--vocab-size {config.vocab_size}: the {vocabulary.kind} vocabulary has "
            f"{vocabulary.size:,} tokens; leave it out"
        )


def made_vocabulary(config, train, validation):
    """A new char or BPE vocabulary of the Pieces for training; characters of both parts."""
    if config.vocab == "char":
        made = CharVocabulary.of(_texts(train + validation))
        check_size(config, made)
        return made
    from .bpe import train_bpe

    return train_bpe(_texts(train), config.vocab_size)


def _texts(pieces):
    return (piece.text for piece in pieces if piece.text is not None)


def vocabulary_of_token_files(config):
    """The vocabulary that a TrainConfig names for .bin files; None: numbers up to the largest."""
    if config.vocab == "char" or (config.vocab == "bpe" and not config.tokenizer):
        hint = "; name its --tokenizer" if config.vocab == "bpe" else ""
        raise InputError(f"--vocab {config.vocab}: .bin files do not tell what text it is{hint}")
    return named_vocabulary(config) if config.tokenizer or config.vocab == "byte" else None
