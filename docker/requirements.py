"""Prints the requirements of the base and of the named extras of pyproject.toml, for a layer of their own."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in [
    *project["dependencies"],
    *(r for extra in sys.argv[1:] for r in project["optional-dependencies"][extra]),
]:
    print(requirement)
