"""`python -m wattserve.vllm MODEL ...` is `wattserve vllm MODEL ...`."""

import sys

from wattserve.vllm.launcher import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
