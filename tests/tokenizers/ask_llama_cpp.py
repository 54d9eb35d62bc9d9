"""Asks llama.cpp for the ids of texts; runs in the peers environment.

Standard input is `[[metadata, texts], …]` as JSON, standard output `[[plain ids, with special tokens], …]`.
Every tokenizer goes into a model of one layer and 32 dimensions, because llama.cpp loads no tokenizer alone.
"""

import json
import os
import sys
import tempfile
import urllib.request
from typing import Any

import gguf
import numpy as np
import xllamacpp

ARRAYS = {
    "scores": gguf.GGUFValueType.FLOAT32,
    "token_type": gguf.GGUFValueType.INT32,
    "precompiled_charsmap": gguf.GGUFValueType.UINT8,
}


def write(path: str, metadata: dict[str, Any]) -> None:
    """A small LLaMA with this tokenizer."""
    size, width = len(metadata["tokenizer.ggml.tokens"]), 32
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(size)
    for key, value in metadata.items():
        kind = ARRAYS.get(key.rpartition(".")[2])
        if kind is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, kind)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", np.ones((size, width), np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((width, width), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """One server after the other."""
    answers: list[list[list[list[int]]]] = []
    for metadata, texts in json.load(sys.stdin):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.gguf")
            write(path, metadata)
            params = xllamacpp.CommonParams()
            params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 256, 1, False
            server = xllamacpp.Server(params)

            def ask(text: str, special: bool, where: str = server.listening_address) -> list[int]:
                body = {"content": text, "add_special": special, "parse_special": False}
                request = urllib.request.Request(f"{where}/tokenize", json.dumps(body).encode())
                with urllib.request.urlopen(request) as reply:
                    return json.load(reply)["tokens"]

            answers.append([[ask(text, special) for text in texts] for special in (False, True)])
            del server
    sys.stdout.write("ANSWERS" + json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
