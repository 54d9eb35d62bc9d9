"""Lets llama.cpp continue token ids greedily; runs in the peers environment.

Reads `{"path": file.gguf, "prompts": [[id, …], …], "tokens": n}` and prints the new ids of each prompt.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request

import xllamacpp


def main() -> None:
    """Serve the file on this machine, ask, and leave."""
    asked = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = asked["path"], 64, 1, False
    server = xllamacpp.Server(params)
    said: list[list[int]] = []
    for prompt in asked["prompts"]:
        body = {
            "prompt": prompt,
            "n_predict": asked["tokens"],
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
            "ignore_eos": True,
        }
        request = urllib.request.Request(f"{server.listening_address}/completion", json.dumps(body).encode())
        with urllib.request.urlopen(request) as reply:
            said.append(json.load(reply)["tokens"])
    sys.stdout.write("ANSWERS" + json.dumps(said))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
