"""`python -m wattserve.vllm MODEL ...` is `wattserve vllm MODEL ...`."""

import sys

from wattmeter.standard_streams import open_standard_streams
from wattserve.vllm.launcher import main

if __name__ == "__main__":
    open_standard_streams()
    sys.exit(main(sys.argv[1:]))
