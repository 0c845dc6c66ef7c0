"""Measure how long the search for near-duplicate prompts takes, and how much memory, by the number and kind of prompts.

    pip install --no-deps datasketch==2.0.0
    python benchmarks/near_duplicates.py

Writes synthetic prompts to a temporary folder and runs find_near_duplicates.py on them: short Chinese questions and
longer ones in letters, one in twelve of which is an edited copy of another, and the demo's holdings prompts, which are
made from a template, a fifth as many, since they are compared almost all with all. The alternative, if datasketch is
installed, runs the same script with its MinHash and LSH in the place of rensa, except on the prompts of a template.
Prints a table and writes benchmarks/results/near_duplicates_{date}.json.
"""

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[1] / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

from distill.common.files import write_json, write_jsonl  # noqa: E402
from distill.demo.data import make_record  # noqa: E402
from distill.records.raw_records import get_uid  # noqa: E402

RESULTS = Path(__file__).parent / "results"
COPIES = 12  # one prompt in this many is an edited copy
TEMPLATE = "template"
TEMPLATE_SHARE = 5  # one prompt of the template for this many others
WORDS = 20_000  # as in a language, a word's frequency is inverse to its rank
OPTIONS = ["--val-fraction", "0.1", "--test-fraction", "0.1", "--seed", "42"]


