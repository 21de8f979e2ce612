"""The whole chain: data, base, classifiers, rewards, post-training, evaluation, report; `--help` has examples."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import datasets
from accelerate import Accelerator

from cellfluxrl.assets import SHIPPED_BASE
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.evaluation.cells import sample_held_out
from cellfluxrl.evaluation.measuring import make_evaluators
from cellfluxrl.evaluation.report.html import Section, Table
from cellfluxrl.evaluation.report.summary import summary
from cellfluxrl.evaluation.study import SIMULATED_NOTE, Study, StudySettings, run_study, write_study
from cellfluxrl.files import write_whole
from cellfluxrl.hub.push import copy_records
from cellfluxrl.models.moa_classifier import MoAClassifier
from cellfluxrl.pipelines.cellflux import CellFluxPipeline
from cellfluxrl.rewards.suite import RewardSuite
from cellfluxrl.training import moa, pretrain, rl
from cellfluxrl.training.common import load_labelled_cells, make_accelerator
from cellfluxrl.training.options import DemoArguments, SharedArguments, parse_arguments
from cellfluxrl.training.plots import draw_all
from cellfluxrl.training.runs import find_runs

MODEL, SHUFFLED = "CellFluxRL", "shuffled rewards"
CANDIDATES = (1, 2, 4)
STAGE_FOLDERS = ("base", "classifier", "judge", "rl", "rl_shuffled", "rl_deviation", "pipeline", "evaluation")
CURVES = {
    "rewards": "Rewards of the rollouts in post-training, with their spread",
    "monitor": "How far each reward is above real cells, and diversity as a share of the base's",
    "training": "Distance to the base, norm of the gradient, rates",
}
NO_SETTING = ("overwrite", "output_dir", "cpu", "json")


T = TypeVar("T", bound=SharedArguments)


class Stages:
    """Announces each stage, and keeps how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function as the stage of this name."""
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[name] = round(time.perf_counter() - start, 1)
        return result


def stage_arguments(cls: type[T], section: str, args: DemoArguments, config: str, folder: str, *extra: str) -> T:
    """The arguments of one script: the YAML file, then what the demo was given, then `extra`."""
    shared = ["--config", config, "--seed", str(args.seed), "--output_dir", str(Path(args.output_dir) / folder)]
    if args.data_dir:
        shared += ["--data_dir", args.data_dir]
    if args.cpu:
        shared += ["--cpu"]
    return parse_arguments(cls, section, "", [*shared, *extra])


def claim_output_dir(args: DemoArguments, config: str) -> None:
    """Mark the folder as this demo's, so that an interrupted run can resume and another one is not mixed with it.

    Raises:
        FileExistsError: If the folder holds a demo with other settings.
    """
    marker = Path(args.output_dir) / "settings.json"
    settings = settings_of(args)
    settings["config"] = Path(config).read_text()
    if marker.is_file() and json.loads(marker.read_text()) != settings:
        if not args.overwrite:
            raise FileExistsError(
                f"{args.output_dir!r} holds a demo with other settings: "
                "choose another --output_dir or pass --overwrite"
            )
        for stage in STAGE_FOLDERS:
            shutil.rmtree(Path(args.output_dir) / stage, ignore_errors=True)
    write_whole(marker, lambda path: path.write_text(json.dumps(settings, indent=2)))


def settings_of(args: DemoArguments) -> dict[str, Any]:
    """What decides the results."""
    return {key: value for key, value in asdict(args).items() if key not in NO_SETTING}


def classifier_of(args: moa.MoAArguments, accelerator: Accelerator, cells: datasets.DatasetDict) -> MoAClassifier:
    """Train a classifier, or load it if this demo has trained it before."""
    if (Path(args.output_dir) / "metrics.json").is_file():
        return MoAClassifier.from_pretrained(args.output_dir).eval()
    return moa.train(args, accelerator, cells)[0].eval()


def base_of(
    args: DemoArguments, config: str, accelerator: Accelerator, cells: datasets.DatasetDict
) -> CellFluxPipeline:
    """Pretrain on the data set, or take the base that ships with the package for simulated cells."""
    if args.dataset_name == "simulated":
        return CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    resume = ("--resume_from_checkpoint", "latest")
    return pretrain.train(
        stage_arguments(pretrain.PretrainArguments, "pretrain", args, config, "base", *resume), accelerator, cells
    )


def evaluate(
    args: DemoArguments,
    models: dict[str, CellFluxPipeline],
    suite: RewardSuite,
    judge: MoAClassifier,
    cells: datasets.DatasetDict,
    num_inference_steps: int,
) -> Study:
    """What `cellfluxrl evaluate` does, of all models at once."""
    settings = StudySettings(
        num=args.eval_controls,
        best_of_n=CANDIDATES,
        single=(SHUFFLED,),
        num_inference_steps=num_inference_steps,
        seed=args.seed,
    )
    study = run_study(models, cells, make_evaluators(suite, judge), settings, Path(args.output_dir) / "evaluation")
    if args.dataset_name == "simulated":
        study.results.notes.append(SIMULATED_NOTE)
    return study


def next_steps(args: DemoArguments, num_inference_steps: int) -> dict[str, str]:
    """Commands to go on with, by what they do."""
    folder = Path(args.output_dir)
    pipeline = shlex.quote(str(folder / "pipeline"))
    again = ["cellfluxrl", "evaluate", str(folder / "pipeline"), args.dataset_name, "--judge", str(folder / "judge")]
    again += ["--num", str(args.eval_controls), "--num_inference_steps", str(num_inference_steps), "--best_of_n"]
    again += [*map(str, CANDIDATES), "--seed", str(args.seed), "--output_dir", "runs/evaluation"]
    if args.data_dir:
        again += ["--data_dir", args.data_dir]
    if args.test_plates:
        again += ["--test_plates", *args.test_plates]
    if args.dataset_name == "simulated":
        again += ["--simulated_cells_per_moa", str(args.simulated_cells_per_moa)]
    steps = {
        "Treat cells in the browser": f"cellfluxrl app --pipeline {pipeline}",
        "Treat your own controls": f"cellfluxrl generate my_controls --pipeline {pipeline} --compounds taxol "
        "--output_dir generated",
        "Evaluate the pipeline alone, with the same numbers": shlex.join(again),
    }
    if args.dataset_name == "simulated":
        steps["Real cells"] = "cellfluxrl demo --data_dir path/to/crops --output_dir runs/real"
    return steps


def report(
    args: DemoArguments, study: Study, logs: list[Path], seconds: dict[str, float], steps: dict[str, str]
) -> None:
    """Write report.html, results.json and the evaluation's tables and pictures."""
    folder = Path(args.output_dir)
    curves = [path for path in draw_all(find_runs(logs), folder / "evaluation" / "training") if path.stem in CURVES]
    sections = [
        Section("Post-training", pictures=[(CURVES[path.stem], path) for path in curves]),
        Section("What to try next", findings=[f"{what}: | {command}" for what, command in steps.items()]),
        Section(
            "How long it took",
            tables=[Table("Each stage", ["seconds"], {name: [(f"{value:g}", "")] for name, value in seconds.items()})],
        ),
    ]
    classifiers = {name: json.loads((folder / name / "metrics.json").read_text()) for name in ("classifier", "judge")}
    details = {"dataset": args.dataset_name, **settings_of(args)}
    details |= {f"held-out accuracy, {name}": round(found["accuracy"], 4) for name, found in classifiers.items()}
    title = "CellFluxRL demo: " + ("simulated cells" if args.dataset_name == "simulated" else "real BBBC021 cells")
    write_study(study, folder / "evaluation", title, details, folder / "report.html", sections)
    results = json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    text = json.dumps({**results, "classifiers": classifiers, "seconds": seconds}, indent=2)
    write_whole(folder / "results.json", lambda path: path.write_text(text))


