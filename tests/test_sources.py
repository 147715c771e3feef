"""Text from .jsonl files, splits on request, characters and files for validation, memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from flatstep.data.corpus import load_corpus, load_tokens
from flatstep.data.sources import Document, read_documents
from flatstep.data.split import split_documents
from flatstep.data.vocabulary import CharVocabulary, IdVocabulary
from flatstep.errors import InputError
from flatstep.training.config import make_config


def corpus(*paths, validation=None, vocabulary=None, **options):
    return load_corpus(
        [str(p) for p in paths], make_config({"block_size": 4} | options), vocabulary, validation
    )


def text_of(tokens, vocabulary):
    return vocabulary.decode(np.concatenate(list(tokens.chunks())))


def lines(path, *entries, end="\n"):
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + end)
    return path


def test_each_line_of_jsonl_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "one\\nline", "id": 1}\n\n{"text": ""}\r\n'
        b'{"id": 2, "text": "z\\u00e9ro \\u0000"}\n  {"text": "last"}'
    )
    assert read_documents([path]) == [
        Document(str(path), 1, b"one\nline"),
        Document(str(path), 4, "zéro \0".encode()),
        Document(str(path), 5, b"last"),
    ]
    lines(path, {"body": "other", "text": 3})
    assert read_documents([path], "body")[0].text == b"other"


def test_jsonl_in_a_folder_is_read_as_such(tmp_path):
    lines(tmp_path / "b.jsonl", {"text": "from lines"}, {"text": "second"})
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "empty.jsonl").write_text("")
    found = corpus(tmp_path, val_fraction=0.3)
    assert found.documents == 3
    assert found.files == (str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"))
    assert found.size == len("plainfrom linessecond")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "not JSON: "),
        (b"[" * 100_000, "not JSON: "),
        (b'["text"]', "a JSON object was expected, got list"),
        (b"{}", "no key 'text'; it has none; choose by --text-field"),
        (b'{"content": "a", "Text": "b"}', "no key 'text'; it has 'content', 'Text'; choose by"),
        (json.dumps({f"k{k}": 0 for k in range(20)}).encode(),
         r"no key 'text'; it has 'k0', .*'k7', \.\.\.; choose"),
        (b'{"text": 12}', "'text' is not a text but int"),
        (b'{"text": null}', "'text' is not a text but NoneType"),
        (b'{"text": "\\ud800"}', "'text' holds half a surrogate pair"),
        (b'{"text": "\xff"}', r"not UTF-8 \(byte 0xff\)"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=rf"a\.jsonl, line 3: {message}"):
        read_documents([path])


def test_jsonl_without_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl: no line holds any text"):
        read_documents([lines(tmp_path / "a.jsonl", {"text": ""})])
    with pytest.raises(InputError, match=r"b\.jsonl: cannot be read: No such file"):
        read_documents([tmp_path / "b.jsonl"])


def documents(*sizes):
    return [Document(f"d{k}", 0, b"x" * size) for k, size in enumerate(sizes)]


def held(found):
    return sorted({piece.name for piece in found[1]})


def test_split_as_asked_for():
    many = documents(*range(50, 150))
    assert held(split_documents(many, 4, 0.1, "documents")) == held(split_documents(many, 4, 0.1))
    _, validation, words = split_documents(many, 4, 0.1, "tail")
    assert words == "the end of the text"
    assert sum(p.size for p in validation) == round((sum(range(50, 150)) + 99) * 0.1)
    # Documents that "auto" finds too unequal, and too few for every 1/fraction-th one.
    uneven = documents(900, 100)
    assert split_documents(uneven, 4, 0.01)[2] == "the end of the text"
    found = split_documents(uneven, 4, 0.01, "documents")
    assert (held(found), found[2]) == (["d1"], "1 of 2 documents")


def test_split_by_documents_that_cannot_be_done_says_why():
    for sizes, why in (
        ((1000,), "there is one document only; take --val-split tail"),
        (
            (1000, 4),
            "1 of 2 documents would hold 4 of 1,004 bytes, and training and",
        ),
    ):
        with pytest.raises(InputError, match=f"--val-split documents cannot be done: {why}"):
            split_documents(documents(*sizes), 4, 0.1, "documents")


def test_a_tail_of_characters_begins_with_a_whole_one(tmp_path):
    text = "é✓😀" * 30
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    for fraction in np.linspace(0.1, 0.9, 33):
        found = corpus(path, vocab="char", val_fraction=float(fraction))
        parts = [text_of(part, found.vocabulary) for part in (found.train, found.validation)]
        assert "".join(parts) == text
        assert abs(len(parts[1].encode()) / len(text.encode()) - fraction) < 0.02
        bytes_of = corpus(path, val_fraction=float(fraction))
        assert len(bytes_of.validation) == round(len(text.encode()) * fraction)


def test_characters_of_all_text_and_its_errors(tmp_path):
    (tmp_path / "a.txt").write_text("abcabcabc" * 3 + "é", encoding="utf-8")
    (tmp_path / "b.txt").write_text("xyz" * 9, encoding="utf-8")
    found = corpus(tmp_path, vocab="char", val_fraction=0.5)
    assert found.split == "1 of 2 documents"
    assert found.vocabulary.characters == "abcxyzé"
    assert corpus(tmp_path, vocab="char", val_split="tail").vocabulary.characters == "\nabcxyzé"
    with pytest.raises(InputError, match="--vocab-size 9: the char vocabulary has 7 tokens"):
        corpus(tmp_path, vocab="char", val_fraction=0.5, vocab_size=9)
    known = CharVocabulary("abcxyz")
    for options in ({"val_split": "tail"}, {"val_fraction": 0.5}, {"val_fraction": 0.4}):
        with pytest.raises(
            InputError, match=r"a\.txt: the character 'é' \(U\+00E9\) .*, at byte 27"
        ):
            # Also where the tail begins within the document.
            corpus(tmp_path / "a.txt", vocabulary=known, **options)
    (tmp_path / "c.txt").write_bytes(b"abc\xff" * 10)
    with pytest.raises(InputError, match=r"c\.txt: not UTF-8 \(byte 0xff\), at byte 3; --vocab"):
        corpus(tmp_path / "c.txt", vocab="char")
    with pytest.raises(InputError, match=r"c\.txt: not UTF-8"):
        load_tokens([tmp_path / "c.txt"], make_config({}), known)
    assert len(corpus(tmp_path / "c.txt").train) == 35
    with pytest.raises(InputError, match=r"a\.txt: text, but the vocabulary is of ids"):
        load_tokens([tmp_path / "a.txt"], make_config({}), IdVocabulary(5))


def test_files_for_validation(tmp_path):
    (tmp_path / "a.txt").write_text("abc" * 20)
    (tmp_path / "b.txt").write_text("xyz" * 9)
    found = corpus(tmp_path / "a.txt", validation=[tmp_path / "b.txt"], vocab="char")
    assert text_of(found.train, found.vocabulary) == "abc" * 20
    assert text_of(found.validation, found.vocabulary) == "xyz" * 9
    assert (found.files, found.val_files) == (
        (str(tmp_path / "a.txt"),), (str(tmp_path / "b.txt"),),
    )  # fmt: skip
    assert (found.split, found.documents, found.size) == ("files of its own", 2, 87)
    whole = load_tokens([tmp_path / "b.txt"], make_config({}), found.vocabulary)
    assert text_of(whole, found.vocabulary) == "xyz" * 9
    sums = {found.sha256, corpus(tmp_path / "a.txt").sha256}
    (tmp_path / "b.txt").write_text("xyy" * 9)
    sums.add(corpus(tmp_path / "a.txt", validation=[tmp_path / "b.txt"]).sha256)
    assert len(sums) == 3
    (tmp_path / "b.txt").write_text("xyz")
    with pytest.raises(InputError, match=r"3 tokens for validation .*, too few for --block-"):
        corpus(tmp_path / "a.txt", validation=[tmp_path / "b.txt"])


MEASURE = """
import re, sys
from flatstep.data.corpus import load_corpus
from flatstep.training.config import make_config

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

load_corpus([sys.argv[1]], make_config({"vocab": "char"}))  # what imports and small things take
before = peak()
load_corpus([sys.argv[2]], make_config({"vocab": sys.argv[3]}))
print(peak() - before)
"""


@pytest.mark.needs("proc")
@pytest.mark.parametrize("vocab", ["byte", "char"])
def test_a_large_file_takes_twice_its_size_in_memory(tmp_path, vocab):
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_bytes(b"a little text\n" * 100_000)
    large.write_bytes(b"a lot of text\n" * (60_000_000 // 14))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large, vocab], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 1.5 < int(done.stdout) / large.stat().st_size < 2.2
