"""When the command line began to import: before anything that takes a while."""

import time

STARTED = time.perf_counter()
