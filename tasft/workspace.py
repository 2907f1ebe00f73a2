"""A W&B workspace that compares runs: `python -m tasft.workspace outputs`. Imports no torch.

Runs are grouped by model, loss, toxic count and weight, so that seeds are averaged. Its panels go by the names that
tasft/track.py logs under, not by what the runs hold.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tasft.errors import UserError, first_line
from tasft.result.rows import write_atomically

GROUPED_BY = ("model", "loss", "toxic", "weight")  # of the config's `cell`
LINES = {  # section -> panel -> keys over steps
    "Harm and over-refusal": {
        "harmful answers to toxic prompts": ["eval/harm"],
        "refused answers to seemingly toxic prompts": ["eval/over_refusal"],
        "helpful answers to safe prompts": ["eval/helpful"],
    },
    "Loss terms": {
        "safe loss": ["train/safe_loss"],
        "toxic loss": ["train/toxic_loss"],
        "loss": ["train/loss"],
        "gradient norm": ["train/grad_norm"],
    },
    "λ": {"λ": ["train/weight"], "fall of toxic answers (nats)": ["train/toxic_fall"]},
    "Speed and memory": {"tokens/s": ["train/tokens_per_second"], "GPU memory (MiB)": ["train/peak_memory_mib"]},
}


def workspace(entity: str, project: str, name: str) -> Any:
    """The workspace, as wandb-workspaces has it; UserError where that is not installed."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise UserError("a workspace needs wandb-workspaces: pip install 'tasft[workspaces]'") from None
    harm, over_refusal = panels.SummaryMetric("final/harm"), panels.SummaryMetric("final/over_refusal")
    mean: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    final = [
        panels.BarPlot(title="harmful answers to toxic prompts", metrics=["final/harm"], **mean),
        panels.BarPlot(title="refused answers to seemingly toxic prompts", metrics=["final/over_refusal"], **mean),
        panels.BarPlot(title="helpful answers to safe prompts", metrics=["final/helpful"], **mean),
        panels.ScatterPlot(title="harm against over-refusal", x=over_refusal, y=harm),
        panels.ScatterPlot(title="harm against toxic count", x=panels.Config("cell.toxic"), y=harm),
    ]
    sections = [workspaces.Section(name="At the end", panels=final, is_open=True)]
    for section, of_section in LINES.items():
        lines = [panels.LinePlot(title=title, x="step", y=keys, **mean) for title, keys in of_section.items()]
        sections.append(workspaces.Section(name=section, panels=lines, is_open=True))
    by_benchmark = [
        panels.LinePlot(title=f"{outcome}, by benchmark", x="step", metric_regex=f"eval/.*/joint/{outcome}$", **mean)
        for outcome in ("harmful", "refusal", "helpful", "incoherent")
    ]
    sections.append(workspaces.Section(name="Joint outcomes by benchmark", panels=by_benchmark))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters="JobType in ['train', 'evaluate']",  # not the stages, which have no curves
            groupby=[workspaces.Config(f"cell.{key}") for key in GROUPED_BY],
        ),
    )


def place(where: str) -> tuple[str, str]:
    """Entity ("" for the account's own) and project of `where`: a folder of runs, or [entity/]project."""
    folder = Path(where)
    if not folder.is_dir():
        entity, _, project = where.rpartition("/")
        if not project or "/" in entity:
            raise UserError(f"{where} is neither a folder nor a W&B project: give outputs, or entity/project")
        return entity, project
    runs = [json.loads(file.read_text()).get("run") for file in sorted(folder.glob("**/wandb.json"))]
    places = sorted({(run["entity"] or "", run["project"]) for run in runs if run is not None})
    if len(places) > 1:  # one that was offline does not know its entity
        places = [
            each for each in places if each[0] or not any(entity for entity, project in places if project == each[1])
        ]
    if not places:
        raise UserError(f"no run under {where} has been logged to W&B: run with logger=wandb, or name the project")
    if len(places) > 1:
        listed = ", ".join("/".join(part for part in each if part) for each in places)
        raise UserError(f"the runs under {where} lie in several projects: name one of {listed}")
    return places[0]


def serialised(made: Any) -> str:
    """What would be sent to W&B, as JSON. The package has no public way to it."""
    return str(made._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1))


def save(entity: str, project: str, name: str) -> str:
    """Save a new workspace to W&B; its address. UserError where nobody is logged in, or W&B does not take it."""
    import wandb

    try:
        if not wandb.login(prompt=False):
            raise UserError("saving a workspace needs an account: run wandb login first, or use --json FILE")
        made = workspace(entity or wandb.Api().default_entity, project, name)
        made.save()
        return str(made.url)
    except UserError:
        raise
    except Exception as error:  # the package's, requests', W&B's own
        raise UserError(f"W&B has not saved the workspace: {first_line(error)}") from error


def main(argv: list[str] | None = None) -> int:
    """Save the workspace to W&B, or write it to a file; the exit code. Mistakes end in one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m tasft.workspace", description="A W&B workspace that compares the runs of a project."
    )
    parser.add_argument("where", help="folder that holds runs logged to W&B, or [entity/]project")
    parser.add_argument("--name", default="tasft", help="of the workspace (default: tasft)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write it to FILE instead of saving it to W&B")
    given = parser.parse_args(argv)
    try:
        entity, project = place(given.where)
        if given.json is not None:
            text = serialised(workspace(entity, project, given.name))
            write_atomically(given.json, text + "\n")
            said = str(given.json)
        else:
            said = save(entity, project, given.name)
    except UserError as error:
        sys.stderr.write(f"tasft: {error}\n")
        return 1
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
