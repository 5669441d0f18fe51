"""Every verb explains itself with an example, at once: `--help` loads neither torch nor numpy."""

import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import bitlens
from bitlens.cli import VERBS, in_flags, main
from bitlens.cli.models import Models
from bitlens.files import FileRemark, remark

REPOSITORY = Path(bitlens.__file__).resolve().parents[1]
BUILT = [verb for verb in VERBS if find_spec(f"bitlens.cli.{verb}") is not None]


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert all(re.search(rf"^  {verb} +\S", shown, re.MULTILINE) for verb in VERBS)
        assert "Example:\n    bitlens demo" in shown


@pytest.mark.parametrize("verb", BUILT)
def test_help_has_an_example_and_explains_every_flag(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^Example:\n    bitlens {verb}", shown, re.MULTILINE), shown
    assert all(len(line) <= 120 for line in shown.splitlines())
    assert not re.search(r"--\w[\w-]* [A-Z|{}a-z]* +\((required|default)", shown), "a flag without help"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([verb, "--help"] for verb in BUILT)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    heavy = {"torch", "numpy", "scipy", "PIL", "av", "h5py", "matplotlib"}
    code = (
        "import sys; from bitlens.cli import main; code = main(sys.argv[1:]); "
        f"print(*sorted({heavy!r} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert (run.returncode, run.stderr.split()) == (0, [])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bitlens {bitlens.__version__}\n"


def test_messages_name_flags() -> None:
    assert in_flags("pass gain=... or crop=(top, left, 8, 16)") == "pass --gain ... or --crop top,left,8,16"
    assert in_flags("choose with key='meas'") == "choose with --key meas"


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLENS_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown verb"):
        main(["evalute"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reconstruct", "x", "--model", "m", "--out", "a.gif", "--engine", "foo"], "invalid choice 'foo'"),
        (["reconstruct", "x", "--model", "m", "--out", "a.gif", "--engine", "foo"], "'torch', 'reference')"),
        (["reconstruct", "x", "--modle", "m", "--out", "a.gif"], "Perhaps you meant: --model STR;"),
        (["reconstruct"], "--out STR;"),
        (["benchmark", "m", "--size", "large"], "literal for int() with base 10: 'large';"),
    ],
)
def test_wrong_flags_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and said in shown.err
    assert shown.err.startswith(f"bitlens {arguments[0]}: ")
    assert shown.err.endswith(f"; bitlens {arguments[0]} --help explains the flags\n")


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: Models) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Models, "run", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "bitlens models: interrupted\n"


ENDED = """
import os, signal, sys, time
from pathlib import Path
from bitlens.cli import main
from bitlens.cli.models import Models
from bitlens.files import atomic_path

number, folder = int(sys.argv[1]), Path(sys.argv[2])

def ended(_):
    with atomic_path(folder / "deep" / "out.txt") as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), number)
        time.sleep(10)

Models.run = ended
before = signal.getsignal(number)
code = main(["models"])
print(code, list(folder.iterdir()), signal.getsignal(number) == before)
"""


ELSEWHERE = {
    "an import that makes another error of it": """
class Module:
    def find_spec(name, path=None, target=None):
        if name == "compiled":
            try:
                os.kill(os.getpid(), number)
                time.sleep(0.1)
            except KeyboardInterrupt:
                raise ImportError("numpy.core.multiarray failed to import") from None
sys.meta_path.insert(0, Module)

def ended(_):
    try:
        import compiled
    except ImportError:
        pass
""",
    "an import that does without": """
Path("optional.py").write_text("import os, time; os.kill(os.getpid(), %d); time.sleep(0.1)" % number)
sys.path.insert(0, "")

def ended(_):
    try:
        import optional
    except BaseException:
        pass
""",
    "a destructor": """
class Held:
    def __del__(self):
        os.kill(os.getpid(), number)
        time.sleep(0.1)

def ended(_):
    held = Held()
    del held
""",
    "compiled code that makes another error of it": """
def ended(_):
    came = False
    try:
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    except KeyboardInterrupt:
        came = True
    if came:
        raise TypeError("could not determine the shape of object type 'torch.storage.UntypedStorage'")
""",
    "code that goes on": """
def ended(_):
    try:
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    except BaseException:
        pass
""",
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent as elsewhere")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ELSEWHERE)
def test_interrupts_are_heard_wherever_they_come(where: str, number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
from pathlib import Path
from bitlens.cli import main
from bitlens.cli.models import Models
number = {int(number)}
{ELSEWHERE[where]}
def run(self):
    ended(self)
    for _ in range(20):
        time.sleep(0.05)

Models.run = run
print(main(["models"]), signal.getsignal(signal.SIGALRM) == signal.SIG_DFL)
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    said = "interrupted" if number == signal.SIGINT else "terminated"
    assert (run.stdout, run.stderr) == (f"{128 + number} True\n", f"bitlens models: {said}\n")


def test_an_interrupt_before_the_verb_is_known(tmp_path: Path) -> None:
    """While Python reads the command line's own modules; and after all is done, the process ends without a word."""
    (tmp_path / "difflib.py").write_text("raise KeyboardInterrupt")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-m", "bitlens", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "bitlens: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_systems_wish_to_end_is_heard(number: signal.Signals, tmp_path: Path) -> None:
    """A half-written output is removed; afterwards the signal means what it meant.

    In a process of its own: pytest's faulthandler gives signals of this one a stack that other libraries have spoiled.
    """
    command = [sys.executable, "-c", ENDED, str(int(number)), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout == f"{128 + number} [] True\n"
    assert run.stderr == "bitlens models: terminated\n"


def test_remarks_are_notes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def remarks(_: Models) -> None:
        for what in ("gain=...", "gain=...", "another"):
            remark(f"odd; pass {what}")

    monkeypatch.setattr(Models, "run", remarks)
    assert main(["models"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "note: odd; pass --gain ...\nnote: odd; pass another\n" and shown.err == ""
    with pytest.warns(FileRemark, match="odd; pass another"):
        remark("odd; pass another")
