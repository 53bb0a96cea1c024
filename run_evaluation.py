"""Benchmark tables and a page: `python run_evaluation.py --config FILE [key=value ...]`."""

from egom2p.config import run_main
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import EvaluationConfig
from egom2p.jobs.progress import say
from egom2p.viewing.report import ReportConfig, write_report


def main(config: EvaluationConfig) -> None:
    evaluation = run_evaluation(config)
    say(f"page: {write_report(ReportConfig(evaluation=str(evaluation.folder)))}")


if __name__ == "__main__":
    run_main(
        EvaluationConfig,
        main,
        default_config="default/egom2p/evaluation/quickstart.yaml",
        description="Evaluate checkpoints against baselines and ceilings on held-out clips.",
    )
