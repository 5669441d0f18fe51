"""`bitlens experiment`: one of the papers' experiments, measured on our own networks beside the paper's numbers."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitlens.data.clips import ClipSampler
    from bitlens.experiments import Variant
    from bitlens.training.settings import Training

CALIBRATION_BATCHES = 4


@dataclass(frozen=True)
class Experiment:
    """Quantize, train and evaluate the networks that an experiment of Q-SCI or 2DQuant compares, each in the same way.

    qsci-table: 8, 4, 3 and 2 bits. qsci-modules: one module at 4 bits. qsci-ablation: its additions one after the
    other. qsci-shift: the drift of query and key. qsci-baselines: what it is compared with, at 4 bits. sr-table:
    2DQuant and what that is compared with, on super-resolution networks at 4, 3 and 2 bits. The same command goes on
    where the last one stopped; a network that is finished, by whichever experiment, is not trained again. The paper's
    numbers are of EfficientSCI-S after days on GPUs, or of SwinIR-light.

    Example:
        bitlens experiment qsci-ablation --clips clips --run runs/ablation --budget minutes --json ablation.json
        bitlens experiment sr-table --calibration photographs --start ngswin-x2.safetensors --run runs/ngswin
    """

    name: tyro.conf.Positional[
        Literal["qsci-table", "qsci-modules", "qsci-ablation", "qsci-shift", "qsci-baselines", "sr-table"]
    ]
    """The experiment."""
    run_folder: Path
    """Folder of experiments: a run, a checkpoint and a result for each network."""
    clips: Path | None = None
    """Folder of training videos, as for bitlens train."""
    calibration: Path | None = None
    """Folder of photographs for sr-table, as for bitlens quantize."""
    start: str = "efficientsci-t"
    """The float network: a shipped name or the path of a checkpoint."""
    budget: Literal["minutes", "hours", "gpu"] = "minutes"
    """How long each variant trains: 120 steps, 1,500 steps, or 40,000 larger ones; in sr-table 120 steps of
    refinement, or at most 18 or 240 minutes."""
    data: str | None = None
    """What they are evaluated on, as for bitlens evaluate. Default: six-scenes; for sr-table set5,set14,urban10."""
    methods: str | None = None
    """Of sr-table: some of its rows, as method or method-grid, comma-separated: dobi,2dquant-official. Default: all."""
    bits: str | None = None
    """Of sr-table: some of its bits, comma-separated: 4,3. Default: all."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""
    seed: int = 0
    """Decides crops, masks and augmentation."""
    json: Path | None = None
    """Also write the table to this file."""
    page: Path | None = None
    """Also write a page for the browser to this file (.html), as `bitlens report` does."""

    def run(self) -> int:
        from bitlens import checkpoint
        from bitlens.cli.shared import PAGES, check_seed, output_file
        from bitlens.data.clips import ClipSampler, load_clips
        from bitlens.experiments import BUDGETS, EXPERIMENTS
        from bitlens.inference.evaluation import evaluate
        from bitlens.inference.machine import keep_freed_memory
        from bitlens.report.page import write_page

        check_seed(self.seed)
        keep_freed_memory()
        if self.name == "sr-table":
            from bitlens.cli.srtable import run_table

            return run_table(self)
        if self.clips is None:
            raise ValueError(f"{self.name} trains on videos; wanted a folder of them; use --clips FOLDER")
        data = self.data or "six-scenes"
        if checkpoint.describe(self.start).recipe is not None:
            raise ValueError(f"--start {self.start} is a low-bit network; wanted a float one; give its float network")
        experiment, budget = EXPERIMENTS[self.name], BUDGETS[self.budget]
        with output_file(self.json) as json_path, output_file(self.page, *PAGES) as page_path:
            split = "train" if (self.clips / "manifest.json").is_file() else None
            clips = load_clips(self.clips, split)
            sampler = ClipSampler(clips, crop=budget.crop, batch=budget.batch, seed=self.seed)
            reference = asdict(evaluate(self.start, data)[0].average)
            rows = []
            for variant in experiment.variants:
                result = self.measured(variant, sampler, experiment.drift)
                if result is None:
                    print(f"stopped in the variant {variant.name!r}; the same command goes on")
                    return 130
                drop = result["psnr"] - reference["psnr"]
                rows.append({"variant": variant.name, **result, "against_float": drop, "paper": variant.paper})
            content = {
                "experiment": self.name,
                "start": self.start,
                "data": data,
                "budget": asdict(budget),
                "float": reference,
                "rows": rows,
            }
            if json_path is not None:
                json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            if page_path is not None:
                write_page(page_path, experiment.title, [(self.name, content)])
        show(experiment.title, content)
        return 0

    def settings(self) -> "Training":
        """The loop's settings, the same for every variant but for what its method prescribes."""
        from bitlens.experiments import BUDGETS
        from bitlens.training.settings import Training

        steps = BUDGETS[self.budget].steps
        return Training(
            steps=steps,
            learning_rate=5e-4,
            scale_learning_rate=1e-4,
            warmup=max(1, steps // 20),
            hold=0.25,
            ema=0.99 if steps > 500 else 0.9,
            loss="sample-rmse",
            distill_output=1.0,
            seed=self.seed,
        )

    def measured(self, variant: "Variant", sampler: "ClipSampler", drift: bool) -> dict[str, Any] | None:
        """A variant's scores: read if it is finished, else trained and evaluated; None where it was stopped."""
        from bitlens import checkpoint
        from bitlens.cli.shared import output_file
        from bitlens.cli.train import train_in_sight
        from bitlens.data.clips import measurements
        from bitlens.inference.evaluation import evaluate

        settings = replace(self.settings(), **variant.settings)
        run = self.run_folder / variant.network
        result_path, weights = run.with_suffix(".json"), run.with_suffix(".safetensors")
        identity = {
            "network": variant.network,
            "start": self.start,
            "data": self.data or "six-scenes",
            "settings": asdict(settings) if variant.trained else None,
            "sampler": sampler.identity(),
        }
        batches = measurements(sampler, CALIBRATION_BATCHES)
        if result_path.is_file():
            found = json.loads(result_path.read_text())
            if found["identity"] != json.loads(json.dumps(identity)):
                raise ValueError(f"{result_path} was measured with other settings; wanted these; change --run-folder")
            result = found["result"]
        else:
            start = checkpoint.load(self.start).requires_grad_(True)
            network = variant.build(start, batches)
            if variant.trained:
                trained = train_in_sight(
                    network, sampler, settings, run, teacher=start, device=self.device, label=variant.name
                )
                if trained.reason != "finished":
                    return None
            self.run_folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save(network.cpu().eval(), weights, provenance=identity)
            result = asdict(evaluate(weights, identity["data"])[0].average)
            with output_file(result_path) as path:
                assert path is not None
                path.write_text(json.dumps({"identity": identity, "result": result}, indent=1) + "\n")
        return result | (self.drift(checkpoint.load(weights), batches) if drift else {})

    def drift(self, network: "nn.Module", batches: "list[tuple[Tensor, Tensor]]") -> dict[str, float]:
        """How far the network's queries and keys have moved from the float network's."""
        from bitlens import checkpoint
        from bitlens.experiments import mean_drift

        return mean_drift(network, checkpoint.load(self.start), batches)


def show(title: str, content: dict[str, Any]) -> None:
    """The experiment as a table, beside the paper's numbers."""
    from bitlens.report import console, table

    columns = ["variant", "PSNR (dB)", "SSIM", "dB against float", "in the paper"]
    drifts = ["query_max", "query_mean", "key_max", "key_mean"] if "query_max" in content["rows"][0] else []
    rows = [
        ("float", f"{content['float']['psnr']:.2f}", f"{content['float']['ssim']:.4f}", "", "", *("" for _ in drifts))
    ]
    for row in content["rows"]:
        paper = "" if row["paper"] is None else f"{row['paper']:+.2f}"
        numbers = f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['against_float']:+.2f}", paper
        rows.append((row["variant"], *numbers, *(f"{row[key]:.3f}" for key in drifts)))
    out = console()
    out.print(table(title, (*columns, *(key.replace("_", " ") + " drift" for key in drifts)), rows))
    budget = content["budget"]
    out.print(
        f"{content['start']} on {content['data']}; {budget['steps']:,} steps of {budget['batch']} samples of "
        f"{budget['crop']} x {budget['crop']} each. The paper's network is EfficientSCI-S, trained for days."
    )
