"""The house as the README draws it: imports point down, rooms stay small, tests mirror them."""

import ast
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "hf_protosphere"
SCRIPTS = sorted((ROOT / "scripts").rglob("*.py"))
JOBS = [path for path in SCRIPTS if path.parent.name in ("releases", "transfer")]  # of commands
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if "evaluate_modules" not in p.parts)


def floors() -> list[list[str]]:
    """From the README's map: the rooms and files of each floor, the highest first."""
    text = (ROOT / "README.md").read_text()
    block = text.split("    hf_protosphere/\n")[1].split("\n    tests/")[0]
    found = []
    for line in block.splitlines():
        if not line.startswith(" " * 7):
            names = line.strip().split("   ")[0].split(", ")
            found.append([name.rstrip("/").removesuffix(".py") for name in names])
    return found


def room(module: str) -> str:
    """The first part of a dotted name below the package: a folder, or a file of the root."""
    return module.split(".")[0]


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file names in any import, those for type checkers included."""
    package = path.relative_to(PACKAGE).parts[:-1]
    known = {dotted(module) for module in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        target = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        names = {f"{target}.{alias.name}".strip(".") for alias in node.names}
        found |= (names & known) or {target}
    return found - {""}


GRAPH = {dotted(path): imported(path) for path in MODULES}
FLOOR = {name: i for i, names in enumerate(floors()) for name in names}


def test_every_room_is_on_the_map():
    assert {room(module) for module in GRAPH} - {""} == FLOOR.keys()


@pytest.mark.parametrize("module", [name for name in GRAPH if name])
def test_imports_only_point_down_the_map(module):
    up = {
        target
        for target in GRAPH[module]
        if room(target) != room(module) and FLOOR[room(target)] < FLOOR[room(module)]
    }
    assert not up, f"{module} imports {sorted(up)}, which the map does not draw below it"


def test_no_two_modules_need_each_other():
    done: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path[path.index(module) :], module))
        if module not in done:
            for target in GRAPH.get(module, ()):
                visit(target, (*path, module))
            done.append(module)

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=str)
def test_a_room_has_at_most_twelve_files(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12


def code_lines(function: ast.FunctionDef) -> int:
    """Without the docstring."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert source.count("\n") <= 400
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    long = {function.name: code_lines(function) for function in functions}
    assert {name: lines for name, lines in long.items() if lines > 60} == {}
    assert ast.get_docstring(ast.parse(source))


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_windows_lacks_is_imported_only_where_it_is_used(path):
    names = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names.add(statement.module)
    assert not names & {"fcntl", "grp", "pwd", "resource", "termios"}


def test_the_tests_mirror_the_package():
    places = [path.relative_to(PACKAGE) for path in MODULES] + [path.relative_to(ROOT) for path in JOBS]
    missing = [
        str(test.relative_to(ROOT))
        for place in places
        if place.name not in ("__init__.py", "__main__.py")
        and not (test := ROOT / "tests" / place.with_name(f"test_{place.name}")).is_file()
    ]
    assert missing == []
