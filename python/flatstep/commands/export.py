"""`flatstep export`: a trained model for other programs."""

from . import add_command, add_model, path_name

EXAMPLES = """examples:
  flatstep export runs/001 --out my-model         # a folder that transformers loads
  flatstep export runs/001 --out my-model.gguf    # a file that llama.cpp loads (extra [gguf])
  flatstep export runs/001 --out half.gguf --dtype f16 --checkpoint step-1000

The folder holds the weights and, unless the model was trained on bare numbers, its tokenizer:
  AutoTokenizer.from_pretrained("my-model"), GPT2LMHeadModel.from_pretrained("my-model")"""


def add(commands):
    """Adds the command's parser."""
    summary = "Write a run's model for transformers or llama.cpp."
    parser = add_command(commands, "export", run, summary, EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--out",
        required=True,
        type=path_name,
        metavar="FOLDER",
        help="folder to write, new or empty; or a new file NAME.gguf",
    )
    parser.add_argument(
        "--format",
        choices=("huggingface", "gguf"),
        help="a Hugging Face folder, or GGUF [gguf if --out ends so, else huggingface]",
    )
    parser.add_argument(
        "--dtype", choices=("f32", "f16"), help="type of the matrices in a GGUF file [f32]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def run(arguments):
    """Writes the files and says which. Raises InputError."""
    from ..errors import InputError
    from ..export.folder import export_model
    from ..training.model_folder import load_model

    format = arguments.format
    if format is None:
        format = "gguf" if arguments.out.endswith(".gguf") else "huggingface"
    if arguments.dtype and format != "gguf":
        raise InputError("--dtype is of GGUF files; a Hugging Face folder always holds float32")
    model, vocabulary, source = load_model(arguments.folder, arguments.checkpoint)
    exported = export_model(
        model,
        vocabulary,
        arguments.out,
        format=format,
        dtype=arguments.dtype or "f32",
        overwrite=arguments.overwrite,
    )
    print("\n".join(_lines(model, vocabulary, source, exported)))
    return 0


_WHY_NONE = {
    "none": "the folder that the model came from has none",
    "ids": "the model was trained on bare numbers",
    "char": "llama.cpp ends at a character that a vocabulary of characters lacks",
    "bpe": "llama.cpp knows none that cuts text as this one does",
}


def _lines(model, vocabulary, source, exported):
    config = model.config
    files = "" if exported.path.is_file() else ": " + ", ".join(exported.files)
    lines = [
        f"model      {source}: {model.num_params:,} parameters, context {config.block_size}, "
        f"vocabulary {config.vocab_size:,}",
        f"written    {exported.path}{files}",
    ]
    if not exported.tokenizer:
        kind = "none" if vocabulary is None else vocabulary.kind
        lines.append(f"tokenizer  none: {_WHY_NONE[kind]}; give token numbers to the model")
    return lines
