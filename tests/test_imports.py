"""Who may import whom: every import statement of bitlens, read with `ast`, against one table."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitlens
from bitlens.networks.catalog import CATALOG

PACKAGE = Path(__file__).resolve().parents[1] / "bitlens"
FILES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = "everything"

# A room is a module or a folder directly below bitlens/. A room may always import from itself.
ALLOWED: dict[str, set[str] | str] = {
    "recipe": set(),
    "operators": set(),
    "metrics": set(),
    "tiles": set(),
    "files": set(),
    "networks": {"operators"},
    "tasks": {"networks"},
    "quant": {"recipe", "files"},
    "data": {"operators", "files"},
    "methods": {"quant", "recipe", "files"},
    "training": {"quant", "data", "metrics", "operators", "files"},
    "engine": {"quant", "networks", "tasks", "files"},
    "checkpoint": {"recipe", "networks", "quant", "methods", "engine", "files"},
    "official": {"methods", "networks", "quant"},
    "progress": set(),
    "inference": {
        "checkpoint",
        "engine",
        "networks",
        "tasks",
        "data",
        "metrics",
        "tiles",
        "files",
        "quant",
        "progress",
        "__init__",
    },
    "bench": {
        "inference",
        "checkpoint",
        "engine",
        "tasks",
        "quant",
        "data",
        "metrics",
        "operators",
        "count",
        "files",
        "progress",
    },
    "tuning": {
        "checkpoint",
        "count",
        "data",
        "engine",
        "files",
        "inference",
        "methods",
        "progress",
        "quant",
        "recipe",
        "tasks",
    },
    "report": {"metrics", "files", "data"},
    "count": {"quant", "networks", "tasks"},
    "experiments": {"methods", "recipe"},
    "cli": EVERYTHING,
    "__main__": {"cli"},  # nothing else imports it
    "__init__": EVERYTHING,  # lazily: test_import_is_light holds it to that
}


def room_of(file: Path, package: Path = PACKAGE) -> str:
    """The room a file belongs to: `bitlens/quant/grid.py` -> `quant`, `bitlens/cli.py` -> `cli`."""
    return file.relative_to(package).with_suffix("").parts[0]


def imported_modules(source: str, file: Path, package: Path = PACKAGE) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything a file imports, wherever in the file it does so.

    Counted are `import`, `from ... import`, absolute and relative, in functions and under TYPE_CHECKING,
    and `import_module`/`__import__` of a literal name. `from a import b` gives `a.b`, as b may be a module.
    """
    parents = ["bitlens", *file.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = parents[: len(parents) - level + 1] if level else []
                start = ".".join([*base, *([module] if module else [])])
                yield from ((node.lineno, f"{start}.{name.name}") for name in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def target_room(module: str) -> str | None:
    """The room that an import reaches; `__init__` for the package's own names; None if it is not ours."""
    parts = module.split(".")
    if parts[0] != "bitlens":
        return None
    rooms = {room_of(file) for file in FILES}
    return parts[1] if len(parts) > 1 and parts[1] in rooms | set(ALLOWED) else "__init__"


def forbidden_arrows(source: str, file: Path, package: Path = PACKAGE) -> list[str]:
    """Every import of a file that the table does not allow, as `file:line: room -> room`."""
    room = room_of(file, package)
    allowed = ALLOWED[room]
    if allowed == EVERYTHING and room != "__init__":
        return []
    arrows = []
    for line, module in imported_modules(source, file, package):
        target = target_room(module)
        if target is None or target == room:
            continue
        if (target == "cli" and room != "__main__") or (allowed != EVERYTHING and target not in allowed):
            arrows.append(f"{file.relative_to(package.parent)}:{line}: {room} -> {target}")
    return arrows


def relative(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def test_every_room_is_in_the_table():
    unknown = {room_of(file) for file in FILES} - set(ALLOWED)
    assert not unknown, f"decide what {sorted(unknown)} may import, here and in docs/architecture.md"


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_imports_follow_the_table(file: Path):
    assert forbidden_arrows(file.read_text(encoding="utf-8"), file) == []


@pytest.mark.parametrize(
    ("file", "source", "arrow"),
    [
        ("quant/grid.py", "from bitlens.networks import swinir", "quant -> networks"),
        ("quant/grid.py", "from .. import data", "quant -> data"),
        ("quant/grid.py", "from ..data.mat import read", "quant -> data"),
        ("quant/grid.py", "import bitlens.metrics", "quant -> metrics"),
        ("quant/grid.py", "from bitlens import cli", "quant -> cli"),
        ("quant/grid.py", "from bitlens import load", "quant -> __init__"),
        ("quant/grid.py", "def f():\n    from bitlens import engine", "quant -> engine"),
        ("recipe.py", "if TYPE_CHECKING:\n    from .quant.grid import Grid", "recipe -> quant"),
        ("recipe.py", "import_module('bitlens.quant')", "recipe -> quant"),
        ("training/loop.py", "from bitlens import checkpoint", "training -> checkpoint"),
        ("__init__.py", "from .cli import main", "__init__ -> cli"),
        ("quant/grid.py", "from .ranges import minmax\nfrom ..recipe import Bits\nimport torch", None),
        ("cli.py", "from bitlens import load, training\nfrom .engine import lower", None),
    ],
)
def test_the_walk_sees_every_form_of_import(file: str, source: str, arrow: str | None):
    arrows = [found.split(": ")[1] for found in forbidden_arrows(source, PACKAGE / file)]
    assert arrows == ([arrow] if arrow else [])


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_nothing_imports_torchvision(file: Path):
    modules = {name.split(".")[0] for _, name in imported_modules(file.read_text(encoding="utf-8"), file)}
    assert "torchvision" not in modules, "torchvision does not import beside the CPU build of torch"


NETWORKS = {str(entry.where).rpartition(":")[2] for entry in CATALOG.values()}
"""Classes of the catalogue."""


def questions(source: str) -> list[int]:
    """Lines that ask whether something is of a class of the catalogue: `isinstance`, `issubclass`, `type(...) is`.

    What else an engine or a verb must know of networks is data: of their entry, their own, or of a table by family.
    """
    tree, found = ast.parse(source), []
    words = {alias.asname: alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names if alias.asname and alias.name in NETWORKS}  # fmt: skip

    def named(*nodes: ast.AST) -> bool:
        inside = [node for one in nodes for node in ast.walk(one)]
        names = {node.id for node in inside if isinstance(node, ast.Name)}
        names |= {node.attr for node in inside if isinstance(node, ast.Attribute)}
        names |= {node.value for node in inside if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        return bool(names & (NETWORKS | {*words}))

    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]) if named(kinds):
                found.append(node.lineno)
            case ast.Compare(left=left, comparators=others) if "type" in ast.dump(node) and named(left, *others):
                found.append(node.lineno)
            case ast.MatchClass(cls=kind) if named(kind):
                found.append(kind.lineno)
    return found


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) != "networks"], ids=relative)
def test_nobody_asks_which_network_it_is(file: Path):
    assert questions(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("isinstance(network, SwinIR)", 1),
        ("isinstance(network, (nn.Linear, swinir.SwinIR | None))", 1),
        ("from bitlens.networks.dun import DUN as Unfolding\nissubclass(kind, Unfolding)", 1),
        ("if type(network) is EfficientSCI and type(network) != DUN: pass", 2),
        ("type(network).__name__ == 'SwinIR' or type(network).__name__ in {'DUN', 'PAN'}", 2),
        ("match network:\n    case PAN(): pass", 1),
        ("isinstance(module, nn.Linear) and SwinIR(2) == network", 0),
    ],
)
def test_the_walk_sees_every_form_of_the_question(source: str, count: int):
    assert len(questions(source)) == count


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_the_first_line_says_what_the_file_is_for(file: Path):
    source = file.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source), clean=False)
    assert docstring, "a file starts with a docstring"
    assert source.startswith(('"""', 'r"""')), "the docstring starts on the file's first line"
    assert docstring.splitlines()[0].strip(), "its first line is a sentence"


@pytest.mark.parametrize("module", ["bitlens", "bitlens.cli"])
def test_import_is_light(module: str):
    """`import bitlens` and `bitlens --help` start without torch, and without what else takes long to load."""
    heavy = {"torch", "scipy", "matplotlib", "av", "h5py", "openvino"} | ({"numpy"} if module == "bitlens" else set())
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_modules_are_reached_from_the_package():
    code = "import bitlens; print(bitlens.operators.__name__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert run.stdout.strip() == "bitlens.operators", run.stderr


@pytest.mark.parametrize("name", bitlens.__all__)
def test_every_public_name_is_there(name: str):
    assert getattr(bitlens, name) is not None


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="'lod'; its public names are"):
        bitlens.lod  # noqa: B018
