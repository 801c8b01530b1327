"""The command line: one tree of commands, each a thin shell over a room.

Rooms are imported inside the commands, so that ``statepool --help`` starts in a few hundredths of a second. What a user
can repair is one line on stderr and exit status 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statepool.core.command import adder, run

if TYPE_CHECKING:
    from statepool.engine.config import EngineConfig
    from statepool.engine.engine import Engine
    from statepool.engine.request import SamplingParams

__all__ = ["main", "parser"]

_ROOMS = {
    "up": ("statepool.house.commands", True, "start the whole platform on this machine, or on a Ray cluster"),
    "config": ("statepool.house.commands", True, "check the file of statepool up (statepool config --help)"),
    "pool": ("statepool.kv.pool.commands", False, "a node of the shared KV pool (statepool pool --help)"),
    "attention": (
        "statepool.engine.attention.remote.commands",
        False,
        "a worker that holds KV and attends (statepool attention --help)",
    ),
    "slice": ("statepool.engine.slicing.commands", True, "cut a model so that its attentions can run elsewhere"),
    "store": ("statepool.store.commands", False, "durable shared structures (statepool store --help)"),
    "vector": ("statepool.vector.commands", False, "search by meaning (statepool vector --help)"),
    "replay": ("statepool.sim.commands", True, "send a recorded load to a running server and measure it"),
    "simulate": ("statepool.sim.commands", True, "replay a recorded load on a simulated cluster"),
    "calibrate": ("statepool.sim.commands", True, "measure what a running server's engines cost, for simulate --node"),
    "plan": ("statepool.sim.commands", True, "which split of nodes bears most of a recorded load"),
    "sandbox": ("statepool.sandbox.commands", False, "run untrusted code in isolation (statepool sandbox --help)"),
    "seq": ("statepool.sequence_agent", False, "design sequences with exact verification"),
    "topo": ("statepool.tasks.topology.commands", False, "handle additions on 3-manifolds, certified"),
    "rollout": ("statepool.rollout.commands", False, "answer groups of prompts for training"),
    "train": ("statepool.train.commands", True, "train a model on a task: statepool train CONFIG.yaml"),
    "probe": (
        "statepool.train.probe.commands",
        False,
        "train a small retrieval model, judge attention by its answers",
    ),
    "eval": ("statepool.train.commands", True, "how well a model does on held-out problems of a task"),
}
"""Commands that a room runs itself: its module, whether it wants to see the command's name, and what it does."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        from statepool import __version__

        print(__version__)
        return 0
    if arguments[:1] == ["bench"]:
        return _bench(arguments[1:])
    if arguments and arguments[0] in _ROOMS:
        module, keeps_name, _ = _ROOMS[arguments[0]]
        status: int = import_module(module).main(arguments if keeps_name else arguments[1:])
        return status
    options = parser().parse_args(arguments)
    return run("statepool", options)


