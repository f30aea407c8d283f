"""Compare runs in a table and in one figure: ``python compare.py --help``."""

from trainer import interrupts  # noqa: F401, I001  before what takes time


from trainer import cli


def parser() -> cli.ArgumentParser:
    """Return the parser of the flags."""
    p = cli.ArgumentParser(
        description='Compare runs: a table of their results and of the options that differ, and '
        'one figure of error and loss over the epochs.',
        usage='%(prog)s RUN ... [flags]',
        examples='  python compare.py runs/a runs/b -o out.png',
    )
    p.add_argument('runs', nargs='+', metavar='RUN', help='folder of a run')
    p.add_argument('--output', '-o', metavar='FILE.png', help='draw the figure')
    return p


def main() -> int:
    args = parser().parse_args()
    cli.accept_any_name()
    from trainer.reports import comparison

    if args.output:
        comparison.check(args.runs, args.output)
    compared = [comparison.Run(folder) for folder in args.runs]
    print(comparison.table(compared))
    if args.output:
        comparison.draw(compared, args.output)
    return 0


def command() -> None:
    """Run the script; an error that the user can fix ends in one line (:func:`cli.run`)."""
    cli.run(main)


if __name__ == '__main__':
    command()
