"""Asks llama.cpp for the log-probabilities after rows of ids; runs in an environment with `xllamacpp`.

Standard input is `[[file, rows, id that is "a"], …]` as JSON, standard output a list for each file of a
`{id: log-probability}` for each row. Keys and values are kept as float32, and attention is the plain one:
the other rounds to half floats.
"""

import json
import os
import sys
import urllib.request

import xllamacpp


def main() -> None:
    """One server after the other."""
    answers: list[list[dict[int, float]]] = []
    for path, rows, letter in json.load(sys.stdin):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup = path, 256, 1, False
        params.cache_type_k = params.cache_type_v = type(params.cache_type_k)(0)
        params.flash_attn_type = type(params.flash_attn_type)(0)
        server = xllamacpp.Server(params)
        said = []
        for row in rows:
            # Half a character or the end would be sent without probabilities, so a letter is made to come;
            # what is reported are the probabilities before that.
            body = {"prompt": row, "n_predict": 1, "n_probs": 1000, "logit_bias": [[letter, 1000.0]]}
            request = urllib.request.Request(
                f"{server.listening_address}/completion", json.dumps(body).encode()
            )
            with urllib.request.urlopen(request) as reply:
                (first,) = json.load(reply)["completion_probabilities"]
            said.append({each["id"]: each["logprob"] for each in first["top_logprobs"]})
        answers.append(said)
        del server
    sys.stdout.write("ANSWERS" + json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
