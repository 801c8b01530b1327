"""Puts each bug of the catalog into a copy of this tree and runs the test that must notice.

``python tests/store/mutants/runner.py [part of a name …]`` prints a table and ends with 1 if a bug was not noticed. The
copy is compiled once without much optimisation, then file by file.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from tests.store.mutants.catalog import MUTANTS
from tests.store.mutants.mutant import Mutant

CAUGHT, MISSED, UNUSABLE = "caught", "MISSED", "UNUSABLE"


# An installation for development would find its own sources first, whatever the path says.
_ALONE = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if '_editable_' not in type(f).__module__]\n"


@dataclass(frozen=True)
class Result:
    """What became of one bug: caught, missed, or why nothing can be said."""

    mutant: Mutant
    verdict: str
    seconds: float
    said: str = ""

    def __str__(self) -> str:
        line = f"{self.verdict:8} {self.seconds:6.1f} s  {self.mutant.name}  ({self.mutant.test})"
        return line if self.verdict == CAUGHT else f"{line}\n{self.said}"


class Tree:
    """A copy of this tree in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("src", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "CMakeLists.txt"):
            shutil.copy(ROOT / name, folder / name)
        (folder / "src" / "sitecustomize.py").write_text(_ALONE)
        self._built = folder / "build"

    def build(self) -> None:
        """Compile the store's module from the copy's sources, what changed of them.

        Raises:
            RuntimeError: it does not compile; the message is the compiler's.
        """
        tools = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if not self._built.exists():
            lists = self.folder / "CMakeLists.txt"
            text, quick = lists.read_text(), "_store PRIVATE -O1 -w"
            assert text.count("_store PRIVATE -O3 -Wall -Wextra") == 1
            lists.write_text(text.replace("_store PRIVATE -O3 -Wall -Wextra", quick))
            options = ["-G", "Ninja", "-DSTATEPOOL_INPLACE=ON", f"-DPython_EXECUTABLE={sys.executable}"]
            self._call(["cmake", "-S", self.folder, "-B", self._built, *options], tools)
        self._call(["cmake", "--build", self._built, "--target", "_store", "-j", "2"], tools)

    @staticmethod
    def _call(command: list[object], environment: dict[str, str]) -> None:
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-3000:])

    @contextmanager
    def with_bug(self, mutant: Mutant) -> Iterator[None]:
        """The copy with this bug."""
        path = self.folder / mutant.file
        right = path.read_text()
        wrong = right
        for old, new in mutant.edits:
            assert wrong.count(old) == 1, f"{mutant.name}: {old!r} is {wrong.count(old)} times in {mutant.file}"
            wrong = wrong.replace(old, new)
        path.write_text(wrong)
        try:
            yield
        finally:
            path.write_text(right)

    def test(self, arguments: str, seconds: float = 400.0) -> tuple[int, str]:
        """Run pytest on the copy; its exit status (-1: it hangs) and the end of its output."""
        parts = shlex.split(arguments)
        parts = [f"tests/store/{part}" if part.startswith("test_") and ".py" in part else part for part in parts]
        command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout", "120"]
        environment = dict(
            os.environ, PYTHONPATH=str(self.folder / "src"), CI="1"
        )  # CI: the same drawn cases each time
        with tempfile.TemporaryFile("w+") as said:  # no pipe, which a child that hangs would keep open
            running = subprocess.Popen(
                [*command, *parts],
                cwd=self.folder,
                env=environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = running.wait(seconds)
            except subprocess.TimeoutExpired:
                status = -1
            with contextlib.suppress(ProcessLookupError):  # the test's children, if it left some
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            said.seek(0)
            return status, said.read()[-1500:]


def attempt(tree: Tree, mutant: Mutant) -> Result:
    """Whether the test notices."""
    began = time.monotonic()
    with tree.with_bug(mutant):
        try:
            if mutant.native:
                tree.build()
        except RuntimeError as error:
            return Result(mutant, UNUSABLE, time.monotonic() - began, str(error))
        status, said = tree.test(mutant.test)
    verdict = CAUGHT if status in (1, -1) else MISSED if status == 0 else UNUSABLE
    return Result(mutant, verdict, time.monotonic() - began, said)


def run(mutants: Iterable[Mutant]) -> Iterator[Result]:
    """Try them one after the other; each test must pass before there is a bug."""
    chosen = sorted(mutants, key=lambda mutant: mutant.file)
    with tempfile.TemporaryDirectory(prefix="statepool-mutants-") as folder:
        tree = Tree(Path(folder))
        if any(mutant.native for mutant in chosen):
            tree.build()
        without = {test: tree.test(test) for test in {mutant.test for mutant in chosen}}
        for mutant in chosen:
            status, said = without[mutant.test]
            if status != 0:
                yield Result(mutant, UNUSABLE, 0.0, f"the test fails without a bug: {said}")
                continue
            yield attempt(tree, mutant)


def main(wanted: list[str]) -> int:
    """Print the table; 1 if one was not caught."""
    chosen = [m for m in MUTANTS if not wanted or any(part in m.name for part in wanted)]
    results = []
    for result in run(chosen):
        print(result, flush=True)
        results.append(result)
    caught = sum(result.verdict == CAUGHT for result in results)
    print(f"{caught} of {len(results)} caught, {sum(result.seconds for result in results):.0f} s")
    return int(caught < len(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
