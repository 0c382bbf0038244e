"""`star call --endpoint` against a real HTTP server: calls that the server has parsed, and text that STAR parses."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star.chat import Completion, FormatError, parse_completion, render_target
from star.data.endpoint import Endpoint, EndpointError, Reply
from star.data.tools import normalize_tool
from star.errors import InputError
from star.modeling.served_inference import answer_request_at, completion_of
from tests.json_handler import JsonHandler

TOOL = {"name": "get_weather", "description": "Weather", "parameters": {"city": {"type": "string"}}}
CALL = {"name": "get_weather", "arguments": {"city": "Oslo"}}
ANSWER = Completion("weather: given", [CALL], "")
# As vLLM 0.30 sends them: with a parser of calls, with one of the reasoning too, and with neither.
SENT_CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
TEXT = '<think>\nweather: given\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
MESSAGES = {
    "calls": {"content": "<think>\nweather: given\n</think>\n\n", "tool_calls": [SENT_CALL], "reasoning": None},
    "calls and reasoning": {"content": None, "tool_calls": [SENT_CALL], "reasoning": "weather: given"},
    "text": {"content": TEXT, "tool_calls": []},
    "text after reasoning": {"content": TEXT.partition("</think>")[2], "reasoning_content": "weather: given"},
    "opening in the prompt": {"content": TEXT.removeprefix("<think>")},
    "arguments as an object": {
        "content": "weather: given</think>",
        "tool_calls": [{"function": CALL}],
    },
}


class Handler(JsonHandler):
    """Sends the message of the server, and refuses what the server refuses."""

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((body, self.headers.get("Authorization")))
        if self.path != "/v1/chat/completions":
            self.answer(404, {"detail": "Not Found"})
        elif self.server.no_parser and body.get("tool_choice") != "none":
            self.answer(400, {"error": {"message": '"auto" tool choice requires --tool-call-parser'}})
        else:
            choice = {"message": self.server.message, "finish_reason": self.server.finish_reason}
            self.answer(200, {"choices": [choice]})


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.models, made.message, made.finish_reason, made.no_parser, made.requests = ["tiny"], {}, "stop", False, []
    made.url = f"http://127.0.0.1:{made.server_port}/v1"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def ask(server: ThreadingHTTPServer, **changed: object) -> Completion:
    endpoint = Endpoint(server.url, **{"attempts": 1, "timeout": 5.0, **changed}).found_model()
    return answer_request_at(endpoint, "Weather in Oslo?", tools=[normalize_tool(TOOL)], max_tokens=80)


@pytest.mark.parametrize("form", MESSAGES)
def test_whoever_parses_the_answer_is_the_same(form: str, server: ThreadingHTTPServer) -> None:
    server.message = MESSAGES[form]
    assert ask(server) == ANSWER
    [(body, key)] = server.requests
    assert (body["model"], body["temperature"], body["max_tokens"], key) == ("tiny", 0, 80, None)
    assert body["tools"][0]["function"]["parameters"]["properties"] == {"city": {"type": "string"}}


def test_a_server_that_parses_no_calls_is_asked_for_text(server: ThreadingHTTPServer) -> None:
    server.message, server.no_parser = MESSAGES["text"], True
    assert ask(server) == ANSWER
    assert [body.get("tool_choice") for body, _ in server.requests] == [None, "none"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
calls = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["f", "</tool_call>", "<think>"]),
        "arguments": st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), json_values, max_size=3),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(calls, min_size=1, max_size=3), st.sampled_from(["", "Let me see."]))
def test_calls_of_the_server_equal_the_same_calls_in_the_text(made: list[dict], reasoning: str) -> None:
    text = render_target({"reasoning_content": reasoning, "tool_calls": made})
    sent = [{"function": {"name": call["name"], "arguments": json.dumps(call["arguments"])}} for call in made]
    try:
        expected = parse_completion(text)
    except FormatError:  # such as a think tag in a name
        with pytest.raises(FormatError):
            completion_of(Reply("", reasoning, sent, is_cut=False))
    else:
        assert completion_of(Reply("", reasoning, sent, is_cut=False)) == expected
        assert completion_of(Reply(text, "", [], is_cut=False)) == expected


@pytest.mark.parametrize(
    ("function", "what"),
    [
        ({"name": "get_weather", "arguments": '{"city": '}, "arguments of a call are no JSON"),
        ({"name": "get_weather", "arguments": "[1]"}, "arguments that are no object"),
        ({"name": None, "arguments": "{}"}, "no name"),
        ({"name": "get_weather", "arguments": '{"city": NaN}'}, "UTF-8 JSON"),
        ({"name": "get_weather", "arguments": '{"town": "Oslo"}'}, "an argument that its tool does not have"),
        ({"name": "format_disk", "arguments": "{}"}, "no tool of the prompt"),
    ],
)
def test_a_wrong_call_of_the_server_is_a_format_error(function: dict, what: str, server: ThreadingHTTPServer) -> None:
    server.message = {"content": "", "tool_calls": [{"function": function}]}
    with pytest.raises(FormatError, match=what):
        ask(server)


def test_what_is_wrong_is_said(server: ThreadingHTTPServer) -> None:
    server.message, server.finish_reason = {"content": "<think>\nweather, weather"}, "length"
    with pytest.raises(FormatError, match=r"limit of 80 tokens: raise --max-tokens\): '<think>\\nweather"):
        ask(server)
    server.message = {"content": [{"type": "text"}]}
    with pytest.raises(EndpointError, match="content, reasoning or tool_calls cannot be read"):
        ask(server)
    server.models = ["a", "b"]
    with pytest.raises(InputError, match=r"serves 2 models \(a, b\): choose one with --model"):
        ask(server)


def test_the_command_prints_the_calls_and_sends_the_key(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    server.message = MESSAGES["calls"]
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    command = [sys.executable, "-m", "star.cli", "call", "Weather?", "--tools", "tools.json", "--endpoint", server.url]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "STAR_API_KEY": "k3y"}, capture_output=True, text=True
    )
    assert (done.returncode, json.loads(done.stdout)) == (0, CALL), done.stderr
    assert [key for _, key in server.requests] == ["Bearer k3y"]
