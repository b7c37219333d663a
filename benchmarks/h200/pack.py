"""Packs wattload and what the offline GPU machine lacks for it into one folder with an unpack.sh.

    python benchmarks/h200/pack.py DEST [--vllm-packer SCRIPT]

DEST/wattload holds wheels for Python 3.12 on x86-64 Linux: wattload itself, Locust and what Locust needs
that the machine's image does not have. With `--vllm-packer`, SCRIPT DEST is run first; it is expected to
pack vLLM into DEST/part1, part2, ... in the same form (see README.md). Everything unpacks into /tmp/site.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# What the image lacks. numpy, pyarrow, scipy, httpx, requests, werkzeug, jinja2, matplotlib,
# prometheus-client and nvidia-ml-py are in it; fastapi, uvicorn, pydantic and pyzmq come with vLLM.
WHEELS = (
    "locust==2.47.0",
    "configargparse==1.9.0",
    "flask==3.1.3",
    "flask-cors==6.0.5",
    "flask-login==0.6.3",
    "gevent==26.9.0",
    "greenlet==3.5.6",
    "geventhttpclient==2.6.1",
    "brotli==1.2.1",
    "python-engineio==4.15.1",
    "python-socketio==5.18.1",
    "simple-websocket==1.1.0",
    "wsproto==1.3.2",
    "bidict==0.24.1",
    "blinker==1.9.0",
    "itsdangerous==2.2.0",
    "zope.event==6.2",
    "zope.interface==8.7",
    "h11==0.16.0",
)
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (39, 36, 35, 34, 31, 28, 27, 26, 24, 17)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
    "any",
)
UNPACK = """set -e
cd "$(dirname "$0")"
mkdir -p /tmp/site
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site *.whl
"""


def pack(destination: Path) -> Path:
    """Fills destination/wattload and returns it. Raises CalledProcessError where pip fails."""
    folder = destination / "wattload"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    subprocess.run([*pip, "download", "-q", *target, *platforms, "-d", str(folder), *WHEELS], check=True)
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", str(folder), str(REPOSITORY)], check=True)
    (folder / "unpack.sh").write_text(UNPACK)
    return folder


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("destination", type=Path)
    parser.add_argument("--vllm-packer", type=Path)
    options = parser.parse_args(arguments)
    if options.vllm_packer is not None:
        subprocess.run([sys.executable, str(options.vllm_packer), str(options.destination)], check=True)
    pack(options.destination)
    for part in sorted(options.destination.iterdir()):
        if part.is_dir():
            print(f"{part}: {sum(file.stat().st_size for file in part.iterdir()) / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
