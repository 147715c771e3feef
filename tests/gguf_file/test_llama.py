"""GGUF files in llama.cpp (package llama-cpp-python): the same tokens, nearly the same logits."""

import llama_cpp
import numpy as np
import pytest
from export_case import ODD, PLAIN, make_model, make_vocabulary

from flatstep.export.folder import export_model

F32 = 0


@pytest.mark.needs("tokenizers")
@pytest.mark.parametrize("kind", ("byte", "bpe"))
@pytest.mark.parametrize("dtype", ("f32", "f16"))
def test_tokens_and_logits(tmp_path, kind, dtype):
    vocabulary = make_vocabulary(kind)
    model = make_model(vocabulary.size, 64)
    path = tmp_path / "model.gguf"
    export_model(model, vocabulary, path, format="gguf", dtype=dtype)
    theirs = llama_cpp.Llama(
        str(path), n_ctx=64, logits_all=True, verbose=False, type_k=F32, type_v=F32,
        flash_attn=False,
    )  # fmt: skip
    text = (ODD + PLAIN).encode()
    tokens = theirs.tokenize(text, add_bos=False)
    assert tokens == vocabulary.encode(text).tolist()
    assert theirs.detokenize(tokens) == text
    theirs.eval(tokens[:64])
    found, wanted = np.array(theirs.scores[:64]), model.logits(np.array([tokens[:64]]))[0]
    # Its GELU is a table of float16.
    assert np.abs(found - wanted).max() <= 2e-3 * np.abs(wanted).max()
    theirs.close()
