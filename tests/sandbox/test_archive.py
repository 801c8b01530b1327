"""What outlives a manager: sandboxes on disk; and packages from a folder of wheels."""

import base64
import hashlib
import subprocess
import sys
import zipfile

import pytest

from statepool.core.errors import Corruption, InvalidRequest, NotFound
from statepool.sandbox import Sandbox, Template, commands
from statepool.sandbox.archive import Archive
from statepool.sandbox.errors import SandboxError

OTHER = """
import sys
from pathlib import Path
from statepool.sandbox import Pool, Sandbox
from statepool.sandbox.archive import Archive
with Pool() as pool, Sandbox(pool=pool) as sandbox:
    sandbox.run_code('''
import json as j, os, random
x = [1, 2]; y = x; table = {"a": (1.5, None)}
def f(): return x
lock = __import__("threading").Lock()
os.makedirs("deep/er"); os.chdir("deep/er")
open("data.bin", "wb").write(random.Random(3).randbytes(100_000))
os.symlink("data.bin", "link"); os.chmod("data.bin", 0o640); os.setxattr("data.bin", "user.k", b"v")
open("/tmp/t", "w").write("kept too")
''')
    print(sorted(Archive(Path(sys.argv[1])).save(sandbox, "one").lost))
    assert sandbox.run_code("x, f()").text == "([1, 2], [1, 2])"
    assert not sandbox.files.exists("/tmp/.statepool-archive.tar")
    sys.stdout.flush()
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_saved_sandbox_outlives_its_manager(pool, tmp_path):
    done = subprocess.run([sys.executable, "-c", OTHER, tmp_path / "a"], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    archive = Archive(tmp_path / "a")
    (saved,) = archive.list()
    assert set(eval(done.stdout)) == set(saved.lost) and "lock" in saved.lost
    with archive.restore("one", pool=pool) as sandbox:
        code = (
            "import os, random\ny is x, table, j.dumps(1), os.getcwd(), os.readlink('link'),"
            "os.getxattr('data.bin', 'user.k'),"
            "os.stat('data.bin').st_mode & 0o777, open('link', 'rb').read() == random.Random(3).randbytes(100_000),"
            "open('/tmp/t').read(), os.listdir('/tmp')"
        )
        assert eval(sandbox.run_code(code).text) == (
            *(True, {"a": (1.5, None)}, "1", "/home" + "/user/deep/er", "data.bin", b"v", 0o640, True, "kept too"),
            ["t"],
        )
        with pytest.raises(InvalidRequest, match="already"):
            archive.save(sandbox, "one")
        with pytest.raises(InvalidRequest, match="no name"):
            archive.save(sandbox, "../out")
    data = (tmp_path / "a" / "one" / "files.tar").read_bytes()
    (tmp_path / "a" / "one" / "files.tar").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Corruption, match="not those"):
        archive.restore("one", pool=pool)
    (tmp_path / "a" / "one" / "manifest.json").write_text("{")
    with pytest.raises(Corruption, match="damaged"):
        archive.list()
    archive.delete("one")
    assert archive.list() == [] and [*(tmp_path / "a").iterdir()] == []
    for act in (archive.delete, archive.restore):
        with pytest.raises(NotFound):
            act("one")


def _wheel(folder, name, version, needs=()):
    """A wheel as its specification has it (a zip with metadata), by no tool of ours."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"NAME = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for path, text in files.items()
    ]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for path, text in (files | {f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,"])}).items():
            file.writestr(path, text)


def test_packages_from_a_folder_of_wheels(pool, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 5)
    _wheel(wheels, "lowlib", "1.0")
    _wheel(wheels, "highlib", "2.0", ["lowlib>=1"])
    _wheel(wheels, "broken", "1.0", ["nowhere"])
    pool.add(Template("wheels", wheels=str(wheels)))
    with Sandbox("wheels", pool=pool) as sandbox:
        assert "lowlib" in sandbox.install("highlib")
        assert sandbox.run_code("import highlib, lowlib\nhighlib.NAME + lowlib.NAME").text == "'highliblowlib'"
        assert sandbox.commands.run(f"{sys.executable} -c 'import lowlib; print(lowlib.NAME)'").stdout == "lowlib\n"
        with pytest.raises(SandboxError, match="nowhere"):
            sandbox.install("broken")
        for names in ((), ("--index-url=http://x", "lowlib")):
            with pytest.raises(InvalidRequest, match="names of packages"):
                sandbox.install(*names)
    with Sandbox("wheels", pool=pool) as sandbox:
        assert sandbox.run_code("import highlib").error.name == "ModuleNotFoundError"
    with Sandbox(pool=pool) as sandbox, pytest.raises(InvalidRequest, match="no wheels"):
        sandbox.install("lowlib")
    with pytest.raises(InvalidRequest, match="absolute path"):
        Template("x", wheels="here")


def test_the_command_line_keeps_restores_and_installs(pool, tmp_path, capsys):
    def cli(*words):
        status = commands.main([str(word) for word in words])
        said = capsys.readouterr()
        return status, said.out, said.err

    wheels, where = tmp_path / "wheels", ("--archive", tmp_path / "kept")
    wheels.mkdir()
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 5)
    _wheel(wheels, "lowlib", "1.0")
    (tmp_path / "in.txt").write_text("given")
    begin = (
        "run",
        *where,
        "--save",
        "monday",
        "--file",
        tmp_path / "in.txt",
        "--wheels",
        wheels,
        "--install",
        "lowlib",
    )
    code = "import lowlib\nname = lowlib.NAME\nf = open('in.txt')\nname"
    status, out, err = cli(*begin, code)
    assert (status, out) == (0, "'lowlib'\n") and err.startswith("not kept: f: TypeError")
    again = (*where, "--wheels", wheels, "--restore", "monday")
    assert cli("run", *again, "lowlib.NAME + open('in.txt').read()") == (0, "'lowlibgiven'\n", "")
    status, out, err = cli("run", *again, "--save", "late", "--shell", "echo more >> in.txt; exit 3")
    assert (status, out, err) == (1, "", "")  # kept although it failed
    again = (*where, "--wheels", wheels, "--restore", "late")
    assert cli("run", *again, "--shell", "cat in.txt")[1] == "givenmore\n"
    status, out, _ = cli("archive", "list", *where)
    assert status == 0 and [line.split()[0] for line in out.splitlines()] == ["monday", "late"] and "without f" in out
    assert cli("archive", "delete", *where, "late")[0] == 0
    for words, why in (
        (("archive", "delete", *where, "late"), "no 'late'"),
        (("run", *where, "--restore", "late", "1"), "no 'late'"),
        (("run", *where, "--save", "monday", "1"), "already"),
        (("run", "--install", "lowlib", "1"), "no wheels"),
        (("run", "--wheels", wheels, "--install", "nowhere", "1"), "nowhere"),
        (("run", "--wheels", tmp_path / "none", "1"), "none"),
        (("run", "--file", tmp_path / "none", "1"), "none"),
    ):
        status, out, err = cli(*words)
        assert status == 2 and why in err and "Traceback" not in err, err
