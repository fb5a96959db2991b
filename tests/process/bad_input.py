"""Bad HTTP input gets a typed error, never a 5xx, and the server goes on."""
import json
import socket

from harness import Cluster, Run, bin_folder, require

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields):
    return {"messages": HELLO, "max_tokens": 4, **fields}


def plain(**fields):
    return {"prompt": "a", "max_tokens": 4, **fields}


# name, method, path, body (bytes as they are), status, param (None: not looked at)
CASES = [
    ("no_body", "POST", CHAT, b"", 400, None),
    ("not_json", "POST", CHAT, b"{nope", 400, None),
    ("not_an_object", "POST", CHAT, b"[1,2]", 400, None),
    ("invalid_utf8", "POST", CHAT, b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', 400, None),
    ("deep_json", "POST", CHAT, b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, None),
    ("no_messages", "POST", CHAT, {}, 400, "messages"),
    ("empty_messages", "POST", CHAT, {"messages": []}, 400, "messages"),
    ("messages_of_wrong_type", "POST", CHAT, {"messages": "hello"}, 400, "messages"),
    ("message_without_role", "POST", CHAT, {"messages": [{"content": "x"}]}, 400, "messages[0].role"),
    ("unknown_role", "POST", CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role"),
    ("content_is_a_number", "POST", CHAT, {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content"),
    ("image_content", "POST", CHAT,
     {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, None),
    ("unknown_model", "POST", CHAT, chat(model="gpt-9"), 404, None),
    ("temperature_too_high", "POST", CHAT, chat(temperature=2.1), 400, "temperature"),
    ("temperature_below_zero", "POST", CHAT, chat(temperature=-1), 400, "temperature"),
    ("temperature_of_wrong_type", "POST", CHAT, chat(temperature="hot"), 400, "temperature"),
    ("temperature_nan", "POST", CHAT, b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}', 400, None),
    ("temperature_beyond_doubles", "POST", CHAT,
     b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}', 400, None),
    ("top_p_zero", "POST", CHAT, chat(top_p=0), 400, "top_p"),
    ("top_p_above_one", "POST", CHAT, chat(top_p=1.5), 400, "top_p"),
    ("top_k_below", "POST", CHAT, chat(top_k=-2), 400, "top_k"),
    ("min_p_above_one", "POST", CHAT, chat(min_p=2), 400, "min_p"),
    ("max_tokens_zero", "POST", CHAT, chat(max_tokens=0), 400, "max_tokens"),
    ("max_tokens_negative", "POST", CHAT, chat(max_tokens=-5), 400, "max_tokens"),
    ("max_tokens_beyond_context", "POST", CHAT, chat(max_tokens=1000000), 400, None),
    ("max_tokens_fraction", "POST", CHAT, chat(max_tokens=1.5), 400, "max_tokens"),
    ("n_zero", "POST", CHAT, chat(n=0), 400, "n"),
    ("n_too_many", "POST", CHAT, chat(n=1000), 400, "n"),
    ("five_stops", "POST", CHAT, chat(stop=["a", "b", "c", "d", "e"] * 20), 400, "stop"),
    ("empty_stop", "POST", CHAT, chat(stop=[""]), 400, None),
    ("stop_of_wrong_type", "POST", CHAT, chat(stop=3), 400, None),
    ("logit_bias_of_unknown_token", "POST", CHAT, chat(logit_bias={"999999": 1}), 400, "logit_bias"),
    ("logit_bias_too_large", "POST", CHAT, chat(logit_bias={"5": 1000}), 400, "logit_bias"),
    ("top_logprobs_without_logprobs", "POST", CHAT, chat(top_logprobs=3), 400, "top_logprobs"),
    ("top_logprobs_too_many", "POST", CHAT, chat(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    ("stream_of_wrong_type", "POST", CHAT, chat(stream="yes"), 400, "stream"),
    ("stream_options_without_stream", "POST", CHAT, chat(stream_options={"include_usage": True}), 400,
     "stream_options"),
    ("tools_of_wrong_type", "POST", CHAT, chat(tools={"a": 1}), 400, "tools"),
    ("seed_of_wrong_type", "POST", CHAT, chat(seed="one"), 400, "seed"),
    ("no_prompt", "POST", PLAIN, {"max_tokens": 3}, 400, "prompt"),
    ("empty_prompt_list", "POST", PLAIN, plain(prompt=[]), 400, "prompt"),
    ("token_outside_the_vocabulary", "POST", PLAIN, plain(prompt=[1, 99999]), 400, None),
    ("negative_token", "POST", PLAIN, plain(prompt=[-1]), 400, None),
    ("mixed_prompt", "POST", PLAIN, plain(prompt=["a", 3]), 400, None),
    ("prompt_beyond_context", "POST", PLAIN, plain(prompt=[5] * 9000), 400, None),
    ("suffix", "POST", PLAIN, plain(suffix="x"), 400, "suffix"),
    ("best_of", "POST", PLAIN, plain(best_of=4), 400, "best_of"),
    ("detokenize_unknown_token", "POST", "/detokenize", {"tokens": [123456]}, 400, None),
    ("tokenize_nothing", "POST", "/tokenize", {}, 400, None),
    ("unknown_route", "GET", "/v2/chat", None, 404, None),
    ("unknown_model_route", "GET", "/v1/models/none", None, 404, None),
    ("path_that_climbs", "GET", "/../../etc/passwd", None, 404, None),
    ("get_on_chat", "GET", CHAT, None, 405, None),
    ("delete_on_models", "DELETE", "/v1/models", None, 405, None),
    ("post_on_health", "POST", "/health", {}, 405, None),
    ("body_too_large", "POST", CHAT, b" " * (2 << 20), 413, None),
]

# name, bytes sent, statuses that are fine (None: the connection may just be closed)
RAW = [
    ("garbage", b"\x00\x01\x02garbage\r\n\r\n", {400, None}),
    ("tls_hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n", {400, None}),
    ("no_version", b"GET /health\r\n\r\n", {400, None}),
    ("long_header", b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40000 + b"\r\n\r\n", {431}),
    ("bad_length", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n{}", {400}),
    ("huge_length", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", {413}),
    ("bad_chunk", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", {400}),
]


def typed_error(cluster, method, path, body, status, param):
    got, headers, data = cluster.request(method, path, body)
    require(got == status, f"{got}, not {status}: {data[:300]!r}")
    error = json.loads(data)["error"]
    require({"message", "type", "param", "code"} <= set(error), f"fields {sorted(error)}")
    require(error["message"] and error["type"], f"empty message or type: {error}")
    require(param is None or error["param"] == param, f"param {error['param']!r}, not {param!r}: {error['message']}")
    require(status != 405 or "Allow" in headers, "no Allow header")


def raw_bytes(cluster, data, allowed):
    with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=15) as client:
        client.sendall(data)
        got = b""
        while not got.endswith(b"}"):
            try:
                piece = client.recv(65536)
            except ConnectionResetError:
                break
            if not piece:
                break
            got += piece
    status = int(got.split(b" ", 2)[1]) if got.startswith(b"HTTP/1.") else None
    require(status in allowed, f"{status}, not in {allowed}: {got[:200]!r}")


def bad_request_in_stream_mode(cluster):
    """A refusal of a stream is a plain error, not an event."""
    typed_error(cluster, "POST", CHAT, chat(stream=True, temperature=9), 400, "temperature")


def alive_after(cluster, pids):
    answer = cluster.post(CHAT, chat())
    require(answer["usage"]["completion_tokens"] >= 1, f"{answer}")
    now = {node["name"]: node["pid"] for node in cluster.status()["nodes"]}
    require(now == pids, "a node was started again")
    cluster.settle(5)


def main():
    run, folder = Run(), bin_folder()
    with Cluster(folder, settings={"limits": {"max_body": "1MiB"}}) as cluster:
        pids = {node["name"]: node["pid"] for node in cluster.status()["nodes"]}
        for name, method, path, body, status, param in CASES:
            run.check(name, typed_error, cluster, method, path, body, status, param)
        for name, data, allowed in RAW:
            run.check(name, raw_bytes, cluster, data, allowed)
        run.check("refusal_of_a_stream_is_no_event", bad_request_in_stream_mode, cluster)
        run.check("server_is_alive_and_no_node_died", alive_after, cluster, pids)
    run.end()


main()
