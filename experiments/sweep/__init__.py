"""``fedml sweep``: a study with several values of some keys and several seeds, the best chosen by validation persons alone.

    values.py    what is varied: --grid KEY=A,B or KEY=LOW..HIGH, the combinations of a grid, and random draws
    tpe.py       --optuna: each combination follows from the results before it
    plan.py      the studies of a combination; checks of studies, data and privacy budgets before anything starts
    folder.py    sweep.json: what was run, so that a repeated command goes on
    run.py       the runs, one after the other in this process
    result.py    means over seeds with intervals, the choice, the table
    commands.py  the command

A *try* is one combination of values, with a run for each seed.
"""
