#!/bin/sh
# What `.cargo/config.toml` gives as PROTOC: the protoc of this machine, or else one over protox, built once under the target
# directory. Only the build of `etcd-client` asks for it; a PROTOC in the environment wins.
set -eu
if command -v protoc >/dev/null 2>&1; then exec protoc "$@"; fi
here=$(cd "$(dirname "$0")" && pwd)
case "${CARGO_TARGET_DIR:-}" in
  /*) target=$CARGO_TARGET_DIR/protoc ;;
  *) target=$here/../../target/protoc ;;
esac
# A directory of its own, so that this cargo does not wait for the one that runs the build script.
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS RUSTC_WRAPPER RUSTC_WORKSPACE_WRAPPER CARGO_BUILD_TARGET CARGO_MAKEFLAGS MAKEFLAGS
"${CARGO:-cargo}" build --quiet --locked --manifest-path "$here/Cargo.toml" --target-dir "$target" >&2
exec "$target/debug/protoc" "$@"
