"""The command ``fewstep``: parsing, help and exit codes. What a command needs is imported when it runs.

Exit codes: 0 done, 1 a fault of this software, 2 a mistake in what was given, 3 training could not go on, 130
interrupted. Errors are one line on stderr; ``FEWSTEP_DEBUG=1`` shows where they come from.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points, version
from typing import NoReturn

from fewstep.core.cli.verbs import DOMAIN_VERBS, TOP_VERBS
from fewstep.core.errors import TrainingError, UserError, nearest
from fewstep.core.verb import Verb

DONE, FAULT, USER_ERROR, TRAINING_ERROR, INTERRUPTED = 0, 1, 2, 3, 130
EPILOG = "exit codes: 0 done, 1 a fault of this software, 2 a mistake in what was given, 3 training could not go on"
HELP = ("-h", "--help")


class Parser(argparse.ArgumentParser):
    """A parser of one command; its errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message."""
        raise UserError(f"{message}; `{self.prog} --help` shows what it takes")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return _parted(guarded(lambda: run_command(given)))


def domain_main(domain: str, argv: Sequence[str] | None = None) -> int:
    """Run one command of a domain, as the script ``fewstep-<domain>`` does; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return _parted(guarded(lambda: run_domain(domain, given, f"fewstep-{domain}")))


def guarded(work: Callable[[], None]) -> int:
    """Run ``work`` and turn what it raises into one line on stderr and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    debug = bool(os.environ.get("FEWSTEP_DEBUG"))
    try:
        work()
    except SystemExit as end:  # argparse after --help
        return int(end.code or 0)
    except (UserError, TrainingError) as error:
        if debug:
            raise
        return _say(str(error), USER_ERROR if isinstance(error, UserError) else TRAINING_ERROR)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe has gone; nothing more may be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if debug:
            raise
        return _say(f"{type(error).__name__}: {error}; FEWSTEP_DEBUG=1 shows where: please report it", FAULT)
    return DONE


def _parted(code: int) -> int:
    """Leave the other processes of a distributed run; after a fault of this one they may be waiting: it just ends."""
    if code in (DONE, USER_ERROR, TRAINING_ERROR) and "fewstep.core.training.world" in sys.modules:
        from fewstep.core.training.world import part

        part()
    return code


def _say(message: str, code: int) -> int:
    print("fewstep:", " ".join(message.split()), file=sys.stderr)
    return code


def run_command(argv: list[str]) -> None:
    """Run ``fewstep ARGV``; UserError for a command that does not exist."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    domains = sorted(point.name for point in entry_points(group="fewstep.domains"))
    if name in HELP:
        print(_overview("fewstep COMMAND ...", TOP_VERBS, domains))
    elif name == "--version":
        print(f"fewstep {version('fewstep-core')}")
    elif name in TOP_VERBS:
        run_verb(TOP_VERBS[name], rest, f"fewstep {name}")
    elif name in domains:
        run_domain(name, rest, f"fewstep {name}")
    else:
        raise UserError(f"no command '{name}': {nearest(name, [*TOP_VERBS, *domains])} `fewstep --help` lists them")


def run_domain(domain: str, argv: list[str], prog: str) -> None:
    """Run a verb of a domain; UserError for one it does not have."""
    verbs = dict(DOMAIN_VERBS) | domain_verbs(domain)
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in HELP:
        print(_overview(f"{prog} VERB ...", verbs, []))
    elif name in verbs:
        run_verb(verbs[name], rest, f"{prog} {name}", domain)
    else:
        raise UserError(f"domain '{domain}' has no verb '{name}': {nearest(name, verbs)} `{prog} --help` lists them")


def domain_verbs(domain: str) -> dict[str, Verb]:
    """Return the verbs a domain adds (entry-point group ``fewstep.verbs``)."""
    return {
        name: verb for p in entry_points(group="fewstep.verbs") if p.name == domain for name, verb in p.load().items()
    }


def run_verb(verb: Verb, argv: list[str], prog: str, domain: str = "") -> None:
    """Parse the arguments of one verb and run it; settings such as ``train.steps=100`` go into ``overrides``."""
    parser = Parser(prog=prog, description=verb.summary, epilog=EPILOG, allow_abbrev=False)
    parser.set_defaults(takes_settings=False, domain=domain)
    verb.arguments(parser)
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_settings:
        parser.error(f"unknown argument '{rest[0]}'")
    args.overrides = rest
    verb.run(args)


def _overview(usage: str, verbs: Mapping[str, Verb], domains: Sequence[str]) -> str:
    width = max(len(name) for name in [*verbs, *domains]) + 2
    lines = [f"usage: {usage}", "", *(f"  {name:{width}}{verb.summary}" for name, verb in verbs.items())]
    if domains:
        lines += ["", "domains (`fewstep DOMAIN --help` lists their verbs):", "  " + "  ".join(domains)]
    return "\n".join([*lines, "", EPILOG])


if __name__ == "__main__":
    sys.exit(main())
