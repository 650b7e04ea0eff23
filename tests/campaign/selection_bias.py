"""Coverage and bias of the corrected headline of a winner: the long form of test_selection_bias.

`python -m tests.campaign.selection_bias [--sets 600]` prints one line for each design.
"""

import argparse

from orchestrator.evaluation.selection_bias import best_alone, robust
from tests.orchestrator.evaluation.test_selection_bias import coverage


def main() -> None:
    """Print one line per number of candidates and rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=600)
    n_sets = parser.parse_args().sets
    for n_candidates in (1, 5, 40):
        for rule in (best_alone, robust):
            inside, naive, honest, error = coverage(n_candidates, n_sets, rule)
            luck = (inside * (1 - inside) / n_sets) ** 0.5
            print(
                f"winner of {n_candidates} by {rule.__name__}: 90 % interval covers {inside:.3f} "
                f"(se {luck:.3f}), naive bias {naive:+.4f}, corrected {honest:+.4f} (se {error:.4f})"
                f", {n_sets} sets",
                flush=True,
            )


if __name__ == "__main__":
    main()
