"""`bitlens <verb>`: finds the verb, lets tyro read its flags, runs it, and turns every error into one line.

A verb is one frozen dataclass in a file of its name: its fields are the flags, `run()` does the work. Only
the file of the verb that was typed is imported, and numpy and torch only inside `run()`, so `--help` is
immediate.
"""

import difflib
import os
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module
from inspect import cleandoc
from io import StringIO
from typing import Any

from bitlens.cli.interrupts import Terminated, orderly_end

__all__ = ["VERBS", "main"]

VERBS = {
    "demo": "see it work: one coded picture in, a high-speed video out, from float down to 2 bits",
    "measure": "simulate the camera: a video becomes coded measurements",
    "calibrate": "the mask of a camera, from recordings of a white scene",
    "reconstruct": "turn measurements, simulated or from a camera, into a video",
    "upscale": "enlarge pictures and videos with a super-resolution network",
    "restore": "take noise and what JPEG left behind out of pictures and videos",
    "evaluate": "PSNR and SSIM of networks on a test set, as a table and JSON",
    "cameras": "PSNR of networks through many cameras: other masks, more frames, noise",
    "benchmark": "measured speed, beside every float engine on this machine",
    "costs": "milliseconds of each layer at each bit-width on this machine, to choose bits by",
    "matrix": "every network on every engine at 8, 4, 3 and 2 bits: dB, speed, what is not in integers",
    "verify": "measure again what a checkpoint claims",
    "train": "train a float network, or a low-bit one",
    "quantize": "turn a float network into a low-bit one",
    "tune": "the best low-bit network for a budget of milliseconds, megabytes or lost dB",
    "adapt": "fit a low-bit network to a new mask, from measurements alone",
    "convert": "official weights into a checkpoint",
    "export": "a network as a file for ONNX Runtime or OpenVINO, without bitlens",
    "experiment": "the experiments of Q-SCI and 2DQuant, measured beside the papers' numbers",
    "report": "results as one HTML page",
    "info": "what a checkpoint holds: bits per layer, size, operations, provenance",
    "models": "the checkpoints that come with bitlens",
}
"""Verb -> what it does. The verb `demo` is the class `Demo` in `bitlens/cli/demo.py`, and so on."""

FLAGS = (
    (r"allow_saturated=True", "--allow-saturated"),
    (r"\(mask_path\)", "(--mask)"),
    (r"crop=\(top, left, height, width\)", "--crop top,left,height,width"),
    (r"crop=\(top, left, (\d+), (\d+)\)", r"--crop top,left,\1,\2"),
    (r"\bbits=8, 4, 3 or 2", "--bits 8, 4, 3 or 2"),
    (r"\bmask_(key|axes)=", r"mask-\1="),
    (r"\b(gain|key|axes|mask-key|mask-axes|dark|flat|bayer|white)=\.\.\.", r"--\1 ..."),
    (r"\b(key|axes|mask-key|mask-axes)='(\w+)'", r"--\1 \2"),
)
"""How the library's messages name an argument -> how one types it here."""

BARE = {"--cluster": "local"}
"""Flags that may stand without a value, and the value that they have then."""

USAGE_ERROR, INTERRUPTED = 2, 130

