"""`python -m tasft.inspect`."""

import sys

from tasft.inspect import main

sys.exit(main())
