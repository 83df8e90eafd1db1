"""A short kill drill on MNIST."""

import re

import drill
import pytest


@pytest.mark.network
@pytest.mark.parametrize("how", [["--forked"], pytest.param([], marks=pytest.mark.slow)], ids=["forked", "started"])
def test_six_kills_lose_no_run_and_change_no_bit(how: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = drill.main(["--kills=6", "--experiments=mnist_mlp", *how])
    output = capsys.readouterr().out
    assert status == 0, output
    last = output.splitlines()[-1]
    found = re.fullmatch(r"drill: (\d+) kills \(.*\) in \d+ runs in [\d.]+ minutes: 0 lost runs, 0 differences", last)
    assert found and int(found[1]) >= 5, last
