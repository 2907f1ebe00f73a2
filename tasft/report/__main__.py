"""`python -m tasft.report`."""

import sys

from tasft.report import main

sys.exit(main())
