"""An endpoint with OpenAI's chat completions that can be told to misbehave."""

import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint(ThreadingHTTPServer):
    """Answers by `answer(body)`, by default `texto <seed>`.

    `faults`: what is done with the first requests instead of answering well, one each; `fault_of(number)`: the same by
    the number of the request, from 1. See Handler.
    """

    daemon_threads = True

    def __init__(self, faults=(), models=("tiny",), delay=0.0, answer=None, fault_of=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.models, self.delay, self.fault_of = list(faults), list(models), delay, fault_of
        self.answer = answer or (lambda body: f"texto {body['seed']}")
        self.bodies, self.num_now, self.num_most, self.lock = [], 0, 0, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def next_fault(self, body):
        with self.lock:
            self.bodies.append(body)
            if self.fault_of:
                return self.fault_of(len(self.bodies))
            return self.faults.pop(0) if self.faults else None


def source_of(body):
    return re.search(r"<texto>\n(.*)\n</texto>", body["messages"][-1]["content"], re.DOTALL)[1]


class Handler(BaseHTTPRequestHandler):
    """A fault is a status, a name of `_raw`, or a function that changes the answer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = server.next_fault(body)
        with server.lock:
            server.num_now += 1
            server.num_most = max(server.num_most, server.num_now)
        time.sleep(server.delay)
        with server.lock:
            server.num_now -= 1
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
                  "choices": [{"index": 0, "message": {"role": "assistant", "content": server.answer(body)},
                               "finish_reason": "stop"}],
                  "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}
        if isinstance(fault, int):
            self._send(fault, {"error": {"message": "não agora", "type": "x"}})
        elif isinstance(fault, str):
            self._raw(fault, json.dumps(answer).encode())
        else:
            self._send(200, (fault(answer) or answer) if fault else answer)

    def _raw(self, fault, answer):
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault == "truncated":
            self._write(200, answer[:len(answer) // 2], length=len(answer))
            self.close_connection = True
        elif fault.startswith("Retry-After"):
            self._write(429, b"{}", **{"Retry-After": fault.partition(" ")[2]})
        else:
            self._write(200, {"html": b"<html>log in</html>", "half json": answer[:len(answer) // 2], "null": b"null",
                              "list": b"[]", "nothing": b""}[fault],
                        **{"Content-Type": "text/html" if fault == "html" else "application/json"})

    def _send(self, status, values):
        headers = {"retry-after-ms": "20"} if status == 429 else {}
        self._write(status, json.dumps(values).encode(), **headers)

    def _write(self, status, data, length=None, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length or len(data)),
                            **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def without_choices(answer):
    return answer | {"choices": []}


def an_error(answer):
    return {"error": {"message": "upstream failed", "code": 502}}


def without_usage(answer):
    return {name: value for name, value in answer.items() if name != "usage"}


def of_another_model(answer):
    return answer | {"model": "some-other-model"}


def finished_by(reason):
    def fault(answer):
        answer["choices"][0]["finish_reason"] = reason
    return fault


def saying(change):
    def fault(answer):
        message = answer["choices"][0]["message"]
        message["content"] = change(message["content"])
    return fault
