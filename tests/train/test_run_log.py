"""The history of a run: what is damaged is skipped, and named."""

import json
import logging

from hos_jax.training.logs import HISTORY_FILE, RunLog, read_history


def test_damaged_lines_are_skipped_and_the_others_kept(tmp_path, caplog):
    good = [{"step": step, "group": "train", "loss": 1.0} for step in (1, 2, 3)]
    damage = [b"\x9d\x05\xda\xa1", b"3", b'[{"step": "x"}]', b'{"step": "x"}', b'{"step": 4, "gr']
    lines = [json.dumps(row).encode() for row in good]
    (tmp_path / HISTORY_FILE).write_bytes(b"\n".join([lines[0], *damage, *lines[1:]]))
    with caplog.at_level(logging.WARNING):
        assert read_history(tmp_path) == good
    assert caplog.text.count("skipped an unreadable line") == len(damage)
    log = RunLog(tmp_path, first_step=2)
    log.scalars(3, {"loss": 0.5}, "train")
    log.close()
    assert [(row["step"], row["loss"]) for row in read_history(tmp_path)] == [
        (1, 1),
        (2, 1),
        (3, 0.5),
    ]
