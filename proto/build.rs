//! Generates the Rust types of `pulsar/wire.proto` and the types and service of `geminga/v1/bookie.proto` into `OUT_DIR`.
//!
//! The schemas are compiled by protox, a library, so that a checkout builds with nothing but cargo: no `protoc`, and no
//! generated file to keep in step. Every `bytes` field becomes `Bytes`. In Pulsar's every sub-command of `BaseCommand` is boxed:
//! the envelope holds some sixty of them, of which one is ever set, and unboxed it would weigh 4.5 kB by value.

use std::{error::Error, fs, path::PathBuf};

const PULSAR: &str = "pulsar/wire.proto";
const BOOKIE: &str = "geminga/v1/bookie.proto";

fn main() -> Result<(), Box<dyn Error>> {
    for file in ["build.rs", PULSAR, BOOKIE] {
        println!("cargo:rerun-if-changed={file}");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    pulsar(&out)?;
    bookie(&out)?;
    // A schema whose package is renamed would leave the include in lib.rs dangling: say so here.
    for name in ["pulsar.proto.rs", "geminga.bookie.v1.rs"] {
        fs::metadata(out.join(name)).map_err(|_| format!("{name} was not generated"))?;
    }
    Ok(())
}

fn pulsar(out: &PathBuf) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile([PULSAR], ["pulsar"])?;
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
    config.out_dir(out);
    config.compile_fds(descriptors)?;
    Ok(())
}

fn bookie(out: &PathBuf) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile([BOOKIE], ["."])?;
    tonic_prost_build::configure()
        .bytes(".")
        // By hand, so that payloads go out without being gathered first.
        .extern_path(".geminga.bookie.v1.Packed", "crate::packed::Packed")
        .codec_path("crate::codec::Codec")
        .out_dir(out)
        .compile_fds(descriptors)?;
    Ok(())
}
