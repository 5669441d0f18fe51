"""`python -m bitlens` is the command line."""

import sys

from bitlens.cli import main

sys.exit(main())
