"""``python scripts/report.py FOLDER``: the page of a run, or the table and the page of a sweep."""

import sys

from kldistill.report.__main__ import main

sys.exit(main())
