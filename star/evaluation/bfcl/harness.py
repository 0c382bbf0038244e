"""Runs the Berkeley harness in a process of its own: its data, inference loop and checkers. Queries go through a pipe.

The python of the environment that star/evaluation/bfcl/environment.py makes runs this file, so it imports only the
standard library and bfcl_eval. The other end of the pipe is star/evaluation/bfcl/run.py. A message is a line of JSON:

    stdin   {"categories": ["simple_python"], "limit": 2, "workers": 64}                the job, once
    stdout  {"entries": 2}                                                              number of conversations, once
    stdout  {"ask": [{"id": "simple_python_0", "step": 0, "prompt": "..."}, ...]}       a batch of queries
    stdin   [{"text": "..."}, {"error": "..."}]                                         the replies, in the same order
    stdout  {"done": 2}                                                                 conversations finished so far
    stdout  {"report": {"verdicts": [...], ...}}                                        the last message

What a model wrote is hostile. The harness's multi-turn executor passes it to `eval`, so a call gets there only when
it names a public method of the entry's simulated classes and all its arguments are literals. Should that check have a
hole, there is also no network, an empty environment, an audit hook that refuses programs, sockets and writes outside of
the scratch folder, and limits on memory and time. Each conversation has its own forked process, and with it its own state.
"""

import ast
import contextlib
import ctypes
import hashlib
import inspect
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import types
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

MODEL = "star"  # name under which our handler is registered with the harness
MEMORY_BYTES = 8 << 30
CPU_SECONDS = 60  # per conversation, without the model's time; a simulator needs milliseconds
CLONE_NEWUSER, CLONE_NEWNET, PR_SET_PDEATHSIG = 0x10000000, 0x40000000, 1
FORBIDDEN_EVENTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.bind",
)
UNKNOWN_METHOD = "Error during execution: name {!r} is not defined"
NOT_LITERAL = "Error during execution: not a call with literal arguments"


def main() -> None:
    """Reads the job, runs every conversation, scores them all, and reports."""
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the harness prints goes to the log and not between the messages
    # Before the imports below start threads: only a process of one thread can make a user namespace.
    isolated = isolate_network()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    job = json.loads(sys.stdin.readline())
    register_handler()
    import bfcl_eval._llm_response_generation  # noqa: F401 - imported once here and not in every forked conversation

    refuse_side_effects(Path(os.environ["BFCL_PROJECT_ROOT"]))
    entries = {category: load_entries(category, job["limit"]) for category in job["categories"]}

    def send(**message: object) -> None:
        protocol.write(json.dumps(message) + "\n")
        protocol.flush()

    def ask(queries: list[dict]) -> list[dict]:
        send(ask=queries)
        return json.loads(sys.stdin.readline())

    send(entries=sum(map(len, entries.values())))
    everything = [entry for of_category in entries.values() for entry in of_category]
    results = run_conversations(
        everything, ask=ask, on_done=lambda finished: send(done=finished), workers=job["workers"]
    )
    verdicts = [verdict for category in entries for verdict in score_category(category, entries[category], results)]
    send(report={"verdicts": verdicts, "isolated": isolated, **data_version(job["categories"])})


# ---- protections against what a model wrote


def isolate_network() -> bool:
    """Moves this process into a network namespace without interfaces. False where the system does not allow it."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    except (OSError, AttributeError):  # not Linux
        return False


def refuse_side_effects(root: Path) -> None:
    """Installs an audit hook, for good, that refuses programs, sockets, and writes outside of `root`."""
    allowed, null = str(root.resolve()) + os.sep, os.devnull

    def hook(event: str, arguments: tuple) -> None:
        if event.startswith(FORBIDDEN_EVENTS):
            raise PermissionError(f"{event} is refused here")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | os.PathLike) else null
            if path != null and not os.path.realpath(path).startswith(allowed):
                raise PermissionError(f"writing {path} is refused here")

    sys.addaudithook(hook)


def refuse_call(call: str, methods: set[str]) -> str | None:
    """Checks a call that a model wrote before it reaches the executor's `eval`.

    For example, `cd(folder='docs')` may pass, and `cd(folder=open('x'))` may not.

    Args:
        call: the call as Python source.
        methods: names of the methods that the model may call.

    Returns:
        None for a call of such a method with literal arguments, else an error in the words of the executor.
    """
    try:
        tree = ast.parse(call, mode="eval").body
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            return NOT_LITERAL
        if tree.func.id not in methods:
            return UNKNOWN_METHOD.format(tree.func.id)
        for value in [*tree.args, *(keyword.value for keyword in tree.keywords)]:
            ast.literal_eval(value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return NOT_LITERAL
    return NOT_LITERAL if any(keyword.arg is None for keyword in tree.keywords) else None


def guard_executor(execute: Callable[..., tuple[list[str], dict]]) -> Callable[..., tuple[list[str], dict]]:
    """Wraps the harness's executor: a call that `refuse_call` refuses is not executed; its result is the error."""

    def execute_guarded(func_call_list: list[str], *arguments: object, **named: object) -> tuple[list[str], dict]:
        results: list[str] = []
        # Executing no call returns the simulated classes' instances, whose methods are the allowed ones.
        _, instances = execute([], *arguments, **named)
        methods = {
            name
            for instance in instances.values()
            for name, _ in inspect.getmembers(instance, inspect.ismethod)
            if not name.startswith("_")
        }
        for call in func_call_list:
            error = refuse_call(call, methods)
            results.extend([error] if error else execute([call], *arguments, **named)[0])
        return results, instances

    return execute_guarded


