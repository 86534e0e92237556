"""What a run or a round of recovery executes here: what it does in production, watched by a killer.

The fork server has it in place of `prefect.engine`.
"""

import os
import runpy

from tests.kills import killer

if __name__ == "__main__":
    killer.install()
    module = "flows.recovery" if killer.RECOVERY in os.environ else "prefect.engine"
    runpy.run_module(module, run_name="__main__", alter_sys=True)
