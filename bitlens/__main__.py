"""The command line as a process: `bitlens`, and `python -m bitlens`."""

import sys


def run() -> int:
    """The exit code. From here on Ctrl-C is one line; once all is said and done, it ends the process without a word."""
    try:
        import signal

        from bitlens.cli import main

        code = main()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        print("bitlens: interrupted", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(run())