REFUSED = (ValueError, TypeError, OSError, MemoryError)
"""What is said in one line; anything else is a fault of bitlens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; `argv` is what follows `bitlens`, None: the process's.

    0: done. 2: refused, with one line on stderr. 130: interrupted; 128 + the signal: terminated by it.
    `BITLENS_DEBUG=1` shows the traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    came: list[KeyboardInterrupt] = []
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_overview())
            return 0
        if arguments[0] in ("-V", "--version"):
            from bitlens import __version__

            print(f"bitlens {__version__}")
            return 0
        with orderly_end() as came, remarks_as_notes():
            code = _run(*arguments)
        return _end(arguments, came[0]) if came else code
    except KeyboardInterrupt as interrupt:
        return _end(arguments, interrupt)
    except BrokenPipeError:  # `bitlens models | head -1`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if came:
            return _end(arguments, came[0])
        if not isinstance(error, REFUSED) or os.environ.get("BITLENS_DEBUG") == "1":
            raise
        return _complain(arguments, in_flags(in_parts(error)), USAGE_ERROR)


@contextmanager
def remarks_as_notes() -> Iterator[None]:
    """What `files.remark` warns of is printed as `note: ...`, the same only once; other warnings stay as they are."""
    from bitlens.files import FileRemark

    said: set[str] = set()
    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", FileRemark)

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            line = " ".join(str(message).split())
            if not issubclass(category, FileRemark):
                usual(message, category, *place, **more)
            elif line not in said:
                said.add(line)
                print(f"note: {in_flags(line)}", flush=True)

        warnings.showwarning = show
        yield


def in_flags(message: str) -> str:
    """The message with arguments written as flags: `pass gain=...` -> `pass --gain ...`."""
    for pattern, flag in FLAGS:
        message = re.sub(pattern, flag, message)
    return message


def in_parts(error: Exception) -> str:
    """The message of an error; what the system says of a file, and no code of ours has explained, with what to do."""
    if isinstance(error, OSError) and error.errno is not None and str(error).startswith("[Errno"):
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"{error.strerror}{where}; wanted a place that can be read and written, with room; check the path, its "
            "permissions and the disk"
        )
    return str(error) or f"{type(error).__name__}; wanted something smaller; set BITLENS_DEBUG=1 to see where it came"


def _run(verb: str, *arguments: str) -> int:
    """Read the verb's flags and run it."""
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"unknown verb '{verb}'; {hint}wanted one of {', '.join(VERBS)}; bitlens --help explains them")
    import tyro

    kind = getattr(import_module(f"bitlens.cli.{verb}"), verb.capitalize())
    config = (tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName)
    if {"-h", "--help"} & set(arguments):
        print(_description(kind.__doc__) + "\n")  # tyro would leave the example out and join the lines
    boxed = StringIO()
    try:
        with redirect_stderr(boxed):
            command = tyro.cli(kind, prog=f"bitlens {verb}", args=with_values(arguments), description="", config=config)
    except SystemExit as leaving:  # --help, or wrong flags, which tyro explains in a box on stderr
        if leaving.code in (0, None):
            return 0
        raise ValueError(f"{unboxed(boxed.getvalue())}; bitlens {verb} --help explains the flags") from None
    return command.run() or 0


def with_values(arguments: Sequence[str]) -> list[str]:
    """The arguments, with what a flag means that may stand without a value: `--cluster` -> `--cluster local`."""
    given: list[str] = []
    for argument, after in zip(arguments, [*arguments[1:], "--"], strict=False):
        given += [argument, BARE[argument]] if argument in BARE and after.startswith("-") else [argument]
    return given


def unboxed(text: str) -> str:
    """What tyro says of wrong flags, as one line: without the frame and without the help of the flags that it names.

    Parts are divided by rules. Of a flag that is missing it says `    --model STR`, and its help deeper. Where the
    terminal has no lines to draw, there is a title, a rule, and no frame but two spaces.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    parts = re.split(r"^\W*[─-]{9,}\W*$", plain, flags=re.MULTILINE)
    said: list[str] = []
    for part in parts if "│" in plain else parts[1:]:
        lines = [line.replace("│", " ")[2:].rstrip() for line in part.splitlines() if not line.startswith(("╭", "╰"))]
        words = " ".join(" ".join(line for line in lines if len(line) - len(line.lstrip()) < 8).split())
        if words and not words.startswith(("For full helptext", "Argument helptext")):
            said.append(words.rstrip(".:"))
    return "; ".join(said) or " ".join(plain.split())


def _description(docstring: str) -> str:
    """A verb's docstring, wrapped to the terminal; the example as it is."""
    width = min(shutil.get_terminal_size().columns, 100)
    paragraphs = cleandoc(docstring).split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith("Example") else textwrap.fill(paragraph, width) for paragraph in paragraphs
    )


def _overview() -> str:
    """What `bitlens --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return (
        "usage: bitlens VERB [OPTIONS]\n\n"
        "Low-bit networks that rebuild a high-speed video from one coded picture, or enlarge or restore pictures.\n\n"
        f"verbs:\n{verbs}\n\n"
        "`bitlens VERB --help` explains a verb. `bitlens --version` prints the version.\n\n"
        "Example:\n    bitlens demo"
    )


def _end(arguments: Sequence[str], interrupt: KeyboardInterrupt) -> int:
    """Say that it was interrupted, or terminated by a signal."""
    if isinstance(interrupt, Terminated):
        return _complain(arguments, "terminated", 128 + interrupt.args[0])
    return _complain(arguments, "interrupted", INTERRUPTED)


def _complain(arguments: Sequence[str], message: str, code: int) -> int:
    """One line on stderr, whatever line breaks the message has."""
    name = f"bitlens {arguments[0]}" if arguments and arguments[0] in VERBS else "bitlens"
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    return code
