"""`--push_to_hub` of the training scripts: what is checked before the training, and what is published after it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cellfluxrl.arguments import RunArguments, option_group

if TYPE_CHECKING:  # importing it takes seconds, and --help needs only the options
    from cellfluxrl.hub.mixin import HubMixin

_hub = option_group("publishing")


@dataclass
class HubArguments(RunArguments):
    """What every training script takes that publishes what it trained."""

    push_to_hub: bool = _hub(default=False, help="publish the result on the Hugging Face Hub after the training")
    hub_model_id: str | None = _hub(
        None, "the repository to publish in, owner/name; default: the name of --output_dir, of the token's owner"
    )
    private: bool = _hub(default=False, help="let only those with access read a new repository")


def hub_repository(args: HubArguments) -> str | None:
    """Where to publish, `"owner/name"` or `None`, found out before the training, so that mistakes show early."""
    if not args.push_to_hub:
        if args.hub_model_id or args.private:
            raise ValueError("--hub_model_id and --private need --push_to_hub: without it nothing is published")
        return None
    from huggingface_hub import HfApi

    from cellfluxrl.hub.download import check_repo_id
    from cellfluxrl.hub.push import check_token, readable_errors

    check_token()
    repo_id = args.hub_model_id
    if repo_id is None:
        name = Path(args.output_dir).resolve().name
        with readable_errors(name):
            repo_id = f"{HfApi().whoami()['name']}/{name}"
    check_repo_id(repo_id)
    return repo_id


def publish_run(args: HubArguments, repo_id: str, trained: type[HubMixin]) -> None:
    """Publish what a script has saved, an object of the class `trained`; if that fails, say that it is kept."""
    try:
        url = trained.push_folder(args.output_dir, repo_id, private=args.private)
    except (ValueError, OSError) as error:
        kind = ValueError if isinstance(error, ValueError) else OSError
        command = f"cellfluxrl push {args.output_dir} {repo_id}" + (" --private" if args.private else "")
        raise kind(f"{args.output_dir} is saved, but not published: {error}. `{command}` publishes it") from error
    print(f"published: {url}", file=sys.stderr)