class Writer:
    """Draws questions of one alphabet; the same seed gives the same questions.

    Args:
        alphabet: the letters.
        word_lengths: least and greatest length of a word.
        mean_words: mean number of words in a question.
        space: what stands between words.
    """

    def __init__(self, alphabet: str, word_lengths: tuple[int, int], mean_words: float, space: str):
        self.rng = random.Random(1)
        weights = [*accumulate(1 / (place + 10) for place in range(len(alphabet)))]
        self.words = [
            "".join(self.rng.choices(alphabet, cum_weights=weights, k=self.rng.randint(*word_lengths)))
            for _ in range(WORDS)
        ]
        self.weights = [*accumulate(1 / (place + 10) for place in range(WORDS))]
        self.alphabet, self.mean_words, self.space = alphabet, mean_words, space

    def write(self) -> str:
        """Write a question, whose length is log-normal."""
        count = 3 + int(self.rng.lognormvariate(0, 0.6) * (self.mean_words - 3) / 1.2)
        return self.space.join(self.rng.choices(self.words, cum_weights=self.weights, k=count)) + "?"

    def edit(self, text: str) -> str:
        """Replace one character in 25, and at least one."""
        found = list(text)
        for place in self.rng.sample(range(len(found)), max(1, len(found) // 25)):
            found[place] = self.rng.choice(self.alphabet)
        return "".join(found)

    def write_all(self, count: int) -> Iterator[str]:
        """Yield questions, some of which are edited copies of earlier ones."""
        texts: list[str] = []
        for _ in range(count):
            is_copy = texts and self.rng.randrange(COPIES) == 0
            texts.append(self.edit(self.rng.choice(texts)) if is_copy else self.write())
            yield texts[-1]


def write_chinese(count: int) -> Iterator[str]:
    """Yield questions of about 35 Chinese characters."""
    return Writer("".join(map(chr, range(0x4E00, 0x4E00 + 3000))), (1, 3), 17, "").write_all(count)


def write_letters(count: int) -> Iterator[str]:
    """Yield questions of about 230 letters."""
    return Writer("etaoinshrdlucmfwypvbgkq", (2, 9), 36, " ").write_all(count)


def write_template(count: int) -> Iterator[str]:
    """Yield prompts of about 235 characters that are made from a template."""
    for number in range(count):
        yield make_record("banks", "sft" if number % 2 else "grpo", number, 1)["messages"][1]["content"]


KINDS: dict[str, Callable[[int], Iterator[str]]] = {
    "chinese": write_chinese,
    "letters": write_letters,
    TEMPLATE: write_template,
}


def make_prompts(texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield prompts with these texts, each once."""
    seen: set[str] = set()
    for text in texts:
        if (uid := get_uid("S", text)) not in seen:
            seen.add(uid)
            known = {"id": len(seen) - 1, "uid": uid, "system": "S", "prompt": text}
            yield known | {"label": None, "origin": "sft"}


def run_script(*options: str | Path) -> dict[str, float]:
    """Run this script, or the workflow's, in a process of its own; return its CPU seconds and peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, options)], env=os.environ, stderr=subprocess.PIPE)
    assert process.stderr is not None
    log = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise AssertionError(f"the search failed:\n{log}")
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": round(usage.ru_maxrss / 2**10),
    }


def search_with_datasketch(arguments: list[str]) -> None:
    """Run find_near_duplicates.py with datasketch in the place of rensa."""
    import types

    import datasketch

    import find_near_duplicates  # type: ignore[import-not-found]

    class Signature(datasketch.MinHash):  # type: ignore[misc]
        permutations_of_all: Any = None

        def __init__(self, hash_values: int, seed: int):
            scheme = "affine32"
            super().__init__(hash_values, seed, permutations=Signature.permutations_of_all, scheme=scheme)
            Signature.permutations_of_all = self.permutations

        def update(self, shingles: list[str]) -> None:
            self.update_batch([shingle.encode() for shingle in shingles])

    class Index(datasketch.MinHashLSH):  # type: ignore[misc]
        def __init__(self, threshold: float, hash_values: int, bands: int):
            super().__init__(num_perm=hash_values, params=(bands, hash_values // bands))

    rensa = types.ModuleType("rensa")
    rensa.RMinHash, rensa.RMinHashLSH = Signature, Index  # type: ignore[attr-defined]
    sys.modules["rensa"] = rensa
    find_near_duplicates.main(arguments)


def measure(folder: Path, kind: str, count: int, threshold: float, has_alternative: bool) -> dict[str, Any]:
    """Search `count` prompts of a kind; return a row of the table."""
    prompts = folder / f"{kind}.jsonl"
    written = write_jsonl(prompts, make_prompts(KINDS[kind](count)))
    files = ["--prompts", prompts, "--pairs", folder / "pairs.csv", "--counts", folder / "counts.json"]
    options = ["--category", kind, *OPTIONS, "--threshold", str(threshold), *files]
    found = run_script(SCRIPTS / "find_near_duplicates.py", *options)
    counts = json.loads((folder / "counts.json").read_text())
    row = {"kind": kind, "prompts": written, "threshold": threshold, **found}
    row |= {"near_duplicates": len(counts["uids"]), "incomplete": counts["incomplete"]}
    return row | ({"datasketch": run_script(__file__, "--search", *options)} if has_alternative else {})


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[23_683, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print the results and write them."""
    args = parse_args(argv)
    rows = []
    has_alternative = is_installed("datasketch")
    print("| prompts | of kind | near-duplicates | CPU seconds | peak MiB | with datasketch | peak MiB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for count in args.prompts:
        for kind in args.kinds:
            is_template = kind == TEMPLATE
            number = count // TEMPLATE_SHARE if is_template else count
            with tempfile.TemporaryDirectory() as name:
                row = measure(Path(name), kind, number, args.threshold, has_alternative and not is_template)
            rows.append(row)
            other = row.get("datasketch", {"cpu_seconds": "–", "peak_mib": "–"})
            cells = (
                kind,
                row["near_duplicates"],
                row["cpu_seconds"],
                row["peak_mib"],
                other["cpu_seconds"],
                other["peak_mib"],
            )
            print(f"| {row['prompts']:,} | {' | '.join(map(str, cells))} |", flush=True)
    import torch  # only now: the peak memory of a process includes that of its parent
    from machine import describe_machine

    date = datetime.now(UTC).strftime("%Y-%m-%d")
    found = {"date": date, "machine": describe_machine(torch.device("cpu")), "rows": rows}
    write_json(args.out / f"near_duplicates_{date}.json", found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--search"]:
        search_with_datasketch(sys.argv[2:])
    else:
        main()
