"""Healthy when HEALTH_URL answers 200 within two seconds, or when this container stands by for another."""

import os
import sys
import urllib.request
from pathlib import Path

if Path("/tmp/standing-by").exists():
    sys.exit(0)
url = os.environ["HEALTH_URL"]
try:
    with urllib.request.urlopen(url, timeout=2) as answer:
        healthy = answer.status == 200
except OSError as error:
    print(f"{url}: {error}")
    sys.exit(1)
sys.exit(0 if healthy else 1)
