//! The part of `protoc`'s command line that `prost-build` uses: `--include_imports --include_source_info -o OUT -I DIR FILE...`.
//! Anything else is refused by name, never ignored.

use protox::prost::Message as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Default)]
struct Args {
    include_imports: bool,
    include_source_info: bool,
    out: Option<PathBuf>,
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("`{word}` wants a value"));
        match word.as_str() {
            "--include_imports" => args.include_imports = true,
            "--include_source_info" => args.include_source_info = true,
            "-o" => args.out = Some(value()?.into()),
            "-I" => args.dirs.push(value()?.into()),
            file if !file.starts_with('-') => args.files.push(file.into()),
            other => return Err(format!("`{other}` is not supported; install protoc and set PROTOC to it")),
        }
    }
    Ok(args)
}

fn run() -> Result<(), String> {
    let args = parse(std::env::args().skip(1))?;
    let out = args.out.ok_or("`-o` is missing")?;
    let mut compiler = protox::Compiler::new(&args.dirs).map_err(|error| error.to_string())?;
    compiler.include_imports(args.include_imports).include_source_info(args.include_source_info);
    compiler.open_files(&args.files).map_err(|error| format!("{error:?}"))?;
    let set = compiler.file_descriptor_set().encode_to_vec();
    std::fs::write(&out, set).map_err(|error| format!("{}: {error}", out.display()))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _stderr_may_be_closed = writeln!(std::io::stderr(), "protoc: {why}");
            ExitCode::FAILURE
        }
    }
}
