"""When an attack has nothing left to gain."""

from attacks.progress import Progress

PATIENCE = 30


def test_a_loss_that_stands_still_ends_the_run_and_one_that_falls_does_not():
    still = Progress(PATIENCE)
    assert [still.ended(1.0) for _ in range(PATIENCE + 5)].index(True) == PATIENCE - 1
    assert still.stalled
    falling = Progress(PATIENCE)
    assert not any(falling.ended(1.0 - 0.01 * step) for step in range(3 * PATIENCE))


def test_it_waits_four_times_as_long_while_the_divergence_is_not_used_up():
    unused = Progress(PATIENCE)
    assert [unused.ended(1.0, 0.1) for _ in range(5 * PATIENCE)].index(True) == 4 * PATIENCE - 1


def test_steps_with_too_large_a_divergence_are_neither_progress_nor_waiting():
    progress = Progress(PATIENCE)
    assert not any(progress.ended(1.0 - 0.01 * step, 3.0) for step in range(5 * PATIENCE))
    assert not progress.gained
    assert progress.best == 1.0
    assert [progress.ended(1.0) for _ in range(5 * PATIENCE)].count(True) == 1


def test_a_loss_with_nothing_left_to_gain_ends_the_run_at_once():
    assert Progress(PATIENCE, least=0.0).ended(0.001)
    assert not Progress(PATIENCE, least=-1.0).ended(0.001)
    assert not Progress(PATIENCE, least=0.0).ended(0.001, 1.2)  # bought by too large a divergence


def test_what_had_been_gained_can_be_lost():
    progress = Progress(PATIENCE)
    for loss in (1.0, *[0.0] * 60):
        progress.ended(loss)
    best = progress.mean
    assert not progress.lost(best)
    for _ in range(60):
        progress.ended(0.5)
    assert progress.lost(best)
