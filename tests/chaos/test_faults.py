"""Every fault, at a random moment: the pipeline comes to the end of an undisturbed one."""

import time
from pathlib import Path
from random import Random

import pytest
from chaos.clock import missing_compiler
from chaos.faults import FAULTS, Fault, put_right
from chaos.prepared import Prepared
from chaos.stack import Stack
from chaos.table import OUTCOMES, Outcome

pytestmark = pytest.mark.integration

_LONG = (pytest.mark.slow, pytest.mark.chaos)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, id=each.slug, marks=() if each.is_short else _LONG) for each in FAULTS],
)
def test_the_end_is_that_of_an_undisturbed_run(
    fault: Fault, stack: Stack, prepared: Prepared, chaos_seed: int, tmp_path: Path
) -> None:
    if fault.needs_compiler and missing_compiler:
        pytest.skip(missing_compiler)
    stack.heal()
    undisturbed = prepared.end(stack, fault.num_ranks, tmp_path / "undisturbed")
    with prepared.scene(stack, fault, tmp_path / "work") as scene:
        if not fault.starts_itself:
            scene.start()
        moment = fault.strike(scene, Random(f"{chaos_seed} {fault.slug}"))
        struck_at = time.monotonic()
        put_right(scene, fault)
        seconds = time.monotonic() - struck_at
        assert scene.end() == undisturbed
        assert scene.attempts() == fault.attempts
        for stage, steps in scene.repeated_steps().items():
            assert fault.attempts.get(stage, 1) > 1, f"{stage} took {steps} steps twice"
            assert steps <= fault.most_repeated
        if scene.expect_in_log is not None:
            log, words = scene.expect_in_log
            assert words in log.read_text(encoding="utf-8")
        assert scene.left_behind() == {}
    Outcome.of(fault, moment, chaos_seed, seconds).write(OUTCOMES)
