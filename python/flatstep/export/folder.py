"""`flatstep export`: a model in a folder or file that is whole or absent."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .. import pretrained
from .._files import sync, write_json
from ..data.vocabulary import TOKENIZER, VOCABULARY
from ..errors import InputError, RunFailed
from .tokenizer import TOKENIZER_CONFIG, tokenizer_files

FORMATS, TYPES = ("huggingface", "gguf"), ("f32", "f16")
_INSIDE = ".flatstep-tmp"
GENERATION, GGUF = "generation_config.json", "model.gguf"
_OWN = {
    pretrained.CONFIG, pretrained.WEIGHTS, pretrained.INDEX, GENERATION, GGUF,
    TOKENIZER, TOKENIZER_CONFIG, VOCABULARY,
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """path: what was written. files: its names, sorted. tokenizer: whether one is among them, or
    in the file."""

    path: Path
    files: tuple[str, ...]
    tokenizer: bool


def export_model(model, vocabulary, out, *, format="huggingface", dtype="f32", overwrite=False):
    """Writes a model for other programs and returns what it wrote, an Exported.

    model: a flatstep.GPT, whose dropout is written too; load_model gives the one of a Hugging Face
    folder as 0. vocabulary: a Vocabulary of flatstep.data, or None.
    out: a folder, new or empty; for GGUF also the name of a new file, which ends in .gguf.
    dtype: of the matrices of a GGUF file, "f32" or "f16".
    overwrite: replace an earlier export, but no folder that holds anything else. An empty folder
    stays the one it is: it may be the working directory, or another disk.
    Raises InputError naming what is in the way or missing, RunFailed if the disk refuses. Nothing
    has changed then.
    """
    out = Path(out)
    as_file = format == "gguf" and out.suffix == ".gguf"
    _check_free(out, as_file, overwrite)
    try:
        pretrained.check_finite(model)
    except ValueError as error:
        raise InputError(str(error)) from error
    inside = out.is_dir() and not any(out.iterdir())
    temporary = out / _INSIDE if inside else _beside(out, "tmp")
    _remove(temporary)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made: {error.strerror}") from error
    try:
        if format == "gguf":
            from .gguf_file import write_gguf

            name = out.stem or "model"
            tokenizer = write_gguf(model, vocabulary, temporary / GGUF, name=name, dtype=dtype)
        else:
            tokenizer = _write_folder(model, vocabulary, temporary)
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            sync(temporary / name)
        sync(temporary)
        if inside:
            _move_up(temporary, out)
        else:
            _rename(temporary / GGUF if as_file else temporary, out)
    except OSError as error:
        # NumPy raises one that has words only.
        reason = error.strerror or error
        raise RunFailed(f"--out {out}: cannot be written: {reason}") from error
    finally:
        _remove(temporary)
    return Exported(out, (out.name,) if as_file else tuple(names), bool(tokenizer))


def _write_folder(model, vocabulary, folder):
    files = tokenizer_files(vocabulary, model.config.block_size)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    end = None if vocabulary is None else vocabulary.end_of_text
    write_json(folder / GENERATION, {"bos_token_id": end, "eos_token_id": end})
    pretrained.save(model, folder, end_of_text=end)
    return TOKENIZER in files


def _check_free(out, as_file, overwrite):
    if as_file and out.is_dir():
        raise InputError(f"--out {out}: is a folder; a file of that name cannot be written")
    if not out.is_dir():
        if out.exists() and not (as_file and overwrite):
            hint = "; --overwrite replaces it" if as_file else ", not a folder"
            raise InputError(f"--out {out}: is a file that is there already{hint}")
        return
    present = sorted(path.name for path in out.iterdir())
    if present and not overwrite:
        raise InputError(
            f"--out {out}: the folder is not empty; choose another, or --overwrite an earlier "
            "export"
        )
    if present and (out.samefile(".") or os.path.ismount(out)):
        what = "the working directory" if out.samefile(".") else "where a disk begins"
        raise InputError(f"--out {out}: is {what}, so it cannot be replaced; name a new folder")
    # Whatever else is there may be dear to somebody, and would go with the folder.
    for name in present:
        if name not in _OWN and not pretrained.SHARD.fullmatch(name):
            raise InputError(
                f"--out {out}: holds {name}, which no export wrote; choose another folder"
            )


def _beside(out, kind):
    # In the same folder, so that it can be renamed.
    out = Path(os.path.abspath(out))
    return out.with_name(f".{out.name}.flatstep-{kind}")


def _move_up(temporary, out):
    """Moves files into the folder that theirs is in, config.json last: without it a folder of
    Hugging Face is no model."""
    moved = []
    try:
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == pretrained.CONFIG):
            moved.append(out / path.name)
            os.rename(path, moved[-1])
        sync(out)
    except BaseException:
        for path in reversed(moved):
            path.unlink(missing_ok=True)
        raise


def _rename(source, out):
    """Gives what was written its name; an earlier export gives way as a whole."""
    old = _beside(out, "old")
    if out.is_dir():
        _remove(old)
        os.rename(out, old)
        try:
            os.rename(source, out)
        except OSError:
            os.rename(old, out)
            raise
    else:
        os.replace(source, out)
    _remove(old)
    sync(Path(os.path.abspath(out)).parent)


def _remove(folder):
    shutil.rmtree(folder, ignore_errors=True)
