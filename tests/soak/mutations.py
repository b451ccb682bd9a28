"""Seeds faults into a copy of the tree, one at a time, and tells which of them the tests catch.

python -m tests.soak.mutations [WORD ...]

The faults are in `faults.toml`; words choose those whose names hold one of them. Each names the
tests nearest to it, which pass without it and of which one must fail with it.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
FAULTS = pathlib.Path(__file__).with_name("faults.toml")

# What tests read of the tree.
_COPIED = ("segmenter_jax", "tests", "configs", "pyproject.toml")


@dataclasses.dataclass(frozen=True)
class Fault:
    """A slip of the pen in one place of the source.

    Attributes:
      name: what goes wrong.
      file: path below the root.
      old: text of the file, there exactly once.
      new: what the fault makes of it.
      tests: arguments of pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: list[str]

    def stale(self, root: pathlib.Path) -> str | None:
        """Says why the fault cannot be seeded below `root`; None if it can."""
        path = root / self.file
        count = path.read_text().count(self.old) if path.is_file() else 0
        if count == 1:
            return None
        return (
            f"{FAULTS.name}, {self.name!r}: expected once in {self.file}, found {count} times: "
            f"{self.old!r}"
        )


def load_faults(words: list[str]) -> list[Fault]:
    """The faults whose names hold one of the words; all without words."""
    faults = [Fault(**fields) for fields in tomllib.loads(FAULTS.read_text())["fault"]]
    return [f for f in faults if not words or any(word in f.name for word in words)]


def run_tests(tree: pathlib.Path, tests: list[str]) -> tuple[int, str]:
    """Pytest's exit code, and what it printed."""
    # Bytecode is told from its source by time and size, which a seeded fault may leave.
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    options = ["-q", "-x", "-n0", "-p", "no:cacheprovider", "--tb=line"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def main(words: list[str]) -> int:
    """Prints a line per fault and the score; returns 1 where a fault is not caught."""
    faults = load_faults(words)
    if not faults:
        print(f"no fault of {FAULTS.name} has a name with any of {words}")
        return 1
    if stale := [message for fault in faults if (message := fault.stale(ROOT))]:
        print("\n".join(stale))
        return 1
    with tempfile.TemporaryDirectory(prefix="mutations_") as folder:
        tree = pathlib.Path(folder)
        for name in _COPIED:
            copy = shutil.copy if (ROOT / name).is_file() else shutil.copytree
            copy(ROOT / name, tree / name)
        for cache in tree.rglob("__pycache__"):
            shutil.rmtree(cache)
        code, output = run_tests(tree, sorted({test for fault in faults for test in fault.tests}))
        if code != 0:
            print(f"the tests do not pass without a fault:\n{output}")
            return 1
        caught = 0
        for fault in faults:
            path, whole = tree / fault.file, (tree / fault.file).read_text()
            path.write_text(whole.replace(fault.old, fault.new))
            code, output = run_tests(tree, fault.tests)
            path.write_text(whole)
            failed = re.findall(r"^FAILED (\S+)", output, re.MULTILINE)
            caught += bool(failed)
            # Code 0 means that all passed; any other one, that the tests could not run.
            verdict = f"caught by {failed[0]}" if failed else f"NOT CAUGHT, exit code {code}"
            print(f"{fault.name}: {verdict}", flush=True)
    print(f"{caught} of {len(faults)} faults are caught")
    return int(caught < len(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
