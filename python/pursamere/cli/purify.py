"""``pursamere purify``: purify image files with a trained denoiser or the kernel density of reference images."""

from __future__ import annotations

import argparse
import errno
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pursamere._images import FORMAT_NAMES, FORMATS, ImageError, is_image_name
from pursamere._output import require_writable
from pursamere._text import listed, printable
from pursamere.cli import types
from pursamere.cli.errors import CommandError
from pursamere.cli.images import Size, WrongSizeError, check_apart, check_format, find_images, read_image, write_image
from pursamere.cli.networks import find_device, load_network
from pursamere.cli.progress import Advance, progress_bar, say, tell
from pursamere.cli.reference import load_reference
from pursamere.datasets import DATA_VARIABLE

if TYPE_CHECKING:
    from pursamere import IterativePurifier

__all__ = ["add_parser", "run"]

Job = tuple[Path, Path]  # input file, output file

_DESCRIPTION = """\
Move every image to a nearby point where the expected reconstruction error of a denoiser is small and flat. The denoiser
is a network (--denoiser), or the kernel density of reference images (--reference): examples of what the inputs should
look like, all of one size. Inputs must have the size of its images. Inputs are read in color if the denoiser is one for
color images. Pixels are in [0, 1], so a radius of 0.1 is 25.5 gray levels; outputs are rounded to 8 bits. JPEG outputs
are lossy: use PNG where the exact pixels matter. Of an MPO file, as cameras write them, the first picture is used;
animations are refused.
"""
# Errors that every later write would meet as well.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Names that nobody gives to a folder.
_OTHER_FORMATS = (
    ".avif", ".exr", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".npy", ".npz", ".pdf", ".psd", ".svg", ".tga",
)  # fmt: skip
DEFAULT_BANDWIDTH = 0.25  # of the digits' networks, too; importing theirs would take torch
_SETTINGS = (
    "sigma", "steps", "step_size", "ascent_radius", "radius", "norm", "direction", "draws", "noise_seed", "micro_batch",
    "precision", "compile", "channels_last", "cuda_graphs",
)  # fmt: skip
_OUTPUT = "a folder, created if needed, that keeps relative names; or, for one image, a name in .png, .jpg, ..."
_REFERENCE = (
    "digits (8x8, from scikit-learn), a folder of images, an .npz file with an array images or "
    f"train_images, or mnist or cifar10 for the training images in the folder that {DATA_VARIABLE} names "
    "(default: digits)"
)
_RADIUS = "how far an image may move from its input; needed with --norm l2 (default: 0.2; mnist: 0.3; cifar10: 0.06)"
_DENOISER = (
    "mnist or cifar10 for the network that comes with the library, digits for that --reference, or a checkpoint of "
    "pursamere train"
)
_BANDWIDTH = f"standard deviation of the reference's kernel density (default: {DEFAULT_BANDWIDTH})"
_MICRO_BATCH = "images per call of the denoiser (default: chosen for the device and the size of an image)"


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "purify",
        parents=[common],
        help="purify an image file or a folder of them",
        description=_DESCRIPTION,
        formatter_class=types.HelpFormatter,
    )
    add = parser.add_argument
    add("input", type=types.path, metavar="INPUT", help=f"a {FORMAT_NAMES} file, or a folder (with its subfolders)")
    add("-o", "--output", type=types.path, required=True, default=argparse.SUPPRESS, metavar="OUTPUT", help=_OUTPUT)
    add("--overwrite", action="store_true", help="replace existing outputs instead of skipping their inputs")
    source = parser.add_mutually_exclusive_group().add_argument
    source("--reference", type=types.text, default=argparse.SUPPRESS, metavar="IMAGES", help=_REFERENCE)
    source("--denoiser", type=types.text, default=argparse.SUPPRESS, metavar="NETWORK", help=_DENOISER)
    add("--bandwidth", type=types.positive, default=argparse.SUPPRESS, help=_BANDWIDTH)
    # Absent unless given: the defaults depend on the denoiser, and reading them takes torch.
    tuned = {"default": argparse.SUPPRESS}
    add("--sigma", type=types.positive, **tuned, help="noise level, a standard deviation (default: 0.2; mnist: 0.5)")
    add("--steps", type=types.count, **tuned, help="number of steps (default: 5; mnist and cifar10: 4)")
    add(
        "--step-size",
        type=types.positive,
        **tuned,
        help="L2 length of a step (default: depends on --radius; mnist: 3; cifar10: 0.6)",
    )
    add(
        "--ascent-radius",
        type=types.nonnegative,
        **tuned,
        help="L2 length of the ascent before each step (default: 0.05; cifar10: 0)",
    )
    add("--radius", type=types.positive, **tuned, help=_RADIUS)
    add("--norm", choices=("linf", "l2"), default="linf", help="norm of the radius")
    add(
        "--direction",
        choices=("ere", "score"),
        **tuned,
        help="ere, the paper's, or score (default: ere; mnist and cifar10: score)",
    )
    add(
        "--draws", type=types.even_batch, **tuned, help="number of noise draws, even (default: 8; mnist and cifar10: 2)"
    )
    add("--noise-seed", type=types.seed, default=0, help="seed of the noise")
    add("--batch-size", type=types.batch, default=64, help="images in memory at a time; doesn't change any output")
    add("--micro-batch", type=types.batch, default=argparse.SUPPRESS, help=_MICRO_BATCH)
    types.add_execution(parser)
    types.add_device(parser)
    add("-q", "--quiet", action="store_true", help="no progress bar and no summary")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Purify every input; exit code 1 if any failed."""
    if arguments.norm != "linf" and "radius" not in arguments:
        raise CommandError(f"--radius must be given with --norm {arguments.norm}: the default radii are those of linf")
    arguments.device = find_device(arguments.device)
    planned = plan(arguments.input, arguments.output)
    todo = planned if arguments.overwrite else _without_done(planned)
    failures = 0
    if todo:
        denoiser, size = build_denoiser(arguments, [target for _, target in planned])
        purifier = build_purifier(denoiser, arguments)
        jobs = iter(todo)
        with progress_bar(len(todo), "purify", unit="image", quiet=arguments.quiet) as advance:
            while batch := list(itertools.islice(jobs, arguments.batch_size)):
                failures += _purify_batch(purifier, batch, size, arguments, advance)
    if not arguments.quiet:
        skipped = f", {len(planned) - len(todo)} skipped" if len(todo) < len(planned) else ""
        tell(f"purified {len(todo) - failures} of {len(planned)} images, {failures} failed{skipped}")
    return 1 if failures else 0


def build_denoiser(arguments: argparse.Namespace, targets: Sequence[Path]) -> tuple[Any, Size]:
    """Return the denoiser that the options describe and the shape of its images; ``targets`` will be written."""
    import pursamere as ps

    if getattr(arguments, "denoiser", "digits") == "digits":
        name = getattr(arguments, "reference", "digits")
        reference = load_reference(name, output=arguments.output, targets=targets).to(arguments.device)
        bandwidth = getattr(arguments, "bandwidth", DEFAULT_BANDWIDTH)
        return ps.denoisers.KernelDensity(reference, bandwidth), _size(reference.shape[1:])
    if "bandwidth" in arguments:
        raise CommandError("--bandwidth is for the kernel density of a --reference, and there is a --denoiser")
    network = load_network("denoiser", arguments.denoiser, arguments.device, names=tuple(ps.pretrained.TUNED))
    return network, _size(network.image_shape)


def _size(shape: Sequence[int]) -> Size:
    channels, height, width = shape
    return channels, height, width


def build_purifier(denoiser: Any, arguments: argparse.Namespace) -> IterativePurifier:
    """The purifier that the options describe; settings that weren't given are those of the denoiser's data."""
    from pursamere.cli.defenses import build_defense
    from pursamere.pretrained import TUNED

    settings = dict(TUNED.get(getattr(arguments, "denoiser", "digits"), TUNED["digits"]))
    settings |= {name: getattr(arguments, name) for name in _SETTINGS if name in arguments}
    # An image's result must not depend on the files beside it.
    return build_defense("pursamere", denoiser, {**settings, "invariance": "strict"})


def plan(source: Path, output: Path) -> list[Job]:
    """Return the files to read and to write. They are listed, not opened."""
    if not os.path.lexists(source):
        raise CommandError(f"{printable(source)} does not exist")
    if source.is_dir():
        if output.exists() and output.samefile(source):
            raise CommandError("OUTPUT is the folder INPUT itself: choose another one")
        if output.exists() and not output.is_dir():
            raise CommandError(f"OUTPUT must be a folder when INPUT is one, and {printable(output)} is a file")
        if is_image_name(output) and not output.exists():
            raise CommandError(f"OUTPUT must be a folder when INPUT is one, and {printable(output)} names an image")
        _require_writable(output)
        # OUTPUT may be inside INPUT, with files of an earlier run.
        names = list(find_images(source, skip=output))
        if not names:
            raise CommandError(f"no image files ({FORMAT_NAMES}) in {printable(source)}")
        check_apart((output / name for name in names), output, source, "the folder INPUT")
        return [(source / name, output / name) for name in names]
    if not is_image_name(source):
        raise CommandError(f"{printable(source)} is not an image file by its name ({', '.join(FORMATS)})")
    if output.suffix.lower() in _OTHER_FORMATS and not output.exists():
        raise CommandError(
            f"OUTPUT must be a folder or a name in {', '.join(FORMATS)}, got {printable(output)}; create a folder of "
            "that name first if you want one"
        )
    target = output if is_image_name(output) and not output.is_dir() else output / source.name
    if target.exists() and target.samefile(source):
        raise CommandError("OUTPUT is the file INPUT itself: choose another one")
    _require_writable(target.parent)
    return [(source, target)]


def _without_done(planned: Sequence[Job]) -> list[Job]:
    """Return the jobs without an output, and name the others on stderr."""
    done = {job: None for job in planned if job[1].is_file()}
    if done:
        names = printable(listed([str(source) for source, _ in done]))
        say(f"skipped, because outputs exist, possibly made with other settings (--overwrite replaces them): {names}")
    return [job for job in planned if job not in done]


def _purify_batch(
    purifier: IterativePurifier, batch: Iterable[Job], size: Size, arguments: argparse.Namespace, advance: Advance
) -> int:
    """Purify some files, and return how many failed."""
    ready: list[tuple[Job, Tensor]] = []
    failures = 0
    for job in batch:
        try:
            # Checked before the work, and again when writing.
            with _writing(job[1]):
                _check_target(job[1], arguments)
            check_format(job[1], size[0])
            ready.append((job, read_image(job[0], size)))
        except WrongSizeError as error:
            default = "denoiser" not in arguments and "reference" not in arguments
            hint = ", of the default digits; see --denoiser and --reference" if default else ""
            failures += _report(job, ImageError(f"{error}{hint}"))
            advance(1)
        except (ImageError, OSError) as error:
            failures += _report(job, error)
            advance(1)
    if not ready:
        return failures
    images = torch.stack([image for _, image in ready]).to(arguments.device)
    for (job, _), image in zip(ready, purifier(images).cpu(), strict=True):
        try:
            with _writing(job[1]):
                job[1].parent.mkdir(parents=True, exist_ok=True)
                _check_target(job[1], arguments)
                write_image(job[1], image, overwrite=arguments.overwrite)
        except (ImageError, OSError) as error:
            failures += _report(job, error)
        advance(1)
    return failures


def _require_writable(folder: Path) -> None:
    try:
        require_writable(folder)
    except OSError as error:
        raise CommandError(f"OUTPUT: {printable(error)}") from error


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Name ``target`` in the system's errors; an error that every later output would meet ends the command."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by this library, whose message says what is wrong
            raise ImageError(f"not done: {printable(error)}") from error
        kind = CommandError if error.errno in _NO_SPACE else ImageError
        raise kind(f"cannot write {printable(target)}: {error.strerror}") from error


def _check_target(target: Path, arguments: argparse.Namespace) -> None:
    """Refuse an output that can't be written, exists without --overwrite, or leaves OUTPUT through a link."""
    require_writable(target.parent)
    if _exists(target) and not arguments.overwrite:
        raise ImageError(f"not done: {printable(target)} exists (--overwrite replaces it)")
    if target.is_dir() and not target.is_symlink():
        raise ImageError(f"not done: {printable(target)} is a folder")
    if target == arguments.output:
        return
    root, parent = os.path.realpath(arguments.output), os.path.realpath(target.parent)
    if os.path.commonpath([root, parent]) != root:
        raise ImageError(f"not done: {printable(target.parent)} is a link out of OUTPUT")


def _exists(path: Path) -> bool:
    """Like ``os.path.lexists``, but raises where no file could exist."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _report(job: Job, error: Exception) -> int:
    reason = error.strerror or error if isinstance(error, OSError) else error
    say(f"pursamere: failed: {printable(job[0])}: {printable(reason)}")
    return 1
