"""`python -m tasft.export`."""

import sys

from tasft.export import main

sys.exit(main())
