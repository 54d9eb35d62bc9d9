"""Asks llama.cpp what it makes of rows of ids; runs in the peers environment.

Standard input is `[{"path": file.gguf, "rows": [[id, …], …], "letter": id}, …]` as JSON, standard output for
each file a list of `{id: log-probability after the row}`, or, where it is asked to `"embed": [text, …]`,
of the vectors of the texts. Keys and values are kept as float32, and attention is the plain one: the other
rounds to half floats.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

import xllamacpp


def post(server: Any, where: str, body: dict[str, Any]) -> Any:
    """The answer to one request."""
    request = urllib.request.Request(f"{server.listening_address}/{where}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def probabilities(server: Any, row: list[int], letter: int) -> dict[int, float]:
    """After a row. Half a character or the end would be sent without probabilities, so a letter is made to
    come; what is reported are the probabilities before that."""
    body = {"prompt": row, "n_predict": 1, "n_probs": 1000, "logit_bias": [[letter, 1000.0]]}
    (first,) = post(server, "completion", body)["completion_probabilities"]
    return {each["id"]: each["logprob"] for each in first["top_logprobs"]}


def main() -> None:
    """One server after the other."""
    answers: list[list[Any]] = []
    for asked in json.load(sys.stdin):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = asked["path"], 256, 1, False
        params.cache_type_k = params.cache_type_v = type(params.cache_type_k)(0)
        params.flash_attn_type = type(params.flash_attn_type)(0)
        params.embedding = "embed" in asked
        server = xllamacpp.Server(params)
        if params.embedding:
            vectors = post(server, "v1/embeddings", {"input": asked["embed"]})["data"]
            answers.append([each["embedding"] for each in sorted(vectors, key=lambda each: each["index"])])
        else:
            answers.append([probabilities(server, row, asked["letter"]) for row in asked["rows"]])
        del server
    sys.stdout.write("ANSWERS" + json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
