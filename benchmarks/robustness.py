"""Damaged files, hostile files, kills and misbehaving servers, in numbers that tests cannot
afford.

    python benchmarks/robustness.py damage    # 12,000 damaged files of every kind that is read
    python benchmarks/robustness.py harm      # all files of tests/helpers/harmful.py
    python benchmarks/robustness.py kills     # 1,040 SIGKILLs of runs, each resumed
    python benchmarks/robustness.py servers   # downloads from servers that misbehave

Prints what missed a bar, then a table. Everything is drawn from --seed, so that a fault is found
again. tests/test_robustness.py has a sample of each.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault('OMP_NUM_THREADS', '1')
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]


def report(rows):
    """Print faults and table; return the exit status."""
    from helpers import campaigns

    whole = campaigns.total(rows)
    for fault in whole.faults[:100]:
        print(fault)
    print(campaigns.machine())
    print(campaigns.table(rows))
    return 1 if whole.faults else 0


def damage(args):
    from helpers import campaigns, kinds

    names = args.kind or list(kinds.KINDS)
    calls = [
        lambda watch, tell, name=name: campaigns.damage_files(
            watch, name, args.count, args.seed, tell
        )
        for name in names
    ]
    total = args.count * len(names)
    return report(campaigns.side_by_side(calls, total, args.workers, 'damaged'))


def harm(args):
    from helpers import campaigns, harmful

    cases = {}
    for kind, name, make in harmful.cases():
        if args.kind is None or kind in args.kind:
            cases.setdefault(kind, []).append((name, make))
    calls = [
        lambda watch, tell, kind=kind: campaigns.harm(watch, kind, cases[kind], tell)
        for kind in cases
    ]
    total = sum(map(len, cases.values()))
    return report(campaigns.side_by_side(calls, total, args.workers, 'made to harm'))


def kill(args):
    import tqdm
    from helpers import kills

    names = args.kind or [name for name in kills.CONFIGURATIONS if not kills.unavailable(name)]
    campaigns = [
        (name, how)
        for name in names
        for how in ('moments', 'operations')
        if (name, how) != ('processes', 'operations')
    ]
    rows = []
    with tqdm.tqdm(total=args.count * len(campaigns), desc='kills', unit='kill', ncols=79) as bar:
        for name, how in campaigns:
            seconds = 60 * args.minutes / len(campaigns)
            rows.append(kills.campaign(name, how, args.count, seconds, args.seed, bar.update))
            bar.write(f'{rows[-1].name}: {rows[-1].kills} kills', file=sys.stderr)
    print(f'{"":<28s} {"kills":>6s} {"compared":>9s} {"differ":>7s}')
    for row in rows:
        print(f'{row.name:<28s} {row.kills:>6,} {row.ends:>9,} {len(row.differ):>7,}')
    differ = [line for row in rows for line in row.differ]
    print(*differ, sep='\n')
    print(f'together {sum(row.kills for row in rows):,} kills, {len(differ)} differ')
    return 1 if differ else 0


def serve(args):
    from helpers import servers

    told = servers.all_refused()
    for name, (seconds, fault, line) in told.items():
        print(f'{name:<28s} {seconds:6.1f} s  {fault or line[line.index(": ") + 2 :]:.90}')
    faults = sum(bool(fault) for _, fault, _ in told.values())
    print(f'{len(told)} servers, {faults} without one line or with something left behind')
    return 1 if faults else 0


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = p.add_subparsers(required=True)
    one = commands.add_parser('damage', help='damaged files of every kind that is read')
    one.add_argument('--count', type=int, default=430, help='files of each kind')
    one.add_argument('--kind', action='append', help='only this kind; repeated: these')
    one.set_defaults(run=damage)
    one = commands.add_parser('harm', help='hostile files')
    one.add_argument('--kind', action='append', help='only this kind; repeated: these')
    one.set_defaults(run=harm)
    one = commands.add_parser('kills', help='runs that are killed and resumed')
    one.add_argument('--count', type=int, default=80, help='kills of each configuration')
    one.add_argument('--minutes', type=float, default=120, help='at most, all together')
    one.add_argument('--kind', action='append', help='only this configuration; repeated: these')
    one.set_defaults(run=kill)
    one = commands.add_parser('servers', help='downloads from servers that misbehave')
    one.set_defaults(run=serve)
    for command in commands.choices.values():
        command.add_argument('--seed', type=int, default=0)
        command.add_argument('--workers', type=int, default=2, help='processes at a time')
    args = p.parse_args()
    return args.run(args)


if __name__ == '__main__':
    sys.exit(main())
