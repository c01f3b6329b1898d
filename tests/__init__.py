"""The tests. NumPy's products run on one thread, as they do from the command line: on a busy machine small ones wait for
each other otherwise, for minutes. Said here because it is read before NumPy is imported.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
