"""When the demo began: imported first, as the other imports take most of its seconds."""

import time

STARTED = time.perf_counter()
