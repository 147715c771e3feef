"""Text from a trained model."""

from ..errors import InputError


def stream_text(
    model,
    vocabulary,
    prompt,
    count,
    *,
    temperature=1.0,
    top_k=None,
    top_p=None,
    seed=0,
    stop_token=None,
):
    """`prompt` (bytes) and `count` more tokens by a model, as pieces of text.

    A piece comes as soon as its tokens are drawn and make whole characters; the first is the
    prompt. An empty prompt stands for the end of a text before, or for a line end where the
    vocabulary has no such token. Bytes that are not UTF-8 show as U+FFFD.
    temperature, top_k, top_p, seed, stop_token: as flatstep.GPT.generate; the stop token is the end
    of the text. Raises InputError at once if they make no sense, or the vocabulary cannot encode
    the prompt.
    """
    try:
        given = vocabulary.encode(prompt).tolist()
    except InputError as error:
        raise InputError(f"--prompt: {error}") from error
    start = given or vocabulary.beginning().tolist()
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    try:
        tokens = model.stream(start, count, **options, stop_token=stop_token)
    except ValueError as error:
        raise InputError(str(error)) from error
    return _decoded(vocabulary.decoder(), given, tokens)


def stop_token_of(vocabulary, text):
    """The token of `text` (bytes), the value of --stop. Raises InputError if it is not one."""
    try:
        tokens = vocabulary.encode(text).tolist()
    except InputError as error:
        raise InputError(f"--stop: {error}") from error
    if len(tokens) != 1:
        raise InputError(
            f"--stop: {text.decode(errors='replace')!r} is {len(tokens)} tokens of the "
            f"{vocabulary.kind} vocabulary, expected text of one"
        )
    return tokens[0]


def _decoded(decoder, given, tokens):
    """Text of the tokens in the list `given` together, then of each of `tokens`."""
    yield "".join([decoder.feed(token) for token in given])
    for token in tokens:
        yield decoder.feed(token)
    yield decoder.end()


def generate_text(model, vocabulary, prompt, count, **options):
    """The pieces of stream_text, whose arguments it takes, in one."""
    return "".join(stream_text(model, vocabulary, prompt, count, **options))
