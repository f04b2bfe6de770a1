"""``lightning-ifru fit``, ``validate``, ``test``, ``predict``, ``unlearn``: LightningCLI, and what forgetting adds."""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from torch import Tensor

from lightning_ifru.callback import IFRUCallback
from lightning_ifru.command_parser import NO_TRAINER, OF_THE_FIT, CommandParser, built, check_sizes, link_sizes
from lightning_ifru.datamodule import InteractionDataModule
from lightning_ifru.errors import DataError, UnlearningError
from lightning_ifru.finite import finite
from lightning_ifru.influence import IFRU
from lightning_ifru.keys import digest_key
from lightning_ifru.ledger import is_result
from lightning_ifru.loading import data_state, loading_refusal, safe_loading, while_loading
from lightning_ifru.outputs import check_target, replacing
from lightning_ifru.report import UnlearningReport
from lightning_ifru.request import UnlearningRequest
from lightning_ifru.trainer import unlearn
from lightning_ifru.training_options import DRAWN, DRAWN_SAID, add_options


class TrainingCommand(LightningCLI):
    """One of the subcommands, parsed and run by the constructor.

    Model and data are those of the config, and never what a checkpoint says of them: it gives their state.

    Args:
        command: ``fit``, ``validate``, ``test``, ``predict`` or ``unlearn``.
        args: what follows it on the command line.
        description: for its help.
        usage: for its help.

    Raises:
        SystemExit: the arguments cannot be parsed, or ask for help.
        MisconfigurationException, UnlearningError: what they say cannot be done.
    """

    def __init__(self, command: str, args: list[str], description: str, usage: str) -> None:
        self.command, self.finished = command, False
        super().__init__(
            lightning.LightningModule,
            InteractionDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            # No others: they would put a config in the way of the next command with the same folder.
            save_config_callback=_SaveConfig if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"devices": 1, "logger": False} if command == "unlearn" else None,
            parser_kwargs={"prog": f"lightning-ifru {command}", command: {"description": description, "usage": usage}},
            args=[command, *args],
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser that refuses in one sentence."""
        parser = CommandParser(dump_header=[f"lightning.pytorch=={lightning.__version__}"], **kwargs)
        parser.add_argument("-c", "--config", action="config", help="file with these options, of LightningCLI's form.")
        return parser

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the one that was asked for, and its arguments that no option stands for."""
        ours = {"unlearn": {"model", "datamodule", "request", "ckpt_path", "output", "dry_run"}}
        return {self.command: (LightningCLI.subcommands() | ours)[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the method and its hyper-parameters, and the command's own options."""
        self.parser.options = parser
        parser.set_defaults({"data": {"class_path": "lightning_ifru.InteractionDataModule"}})
        parser.add_class_arguments(IFRUCallback, "ifru", sub_configs=True)
        link_sizes(parser, self._take_over)
        add_options(parser, self.command)
        if "weights_only" not in inspect.signature(getattr(lightning.Trainer, self.command)).parameters:
            parser.add_argument(
                "--weights_only",
                type=bool | None,
                default=None,
                help="false loads any object from the checkpoint, whose code is then run.",
            )
        self.passed_over = OF_THE_FIT.keys() - parser.get_defaults().keys()
        for key in self.passed_over:
            parser.add_argument(f"--{key}", type=OF_THE_FIT[key], default=None, help=SUPPRESS)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, without LightningCLI's advice against a list of arguments."""
        given = [str(argument).partition("=")[0] for argument in args or []][1:]
        if not any(option.startswith(_DESCRIBING) or option.endswith(".help") for option in given):
            beside = "; --ckpt_path, --request and --output are needed too" if self.command == "unlearn" else ""
            self.parser.error(f"got no --config; give it, or --model and --data{beside}")
        for key in self.passed_over:
            if f"--{key}" in given:
                self.parser.error(f"got --{key}, which {self.command} does not have; leave it out")
        self.config = parser.parse_args(args)
        self.options = self.config[self.command]
        if self.options.trainer is None:
            self.parser.error(NO_TRAINER)

    def _parse_ckpt_path(self) -> None:
        """Do not build the model as a checkpoint says, which would override the config unasked (Lightning from 2.6)."""

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot end well before anything is read."""
        if self.command != "unlearn":
            if self.command != "fit" and self.options.ckpt_path is None:
                rank_zero_info(
                    f"{self.command} got no --ckpt_path, so that the model has the weights it is built with."
                )
            if self.command == "fit":
                self._check_targets("report")
            return
        for name, missing in _NEEDED.items():
            if self.options[name] is None and not (name == "output" and self.options.dry_run):
                self.parser.error(f"got no --{name}; {missing}")
        if self.options.figure is not None and Path(self.options.figure).suffix.lower() not in DRAWN:
            raise DataError(f"got --figure {self.options.figure}; wanted a name that ends with {DRAWN_SAID}.")
        self.finished = self._finished()
        self._check_targets("output", "report", "figure")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer."""
        with self._stdout(), built("what the config describes"):
            super().instantiate_classes()
            check_sizes(self.options.model, self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Build the trainer with one :class:`IFRUCallback`; only for ``fit`` does it write checkpoints by itself."""
        given = self.config_init[self.command].trainer
        callbacks = given.callbacks if isinstance(given.callbacks, list) else [given.callbacks or []]
        callbacks = [callback for callback in callbacks if callback]
        ours = self.config_init[self.command].ifru
        if not any(isinstance(callback, IFRUCallback) for callback in callbacks):
            callbacks.append(ours)
        elif any(getattr(ours, name) != default for name, default in vars(IFRUCallback()).items() if name[0] != "_"):
            raise MisconfigurationException(
                "got both ifru and an IFRUCallback among trainer.callbacks; wanted one: take the callback out of the "
                "config, or leave out --ifru."
            )
        if self.command != "fit":
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
            kwargs["enable_checkpointing"] = False
        if given.enable_progress_bar is None and not sys.stderr.isatty():
            kwargs["enable_progress_bar"] = False  # a log file is no place for it
        with built("the trainer", TypeError):
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def fit(self, **given: Any) -> None:
        """Fit; answer with the metrics logged last, the best checkpoint, the number of epochs and the report."""
        wanted = self.options
        callback = self._ifru()
        if wanted.report is not None and callback.request is None:
            raise MisconfigurationException(
                f"got --report {wanted.report} and nothing to forget; wanted --ifru.request, or no --report."
            )
        if wanted.without is not None:
            for path in [wanted.without] if isinstance(wanted.without, str) else wanted.without:
                self.datamodule.forget(UnlearningRequest.from_file(path))
            self.datamodule.commit(self.datamodule.removal())
        self._run(self.trainer.fit, given)
        report = callback.report
        if report is not None and wanted.report is not None and self.trainer.is_global_zero:
            with replacing(Path(wanted.report)) as written:
                written.write_text(report.to_json() + "\n", encoding="utf-8")
        best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        answer = {"metrics": metrics, "best_checkpoint": best or None, "epochs": self.trainer.current_epoch}
        self._say(answer | {"unlearn": None if report is None else asdict(report)})

    def validate(self, **given: Any) -> None:
        """Validate; answer with the metrics."""
        self._say({name: value for part in self._run(self.trainer.validate, given) for name, value in part.items()})

    def test(self, **given: Any) -> None:
        """Test; answer with the metrics."""
        self._say({name: value for part in self._run(self.trainer.test, given) for name, value in part.items()})

    def predict(self, **given: Any) -> None:
        """Predict; answer with what ``predict_step`` has returned, batch by batch."""
        self._say({"predictions": _plain(self._run(self.trainer.predict, given))})

    def unlearn(self, **given: Any) -> None:
        """Unlearn; write the checkpoint, and answer with the report."""
        if self.finished and not self.options.overwrite and not self._finished(self._ifru().method):
            check_target(Path(self.options.output), False, "--output")  # by another method, and so it is in the way
        asked = {name: self.options[name] for name in ("request", "ckpt_path", "output", "dry_run")}
        with self._stdout():
            report = unlearn(self.trainer, **given, **asked)
        if self.trainer.is_global_zero:
            self._write(report)
            if not self.options.json:
                Console().print(report)
        self._say(asdict(report))

    def _write(self, report: UnlearningReport) -> None:
        """Write the report and its figure, after the checkpoint; a run that broke off may have done so."""
        ways: dict[str, Callable[[Path], object]] = {
            "report": lambda place: place.write_text(report.to_json() + "\n", encoding="utf-8"),
            "figure": lambda place: report.figure().savefig(place),
        }
        for name, write in ways.items():
            path = self.options[name]
            if path is None or (self.finished and Path(path).exists()):
                continue
            try:
                with replacing(Path(path)) as place:
                    write(place)
            except DataError as error:
                done = "" if report.dry_run else f"the request is applied, see {report.checkpoint}, but "
                raise DataError(f"{done}{error}") from error

    def _finished(self, method: IFRU | None = None) -> bool:
        """Whether a run of the very same command has come to its end, or at least has written its checkpoint."""
        output, loaded, request = (self.options[name] for name in ("output", "ckpt_path", "request"))
        if self.options.dry_run or output is None or not Path(output).is_file():
            return False
        digest = UnlearningRequest.from_file(request).digest(digest_key())
        return is_result(Path(output), digest, Path(loaded), method)

    def _take_over(self, data: InteractionDataModule) -> None:
        """Give data of a source without the forgotten, which has fewer users or items, those of the checkpoint."""
        path = self.options.ckpt_path
        state: Mapping[str, Any] = {}
        if path is not None:
            with suppress(UnlearningError):  # which is said when all of it is loaded
                state = data_state(path, type(data).__qualname__, self.options.weights_only)
        ids = [state.get(name) for name in ("user_ids", "item_ids")]
        sizes = [len(each) for each in ids if isinstance(each, list)]
        if len(sizes) == len(ids) and sizes != [data.num_users, data.num_items]:
            data.load_state_dict(dict(state))

    def _ifru(self) -> IFRUCallback:
        (callback,) = (each for each in self.trainer.callbacks if isinstance(each, IFRUCallback))  # type: ignore[attr-defined]
        return callback

    def _check_targets(self, *names: str) -> None:
        """Refuse files that cannot be written, or two that are one."""
        targets: dict[Path, str] = {}
        for name in names:
            if self.options[name] is None:
                continue
            path = Path(self.options[name])
            check_target(path, self.options.overwrite or self.finished, f"--{name}")
            other = targets.setdefault(path.resolve(), name)
            if other != name:
                raise DataError(
                    f"got --{other} {self.options[other]} and --{name} {path}, which are one file; give another path "
                    f"for the {name}."
                )

    def _run(self, method: Callable[..., Any], given: dict[str, Any]) -> Any:
        with self._stdout(), safe_loading(self.trainer, self.options.weights_only):
            try:
                return method(**given)
            except Exception as error:
                if given["ckpt_path"] is None or not while_loading(error):
                    raise
                raise loading_refusal(error, given["ckpt_path"], self.model) from error

    @contextmanager
    def _stdout(self) -> Iterator[None]:
        """Keep the standard output for the answer; what Lightning prints there goes to the standard error."""
        ours = self.options.json or self.command == "unlearn"
        with redirect_stdout(sys.stderr) if ours else nullcontext(), warnings.catch_warnings():
            if self.command != "fit":
                warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint")
            yield

    def _say(self, answer: dict[str, Any]) -> None:
        if self.options.json and self.trainer.is_global_zero:
            sys.stdout.write(json.dumps(finite(answer)) + "\n")


class _SaveConfig(SaveConfigCallback):
    """Waits until the checkpoint could be loaded, and leaves alone the file that was given as the config."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the config, once."""
        target = Path(trainer.log_dir or ".", self.config_filename)
        given = [Path(str(path)) for path in self.config.get("config") or [] if path is not None]
        self.config = self.config.clone()
        self.config.report, self.config.overwrite = None, False  # an unlearning with this config would write there too
        self.already_saved |= target.exists() and any(path.exists() and path.samefile(target) for path in given)
        super().setup(trainer, pl_module, stage="fit")


def _plain(value: Any) -> Any:
    """Return tensors as lists, wherever they are."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


#: What can say of which model and data, or that nothing is to be done.
_DESCRIBING = ("--config", "-c", "--model", "--data", "--print_config", "--help", "-h")
_NEEDED = {
    "ckpt_path": "give the checkpoint that the fit has written, or a model that was never trained would forget.",
    "request": "give the file that says what to forget, CSV with columns user and item, or JSON.",
    "output": "give the path of the checkpoint to write, or --dry_run true to see what would be done.",
}
