"""Nothing in the tree points at one person's machine or at a package registry's host."""

import re

# Written in pieces so that this file passes its own test.
MACHINE = re.compile(
    "|".join(["/wo" + "rk/", "/ro" + "ot/", "/opt/" + "wheels", "/home/" + r"\w+/", "/Users/" + r"\w+/"])
)
HOSTS = re.compile("|".join(["py" + r"pi\.org", r"pythonhosted\.org", r"download\.pytorch" + r"\.org", "npm" + "js"]))
TEXT = {
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".cpp",
    ".h",
    ".inc",
    ".sh",
    ".js",
    ".css",
    ".html",
    ".json",
    ".yml",
    ".yaml",
    "",
}


def test_no_machine_paths_and_no_registry_hosts(tracked, root):
    found = []
    for path in tracked:
        if path.suffix not in TEXT or path.stat().st_size > 1 << 20:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if MACHINE.search(line) or HOSTS.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_no_large_files(tracked, root):
    large = {str(path.relative_to(root)): path.stat().st_size for path in tracked if path.stat().st_size > 20 << 20}
    assert large == {}


def test_no_build_products(tracked):
    assert [path.name for path in tracked if path.suffix in {".so", ".o", ".pyc", ".whl"}] == []
