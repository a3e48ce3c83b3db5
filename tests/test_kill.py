"""An evaluation that is killed with SIGKILL at twenty random points, against one that nothing stops."""

import os
import random
import select
import signal
import time
from pathlib import Path

from glotlift import evaluate
from glotlift.evaluation import predict
from tests.warm import Warm


def _forked(model: Path, target: Path, seconds: float | None = None) -> tuple[int, float, bool]:
    """Evaluate in a fork; kill it after some seconds; return (batches it ran, seconds, whether it was killed)."""
    run = predict.run
    out, tell = os.pipe()

    def telling(*args, **options):
        for batch in run(*args, **options):
            os.write(tell, b"b")
            yield batch

    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        predict.run = telling
        evaluate(model=str(model), languages="de,th", limit=40, batch_size=2, output_path=target)
        os._exit(0)
    os.close(tell)
    killed = False
    if seconds is not None and not select.select([os.pidfd_open(child)], [], [], seconds)[0]:
        os.kill(child, signal.SIGKILL)
        killed = True
    status = os.waitpid(child, 0)[1]
    assert killed or status == 0, status
    ran = len(os.read(out, 1 << 20))
    os.close(out)
    return ran, time.monotonic() - begin, killed


def _twenty_kills(model: Path, folder: Path, seed: int) -> None:
    """Print how many batches an evaluation has, and of killed ones: kills, batches they ran, evaluations."""
    planned, whole, _ = _forked(model, folder / "whole")
    kills = ran = target = 0
    moments = random.Random(seed)
    while kills < 20:
        found, _, killed = _forked(model, folder / f"killed{target}", moments.uniform(0.02, whole / 2))
        ran += found
        kills += killed
        target += not killed  # done: the next kills hit another evaluation
    ran += _forked(model, folder / f"killed{target}")[0]
    print(planned, kills, ran, target + 1)  # noqa: T201


def _content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_twenty_kills_lose_at_most_a_batch_each_and_change_no_byte(tiny_folder, tmp_path):
    code, out, err = Warm(_twenty_kills, tiny_folder, tmp_path, 3).wait()
    assert code == 0, err
    planned, kills, ran, n_targets = map(int, out.split())
    assert planned > 20
    assert kills == 20
    lost = ran - planned * n_targets
    assert 0 <= lost <= kills
    expected = _content(tmp_path / "whole")
    assert {"scores.json", "predictions/base/sentiment/de.parquet"} < set(expected)
    for target in range(n_targets):
        assert _content(tmp_path / f"killed{target}") == expected  # no journal is left either
