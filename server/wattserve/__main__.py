"""`python -m wattserve` is the `wattserve` command."""

from wattserve.cli import main

if __name__ == "__main__":
    main()
