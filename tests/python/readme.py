#!/usr/bin/env python3
"""Runs the README's quick start as it is printed, in its order, against a server of its own.  readme.py BINARY

A block is run if the line before it is an HTML comment `<!-- run: NAME -->`. Python, Java and Go blocks are whole programs, the
Rust one too. Addresses are the README's own, so the server takes the default ports. A language whose tools are not there is
named and counted as left out: with CI set that fails.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BLOCK = re.compile(r"<!-- run: (\w+) -->\n```\w+\n(.*?)```", re.S)
NEEDS = {"python": [], "java": ["java", "mvn"], "go": ["go"], "rust": ["cargo", "protoc"]}
CARGO = """[package]
name = "quickstart"
version = "0.0.0"
edition = "2021"
[dependencies]
pulsar = { version = "6.9", default-features = false, features = ["tokio-runtime"] }
tokio = { version = "1", features = ["full"] }
futures = "0.3"
[workspace]
"""


def run(command, where, **more):
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=900, **more)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def python(code, where):
    return run([sys.executable, "-c", code], where)


def java(code, where):
    shutil.copy(f"{ROOT}/tests/java/pom.xml", where)
    os.makedirs(f"{where}/src/main/java")
    with open(f"{where}/src/main/java/QuickStart.java", "w") as out:
        out.write(code)
    run(["mvn", "-q", "-B", "compile", "dependency:build-classpath", "-Dmdep.outputFile=classpath"], where)
    classpath = "target/classes:" + open(f"{where}/classpath").read().strip()
    return run(["java", "-cp", classpath, "QuickStart"], where)


def go(code, where):
    for name in ("go.mod", "go.sum"):
        shutil.copy(f"{ROOT}/tests/go/{name}", where)
    with open(f"{where}/main.go", "w") as out:
        out.write(code)
    return run(["go", "run", "."], where, env=os.environ | {"GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"})


def rust(code, where):
    os.makedirs(f"{where}/src")
    with open(f"{where}/src/main.rs", "w") as out:
        out.write(code)
    with open(f"{where}/Cargo.toml", "w") as out:
        out.write(CARGO)
    target = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "geminga-tests", "rust")
    return run(["cargo", "run", "-q"], where, env=os.environ | {"CARGO_TARGET_DIR": target, "CARGO_PROFILE_DEV_DEBUG": "0"})


def main():
    blocks = BLOCK.findall(open(f"{ROOT}/README.md").read())
    names = [name for name, _ in blocks]
    if names != list(NEEDS):
        sys.exit(f"README runs {names}, expected {list(NEEDS)}")
    out = 0
    with tempfile.TemporaryDirectory() as work:
        server = subprocess.Popen([sys.argv[1], "standalone", "--data-dir", f"{work}/data", "--log", "warn"],
                                  stdout=subprocess.PIPE, text=True)
        try:
            if not server.stdout.readline().startswith("ready: pulsar://127.0.0.1:6650 "):
                sys.exit("no server on the default ports")
            for name, code in blocks:
                missing = [tool for tool in NEEDS[name] if not shutil.which(tool)]
                if missing:
                    print(f"left out: {name}: no {', '.join(missing)} found")
                    out += 1
                    continue
                where = f"{work}/{name}"
                os.makedirs(where)
                said = globals()[name](code, where)
                if "hello" not in said:
                    sys.exit(f"{name}: no greeting in {said!r}")
                print(f"ok {name}: {said.strip()}")
        finally:
            server.terminate()
            server.wait(10)
    sys.exit(1 if out and os.environ.get("CI") else 0)


if __name__ == "__main__":
    main()
