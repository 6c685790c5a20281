"""Known vulnerabilities in what is installed, and a bill of materials: `make audit`, `make sbom`.

audit.py sbom OUT.json     CycloneDX of this environment
audit.py check             exit 1 when a package has a known vulnerability, 3 when none could be looked up

A mirror of the package index often has no advisories: what could not be looked up is said, and is no "all clear".
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PYTHON = Path(sys.executable)
ROOT = Path(__file__).parents[2]


def sbom(to: str) -> int:
    tool = [
        str(PYTHON.parent / "cyclonedx-py"),
        "environment",
        str(PYTHON),
        "--pyproject",
        str(ROOT / "pyproject.toml"),
    ]
    done = subprocess.run([*tool, "--output-reproducible", "-o", to], check=False)
    if done.returncode == 0:
        parts = json.loads(Path(to).read_text())["components"]
        print(f"{to}: {len(parts)} packages")
    return done.returncode


def check() -> int:
    tool = [str(PYTHON.parent / "pip-audit"), "--local", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(
        [*tool, "--skip-editable"], capture_output=True, text=True, check=False, timeout=300
    )
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"audit: no answer from the advisory service: {done.stderr.strip().splitlines()[-1:]}")
        return 3
    skipped = [p["name"] for p in found if "skip_reason" in p]
    bad = [p for p in found if p.get("vulns")]
    for package in bad:
        for v in package["vulns"]:
            fixed = ", ".join(v["fix_versions"]) or "no fixed version"
            print(f"audit: {package['name']} {package['version']}: {v['id']} ({fixed})")
    looked = len(found) - len(skipped)
    print(
        f"audit: {looked} packages looked up, {len(bad)} with known vulnerabilities, {len(skipped)} not looked up"
    )
    return 1 if bad else 0 if looked else 3


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sbom", to]:
            sys.exit(sbom(to))
        case ["check"]:
            sys.exit(check())
        case _:
            sys.exit(__doc__)