# ---- the harness


def register_handler() -> None:
    """Registers our handler as the harness's only model and puts the guard before its executor.

    The harness's own registry imports the clients of twenty services, which are not installed. A registry with one
    model takes its place, and empty modules take the place of the two clients that the handler's base class imports.
    """
    for name in ("openai", "requests"):
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules["openai"])["OpenAI"] = None
    models: dict[str, object] = {}
    registry = types.ModuleType("bfcl_eval.constants.model_config")
    vars(registry)["MODEL_CONFIG_MAPPING"] = models
    sys.modules[registry.__name__] = registry

    from bfcl_eval.eval_checker import eval_runner, eval_runner_helper
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_checker
    from bfcl_eval.model_handler import base_handler

    # Both have imported the executor by name, so each needs the guarded one.
    for module in (base_handler, multi_turn_checker):
        module.execute_multi_turn_func_call = guard_executor(module.execute_multi_turn_func_call)
    for checker in ("ast_checker", "multi_turn_checker"):
        setattr(eval_runner, checker, fail_instead_of_raise(getattr(eval_runner, checker)))
    eval_runner_helper.write_list_of_dicts_to_file = write_ascii
    models[MODEL] = types.SimpleNamespace(
        model_handler=handler_class(), model_name=MODEL, is_fc_model=True, underscore_to_dot=False
    )


def fail_instead_of_raise(check: Callable[..., dict]) -> Callable[..., dict]:
    """Wraps a checker of the harness: an answer that it raises on is wrong, and does not end the whole run."""

    def check_or_fail(*arguments: object) -> dict:
        try:
            return check(*arguments)
        except Exception as error:  # it may raise anything on answers that it does not expect
            message = f"{type(error).__name__}: {error}"
            return {"valid": False, "error": [message], "error_message": message, "error_type": "checker_failed"}

    return check_or_fail


def write_ascii(filename: str, data: list[dict], subdir: Path) -> None:
    """Writes score files in ASCII. The harness's own writer fails on half a surrogate pair, as a model can write it."""
    subdir.mkdir(parents=True, exist_ok=True)
    (subdir / filename).write_text("".join(json.dumps(entry, default=str) + "\n" for entry in data), encoding="ascii")


def handler_class() -> type:
    """The harness's handler for Qwen3's tool-call format, with queries through a pipe instead of to a server."""
    from bfcl_eval.constants.enums import ModelStyle
    from bfcl_eval.model_handler.base_handler import BaseHandler
    from bfcl_eval.model_handler.local_inference.qwen_fc import QwenFCHandler

    class PipedQwenHandler(QwenFCHandler):
        ask: Callable[[str], dict]  # set by run_conversation; a handler that only scores needs none

        def __init__(self, model_name, temperature, registry_name, is_fc_model, **kwargs) -> None:
            # Not QwenFCHandler's constructor, which makes the client of a server.
            BaseHandler.__init__(self, model_name, temperature, registry_name, is_fc_model, **kwargs)
            self.model_style = ModelStyle.OSSMODEL

        def query(self, inference_data: dict):
            began = time.time()
            answer = self.ask(self._format_prompt(inference_data["message"], inference_data["function"]))
            if "error" in answer:
                raise ValueError(answer["error"])
            choice = types.SimpleNamespace(text=answer["text"])
            usage = types.SimpleNamespace(prompt_tokens=0, completion_tokens=0)
            return types.SimpleNamespace(choices=[choice], usage=usage), time.time() - began

    # Set afterwards, because the base class's decorator for this method cannot handle a class inside a function.
    PipedQwenHandler._query_prompting = PipedQwenHandler.query
    return PipedQwenHandler


def new_handler():
    """Returns the harness's handler of the model, which formats prompts and reads answers."""
    from bfcl_eval.eval_checker.eval_runner import get_handler

    return get_handler(MODEL)


