"""A short kill drill on MNIST."""

import os
import re
import subprocess
import sys

import pytest
from conftest import TESTS


@pytest.mark.network
def test_six_kills_lose_no_run_and_change_no_bit() -> None:
    command = [sys.executable, str(TESTS / "drill.py"), "--kills=6", "--experiments=mnist_mlp"]
    outcome = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=400)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    last = outcome.stdout.splitlines()[-1]
    found = re.fullmatch(r"drill: (\d+) kills \(.*\) in \d+ runs in [\d.]+ minutes: 0 lost runs, 0 differences", last)
    assert found and int(found[1]) >= 5, last
