//! Generates the Rust types of `pulsar/wire.proto` into `OUT_DIR`.
//!
//! The schema is compiled by protox, a library, so that a checkout builds with nothing but cargo: no `protoc`, and no
//! generated file to keep in step. Every `bytes` field becomes `Bytes`, and every sub-command of `BaseCommand` is boxed:
//! the envelope holds some sixty of them, of which one is ever set, and unboxed it would weigh 4.5 kB by value.

use std::{error::Error, fs, path::PathBuf};

const SCHEMA: &str = "pulsar/wire.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SCHEMA}");

    let descriptors = protox::compile([SCHEMA], ["pulsar"])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    let envelope = descriptors
        .file
        .iter()
        .flat_map(|file| &file.message_type)
        .find(|message| message.name() == "BaseCommand")
        .ok_or("the schema has no BaseCommand")?;
    for field in &envelope.field {
        // The type is the only scalar; every other field is a sub-command.
        if field.name() != "type" {
            config.boxed(format!(".pulsar.proto.BaseCommand.{}", field.name()));
        }
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    config.out_dir(&out);
    config.compile_fds(descriptors)?;
    // A schema whose package is renamed would leave the include in lib.rs dangling: say so here.
    fs::metadata(out.join("pulsar.proto.rs")).map_err(|_| "pulsar.proto.rs was not generated")?;
    Ok(())
}
