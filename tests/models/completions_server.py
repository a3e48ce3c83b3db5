"""A completions server over a tiny model folder, run as a process of its own; its switches imitate real servers.

    python completions_server.py FOLDER [--name tiny] [--fail-first N] [--no-echo] ...

prints its URL when it is ready. `GET /stats` tells its counts: {"requests": completions asked, "most_at_once": ...}.
`PUT /x/switches` with a JSON object makes it answer under `/x/v1` too, with these switches and counts of its own in
`/x/stats`: what is still under way under another address does not show there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

SWITCHES = {
    "fail_first": (int, 0, "refuse that many completions, then answer"),
    "fail_status": (int, 503, "with this status"),
    "fail_text": (str, "try again", "and this message"),
    "retry_after": (str, "0", "and this header; empty for none"),
    "no_echo": (bool, False, "ignore `echo`, as llama.cpp's own server does"),
    "no_logprobs": (bool, False, "ignore `logprobs`"),
    "logits": (bool, False, "give logits, as vLLM does under --logprobs-mode raw_logits"),
    "nan": (bool, False, "give log-probabilities that are no numbers"),
    "bad": (str, "", "give this kind of log-probability that cannot be, see `BAD`"),
    "other": (str, "", "echo this in place of the text"),
    "silent": (bool, False, "generate nothing, as llama-cpp-python does at the end of a sequence"),
    "style": (str, "vllm", "one of `STYLES`"),
    "ids": (bool, False, "show tokens as their ids, as vLLM does under --return-tokens-as-token-ids"),
    "delay": (float, 0.0, "seconds a completion takes at least"),
    "delay_only": (str, "", "only where this is in the text"),
    "key": (str, "", "refuse requests without this key, and tell the header that came"),
}


STYLES = {
    "vllm": "as vLLM 0.33: a piece of a character shows nothing, the piece that completes it shows the whole",
    "alone": "every token decoded alone, so that a piece of a character shows U+FFFD",
    "llama-cpp": "as llama-cpp-python: the beginning-of-sequence token is counted but not shown, pieces show nothing",
    "shifted": "as llama-cpp-python for a model without a beginning-of-sequence token",
    "behind": "each token of the text is scored by the row behind itself",
}

WINDOW = 1024

BAD = {
    "above 0": lambda values: [None, *(-value for value in values[1:])],
    "probabilities": lambda values: [None, *(2.718281828**value for value in values[1:])],
    "text": lambda values: [None, *map(str, values[1:])],
    "true": lambda values: [None, *(True for _ in values[1:])],
    "null inside": lambda values: [*values[:2], None, *values[3:]],
    "list": lambda values: [None, *([value] for value in values[1:])],
    "infinite": lambda values: [*values[:2], float("-inf"), *values[3:]],
    "all 0": lambda values: [0.0 for _ in values],
    "one too few": lambda values: values[1:],
    "no list": lambda values: str(values),
    "one later": lambda values: [None, None, *values[1:-1]],
    "one earlier": lambda values: [*values[1:], -1.0],
    "other order": lambda values: [None, *values[:0:-1]],
}


class State:
    """The model, the switches and the counts."""

    def __init__(self, folder: str, name: str, switches: dict) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.torch, self.folder, self.name = torch, folder, name
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lock = threading.Lock()
        self.addresses: dict[str, SimpleNamespace] = {}
        self.switch("", switches)

    def switch(self, address: str, given: dict) -> None:
        switches = {name: given.get(name, default) for name, (_, default, _) in SWITCHES.items()}
        self.addresses[address] = SimpleNamespace(**switches, requests=0, under_way=0, most_at_once=0)

    def shown(self, ids: list[int], n_text: int, style: str) -> list[str]:
        """Return the tokens as a server shows them; the text's are the first `n_text`."""
        alone = [self.tokenizer.decode([token]) for token in ids]
        if style in ("alone", "behind"):
            return alone
        if style != "vllm":
            return [token.replace("\ufffd", "") for token in alone]
        tokens = []
        for k, (token, text) in enumerate(zip(ids, alone, strict=True)):
            raw = self.tokenizer.convert_ids_to_tokens(token)
            n_blanks = len(raw) - len(raw.lstrip("▁"))
            text = " " * (n_blanks - (len(text) - len(text.lstrip(" ")))) + text
            if k and text.endswith("\ufffd"):  # the first token has no log-probability, and is shown as it is
                # what came before within the text, but for its first token; the generated token stands for itself
                text = self.completed(ids[max(1, k - 4) : k] if k < n_text else [], token)
            tokens.append(text)
        return tokens

    def completed(self, before: list[int], token: int) -> str:
        """Return the character that a token completes together with those before it; nothing where it does not."""
        decode = self.tokenizer.decode
        for start in range(len(before) - 1, -1, -1):
            context = before[start:]
            whole = decode([*context, token])
            if not whole.endswith("\ufffd"):
                while context and decode(context[-1:]).endswith("\ufffd"):
                    context = context[:-1]
                return whole.removeprefix(decode(context))
        return ""

    def complete(self, body: dict, on: SimpleNamespace) -> dict:
        torch = self.torch
        text = on.other or body["prompt"]
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
        if len(ids) + body["max_tokens"] > WINDOW:
            raise ValueError(
                f"This model's maximum context length is {WINDOW} tokens. However, your prompt contains at least "
                f"{len(ids)} input tokens, which exceeds this limit. Please reduce the length of the input prompt."
            )
        n_text = len(ids) - (on.style == "shifted")
        with torch.inference_mode():
            table = self.model(input_ids=torch.tensor([ids])).logits[0].double()
        table = table if on.logits else table.log_softmax(-1)
        new = int(table[-1].argmax())
        # position i of the table is the distribution behind token i
        values = [None] + [table[i - 1, ids[i]].item() for i in range(1, len(ids))] + [table[-1, new].item()]
        ids, offsets = [*ids, new], [*offsets, len(text)]
        if on.style == "behind":  # each token of the text is scored by the row behind itself
            values = [None, *(table[i, ids[i]].item() for i in range(1, len(ids) - 1)), values[-1]]
        if on.style == "llama-cpp":
            ids, offsets, values = ids[1:], offsets[1:], [None, *values[2:]]
        elif on.style == "shifted":
            ids, offsets = ids[1:-1], offsets[1:-1]
            values = [None] + [table[i + 1, ids[i]].item() for i in range(1, len(ids))]
        tokens = self.shown(ids, n_text, on.style)
        if on.ids:
            tokens = [f"token_id:{token}" for token in ids]
        if on.style in ("vllm", "alone", "behind"):  # counts the tokens' own texts, `<s>` among them
            offsets = [sum(len(token) for token in tokens[:k]) for k in range(len(tokens))]
        if on.silent:
            ids, tokens, offsets, values = ids[:-1], tokens[:-1], offsets[:-1], values[:-1]
        if on.no_echo or not body.get("echo"):
            tokens, offsets, values = tokens[-1:], offsets[-1:], values[-1:]
        if on.nan:
            values = [float("nan")] * len(values)
        if on.bad:
            values = BAD[on.bad](values)
        logprobs = {"tokens": tokens, "token_logprobs": values, "text_offset": offsets, "top_logprobs": None}
        written = 0 if on.silent else 1
        choice = {"index": 0, "text": text, "logprobs": None if on.no_logprobs else logprobs, "finish_reason": "length"}
        return {
            "object": "text_completion",
            "model": self.name,
            "choices": [choice],
            "usage": {"prompt_tokens": n_text, "completion_tokens": written, "total_tokens": n_text + written},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, format, *args):
        pass

    def answer(self, status: int, body: dict, headers: dict | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def body(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")

    def target(self) -> tuple[SimpleNamespace | None, str]:
        """Return the switches of the address asked, and what is asked of it."""
        found = re.fullmatch(r"/?(.*?)/(v1/models|v1/completions|stats|switches)", self.path)
        return (self.state.addresses.get(found[1]), found[2]) if found else (None, "")

    def refused(self, on: SimpleNamespace) -> bool:
        came = self.headers.get("Authorization", "")
        if not on.key or came == f"Bearer {on.key}":
            return False
        self.answer(401, {"error": {"message": f"Incorrect API key provided: {came}\nsecond line"}})
        return True

    def do_PUT(self):
        self.state.switch(self.path.removesuffix("/switches").removeprefix("/"), self.body())
        self.answer(200, {})

    def do_GET(self):
        on, asked = self.target()
        if on is None or asked not in ("stats", "v1/models"):
            self.answer(404, {"detail": "Not Found"})
        elif asked == "stats":
            self.answer(200, {"requests": on.requests, "most_at_once": on.most_at_once})
        elif not self.refused(on):
            card = {"id": self.state.name, "object": "model", "created": time.time_ns(), "root": self.state.folder}
            self.answer(200, {"object": "list", "data": [{**card, "max_model_len": WINDOW}]})

    def do_POST(self):
        state, body, (on, asked) = self.state, self.body(), self.target()
        if on is None or asked != "v1/completions":
            return self.answer(404, {"detail": "Not Found"})
        if self.refused(on):
            return None
        with state.lock:
            on.requests += 1
            on.under_way += 1
            on.most_at_once = max(on.most_at_once, on.under_way)
            number = on.requests
        try:
            time.sleep(on.delay if on.delay_only in body["prompt"] else 0)
            result = state.complete(body, on) if number > on.fail_first else None
        except ValueError as fault:
            return self.answer(400, {"error": {"message": str(fault), "type": "BadRequestError", "code": 400}})
        finally:
            with state.lock:
                on.under_way -= 1
        if result is not None:
            return self.answer(200, result)
        headers = {"Retry-After": on.retry_after} if on.retry_after else {}
        return self.answer(on.fail_status, {"error": {"message": on.fail_text}}, headers)


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is part of the tests
            super().handle_error(request, client_address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--name", default="tiny")
    parser.add_argument("--port", type=int, default=0)
    for name, (kind, default, text) in SWITCHES.items():
        how = {"action": "store_true"} if kind is bool else {"type": kind, "default": default}
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **how)
    arguments = vars(parser.parse_args())
    Handler.state = State(arguments.pop("folder"), arguments.pop("name"), arguments)
    with Listener(("127.0.0.1", arguments.pop("port")), Handler) as listener:
        sys.stdout.write(f"http://127.0.0.1:{listener.server_address[1]}/v1\n")
        sys.stdout.flush()
        listener.serve_forever()


if __name__ == "__main__":
    main()
