"""What pipelines, classifiers and reward suites share: loading from the Hugging Face Hub, and publishing with a card.

Each mixin stands before the class of diffusers that saves and loads the weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from cellfluxrl.files import write_whole
from cellfluxrl.hub.cards import CARD_NAME
from cellfluxrl.hub.download import (
    PIPELINE_INDEX,
    WEIGHTS,
    check_name,
    check_pipeline_folder,
    check_repo_id,
    components_of,
    download_pipeline,
    readable_download_errors,
)
from cellfluxrl.hub.push import (
    LOG_NAME,
    METRICS_NAME,
    component_files,
    copy_records,
    find_picture,
    present,
    push_files,
    without_paths,
)
from cellfluxrl.hub.remote_code import shims_of, with_modules, write_shims

if TYPE_CHECKING:
    from typing_extensions import Self


class HubMixin:
    """Publishes what is saved into a folder, with a card, in one commit."""

    hub_kind: ClassVar[str]  # what messages call it, such as "classifier"
    hub_message: ClassVar[str]  # of the commit
    hub_replaces: ClassVar[tuple[str, ...]]  # files of an earlier version that a new one removes, as patterns
    # Writes the card of a folder, for a repository and a licence, unless the folder always has one.
    card_of: ClassVar[Callable[[Path, str, str | None], str] | None] = None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Publish on the Hugging Face Hub, with a card, in one commit; repeat it after an interruption.

        What the card says of training and evaluation is in the folder that this was loaded from, and is left out if
        the weights are others by now.

        Args:
            repo_id: `"owner/name"`; the repository is created where there is none.
            private: Whether only its owner may read a new repository.
            token: An access token with the right to write; by default the one of `hf auth login`.
            commit_message: One line.
            license: A licence identifier of the Hub, where the training data do not say it.

        Returns:
            The repository's address.

        Raises:
            ValueError: If the name is malformed, the Hub refuses the card or the files, the card has placeholders, or
                the repository is public and `private` was asked for.
            PermissionError: If there is no token, or it may not write there.
            ConnectionError: If the Hub cannot be reached or fails.

        Example:
            >>> pipe.push_to_hub("my-lab/my-cells", private=True)                          # doctest: +SKIP
        """
        check_repo_id(repo_id)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            copy_records(self.config.get("_name_or_path"), folder)
            how = {"private": private, "token": token, "commit_message": commit_message, "license": license}
            return self.push_folder(folder, repo_id, **how)

    @classmethod
    def push_folder(
        cls,
        folder: str | Path,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Publish what was saved into a folder, in one commit.

        Weights are sent as they are, all variants of them, with what is recorded of the training; checkpoints and
        everything else in the folder are not. A `README.md` in the folder is the card; without one it is written.

        Args:
            folder: As `save_pretrained` wrote it.
            repo_id, private, token, commit_message, license: As in [`push_to_hub`].

        Returns:
            The repository's address.

        Raises:
            ValueError, PermissionError, ConnectionError: As in [`push_to_hub`]; or if a file is missing.

        Example:
            >>> CellFluxRLPipeline.push_folder("runs/rl", "my-lab/my-cells")               # doctest: +SKIP
        """
        check_repo_id(repo_id)
        folder = Path(folder)
        names, texts = cls._published_files(folder)
        if cls.card_of and not (folder / CARD_NAME).is_file():
            texts[CARD_NAME] = cls.card_of(folder, repo_id, license)
        elif license is not None:
            raise ValueError(f"license={license!r}: {folder / CARD_NAME} is the card, write the licence there")
        else:
            names.append(CARD_NAME)
        for name in names:
            if name.endswith("config.json"):
                texts[name] = without_paths((folder / name).read_text(encoding="utf-8"))
        message = commit_message or cls.hub_message
        how = {"private": private, "token": token, "replaces": cls.hub_replaces, "texts": texts}
        return push_files(folder, names, repo_id, "model", message, **how)

    @classmethod
    def _published_files(cls, folder: Path) -> tuple[list[str], dict[str, str]]:
        """The names of files to send, and files that are not in the folder."""
        return [*component_files(folder), *present(folder, LOG_NAME, METRICS_NAME)], {}


class HubModelMixin(HubMixin):
    """For a `diffusers.ModelMixin`, which saves a configuration and weights."""

    hub_replaces = (f"{WEIGHTS}*.safetensors*", LOG_NAME, METRICS_NAME)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load from a folder or from the Hugging Face Hub; safetensors only.

        Args:
            pretrained_model_name_or_path: A folder, or `"owner/name"` on the Hub; with `subfolder="rewards"` the
                suite of a pipeline.
            **kwargs: `revision`, `cache_dir`, `token` and the others of `diffusers.ModelMixin.from_pretrained`.

        Raises:
            FileNotFoundError, PermissionError, ConnectionError, ValueError: As [`readable_download_errors`] says.
        """
        kwargs.setdefault("use_safetensors", True)
        how = {name: kwargs[name] for name in ("revision", "token", "local_files_only") if name in kwargs}
        with readable_download_errors(pretrained_model_name_or_path, cls.hub_kind, **how):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        is_main_process: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save everything into one folder, which is made if it is not there.

        Args:
            push_to_hub: Publish it too: `repo_id` (by default the folder's name), `private`, `token`, `commit_message`
                and `license` are passed on to [`push_to_hub`].
            **kwargs: These and the others are those of `diffusers.ModelMixin.save_pretrained`.
        """
        options = _push_options(save_directory, kwargs)
        # Named above, since a pipeline looks into the signature for what it may pass on.
        kwargs |= {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process and (card := self.saved_card()):
            write_whole(Path(save_directory) / CARD_NAME, lambda path: path.write_text(card, encoding="utf-8"))
        if push_to_hub:
            self.push_folder(save_directory, **options)

    def saved_card(self) -> str | None:
        """The card to save beside the weights, of a class that knows it without a repository."""
        return None


class HubPipelineMixin(HubMixin):
    """For a `diffusers.DiffusionPipeline`, which saves an index and a folder for each component.

    No code of a folder or repository is run: its index leads to the installed modules.
    """

    hub_kind = "pipeline"
    hub_message = "Pipeline of CellFluxRL"
    hub_replaces = ("*.safetensors*", "*/*.json", "*.py", "samples.png", "samples/*.png", LOG_NAME)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline from a folder or the Hugging Face Hub, safetensors only, without running code from there.

        Args:
            pretrained_model_name_or_path: A folder, or `"owner/name"` on the Hub.
            **kwargs: `revision`, `variant`, `cache_dir`, `token`, components to use instead of those that are there,
                and everything else as in [`DiffusionPipeline.from_pretrained`].

        Raises:
            FileNotFoundError: If there is no such folder or repository, or it lacks a component.
            PermissionError, ConnectionError, ValueError: As [`download_pipeline`] says.
        """
        check_name(pretrained_model_name_or_path)
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            check_pipeline_folder(folder, overridden=set(kwargs), optional=cls._optional_components)
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> Path:
        """Fetch a pipeline from the Hub into the cache, see [`download_pipeline`], and return its folder."""
        how = ("revision", "variant", "cache_dir", "token", "force_download", "local_files_only")
        given = {name: kwargs.pop(name) for name in how if kwargs.get(name) is not None}
        folder = download_pipeline(pretrained_model_name, passed=set(kwargs), **given)
        check_pipeline_folder(folder, overridden=set(kwargs), optional=cls._optional_components)
        return folder

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any):
        """The index of a pipeline's folder, which leads to the installed modules.

        Components that this class does not have, such as the rewards of a post-trained pipeline that is loaded as a
        base, are left out.
        """
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        index, *rest = [config] if isinstance(config, dict) else config
        components, _ = cls._get_signature_keys(cls)
        index = {
            name: value
            for name, value in with_modules(index).items()
            if name.startswith("_") or name in components or not isinstance(value, list)
        }
        return (index, *rest) if rest else index

    def save_pretrained(self, save_directory: str | Path, *, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save everything into one folder, which this class loads, and diffusers alone with `trust_remote_code=True`.

        Args:
            save_directory: Made if it is not there.
            push_to_hub: Publish it too: `repo_id` (by default the folder's name) and the other arguments of
                [`push_to_hub`] are passed on.
            **kwargs: Those of `diffusers.DiffusionPipeline.save_pretrained`, such as `variant="fp16"`, which becomes
                part of the names of the weights.
        """
        options = _push_options(save_directory, kwargs)
        super().save_pretrained(save_directory, **kwargs)
        write_shims(save_directory)
        if push_to_hub:
            self.push_folder(save_directory, **options)

    @classmethod
    def _published_files(cls, folder: Path) -> tuple[list[str], dict[str, str]]:
        texts = shims_of(folder)
        components = components_of(json.loads(texts[PIPELINE_INDEX]))
        names = [name for component in components for name in component_files(folder, component)]
        return [*names, *present(folder, LOG_NAME, find_picture(folder))], texts


def _push_options(save_directory: str | os.PathLike, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of [`HubMixin.push_folder`] out of those of `save_pretrained`."""
    names = ("repo_id", "private", "token", "commit_message", "license")
    return {"repo_id": Path(save_directory).name} | {name: kwargs.pop(name) for name in names if name in kwargs}
