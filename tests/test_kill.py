"""An evaluation that is killed with SIGKILL at twenty random points, against one that nothing stops."""

import subprocess
import sys
from pathlib import Path

# One process imports everything once and forks the ones that are killed. Each tells through a pipe which batches ran.
SCRIPT = """
import os, random, select, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from glotlift import evaluate
from glotlift.evaluation import predict
import glotlift.evaluation.scores, glotlift.evaluation.samples, glotlift.models.load, glotlift.models.server

model, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
run = predict.run
tell = None

def telling(*args, **options):
    for batch in run(*args, **options):
        os.write(tell, b"b")
        yield batch

predict.run = telling

def once(target, seconds=None):
    '''Evaluate in a fork; kill it after some seconds; return (batches it ran, seconds, whether it was killed).'''
    global tell
    out, tell = os.pipe()
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        evaluate(model=model, languages="de,th", limit=40, batch_size=2, output_path=target)
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

planned, whole, _ = once(folder / "whole")
kills = ran = 0
random = random.Random(seed)
target = 0
while kills < 20:
    found, _, killed = once(folder / f"killed{target}", random.uniform(0.02, whole / 2))
    ran += found
    kills += killed
    target += not killed  # done: the next kills hit another evaluation
ran += once(folder / f"killed{target}")[0]
print(planned, kills, ran, target + 1)
"""


def _content(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_twenty_kills_lose_at_most_a_batch_each_and_change_no_byte(tiny_folder, tmp_path):
    arguments = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tiny_folder), str(tmp_path), "3"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    planned, kills, ran, n_targets = map(int, done.stdout.split())
    assert planned > 20
    assert kills == 20
    lost = ran - planned * n_targets
    assert 0 <= lost <= kills
    expected = _content(tmp_path / "whole")
    assert {"scores.json", "predictions/base/sentiment/de.parquet"} < set(expected)
    for target in range(n_targets):
        assert _content(tmp_path / f"killed{target}") == expected  # no journal is left either