def parser() -> argparse.ArgumentParser:
    """The whole command tree."""
    tree = argparse.ArgumentParser(prog="statepool", description="Run and train LLM agents on shared state.")
    tree.add_argument("--version", action="store_true", help="print the version and exit")
    command = adder(tree)
    serve = command("serve", "serve a model over the OpenAI and Anthropic APIs", _serve)
    _add_engine(serve)
    group = serve.add_argument_group("server")
    group.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    group.add_argument("--port", help="port to listen on (default 8000)")
    group.add_argument("--api-key", help="key every request must carry (default none)")
    group.add_argument("--served-name", help="name of the model in the API")
    group.add_argument("--tool-format", help="tool-call format (default: the one the chat template speaks)")
    group.add_argument("--start-seconds", help="time an engine has to load (default 1800)")
    group.add_argument("--drain-seconds", help="time for running requests after SIGTERM (default 30)")
    group.add_argument("--vllm-metric-names", action="store_const", const=True, help="also export vLLM's metric names")
    group.add_argument("--no-chat-page", action="store_true", help="serve no page at /")
    group.add_argument("--no-dashboard", action="store_true", help="serve no pages at /dashboard")

    _add_code(serve)
    _add_cluster(serve)

    chat = command("chat", "talk to a model in the terminal", _chat)
    _add_engine(chat)
    _add_sampling(chat, max_tokens=512)
    chat.add_argument(
        "--url", help="talk to a running server, such as http://127.0.0.1:8000, instead of loading a model"
    )
    chat.add_argument("--api-key", help="key for --url")
    chat.add_argument("--system", help="system message")

    generate = command(
        "generate", "complete a file of prompts; a second run goes on where the first stopped", _generate
    )
    _add_engine(generate)
    _add_sampling(generate, max_tokens=256)
    generate.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="JSONL with prompt or messages")
    generate.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL the results are appended to")

    score = command("score", "log-probabilities of a text, the same bits generation reports", _score)
    _add_engine(score)
    _add_text(score)

    tokenize = command("tokenize", "token ids of a text", _tokenize)
    tokenize.add_argument("model", nargs="?", default="tiny", help="folder, hub id or tiny")
    _add_text(tokenize)

    doctor = command("doctor", "what this machine has, what will be used and why, what is missing", _doctor)
    doctor.add_argument("model", nargs="?", default="tiny", help="folder, hub id or tiny")
    doctor.add_argument("--json", action="store_true", help="print plain values")

    top = command("top", "live view of a server's engines and its KV pool", _top)
    top.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default http://127.0.0.1:8000)")
    top.add_argument("--api-key", help="its key")
    top.add_argument("--seconds", type=float, default=1.0, metavar="S", help="between two looks (default 1)")
    top.add_argument("--once", action="store_true", help="look once and end")

    command("bench", "compare with other engines (in a checkout)", add_help=False)
    for name, (_, _, what) in _ROOMS.items():
        command(name, what, add_help=False)
    return tree


def _add_engine(command: argparse.ArgumentParser) -> None:
    """Flags named after the fields of ``EngineConfig``; values are checked where they are used."""
    command.add_argument(
        "model", nargs="?", help="folder in the Hugging Face layout, hub id, or tiny (the bundled model)"
    )
    group = command.add_argument_group("engine", "Each can also stand in --config or in STATEPOOL_NAME.")
    group.add_argument("--config", type=Path, metavar="FILE", help="settings in YAML or TOML")
    group.add_argument("--quant", help="int8 (default), int4, bf16 or fp32")
    group.add_argument("--kv-bytes", metavar="SIZE", help="size of the KV pool, such as 2GiB (default 1GiB)")
    group.add_argument("--max-batched-tokens", metavar="N", help="most tokens in one step (default 512)")
    group.add_argument("--max-seqs", metavar="N", help="most sequences in one step (default 16)")
    group.add_argument("--max-model-len", metavar="N", help="longest prompt plus output (default: the model's)")
    group.add_argument("--threads", metavar="N", help="threads of the kernels (default: all cores)")
    group.add_argument("--stages", metavar="N", help="processes that share the layers, for long prompts (default 1)")
    group.add_argument("--speculate", help="off (default), ngram or wave; never changes a result")
    group.add_argument("--attention", help="full (default), wave or moba; see docs/attention.md")
    group.add_argument(
        "--kv-budget", metavar="SIZE", help="memory for KV; the rest of --kv-bytes is in a file (default: all)"
    )
    group.add_argument("--kv-folder", metavar="DIR", help="where that file lies (default: the temporary folder)")
    group.add_argument("--trace-selection", metavar="FILE", help="write which clusters each token read, as JSON lines")
    group.add_argument("--wave-bytes", metavar="SIZE", help="memory for wave segments (default: as --kv-bytes)")
    group.add_argument(
        "--attention-workers", metavar="N", help="processes that hold the KV and attend over it, or their addresses"
    )
    group.add_argument("--attention-split", help="what each of them has: auto (default), heads, request or sequence")
    group.add_argument("--attention-batches", metavar="N", help="parts of a batch under way at once (default 2)")
    group.add_argument("--attention-here", metavar="N", help="KV heads that stay with the model (default 0)")
    group.add_argument("--attention-patience", metavar="S", help="a worker silent for so long is lost (default 10)")
    group.add_argument("--backend", help="auto (default), native, cuda or torch")


