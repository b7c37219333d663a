"""`python -m wattload.cli` is the `wattload` command."""

from wattload.cli.app import main

if __name__ == "__main__":
    main()
