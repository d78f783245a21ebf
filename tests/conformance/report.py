"""Says what the public suite found: counts, a table by subject, and every failed test with its reason.

    report.py DIRECTORY    reads pytest.log there, writes passed.txt, failed.txt and report.txt beside it

A test failed if it failed in any of its phases. known-failures.tsv names those that are known to fail, and why; anything
else that fails, and anything named there that passes, makes this program fail.
"""

import collections
import pathlib
import re
import sys

LINE = re.compile(r"^(PASSED|FAILED|ERROR) \S*::(\w+(?:\[[^\]]*\])?)")
SUBJECTS = [
    ("versioning", "version"), ("object lock", "object_lock|legal_hold|retention"), ("multipart", "multipart"),
    ("lists", "_list"), ("policies", "polic|public_block|ownership"), ("access control lists", "acl|grant|access_bucket"),
    ("tags", "tag"), ("encryption", "encr|sse"), ("cors", "cors"), ("lifecycle", "lifecycle|lc_"), ("copy", "copy"),
    ("post", "post_object"), ("checksums", "checksum"), ("ranges and conditions", "range|if_match|ifmatch|ifnon|modified"),
    ("headers", "aws2|aws4|header|date|content"), ("anonymous", "anon|raw"), ("other", ""),
]


def subject(test):
    return next(name for name, pattern in SUBJECTS if re.search(pattern, test))


def main():
    work = pathlib.Path(sys.argv[1])
    outcomes = {}
    for line in (work / "pytest.log").read_text(errors="replace").splitlines():
        if found := LINE.match(line):
            outcome, test = found.groups()
            outcomes[test] = outcomes.get(test, True) and outcome == "PASSED"
    if not outcomes:
        sys.exit(f"the suite did not run: see {work}/pytest.log")
    known = {}
    for line in pathlib.Path(__file__).with_name("known-failures.tsv").read_text().splitlines():
        if line and not line.startswith("#"):
            test, reason = line.split("\t", 1)
            known[test] = reason
    passed = sorted(test for test, good in outcomes.items() if good)
    failed = sorted(test for test, good in outcomes.items() if not good)
    (work / "passed.txt").write_text("\n".join(passed) + "\n")
    (work / "failed.txt").write_text("\n".join(failed) + "\n")

    lines = [f"{len(passed)} of {len(outcomes)} passed", "", f"{'subject':24}{'passed':>8}{'failed':>8}"]
    counts = collections.Counter((subject(test), good) for test, good in outcomes.items())
    for name, _ in SUBJECTS:
        lines.append(f"{name:24}{counts[name, True]:8}{counts[name, False]:8}")
    lines += ["", "failed:"] + [f"  {test}: {known.get(test, 'NOT KNOWN')}" for test in failed]
    surprises = [test for test in passed if test in known]
    if surprises:
        lines += ["", "passed, and named among the known failures:"] + [f"  {test}" for test in surprises]
    report = "\n".join(lines)
    (work / "report.txt").write_text(report + "\n")
    print(report)
    if surprises or any(test not in known for test in failed):
        sys.exit(1)


main()