def run(args: DemoArguments, config: str) -> None:
    """Run all stages; see [`DemoArguments`]."""
    started = time.perf_counter()
    folder, stages = Path(args.output_dir), Stages()
    accelerator = make_accelerator(args)
    cells = stages.run("data", load_labelled_cells, args)
    sample_held_out(ControlTreatedPairs(cells["test"]), args.eval_controls, args.seed)  # too few are refused now
    claim_output_dir(args, config)

    base = stages.run("base", base_of, args, config, accelerator, cells)
    own = stage_arguments(moa.MoAArguments, "moa", args, config, "classifier")
    classifier = stages.run("classifier of the rewards", classifier_of, own, accelerator, cells)
    other = stage_arguments(moa.MoAArguments, "moa", args, config, "judge", "--width", "24")
    other.seed = args.seed + 101
    judge = stages.run("independent classifier, for evaluation only", classifier_of, other, accelerator, cells)
    suite = stages.run("reward suite", RewardSuite.fit, cells["train"], classifier, seed=args.seed)

    variants = {MODEL: ("rl", []), SHUFFLED: ("rl_shuffled", ["--shuffle_rewards"])}
    if args.dataset_name != "simulated":
        variants["deviation form"] = ("rl_deviation", ["--reward_form", "deviation", "--kl_weight", "0.3"])
    trained, logs = {}, []
    for name, (subfolder, extra) in variants.items():
        resume = ["--resume_from_checkpoint", "latest"]
        options = stage_arguments(rl.RLArguments, "rl", args, config, subfolder, *extra, *resume)
        trained[name] = stages.run(name, rl.train, options, accelerator, cells, base, suite)
        logs.append(Path(options.output_dir))
        accelerator.free_memory()
    trained[MODEL].save_pretrained(folder / "pipeline")
    copy_records(folder / "rl", folder / "pipeline")

    models = {MODEL: trained[MODEL], "base": base, **trained}
    models = {name: model.to(accelerator.device) for name, model in models.items()}
    device_judge, sampling = judge.to(accelerator.device), options.num_inference_steps
    study = stages.run("evaluation", evaluate, args, models, suite, device_judge, cells, sampling)
    stages.seconds["total"] = round(time.perf_counter() - started, 1)
    steps = next_steps(args, sampling)
    report(args, study, logs, stages.seconds, steps)
    print("\n" + summary(study.results) + "\n")
    print("\n".join(f"{what}:\n  {command}" for what, command in steps.items()))
    print(
        f"\n{stages.seconds['total']:.0f} s in all; report: {folder / 'report.html'}; pipeline: {folder / 'pipeline'}"
    )
