"""`python -m tasft.search`."""

import sys

from tasft.search import main

sys.exit(main())