def load_entries(category: str, limit: int | None) -> list[dict]:
    """The entries of a category in the harness's order; with a limit that many, evenly spread."""
    from bfcl_eval.utils import load_dataset_entry

    entries = load_dataset_entry(category)
    count = min(limit or len(entries), len(entries))
    return [entries[index * len(entries) // count] for index in range(count)]


def run_conversations(
    entries: list[dict],
    *,
    ask: Callable[[list[dict]], list[dict]],
    on_done: Callable[[int], None],
    workers: int,
) -> dict[str, object]:
    """Runs the harness's inference on every entry.

    All open conversations wait until each has asked or ended, so that the batches do not depend on timing.

    Args:
        ask: replies to a batch of queries.
        on_done: called with the number of finished conversations.
        workers: the largest number of open conversations.

    Returns:
        The harness's result by the entry's id.
    """
    waiting = deque(entries)
    active: dict[str, Conversation] = {}
    results: dict[str, object] = {}
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                entry = waiting.popleft()
                active[entry["id"]] = Conversation(entry)
            queries = []
            # One after another, so that the queries have the order of the entries, whichever is ready first.
            for key, conversation in list(active.items()):
                message = conversation.next_message()
                if "prompt" in message:
                    queries.append({"id": key, **message})
                else:
                    results[key] = message["result"]
                    active.pop(key).close()
            on_done(len(results))
            for query, answer in zip(queries, ask(queries) if queries else [], strict=True):
                active[query["id"]].answer(answer)
    finally:
        for conversation in active.values():
            conversation.process.kill()
    return results


class Conversation:
    """One entry's inference in a process of its own."""

    def __init__(self, entry: dict) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=run_conversation, args=(entry, child_pipe), daemon=True)
        self.process.start()
        # With this process's copy open, the pipe would not end when the child dies.
        child_pipe.close()

    def next_message(self) -> dict:
        """Waits for the next query or the result. A process that died has the harness's result for an error."""
        try:
            return json.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self.process.join()
            return {"result": f"Error during inference: the conversation's process ended with {self.process.exitcode}"}

    def answer(self, answer: dict) -> None:
        """Sends the answer to the process's last query. A process that died gets none."""
        with contextlib.suppress(ConnectionError):  # next_message reports a process that died
            self.pipe.send_bytes(json.dumps(answer).encode())

    def close(self) -> None:
        """Waits for the process to end and closes the pipe to it."""
        self.process.join()
        self.pipe.close()


def run_conversation(entry: dict, pipe: Connection) -> None:
    """Runs the harness's inference on one entry, in the forked process. Queries and replies go through `pipe`."""
    from bfcl_eval._llm_response_generation import multi_threaded_inference

    end_with_parent()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    handler, steps = new_handler(), iter(range(sys.maxsize))

    def ask(prompt: str) -> dict:
        pipe.send_bytes(json.dumps({"step": next(steps), "prompt": prompt}).encode())
        return json.loads(pipe.recv_bytes())

    handler.ask = ask
    result = multi_threaded_inference(handler, entry, include_input_log=False, exclude_state_log=True)
    pipe.send_bytes(json.dumps({"result": result["result"]}).encode())


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, also when the parent is killed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def score_category(category: str, entries: list[dict], results: dict[str, object]) -> list[dict]:
    """The verdict of the harness's own runner on every entry of a category."""
    from bfcl_eval.constants.eval_config import RESULT_PATH, SCORE_PATH
    from bfcl_eval.eval_checker.eval_runner import evaluate_task

    given = [{"id": entry["id"], "result": results[entry["id"]]} for entry in entries]
    if not given:
        return []
    evaluate_task(category, RESULT_PATH, SCORE_PATH, given, MODEL, new_handler(), {}, allow_missing=True)
    # The file has a line of totals, then one line per wrong entry.
    [file] = SCORE_PATH.rglob(f"*_{category}_score.json")
    wrong = {item["id"]: item for item in map(json.loads, file.read_text(encoding="utf-8").splitlines()[1:])}
    verdicts = []
    for item in given:
        failure = wrong.get(item["id"])
        verdicts.append(
            {"id": item["id"], "category": category, "valid": failure is None, "error": error_type(failure)}
        )
    return verdicts


def error_type(failure: dict | None) -> str | None:
    """The error type in an entry of the harness's score file: some of its checkers nest it, others do not."""
    if failure is None:
        return None
    error = failure.get("error")
    return error.get("error_type") if isinstance(error, dict) else failure.get("error_type")


def data_version(categories: list[str]) -> dict[str, object]:
    """Which data was used: the package's version, its name for the data, and digest and size of each category."""
    from bfcl_eval.constants.category_mapping import VERSION_PREFIX
    from bfcl_eval.constants.eval_config import POSSIBLE_ANSWER_PATH, PROMPT_PATH

    digests, sizes = {}, {}
    for category in sorted(categories):
        questions, answers = (
            folder / f"{VERSION_PREFIX}_{category}.json" for folder in (PROMPT_PATH, POSSIBLE_ANSWER_PATH)
        )
        sizes[category] = len(questions.read_text(encoding="utf-8").splitlines())
        content = b"".join(file.read_bytes() for file in (questions, answers) if file.is_file())
        digests[category] = hashlib.sha256(content).hexdigest()
    package = f"bfcl-eval {version('bfcl-eval')}"
    return {"package": package, "data": VERSION_PREFIX, "digests": digests, "sizes": sizes}


if __name__ == "__main__":
    main()
