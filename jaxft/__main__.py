"""`python -m jaxft`, for where the script is not on the path."""

import sys

from jaxft.cli import main

sys.exit(main())
