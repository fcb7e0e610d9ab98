"""What type checkers see of a user's program: right code passes, and a wrong keyword does not."""

import textwrap

RIGHT = """
    import torch
    import probgen as pg

    x = pg.datasets.moons(100)
    flow: pg.models.NSF = pg.models.NSF(2, bins=8).freeze()
    history: pg.History = pg.fit(flow, x, steps=1)
    value: torch.Tensor = flow().log_prob(x)
    other: torch.Tensor = pg.models.VAE(2, latent=1)().sample((3,))
    draws: pg.mcmc.Draws = pg.mcmc.run(lambda x: -x.square().sum(-1), init=x, metric="dense")
"""
WRONG = {
    "pg.models.NSF(2, binz=8)": 'Unexpected keyword argument "binz" for "NSF"',
    "pg.mcmc.HMC(0.1, stepz=3)": 'Unexpected keyword argument "stepz" for "HMC"',
    'pg.mcmc.run(print, metric="densee")': 'Argument "metric" to "run" has incompatible type',
    "text: str = flow().log_prob(x)": 'expression has type "Tensor", variable has type "str"',
}


def test_a_users_program_has_types(tmp_path):
    from mypy import api

    program = textwrap.dedent(RIGHT).strip().splitlines()
    file = tmp_path / "program.py"
    file.write_text("\n".join([*program, *WRONG]) + "\n")
    options = ["--config-file=", "--follow-imports=silent", "--cache-dir=.mypy_cache/program"]
    found = api.run([*options, str(file)])[0].splitlines()
    errors = [line.split(".py:", 1)[1] for line in found if ": error:" in line]
    assert len(errors) == len(WRONG)
    for k, (error, message) in enumerate(zip(errors, WRONG.values())):
        assert error.startswith(f"{len(program) + k + 1}: error:")
        assert message in error
