"""Scores through a completions server: a real process, on a real socket."""

import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import httpx
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.tokenization_auto import AutoTokenizer

from glotlift import evaluate
from glotlift.errors import ModelError, RecipeError, RunError
from glotlift.models.echo import Echo, _check_text
from glotlift.models.requests import _retry_after
from glotlift.models.server import Server, _scores, connect, is_server, parse_server, score_words
from glotlift.models.settings import ServerSettings
from glotlift.runs import read_parquet
from glotlift.schema import validate

PROMPTS = [
    "The film was",
    "Review: I liked it.\nSentiment:",
    "Bewertung: schön und gut\nStimmung:",
    "评论：很好\n情感：",
]
WORDS = [" positive", " negative", " neutral"]


@pytest.fixture(scope="module")
def process(tiny_folder):
    """The URL of a server process."""
    script = Path(__file__).with_name("completions_server.py")
    environment = {key: value for key, value in os.environ.items() if "PROXY" not in key.upper()}
    with subprocess.Popen(
        [sys.executable, str(script), str(tiny_folder)], stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        try:
            assert running.stdout is not None
            url = running.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), "the server did not start"
            yield url
        finally:
            running.terminate()


@pytest.fixture
def served(process, monkeypatch):
    """Return a function: switches -> a server with these on, at an address of its own."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    root = process.removesuffix("/v1")

    def switch(**switches) -> Server:
        address = f"{root}/{uuid.uuid4().hex}"
        httpx.put(f"{address}/switches", json=switches, timeout=60).raise_for_status()
        return Server(f"{address}/v1", "tiny")

    return switch


def limited(server: Server, **limits) -> Server:
    return replace(server, limits=ServerSettings(**limits))


def stats(server: Server) -> dict:
    return httpx.get(server.url.removesuffix("/v1") + "/stats", timeout=60).json()


@pytest.fixture(scope="module")
def reference(tiny_folder):
    """Return a function: prompt, words -> shared tokens, tokens of the prompt, sequence scores, first-token scores."""
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)

    def score(prompt, words):
        alone, *whole = (tokenizer(text)["input_ids"] for text in [prompt, *(prompt + word for word in words)])
        shared = min(len(os.path.commonprefix([alone, ids])) for ids in whole)
        sequence, first = [], []
        for ids in whole:
            with torch.inference_mode():
                table = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            steps = [table[i - 1, ids[i]].item() for i in range(shared, len(ids))]
            sequence.append(sum(steps))
            first.append(steps[0])
        return shared, len(alone), sequence, first

    return score


def scored(server, prompts, words):
    found = {index: (sequence, first) for index, sequence, first in score_words(server, prompts, words)}
    assert sorted(found) == list(range(len(prompts)))
    return found


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("style", ["vllm", "alone", "llama-cpp"])
def test_scores_equal_a_plain_forward(served, reference, style, silent):
    found = scored(served(style=style, silent=silent), PROMPTS, WORDS)
    for index, prompt in enumerate(PROMPTS):
        _, _, sequence, first = reference(prompt, WORDS)
        assert found[index][0] == pytest.approx(sequence, abs=1e-4)
        assert found[index][1] == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize("style", ["vllm", "alone", "llama-cpp"])
def test_a_token_across_the_end_of_the_prompt_is_scored_whole(served, reference, style):
    prompt, words = "The mood is posi", ["tive", " negative", "ng"]
    shared, n_prompt, sequence, first = reference(prompt, words)
    assert shared < n_prompt, "the case needs a token across the boundary"
    found = scored(served(style=style), [prompt], words)
    assert found[0][0] == pytest.approx(sequence, abs=1e-4)
    assert found[0][1] == pytest.approx(first, abs=1e-4)


@pytest.mark.parametrize("style", ["alone", "llama-cpp"])
def test_words_in_bytes_keep_their_differences(served, reference, style):
    """Bytes at the end of a prompt cannot be told apart, so that all words are scored from before them."""
    prompt, words = "Stimmung 🙂", ["🙃", "☂", "gut"]
    _, _, sequence, _ = reference(prompt, words)
    found = scored(served(style=style), [prompt], words)
    offsets = [a - b for a, b in zip(found[0][0], sequence, strict=True)]
    assert offsets == pytest.approx([offsets[0]] * 3, abs=1e-4)
    assert offsets[0] < -0.1, "the bytes before are not in the scores"


def test_words_in_bytes_are_scored_exactly_where_a_server_shows_characters(served, reference):
    """vLLM shows a character whole with its last byte, so the end of the prompt is certain to be the same."""
    prompt, words = "Stimmung 🙂", ["🙃", "☂", "gut"]
    _, _, sequence, first = reference(prompt, words)
    found = scored(served(style="vllm"), [prompt], words)
    assert found[0][0] == pytest.approx(sequence, abs=1e-4)
    assert found[0][1] == pytest.approx(first, abs=1e-4)


def test_tokens_shown_as_ids_are_scored(served, reference):
    server = connect(served(ids=True))
    found = scored(server, PROMPTS, WORDS)
    for index, prompt in enumerate(PROMPTS):
        assert found[index][0] == pytest.approx(reference(prompt, WORDS)[2], abs=1e-4)


def test_an_echo_of_nothing_is_refused():
    with pytest.raises(ModelError, match="got the echo '', expected that of the text 'one'"):
        _check_text("http://host/v1", "one", Echo([], []))


def test_logits_are_refused_and_the_setting_is_named(served):
    with pytest.raises(ModelError, match="not above 0; vLLM gives logits under --logprobs-mode raw_logits"):
        connect(served(logits=True))


def test_a_prompt_that_is_too_long_for_the_server_is_told(served):
    with pytest.raises(ModelError, match=r"got 400 Bad Request \(This model's maximum context length is 1024 tokens"):
        list(score_words(served(), ["word " * 1100], WORDS))


def echo(*pairs):
    tokens, values = zip(*pairs, strict=True)
    return Echo(list(tokens), list(values))


def test_tokens_that_only_look_the_same_are_not_shared():
    """` ` and ` ` + the first bytes of a Thai character look the same where a server leaves out broken characters."""
    server = Server("http://host/v1", "name")
    prompt = echo(("Mood:", None), (" ", -1.0))
    merged = echo(("Mood:", None), (" ", -9.0), ("ดี", -2.0))
    plain = echo(("Mood:", None), (" ", -1.1), ("good", -3.0))
    assert _scores(server, ["ดี", "good"], [prompt, merged, plain]) == ([-11.0, -4.1], [-9.0, -1.1])
    assert _scores(server, ["good"], [prompt, plain]) == ([-3.0], [-3.0])


def test_a_prompt_needs_a_boundary_and_a_word_a_token(served):
    server = served(style="llama-cpp")
    with pytest.raises(ModelError, match="no token boundary"):
        list(score_words(server, [""], WORDS))
    with pytest.raises(ModelError, match="no token for the word ''"):
        list(score_words(server, PROMPTS[:1], [" good", ""]))


@pytest.mark.parametrize("status", [503, 429, 500])
def test_failed_requests_are_sent_again(served, reference, status):
    server = served(fail_first=5, fail_status=status)
    found = scored(server, PROMPTS[:2], WORDS)
    assert found[1][0] == pytest.approx(reference(PROMPTS[1], WORDS)[2], abs=1e-4)
    assert stats(server)["requests"] == 5 + 2 * (1 + len(WORDS))


def test_retries_end(served):
    server = limited(served(fail_first=1000), max_retries=2, num_concurrent=1)
    with pytest.raises(RunError, match=r"503 Service Unavailable \(try again\), 3 times in a row"):
        list(score_words(server, PROMPTS, WORDS))
    assert stats(server)["requests"] == 3


def test_the_pause_a_server_asks_for_is_kept(served):
    begin = time.monotonic()
    scored(served(fail_first=1, fail_status=429, retry_after="1"), PROMPTS[:1], WORDS)
    assert time.monotonic() - begin >= 1  # without it the first pause is 0.75 s at most


def test_without_retry_after_a_server_is_asked_again_later(served):
    server = limited(served(fail_first=2, retry_after=""), num_concurrent=1)
    begin = time.monotonic()
    scored(server, PROMPTS[:1], WORDS)
    assert time.monotonic() - begin >= 0.75  # 0.25 to 0.75 s, then 0.5 to 1.5 s


def test_retry_after_holds_seconds_or_a_date():
    assert _retry_after("1.5") == 1.5
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert _retry_after("Fri, 31 Dec 9999 23:59:59 GMT") > 1e9
    assert _retry_after("soon") is _retry_after(None) is None


def test_a_long_pause_is_not_waited_for(served):
    with pytest.raises(RunError, match="429 .* with a pause of 4000 s"):
        list(score_words(served(fail_first=9, fail_status=429, retry_after="4000"), PROMPTS, WORDS))


def test_requests_under_way_are_limited(served):
    server = limited(served(delay=0.05), num_concurrent=3)
    scored(server, PROMPTS * 2, WORDS)
    counts = stats(server)
    assert counts["most_at_once"] == 3
    assert counts["requests"] == 2 * len(PROMPTS) * (1 + len(WORDS))


def test_requests_a_second_are_limited(served):
    server = limited(served(), requests_per_second=20.0)
    begin = time.monotonic()
    scored(server, PROMPTS[:3], WORDS)  # 12 requests, 11 gaps of 1/20 s
    assert time.monotonic() - begin >= 0.54


def test_closing_early_cancels_requests_and_ends_the_thread(served):
    server = limited(served(delay=60.0, delay_only="Sentiment"), num_concurrent=4, max_retries=0)
    results = score_words(server, [PROMPTS[0], *[PROMPTS[1]] * 50], WORDS)
    next(results)
    assert [thread for thread in threading.enumerate() if thread.name == "glotlift-requests"]
    begin = time.monotonic()
    results.close()
    assert time.monotonic() - begin < 30
    assert stats(server)["requests"] <= 1 + len(WORDS) + server.limits.num_concurrent
    assert not [thread for thread in threading.enumerate() if thread.name == "glotlift-requests"]


@pytest.mark.parametrize(
    ("switch", "got"),
    [
        ({"no_echo": True}, "log-probabilities of 0 of a text's"),
        ({"no_logprobs": True}, "an answer without `choices.0.logprobs`"),
        (
            {
                "fail_first": 1,
                "fail_status": 400,
                "fail_text": "Requested prompt logprobs of 1, which is greater than max allowed: 0",
            },
            "400",
        ),
        ({"fail_first": 1, "fail_text": "logprobs is not supported for models created with logits_all=False"}, "503"),
    ],
)
def test_servers_without_echoed_log_probabilities_are_refused(served, switch, got):
    for ask in (connect, lambda server: list(score_words(server, PROMPTS, WORDS))):
        with pytest.raises(ModelError, match=got) as caught:
            ask(served(**switch))
        assert "expected a server that supports `echo` with `logprobs` on /completions (vLLM" in str(caught.value)


def test_log_probabilities_that_are_no_numbers_are_refused(served):
    with pytest.raises(ModelError, match=r"got nan as the log-probability of token 1 of"):
        list(score_words(served(nan=True), PROMPTS, WORDS))


def test_log_probabilities_that_are_off_by_one_are_refused(served):
    with pytest.raises(ModelError, match="off by one"):
        connect(served(style="shifted"))


IMPOSSIBLE = {
    "above 0": "as the log-probability of token 2 of [0-9]+, '.+', expected a number that is not above 0",
    "probabilities": "as the log-probability of token [0-9] of",
    "text": "got '-[0-9.]+' as the log-probability of token 2 of",
    "true": "got True as the log-probability of token 2 of",
    "null inside": "got None as the log-probability of token 3 of",
    "list": r"got \[-[0-9.]+\] as the log-probability of token 2 of",
    "infinite": "got -inf as the log-probability of token 3 of",
    "all 0": "got the log-probability 0 for all [0-9]+ tokens of a text, expected their own",
    "one too few": "got log-probabilities of [0-9]+ of a text's [0-9]+ tokens, expected a server that supports",
    "no list": "got log-probabilities '.+ of .+ tokens, expected a server that supports",
    "one later": "got None as the log-probability of token 2 of",
    "one earlier": "off by one",
    "other order": "off by one",
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_log_probabilities_that_cannot_be_are_refused(served, kind):
    with pytest.raises(ModelError, match=IMPOSSIBLE[kind]) as caught:
        connect(served(bad=kind))
    assert "\n" not in str(caught.value)


def test_tokens_that_are_scored_by_the_row_behind_them_are_found(served):
    """The tokens of a text have the same values whatever follows, so only the generated one gives this away."""
    with pytest.raises(ModelError, match="off by one"):
        connect(served(style="behind"))


@pytest.mark.parametrize("text", ["two three four", "one two", "one two threes", "Something else"])
def test_an_echo_of_another_text_is_refused(served, text):
    with pytest.raises(ModelError, match=r"got the echo '.+', expected that of the text 'one two three'"):
        connect(served(other=text))


def test_other_refusals_end_in_the_first_line_of_what_the_server_says(served):
    server = served(fail_first=1, fail_status=400, fail_text="prompt too long: 9 tokens\nTraceback")
    with pytest.raises(ModelError, match=r"got 400 Bad Request \(prompt too long: 9 tokens\), expected") as caught:
        list(score_words(server, PROMPTS, WORDS))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("style", ["vllm", "llama-cpp"])
def test_connect_and_fingerprint(served, style):
    server = connect(served(style=style))
    assert server.variants == ("base",)
    assert dict(server.card)["max_model_len"] == 1024
    assert "created" not in dict(server.card)
    again = connect(replace(server, card=None))  # the server gives another `created` each time
    assert server.variant_fingerprint("base") == again.variant_fingerprint("base")
    assert replace(server, card=None).variant_fingerprint("base") == again.variant_fingerprint("base")
    others = [replace(server, name="other"), replace(server, url="http://other/v1"), replace(server, card=())]
    prints = {one.variant_fingerprint("base") for one in [server, *others]}
    assert len(prints) == 4


def test_a_model_that_is_not_served(served):
    with pytest.raises(ModelError, match=r"got model 'tinny' \(did you mean 'tiny'\?\), expected tiny"):
        connect(replace(served(), name="tinny"))


def test_a_url_without_the_api(served):
    server = served()
    with pytest.raises(ModelError, match="got 404 Not Found .*mostly ends in /v1"):
        connect(replace(server, url=server.url.removesuffix("/v1")))


def test_a_server_that_cannot_be_reached():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Server(f"http://127.0.0.1:{free.getsockname()[1]}/v1", "tiny", ServerSettings(max_retries=0))
    with pytest.raises(ModelError, match=r"got no answer \(.*\), expected") as caught:
        connect(server)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="got no answer"):
        list(score_words(server, PROMPTS, WORDS))


def test_a_server_that_does_not_answer_in_time(served):
    server = limited(served(delay=2.0), timeout=0.2, max_retries=0)
    with pytest.raises(RunError, match="got no answer within 0.2 s, expected"):
        list(score_words(server, PROMPTS[:1], WORDS))


def test_the_key_is_sent_and_never_shown(served, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    server = served(key="right-key-123")
    monkeypatch.setenv("OPENAI_API_KEY", "wrong-key-456")
    for ask in (connect, lambda server: list(score_words(server, PROMPTS, WORDS))):
        with pytest.raises(
            ModelError, match=r"got 401 Unauthorized \(Incorrect .*\*\*\*\), expected OPENAI_API_KEY"
        ) as e:
            ask(server)
        assert "key-456" not in str(e.value)
        assert e.value.__cause__ is None
    monkeypatch.setenv("OPENAI_API_KEY", "right-key-123\n")
    assert scored(connect(server), PROMPTS[:1], WORDS)
    monkeypatch.setenv("OPENAI_API_KEY", "wröng-key-456")
    with pytest.raises(ModelError, match="OPENAI_API_KEY with characters") as caught:
        connect(server)
    assert "key-456" not in str(caught.value)
    assert not [key for key in ("key-123", "key-456") if key in caplog.text]


def test_names():
    server = parse_server("openai:http://localhost:8000/v1/#org/my-model")
    assert (server.url, server.name) == ("http://localhost:8000/v1", "org/my-model")
    assert is_server("openai:anything")
    assert not is_server("openai/gpt-oss-20b")


@pytest.mark.parametrize(
    "name",
    ["demo", "openai:", "openai:http://h/v1", "openai:http://h/v1#", "openai:ftp://h/v1#m", "openai:localhost:8000#m"]
    + ["openai:http://#m", "openai:http://h:port/v1#m", "openai:http://h/v1?a=b#m", "http://h/v1#m"],
)
def test_bad_names(name):
    with pytest.raises(ModelError, match="expected openai:URL#name, as in openai:http://localhost:8000/v1#my-model"):
        parse_server(name)


def test_a_password_in_a_name_is_not_shown():
    with pytest.raises(ModelError, match="expected none") as caught:
        parse_server("openai:http://me:secret@h/v1#m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_concurrent": 0}, "`num_concurrent`: got 0, expected greater than or equal to 1"),
        ({"max_retries": -1}, "`max_retries`: got -1, expected greater than or equal to 0"),
        ({"requests_per_second": 0.0}, "`requests_per_second`: got 0.0, expected greater than 0"),
        ({"timeout": float("nan")}, "`timeout`: got nan, expected a finite number"),
        ({"concurrency": 3}, "unknown key `concurrency`"),
    ],
)
def test_limits_out_of_range(given, message):
    with pytest.raises(RecipeError, match=re.escape(message)):
        validate(ServerSettings, given, "evaluate", RecipeError)


def test_an_evaluation_through_a_server_is_that_of_the_local_model(served, tiny_folder, tmp_path):
    """Items, prompts, content-free inputs, files and scores: all but what a server does not tell."""
    server = served()
    options = {"languages": "de", "limit": 4}
    local = evaluate(model=str(tiny_folder), output_path=tmp_path / "local", **options)
    named = f"openai:{server.url}#{server.name}"
    away = evaluate(model=named, output_path=tmp_path / "server", num_concurrent=3, **options)
    ours, theirs = (each["glotlift"]["tasks"]["sentiment"]["languages"]["de"]["base"] for each in (local, away))
    assert ours["predicted"] == theirs["predicted"]
    for measure in ("accuracy", "accuracy_calibrated", "accuracy_contextual", "auroc", "ece"):
        assert ours[measure] == pytest.approx(theirs[measure], abs=1e-4)
    path = tmp_path / "server" / "predictions" / "base" / "sentiment" / "de.parquet"
    frame, about = read_parquet(path)
    assert {column.rsplit("_", 1)[0] for column in frame if "_" in column} == {"sequence", "first_token", "text"}
    assert len(about["content_free"]) == 3
    before = path.stat().st_mtime_ns
    evaluate(model=named, output_path=tmp_path / "server", **options)
    assert path.stat().st_mtime_ns == before
