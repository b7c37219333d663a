"""`python -m wattload` is the `wattload` command."""

from wattload.cli import main

if __name__ == "__main__":
    main()