def _add_code(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("code", "Run the code of the code_interpreter tool; see docs/sandbox.md.")
    group.add_argument(
        "--sandbox", dest="code_containers", action="store_const", const=32, help="run code, in at most 32 containers"
    )
    group.add_argument("--code-containers", metavar="N", help="run code, in at most N containers (default 0: none)")
    group.add_argument("--code-seconds", metavar="S", help="most time of one cell (default 60)")
    group.add_argument("--code-idle-seconds", metavar="S", help="a container unused for so long ends (default 1200)")
    group.add_argument("--code-memory-bytes", metavar="SIZE", help="most memory of one container (default 1GiB)")
    group.add_argument("--code-calls", metavar="N", help="most cells of one response (default 16)")
    group.add_argument("--code-driver", help="ns (root), userns (any user) or auto (default)")
    group.add_argument("--code-template", metavar="FILE", help="kind of sandbox, in TOML (default: plain Python)")


def _add_cluster(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("cluster", "Several engine processes behind one address; see docs/cluster.md.")
    group.add_argument("--prefill", metavar="N", help="engines that compute prompts and hand requests on (default 0)")
    group.add_argument("--decode", metavar="N", help="engines that go on behind the first token (default 0)")
    group.add_argument("--workers", metavar="N", help="engines that do both (default 0: one engine, no cluster)")
    group.add_argument("--pool-bytes", metavar="SIZE", help="memory of the shared KV pool (default 1GiB)")
    group.add_argument("--pool-nodes", metavar="N", help="processes that hold it (default 1)")
    group.add_argument("--pool-replicas", metavar="N", help="how many of them get each block (default 1)")
    group.add_argument("--pool-dir", metavar="FOLDER", help="where blocks outlive a restart (default: nowhere)")
    group.add_argument("--pool-disk-bytes", metavar="SIZE", help="most bytes in --pool-dir (default 4GiB)")
    group.add_argument("--pool-eviction", help="which block goes first: lru (default), lfu, length or likely")
    group.add_argument("--pool", metavar="ADDRESSES", help="nodes that run already (statepool pool serve), with commas")
    group.add_argument("--policy", help="where requests go: global (default), local, kv-router, least-load, …")
    group.add_argument("--admission", help="whom to refuse with 429: none (default), late, both, early, predicted, …")
    group.add_argument("--slo-ttft", metavar="S", help="seconds to the first token that it keeps (default 30)")
    group.add_argument("--slo-tbt", metavar="S", help="seconds between two tokens that it keeps (default 0.1)")
    group.add_argument("--ray", metavar="ADDRESS", help="let this Ray cluster place the processes; auto, local")
    group.add_argument("--stall-seconds", metavar="S", help="an engine silent for so long is replaced (default 1.5)")


def _add_sampling(command: argparse.ArgumentParser, max_tokens: int) -> None:
    group = command.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N", help=f"default {max_tokens}")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P")
    group.add_argument("--top-k", type=int, default=0, metavar="K")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")


def _add_text(command: argparse.ArgumentParser) -> None:
    command.add_argument("--text", help="the text (default: standard input)")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _settings(options: argparse.Namespace, configs: list[type]) -> Any:
    from statepool.core.config import Settings

    settings = Settings(configs, ignore=["engine", "cluster", "code"])
    if options.config is not None:
        settings.read_file(options.config)
    settings.read_environment(os.environ)
    settings.read_flags(vars(options))
    return settings


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    from statepool.engine.config import EngineConfig

    config: EngineConfig = _settings(options, [EngineConfig]).build(EngineConfig)
    return config


def _engine(options: argparse.Namespace) -> Engine:
    from statepool.engine.engine import Engine

    return Engine(_engine_config(options))


def _sampling(options: argparse.Namespace) -> SamplingParams:
    from statepool.engine.request import SamplingParams

    names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
    return SamplingParams(**{name: getattr(options, name) for name in names})


def _text(options: argparse.Namespace) -> str:
    text: str = sys.stdin.read() if options.text is None else options.text
    return text


def _serve(options: argparse.Namespace) -> int:
    from statepool.dashboard import CHAT, Sources, mounted
    from statepool.engine.config import EngineConfig
    from statepool.serve.config import ClusterConfig, CodeConfig, ServeConfig
    from statepool.serve.server import serve

    parts: dict[str, type] = {"engine": EngineConfig, "cluster": ClusterConfig, "code": CodeConfig}
    settings = _settings(options, [ServeConfig, *parts.values()])
    fixed: dict[str, Any] = {name: settings.build(part) for name, part in parts.items()}
    if settings.source("chat_page") is None:
        fixed["chat_page"] = None if options.no_chat_page else CHAT
    extend = None if options.no_dashboard else mounted(Sources())
    return serve(settings.build(ServeConfig, **fixed), extend=extend)


def _chat(options: argparse.Namespace) -> int:
    from rich.console import Console

    from statepool.terminal import Chat, LocalModel, Model, RemoteModel

    console = Console(highlight=False)
    params = _sampling(options)
    model: Model
    if options.url:
        model = RemoteModel(options.url, params, options.model, options.api_key)
    else:
        model = LocalModel(_engine(options), params)
    chat = Chat(
        model,
        read=lambda: console.input("[bold cyan]> [/]"),
        write=lambda text: console.out(text, end="", highlight=False),
        note=lambda text: console.print(text, style="dim", markup=False),
    )
    if options.system:
        chat.messages.append({"role": "system", "content": options.system})
    chat.run()
    return 0


def _generate(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from statepool import batch

    prompts = list(batch.read_prompts(options.prompts))
    done = batch.finished_ids(options.out)
    left = [prompt for prompt in prompts if prompt.id not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("generate", total=len(prompts), completed=len(prompts) - len(left))

        def show(now: batch.Progress) -> None:
            done = len(prompts) - len(left) + now.finished + now.refused
            bar.update(task, completed=done, description=f"{now.tokens} tokens")

        result = batch.run(_engine(options), left, options.out, _sampling(options), show) if left else None
    skipped = len(prompts) - len(left)
    finished, refused = (result.finished, result.refused) if result else (0, 0)
    print(f"{finished} completed, {skipped} were there already, {refused} refused: {options.out}", file=sys.stderr)
    return 1 if refused else 0


def _score(options: argparse.Namespace) -> int:
    import json
    import math

    engine = _engine(options)
    ids = engine.tokenizer.encode(_text(options), add_special=True, allow_special=True)
    logprobs = [float(value) for value in engine.score(ids)]
    total = math.fsum(logprobs)
    perplexity = math.exp(-total / len(logprobs)) if logprobs else math.nan
    if options.json:
        print(json.dumps({"tokens": ids, "logprobs": [None, *logprobs], "total": total, "perplexity": perplexity}))
        return 0
    for token, logprob in zip(ids[1:], logprobs, strict=True):
        print(f"{logprob:12.6f}  {token:>7}  {engine.tokenizer.token_text(token)!r}")
    print(f"{len(logprobs)} tokens, total {total:.6f}, perplexity {perplexity:.4f}")
    return 0


def _tokenize(options: argparse.Namespace) -> int:
    import json

    from statepool.engine.hub import resolve
    from statepool.engine.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(resolve(options.model))
    ids = tokenizer.encode(_text(options), allow_special=True)
    if options.json:
        print(json.dumps({"tokens": ids, "count": len(ids), "texts": [tokenizer.token_text(token) for token in ids]}))
    else:
        print(" ".join(map(str, ids)))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import json

    from statepool.doctor import examine

    report = examine(options.model)
    if options.json:
        print(json.dumps(report.values, indent=2))
    else:
        width = max(len(finding.topic) for finding in report.findings)
        marks = {"ok": "ok", "note": "--", "missing": "!!"}
        for finding in report.findings:
            print(f"{marks[finding.state]}  {finding.topic:<{width}}  {finding.found}")
            if finding.remedy:
                print(f"    {'':<{width}}  to change that: {finding.remedy}")
    return 1 if any(finding.state == "missing" for finding in report.findings) else 0


def _top(options: argparse.Namespace) -> int:
    from statepool.serve.top import watch

    watch(options.url, options.api_key, options.seconds, options.once)
    return 0


def _bench(arguments: list[str]) -> int:
    import subprocess

    root = Path(__file__).parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        if arguments[:1] == ["attention"]:
            # Its figures without peers are in the package.
            status: int = import_module(_ROOMS["attention"][0]).main(["bench", *arguments[1:]])
            return status
        print("statepool bench: the benchmarks live in the source tree; run it in a checkout", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
