//! Credentials from the files that AWS's tools share, `~/.aws/credentials` and `~/.aws/config`, or where `AWS_SHARED_CREDENTIALS_FILE` and
//! `AWS_CONFIG_FILE` say. The profile is that of `AWS_PROFILE`, else `default`.
//!
//! Taken are keys that lie there, and the region. What would have to be asked for elsewhere (`role_arn`, `sso_session`,
//! `credential_process`) is refused when the profile is named, for it would be ignored otherwise.
//! Source of names and places: the AWS SDKs and Tools reference guide, "Shared config and credentials files".

use configparser::ini::{Ini, IniDefault};
use std::io::ErrorKind;
use std::path::PathBuf;

/// What an environment variable says.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A profile's keys and region.
#[derive(PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Profile {
    pub(super) key_id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
    pub(super) region: Option<String>,
}

/// The profile that the environment means; `None`: it names none and there are no keys in the default one.
///
/// # Errors
/// A file that cannot be read, or a named profile that holds no keys: what, and what to do.
pub(super) fn read(environment: Environment<'_>) -> Result<Option<Profile>, String> {
    let named = environment("AWS_PROFILE").filter(|name| !name.is_empty());
    let name = named.as_deref().unwrap_or("default");
    let (credentials, credentials_at) = file(environment, "AWS_SHARED_CREDENTIALS_FILE", "credentials")?;
    let (config, config_at) = file(environment, "AWS_CONFIG_FILE", "config")?;
    let long = format!("profile {name}");
    let get = |key: &str| {
        let of_config =
            || config.get(&long, key).or_else(|| config.get(name, key).filter(|_| name == "default"));
        credentials.get(name, key).or_else(of_config).filter(|value| !value.is_empty())
    };
    match (get("aws_access_key_id"), get("aws_secret_access_key")) {
        (Some(key_id), Some(secret)) => {
            Ok(Some(Profile { key_id, secret, token: get("aws_session_token"), region: get("region") }))
        }
        _ if named.is_none() => Ok(None),
        _ => Err(format!(
            "AWS_PROFILE is '{name}', which has no aws_access_key_id and aws_secret_access_key in {credentials_at} or {config_at}; set \
             both there, or give credentials by the environment, a web identity or the machine's role (role_arn, sso_session and \
             credential_process of a profile are not supported)"
        )),
    }
}

/// A file's sections, and where it lies; one that is absent has none.
#[allow(clippy::disallowed_methods)] // a tool's file of the machine, read once before anything is stored
fn file(environment: Environment<'_>, variable: &str, name: &str) -> Result<(Ini, String), String> {
    let mut sections = Ini::new_from_defaults(of_aws());
    let home = || environment("HOME").map(|home| PathBuf::from(home).join(".aws").join(name));
    let Some(path) = environment(variable).filter(|path| !path.is_empty()).map(PathBuf::from).or_else(home)
    else {
        return Ok((sections, format!("~/.aws/{name}")));
    };
    let shown = path.display().to_string();
    match std::fs::read_to_string(&path) {
        // The parser's words hold the line, which may be a secret.
        Ok(text) => sections.read(text).map_err(|_| format!("{shown} is no file of profiles; correct it"))?,
        Err(error) if error.kind() == ErrorKind::NotFound => Default::default(),
        Err(error) => {
            return Err(format!("{shown} cannot be read: {error}; make it readable for the server"));
        }
    };
    Ok((sections, shown))
}

/// How AWS's tools read: names as they are written, comments on lines of their own.
fn of_aws() -> IniDefault {
    let mut rules = IniDefault::default();
    rules.case_sensitive = true;
    rules.delimiters = vec!['='];
    rules.comment_symbols = vec!['#', ';'];
    rules.inline_comment_symbols = Some(Vec::new());
    // No section stands for all others.
    rules.default_section = String::new();
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        #[allow(clippy::disallowed_methods)] // files of a test
        fn new(credentials: &str, config: &str) -> Self {
            let home = tempfile::tempdir().unwrap();
            std::fs::create_dir(home.path().join(".aws")).unwrap();
            for (name, text) in [("credentials", credentials), ("config", config)] {
                std::fs::write(home.path().join(".aws").join(name), text).unwrap();
            }
            Self(home)
        }

        fn read(&self, profile: Option<&str>) -> Result<Option<Profile>, String> {
            let home = self.0.path().to_str().unwrap().to_owned();
            read(&|name| match name {
                "HOME" => Some(home.clone()),
                "AWS_PROFILE" => profile.map(str::to_owned),
                _ => None,
            })
        }
    }

    fn keys(key_id: &str, secret: &str, token: Option<&str>, region: Option<&str>) -> Profile {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Profile { key_id: key_id.into(), secret: secret.into(), token: owned(token), region: owned(region) }
    }

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        let machine = Machine::new(
            "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=s/+=#;x\n\n[Team]\naws_access_key_id=B\naws_secret_access_key = t\naws_session_token = u\n",
            "[default]\nregion = eu-central-1\n[profile Team]\nregion=us-east-2\ns3 =\n  addressing_style = path\n[profile conf]\naws_access_key_id=C\naws_secret_access_key=v\n",
        );
        assert_eq!(machine.read(None), Ok(Some(keys("A", "s/+=#;x", None, Some("eu-central-1")))));
        assert_eq!(machine.read(Some("Team")), Ok(Some(keys("B", "t", Some("u"), Some("us-east-2")))));
        assert_eq!(machine.read(Some("conf")), Ok(Some(keys("C", "v", None, None))));
        let refused = machine.read(Some("team")).unwrap_err();
        assert!(refused.starts_with("AWS_PROFILE is 'team', which has no aws_access_key_id"), "{refused}");
    }

    #[test]
    fn nothing_there_is_no_error_unless_a_profile_is_named() {
        let machine = Machine::new("", "[default]\nrole_arn = arn\nregion = x\n");
        assert_eq!(machine.read(None), Ok(None));
        assert!(machine.read(Some("default")).unwrap_err().contains("role_arn"));
        assert_eq!(read(&|_| None), Ok(None));
        assert_eq!(read(&|name| (name == "HOME").then(|| "/nowhere".into())), Ok(None));
    }

    #[test]
    fn a_file_that_is_none_is_refused_without_its_text() {
        let machine = Machine::new("[default\nsecret\n", "");
        let refused = machine.read(None).unwrap_err();
        assert!(refused.ends_with("credentials is no file of profiles; correct it"), "{refused}");
        assert!(!refused.contains("secret"), "{refused}");
    }
}
