"""``python -m annbatch`` is the ``annbatch`` command."""

import sys

from .cli import main

sys.exit(main())
